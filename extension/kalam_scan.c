/*
 * kalam_scan.c: running a foreign scan.
 *
 * The statement's answer is its first chunk of rows; if there are more, it
 * names a cursor, and the next chunk is asked for while this one is worked on.
 * Other statements on the connection may come between: what is under way for a
 * scan is then taken in for it first.
 *
 * Most scans run in the remote transaction and name their statement's snapshot,
 * so that all scans of a statement see the same.  The one scan of a client's
 * own statement outside a transaction block is its own transaction over there,
 * which saves the round trip that would end it.
 *
 * EndForeignScan is not called after an error: all a scan holds belongs to a
 * memory context of its own, whose end closes the cursor.
 */
#include "postgres.h"

#include "access/xact.h"
#include "commands/explain.h"
#include "executor/executor.h"
#include "foreign/fdwapi.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "nodes/makefuncs.h"
#include "nodes/nodeFuncs.h"
#include "optimizer/clauses.h"
#include "parser/parsetree.h"
#include "tcop/pquery.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#if PG_VERSION_NUM >= 180000
#include "commands/explain_format.h"
#include "commands/explain_state.h"
#endif

#include "kalam_core.h"
#include "kalam_read.h"

/* One running scan: ForeignScanState.fdw_state */
typedef struct KalamScan
{
	ForeignScanState *node;
	KalamTable *table;			/* of several, the first: its options count */
	KalamConn  *conn;
	const char *tenant;			/* NULL: none */
	const char *sql;
	int			wanted;			/* rows wanted at first; 0: all */
	bool		locks;
	bool		once;			/* it may be a transaction of its own */
	bool		alone;			/* it is, and its cursor may be open */

	KalamParameters params;
	KalamReader *reader;
	bool		started;
	uint32		flags;			/* of the requests of this execution */
	int			chunks;			/* so far */
	PGresult   *res;			/* the chunk being read */
	char	   *cursor;			/* there is more to ask for */
	uint64		made;			/* the connection that has the cursor */
	KalamAhead *ahead;			/* and it was asked for */

	KalamMeasure measure;

	MemoryContext cxt;			/* all of this */
	MemoryContext chunk_cxt;	/* res */
	MemoryContext ahead_cxt;	/* ahead, and then its result */
	MemoryContextCallback on_reset;
} KalamScan;

/* ---------- may it be a transaction of its own? ---------- */

/* Counts foreign scans; false where a part of the plan could run more than once. */
static bool
plan_runs_once(Plan *plan, int *scans)
{
	ListCell   *lc;

	if (plan == NULL)
		return true;
	switch (nodeTag(plan))
	{
		case T_ForeignScan:
			(*scans)++;
			return true;
		case T_Append:
			foreach(lc, ((Append *) plan)->appendplans)
			{
				if (!plan_runs_once(lfirst(lc), scans))
					return false;
			}
			return true;
		case T_SubqueryScan:
			return plan_runs_once(((SubqueryScan *) plan)->subplan, scans);
		case T_Result:
		case T_ProjectSet:
		case T_Sort:
		case T_IncrementalSort:
		case T_Agg:
		case T_Group:
		case T_Unique:
		case T_Limit:
		case T_WindowAgg:
		case T_Material:
		case T_Hash:
		case T_HashJoin:
		case T_MergeJoin:		/* goes back over its inner side only through Material */
		case T_SeqScan:
		case T_IndexScan:
		case T_IndexOnlyScan:
		case T_BitmapHeapScan:
		case T_ValuesScan:
			return plan_runs_once(outerPlan(plan), scans) && plan_runs_once(innerPlan(plan), scans);
		default:
			return false;
	}
}

/* Is it what the client, or the function that opened a cursor, asked for?  Not a statement inside it. */
static bool
portal_is_for(PlannedStmt *stmt)
{
	return ActivePortal != NULL && list_length(ActivePortal->stmts) == 1 &&
		linitial(ActivePortal->stmts) == (void *) stmt;
}

/*
 * The client's own statement, reading one foreign table once.  Not one of a
 * function: its statements may have to see one snapshot, or each other's writes.
 */
static bool
statement_runs_once(EState *estate)
{
	PlannedStmt *stmt = estate->es_plannedstmt;
	int			scans = 0;

	return portal_is_for(stmt) && ActivePortal->name[0] == '\0' &&
		stmt->commandType == CMD_SELECT && !stmt->hasModifyingCTE && stmt->rowMarks == NIL && stmt->subplans == NIL &&
		plan_runs_once(stmt->planTree, &scans) && scans == 1;
}

