/*
 * kalam_upper.c: what a query does with its joined rows, made on the server:
 * groups and aggregates, window functions, DISTINCT, ORDER BY and LIMIT.
 *
 * Each step's KalamRelInfo is a copy of the one below with a clause more.  What
 * of its output the server cannot compute is computed here from parts that it
 * can.  ORDER BY and LIMIT change no rows: they become paths of the relation
 * below, which can compute an output of any kind on top of what it fetches.
 *
 * A step above rows that are still filtered here would see too many: it stays.
 */
#include "postgres.h"

#include "nodes/makefuncs.h"
#include "nodes/nodeFuncs.h"
#include "optimizer/clauses.h"
#include "optimizer/cost.h"
#include "optimizer/optimizer.h"
#include "optimizer/pathnode.h"
#include "optimizer/tlist.h"
#include "utils/selfuncs.h"

#include "kalam_read.h"

/*
 * Of two paths whose costs differ by less than a percent PostgreSQL keeps the
 * one it met first, and that is its own.  What is sent must then be cheaper by
 * more, at each step anew.
 */
#define STEP_DISCOUNT 0.97

#define MAX_SETS 64				/* of GROUPING SETS, written out */

/* ---------- steps ---------- */

static KalamRelInfo *
step_above(KalamRelInfo *below)
{
	KalamRelInfo *info = palloc(sizeof(KalamRelInfo));

	*info = *below;
	if (!below->steps)
		info->from = below;
	info->steps = true;
	info->discount = STEP_DISCOUNT * (below->steps ? below->discount : 1);
	info->outputs = NIL;
	info->junk = NIL;
	return info;
}

/* Are the rows below what this step has to see? */
static bool
step_allowed(RelOptInfo *input)
{
	KalamRelInfo *info = input->fdw_private;

	return info != NULL && info->local_conds == NIL && !info->gated && !info->locked && info->input == NULL;
}

static void
add_step_path(PlannerInfo *root, RelOptInfo *output, RelOptInfo *parent, PathTarget *target, double rows,
			  const KalamEstimate *estimate, double discount, List *pathkeys, List *private)
{
	ForeignPath *path;

	path = create_foreign_upper_path(root, parent, target, rows,
#if PG_VERSION_NUM >= 180000
									 0,
#endif
									 estimate->startup_cost * discount, estimate->total_cost * discount, pathkeys, NULL,
#if PG_VERSION_NUM >= 170000
									 NIL,
#endif
									 private);
	add_path(output, (Path *) path);
}

/* The step's own path: so many rows, made with so much work per row below; and in this order, if any. */
static void
finish_step(PlannerInfo *root, RelOptInfo *output, PathTarget *target, KalamRelInfo *info, double rows, double work,
			List *pathkeys, List *order)
{
	KalamEstimate estimate;

	info->work += work * cpu_operator_cost * info->rows;
	info->rows = rows;
	cost_qual_eval(&info->local_cost, info->local_conds, root);
	kalam_estimate_rows(info, target, rows, info->work, &estimate);
	estimate.startup_cost += info->work;
	output->fdw_private = info;
	add_step_path(root, output, output, target, rows, &estimate, info->discount, pathkeys,
				  order == NIL ? NIL : list_make3(order, NULL, NULL));
}

/* ---------- outputs ---------- */

static void
add_output(KalamRelInfo *info, Expr *expr)
{
	if (!list_member(info->outputs, expr))
		info->outputs = lappend(info->outputs, expr);
}

/* The expression, or else the parts of these kinds that it is computed from here. */
static bool
add_expression(KalamRelInfo *info, Expr *expr, int parts)
{
	ListCell   *lc;

	if (kalam_is_parameter(info->scope.relids, expr))
		return true;			/* known here */
	if (kalam_is_shippable(&info->scope, expr))
	{
		add_output(info, expr);
		return true;
	}
	foreach(lc, pull_var_clause((Node *) expr, parts | PVC_INCLUDE_PLACEHOLDERS))
	{
		Expr	   *part = lfirst(lc);

		if (!kalam_is_shippable(&info->scope, part))
			return false;
		if (!(IsA(part, Var) || IsA(part, PlaceHolderVar)) || info->groups == NIL)	/* columns of groups are there already, or part of one */
			add_output(info, part);
	}
	return true;
}

