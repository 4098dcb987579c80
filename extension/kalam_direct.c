/*
 * kalam_direct.c: UPDATE and DELETE that are sent whole.
 *
 * That takes a plan which only scans the table, a condition and new values that
 * the server evaluates as PostgreSQL does, and nothing that PostgreSQL has to
 * do with each row: no row triggers, WITH CHECK OPTION or generated columns
 * (of which PostgreSQL itself takes care before it asks), no CHECK that only
 * PostgreSQL knows, no partition that the row could have to leave.
 *
 * The server finds the rows, locks them, and applies condition and values to
 * their newest version, as PostgreSQL does.  Anything else is done row by row:
 * kalam_modify.c.
 *
 * Where the server has other rules by the time the statement runs, and does not
 * enforce all that the table here promises, the statement returns the changed
 * rows whole, which are then checked here.
 *
 * ForeignScan.fdw_private is then a list, by KalamDirectPart; fdw_exprs are the
 * statement's parameters.
 */
#include "postgres.h"

#include "access/sysattr.h"
#include "access/table.h"
#include "commands/explain.h"
#include "executor/executor.h"
#include "nodes/makefuncs.h"
#include "nodes/nodeFuncs.h"
#include "optimizer/appendinfo.h"
#include "optimizer/optimizer.h"
#include "optimizer/pathnode.h"
#include "parser/parsetree.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#if PG_VERSION_NUM >= 180000
#include "commands/explain_format.h"
#include "commands/explain_state.h"
#endif

#include "kalam_modify.h"
#include "kalam_read.h"

typedef enum KalamDirectPart
{
	KALAM_DIRECT_SQL,			/* String: the statement */
	KALAM_DIRECT_ATTRS,			/* IntList: columns that it returns */
	KALAM_DIRECT_RETURNS,		/* Boolean: the query has RETURNING */
	KALAM_DIRECT_COUNTS,		/* Boolean: its rows are the command's */
	KALAM_DIRECT_RULES,			/* String: the remote definition that it relies on, "": none */
	KALAM_DIRECT_SET,			/* IntList: columns that it sets */
} KalamDirectPart;

/* One running statement: ForeignScanState.fdw_state */
typedef struct KalamDirect
{
	ForeignScanState *node;
	KalamTable *table;
	KalamConn  *conn;
	const char *tenant;			/* NULL: none */
	const char *sql;
	List	   *attrs;
	bool		returns;
	bool		counts;
	const char *rules;			/* NULL: it relies on none */
	List	   *set;
	bool		snapshot;		/* other parts of the statement read or write, too */
	KalamParameters params;
	KalamReader *reader;
	bool		done;
	int64		affected;
	int64		returned;
	MemoryContext cxt;			/* all of this, and the result */
} KalamDirect;

/* ---------- may it be sent? ---------- */

/* The scan that gives the target's rows to the command, if it is ours and nothing stands between. */
static ForeignScan *
find_scan(ModifyTable *plan, Index rtindex, int subplan_index)
{
	Plan	   *subplan = outerPlan(plan);
	ForeignScan *scan;

	if (IsA(subplan, Append))
	{
		Append	   *append = (Append *) subplan;

		if (subplan_index >= list_length(append->appendplans))
			return NULL;
		subplan = list_nth(append->appendplans, subplan_index);
	}
	if (!IsA(subplan, ForeignScan))
		return NULL;
	scan = (ForeignScan *) subplan;
	return scan->scan.scanrelid == rtindex ? scan : NULL;
}

/*
 * A value that no column decides is a parameter, of whatever type: it travels
 * as in any other write.  Not arrays: as parameters they are lists of values.
 */
bool
kalam_value_allowed(const KalamScope *scope, Expr *expr)
{
	if (kalam_is_parameter(scope->relids, expr) && (IsA(expr, Const) || IsA(expr, Param)) &&
		!OidIsValid(get_element_type(getBaseType(exprType((Node *) expr)))))
		return !IsA(expr, Param) || ((Param *) expr)->paramkind != PARAM_MULTIEXPR;
	return kalam_is_shippable(scope, expr);
}

