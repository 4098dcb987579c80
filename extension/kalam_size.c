/*
 * kalam_size.c: how large the server says a table is.
 *
 * SHOW TABLE SIZE costs a round trip and little on the server.  For planning,
 * a session keeps the answers: of a large table for some minutes, of a small
 * one for a few seconds, since a small one soon is no more.  What changes the
 * table's definition or statistics here forgets them, and so does writing many
 * rows at once.
 */
#include "postgres.h"

#include "common/hashfn.h"
#include "port/pg_bswap.h"
#include "utils/hsearch.h"
#include "utils/inval.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "kalam_read.h"

#define LARGE_ROWS 100000.0
#define LARGE_KEPT_MS 300000
#define SMALL_KEPT_MS 5000
#define MOST_KEPT 1000
#define MANY_WRITTEN 1000
#define FEW_ROWS 10000			/* of a tenant: whatever is estimated of so few, nothing is compiled for them (JIT) */
#define SOME_TENANT 1			/* instead of a tenant's hash: the one that was asked for last */

typedef struct SizeKey
{
	uint64		tenant;			/* a hash of its name: a collision costs no more than a bad estimate */
	Oid			relid;
	Oid			userid;			/* whose account asked */
} SizeKey;

typedef struct SizeEntry
{
	SizeKey		key;			/* hash key: first */
	KalamSize	size;
	TimestampTz asked;			/* 0: forgotten */
} SizeEntry;

static HTAB *sizes = NULL;

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

	size->rows = size->tenant_rows = -1;
	size->bytes = 0;
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

/* ---------- kept ---------- */

static void
forget_sizes(Datum arg, Oid relid)
{
	HASH_SEQ_STATUS all;
	SizeEntry  *entry;

	if (sizes == NULL)
		return;
	hash_seq_init(&all, sizes);
	while ((entry = hash_seq_search(&all)) != NULL)
	{
		if (!OidIsValid(relid) || entry->key.relid == relid)
			entry->asked = 0;
	}
}

void
kalam_sizes_changed(int64 rows)
{
	if (rows >= MANY_WRITTEN)
		forget_sizes((Datum) 0, InvalidOid);
}

static void
make_room(void)
{
	HASHCTL		ctl = {.keysize = sizeof(SizeKey), .entrysize = sizeof(SizeEntry)};

	if (sizes != NULL && hash_get_num_entries(sizes) < MOST_KEPT)
		return;
	if (sizes == NULL)
		CacheRegisterRelcacheCallback(forget_sizes, (Datum) 0);
	else
		hash_destroy(sizes);
	sizes = NULL;
	ctl.hcxt = TopMemoryContext;
	sizes = hash_create("KalamDB table sizes", 32, &ctl, HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
}

static bool
is_fresh(const SizeEntry *entry)
{
	int			kept = entry->size.rows < LARGE_ROWS ? SMALL_KEPT_MS : LARGE_KEPT_MS;

	return entry->asked != 0 && !TimestampDifferenceExceeds(entry->asked, GetCurrentTimestamp(), kept);
}

static void
keep_size(const SizeKey *key, const KalamSize *size)
{
	bool		found;
	SizeEntry  *entry = hash_search(sizes, key, HASH_ENTER, &found);

	entry->size = *size;
	entry->asked = GetCurrentTimestamp();
}

void
kalam_known_size(KalamConn *conn, KalamTable *table, Oid userid, const char *tenant, bool roughly, KalamSize *size)
{
	SizeKey		key = {0};
	SizeKey		some = {0};
	SizeEntry  *entry;

	make_room();
	key.relid = some.relid = table->relid;
	key.userid = some.userid = userid;
	some.tenant = SOME_TENANT;
	if (tenant)
		key.tenant = hash_bytes_extended((const unsigned char *) tenant, strlen(tenant), 1);
	entry = hash_search(sizes, &key, HASH_FIND, NULL);
	if (tenant && roughly && strcmp(tenant, "*") != 0 && (entry == NULL || !is_fresh(entry)))
		entry = hash_search(sizes, &some, HASH_FIND, NULL);
	if (entry && is_fresh(entry))
	{
		*size = entry->size;
		return;
	}
	kalam_remote_size(conn, table, tenant, size);
	keep_size(&key, size);
	if (tenant && size->tenant_rows >= 0 && size->tenant_rows <= FEW_ROWS)
		keep_size(&some, size);
}
