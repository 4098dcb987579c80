/*
 * kalam_modify.c: INSERT, UPDATE, DELETE and COPY FROM on foreign tables.
 *
 * PostgreSQL computes the rows; this file checks what PostgreSQL leaves
 * unchecked on foreign tables (NOT NULL, CHECK, partition bounds) and hands
 * them to a batch (kalam_batch.c).
 *
 * When rows are sent: see kalam_batch.h, and
 *	- before AFTER triggers run (ExecutorFinish hook), so that they see them;
 *	- a lone statement's last rows only at PRE_COMMIT, together with COMMIT, to
 *	  save a round trip.  Only where nobody can tell the difference: see
 *	  kalam_may_wait_for_commit.
 *
 * PostgreSQL's own batching (ExecForeignBatchInsert) is not used: it would copy
 * every row into a slot of its own, only for us to copy it again.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/pg_class.h"
#include "commands/explain.h"
#include "commands/trigger.h"
#include "common/hashfn.h"
#include "executor/executor.h"
#include "kalam_core.h"
#include "kalam_modify.h"
#include "miscadmin.h"
#include "parser/parsetree.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/memutils.h"
#if PG_VERSION_NUM >= 180000
#include "commands/explain_format.h"
#include "commands/explain_state.h"
#endif

/* entry of KalamModify.changed */
typedef struct ChangedKey
{
	StringInfo	image;
} ChangedKey;

static dlist_head running = DLIST_STATIC_INIT(running);
static ExecutorFinish_hook_type prev_ExecutorFinish = NULL;
static ExecutorRun_hook_type prev_ExecutorRun = NULL;

/* ---------- beginning ---------- */

static Oid
modify_user(EState *estate, ResultRelInfo *rinfo)
{
#if PG_VERSION_NUM >= 160000
	Oid			userid = ExecGetResultRelCheckAsUser(rinfo, estate);
#else
	Index		rti = rinfo->ri_RootResultRelInfo ? rinfo->ri_RootResultRelInfo->ri_RangeTableIndex :
		rinfo->ri_RangeTableIndex;
	Oid			userid = exec_rt_fetch(rti, estate)->checkAsUser;

	if (!OidIsValid(userid))
		userid = GetUserId();
#endif
	return userid;
}

static void
modify_unlink(void *arg)
{
	KalamModify *state = (KalamModify *) arg;

	if (state->linked)
	{
		state->linked = false;
		dlist_delete(&state->node);
	}
}

static KalamModify *
modify_create(ModifyTableState *mtstate, ResultRelInfo *rinfo, CmdType operation, OnConflictAction on_conflict,
			  KalamConflict *conflict, bool here)
{
	EState	   *estate = mtstate->ps.state;
	MemoryContext cxt = AllocSetContextCreate(estate->es_query_cxt, "kalam modify", ALLOCSET_SMALL_SIZES);
	MemoryContext old = MemoryContextSwitchTo(cxt);
	KalamModify *state = palloc0(sizeof(KalamModify));
	Relation	rel = rinfo->ri_RelationDesc;

	if (on_conflict == ONCONFLICT_UPDATE && conflict == NULL && !here)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("foreign table \"%s\" does not support ON CONFLICT DO UPDATE", RelationGetRelationName(rel)),
				 errhint("Insert into the table itself, not through a partitioned one.")));
	state->cxt = cxt;
	state->estate = estate;
	state->mtstate = mtstate;
	state->rinfo = rinfo;
	state->seq_attno = kalam_system_attno(rel, KALAM_SEQ_COLUMN);
	state->userid_attno = kalam_system_attno(rel, KALAM_USERID_COLUMN);
	state->spec.operation = operation;
	state->spec.rel = rel;
	state->spec.table = kalam_table_get(RelationGetRelid(rel));
	state->spec.estate = estate;
	state->spec.skip_conflicts = on_conflict == ONCONFLICT_NOTHING || here;
	state->spec.conflict = conflict;
	state->spec.may_vanish = rinfo->ri_TrigDesc != NULL &&
		(rinfo->ri_TrigDesc->trig_update_before_row || rinfo->ri_TrigDesc->trig_delete_before_row);
	if (operation == CMD_INSERT)
		state->spec.attnos = kalam_insert_columns(state);
	else
		state->spec.keys = kalam_row_identity(rel);
	if (operation == CMD_UPDATE)
		state->spec.attnos = kalam_update_columns(state);
	state->values = palloc(sizeof(Datum) * (RelationGetDescr(rel)->natts * 2 + 1));
	state->nulls = palloc(sizeof(bool) * (RelationGetDescr(rel)->natts * 2 + 1));
	MemoryContextSwitchTo(old);
	return state;
}