/* What UPDATE sets, without _seq, which is the server's; false if it cannot be sent. */
static bool
collect_values(PlannerInfo *root, Relation rel, KalamChange *change)
{
	List	   *tlist;
	List	   *attnos;
	ListCell   *entry;
	ListCell   *attno;

	get_translated_update_targetlist(root, change->target->rtindex, &tlist, &attnos);
	forboth(entry, tlist, attno, attnos)
	{
		AttrNumber	n = lfirst_int(attno);
		Expr	   *expr = lfirst_node(TargetEntry, entry)->expr;

		if (n == kalam_system_attno(rel, KALAM_SEQ_COLUMN))
			continue;
		if (n == kalam_system_attno(rel, KALAM_USERID_COLUMN) || !kalam_value_allowed(change->scope, expr))
			return false;
		change->attnos = lappend_int(change->attnos, n);
		change->exprs = lappend(change->exprs, expr);
	}
	return change->attnos != NIL &&
		!kalam_breaks_rules(change->scope->conn, change->target->table, rel, change->attnos, change->exprs,
							&change->relies_on);
}

/* The scan has found what it may send under a lock; here the server may evaluate whatever it can. */
static bool
collect_conditions(ForeignScan *scan, KalamChange *change)
{
	ListCell   *lc;

	foreach(lc, scan->scan.plan.qual)
	{
		if (!kalam_is_shippable(change->scope, lfirst(lc)))
			return false;
	}
	change->conds = list_concat_copy(scan->fdw_recheck_quals, scan->scan.plan.qual);
	return true;
}

/* Columns that the server has; wanted: those in it, or all where it has the whole row. */
static List *
stored_columns(TupleDesc desc, Bitmapset *wanted)
{
	List	   *attrs = NIL;

	for (AttrNumber attno = 1; attno <= desc->natts; attno++)
	{
		if (kalam_is_stored(TupleDescAttr(desc, attno - 1)) &&
			(wanted == NULL || bms_is_member(0 - FirstLowInvalidHeapAttributeNumber, wanted) ||
			 bms_is_member(attno - FirstLowInvalidHeapAttributeNumber, wanted)))
			attrs = lappend_int(attrs, attno);
	}
	return attrs;
}

/* Columns of the target that RETURNING names. */
static List *
returned_columns(PlannerInfo *root, ModifyTable *plan, int subplan_index, Index rtindex, Relation rel)
{
	Bitmapset  *used = NULL;

	if (plan->returningLists == NIL)
		return NIL;
	pull_varattnos((Node *) list_nth(plan->returningLists, subplan_index), rtindex, &used);
	return used == NULL ? NIL : stored_columns(RelationGetDescr(rel), used);
}

/* ---------- planning ---------- */

/*
 * The scan still has the new values among its columns.  Nobody wants them any
 * more, and to compute them of the rows that come back could fail.  (Which of
 * them are junk is not told in the scan of a partition.)
 */
static void
forget_values(ForeignScan *scan)
{
	ListCell   *lc;

	foreach(lc, scan->scan.plan.targetlist)
	{
		TargetEntry *entry = lfirst_node(TargetEntry, lc);

		if (!IsA(entry->expr, Var))
			entry->expr = (Expr *) makeNullConst(exprType((Node *) entry->expr), exprTypmod((Node *) entry->expr),
												 exprCollation((Node *) entry->expr));
	}
}

static bool
plan_change(PlannerInfo *root, ModifyTable *plan, ForeignScan *scan, int subplan_index, Relation rel)
{
	KalamRelInfo *info = find_base_rel(root, scan->scan.scanrelid)->fdw_private;
	KalamScope	scope = info->scope;
	KalamChange change = {.operation = plan->operation, .target = info, .scope = &scope};
	List	   *params = NIL;
	StringInfoData sql;

	scope.plain = false;
	if ((plan->operation == CMD_UPDATE && !collect_values(root, rel, &change)) || !collect_conditions(scan, &change))
		return false;
	change.returning = returned_columns(root, plan, subplan_index, info->rtindex, rel);
	initStringInfo(&sql);
	kalam_deparse_change(&sql, &change, &params);
	if (plan->operation == CMD_UPDATE)
		forget_values(scan);
	scan->operation = plan->operation;
	scan->resultRelation = info->rtindex;
	scan->scan.plan.qual = NIL;
	scan->scan.plan.async_capable = false;
	scan->fdw_recheck_quals = NIL;
	scan->fdw_exprs = params;
	scan->fdw_private = list_make4(makeString(sql.data), change.returning, makeBoolean(plan->returningLists != NIL),
								   makeBoolean(plan->canSetTag));
	scan->fdw_private = lappend(scan->fdw_private, makeString(change.relies_on ? unconstify(char *, change.relies_on) : ""));
	scan->fdw_private = lappend(scan->fdw_private, change.attnos);
	return true;
}

