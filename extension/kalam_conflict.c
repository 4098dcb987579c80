/*
 * kalam_conflict.c: INSERT ... ON CONFLICT (key).
 *
 * PostgreSQL looks for a unique index that the conflict target means, and a
 * foreign table has none.  So where the target is the table's key the planner
 * is not told of it: the planner hook takes it away before the search, and DO
 * NOTHING without a target, and DO UPDATE on the key, are what remains.  Both
 * are the server's work, where the key is enforced.
 *
 * The clause is printed when the plan is made, and stands in the plan as a list
 * by KalamConflictPart.  Rows are sent in batches, but one by one where
 * somebody looks at what became of each: RETURNING and WITH CHECK OPTION.
 *
 * What the server does to a row nobody sees here.  Where PostgreSQL has to, the
 * plan has no clause, and kalam_upsert.c does it row by row; only row triggers
 * that would fire for some of the rows are refused.
 */
#include "postgres.h"

#include "access/sysattr.h"
#include "access/table.h"
#include "miscadmin.h"
#include "nodes/nodeFuncs.h"
#include "optimizer/optimizer.h"
#include "optimizer/planner.h"
#include "parser/parsetree.h"
#include "parser/parse_relation.h"
#include "utils/lsyscache.h"

#include "kalam_modify.h"
#include "kalam_read.h"

typedef enum KalamConflictPart
{
	KALAM_CONFLICT_SQL,			/* String: ON CONFLICT ... */
	KALAM_CONFLICT_ALIAS,		/* Integer: what the target is called in it: r and this number */
	KALAM_CONFLICT_PARAMS,		/* its parameters, $1 first */
	KALAM_CONFLICT_RULES,		/* String: the remote definition that it relies on, "": none */
	KALAM_CONFLICT_SET,			/* IntList: columns that it sets */
} KalamConflictPart;

static planner_hook_type previous_planner = NULL;

/* ---------- the conflict target ---------- */

/* Are these columns, in any order, the key?  The owner may be among them: keys are each tenant's own. */
static bool
target_is_key(OnConflictExpr *conflict, Index target, Oid relid)
{
	List	   *keys = kalam_key_columns(relid);
	List	   *named = NIL;
	ListCell   *lc;

	foreach(lc, conflict->arbiterElems)
	{
		InferenceElem *elem = lfirst_node(InferenceElem, lc);
		Var		   *var = (Var *) elem->expr;

		if (!IsA(var, Var) || var->varno != target || OidIsValid(elem->infercollid) || OidIsValid(elem->inferopclass))
			return false;
		if (!kalam_is_system_column(relid, var->varattno))
			named = list_append_unique_int(named, var->varattno);
		else if (strcmp(get_attname(relid, var->varattno, false), KALAM_USERID_COLUMN) != 0)
			return false;
	}
	return keys != NIL && list_difference_int(keys, named) == NIL && list_difference_int(named, keys) == NIL;
}

static void
take_target(Query *query)
{
	RangeTblEntry *entry;

	if (query->commandType != CMD_INSERT || query->onConflict == NULL || query->onConflict->arbiterElems == NIL)
		return;
	entry = rt_fetch(query->resultRelation, query->rtable);
	if (entry->relkind != RELKIND_FOREIGN_TABLE || !kalam_is_relation(entry->relid) ||
		!target_is_key(query->onConflict, query->resultRelation, entry->relid))
		return;
	query->onConflict->arbiterElems = NIL;
	query->onConflict->arbiterWhere = NULL;
}

static PlannedStmt *
kalam_planner(Query *parse, const char *query_string, int cursorOptions, ParamListInfo boundParams)
{
	ListCell   *lc;

	take_target(parse);
	foreach(lc, parse->cteList)
		take_target(castNode(Query, lfirst_node(CommonTableExpr, lc)->ctequery));
	if (previous_planner)
		return previous_planner(parse, query_string, cursorOptions, boundParams);
	return standard_planner(parse, query_string, cursorOptions, boundParams);
}

/* ---------- DO UPDATE ---------- */

KALAM_NORETURN static void refuse(Relation rel, const char *why);

