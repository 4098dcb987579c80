/*
 * kalam_functions.c: the SQL functions but snowflake_id().
 *
 * Those that take a server's name mean kalam.default_server by NULL, and want
 * USAGE on it: a function must not open what the foreign tables would not.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_class.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/hsearch.h"
#include "utils/json.h"
#include "utils/jsonb.h"
#include "utils/lsyscache.h"
#include "utils/tuplestore.h"

#include "kalam_core.h"

PG_FUNCTION_INFO_V1(sql_kalam_version);
PG_FUNCTION_INFO_V1(sql_kalam_compiled_mode);
PG_FUNCTION_INFO_V1(sql_kalam_user_id);
PG_FUNCTION_INFO_V1(sql_kalam_user_id_guc_name);
PG_FUNCTION_INFO_V1(sql_kalam_exec);
PG_FUNCTION_INFO_V1(sql_kalam_ping);
PG_FUNCTION_INFO_V1(sql_kalam_server_info);
PG_FUNCTION_INFO_V1(sql_kalam_connections);
PG_FUNCTION_INFO_V1(sql_kalam_disconnect);
PG_FUNCTION_INFO_V1(sql_kalam_round_trips);
PG_FUNCTION_INFO_V1(sql_kalam_flush);
PG_FUNCTION_INFO_V1(sql_kalam_compact);
PG_FUNCTION_INFO_V1(sql_kalam_table_stats);

/* ---------- metadata ---------- */

Datum
sql_kalam_version(PG_FUNCTION_ARGS)
{
	PG_RETURN_TEXT_P(cstring_to_text(KALAM_VERSION));
}

Datum
sql_kalam_compiled_mode(PG_FUNCTION_ARGS)
{
	PG_RETURN_TEXT_P(cstring_to_text("remote"));
}

Datum
sql_kalam_user_id(PG_FUNCTION_ARGS)
{
	if (kalam_user_id == NULL || kalam_user_id[0] == '\0')
		PG_RETURN_NULL();
	PG_RETURN_TEXT_P(cstring_to_text(kalam_user_id));
}

Datum
sql_kalam_user_id_guc_name(PG_FUNCTION_ARGS)
{
	PG_RETURN_TEXT_P(cstring_to_text("kalam.user_id"));
}

Datum
sql_kalam_round_trips(PG_FUNCTION_ARGS)
{
	PG_RETURN_INT64(kalam_count_round_trips());
}

/* ---------- servers ---------- */

/* The argument of that number, or the default server. */
static ForeignServer *
argument_server(FunctionCallInfo fcinfo, int arg)
{
	const char *name = PG_ARGISNULL(arg) ? kalam_default_server : NameStr(*PG_GETARG_NAME(arg));
	ForeignServer *server = kalam_server_by_name(name);

	kalam_check_usage(server);
	return server;
}

/* ---------- kalam_exec ---------- */

Datum
sql_kalam_exec(PG_FUNCTION_ARGS)
{
	KalamRequest req = {.flags = KALAM_REQ_EXEC | KALAM_REQ_TXN};
	ForeignServer *server;
	UserMapping *user;
	PGresult   *res;
	text	   *answer;
	const char *bound;

	if (PG_ARGISNULL(0))
		PG_RETURN_NULL();
	server = argument_server(fcinfo, 1);
	user = kalam_user_mapping(server->serverid, GetUserId());
	req.sql = text_to_cstring(PG_GETARG_TEXT_PP(0));
	req.tenant = kalam_tenant(user);
	bound = kalam_find_option(user->options, "user_id");
	if (bound != NULL && strcmp(bound, "*") != 0)
		req.flags |= KALAM_REQ_BOUND;
	res = kalam_request(kalam_connection_get(user), &req);
	if (PQntuples(res) != 1 || PQnfields(res) != 1)
		ereport(ERROR,
				(errcode(ERRCODE_PROTOCOL_VIOLATION),
				 errmsg("the answer of kalam_exec has %d rows and %d columns instead of one", PQntuples(res), PQnfields(res))));
	if (PQgetisnull(res, 0, 0))
	{
		kalam_result_free(res);
		PG_RETURN_NULL();
	}
	answer = cstring_to_text(kalam_from_utf8(PQgetvalue(res, 0, 0), PQgetlength(res, 0, 0)));
	kalam_result_free(res);
	PG_RETURN_TEXT_P(answer);
}