static bool
kalam_PlanDirectModify(PlannerInfo *root, ModifyTable *plan, Index rtindex, int subplan_index)
{
	ForeignScan *scan;
	Relation	rel;
	bool		done;

	if (plan->operation != CMD_UPDATE && plan->operation != CMD_DELETE)
		return false;
	scan = find_scan(plan, rtindex, subplan_index);
	if (scan == NULL)
		return false;
	rel = table_open(planner_rt_fetch(rtindex, root)->relid, NoLock);
	done = plan_change(root, plan, scan, subplan_index, rel);
	table_close(rel, NoLock);
	return done;
}

/* ---------- running ---------- */

static void
kalam_BeginDirectModify(ForeignScanState *node, int eflags)
{
	ForeignScan *plan = (ForeignScan *) node->ss.ps.plan;
	EState	   *estate = node->ss.ps.state;
	RangeTblEntry *entry = exec_rt_fetch(plan->resultRelation, estate);
	MemoryContext old;
	UserMapping *user;
	KalamDirect *direct;

	if (eflags & EXEC_FLAG_EXPLAIN_ONLY)
		return;
	old = MemoryContextSwitchTo(AllocSetContextCreate(estate->es_query_cxt, "KalamDB direct modify",
													  ALLOCSET_DEFAULT_SIZES));
	direct = palloc0(sizeof(KalamDirect));
	direct->cxt = CurrentMemoryContext;
	direct->node = node;
	direct->table = kalam_table_get(entry->relid);
	user = kalam_user_mapping(direct->table->serverid, kalam_scan_user(node, entry));
	direct->tenant = kalam_tenant(user);
	kalam_require_tenant(direct->tenant, direct->table);
	if (direct->tenant != NULL)
		direct->tenant = pstrdup(direct->tenant);
	direct->conn = kalam_connection_get(user);
	direct->sql = strVal(list_nth(plan->fdw_private, KALAM_DIRECT_SQL));
	direct->attrs = list_nth(plan->fdw_private, KALAM_DIRECT_ATTRS);
	direct->returns = boolVal(list_nth(plan->fdw_private, KALAM_DIRECT_RETURNS));
	direct->counts = boolVal(list_nth(plan->fdw_private, KALAM_DIRECT_COUNTS));
	direct->set = list_nth(plan->fdw_private, KALAM_DIRECT_SET);
	direct->rules = strVal(list_nth(plan->fdw_private, KALAM_DIRECT_RULES));
	if (direct->rules[0] == '\0')
		direct->rules = NULL;
	direct->snapshot = list_length(estate->es_range_table) > 1;
	kalam_parameters_prepare(&direct->params, direct->conn, plan->fdw_exprs, &node->ss.ps);
	if (direct->snapshot)
		(void) kalam_snapshot_number(direct->conn, estate);
	node->fdw_state = direct;
	MemoryContextSwitchTo(old);
}

/* The statement with other columns in its RETURNING, which is its end. */
static char *
sql_returning(KalamDirect *direct, List *attrs)
{
	StringInfoData was;
	StringInfoData sql;

	initStringInfo(&was);
	initStringInfo(&sql);
	kalam_deparse_returning(&was, direct->table->relid, direct->attrs);
	appendBinaryStringInfo(&sql, direct->sql, strlen(direct->sql) - was.len);
	kalam_deparse_returning(&sql, direct->table->relid, attrs);
	return sql.data;
}

/* What the table here promises, of each changed row. */
static void
check_rows(KalamDirect *direct, PGresult *res, List *attrs)
{
	ForeignScanState *node = direct->node;
	Relation	rel = node->ss.ss_currentRelation;
	TupleTableSlot *slot = node->ss.ss_ScanTupleSlot;
	KalamReader *reader = kalam_reader_create(direct->cxt, RelationGetDescr(rel), rel, direct->conn, attrs);

	kalam_reader_take(reader, res, true);
	while (kalam_reader_next(reader, slot))
		ExecConstraints(node->resultRelInfo, slot, node->ss.ps.state);
	ExecClearTuple(slot);
}

/* The server has other rules than those that the statement relies on. */
static PGresult *
execute_anew(KalamDirect *direct, KalamRequest *req)
{
	Relation	rel = direct->node->ss.ss_currentRelation;
	List	   *attrs = stored_columns(RelationGetDescr(rel), NULL);
	PGresult   *res = NULL;

	while (kalam_rules_hold(direct->conn, direct->table, rel, direct->set, &req->rules))
	{
		if (res != NULL)
			kalam_result_free(res);
		res = kalam_request(direct->conn, req);
		if (!kalam_is_stale(res))
			return res;
	}
	req->rules = NULL;
	req->sql = sql_returning(direct, attrs);
	res = kalam_request(direct->conn, req);
	check_rows(direct, res, attrs);
	if (direct->attrs != NIL)
		direct->attrs = attrs;
	return res;
}