/* ---------- GROUP BY, aggregates, HAVING ---------- */

static bool
add_group(KalamRelInfo *info, Expr *expr, SortGroupClause *clause)
{
	TargetEntry *key;

	if (info->sets != NIL && IsA(expr, PlaceHolderVar) &&
		kalam_is_parameter(info->scope.relids, ((PlaceHolderVar *) expr)->phexpr))
		return false;			/* so since 18 */
	if (kalam_is_parameter(info->scope.relids, expr))
		return info->sets == NIL && !contain_volatile_functions((Node *) expr);	/* one value: it divides nothing */
	if (!kalam_is_shippable(&info->scope, expr) ||
		!kalam_operator_allowed(info->scope.conn, clause->eqop, exprCollation((Node *) expr)))
		return false;
	info->groups = lappend(info->groups, expr);
	key = makeTargetEntry(expr, list_length(info->groups), NULL, false);
	key->ressortgroupref = clause->tleSortGroupRef;
	info->scope.group_keys = lappend(info->scope.group_keys, key);
	add_output(info, expr);
	return true;
}

/*
 * Below windows PostgreSQL (since 16) does not mark what is equal to a constant
 * or to another key as grouped by, and hands it on like any row's value.
 */
static bool
add_implied_groups(PlannerInfo *root, KalamRelInfo *info, PathTarget *target)
{
	ListCell   *lc;

	foreach(lc, root->parse->groupClause)
	{
		SortGroupClause *clause = lfirst_node(SortGroupClause, lc);
		Expr	   *expr = (Expr *) get_sortgroupclause_expr(clause, root->processed_tlist);

		if (!list_member(info->groups, expr) && !add_group(info, expr, clause))
			return false;
	}
	foreach(lc, target->exprs)
	{
		Expr	   *expr = lfirst(lc);

		if ((IsA(expr, Var) || IsA(expr, PlaceHolderVar)) && !list_member(info->groups, expr) &&
			!kalam_is_parameter(info->scope.relids, expr))
			return false;		/* part of a key */
	}
	return true;
}

static bool
add_groups(PlannerInfo *root, KalamRelInfo *info, PathTarget *target)
{
	for (int i = 0; i < list_length(target->exprs); i++)
	{
		Index		ref = get_pathtarget_sortgroupref(target, i);
		SortGroupClause *clause = ref ? get_sortgroupref_clause_noerr(ref, root->parse->groupClause) : NULL;

		if (clause && !add_group(info, list_nth(target->exprs, i), clause))
			return false;
	}
	if (info->sets == NIL && !add_implied_groups(root, info, target))
		return false;
	info->nonempty = root->parse->groupClause != NIL && info->groups == NIL;
	return info->sets == NIL || list_length(info->scope.group_keys) == list_length(root->parse->groupClause);
}

static bool
add_having(KalamRelInfo *info, List *quals)
{
	ListCell   *lc;

	foreach(lc, quals)
	{
		Expr	   *qual = lfirst(lc);

		if (kalam_is_shippable(&info->scope, qual))
			info->having = lappend(info->having, qual);
		else if (add_expression(info, qual, PVC_INCLUDE_AGGREGATES))
			info->local_conds = lappend(info->local_conds, qual);
		else
			return false;
	}
	return true;
}

static bool
add_expressions(KalamRelInfo *info, List *exprs, int parts)
{
	ListCell   *lc;

	foreach(lc, exprs)
	{
		if (!add_expression(info, lfirst(lc), parts))
			return false;
	}
	return true;
}

static double
number_of_groups(PlannerInfo *root, KalamRelInfo *info)
{
	double		groups = 0;
	ListCell   *lc;

	if (info->sets == NIL)
		return info->groups == NIL ? 1 : estimate_num_groups(root, info->groups, info->rows, NULL, NULL);
	foreach(lc, info->sets)
	{
		List	   *exprs = NIL;
		ListCell   *ref;

		foreach(ref, (List *) lfirst(lc))
			exprs = lappend(exprs, get_sortgroupref_tle(lfirst_int(ref), info->scope.group_keys)->expr);
		groups += exprs == NIL ? 1 : estimate_num_groups(root, exprs, info->rows, NULL, NULL);
	}
	return groups;
}