/* The part that needs the server: not for a mere EXPLAIN. */
static void
modify_connect(KalamModify *state)
{
	MemoryContext old = MemoryContextSwitchTo(state->cxt);
	UserMapping *user = kalam_user_mapping(state->spec.table->serverid, modify_user(state->estate, state->rinfo));

	state->spec.conn = kalam_connection_get(user);
	state->spec.tenant = kalam_tenant(user);
	if (state->spec.tenant != NULL)
		state->spec.tenant = pstrdup(state->spec.tenant);
	if (kalam_find_option(user->options, "user_id"))
		state->bound_user = user->userid;
	if (state->spec.conflict != NULL)
	{
		kalam_conflict_begin(state->spec.conflict, state->spec.conn, state->estate);
		/* what functions of the statement write is not from before it */
		(void) kalam_snapshot_number(state->spec.conn, state->estate);
	}
	state->batch = kalam_batch_create(state->cxt, &state->spec);

	dlist_push_tail(&running, &state->node);
	state->linked = true;
	state->on_reset.func = modify_unlink;
	state->on_reset.arg = state;
	MemoryContextRegisterResetCallback(state->cxt, &state->on_reset);
	MemoryContextSwitchTo(old);
}

static uint32
changed_hash(const void *key, Size keysize)
{
	StringInfo	image = ((const ChangedKey *) key)->image;

	return DatumGetUInt32(hash_any((const unsigned char *) image->data, image->len));
}

static int
changed_match(const void *a, const void *b, Size keysize)
{
	StringInfo	x = ((const ChangedKey *) a)->image;
	StringInfo	y = ((const ChangedKey *) b)->image;

	return x->len == y->len ? memcmp(x->data, y->data, x->len) : 1;
}

HTAB *
kalam_changed_create(MemoryContext cxt)
{
	HASHCTL		ctl = {0};

	ctl.keysize = ctl.entrysize = sizeof(ChangedKey);
	ctl.hash = changed_hash;
	ctl.match = changed_match;
	ctl.hcxt = cxt;
	return hash_create("kalam changed keys", 256, &ctl, HASH_ELEM | HASH_FUNCTION | HASH_COMPARE | HASH_CONTEXT);
}

static void
kalam_BeginForeignModify(ModifyTableState *mtstate, ResultRelInfo *rinfo, List *fdw_private, int subplan_index,
						 int eflags)
{
	ModifyTable *plan = (ModifyTable *) mtstate->ps.plan;
	CmdType		operation = mtstate->operation;
	/* not yet in the ResultRelInfo: PostgreSQL fills it in after us */
	bool		shown = plan->returningLists != NIL || plan->withCheckOptionLists != NIL;
	KalamConflict *conflict = kalam_conflict_create(fdw_private, shown, rinfo->ri_RelationDesc);
	bool		here = plan->onConflictAction == ONCONFLICT_UPDATE && conflict == NULL;
	KalamModify *state = modify_create(mtstate, rinfo, operation, plan->onConflictAction, conflict, here);
	MemoryContext old;

	rinfo->ri_FdwState = state;
	state->shows_row = state->by_row = shown || here || kalam_has_after_triggers(rinfo, operation, true);
	if (eflags & EXEC_FLAG_EXPLAIN_ONLY)
		return;
	modify_connect(state);
	if (here)
		kalam_upsert_begin(state, mtstate);
	state->sets_tag = mtstate->canSetTag;
	state->lone = plan->withCheckOptionLists == NIL && kalam_may_wait_for_commit(state);
	if (operation == CMD_INSERT)
		return;
	old = MemoryContextSwitchTo(state->cxt);
	kalam_find_junk(state, outerPlan(plan));
	if (!kalam_plan_only_scans(outerPlan(plan)))
		state->changed = kalam_changed_create(state->cxt);
	MemoryContextSwitchTo(old);
}