static void
execute(KalamDirect *direct)
{
	ForeignScanState *node = direct->node;
	KalamRequest req = {0};
	PGresult   *res;

	kalam_parameters_take(&direct->params, node->ss.ps.ps_ExprContext, &req);
	req.sql = direct->sql;
	req.flags = KALAM_REQ_WRITE | KALAM_REQ_TXN;
	req.tenant = direct->tenant;
	if (direct->snapshot)
		req.snapshot = kalam_snapshot_number(direct->conn, node->ss.ps.state);
	req.rules = direct->rules;
	res = kalam_request(direct->conn, &req);
	if (kalam_is_stale(res))
	{
		kalam_result_free(res);
		res = execute_anew(direct, &req);
	}
	direct->affected = strtoll(PQcmdTuples(res), NULL, 10);
	kalam_sizes_changed(direct->affected);
	if (direct->attrs != NIL)
	{
		direct->reader = kalam_reader_create(direct->cxt, RelationGetDescr(node->ss.ss_currentRelation),
											 node->ss.ss_currentRelation, direct->conn, direct->attrs);
		kalam_reader_take(direct->reader, res, true);
	}
	else
		kalam_result_free(res);
	direct->done = true;
}

/* Rows are counted here, as nobody does who does not see them. */
static void
count_rows(KalamDirect *direct, int64 rows)
{
	EState	   *estate = direct->node->ss.ps.state;

	if (direct->counts)
		estate->es_processed += rows;
	if (direct->node->ss.ps.instrument && !direct->returns)
		direct->node->ss.ps.instrument->tuplecount += rows;
}

/* The next row for RETURNING, which looks for it in its own expression context. */
static TupleTableSlot *
next_returned(KalamDirect *direct, TupleTableSlot *slot)
{
	ResultRelInfo *target = direct->node->resultRelInfo;

	if (direct->returned >= direct->affected)
		return ExecClearTuple(slot);
	if (direct->reader == NULL)
		ExecStoreAllNullTuple(slot);
	else if (!kalam_reader_next(direct->reader, slot))
		ereport(ERROR,
				(errcode(ERRCODE_PROTOCOL_VIOLATION),
				 errmsg("KalamDB server returned " INT64_FORMAT " of " INT64_FORMAT " rows", direct->returned,
						direct->affected)));
	direct->returned++;
	count_rows(direct, 1);
	target->ri_projectReturning->pi_exprContext->ecxt_scantuple = slot;
	return slot;
}

static TupleTableSlot *
kalam_IterateDirectModify(ForeignScanState *node)
{
	KalamDirect *direct = node->fdw_state;
	TupleTableSlot *slot = node->ss.ss_ScanTupleSlot;
	MemoryContext old = MemoryContextSwitchTo(direct->cxt);

	if (!direct->done)
	{
		execute(direct);
		if (!direct->returns)
			count_rows(direct, direct->affected);
	}
	MemoryContextSwitchTo(old);
	return direct->returns ? next_returned(direct, slot) : ExecClearTuple(slot);
}

static void
kalam_EndDirectModify(ForeignScanState *node)
{
	KalamDirect *direct = node->fdw_state;

	if (direct == NULL)
		return;
	node->fdw_state = NULL;
	ExecClearTuple(node->ss.ss_ScanTupleSlot);
	MemoryContextDelete(direct->cxt);
}

static void
kalam_ExplainDirectModify(ForeignScanState *node, ExplainState *es)
{
	List	   *private = ((ForeignScan *) node->ss.ps.plan)->fdw_private;

	if (es->verbose)
		ExplainPropertyText("Remote SQL", strVal(list_nth(private, KALAM_DIRECT_SQL)), es);
}

void
kalam_direct_routine(FdwRoutine *routine)
{
	routine->PlanDirectModify = kalam_PlanDirectModify;
	routine->BeginDirectModify = kalam_BeginDirectModify;
	routine->IterateDirectModify = kalam_IterateDirectModify;
	routine->EndDirectModify = kalam_EndDirectModify;
	routine->ExplainDirectModify = kalam_ExplainDirectModify;
}
