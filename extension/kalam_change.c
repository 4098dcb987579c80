/*
 * kalam_change.c: which UPDATE and DELETE are sent whole, and their plans.
 *
 * That takes a plan which only scans the table, or joins it with others of its
 * server; conditions and new values that the server evaluates as PostgreSQL
 * does; and nothing that PostgreSQL has to do with each row: no row triggers,
 * WITH CHECK OPTION or generated columns (of which PostgreSQL itself takes care
 * before it asks), no CHECK that only PostgreSQL knows, no partition that the
 * row could have to leave.  Anything else is done row by row: kalam_modify.c.
 *
 * A join under UPDATE or DELETE has a path only if all of this holds: the rows
 * of any other plan would have to be locked one table at a time.
 *
 * ForeignScan.fdw_private is then a list, by KalamDirectPart; fdw_exprs are the
 * statement's parameters.
 */
#include "postgres.h"

#include "access/sysattr.h"
#include "access/table.h"
#include "nodes/makefuncs.h"
#include "nodes/nodeFuncs.h"
#include "optimizer/appendinfo.h"
#include "optimizer/optimizer.h"
#include "optimizer/pathnode.h"
#include "optimizer/plancat.h"
#include "optimizer/tlist.h"
#include "parser/parsetree.h"
#include "utils/lsyscache.h"
#if PG_VERSION_NUM >= 180000
#include "rewrite/rewriteManip.h"
#endif

#include "kalam_modify.h"
#include "kalam_read.h"

static bool kalam_PlanDirectModify(PlannerInfo *root, ModifyTable *plan, Index rtindex, int subplan_index);

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
	if (scan->scan.scanrelid == 0)
		return bms_is_member(rtindex, scan->fs_relids) ? scan : NULL;
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

/* Columns of the target that RETURNING names. */
static List *
returned_columns(List *returning, Index rtindex, Relation rel)
{
	TupleDesc	desc = RelationGetDescr(rel);
	Bitmapset  *used = NULL;
	List	   *vars = NIL;
	bool		whole_row;

	pull_varattnos((Node *) returning, rtindex, &used);
	whole_row = bms_is_member(0 - FirstLowInvalidHeapAttributeNumber, used);
	for (AttrNumber attno = 1; attno <= desc->natts; attno++)
	{
		Form_pg_attribute att = TupleDescAttr(desc, attno - 1);

		if (kalam_is_stored(att) &&
			(whole_row || bms_is_member(attno - FirstLowInvalidHeapAttributeNumber, used)))
			vars = lappend(vars, makeVar(rtindex, attno, att->atttypid, att->atttypmod, att->attcollation, 0));
	}
	return vars;
}

/* Those of the other tables are added; false if it names what they cannot give. */
static bool
add_other_columns(List *returning, KalamChange *change)
{
	ListCell   *lc;

	foreach(lc, pull_var_clause((Node *) returning, PVC_INCLUDE_PLACEHOLDERS))
	{
		Var		   *var = lfirst(lc);

		if (!IsA(var, Var))
			return false;
		if (var->varno == change->target->rtindex)
		{
			if (var->varattno < 0 && var->varattno != TableOidAttributeNumber)
				return false;
			continue;
		}
		if (var->varattno <= 0 || !bms_is_member(var->varno, change->from->visible))
			return false;
		change->returning = list_append_unique(change->returning, var);
	}
	return true;
}

/* ---------- joins ---------- */

static KalamRelInfo *
find_target(KalamRelInfo *info, Index rtindex)
{
	if (info->table != NULL)
		return info->rtindex == rtindex ? info : NULL;
	return find_target(bms_is_member(rtindex, info->outer->scope.relids) ? info->outer : info->inner, rtindex);
}