/* COPY FROM, and rows that a partitioned table routes here; maybe of an UPDATE, which may be working here as well. */
static void
kalam_BeginForeignInsert(ModifyTableState *mtstate, ResultRelInfo *rinfo)
{
	ModifyTable *plan = (ModifyTable *) mtstate->ps.plan;	/* NULL in COPY */
	KalamModify *updates = (KalamModify *) rinfo->ri_FdwState;
	KalamModify *state = modify_create(mtstate, rinfo, CMD_INSERT, plan ? plan->onConflictAction : ONCONFLICT_NONE,
									   NULL, false);

	state->routed = true;
	if (updates != NULL)
		updates->into = state;
	else
		rinfo->ri_FdwState = state;
	modify_connect(state);
	state->shows_row = (plan != NULL && (plan->returningLists != NIL || plan->withCheckOptionLists != NIL)) ||
		kalam_has_after_triggers(rinfo, CMD_INSERT, true);
	state->by_row = state->shows_row;
	state->sets_tag = plan != NULL && mtstate->canSetTag;
}

/* ---------- rows ---------- */

/* Raises what a local table would, before anything of the row is sent. */
void
kalam_check_row(KalamModify *state, TupleTableSlot *slot)
{
	ResultRelInfo *rinfo = state->rinfo;
	Relation	rel = state->spec.rel;

	if (RelationGetDescr(rel)->constr != NULL)
		ExecConstraints(rinfo, slot, state->estate);
	/* routing has chosen this partition; a trigger may have changed the row since */
	if (rel->rd_rel->relispartition && state->spec.operation == CMD_INSERT &&
		(rinfo->ri_RootResultRelInfo == NULL || (rinfo->ri_TrigDesc && rinfo->ri_TrigDesc->trig_insert_before_row)))
		ExecPartitionCheck(rinfo, slot, state->estate, true);
}

/* _seq is unknown until commit; a new row's owner is the tenant. */
void
kalam_set_system_columns(KalamModify *state, TupleTableSlot *slot)
{
	int			natts = RelationGetDescr(state->spec.rel)->natts;
	Datum	   *values;
	bool	   *nulls;
	bool	   *replace;
	bool		isnull = true;
	HeapTuple	tuple;
	MemoryContext old;

	values = palloc0(sizeof(Datum) * natts);
	nulls = palloc0(sizeof(bool) * natts);
	replace = palloc0(sizeof(bool) * natts);
	if (state->seq_attno != InvalidAttrNumber)
	{
		slot_getattr(slot, state->seq_attno, &isnull);
		replace[state->seq_attno - 1] = !isnull;
		nulls[state->seq_attno - 1] = true;
	}
	if (state->userid_attno != InvalidAttrNumber && state->spec.operation == CMD_INSERT &&
		state->spec.tenant != NULL && strcmp(state->spec.tenant, "*") != 0)
	{
		slot_getattr(slot, state->userid_attno, &isnull);
		replace[state->userid_attno - 1] = isnull;
		values[state->userid_attno - 1] = CStringGetTextDatum(state->spec.tenant);
	}
	if (memchr(replace, true, natts) == NULL)
		return;
	tuple = ExecFetchSlotHeapTuple(slot, false, NULL);
	old = MemoryContextSwitchTo(slot->tts_mcxt);
	tuple = heap_modify_tuple(tuple, RelationGetDescr(state->spec.rel), values, nulls, replace);
	ExecForceStoreHeapTuple(tuple, slot, true);
	slot->tts_tableOid = RelationGetRelid(state->spec.rel);
	MemoryContextSwitchTo(old);
}

static int
take_columns(KalamModify *state, TupleTableSlot *slot, List *attnos, int n)
{
	ListCell   *lc;

	foreach(lc, attnos)
	{
		state->values[n] = slot_getattr(slot, lfirst_int(lc), &state->nulls[n]);
		n++;
	}
	return n;
}

static void
take_old_key(KalamModify *state, TupleTableSlot *planSlot, int n)
{
	ListCell   *lc;

	foreach(lc, state->junk)
	{
		AttrNumber	attno = lfirst_int(lc);

		if (!AttributeNumberIsValid(attno))
			elog(ERROR, "the plan has no key column for \"%s\"", RelationGetRelationName(state->spec.rel));
		state->values[n] = ExecGetJunkAttribute(planSlot, attno, &state->nulls[n]);
		if (state->nulls[n])
			ereport(ERROR,
					(errcode(ERRCODE_FDW_ERROR),
					 errmsg("server sent a row of \"%s\" without its key", RelationGetRelationName(state->spec.rel))));
		n++;
	}
}