/* ---------- tiers ---------- */

static bool
owns(Oid relid)
{
#if PG_VERSION_NUM >= 160000
	return object_ownercheck(RelationRelationId, relid, GetUserId());
#else
	return pg_class_ownercheck(relid, GetUserId());
#endif
}

/* A foreign table of ours that the user may see (owned: that it owns). */
static KalamTable *
argument_table(FunctionCallInfo fcinfo, bool owned)
{
	Oid			relid = PG_GETARG_OID(0);
	char	   *name = get_rel_name(relid);
	KalamTable *table;

	if (name == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("relation with OID %u does not exist", relid)));
	if (!kalam_is_relation(relid))
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("\"%s\" is not a table of KalamDB", name)));
	if (owned && !owns(relid))
		aclcheck_error(ACLCHECK_NOT_OWNER, OBJECT_FOREIGN_TABLE, name);
	if (!owned && pg_class_aclcheck(relid, GetUserId(), ACL_SELECT) != ACLCHECK_OK)
		aclcheck_error(ACLCHECK_NO_PRIV, OBJECT_FOREIGN_TABLE, name);
	table = kalam_table_get(relid);
	if (owned)					/* its owner may have lost the server since */
		kalam_check_usage(GetForeignServer(table->serverid));
	return table;
}

/*
 * One statement about a table and what is committed of it.  It opens no remote
 * transaction, but runs in the one that is open: if it fails, its savepoint counts.
 */
static PGresult *
ask_about_table(KalamTable *table, const char *verb)
{
	StringInfoData sql;
	KalamRequest req = {.flags = KALAM_REQ_TEXT};
	KalamConn  *conn = kalam_connection_for_server(table->serverid, GetUserId());

	initStringInfo(&sql);
	appendStringInfo(&sql, "%s ", verb);
	kalam_deparse_table(&sql, table);
	req.sql = sql.data;
	return kalam_request(conn, &req);
}

static Datum
storage_job(FunctionCallInfo fcinfo, const char *verb)
{
	PGresult   *res = ask_about_table(argument_table(fcinfo, true), verb);
	int64		rows = PQntuples(res) == 1 && PQnfields(res) == 3 ? pg_strtoint64(PQgetvalue(res, 0, 2)) : 0;

	kalam_result_free(res);
	PG_RETURN_INT64(rows);
}

Datum
sql_kalam_flush(PG_FUNCTION_ARGS)
{
	return storage_job(fcinfo, "STORAGE FLUSH TABLE");
}

Datum
sql_kalam_compact(PG_FUNCTION_ARGS)
{
	return storage_job(fcinfo, "STORAGE COMPACT TABLE");
}

Datum
sql_kalam_table_stats(PG_FUNCTION_ARGS)
{
	PGresult   *res = ask_about_table(argument_table(fcinfo, false), "SHOW TABLE STATS");
	StringInfoData json;

	initStringInfo(&json);
	for (int row = 0; row < PQntuples(res); row++)
	{
		appendStringInfoString(&json, row > 0 ? ", " : "{");
		escape_json(&json, PQgetvalue(res, row, 0));
		appendStringInfo(&json, ": %s", PQgetvalue(res, row, 1));
	}
	appendStringInfoString(&json, json.len > 0 ? "}" : "{}");
	kalam_result_free(res);
	PG_RETURN_DATUM(DirectFunctionCall1(jsonb_in, CStringGetDatum(json.data)));
}

/* ---------- looking at a server ---------- */

Datum
sql_kalam_ping(PG_FUNCTION_ARGS)
{
	ForeignServer *server = argument_server(fcinfo, 0);
	KalamConn  *conn = kalam_connection_for_server(server->serverid, GetUserId());
	Interval   *interval = palloc0(sizeof(Interval));
	TimestampTz start = GetCurrentTimestamp();

	kalam_result_free(kalam_request_plain(conn, "SELECT 1"));
	interval->time = GetCurrentTimestamp() - start;
	PG_RETURN_INTERVAL_P(interval);
}

