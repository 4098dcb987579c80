/*
 * kalam_datum.c: Datums to and from the storage representation.
 *
 * docs/protocol.md ("Values") says how each type is stored and how it travels;
 * this file is that table in C.  A type the server lists with the layout
 * expected here has a native path.  Every other one travels as the text of its
 * output function and comes back through its input function.
 *
 * Domains are handled as their base type: their constraints were checked when
 * the value was written.  Likewise type modifiers of the native types are not
 * applied again.  Text on the wire is UTF-8, whatever the database's encoding.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "datatype/timestamp.h"
#include "kalam_read.h"
#include "lib/stringinfo.h"
#include "libpq/pqformat.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "pgtime.h"
#include "port/pg_bswap.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/bytea.h"
#include "utils/date.h"
#include "utils/float.h"
#include "utils/fmgrprotos.h"
#include "utils/guc.h"
#include "utils/jsonb.h"
#include "utils/lsyscache.h"
#include "utils/numeric.h"
#include "utils/pg_locale.h"
#include "utils/timestamp.h"
#include "utils/uuid.h"
#include "utils/xml.h"

#ifdef WORDS_BIGENDIAN
#error "pg_kalam exchanges little-endian buffers and does not swap them"
#endif

static const struct
{
	Oid			typid;
	KalamLayout layout;
}			native_types[] =
{
	{BOOLOID, KALAM_BOOL},
	{INT2OID, KALAM_INT16},
	{INT4OID, KALAM_INT32},
	{INT8OID, KALAM_INT64},
	{FLOAT4OID, KALAM_FLOAT32},
	{FLOAT8OID, KALAM_FLOAT64},
	{TEXTOID, KALAM_UTF8},
	{VARCHAROID, KALAM_UTF8},
	{JSONOID, KALAM_UTF8},
	{JSONBOID, KALAM_UTF8},
	{NUMERICOID, KALAM_UTF8},
	{BYTEAOID, KALAM_BINARY},
	{DATEOID, KALAM_INT32},
	{TIMESTAMPOID, KALAM_INT64},
	{TIMESTAMPTZOID, KALAM_INT64},
	{UUIDOID, KALAM_BINARY},
};

KALAM_NORETURN static void bad_length(KalamConverter *c, int64 len);

static void
bad_length(KalamConverter *c, int64 len)
{
	ereport(ERROR,
			(errcode(ERRCODE_PROTOCOL_VIOLATION),
			 errmsg("KalamDB sent " INT64_FORMAT " bytes for a value of type %s", len, format_type_be(c->typid))));
}

/* ---------- converters ---------- */

/* Is there a native path for the type, and does the server agree on its layout? */
static bool
native_layout(KalamConn *conn, Oid typid, KalamLayout *layout)
{
	for (int i = 0; i < lengthof(native_types); i++)
	{
		const KalamCap *cap;

		if (native_types[i].typid != typid)
			continue;
		cap = kalam_capability(conn, 't', typid);
		*layout = native_types[i].layout;
		return cap != NULL && kalam_layout(cap->layout) == *layout;
	}
	return false;
}

void
kalam_converter(KalamConverter *c, KalamConn *conn, Oid typid, int32 typmod)
{
	Oid			in;
	Oid			out;
	bool		is_varlena;

	memset(c, 0, sizeof(*c));
	c->typmod = typmod;
	c->typid = getBaseTypeAndTypmod(typid, &c->typmod);
	get_typlenbyval(c->typid, &c->typlen, &c->typbyval);
	c->as_text = !native_layout(conn, c->typid, &c->layout);
	if (c->as_text)
		c->layout = KALAM_UTF8;
	else
		c->typmod = -1;
	c->wire_oid = c->as_text ? TEXTOID : c->typid;
	/* numeric and jsonb go through these too where they are text */
	getTypeInputInfo(c->typid, &in, &c->ioparam);
	fmgr_info(in, &c->in);
	getTypeOutputInfo(c->typid, &out, &is_varlena);
	fmgr_info(out, &c->out);
}

/* As a column's, but types kept as text that the server compares are announced by their names; false: unknown there. */
static bool
parameter_converter(KalamConverter *c, KalamConn *conn, Oid typid, int32 typmod)
{
	const KalamCap *cap;

	kalam_converter(c, conn, typid, typmod);
	if (!c->as_text)
		return true;
	cap = kalam_compared(conn, typid);
	if (cap != NULL && strcmp(cap->layout, "text") != 0)
		c->wire_oid = c->typid;
	return cap != NULL;
}

