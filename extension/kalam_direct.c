/*
 * kalam_direct.c: runs UPDATE and DELETE that are sent whole (kalam_change.c
 * says which are).
 *
 * The server finds the rows, locks them, and applies condition and values to
 * their newest version, as PostgreSQL does.  It answers when all is done;
 * RETURNING then comes in chunks, as a scan does.
 *
 * Where the server has other rules by the time the statement runs, and does not
 * enforce all that the table here promises, the statement returns the changed
 * rows whole, which are then checked here.
 */
#include "postgres.h"

#include "commands/explain.h"
#include "executor/executor.h"
#include "miscadmin.h"
#include "utils/memutils.h"
#if PG_VERSION_NUM >= 180000
#include "commands/explain_format.h"
#include "commands/explain_state.h"
#endif

#include "kalam_core.h"
#include "kalam_modify.h"
#include "kalam_read.h"

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
	bool		checks;			/* the server has other rules: rows are checked here */
	bool		snapshot;		/* other parts of the statement read or write, too */
	KalamParameters params;
	KalamReader *reader;
	List	   *origins;		/* of a join: attnums of the target that the rows' columns are; 0: another table's */
	TupleTableSlot *row;		/* of a join: the target's */
	char	   *cursor;			/* of the chunks of RETURNING to come; NULL: none */
	uint64		made;			/* the connection that it belongs to */
	bool		done;
	int64		affected;
	int64		returned;
	MemoryContext cxt;			/* all of this, and the last chunk in chunk_cxt */
	MemoryContext chunk_cxt;
	MemoryContextCallback on_reset;
} KalamDirect;

/* ---------- running ---------- */

/* A cursor that is left open is closed with the next request. */
static void
direct_on_reset(void *arg)
{
	KalamDirect *direct = arg;

	if (direct->cursor && direct->made == direct->conn->made)
		kalam_cursor_abandon(direct->conn, direct->cursor);
	direct->cursor = NULL;
}

/* Range table entries of the tables that it reads, the target's first. */
static List *
direct_entries(ForeignScanState *node)
{
	ForeignScan *plan = (ForeignScan *) node->ss.ps.plan;
	EState	   *estate = node->ss.ps.state;
	List	   *entries = list_make1(exec_rt_fetch(plan->resultRelation, estate));
	int			rti = -1;

#if PG_VERSION_NUM >= 160000
	while ((rti = bms_next_member(plan->fs_base_relids, rti)) >= 0)
#else
	while ((rti = bms_next_member(plan->fs_relids, rti)) >= 0)
#endif
	{
		if (rti != plan->resultRelation)
			entries = lappend(entries, exec_rt_fetch(rti, estate));
	}
	return entries;
}

/* RETURNING of a join gives columns of all its tables; those of the target make a row of its own. */
static void
prepare_returning(KalamDirect *direct, ForeignScan *plan)
{
	ForeignScanState *node = direct->node;
	Relation	rel = node->resultRelInfo->ri_RelationDesc;

	direct->attrs = list_nth(plan->fdw_private, KALAM_DIRECT_ATTRS);
	direct->returns = boolVal(list_nth(plan->fdw_private, KALAM_DIRECT_RETURNS));
	direct->counts = boolVal(list_nth(plan->fdw_private, KALAM_DIRECT_COUNTS));
	direct->origins = list_nth(plan->fdw_private, KALAM_DIRECT_ORIGINS);
	direct->rules = strVal(list_nth(plan->fdw_private, KALAM_DIRECT_RULES));
	if (direct->rules[0] == '\0')
		direct->rules = NULL;
	if (plan->scan.scanrelid == 0)
		direct->row = MakeSingleTupleTableSlot(RelationGetDescr(rel), &TTSOpsVirtual);
}