/* ---------- beginning ---------- */

void
kalam_require_tenant(const char *tenant, KalamTable *table)
{
	if (tenant != NULL || !table->has_type || table->type == KALAM_SHARED)
		return;
	ereport(ERROR,
			(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
			 errmsg("no tenant is set for %s table \"%s\"", table->type == KALAM_USER ? "user" : "stream",
					get_rel_name(table->relid)),
			 errhint("SET kalam.user_id = '...'.")));
}

/* Range table entries of the tables that the statement reads. */
static List *
scan_entries(ForeignScanState *node)
{
	ForeignScan *plan = (ForeignScan *) node->ss.ps.plan;
	List	   *entries = NIL;
	int			rti = -1;

#if PG_VERSION_NUM >= 160000
	while ((rti = bms_next_member(plan->fs_base_relids, rti)) >= 0)
#else
	while ((rti = bms_next_member(plan->fs_relids, rti)) >= 0)
#endif
		entries = lappend(entries, exec_rt_fetch(rti, node->ss.ps.state));
	return entries;
}

/* As whom a foreign scan or a direct modification acts. */
Oid
kalam_scan_user(ForeignScanState *node, RangeTblEntry *entry)
{
	Oid			userid;

#if PG_VERSION_NUM >= 160000
	userid = ((ForeignScan *) node->ss.ps.plan)->checkAsUser;
#else
	userid = entry->checkAsUser;
#endif
	return OidIsValid(userid) ? userid : GetUserId();
}

/* A cursor that is left open is closed with the next request. */
static void
scan_on_reset(void *arg)
{
	KalamScan  *scan = arg;

	if (scan->cursor && scan->made == scan->conn->made)
		kalam_cursor_abandon(scan->conn, scan->cursor);
	scan->cursor = NULL;
}

static KalamScan *
scan_create(ForeignScanState *node)
{
	MemoryContext cxt = AllocSetContextCreate(node->ss.ps.state->es_query_cxt, "KalamDB scan", ALLOCSET_DEFAULT_SIZES);
	MemoryContext old = MemoryContextSwitchTo(cxt);
	ForeignScan *plan = (ForeignScan *) node->ss.ps.plan;
	KalamScan  *scan = palloc0(sizeof(KalamScan));
	List	   *entries = scan_entries(node);
	TupleDesc	desc = node->ss.ss_ScanTupleSlot->tts_tupleDescriptor;
	UserMapping *user;
	ListCell   *lc;

	scan->cxt = cxt;
	scan->node = node;
	scan->table = kalam_table_get(linitial_node(RangeTblEntry, entries)->relid);
	user = kalam_user_mapping(scan->table->serverid, kalam_scan_user(node, linitial(entries)));
	scan->tenant = kalam_tenant(user);
	foreach(lc, entries)
		kalam_require_tenant(scan->tenant, kalam_table_get(lfirst_node(RangeTblEntry, lc)->relid));
	if (scan->tenant)
		scan->tenant = pstrdup(scan->tenant);
	scan->conn = kalam_connection_get(user);
	scan->sql = strVal(list_nth(plan->fdw_private, KALAM_PLAN_SQL));
	scan->wanted = intVal(list_nth(plan->fdw_private, KALAM_PLAN_WANTED));
	scan->locks = boolVal(list_nth(plan->fdw_private, KALAM_PLAN_LOCKS));
	scan->once = !scan->locks && statement_runs_once(node->ss.ps.state);
	kalam_measure_begin(&scan->measure, node->ss.ps.state);
	kalam_parameters_prepare(&scan->params, scan->conn, plan->fdw_exprs, &node->ss.ps);
	scan->reader = kalam_reader_create(cxt, desc, node->ss.ss_currentRelation, scan->conn,
									   list_nth(plan->fdw_private, KALAM_PLAN_ATTRS));
	scan->on_reset.func = scan_on_reset;
	scan->on_reset.arg = scan;
	MemoryContextRegisterResetCallback(cxt, &scan->on_reset);
	MemoryContextSwitchTo(old);
	return scan;
}

/* ---------- chunks ---------- */