void
kalam_parameter_converter(KalamConverter *c, KalamConn *conn, Oid typid, int32 typmod)
{
	Oid			element = get_element_type(getBaseType(typid));
	KalamConverter inner;

	parameter_converter(c, conn, typid, typmod);
	if (!OidIsValid(element) || !parameter_converter(&inner, conn, element, -1))
		return;
	c->element = palloc(sizeof(KalamConverter));
	*c->element = inner;
	c->wire_oid = get_array_type(inner.wire_oid);
}

bool
kalam_converter_accepts(const KalamConverter *c, Oid remote_oid)
{
	if (c->wire_oid == TEXTOID || c->wire_oid == VARCHAROID)
		return remote_oid == TEXTOID || remote_oid == VARCHAROID;
	return remote_oid == c->wire_oid;
}

int
kalam_set_transmission_modes(void)
{
	int			nestlevel = NewGUCNestLevel();

	if (DateStyle != USE_ISO_DATES)
		(void) set_config_option("datestyle", "ISO", PGC_USERSET, PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
	if (IntervalStyle != INTSTYLE_POSTGRES)
		(void) set_config_option("intervalstyle", "postgres", PGC_USERSET, PGC_S_SESSION, GUC_ACTION_SAVE, true, 0,
								 false);
	if (extra_float_digits < 3)
		(void) set_config_option("extra_float_digits", "3", PGC_USERSET, PGC_S_SESSION, GUC_ACTION_SAVE, true, 0,
								 false);
	if (bytea_output != BYTEA_OUTPUT_HEX)	/* inside arrays and rows */
		(void) set_config_option("bytea_output", "hex", PGC_USERSET, PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
	if (xmloption != XMLOPTION_CONTENT)
		(void) set_config_option("xmloption", "content", PGC_USERSET, PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
	if (strcmp(locale_monetary, "C") != 0)
		(void) set_config_option("lc_monetary", "C", PGC_USERSET, PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
	/* one text for one moment, inside ranges and arrays */
	if (strcmp(pg_get_timezone_name(session_timezone), "UTC") != 0)
		(void) set_config_option("timezone", "UTC", PGC_USERSET, PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
	/* regclass and its like are written with their schemas */
	(void) set_config_option("search_path", "pg_catalog", PGC_USERSET, PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
	return nestlevel;
}

void
kalam_reset_transmission_modes(int nestlevel)
{
	AtEOXact_GUC(true, nestlevel);
}

/* ---------- text in ---------- */

/* UTF-8 from the wire in the database's encoding, checked; may be the same bytes */
static const char *
text_from_wire(const char *s, int *len)
{
	char	   *converted = pg_any_to_server(s, *len, PG_UTF8);

	if (converted != s)
		*len = strlen(converted);
	return converted;
}

/* the same with an end, for input functions */
static char *
cstring_from_wire(const char *s, int len)
{
	const char *text = text_from_wire(s, &len);

	return text == s ? pnstrdup(s, len) : unconstify(char *, text);
}

/* PostgreSQL writes the least number of microseconds of an interval, but does not read it. */
static Datum
interval_from_text(KalamConverter *c, char *text)
{
	static const char least[] = "-2562047788:00:54.775808";
	int			start = strlen(text) - strlen(least);
	bool		is_least = start >= 0 && strcmp(text + start, least) == 0;
	Datum		value;

	if (is_least)
		text[strlen(text) - 1]--;
	value = InputFunctionCall(&c->in, text, c->ioparam, c->typmod);
	if (is_least)
		DatumGetIntervalP(value)->time--;
	return value;
}

static Datum
input_from_wire(KalamConverter *c, const char *s, int len)
{
	char	   *text = cstring_from_wire(s, len);
	Datum		value = c->typid == INTERVALOID ? interval_from_text(c, text) :
		InputFunctionCall(&c->in, text, c->ioparam, c->typmod);

	pfree(text);
	return value;
}

static bool
is_plain_text(const KalamConverter *c)
{
	return !c->as_text && (c->typid == TEXTOID || c->typid == VARCHAROID || c->typid == JSONOID);
}

static bool
is_bytes(const KalamConverter *c)
{
	return !c->as_text && c->typid == BYTEAOID;
}

/* ---------- fixed width in ---------- */

static Datum
checked_date(DateADT value)
{
	if (!DATE_NOT_FINITE(value) && !IS_VALID_DATE(value))
		ereport(ERROR,
				(errcode(ERRCODE_DATETIME_VALUE_OUT_OF_RANGE),
				 errmsg("date out of range")));
	return DateADTGetDatum(value);
}

static Datum
checked_timestamp(int64 value)
{
	if (!TIMESTAMP_NOT_FINITE(value) && !IS_VALID_TIMESTAMP(value))
		ereport(ERROR,
				(errcode(ERRCODE_DATETIME_VALUE_OUT_OF_RANGE),
				 errmsg("timestamp out of range")));
	return Int64GetDatum(value);
}

static Datum
uuid_from_wire(KalamConverter *c, const char *s, int len)
{
	char	   *value;

	if (len != UUID_LEN)
		bad_length(c, len);
	value = palloc(UUID_LEN);
	memcpy(value, s, UUID_LEN);
	return PointerGetDatum(value);
}

/* ---------- Arrow in ---------- */

#define READ_FIXED(ctype, convert) \
	for (int i = 0; i < n; i++) \
	{ \
		ctype		v; \
\
		memcpy(&v, col->values + sizeof(ctype) * (start + i), sizeof(ctype)); \
		if (!nulls[i]) \
			values[i] = convert(v); \
	}

static void
read_nulls(const KalamArrowColumn *col, int64 start, int n, bool *nulls)
{
	if (col->validity == NULL)
	{
		memset(nulls, 0, sizeof(bool) * n);
		return;
	}
	for (int i = 0; i < n; i++)
		nulls[i] = !kalam_arrow_bit(col->validity, start + i);
}

/* One allocation holds the varlenas of all n values. */
static void
read_varlenas(const KalamArrowColumn *col, int64 start, int n, bool is_text, Datum *values, const bool *nulls)
{
	Size		total = (Size) n * (VARHDRSZ + sizeof(int32)) +
		kalam_arrow_offset(col->values, start + n) - kalam_arrow_offset(col->values, start);
	char	   *next = palloc(total);

	for (int i = 0; i < n; i++)
	{
		int32		from = kalam_arrow_offset(col->values, start + i);
		int			len = kalam_arrow_offset(col->values, start + i + 1) - from;
		const char *s = (const char *) col->data + from;

		if (nulls[i])
			continue;
		if (is_text)
		{
			const char *text = text_from_wire(s, &len);

			if (text != s)
			{
				values[i] = PointerGetDatum(cstring_to_text_with_len(text, len));
				continue;
			}
		}
		SET_VARSIZE(next, VARHDRSZ + len);
		memcpy(VARDATA(next), s, len);
		values[i] = PointerGetDatum(next);
		next += INTALIGN(VARHDRSZ + len);
	}
}

static void
read_by_function(KalamConverter *c, const KalamArrowColumn *col, int64 start, int n, Datum *values, const bool *nulls)
{
	for (int i = 0; i < n; i++)
	{
		int32		from = kalam_arrow_offset(col->values, start + i);
		int			len = kalam_arrow_offset(col->values, start + i + 1) - from;
		const char *s = (const char *) col->data + from;

		if (nulls[i])
			continue;
		values[i] = c->typid == UUIDOID && !c->as_text ? uuid_from_wire(c, s, len) : input_from_wire(c, s, len);
	}
}

static void
read_bits(const KalamArrowColumn *col, int64 start, int n, Datum *values)
{
	for (int i = 0; i < n; i++)
		values[i] = BoolGetDatum(kalam_arrow_bit(col->values, start + i));
}

void
kalam_block_from_arrow(KalamConverter *c, const KalamArrowColumn *col, int64 start, int n, Datum *values, bool *nulls)
{
	if (n <= 0)
		return;
	read_nulls(col, start, n, nulls);
	switch (c->layout)
	{
		case KALAM_BOOL:
			read_bits(col, start, n, values);
			break;
		case KALAM_INT16:
			READ_FIXED(int16, Int16GetDatum);
			break;
		case KALAM_INT32:
			if (c->typid == DATEOID)
				READ_FIXED(int32, checked_date)
			else
				READ_FIXED(int32, Int32GetDatum)
			break;
		case KALAM_INT64:
			if (c->typid == INT8OID)
				READ_FIXED(int64, Int64GetDatum)
			else
				READ_FIXED(int64, checked_timestamp)
			break;
		case KALAM_FLOAT32:
			READ_FIXED(float4, Float4GetDatum);
			break;
		case KALAM_FLOAT64:
			READ_FIXED(float8, Float8GetDatum);
			break;
		case KALAM_UTF8:
		case KALAM_BINARY:
			if (is_plain_text(c) || is_bytes(c))
				read_varlenas(col, start, n, !is_bytes(c), values, nulls);
			else
				read_by_function(c, col, start, n, values, nulls);
			break;
	}
}

/* ---------- rows in ---------- */

static uint64
big_endian(KalamConverter *c, const char *value, int len, int wanted)
{
	uint64		result = 0;

	if (len != wanted)
		bad_length(c, len);
	for (int i = 0; i < len; i++)
		result = (result << 8) | (uint8) value[i];
	return result;
}

static Datum
float_from_binary(KalamConverter *c, const char *value, int len)
{
	if (c->typid == FLOAT4OID)
	{
		uint32		bits = (uint32) big_endian(c, value, len, 4);
		float4		f;

		memcpy(&f, &bits, sizeof(f));
		return Float4GetDatum(f);
	}
	else
	{
		uint64		bits = big_endian(c, value, len, 8);
		float8		f;

		memcpy(&f, &bits, sizeof(f));
		return Float8GetDatum(f);
	}
}

static Datum
numeric_from_binary(const char *value, int len)
{
	StringInfoData buf;

	initStringInfo(&buf);
	appendBinaryStringInfo(&buf, value, len);
	return DirectFunctionCall3(numeric_recv, PointerGetDatum(&buf), ObjectIdGetDatum(InvalidOid), Int32GetDatum(-1));
}

static Datum
varlena_from_binary(KalamConverter *c, const char *value, int len)
{
	if (c->typid != BYTEAOID)
		value = text_from_wire(value, &len);
	return PointerGetDatum(cstring_to_text_with_len(value, len));
}

Datum
kalam_from_binary(KalamConverter *c, Oid remote_oid, const char *value, int len)
{
	if (!kalam_converter_accepts(c, remote_oid))
		ereport(ERROR,
				(errcode(ERRCODE_FDW_INVALID_DATA_TYPE),
				 errmsg("KalamDB sent a value of type %s where %s was expected", format_type_be(remote_oid),
						format_type_be(c->typid))));
	if (c->as_text)
		return input_from_wire(c, value, len);
	switch (c->typid)
	{
		case BOOLOID:
			return BoolGetDatum(big_endian(c, value, len, 1) != 0);
		case INT2OID:
			return Int16GetDatum((int16) big_endian(c, value, len, 2));
		case INT4OID:
			return Int32GetDatum((int32) big_endian(c, value, len, 4));
		case INT8OID:
			return Int64GetDatum((int64) big_endian(c, value, len, 8));
		case DATEOID:
			return checked_date((int32) big_endian(c, value, len, 4));
		case TIMESTAMPOID:
		case TIMESTAMPTZOID:
			return checked_timestamp((int64) big_endian(c, value, len, 8));
		case FLOAT4OID:
		case FLOAT8OID:
			return float_from_binary(c, value, len);
		case NUMERICOID:
			return numeric_from_binary(value, len);
		case UUIDOID:
			return uuid_from_wire(c, value, len);
		case JSONBOID:
			if (len < 1 || value[0] != 1)
				bad_length(c, len);
			return input_from_wire(c, value + 1, len - 1);
		default:
			return varlena_from_binary(c, value, len);
	}
}

/* ---------- out ---------- */

/* text as the wire wants it; may be the same bytes */
static const char *
text_to_wire(const char *s, int *len)
{
	char	   *converted = pg_server_to_any(s, *len, PG_UTF8);

	if (converted != s)
		*len = strlen(converted);
	return converted;
}

/* The bytes of a value that is stored as text or blob; they may belong to the Datum. */
static const char *
bytes_of(KalamConverter *c, Datum value, int *len)
{
	struct varlena *v;
	const char *s;

	if (!c->as_text && c->typid == UUIDOID)
	{
		*len = UUID_LEN;
		return DatumGetPointer(value);
	}
	if (!is_plain_text(c) && !is_bytes(c))
	{
		s = OutputFunctionCall(&c->out, value);
		*len = strlen(s);
		return text_to_wire(s, len);
	}
	v = PG_DETOAST_DATUM_PACKED(value);
	*len = VARSIZE_ANY_EXHDR(v);
	s = VARDATA_ANY(v);
	return is_bytes(c) ? s : text_to_wire(s, len);
}

/* The bytes of a value of fixed width, as they lie in an Arrow buffer. */
static int64
fixed_bits(KalamConverter *c, Datum value)
{
	int64		bits = 0;

	switch (c->layout)
	{
		case KALAM_FLOAT32:
			{
				float4		f = DatumGetFloat4(value);

				memcpy(&bits, &f, sizeof(f));
				break;
			}
		case KALAM_FLOAT64:
			{
				float8		f = DatumGetFloat8(value);

				memcpy(&bits, &f, sizeof(f));
				break;
			}
		case KALAM_BOOL:
			bits = DatumGetBool(value);
			break;
		case KALAM_INT16:
			bits = DatumGetInt16(value);
			break;
		case KALAM_INT32:
			bits = DatumGetInt32(value);
			break;
		default:
			bits = DatumGetInt64(value);
	}
	return bits;
}

void
kalam_to_arrow(KalamConverter *c, KalamArrowBuilder *b, int col, Datum value, bool isnull)
{
	if (isnull)
		kalam_arrow_append_null(b, col);
	else if (c->layout == KALAM_UTF8 || c->layout == KALAM_BINARY)
	{
		int			len;
		const char *s = bytes_of(c, value, &len);

		kalam_arrow_append(b, col, s, len);
	}
	else
	{
		int64		bits = fixed_bits(c, value);

		kalam_arrow_append(b, col, &bits, 0);
	}
}

static char *
fixed_param(KalamConverter *c, Datum value, int *len)
{
	uint64		bits = (uint64) fixed_bits(c, value);
	char	   *out = palloc(8);

	*len = c->layout == KALAM_BOOL ? 1 : kalam_layout_width(c->layout);
	for (int i = 0; i < *len; i++)
		out[i] = (char) (bits >> (8 * (*len - 1 - i)));
	return out;
}

/* As array_send writes it, in one dimension; elements are encoded for the wire, not for the session's client. */
static char *
array_param(KalamConverter *element, Datum value, int *len)
{
	ArrayType  *array = DatumGetArrayTypeP(value);
	StringInfoData buf;
	int16		typlen;
	bool		typbyval;
	char		typalign;
	Datum	   *values;
	bool	   *nulls;
	int			n;

	get_typlenbyvalalign(ARR_ELEMTYPE(array), &typlen, &typbyval, &typalign);
	deconstruct_array(array, ARR_ELEMTYPE(array), typlen, typbyval, typalign, &values, &nulls, &n);
	initStringInfo(&buf);
	pq_sendint32(&buf, n > 0 ? 1 : 0);
	pq_sendint32(&buf, array_contains_nulls(array) ? 1 : 0);
	pq_sendint32(&buf, element->wire_oid);
	if (n > 0)
	{
		pq_sendint32(&buf, n);
		pq_sendint32(&buf, 1);
	}
	for (int i = 0; i < n; i++)
	{
		int			size = -1;
		int			format;
		char	   *sent = nulls[i] ? NULL : kalam_to_param(element, values[i], &size, &format);

		pq_sendint32(&buf, size);
		if (sent)
			pq_sendbytes(&buf, sent, size);
	}
	*len = buf.len;
	return buf.data;
}

char *
kalam_to_param(KalamConverter *c, Datum value, int *len, int *format)
{
	const char *s;
	char	   *out;
	int			version = !c->as_text && c->typid == JSONBOID ? 1 : 0;	/* jsonb_send's leading byte */

	*format = 1;
	if (c->element)
		return array_param(c->element, value, len);
	if (!c->as_text && c->typid == NUMERICOID)
	{
		bytea	   *sent = DatumGetByteaPP(DirectFunctionCall1(numeric_send, value));

		*len = VARSIZE_ANY_EXHDR(sent);
		return VARDATA_ANY(sent);
	}
	if (c->layout != KALAM_UTF8 && c->layout != KALAM_BINARY)
		return fixed_param(c, value, len);
	s = bytes_of(c, value, len);
	out = palloc(*len + version + 1);
	out[0] = version;
	memcpy(out + version, s, *len);
	*len += version;
	return out;
}