/* All that it says; false if some of it cannot be sent. */
static bool
collect_join(PlannerInfo *root, KalamRelInfo *join, List *returning, Relation rel, KalamChange *change)
{
	change->operation = root->parse->commandType;
	change->target = find_target(join, root->parse->resultRelation);
	change->from = join;
	change->scope = &join->scope;
	change->conds = join->conds;
	change->returning = returned_columns(returning, change->target->rtindex, rel);
	return join->local_conds == NIL && (change->operation == CMD_DELETE || collect_values(root, rel, change)) &&
		add_other_columns(returning, change);
}

bool
kalam_may_change_whole(PlannerInfo *root)
{
	Query	   *parse = root->parse;
	int			target = parse->resultRelation;
	RangeTblEntry *entry = planner_rt_fetch(target, root);

	if (bms_membership(root->all_result_relids) != BMS_SINGLETON || entry->relkind != RELKIND_FOREIGN_TABLE ||
		find_base_rel(root, target)->fdwroutine == NULL ||
		find_base_rel(root, target)->fdwroutine->PlanDirectModify != kalam_PlanDirectModify)
		return false;
#if PG_VERSION_NUM >= 180000
	if (contain_vars_returning_old_or_new((Node *) parse->returningList))
		return false;
#endif
	/* as PostgreSQL asks, before it asks us */
	return parse->withCheckOptions == NIL && !has_row_triggers(root, target, parse->commandType) &&
		!has_stored_generated_columns(root, target);
}

bool
kalam_join_changes_whole(PlannerInfo *root, KalamRelInfo *join)
{
	Relation	rel = table_open(planner_rt_fetch(root->parse->resultRelation, root)->relid, NoLock);
	KalamChange change = {0};
	bool		result = collect_join(root, join, root->parse->returningList, rel, &change);

	table_close(rel, NoLock);
	return result;
}

/* ---------- planning ---------- */

/*
 * The scan still has the new values among its columns.  Nobody wants them any
 * more, and to compute them of the rows that come back could fail.  (Which of
 * them are junk is not told in the scan of a partition.)  Of a join's scan the
 * columns stay that it still gives.
 */
static void
forget_values(ForeignScan *scan)
{
	ListCell   *lc;

	foreach(lc, scan->scan.plan.targetlist)
	{
		TargetEntry *entry = lfirst_node(TargetEntry, lc);

		if (scan->scan.scanrelid == 0 ? tlist_member(entry->expr, scan->fdw_scan_tlist) == NULL :
			!IsA(entry->expr, Var))
			entry->expr = (Expr *) makeNullConst(exprType((Node *) entry->expr), exprTypmod((Node *) entry->expr),
												 exprCollation((Node *) entry->expr));
	}
}

static Node *
change_text(const KalamChange *change, List *returning, List **params)
{
	KalamChange copy = *change;
	StringInfoData sql;

	copy.returning = returning;
	*params = NIL;
	initStringInfo(&sql);
	kalam_deparse_change(&sql, &copy, params);
	return (Node *) makeString(sql.data);
}

/* Where it relies on rules that may be others by then, all of the target's columns follow those that are wanted. */
static List *
whole_columns(const KalamChange *change, Relation rel)
{
	List	   *whole = list_make1(makeWholeRowVar(planner_rt_fetch(change->target->rtindex, change->target->root),
												   change->target->rtindex, 0, false));

	return change->relies_on == NULL ? list_copy(change->returning) :
		list_concat_unique(list_copy(change->returning), returned_columns(whole, change->target->rtindex, rel));
}