/* A result becomes the chunk being read; it lives in cxt. */
static void
take_chunk(KalamScan *scan, MemoryContext cxt, PGresult *res)
{
	MemoryContext last = scan->chunk_cxt;

	scan->chunk_cxt = cxt;
	scan->res = res;
	if (scan->cursor)
		pfree(scan->cursor);
	scan->cursor = NULL;
	MemoryContextSwitchTo(scan->cxt);
	scan->cursor = kalam_result_cursor(res);
	if (scan->cursor && !(scan->flags & KALAM_REQ_TXN))
		scan->alone = scan->conn->lone = true;
	scan->made = scan->conn->made;
	kalam_measure_chunk(&scan->measure, scan->conn, res);
	kalam_reader_take(scan->reader, res, scan->chunks++ == 0);
	if (last)
		MemoryContextDelete(last);
}

static void
fetch_request(KalamScan *scan, KalamRequest *req)
{
	if (scan->made != scan->conn->made)
		kalam_connection_lost(scan->conn, "The connection on which the scan had begun is gone.");
	req->sql = psprintf("FETCH %d FROM %s", scan->table->fetch_size, scan->cursor);
	req->flags = scan->flags;
	req->report = scan->measure.report;
	req->tenant = scan->tenant;
}

static MemoryContext
new_chunk_context(KalamScan *scan)
{
	return AllocSetContextCreate(scan->cxt, "KalamDB chunk", ALLOCSET_DEFAULT_SIZES);
}

/* Asks for the next chunk, and does not wait for it. */
static void
ask_ahead(KalamScan *scan)
{
	KalamRequest req = {0};

	scan->ahead_cxt = new_chunk_context(scan);
	MemoryContextSwitchTo(scan->ahead_cxt);
	fetch_request(scan, &req);
	scan->ahead = kalam_request_ahead(scan->conn, &req);
	/* from here on the answer to come says whether there still is a cursor */
	pfree(scan->cursor);
	scan->cursor = NULL;
	MemoryContextSwitchTo(scan->cxt);
}

static void
first_request(KalamScan *scan, KalamRequest *req)
{
	bool		own = scan->once && kalam_transaction_is_lone(scan->conn);

	kalam_parameters_take(&scan->params, scan->node->ss.ps.ps_ExprContext, req);
	scan->flags = KALAM_REQ_ARROW | (own ? 0 : KALAM_REQ_TXN);
	req->sql = scan->sql;
	req->flags = scan->flags;
	req->report = scan->measure.report;
	req->tenant = scan->tenant;
	req->fetch_size = scan->table->fetch_size;
	if (scan->wanted > 0)
		req->fetch_size = Min(scan->wanted, req->fetch_size);
	if (!own)
		req->snapshot = kalam_snapshot_number(scan->conn, scan->node->ss.ps.state);
	scan->chunks = 0;
	scan->started = true;
}

/* The first chunk. */
static void
start(KalamScan *scan)
{
	KalamRequest req = {0};
	MemoryContext cxt = new_chunk_context(scan);

	MemoryContextSwitchTo(cxt);
	first_request(scan, &req);
	take_chunk(scan, cxt, kalam_request(scan->conn, &req));
	if (scan->cursor && scan->wanted == 0)
		ask_ahead(scan);
}

/* Asks for the first chunk, and does not wait for it. */
static void
start_ahead(KalamScan *scan)
{
	KalamRequest req = {0};

	scan->ahead_cxt = new_chunk_context(scan);
	MemoryContextSwitchTo(scan->ahead_cxt);
	first_request(scan, &req);
	scan->ahead = kalam_request_ahead(scan->conn, &req);
	MemoryContextSwitchTo(scan->cxt);
}

/* The next chunk; false if there is none. */
static bool
next_chunk(KalamScan *scan)
{
	MemoryContext cxt;
	PGresult   *res;

	if (scan->ahead)
	{
		cxt = scan->ahead_cxt;
		MemoryContextSwitchTo(cxt);
		res = kalam_ahead_wait(scan->ahead);
		scan->ahead = NULL;
		scan->ahead_cxt = NULL;
	}
	else if (scan->cursor)
	{
		KalamRequest req = {0};

		cxt = new_chunk_context(scan);
		MemoryContextSwitchTo(cxt);
		fetch_request(scan, &req);
		res = kalam_request(scan->conn, &req);
	}
	else
		return false;
	take_chunk(scan, cxt, res);
	if (scan->cursor && (scan->wanted == 0 || scan->chunks > 1))
		ask_ahead(scan);
	return true;
}

