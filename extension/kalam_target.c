/*
 * kalam_target.c: what a command may do to a table, and with which columns.
 *
 * Rows are found again by their key, whose columns travel as junk columns of
 * the plan; kalam_target_routine sets the callbacks of the planner's side.
 */
#include "postgres.h"

#include "executor/executor.h"
#include "kalam_modify.h"
#include "miscadmin.h"
#include "nodes/makefuncs.h"
#include "optimizer/appendinfo.h"
#include "tcop/pquery.h"

/* ---------- planning ---------- */

/*
 * Junk columns are named by all that must be equal for PostgreSQL to share one
 * between partitions: it refuses one name with two meanings.
 */
static char *
junk_name(Form_pg_attribute att)
{
	return psprintf("kalam_key_%d_%u_%d_%u", att->attnum, att->atttypid, att->atttypmod, att->attcollation);
}

AttrNumber
kalam_system_attno(Relation rel, const char *name)
{
	TupleDesc	desc = RelationGetDescr(rel);

	for (int i = 0; i < desc->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(desc, i);

		if (!att->attisdropped && strcmp(NameStr(att->attname), name) == 0 &&
			kalam_is_system_column(RelationGetRelid(rel), att->attnum))
			return att->attnum;
	}
	return InvalidAttrNumber;
}

/* The columns that name one row among all tenants' rows: the key, then _userid where it is here. */
List *
kalam_row_identity(Relation rel)
{
	List	   *keys = kalam_key_columns(RelationGetRelid(rel));
	AttrNumber	userid = kalam_system_attno(rel, KALAM_USERID_COLUMN);

	if (keys != NIL && userid != InvalidAttrNumber)
		keys = lappend_int(keys, userid);
	return keys;
}

static void
refuse_command(Relation rel, CmdType operation)
{
	KalamTable *table = kalam_table_get(RelationGetRelid(rel));

	if (operation == CMD_UPDATE && table->type == KALAM_STREAM)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("cannot update stream table \"%s\"", RelationGetRelationName(rel)),
				 errhint("Rows of a stream can be inserted, selected and deleted.")));
	if (kalam_key_columns(RelationGetRelid(rel)) == NIL)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("cannot %s foreign table \"%s\", which has no key", operation == CMD_UPDATE ? "update" : "delete from",
						RelationGetRelationName(rel)),
				 errhint("Name the key's columns with ALTER FOREIGN TABLE ... ALTER COLUMN ... OPTIONS (ADD key '1').")));
}

static void
kalam_AddForeignUpdateTargets(PlannerInfo *root, Index rtindex, RangeTblEntry *target_rte, Relation target_relation)
{
	ListCell   *lc;

	refuse_command(target_relation, root->parse->commandType);
	foreach(lc, kalam_row_identity(target_relation))
	{
		Form_pg_attribute att = TupleDescAttr(RelationGetDescr(target_relation), lfirst_int(lc) - 1);
		Var		   *var = makeVar(rtindex, att->attnum, att->atttypid, att->atttypmod, att->attcollation, 0);

		add_row_identity_var(root, var, rtindex, junk_name(att));
	}
	/* PostgreSQL asks for the whole old row by itself in UPDATE and for row triggers */
	if (root->parse->commandType == CMD_DELETE && root->parse->returningList != NIL)
		add_row_identity_var(root, makeVar(rtindex, InvalidAttrNumber, RECORDOID, -1, InvalidOid, 0),
							 rtindex, "wholerow");
}

static int
kalam_IsForeignRelUpdatable(Relation rel)
{
	KalamTable *table = kalam_table_get(RelationGetRelid(rel));
	int			events = 1 << CMD_INSERT;

	if (!table->updatable)
		return 0;
	if (kalam_key_columns(RelationGetRelid(rel)) != NIL)
	{
		events |= 1 << CMD_DELETE;
		if (table->type != KALAM_STREAM)
			events |= 1 << CMD_UPDATE;
	}
	return events;
}

/* ---------- TRUNCATE ---------- */

/*
 * All rows of the tenant, or of all where kalam.user_id is '*'.  They are
 * deleted as by any statement, so that savepoints and other transactions see
 * what they do of one.  There is nothing to restart, and nobody to cascade to.
 */
static void
truncate_one(Relation rel)
{
	KalamTable *table = kalam_table_get(RelationGetRelid(rel));
	UserMapping *user = kalam_user_mapping(table->serverid, GetUserId());
	KalamRequest req = {0};
	PGresult   *res;
	StringInfoData sql;

	if (!table->truncatable)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("foreign table \"%s\" does not allow truncates", RelationGetRelationName(rel))));
	req.tenant = kalam_tenant(user);
	kalam_require_tenant(req.tenant, table);
	initStringInfo(&sql);
	appendStringInfoString(&sql, "DELETE FROM ");
	kalam_deparse_table(&sql, table);
	req.sql = sql.data;
	req.flags = KALAM_REQ_WRITE | KALAM_REQ_TXN;
	res = kalam_request(kalam_connection_get(user), &req);
	kalam_sizes_changed(strtoll(PQcmdTuples(res), NULL, 10));
	kalam_result_free(res);
}

static void
kalam_ExecForeignTruncate(List *rels, DropBehavior behavior, bool restart_seqs)
{
	ListCell   *lc;

	foreach(lc, rels)
		truncate_one(lfirst(lc));
}

/* ---------- columns ---------- */