/* A role bound to a tenant may not write for another, whatever the server would allow its account. */
static void
check_owner(KalamModify *state, TupleTableSlot *slot)
{
	bool		isnull;
	char	   *owner;
	Datum		datum = slot_getattr(slot, state->userid_attno, &isnull);

	if (isnull || strcmp(state->spec.tenant, "*") == 0)
		return;
	owner = TextDatumGetCString(datum);
	if (strcmp(owner, state->spec.tenant) != 0)
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("role \"%s\" may not act for tenant \"%s\"", GetUserNameFromId(state->bound_user, true), owner),
				 errdetail("Its user mapping binds it to another tenant.")));
	pfree(owner);
}

/*
 * PostgreSQL has counted each row that it gave us.  The command's count is read
 * when its run is over, so here is the place to take off those that ON CONFLICT
 * has left out.
 */
static void
settle_count(KalamModify *state)
{
	int64		left_out;

	kalam_upsert_flush(state);
	if (state->by_row || !(state->spec.skip_conflicts || state->spec.conflict != NULL))
		return;
	kalam_batch_flush(state->batch);
	left_out = kalam_batch_sent(state->batch) - kalam_batch_affected(state->batch);
	if (state->sets_tag)
		state->estate->es_processed -= left_out - state->left_out;
	state->left_out = left_out;
}

/*
 * Only some rows name an owner: until one does, _userid is not sent at all, as
 * the server allows it to be named by those only who may act for others.
 */
static void
note_owner(KalamModify *state, TupleTableSlot *slot)
{
	MemoryContext old;

	if (state->userid_attno != InvalidAttrNumber && OidIsValid(state->bound_user))
		check_owner(state, slot);
	if (state->userid_attno == InvalidAttrNumber || state->with_userid ||
		slot_attisnull(slot, state->userid_attno))
		return;
	kalam_batch_flush(state->batch);
	settle_count(state);
	state->left_out = 0;
	if (state->reader != NULL)
		kalam_reader_clear(state->reader);
	state->row_result = NULL;	/* it goes with the batch */
	kalam_batch_free(state->batch);
	old = MemoryContextSwitchTo(state->cxt);
	state->with_userid = true;
	state->spec.attnos = kalam_insert_columns(state);
	state->batch = kalam_batch_create(state->cxt, &state->spec);
	MemoryContextSwitchTo(old);
}

/* Makes the row what it will be on the server, checks it if it is to be in this table, and puts its columns into values. */
static int
prepare_row(KalamModify *state, TupleTableSlot *slot, bool stays)
{
	TupleConstr *constr = RelationGetDescr(state->spec.rel)->constr;

	if (state->shows_row || constr != NULL)
		kalam_set_system_columns(state, slot);
	if (stays)
		kalam_check_row(state, slot);
	return take_columns(state, slot, state->spec.attnos, 0);
}

static TupleTableSlot *
kalam_ExecForeignInsert(EState *estate, ResultRelInfo *rinfo, TupleTableSlot *slot, TupleTableSlot *planSlot)
{
	KalamModify *state = kalam_modify_inserts(rinfo);
	MemoryContext old = MemoryContextSwitchTo(GetPerTupleMemoryContext(estate));
	int64		affected;

	note_owner(state, slot);
	prepare_row(state, slot, true);
	if (state->by_row && state->spec.conflict != NULL)
	{
		if (!kalam_conflict_row(state, slot))
			slot = NULL;
	}
	else
	{
		affected = kalam_batch_add(state->batch, state->values, state->nulls);
		if (state->by_row && state->spec.skip_conflicts && affected + kalam_batch_flush(state->batch) == 0)
			slot = state->here ? kalam_upsert_row(state, slot) : NULL;
		else if (state->here)
			kalam_upsert_inserted(state, slot);
	}
	MemoryContextSwitchTo(old);
	return slot;
}

KalamModify *
kalam_modify_inserts(ResultRelInfo *rinfo)
{
	KalamModify *state = (KalamModify *) rinfo->ri_FdwState;

	if (rinfo->ri_FdwRoutine == NULL || rinfo->ri_FdwRoutine->ExecForeignInsert != kalam_ExecForeignInsert)
		return NULL;
	return state->spec.operation == CMD_INSERT ? state : state->into;
}

void
kalam_modify_insert(KalamModify *state, TupleTableSlot *slot)
{
	note_owner(state, slot);
	prepare_row(state, slot, true);
	kalam_batch_add(state->batch, state->values, state->nulls);
}