static void
refuse(Relation rel, const char *why)
{
	ereport(ERROR,
			(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
			 errmsg("cannot use ON CONFLICT DO UPDATE on foreign table \"%s\"", RelationGetRelationName(rel)),
			 errdetail_internal("%s", why),
			 errhint("Use INSERT ... ON CONFLICT DO NOTHING and UPDATE, or kalam_exec.")));
}

static void
refuse_triggers(Relation rel)
{
	TriggerDesc *triggers = rel->trigdesc;

	if (triggers != NULL && (triggers->trig_update_before_row || triggers->trig_update_after_row ||
							 triggers->trig_insert_after_row))
		refuse(rel, "The table has row triggers for UPDATE, or AFTER INSERT.");
}

/* Must PostgreSQL see what becomes of a row? */
static bool
has_local_rules(Relation rel)
{
	TupleConstr *constr = RelationGetDescr(rel)->constr;

	return rel->rd_rel->relispartition || (constr != NULL && constr->has_generated_stored);
}

static Oid
target_user(PlannerInfo *root, RangeTblEntry *entry)
{
	Oid			userid;

#if PG_VERSION_NUM >= 160000
	userid = getRTEPermissionInfo(root->parse->rteperminfos, entry)->checkAsUser;
#else
	userid = entry->checkAsUser;
#endif
	return OidIsValid(userid) ? userid : GetUserId();
}

/* false: it cannot be sent */
static bool
collect_settings(Relation rel, ModifyTable *plan, const KalamScope *scope, KalamUpsert *upsert)
{
	ListCell   *entry;
	ListCell   *attno;

	forboth(entry, plan->onConflictSet, attno, plan->onConflictCols)
	{
		Expr	   *expr = lfirst_node(TargetEntry, entry)->expr;
		AttrNumber	n = lfirst_int(attno);

		if (n == kalam_system_attno(rel, KALAM_SEQ_COLUMN))
			continue;
		if (n == kalam_system_attno(rel, KALAM_USERID_COLUMN))
			ereport(ERROR,
					(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
					 errmsg("column \"%s\" cannot be updated", KALAM_USERID_COLUMN),
					 errhint("Delete the row and insert it for the other tenant.")));
		if (!kalam_value_allowed(scope, expr))
			return false;
		upsert->attnos = lappend_int(upsert->attnos, n);
		upsert->exprs = lappend(upsert->exprs, expr);
	}
	foreach(entry, (List *) plan->onConflictWhere)
	{
		if (!kalam_is_shippable(scope, lfirst(entry)))
			return false;
	}
	upsert->conds = (List *) plan->onConflictWhere;
	return upsert->attnos != NIL;
}

static List *
plan_upsert(PlannerInfo *root, ModifyTable *plan, Index rtindex, RangeTblEntry *entry, Relation rel)
{
	KalamTable *table = kalam_table_get(entry->relid);
	KalamScope	scope = {0};
	KalamUpsert upsert = {.target = rtindex, .excluded = plan->exclRelRTI, .relid = entry->relid, .scope = &scope};
	List	   *params = NIL;
	const char *relies_on;
	StringInfoData sql;

	if (table->type == KALAM_STREAM)
		refuse(rel, "Rows of a stream cannot be updated.");
	refuse_triggers(rel);
	scope.conn = kalam_connection_get(kalam_user_mapping(table->serverid, target_user(root, entry)));
	scope.relids = bms_add_member(bms_make_singleton(rtindex), plan->exclRelRTI);
	upsert.keys = kalam_key_columns(entry->relid);
	if (!collect_settings(rel, plan, &scope, &upsert) || has_local_rules(rel) ||
		kalam_breaks_rules(scope.conn, table, rel, upsert.attnos, upsert.exprs, &relies_on))
		return NIL;
	initStringInfo(&sql);
	kalam_deparse_upsert(&sql, root, &upsert, &params);
	return list_make5(makeString(sql.data), makeInteger(rtindex), params,
					  makeString(relies_on ? unconstify(char *, relies_on) : ""), upsert.attnos);
}

