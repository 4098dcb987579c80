/*
 * kalam_move.c: rows that an UPDATE moves from one partition to another.
 *
 * PostgreSQL moves rows of its own partitions, also into foreign ones, but does
 * not look whether a row still belongs to the foreign partition in which it is
 * updated.  This file does, and moves it: it is deleted there and inserted into
 * the partition where it belongs, both in the remote transaction.  So that must
 * be a table of the same server and user mapping; anything else is refused.
 *
 * The statement's snapshot keeps a row from being found and updated again where
 * it has come to.
 *
 * A local row that moves fires the triggers of a DELETE and an INSERT, and not
 * those of an UPDATE, which PostgreSQL will fire for this one: a move that would
 * have to fire row triggers is refused.
 */
#include "postgres.h"

#include "access/tableam.h"
#include "access/tupconvert.h"
#include "executor/execPartition.h"
#include "executor/executor.h"
#include "executor/nodeModifyTable.h"
#include "kalam_modify.h"
#include "miscadmin.h"

bool
kalam_row_stays(KalamModify *state, TupleTableSlot *slot)
{
	ResultRelInfo *rinfo = state->rinfo;

	return !state->spec.rel->rd_rel->relispartition ||
		ExecPartitionCheck(rinfo, slot, state->estate, rinfo->ri_RootResultRelInfo == NULL);
}

/* ---------- where to ---------- */

/* As PostgreSQL makes it when it first needs it, to be shared with it. */
static void
prepare_routing(ModifyTableState *mtstate)
{
	Relation	root = mtstate->rootResultRelInfo->ri_RelationDesc;

	if (mtstate->mt_partition_tuple_routing != NULL)
		return;
	mtstate->mt_partition_tuple_routing = ExecSetupPartitionTupleRouting(mtstate->ps.state, root);
	mtstate->mt_root_tuple_slot = table_slot_create(root, NULL);
}

static TupleConversionMap *
root_to_partition(ResultRelInfo *partition, EState *estate)
{
#if PG_VERSION_NUM >= 160000
	return ExecGetRootToChildMap(partition, estate);
#else
	return partition->ri_RootToPartitionMap;
#endif
}

/* The partition where the row belongs; 23514 if there is none.  The row becomes one of that partition. */
static ResultRelInfo *
find_partition(KalamModify *state, TupleTableSlot **slot)
{
	ModifyTableState *mtstate = state->mtstate;
	MemoryContext old = MemoryContextSwitchTo(state->estate->es_query_cxt);	/* the maps stay */
	TupleConversionMap *map = ExecGetChildToRootMap(state->rinfo);
	ResultRelInfo *partition;

	prepare_routing(mtstate);
	if (map != NULL)
		*slot = execute_attr_map_slot(map->attrMap, *slot, mtstate->mt_root_tuple_slot);
	partition = ExecFindPartition(mtstate, mtstate->rootResultRelInfo, mtstate->mt_partition_tuple_routing, *slot,
								  state->estate);
	map = root_to_partition(partition, state->estate);
	if (map != NULL)
		*slot = execute_attr_map_slot(map->attrMap, *slot, partition->ri_PartitionTupleSlot);
	MemoryContextSwitchTo(old);
	return partition;
}

/* ---------- may it? ---------- */

KALAM_NORETURN static void refuse_move(Relation from, Relation to, const char *detail);

static void
refuse_move(Relation from, Relation to, const char *detail)
{
	ereport(ERROR,
			(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
			 errmsg("cannot move a row from foreign partition \"%s\" to partition \"%s\"",
					RelationGetRelationName(from), RelationGetRelationName(to)),
			 errdetail_internal("%s", detail),
			 errhint("Delete the row and insert it anew.")));
}

static bool
fires_row_triggers(TriggerDesc *from, TriggerDesc *to)
{
	return (from != NULL && (from->trig_delete_before_row || from->trig_delete_after_row || from->trig_update_after_row)) ||
		(to != NULL && (to->trig_insert_before_row || to->trig_insert_after_row));
}

static KalamModify *
inserts_into(KalamModify *state, ResultRelInfo *partition)
{
	Relation	to = partition->ri_RelationDesc;
	KalamModify *into = kalam_modify_inserts(partition);

	if (into == NULL || into->spec.conn != state->spec.conn)
		refuse_move(state->spec.rel, to, "They are not tables of the same KalamDB server and user mapping.");
	if (fires_row_triggers(state->rinfo->ri_TrigDesc, partition->ri_TrigDesc))
		refuse_move(state->spec.rel, to, "Row triggers would have to fire for a deleted and an inserted row.");
	return into;
}

/* ---------- the move ---------- */

static void
create_out(KalamModify *state)
{
	KalamBatchSpec spec = state->spec;

	spec.operation = CMD_DELETE;
	spec.attnos = NIL;
	state->out = kalam_batch_create(state->cxt, &spec);
}

void
kalam_move_row(KalamModify *state, TupleTableSlot *slot, const Datum *old_key, const bool *old_null)
{
	ResultRelInfo *partition = find_partition(state, &slot);
	KalamModify *into = inserts_into(state, partition);
	TupleConstr *constr = RelationGetDescr(partition->ri_RelationDesc)->constr;

	if (state->out == NULL)
		create_out(state);
	kalam_batch_add(state->out, old_key, old_null);
	if (constr != NULL && constr->has_generated_stored)
		ExecComputeStoredGenerated(partition, state->estate, slot, CMD_INSERT);
	kalam_modify_insert(into, slot);
}