static void
kalam_BeginDirectModify(ForeignScanState *node, int eflags)
{
	ForeignScan *plan = (ForeignScan *) node->ss.ps.plan;
	EState	   *estate = node->ss.ps.state;
	List	   *entries;
	ListCell   *lc;
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
	entries = direct_entries(node);
	direct->table = kalam_table_get(linitial_node(RangeTblEntry, entries)->relid);
	user = kalam_user_mapping(direct->table->serverid, kalam_scan_user(node, linitial(entries)));
	direct->tenant = kalam_tenant(user);
	foreach(lc, entries)
		kalam_require_tenant(direct->tenant, kalam_table_get(lfirst_node(RangeTblEntry, lc)->relid));
	if (direct->tenant != NULL)
		direct->tenant = pstrdup(direct->tenant);
	direct->conn = kalam_connection_get(user);
	direct->sql = strVal(list_nth(plan->fdw_private, KALAM_DIRECT_SQL));
	direct->snapshot = list_length(estate->es_range_table) > 1;
	prepare_returning(direct, plan);
	kalam_parameters_prepare(&direct->params, direct->conn, plan->fdw_exprs, &node->ss.ps);
	if (direct->snapshot)
		(void) kalam_snapshot_number(direct->conn, estate);
	direct->on_reset.func = direct_on_reset;
	direct->on_reset.arg = direct;
	MemoryContextRegisterResetCallback(direct->cxt, &direct->on_reset);
	node->fdw_state = direct;
	MemoryContextSwitchTo(old);
}

static PGresult *
request(KalamDirect *direct, KalamRequest *req, MemoryContext cxt)
{
	MemoryContext old = MemoryContextSwitchTo(cxt);
	PGresult   *res = kalam_request(direct->conn, req);

	MemoryContextSwitchTo(old);
	return res;
}

static MemoryContext
new_chunk_context(KalamDirect *direct)
{
	return AllocSetContextCreate(direct->cxt, "KalamDB chunk", ALLOCSET_DEFAULT_SIZES);
}

/* A result, which lives in cxt, becomes the chunk that is read. */
static void
take_chunk(KalamDirect *direct, PGresult *res, MemoryContext cxt)
{
	MemoryContext last = direct->chunk_cxt;

	direct->chunk_cxt = cxt;
	direct->cursor = kalam_result_cursor(res);
	direct->made = direct->conn->made;
	if (direct->reader)
		kalam_reader_take(direct->reader, res, last == NULL);
	if (last)
		MemoryContextDelete(last);
}

/*
 * The server has other rules than those that the statement relies on.  If they
 * do not say the same, it is to return the changed rows whole.
 */
static PGresult *
execute_anew(KalamDirect *direct, KalamRequest *req, MemoryContext cxt)
{
	ForeignScan *plan = (ForeignScan *) direct->node->ss.ps.plan;
	Relation	rel = direct->node->resultRelInfo->ri_RelationDesc;
	PGresult   *res = NULL;

	while (kalam_rules_hold(direct->conn, direct->table, rel, list_nth(plan->fdw_private, KALAM_DIRECT_SET),
							&req->rules))
	{
		if (res != NULL)
			kalam_result_free(res);
		res = request(direct, req, cxt);
		if (!kalam_is_stale(res))
			return res;
	}
	req->rules = NULL;
	req->sql = strVal(list_nth(plan->fdw_private, KALAM_DIRECT_WHOLE_SQL));
	direct->attrs = list_nth(plan->fdw_private, KALAM_DIRECT_WHOLE_ATTRS);
	direct->checks = true;
	return request(direct, req, cxt);
}

static void
execute(KalamDirect *direct)
{
	ForeignScanState *node = direct->node;
	MemoryContext cxt = new_chunk_context(direct);
	KalamRequest req = {0};
	PGresult   *res;

	kalam_parameters_take(&direct->params, node->ss.ps.ps_ExprContext, &req);
	req.sql = direct->sql;
	req.flags = KALAM_REQ_WRITE | KALAM_REQ_TXN;
	req.tenant = direct->tenant;
	req.fetch_size = direct->table->fetch_size;
	if (direct->snapshot)
		req.snapshot = kalam_snapshot_number(direct->conn, node->ss.ps.state);
	req.rules = direct->rules;
	res = request(direct, &req, cxt);
	if (kalam_is_stale(res))
	{
		kalam_result_free(res);
		res = execute_anew(direct, &req, cxt);
	}
	direct->affected = kalam_result_affected(res);
	kalam_sizes_changed(direct->affected);
	if (direct->attrs != NIL)
	{
		Relation	rel = node->ss.ss_currentRelation;	/* NULL: a join's */

		direct->reader = kalam_reader_create(direct->cxt, node->ss.ss_ScanTupleSlot->tts_tupleDescriptor, rel,
											 direct->conn, direct->attrs);
	}
	take_chunk(direct, res, cxt);
	direct->done = true;
}

