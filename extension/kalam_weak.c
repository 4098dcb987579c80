/*
 * kalam_weak.c: placeholders for files that have not landed yet.  Deleted when all have.
 */
#include "postgres.h"

#include "kalam_core.h"

#define MISSING() \
	ereport(ERROR, (errcode(ERRCODE_FEATURE_NOT_SUPPORTED), errmsg("%s is not there yet", __func__)))
#define WEAK __attribute__((weak))

WEAK void kalam_plan_routine(FdwRoutine *routine) {}
WEAK void kalam_scan_routine(FdwRoutine *routine) {}
WEAK void kalam_modify_routine(FdwRoutine *routine) {}
WEAK void kalam_modify_init(void) {}
WEAK void kalam_ddl_init(void) {}
WEAK void kalam_connection_init(void) {}
WEAK void kalam_transaction_init(void) {}
WEAK void kalam_functions_init(void) {}
WEAK void kalam_secret_init(void) {}
WEAK bool kalam_secret_hook_active(void) { return false; }
WEAK bool kalam_is_shippable(KalamConn *conn, RelOptInfo *rel, Expr *expr) { MISSING(); return false; }
WEAK void kalam_deparse_select(StringInfo buf, KalamConn *conn, PlannerInfo *root, RelOptInfo *rel,
	Relation relation, KalamTable *table, List *attrs, List *conds, const char *locking, List **params_list) { MISSING(); }
WEAK const char *
kalam_quote(const char *ident)
{
	StringInfoData buf;

	initStringInfo(&buf);
	appendStringInfoChar(&buf, '"');
	for (; *ident; ident++)
	{
		if (*ident == '"')
			appendStringInfoChar(&buf, '"');
		appendStringInfoChar(&buf, *ident);
	}
	appendStringInfoChar(&buf, '"');
	return buf.data;
}
WEAK void
kalam_deparse_table(StringInfo buf, KalamTable *table)
{
	appendStringInfo(buf, "%s.%s", kalam_quote(table->namespace), kalam_quote(table->name));
}

/* of the core itself */
WEAK KalamConn *kalam_connection_get(UserMapping *user) { MISSING(); return NULL; }
WEAK KalamConn *kalam_connection_for_server(Oid serverid, Oid userid) { MISSING(); return NULL; }
WEAK UserMapping *kalam_user_mapping(Oid serverid, Oid userid) { MISSING(); return NULL; }
WEAK PGresult *kalam_request(KalamConn *conn, const KalamRequest *req) { MISSING(); return NULL; }
WEAK void kalam_result_free(PGresult *res) { PQclear(res); }
WEAK KalamAhead *kalam_request_ahead(KalamConn *conn, const KalamRequest *req) { MISSING(); return NULL; }
WEAK PGresult *kalam_ahead_wait(KalamAhead *ahead) { MISSING(); return NULL; }
WEAK void kalam_ahead_discard(KalamAhead *ahead) {}
WEAK char *kalam_result_cursor(PGresult *res) { MISSING(); return NULL; }
WEAK void kalam_cursor_abandon(KalamConn *conn, const char *cursor) { MISSING(); }
WEAK const KalamCap *kalam_capability(KalamConn *conn, char kind, Oid oid) { MISSING(); return NULL; }
WEAK const char *kalam_server_fact(KalamConn *conn, const char *name) { MISSING(); return NULL; }
WEAK Oid kalam_connection_serverid(KalamConn *conn) { MISSING(); return InvalidOid; }
WEAK int kalam_round_trips(void) { return 0; }
WEAK bool kalam_transaction_is_lone(KalamConn *conn) { MISSING(); return false; }
WEAK int kalam_snapshot_number(KalamConn *conn, EState *estate) { MISSING(); return 0; }
WEAK void kalam_pending_add(KalamPending *pending) { MISSING(); }
WEAK void kalam_pending_remove(KalamPending *pending) { MISSING(); }
WEAK void kalam_pending_flush_all(KalamConn *conn) { MISSING(); }
WEAK bool kalam_statement_has_secret(Node *parsetree) { return false; }

#define FUNCTION(name) \
	PG_FUNCTION_INFO_V1(name); WEAK Datum name(PG_FUNCTION_ARGS) { MISSING(); return (Datum) 0; }
FUNCTION(sql_kalam_user_id)
FUNCTION(sql_kalam_exec)
FUNCTION(sql_kalam_ping)
FUNCTION(sql_kalam_server_info)
FUNCTION(sql_kalam_connections)
FUNCTION(sql_kalam_disconnect)
FUNCTION(sql_kalam_round_trips)
FUNCTION(sql_snowflake_id)