/* PostgreSQL has written them out by now, as lists of references to what is grouped by. */
static bool
sets_allowed(KalamRelInfo *info, List *sets)
{
	return sets == NIL || (list_length(sets) <= MAX_SETS && kalam_server_fact(info->scope.conn, "grouping_sets") != NULL);
}

static void
add_grouping(PlannerInfo *root, RelOptInfo *input, RelOptInfo *output, GroupPathExtraData *extra)
{
	Query	   *parse = root->parse;
	KalamRelInfo *info;
	List	   *quals = (List *) extra->havingQual;
	double		groups;

	if (extra->patype == PARTITIONWISE_AGGREGATE_PARTIAL ||
		(!parse->groupClause && !parse->groupingSets && !parse->hasAggs && !root->hasHavingQual))
		return;
	info = step_above(input->fdw_private);
	if (!sets_allowed(info, parse->groupingSets))
		return;
	info->scope.grouped = true;
	info->sets = parse->groupingSets;
	if (!add_groups(root, info, output->reltarget) ||
		!add_expressions(info, output->reltarget->exprs, PVC_INCLUDE_AGGREGATES) || !add_having(info, quals))
		return;
	groups = number_of_groups(root, info) * clauselist_selectivity(root, info->having, 0, JOIN_INNER, NULL);
	finish_step(root, output, output->reltarget, info, clamp_row_est(groups), 0.25 * Max(list_length(info->sets), 1),
				NIL, NIL);
}

/* ---------- window functions ---------- */

static bool
window_allowed(KalamRelInfo *info, WindowClause *window, List *tlist)
{
	ListCell   *lc;

	foreach(lc, window->partitionClause)
	{
		SortGroupClause *clause = lfirst_node(SortGroupClause, lc);
		Node	   *expr = get_sortgroupclause_expr(clause, tlist);

		if (!kalam_operator_allowed(info->scope.conn, clause->eqop, exprCollation(expr)))
			return false;
		info->scope.window_exprs = lappend(info->scope.window_exprs, expr);
	}
	foreach(lc, window->orderClause)
	{
		SortGroupClause *clause = lfirst_node(SortGroupClause, lc);
		Node	   *expr = get_sortgroupclause_expr(clause, tlist);

		if (!kalam_sort_allowed(info->scope.conn, clause, exprCollation(expr)))
			return false;
		info->scope.window_exprs = lappend(info->scope.window_exprs, expr);
	}
	return true;
}

/*
 * What PostgreSQL has taken from a query above, which thereby no longer asks for
 * it: a window may stop where its value, which only grows (or only falls), does
 * not satisfy a comparison any more, and gives no rows that do not.
 */
#if PG_VERSION_NUM >= 170000
static bool
add_run_conditions(Node *node, List **conds)
{
	if (node == NULL)
		return false;
	if (IsA(node, WindowFunc))
	{
		WindowFunc *func = (WindowFunc *) node;
		ListCell   *lc;

		foreach(lc, func->runCondition)
		{
			WindowFuncRunCondition *cond = lfirst_node(WindowFuncRunCondition, lc);
			WindowFunc *value = copyObject(func);
			Expr	   *left = cond->wfunc_left ? (Expr *) value : cond->arg;
			Expr	   *right = cond->wfunc_left ? cond->arg : (Expr *) value;

			value->runCondition = NIL;
			*conds = list_append_unique(*conds, make_opclause(cond->opno, BOOLOID, false, left, right, InvalidOid,
															  cond->inputcollid));
		}
	}
	return expression_tree_walker(node, add_run_conditions, conds);
}
#endif

static List *
run_conditions(PlannerInfo *root, PathTarget *target)
{
	List	   *conds = NIL;
#if PG_VERSION_NUM >= 170000
	add_run_conditions((Node *) target->exprs, &conds);
#else
	ListCell   *lc;

	foreach(lc, root->parse->windowClause)
		conds = list_concat(conds, lfirst_node(WindowClause, lc)->runCondition);
#endif
	return conds;
}