/* Notes the key at the end of a batch's row; was it there already? */
bool
kalam_changed_note(KalamModify *state, HTAB *changed, KalamBatch *batch, const Datum *values)
{
	StringInfoData image;
	ChangedKey	key = {&image};
	ChangedKey *entry;
	bool		found;

	initStringInfo(&image);
	kalam_batch_key_image(batch, values, &image);
	entry = hash_search(changed, &key, HASH_ENTER, &found);
	if (!found)
	{
		MemoryContext old = MemoryContextSwitchTo(state->cxt);

		entry->image = makeStringInfo();
		appendBinaryStringInfo(entry->image, image.data, image.len);
		MemoryContextSwitchTo(old);
	}
	return found;
}

void
kalam_changed_forget(HTAB *changed, KalamBatch *batch, const Datum *values)
{
	StringInfoData image;
	ChangedKey	key = {&image};

	initStringInfo(&image);
	kalam_batch_key_image(batch, values, &image);
	(void) hash_search(changed, &key, HASH_REMOVE, NULL);
}

/* A join may find a row several times: like PostgreSQL, only the first counts. */
static bool
changed_before(KalamModify *state)
{
	return state->changed != NULL && kalam_changed_note(state, state->changed, state->batch, state->values);
}

/* A trigger may have tried what kalam_update_columns refuses. */
static void
check_owner_kept(KalamModify *state, TupleTableSlot *slot, Datum old_owner)
{
	bool		isnull;
	Datum		owner;

	if (state->userid_attno == InvalidAttrNumber)
		return;
	owner = slot_getattr(slot, state->userid_attno, &isnull);
	if (isnull || !datum_image_eq(owner, old_owner, false, -1))
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("column \"%s\" cannot be updated", KALAM_USERID_COLUMN),
				 errhint("Delete the row and insert it for the other tenant.")));
}

static TupleTableSlot *
kalam_ExecForeignUpdate(EState *estate, ResultRelInfo *rinfo, TupleTableSlot *slot, TupleTableSlot *planSlot)
{
	KalamModify *state = (KalamModify *) rinfo->ri_FdwState;
	MemoryContext old = MemoryContextSwitchTo(GetPerTupleMemoryContext(estate));
	bool		stays = kalam_row_stays(state, slot);
	int			key = prepare_row(state, slot, stays);

	take_old_key(state, planSlot, key);
	check_owner_kept(state, slot, state->values[key + list_length(state->junk) - 1]);
	if (changed_before(state))
		slot = NULL;
	else if (!stays)
		kalam_move_row(state, slot, state->values + key, state->nulls + key);
	else
		kalam_batch_add(state->batch, state->values, state->nulls);
	MemoryContextSwitchTo(old);
	return slot;
}

/* RETURNING of a DELETE: the old row, which the plan carries whole. */
static void
store_old_row(ResultRelInfo *rinfo, TupleTableSlot *slot, TupleTableSlot *planSlot)
{
	HeapTupleData tuple = {0};
	bool		isnull;
	Datum		row = ExecGetJunkAttribute(planSlot, rinfo->ri_RowIdAttNo, &isnull);
	MemoryContext old;

	if (isnull)
		elog(ERROR, "the plan has no old row for \"%s\"", RelationGetRelationName(rinfo->ri_RelationDesc));
	tuple.t_data = DatumGetHeapTupleHeader(row);
	tuple.t_len = HeapTupleHeaderGetDatumLength(tuple.t_data);
	ItemPointerSetInvalid(&tuple.t_self);
	old = MemoryContextSwitchTo(slot->tts_mcxt);
	ExecForceStoreHeapTuple(heap_copytuple(&tuple), slot, true);
	MemoryContextSwitchTo(old);
}

static TupleTableSlot *
kalam_ExecForeignDelete(EState *estate, ResultRelInfo *rinfo, TupleTableSlot *slot, TupleTableSlot *planSlot)
{
	KalamModify *state = (KalamModify *) rinfo->ri_FdwState;
	MemoryContext old = MemoryContextSwitchTo(GetPerTupleMemoryContext(estate));

	take_old_key(state, planSlot, 0);
	if (changed_before(state))
		slot = NULL;
	else
	{
		kalam_batch_add(state->batch, state->values, state->nulls);
		if (rinfo->ri_projectReturning != NULL)
			store_old_row(rinfo, slot, planSlot);
	}
	MemoryContextSwitchTo(old);
	return slot;
}

/* ---------- ending ---------- */