List *
kalam_insert_columns(KalamModify *state)
{
	TupleDesc	desc = RelationGetDescr(state->spec.rel);
	List	   *attnos = NIL;

	for (int i = 0; i < desc->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(desc, i);

		if (att->attisdropped || att->attnum == state->seq_attno ||
			(att->attnum == state->userid_attno && !state->with_userid) ||
			(att->attgenerated != '\0' && att->attgenerated != ATTRIBUTE_GENERATED_STORED))
			continue;
		attnos = lappend_int(attnos, att->attnum);
	}
	return attnos;
}

/*
 * Columns that the statement sets, and those that may follow: generated ones,
 * and any at all where a BEFORE trigger has its say.
 */
List *
kalam_update_columns(KalamModify *state)
{
	TupleDesc	desc = RelationGetDescr(state->spec.rel);
	TriggerDesc *triggers = state->rinfo->ri_TrigDesc;
	Bitmapset  *updated = ExecGetUpdatedCols(state->rinfo, state->estate);
	bool		all = triggers != NULL && triggers->trig_update_before_row;
	List	   *attnos = NIL;
	ListCell   *lc;

	foreach(lc, kalam_insert_columns(state))
	{
		AttrNumber	attno = lfirst_int(lc);

		if (all || TupleDescAttr(desc, attno - 1)->attgenerated == ATTRIBUTE_GENERATED_STORED ||
			bms_is_member(attno - FirstLowInvalidHeapAttributeNumber, updated))
			attnos = lappend_int(attnos, attno);
	}
	if (state->userid_attno != InvalidAttrNumber &&
		bms_is_member(state->userid_attno - FirstLowInvalidHeapAttributeNumber, updated))
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("column \"%s\" cannot be updated", KALAM_USERID_COLUMN),
				 errhint("Delete the row and insert it for the other tenant.")));
	/* only _seq was set, which is the server's: the row still gets a new version */
	if (attnos == NIL)
		attnos = kalam_key_columns(RelationGetRelid(state->spec.rel));
	return attnos;
}

void
kalam_find_junk(KalamModify *state, Plan *plan)
{
	TupleDesc	desc = RelationGetDescr(state->spec.rel);
	ListCell   *lc;

	foreach(lc, state->spec.keys)
	{
		char	   *name = junk_name(TupleDescAttr(desc, lfirst_int(lc) - 1));

		state->junk = lappend_int(state->junk, ExecFindJunkAttributeInTlist(plan->targetlist, name));
	}
}

/* Can the plan give one row of its table twice?  Not if it only scans. */
bool
kalam_plan_only_scans(Plan *plan)
{
	ListCell   *lc;

	if (plan == NULL)
		return true;
	switch (nodeTag(plan))
	{
		case T_ForeignScan:
			return ((Scan *) plan)->scanrelid > 0;
		case T_SeqScan:
			return true;
		case T_Result:
			return kalam_plan_only_scans(outerPlan(plan));
		case T_Append:
			foreach(lc, ((Append *) plan)->appendplans)
			{
				if (!kalam_plan_only_scans((Plan *) lfirst(lc)))
					return false;
			}
			return true;
		default:
			return false;
	}
}

/* ---------- may it wait for COMMIT? ---------- */

bool
kalam_has_after_triggers(ResultRelInfo *rinfo, CmdType operation, bool row_only)
{
	TriggerDesc *t = rinfo ? rinfo->ri_TrigDesc : NULL;

	if (t == NULL)
		return false;
	switch (operation)
	{
		case CMD_INSERT:
			return t->trig_insert_after_row || (!row_only && t->trig_insert_after_statement);
		case CMD_UPDATE:
			return t->trig_update_after_row || (!row_only && t->trig_update_after_statement);
		default:
			return t->trig_delete_after_row || (!row_only && t->trig_delete_after_statement);
	}
}

/*
 * Is this the client's own statement, in a transaction of its own?  Not one of
 * a function, a DO block or EXECUTE: there somebody may still look at its
 * outcome.  The portal of a client's statement is the one without a name, and
 * it holds the very statement that runs.  In a pipeline without Sync, which is
 * one transaction though no block, kalam_transaction_is_lone sees what waits.
 */
static bool
statement_is_lone(KalamModify *state)
{
	EState	   *estate = state->estate;

	return ActivePortal != NULL && ActivePortal->name[0] == '\0' &&
		list_length(ActivePortal->stmts) == 1 &&
		estate->es_plannedstmt == linitial(ActivePortal->stmts) &&
		estate->es_plannedstmt->commandType == state->spec.operation &&	/* not a CTE's part */
		list_length(estate->es_plannedstmt->resultRelations) == 1 &&
		kalam_transaction_is_lone(state->spec.conn);
}

bool
kalam_may_wait_for_commit(KalamModify *state)
{
	ResultRelInfo *rinfo = state->rinfo;
	CmdType		operation = state->spec.operation;

	if (state->routed || state->spec.skip_conflicts || state->spec.conflict != NULL ||
		rinfo->ri_WithCheckOptions != NIL ||
		kalam_has_after_triggers(rinfo, operation, false) ||
		kalam_has_after_triggers(rinfo->ri_RootResultRelInfo, operation, false))
		return false;
	/* an INSERT's row was not locked before: RETURNING would show what may yet be refused */
	if (operation == CMD_INSERT && state->estate->es_plannedstmt->hasReturning)
		return false;
	return statement_is_lone(state);
}

/* ---------- registration ---------- */

void
kalam_target_routine(FdwRoutine *routine)
{
	routine->AddForeignUpdateTargets = kalam_AddForeignUpdateTargets;
	routine->IsForeignRelUpdatable = kalam_IsForeignRelUpdatable;
	routine->ExecForeignTruncate = kalam_ExecForeignTruncate;
}