static void
add_windows(PlannerInfo *root, RelOptInfo *input, RelOptInfo *output)
{
	KalamRelInfo *info = step_above(input->fdw_private);
	PathTarget *target = root->upper_targets[UPPERREL_WINDOW];
	ListCell   *lc;

	if (root->parse->hasTargetSRFs)
		return;
	info->scope.windows = root->parse->windowClause;
	foreach(lc, root->parse->windowClause)
	{
		if (!window_allowed(info, lfirst_node(WindowClause, lc), root->processed_tlist))
			return;
	}
	info->qualify = run_conditions(root, target);
	foreach(lc, info->qualify)
	{
		if (!kalam_is_shippable(&info->scope, lfirst(lc)))
			return;
	}
	if (!add_expressions(info, target->exprs, PVC_INCLUDE_AGGREGATES | PVC_INCLUDE_WINDOWFUNCS))
		return;
	finish_step(root, output, target, info,
				clamp_row_est(info->rows * clauselist_selectivity(root, info->qualify, 0, JOIN_INNER, NULL)), 0.5, NIL, NIL);
}

/* ---------- DISTINCT ---------- */

/*
 * The first row of each group, in the order that the query wants: then the rows
 * come in it, too.
 */
static void
add_distinct_on(PlannerInfo *root, RelOptInfo *input, RelOptInfo *output)
{
	Query	   *parse = root->parse;
	KalamRelInfo *info = step_above(input->fdw_private);
	PathTarget *target = root->upper_targets[UPPERREL_DISTINCT];
	List	   *pathkeys = list_length(root->distinct_pathkeys) < list_length(root->sort_pathkeys) ?
		root->sort_pathkeys : root->distinct_pathkeys;
	List	   *order;
	ListCell   *lc;

	if (parse->hasTargetSRFs || pathkeys == NIL ||
		!add_expressions(info, target->exprs, PVC_INCLUDE_AGGREGATES | PVC_INCLUDE_WINDOWFUNCS))
		return;
	foreach(lc, parse->distinctClause)
	{
		SortGroupClause *clause = lfirst_node(SortGroupClause, lc);
		Expr	   *expr = (Expr *) get_sortgroupclause_expr(clause, root->processed_tlist);

		if (kalam_is_parameter(info->scope.relids, expr))
			continue;
		if (!list_member(info->outputs, expr) ||
			!kalam_operator_allowed(info->scope.conn, clause->eqop, exprCollation((Node *) expr)))
			return;
		info->distinct_on = lappend(info->distinct_on, expr);
	}
	order = kalam_order(info, pathkeys);
	if (info->distinct_on == NIL || order == NIL)
		return;
	finish_step(root, output, target, info, estimate_num_groups(root, info->distinct_on, info->rows, NULL, NULL), 0.75,
				pathkeys, order);
}

static void
add_distinct(PlannerInfo *root, RelOptInfo *input, RelOptInfo *output)
{
	Query	   *parse = root->parse;
	KalamRelInfo *info = step_above(input->fdw_private);
	PathTarget *target = root->upper_targets[UPPERREL_DISTINCT];
	double		rows = 1;

	if (parse->hasTargetSRFs)
		return;
	for (int i = 0; i < list_length(target->exprs); i++)
	{
		Expr	   *expr = list_nth(target->exprs, i);
		Index		ref = get_pathtarget_sortgroupref(target, i);
		SortGroupClause *clause = ref ? get_sortgroupref_clause_noerr(ref, parse->distinctClause) : NULL;

		if (kalam_is_parameter(info->scope.relids, expr))
			continue;			/* the same in all rows */
		if (clause == NULL)
		{
			/* grouped by, and not selected: of no interest any more, but in the target */
			info->junk = lappend(info->junk, expr);
			continue;
		}
		if (!kalam_is_shippable(&info->scope, expr) ||
			!kalam_operator_allowed(info->scope.conn, clause->eqop, exprCollation((Node *) expr)))
			return;
		add_output(info, expr);
	}
	info->distinct = true;
	if (info->outputs != NIL)
		rows = estimate_num_groups(root, info->outputs, info->rows, NULL, NULL);
	finish_step(root, output, target, info, rows, 0.25, NIL, NIL);
}

/* ---------- ORDER BY ---------- */