static List *
kalam_PlanForeignModify(PlannerInfo *root, ModifyTable *plan, Index rtindex, int subplan_index)
{
	RangeTblEntry *entry = planner_rt_fetch(rtindex, root);
	Relation	rel;
	List	   *private;

	if (plan->operation != CMD_INSERT || plan->onConflictAction != ONCONFLICT_UPDATE)
		return NIL;
	rel = table_open(entry->relid, NoLock);
	private = plan_upsert(root, plan, rtindex, entry, rel);
	table_close(rel, NoLock);
	return private;
}

/* ---------- running ---------- */

/* Of a plan's private list; NULL if it has no DO UPDATE. */
KalamConflict *
kalam_conflict_create(List *private, bool returns, Relation rel)
{
	KalamConflict *conflict;
	TupleDesc	desc = RelationGetDescr(rel);

	if (private == NIL)
		return NULL;
	conflict = palloc0(sizeof(KalamConflict));
	conflict->sql = strVal(list_nth(private, KALAM_CONFLICT_SQL));
	conflict->alias = intVal(list_nth(private, KALAM_CONFLICT_ALIAS));
	conflict->exprs = list_nth(private, KALAM_CONFLICT_PARAMS);
	conflict->rules = strVal(list_nth(private, KALAM_CONFLICT_RULES));
	if (conflict->rules[0] == '\0')
		conflict->rules = NULL;
	conflict->set = list_nth(private, KALAM_CONFLICT_SET);
	for (AttrNumber attno = 1; returns && attno <= desc->natts; attno++)
	{
		if (kalam_is_stored(TupleDescAttr(desc, attno - 1)))
			conflict->returning = lappend_int(conflict->returning, attno);
	}
	return conflict;
}

void
kalam_conflict_begin(KalamConflict *conflict, KalamConn *conn, EState *estate)
{
	conflict->econtext = CreateExprContext(estate);
	kalam_parameters_prepare(&conflict->params, conn, conflict->exprs, NULL);
}

/*
 * The server has other rules than those that the statement relies on, and has
 * done nothing.  If they do, too, it can be sent again; else PostgreSQL has to
 * look at each row, for which it needs another plan.
 */
void
kalam_conflict_renew(KalamConflict *conflict, KalamConn *conn, KalamTable *table, Relation rel)
{
	MemoryContext old = MemoryContextSwitchTo(GetMemoryChunkContext(conflict));
	bool		hold = kalam_rules_hold(conn, table, rel, conflict->set, &conflict->rules);

	MemoryContextSwitchTo(old);
	if (!hold)
		ereport(ERROR,
				(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
				 errmsg("could not execute ON CONFLICT DO UPDATE due to concurrent ALTER TABLE of the remote table"),
				 errdetail("The server does not enforce all constraints of foreign table \"%s\" any more.",
						   RelationGetRelationName(rel)),
				 errhint("The transaction might succeed if retried.")));
}

/*
 * Sends one row; slot becomes what the table has now of it.  False if the row
 * that is there was left as it is.
 */
bool
kalam_conflict_row(KalamModify *state, TupleTableSlot *slot)
{
	PGresult   *res;
	bool		found;

	if (state->reader == NULL)
		state->reader = kalam_reader_create(state->cxt, RelationGetDescr(state->spec.rel), state->spec.rel,
											state->spec.conn, state->spec.conflict->returning);
	if (state->row_result != NULL)
		kalam_result_free(state->row_result);
	state->row_result = NULL;
	res = kalam_batch_send_row(state->batch, state->values, state->nulls);
	kalam_reader_take(state->reader, res, true);
	found = kalam_reader_next(state->reader, slot);
	slot->tts_tableOid = RelationGetRelid(state->spec.rel);
	state->row_result = res;
	return found;
}

/* ---------- registration ---------- */

void
kalam_conflict_routine(FdwRoutine *routine)
{
	routine->PlanForeignModify = kalam_PlanForeignModify;
}

void
kalam_conflict_init(void)
{
	previous_planner = planner_hook;
	planner_hook = kalam_planner;
}
