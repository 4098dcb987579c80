/*
 * kalam_size.c: how large the server says a table is.
 *
 * SHOW TABLE SIZE costs a round trip and little on the server; planning keeps
 * its answers, as kalam_estimate.c needs them.
 */
#include "postgres.h"

#include "port/pg_bswap.h"

#include "kalam_read.h"

int64
kalam_result_int(PGresult *res, int row, int col)
{
	const char *value = PQgetvalue(res, row, col);
	uint32		word;
	uint64		wide;

	if (PQgetisnull(res, row, col) || PQfformat(res, col) != 1)
		return 0;
	if (PQgetlength(res, row, col) == sizeof(word))
	{
		memcpy(&word, value, sizeof(word));
		return (int32) pg_ntoh32(word);
	}
	if (PQgetlength(res, row, col) != sizeof(wide))
		return 0;
	memcpy(&wide, value, sizeof(wide));
	return (int64) pg_ntoh64(wide);
}

PGresult *
kalam_ask_about(KalamConn *conn, KalamTable *table, const char *tenant, const char *question)
{
	KalamRequest req = {0};
	StringInfoData sql;

	initStringInfo(&sql);
	appendStringInfo(&sql, "%s ", question);
	kalam_deparse_table(&sql, table);
	req.sql = sql.data;
	req.tenant = tenant;
	return kalam_request(conn, &req);
}

void
kalam_remote_size(KalamConn *conn, KalamTable *table, const char *tenant, KalamSize *size)
{
	PGresult   *res = kalam_ask_about(conn, table, tenant, "SHOW TABLE SIZE");

	size->rows = size->bytes = 0;
	size->tenant_rows = -1;
	for (int row = 0; row < PQntuples(res); row++)
	{
		const char *name = PQgetvalue(res, row, 0);
		double		value = (double) kalam_result_int(res, row, 1);

		if (strcmp(name, "rows") == 0)
			size->rows = value;
		else if (strcmp(name, "bytes") == 0)
			size->bytes = value;
		else if (strcmp(name, "tenant_rows") == 0)
			size->tenant_rows = value;
	}
	kalam_result_free(res);
}