static void
append_fact(const char *name, const char *value, void *arg)
{
	StringInfo	json = arg;

	appendStringInfoString(json, json->len > 1 ? ", " : "");
	escape_json(json, name);
	appendStringInfoString(json, ": ");
	escape_json(json, value);
}

static void
append_number(StringInfo json, const char *name, int value)
{
	append_fact(name, "", json);
	json->len -= 2;				/* a number has no quotes */
	appendStringInfo(json, "%d", value);
}

Datum
sql_kalam_server_info(PG_FUNCTION_ARGS)
{
	ForeignServer *server = argument_server(fcinfo, 0);
	KalamConn  *conn = kalam_connection_for_server(server->serverid, GetUserId());
	StringInfoData json;

	initStringInfo(&json);
	appendStringInfoChar(&json, '{');
	append_fact("server", server->servername, &json);
	append_fact("address", conn->where, &json);
	append_fact("tls", "off", &json);
	append_fact("extension", KALAM_VERSION, &json);
	append_fact("scripts", kalam_scripts_version(), &json);
	append_fact("scripts_wanted", KALAM_SCRIPTS, &json);
	append_number(&json, "libpq", PQlibVersion());
	append_number(&json, "backend", PQbackendPID(conn->pg));
	kalam_capability_facts(conn->caps, append_fact, &json);
	append_number(&json, "capabilities", kalam_capability_count(conn->caps));
	appendStringInfoChar(&json, '}');
	PG_RETURN_DATUM(DirectFunctionCall1(jsonb_in, CStringGetDatum(json.data)));
}

/* ---------- cached connections ---------- */

static bool
is_valid(KalamConn *conn)
{
	return !conn->stale && PQstatus(conn->pg) == CONNECTION_OK;
}

static void
put_connection(ReturnSetInfo *rsinfo, KalamConn *conn)
{
	ForeignServer *server = GetForeignServerExtended(conn->serverid, FSV_MISSING_OK);
	char	   *user = GetUserNameFromId(conn->userid, true);
	NameData	names[2];
	Datum		values[4] = {0};
	bool		nulls[4] = {server == NULL, user == NULL, false, false};

	if (server)
		namestrcpy(&names[0], server->servername);
	if (user)
		namestrcpy(&names[1], user);
	values[0] = NameGetDatum(&names[0]);
	values[1] = NameGetDatum(&names[1]);
	values[2] = BoolGetDatum(is_valid(conn));
	values[3] = BoolGetDatum(conn->used);
	tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
}

Datum
sql_kalam_connections(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	HASH_SEQ_STATUS scan;
	KalamConn  *conn;

	InitMaterializedSRF(fcinfo, 0);
	if (kalam_connections == NULL)
		PG_RETURN_VOID();
	hash_seq_init(&scan, kalam_connections);
	while ((conn = hash_seq_search(&scan)) != NULL)
	{
		if (conn->pg)
			put_connection(rsinfo, conn);
	}
	PG_RETURN_VOID();
}

/* Returns whether it was closed; one that this transaction has used stays, with a warning. */
static bool
disconnect(KalamConn *conn)
{
	ForeignServer *server;

	if (conn->pg == NULL)
		return false;
	if (!conn->used)
	{
		kalam_connection_drop(conn);
		return true;
	}
	server = GetForeignServerExtended(conn->serverid, FSV_MISSING_OK);
	ereport(WARNING,
			(errmsg("cannot close connection for server \"%s\" because it is still in use",
					server ? server->servername : "(dropped)")));
	return false;
}

Datum
sql_kalam_disconnect(PG_FUNCTION_ARGS)
{
	Oid			serverid = InvalidOid;
	HASH_SEQ_STATUS scan;
	KalamConn  *conn;
	bool		closed = false;

	if (!PG_ARGISNULL(0))
		serverid = kalam_server_by_name(NameStr(*PG_GETARG_NAME(0)))->serverid;
	if (kalam_connections == NULL)
		PG_RETURN_BOOL(false);
	hash_seq_init(&scan, kalam_connections);
	while ((conn = hash_seq_search(&scan)) != NULL)
	{
		if (!OidIsValid(serverid) || conn->serverid == serverid)
			closed |= disconnect(conn);
	}
	PG_RETURN_BOOL(closed);
}