/* One row of an INSERT, or the last rows of an UPDATE or DELETE, which were locked when they were read. */
static bool
waits_for_commit(KalamModify *state)
{
	int64		rows = kalam_batch_rows(state->batch);

	if (!state->lone || rows == 0)
		return false;
	return state->spec.operation != CMD_INSERT || (rows == 1 && kalam_batch_sent(state->batch) == 0);
}

static void
modify_finish(KalamModify *state)
{
	if (state->out != NULL)
		kalam_batch_flush(state->out);
	if (state->batch != NULL)	/* not a mere EXPLAIN */
	{
		kalam_upsert_flush(state);
		if (waits_for_commit(state))
			kalam_batch_detach(state->batch);
		else
			kalam_batch_flush(state->batch);
	}
	MemoryContextDelete(state->cxt);
}

static void
modify_end(EState *estate, ResultRelInfo *rinfo)
{
	KalamModify *state = (KalamModify *) rinfo->ri_FdwState;
	KalamModify *into;

	if (state == NULL)
		return;
	into = state->into;
	modify_finish(state);
	if (into != NULL)
		modify_finish(into);
	rinfo->ri_FdwState = NULL;
}

static void
after_run(EState *estate)
{
	dlist_iter	iter;

	dlist_foreach(iter, &running)
	{
		KalamModify *state = dlist_container(KalamModify, node, iter.cur);

		if (state->estate == estate)
			settle_count(state);
	}
}

#if PG_VERSION_NUM >= 180000
static void
kalam_ExecutorRun(QueryDesc *queryDesc, ScanDirection direction, uint64 count)
{
	if (prev_ExecutorRun)
		prev_ExecutorRun(queryDesc, direction, count);
	else
		standard_ExecutorRun(queryDesc, direction, count);
	after_run(queryDesc->estate);
}
#else
static void
kalam_ExecutorRun(QueryDesc *queryDesc, ScanDirection direction, uint64 count, bool execute_once)
{
	if (prev_ExecutorRun)
		prev_ExecutorRun(queryDesc, direction, count, execute_once);
	else
		standard_ExecutorRun(queryDesc, direction, count, execute_once);
	after_run(queryDesc->estate);
}
#endif

/* What a statement has collected goes out before its AFTER triggers run. */
static void
kalam_ExecutorFinish(QueryDesc *queryDesc)
{
	dlist_iter	iter;

	dlist_foreach(iter, &running)
	{
		KalamModify *state = dlist_container(KalamModify, node, iter.cur);

		if (state->estate != queryDesc->estate)
			continue;
		if (state->out != NULL)
			kalam_batch_flush(state->out);
		if (!waits_for_commit(state))
			kalam_batch_flush(state->batch);
	}
	if (prev_ExecutorFinish)
		prev_ExecutorFinish(queryDesc);
	else
		standard_ExecutorFinish(queryDesc);
}

/* ---------- EXPLAIN ---------- */

static void
kalam_ExplainForeignModify(ModifyTableState *mtstate, ResultRelInfo *rinfo, List *fdw_private, int subplan_index,
						   ExplainState *es)
{
	KalamModify *state = (KalamModify *) rinfo->ri_FdwState;
	Plan	   *source = outerPlan(mtstate->ps.plan);
	bool		by_row;

	if (!es->verbose || state == NULL)
		return;
	by_row = (state->by_row && (state->spec.skip_conflicts || state->spec.conflict != NULL)) || (state->spec.operation == CMD_INSERT && IsA(source, Result));
	ExplainPropertyText("Remote SQL", kalam_batch_sql(&state->spec, by_row), es);
}

/* ---------- registration ---------- */

void
kalam_modify_routine(FdwRoutine *routine)
{
	kalam_target_routine(routine);
	routine->BeginForeignModify = kalam_BeginForeignModify;
	routine->ExecForeignInsert = kalam_ExecForeignInsert;
	routine->ExecForeignUpdate = kalam_ExecForeignUpdate;
	routine->ExecForeignDelete = kalam_ExecForeignDelete;
	routine->EndForeignModify = modify_end;
	routine->BeginForeignInsert = kalam_BeginForeignInsert;
	routine->EndForeignInsert = modify_end;
	routine->ExplainForeignModify = kalam_ExplainForeignModify;
}

void
kalam_modify_init(void)
{
	prev_ExecutorFinish = ExecutorFinish_hook;
	ExecutorFinish_hook = kalam_ExecutorFinish;
	prev_ExecutorRun = ExecutorRun_hook;
	ExecutorRun_hook = kalam_ExecutorRun;
}