/* ORDER BY and LIMIT cost what the rows below them cost, and a little. */
static void
rows_below(RelOptInfo *input, PathTarget *target, KalamEstimate *estimate)
{
	KalamRelInfo *info = input->fdw_private;

	kalam_estimate_rows(info, target, info->rows, info->work, estimate);
}

static void
add_ordering(PlannerInfo *root, RelOptInfo *input, RelOptInfo *output)
{
	KalamRelInfo *below = input->fdw_private;
	KalamRelInfo *info;
	PathTarget *target = root->upper_targets[UPPERREL_ORDERED];
	List	   *order = kalam_order(below, root->sort_pathkeys);
	KalamEstimate estimate;

	if (order == NIL || root->parse->hasTargetSRFs)
		return;
	info = palloc(sizeof(KalamRelInfo));
	*info = *below;
	info->input = input;
	info->order = order;
	info->discount = STEP_DISCOUNT * (below->steps ? below->discount : 1);
	output->fdw_private = info;
	rows_below(input, target, &estimate);
	kalam_estimate_sort(&estimate, below->rows);
	add_step_path(root, output, input, target, input->rows > 0 ? input->rows : below->rows, &estimate,
				  info->discount, root->sort_pathkeys, list_make3(order, NULL, NULL));
}

/* ---------- LIMIT and OFFSET ---------- */

static bool
number_allowed(KalamRelInfo *info, Node *number)
{
	return number == NULL || (kalam_is_parameter(info->scope.relids, (Expr *) number) &&
							  kalam_is_shippable(&info->scope, (Expr *) number));
}

static void
add_limit(PlannerInfo *root, RelOptInfo *input, RelOptInfo *output, FinalPathExtraData *extra)
{
	Query	   *parse = root->parse;
	KalamRelInfo *info = input->fdw_private;
	RelOptInfo *parent = info->input ? info->input : input;
	PathTarget *target = root->upper_targets[UPPERREL_FINAL];
	KalamEstimate estimate;
	double		rows;

	if (!extra->limit_needed || parse->commandType != CMD_SELECT || parse->hasTargetSRFs || parse->rowMarks != NIL ||
		parse->limitOption == LIMIT_OPTION_WITH_TIES || (root->sort_pathkeys != NIL && info->input == NULL) ||
		!number_allowed(info, parse->limitCount) || !number_allowed(info, parse->limitOffset))
		return;
	rows_below(parent, target, &estimate);
	if (info->input)
		kalam_estimate_sort(&estimate, info->rows);
	rows = info->rows;
	/* rows that LIMIT would leave here are not even made */
	estimate.total_cost = estimate.startup_cost + 0.5 * (estimate.total_cost - estimate.startup_cost);
	adjust_limit_rows_costs(&rows, &estimate.startup_cost, &estimate.total_cost, extra->offset_est, extra->count_est);
	add_step_path(root, output, parent, target, rows, &estimate,
				  STEP_DISCOUNT * (info->input || info->steps ? info->discount : 1),
				  info->input ? root->sort_pathkeys : NIL,
				  list_make3(info->order, parse->limitCount, parse->limitOffset));
}

/* ---------- all of them ---------- */

void
kalam_GetForeignUpperPaths(PlannerInfo *root, UpperRelationKind stage, RelOptInfo *input_rel, RelOptInfo *output_rel,
						   void *extra)
{
	KalamRelInfo *info = input_rel->fdw_private;

	if (info == NULL || output_rel->fdw_private != NULL || info->local_conds != NIL || info->locked)
		return;
	switch (stage)
	{
		case UPPERREL_GROUP_AGG:
			if (step_allowed(input_rel))
				add_grouping(root, input_rel, output_rel, extra);
			break;
		case UPPERREL_WINDOW:
			if (step_allowed(input_rel))
				add_windows(root, input_rel, output_rel);
			break;
		case UPPERREL_DISTINCT:
			if (!step_allowed(input_rel))
				break;
			if (root->parse->hasDistinctOn)
				add_distinct_on(root, input_rel, output_rel);
			else
				add_distinct(root, input_rel, output_rel);
			break;
		case UPPERREL_ORDERED:
			add_ordering(root, input_rel, output_rel);
			break;
		case UPPERREL_FINAL:
			add_limit(root, input_rel, output_rel, extra);
			break;
		default:
			break;
	}
}