static void
fetch_chunk(KalamDirect *direct)
{
	MemoryContext cxt = new_chunk_context(direct);
	KalamRequest req = {0};

	if (direct->made != direct->conn->made)
		kalam_connection_lost(direct->conn, "The connection on which the statement had begun is gone.");
	req.sql = psprintf("FETCH %d FROM %s", direct->table->fetch_size, direct->cursor);
	req.flags = KALAM_REQ_TXN;
	req.tenant = direct->tenant;
	take_chunk(direct, request(direct, &req, cxt), cxt);
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

/* The target's row, made of the columns of a join's row that are its. */
static TupleTableSlot *
target_row(KalamDirect *direct, TupleTableSlot *joined)
{
	TupleTableSlot *row = direct->row;
	ListCell   *lc;

	if (row == NULL)
		return joined;
	ExecClearTuple(row);
	memset(row->tts_isnull, true, sizeof(bool) * row->tts_tupleDescriptor->natts);
	slot_getallattrs(joined);
	foreach(lc, direct->origins)
	{
		int			place = foreach_current_index(lc);
		int			attno = lfirst_int(lc);

		if (attno == 0)
			continue;
		row->tts_values[attno - 1] = joined->tts_values[place];
		row->tts_isnull[attno - 1] = joined->tts_isnull[place];
	}
	ExecStoreVirtualTuple(row);
	row->tts_tableOid = RelationGetRelid(direct->node->resultRelInfo->ri_RelationDesc);
	return row;
}

static bool
read_row(KalamDirect *direct, TupleTableSlot *slot)
{
	MemoryContext old;

	while (!kalam_reader_next(direct->reader, slot))
	{
		if (direct->cursor == NULL)
			return false;
		ExecClearTuple(slot);	/* its values go with the chunk */
		old = MemoryContextSwitchTo(direct->cxt);
		fetch_chunk(direct);
		MemoryContextSwitchTo(old);
	}
	if (direct->checks)			/* what the table here promises */
		ExecConstraints(direct->node->resultRelInfo, target_row(direct, slot), direct->node->ss.ps.state);
	return true;
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
	else if (!read_row(direct, slot))
		ereport(ERROR,
				(errcode(ERRCODE_PROTOCOL_VIOLATION),
				 errmsg("KalamDB server returned " INT64_FORMAT " of " INT64_FORMAT " rows", direct->returned,
						direct->affected)));
	direct->returned++;
	count_rows(direct, 1);
	target->ri_projectReturning->pi_exprContext->ecxt_scantuple = target_row(direct, slot);
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
		while (direct->checks && !direct->returns && read_row(direct, slot))
			CHECK_FOR_INTERRUPTS();
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
	if (direct->row)
		ExecDropSingleTupleTableSlot(direct->row);
	direct_on_reset(direct);
	MemoryContextDelete(direct->cxt);
}

static void
kalam_ExplainDirectModify(ForeignScanState *node, ExplainState *es)
{
	List	   *private = ((ForeignScan *) node->ss.ps.plan)->fdw_private;
	char	   *relations = strVal(list_nth(private, KALAM_DIRECT_RELATIONS));

	if (relations[0] != '\0')
		ExplainPropertyText("Relations", relations, es);
	if (es->verbose)
		ExplainPropertyText("Remote SQL", strVal(list_nth(private, KALAM_DIRECT_SQL)), es);
}

void
kalam_direct_routine(FdwRoutine *routine)
{
	kalam_change_routine(routine);
	routine->BeginDirectModify = kalam_BeginDirectModify;
	routine->IterateDirectModify = kalam_IterateDirectModify;
	routine->EndDirectModify = kalam_EndDirectModify;
	routine->ExplainDirectModify = kalam_ExplainDirectModify;
}