/* ---------- callbacks ---------- */

static bool
needs_other_nodes(Node *node, void *arg)
{
	if (node == NULL)
		return false;
	if (IsA(node, Param))
		return ((Param *) node)->paramkind == PARAM_EXEC;
	return expression_tree_walker(node, needs_other_nodes, arg);
}

/* Reads a row, any row, as the parameters that tell which are not there yet. */
static void
take_snapshot(KalamScan *scan)
{
	KalamRequest req = {0};
	StringInfoData sql;
	PGresult   *res;
	char	   *cursor;

	initStringInfo(&sql);
	appendStringInfoString(&sql, "SELECT NULL FROM ");
	kalam_deparse_table(&sql, scan->table);
	req.sql = sql.data;
	req.flags = KALAM_REQ_TXN;
	req.tenant = scan->tenant;
	req.fetch_size = 1;
	req.snapshot = kalam_snapshot_number(scan->conn, scan->node->ss.ps.state);
	res = kalam_request(scan->conn, &req);
	cursor = kalam_result_cursor(res);
	if (cursor)
		kalam_cursor_abandon(scan->conn, cursor);
	kalam_result_free(res);
}

/*
 * Between a cursor's opening and its first FETCH other statements may write.
 * It must not see that, so the server has to take the snapshot now.
 */
static void
open_cursor(KalamScan *scan)
{
	ForeignScan *plan = (ForeignScan *) scan->node->ss.ps.plan;
	MemoryContext old = MemoryContextSwitchTo(scan->cxt);

	if (needs_other_nodes((Node *) plan->fdw_exprs, NULL))
		take_snapshot(scan);
	else if (scan->node->ss.ps.async_capable)
		start_ahead(scan);
	else
		start(scan);
	MemoryContextSwitchTo(old);
}

#if PG_VERSION_NUM >= 180000
/*
 * Since 18, EXPLAIN (VERBOSE) writes a window function together with the name
 * of its window, which it looks for in a WindowAgg, and fails where there is
 * none.  Made on the server, it is a column like any other: once the planner
 * has matched it, a call of the same name and type stands in its place.
 */
static Node *
as_call(Node *node, void *arg)
{
	if (node != NULL && IsA(node, WindowFunc))
	{
		WindowFunc *func = (WindowFunc *) node;

		return (Node *) makeFuncExpr(func->winfnoid, func->wintype, copyObject(func->args), func->wincollid,
									 func->inputcollid, COERCE_EXPLICIT_CALL);
	}
	return expression_tree_mutator(node, as_call, arg);
}

static void
name_window_functions(ForeignScan *plan)
{
	ListCell   *lc;

	foreach(lc, plan->fdw_scan_tlist)
	{
		TargetEntry *entry = lfirst(lc);
		MemoryContext old;

		if (!contain_window_function((Node *) entry->expr))
			continue;
		old = MemoryContextSwitchTo(GetMemoryChunkContext(plan));	/* as long as the plan */
		entry->expr = (Expr *) as_call((Node *) entry->expr, NULL);
		MemoryContextSwitchTo(old);
	}
}
#endif

static void
kalam_BeginForeignScan(ForeignScanState *node, int eflags)
{
	KalamScan  *scan;

#if PG_VERSION_NUM >= 180000
	name_window_functions((ForeignScan *) node->ss.ps.plan);
#endif
	if (eflags & EXEC_FLAG_EXPLAIN_ONLY)
		return;
	scan = scan_create(node);
	node->fdw_state = scan;
	if (portal_is_for(node->ss.ps.state->es_plannedstmt) && ActivePortal->name[0] != '\0')
		open_cursor(scan);
	else if (!scan->once)		/* what its functions write before it starts, it must not see */
		(void) kalam_snapshot_number(scan->conn, node->ss.ps.state);
}