/* attrs: where the scan's row has these columns */
static void
finish_plan(ForeignScan *scan, ModifyTable *plan, const KalamChange *change, List *whole, List *attrs, List *origins)
{
	List	   *params;
	List	   *wanted = list_truncate(list_copy(attrs), list_length(change->returning));
	Node	   *whole_sql = change_text(change, whole, &params);
	Node	   *sql = change_text(change, change->returning, &params);

	scan->operation = plan->operation;
	scan->resultRelation = change->target->rtindex;
	scan->scan.plan.qual = NIL;
	scan->scan.plan.async_capable = false;
	scan->fdw_recheck_quals = NIL;
	scan->fdw_exprs = params;
	scan->fdw_private = list_make5(sql, wanted, makeBoolean(plan->returningLists != NIL),
								   makeBoolean(plan->canSetTag), origins);
	scan->fdw_private = lappend(scan->fdw_private,
								makeString(change->from ? kalam_relation_names(change->from) : ""));
	scan->fdw_private = lappend(scan->fdw_private, makeString(pstrdup(change->relies_on ? change->relies_on : "")));
	scan->fdw_private = lappend(scan->fdw_private, change->attnos);
	scan->fdw_private = lappend(scan->fdw_private, whole_sql);
	scan->fdw_private = lappend(scan->fdw_private, attrs);
}

static bool
plan_change(PlannerInfo *root, ModifyTable *plan, ForeignScan *scan, List *returning, Relation rel)
{
	KalamRelInfo *info = find_base_rel(root, scan->scan.scanrelid)->fdw_private;
	KalamScope	scope = info->scope;
	KalamChange change = {.operation = plan->operation, .target = info, .scope = &scope};
	List	   *whole;
	List	   *attrs = NIL;
	ListCell   *lc;

	scope.plain = false;
	if ((plan->operation == CMD_UPDATE && !collect_values(root, rel, &change)) || !collect_conditions(scan, &change))
		return false;
	change.returning = returned_columns(returning, info->rtindex, rel);
	whole = whole_columns(&change, rel);
	foreach(lc, whole)
		attrs = lappend_int(attrs, lfirst_node(Var, lc)->varattno);
	if (plan->operation == CMD_UPDATE)
		forget_values(scan);
	finish_plan(scan, plan, &change, whole, attrs, NIL);
	return true;
}

/* Its path was made because this can be done, and nothing else can be done with it. */
static bool
plan_join_change(PlannerInfo *root, ModifyTable *plan, ForeignScan *scan, List *returning, Relation rel)
{
	KalamRelInfo *join = find_join_rel(root, scan->fs_relids)->fdw_private;
	KalamChange change = {0};
	List	   *whole;
	List	   *attrs = NIL;
	List	   *origins = NIL;
	ListCell   *lc;

	if (!collect_join(root, join, returning, rel, &change))
		elog(ERROR, "an UPDATE or DELETE that was to be sent whole cannot be");
	whole = whole_columns(&change, rel);
	scan->fdw_scan_tlist = add_to_flat_tlist(NIL, whole);
	foreach(lc, whole)
	{
		Var		   *var = lfirst_node(Var, lc);

		attrs = lappend_int(attrs, foreach_current_index(lc) + 1);
		origins = lappend_int(origins, var->varno == change.target->rtindex ? var->varattno : 0);
	}
	forget_values(scan);
	finish_plan(scan, plan, &change, whole, attrs, origins);
	return true;
}

static bool
kalam_PlanDirectModify(PlannerInfo *root, ModifyTable *plan, Index rtindex, int subplan_index)
{
	ForeignScan *scan;
	List	   *returning;
	Relation	rel;
	bool		done;

	if (plan->operation != CMD_UPDATE && plan->operation != CMD_DELETE)
		return false;
	scan = find_scan(plan, rtindex, subplan_index);
	if (scan == NULL)
		return false;
	returning = plan->returningLists == NIL ? NIL : list_nth(plan->returningLists, subplan_index);
	rel = table_open(planner_rt_fetch(rtindex, root)->relid, NoLock);
	done = (scan->scan.scanrelid == 0 ? plan_join_change : plan_change) (root, plan, scan, returning, rel);
	table_close(rel, NoLock);
	return done;
}

void
kalam_change_routine(FdwRoutine *routine)
{
	routine->PlanDirectModify = kalam_PlanDirectModify;
}
