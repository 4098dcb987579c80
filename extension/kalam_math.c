/*
 * kalam_math.c: what the C library's functions give here, in one text, as
 * kalamdb.sql.libm makes it of what they give on the server.
 */
#include "postgres.h"

#include <math.h>

#include "common/md5.h"

#include "kalam_read.h"

#define SAMPLES 1000
#define FUNCTIONS 15

/* x is up to 128 from zero, and exact */
static void
compute(double x, double *to)
{
	double		u = x / 128;

	*to++ = log(fabs(x));
	*to++ = log10(fabs(x));
	*to++ = sin(x);
	*to++ = cos(x);
	*to++ = tan(x);
	*to++ = asin(u);
	*to++ = acos(u);
	*to++ = atan(x);
	*to++ = atan2(x, u);
	*to++ = tanh(u);
	*to++ = exp(x);
	*to++ = pow(fabs(x), x / 16);
	*to++ = cbrt(x);
	*to++ = sinh(x);
	*to++ = cosh(x);
}

/* Once in a backend, about a millisecond. */
const char *
kalam_libm(void)
{
	static char hex[33];
	const char *error = NULL;
	uint64		state = 1;
	double	   *values;

	if (hex[0] != '\0')
		return hex;
	values = palloc(SAMPLES * FUNCTIONS * sizeof(double));
	for (int i = 0; i < SAMPLES; i++)
	{
		state = state * UINT64CONST(6364136223846793005) + UINT64CONST(1442695040888963407);
		compute(ldexp((double) ((int64) state >> 11), -45), values + i * FUNCTIONS);
	}
	if (!pg_md5_hash(values, SAMPLES * FUNCTIONS * sizeof(double), hex, &error))
		strlcpy(hex, "none", sizeof(hex));	/* FIPS mode: no server says so */
	pfree(values);
	return hex;
}