static TupleTableSlot *
kalam_IterateForeignScan(ForeignScanState *node)
{
	KalamScan  *scan = node->fdw_state;
	TupleTableSlot *slot = node->ss.ss_ScanTupleSlot;
	MemoryContext old;
	bool		more = true;

	if (scan->started && kalam_reader_next(scan->reader, slot))
		return slot;
	ExecClearTuple(slot);		/* its values may go with the chunk */
	if (node->ss.ps.async_capable)
		return slot;			/* kalam_async.c gets the next one */
	old = MemoryContextSwitchTo(scan->cxt);
	if (!scan->started)
		start(scan);
	while (more && !kalam_reader_next(scan->reader, slot))
		more = next_chunk(scan);
	MemoryContextSwitchTo(old);
	return slot;
}

/* ---------- again, and the end ---------- */

/* Forgets what was read; the server stops what is under way. */
static void
scan_stop(KalamScan *scan)
{
	ExecClearTuple(scan->node->ss.ss_ScanTupleSlot);
	scan_on_reset(scan);
	if (scan->ahead && !scan->locks)
		kalam_ahead_stop(scan->ahead);
	if (scan->ahead_cxt)
		MemoryContextDelete(scan->ahead_cxt);
	if (scan->chunk_cxt)
		MemoryContextDelete(scan->chunk_cxt);
	scan->ahead = NULL;
	scan->ahead_cxt = NULL;
	scan->chunk_cxt = NULL;
	scan->res = NULL;
	scan->started = false;
	kalam_reader_clear(scan->reader);
}

static void
kalam_ReScanForeignScan(ForeignScanState *node)
{
	KalamScan  *scan = node->fdw_state;
	bool		whole;

	if (scan == NULL || !scan->started)
		return;
	whole = scan->chunks == 1 && scan->cursor == NULL && scan->ahead == NULL;
	if (whole && node->ss.ps.chgParam == NULL)
		kalam_reader_take(scan->reader, scan->res, true);
	else
		scan_stop(scan);
}

static void
kalam_EndForeignScan(ForeignScanState *node)
{
	KalamScan  *scan = node->fdw_state;

	if (scan == NULL)
		return;
	node->fdw_state = NULL;
	scan_stop(scan);
	if (!scan->conn->open || IsTransactionBlock())	/* else the end of the transaction comes at once */
		kalam_cursors_close(scan->conn);
	if (scan->alone)
		scan->conn->lone = false;
	MemoryContextDelete(scan->cxt);
}

/* ---------- for kalam_async.c ---------- */

KalamConn *
kalam_scan_connection(ForeignScanState *node)
{
	return ((KalamScan *) node->fdw_state)->conn;
}

KalamAhead *
kalam_scan_asked(ForeignScanState *node)
{
	return ((KalamScan *) node->fdw_state)->ahead;
}

bool
kalam_scan_has_more(ForeignScanState *node)
{
	KalamScan  *scan = node->fdw_state;

	return !scan->started || scan->cursor != NULL;
}

void
kalam_scan_ask(ForeignScanState *node)
{
	KalamScan  *scan = node->fdw_state;
	MemoryContext old = MemoryContextSwitchTo(scan->cxt);

	if (scan->started)
		ask_ahead(scan);
	else
		start_ahead(scan);
	MemoryContextSwitchTo(old);
}

void
kalam_scan_take(ForeignScanState *node)
{
	KalamScan  *scan = node->fdw_state;
	MemoryContext old = MemoryContextSwitchTo(scan->cxt);

	(void) next_chunk(scan);
	MemoryContextSwitchTo(old);
}

/* ---------- EXPLAIN ---------- */

static void
kalam_ExplainForeignScan(ForeignScanState *node, ExplainState *es)
{
	List	   *private = ((ForeignScan *) node->ss.ps.plan)->fdw_private;
	KalamScan  *scan = node->fdw_state;
	char	   *relations = strVal(list_nth(private, KALAM_PLAN_RELATIONS));

	if (relations[0] != '\0')
		ExplainPropertyText("Relations", relations, es);
	if (es->verbose)
		ExplainPropertyText("Remote SQL", strVal(list_nth(private, KALAM_PLAN_SQL)), es);
	if (scan)
		kalam_measure_explain(&scan->measure, scan->conn, es);
}

void
kalam_scan_routine(FdwRoutine *routine)
{
	routine->BeginForeignScan = kalam_BeginForeignScan;
	routine->IterateForeignScan = kalam_IterateForeignScan;
	routine->ReScanForeignScan = kalam_ReScanForeignScan;
	routine->EndForeignScan = kalam_EndForeignScan;
	routine->ExplainForeignScan = kalam_ExplainForeignScan;
}
