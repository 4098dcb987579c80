/*
 * kalam_join.c: joins of tables of one server, made there.
 *
 * A join becomes part of FROM, or of WHERE where it only asks whether the other
 * side has a row: [NOT] EXISTS.  Conditions of its sides are kept in a list and
 * stand in WHERE, or in ON where an outer join may add rows of NULLs: so the
 * text stays flat.  PostgreSQL offers only joins of one server and role, which
 * have one connection and one tenant.
 *
 * Under UPDATE and DELETE a join is made there only if the whole statement is
 * sent (kalam_direct.c): of the joins below it this file keeps what they are,
 * and adds no paths.  Rows of joins are locked there, too, unless PostgreSQL
 * locks rows of its own tables beside them: then it may have to check the rows
 * again, one table at a time.
 */
#include "postgres.h"

#include "optimizer/cost.h"
#include "optimizer/optimizer.h"
#include "optimizer/pathnode.h"
#include "optimizer/paths.h"
#include "optimizer/restrictinfo.h"

#include "kalam_read.h"

/* ---------- may it be sent? ---------- */

static bool
changes_rows(PlannerInfo *root)
{
	return root->parse->commandType == CMD_UPDATE || root->parse->commandType == CMD_DELETE;
}

/* Does somebody want a row as a value?  Not only PostgreSQL, to check it again. */
static bool
wants_whole_rows(PlannerInfo *root)
{
	ListCell   *lc;
	ListCell   *part;

	foreach(lc, root->processed_tlist)
	{
		TargetEntry *entry = lfirst_node(TargetEntry, lc);

		if (entry->resjunk && entry->ressortgroupref == 0)
			continue;
		foreach(part, pull_var_clause((Node *) entry->expr, PVC_RECURSE_AGGREGATES | PVC_RECURSE_WINDOWFUNCS |
									  PVC_RECURSE_PLACEHOLDERS))
		{
			if (lfirst_node(Var, part)->varattno == 0)
				return true;
		}
	}
	return false;
}

/*
 * PostgreSQL checks rows again when it has waited for a lock on one of its own
 * tables' rows: it would need whole rows of what is joined there.
 */
static bool
locks_local_rows(PlannerInfo *root)
{
	ListCell   *lc;

	foreach(lc, root->rowMarks)
	{
		PlanRowMark *mark = lfirst_node(PlanRowMark, lc);

		if (mark->isParent || RowMarkRequiresRowShareLock(mark->markType))
			return true;
	}
	return false;
}

static bool
query_allows_joins(PlannerInfo *root)
{
	if (changes_rows(root))
		return kalam_may_change_whole(root);
	if (root->parse->commandType != CMD_SELECT && root->parse->commandType != CMD_INSERT)
		return false;
	return root->rowMarks == NIL || (!locks_local_rows(root) && !wants_whole_rows(root));
}

static bool
type_allowed(JoinType type)
{
	switch (type)
	{
		case JOIN_INNER:
		case JOIN_LEFT:
		case JOIN_RIGHT:
		case JOIN_FULL:
		case JOIN_SEMI:
		case JOIN_ANTI:
			return true;
		default:
			return false;
	}
}

static bool
side_allowed(RelOptInfo *rel)
{
	KalamRelInfo *info = rel->fdw_private;

	return info != NULL && info->local_conds == NIL && !info->gated && !info->scope.plain;
}

/* The target of UPDATE and DELETE stands beside FROM, so only what leaves it out of FROM may join it. */
static bool
target_stands_apart(PlannerInfo *root, RelOptInfo *joinrel, RelOptInfo *outer, JoinType type)
{
	int			target = root->parse->resultRelation;

	if (!changes_rows(root) || !bms_is_member(target, joinrel->relids))
		return true;
	return type == JOIN_INNER || ((type == JOIN_SEMI || type == JOIN_ANTI) && bms_is_member(target, outer->relids));
}

List *
kalam_sent_columns(PlannerInfo *root, List *exprs)
{
	List	   *result = NIL;
	ListCell   *lc;

	if (!changes_rows(root) && root->rowMarks == NIL)
		return list_copy(exprs);
	foreach(lc, exprs)
	{
		if (!IsA(lfirst(lc), Var) || lfirst_node(Var, lc)->varattno > 0)
			result = lappend(result, lfirst(lc));
	}
	return result;
}

/* Only columns, of the sides that can be seen, and what is computed of them there. */
static bool
columns_allowed(KalamRelInfo *info, List *exprs)
{
	ListCell   *lc;

	foreach(lc, exprs)
	{
		Node	   *node = lfirst(lc);

		if (IsA(node, PlaceHolderVar))
		{
			if (!bms_is_subset(bms_intersect(pull_varnos(info->root, node), info->root->all_baserels), info->visible) ||
				!kalam_is_shippable(&info->scope, (Expr *) node))
				return false;
		}
		else if (!IsA(node, Var) || ((Var *) node)->varattno <= 0 ||
				 !bms_is_member(((Var *) node)->varno, info->visible))
			return false;
	}
	return true;
}

/* A condition left here must be computed from columns that the join can give. */
static bool
add_local(KalamRelInfo *info, Expr *clause)
{
	if (!columns_allowed(info, pull_var_clause((Node *) clause, PVC_INCLUDE_PLACEHOLDERS)))
		return false;
	info->local_conds = lappend(info->local_conds, clause);
	return true;
}

/*
 * The join's own conditions go to own, those of WHERE above an outer join to
 * info->conds; false if one must be sent and cannot be.
 */
static bool
classify(KalamRelInfo *info, RelOptInfo *joinrel, List *clauses, List **own)
{
	ListCell   *lc;

	foreach(lc, clauses)
	{
		RestrictInfo *rinfo = lfirst_node(RestrictInfo, lc);
		bool		above = IS_OUTER_JOIN(info->jointype) && RINFO_IS_PUSHED_DOWN(rinfo, joinrel->relids);
		bool		sent = kalam_is_shippable(&info->scope, rinfo->clause);

		if (rinfo->pseudoconstant || (above && info->jointype == JOIN_ANTI))
			return false;
		if (sent && above)
			info->conds = lappend(info->conds, rinfo->clause);
		else if (sent)
			*own = lappend(*own, rinfo->clause);
		else if ((!above && info->jointype != JOIN_INNER) || !add_local(info, rinfo->clause))
			return false;
	}
	return true;
}

/* ---------- where the sides' conditions go ---------- */

static void
above_join(KalamRelInfo *info, KalamRelInfo *side)
{
	info->conds = list_concat(info->conds, side->conds);
	info->exists = list_concat(info->exists, side->exists);
}

static void
into_join(KalamRelInfo *info, KalamRelInfo *side)
{
	info->on = list_concat(info->on, side->conds);
	info->on_exists = list_concat(info->on_exists, side->exists);
}

static void
add_exists(KalamRelInfo *info)
{
	KalamExists *exists = palloc(sizeof(KalamExists));

	exists->inner = info->inner;
	exists->conds = info->on;
	exists->anti = info->jointype == JOIN_ANTI;
	info->on = NIL;
	info->exists = lappend(info->exists, exists);
}

/*
 * May NULLs stand for all that is wanted of a side's row?  For a column they
 * do; a value computed of columns is NULL only as an output of a SELECT.
 */
static bool
has_placeholder(KalamRelInfo *side)
{
	ListCell   *lc;

	foreach(lc, side->columns)
	{
		if (IsA(lfirst(lc), PlaceHolderVar))
			return true;
	}
	return false;
}

/* A side whose rows an outer join may replace by NULLs; its conditions belong to the join, or to the SELECT that it is. */
static bool
nullable_side(KalamRelInfo *info, KalamRelInfo *side)
{
	bool		wrapped = has_placeholder(side);

	if (!wrapped)
		into_join(info, side);
	return wrapped;
}

/* A side of a full join filters its rows before it. */
static bool
full_side(KalamRelInfo *side)
{
	return has_placeholder(side) || side->conds != NIL || side->exists != NIL;
}

static void
place_conditions(KalamRelInfo *info)
{
	switch (info->jointype)
	{
		case JOIN_LEFT:
			above_join(info, info->outer);
			info->wrap_inner = nullable_side(info, info->inner);
			break;
		case JOIN_RIGHT:
			above_join(info, info->inner);
			info->wrap_outer = nullable_side(info, info->outer);
			break;
		case JOIN_FULL:
			info->wrap_outer = full_side(info->outer);
			info->wrap_inner = full_side(info->inner);
			break;
		case JOIN_SEMI:
		case JOIN_ANTI:
			above_join(info, info->outer);
			add_exists(info);
			break;
		default:
			above_join(info, info->outer);
			above_join(info, info->inner);
	}
}

/* ---------- paths ---------- */

static KalamRelInfo *
join_info(PlannerInfo *root, RelOptInfo *joinrel, KalamRelInfo *outer, KalamRelInfo *inner, JoinType jointype,
		  List *clauses)
{
	KalamRelInfo *info = palloc0(sizeof(KalamRelInfo));
	bool		asks = jointype == JOIN_SEMI || jointype == JOIN_ANTI;

	info->root = info->scope.root = root;
	info->relids = joinrel->relids;
	info->outer = outer;
	info->inner = inner;
	info->locked = outer->locked || inner->locked;
	info->jointype = jointype;
	info->scope.conn = outer->scope.conn;
	info->scope.relids = bms_union(outer->scope.relids, inner->scope.relids);
	info->visible = asks ? outer->visible : bms_union(outer->visible, inner->visible);
	info->startup_cost = Max(outer->startup_cost, inner->startup_cost);
	info->tuple_cost = Max(outer->tuple_cost, inner->tuple_cost);
	info->columns = kalam_sent_columns(root, joinrel->reltarget->exprs);
	if (outer->scope.conn != inner->scope.conn || !columns_allowed(info, info->columns) ||
		!classify(info, joinrel, clauses, &info->on))
		return NULL;
	place_conditions(info);
	cost_qual_eval(&info->local_cost, info->local_conds, root);
	info->rows = joinrel->rows;
	info->work = outer->work + inner->work + cpu_operator_cost * (outer->rows + inner->rows + joinrel->rows);
	return info;
}

static void
add_join_path(PlannerInfo *root, RelOptInfo *joinrel, const KalamEstimate *estimate, List *pathkeys, List *private)
{
	ForeignPath *path;

	path = create_foreign_join_path(root, joinrel, NULL, joinrel->rows,
#if PG_VERSION_NUM >= 180000
									0,
#endif
									estimate->startup_cost, estimate->total_cost, pathkeys, joinrel->lateral_relids, NULL,
#if PG_VERSION_NUM >= 170000
									NIL,
#endif
									private);
	add_path(joinrel, (Path *) path);
}

static void
add_sorted_paths(PlannerInfo *root, RelOptInfo *joinrel, KalamRelInfo *info, KalamEstimate estimate)
{
	List	   *order = kalam_order(info, root->query_pathkeys);
	KalamEstimate merged = estimate;
	ListCell   *lc;

	kalam_estimate_sort(&estimate, estimate.fetched);
	if (order != NIL)
		add_join_path(root, joinrel, &estimate, root->query_pathkeys, list_make3(order, NULL, NULL));
	kalam_estimate_merge(info, &merged);
	foreach(lc, kalam_merge_orders(root, joinrel, info))
		add_join_path(root, joinrel, &merged, lfirst(lc), list_make3(kalam_order(info, lfirst(lc)), NULL, NULL));
}

/* Of UPDATE and DELETE: the whole statement, or nothing.  No row travels. */
static void
add_change_path(PlannerInfo *root, RelOptInfo *joinrel, KalamRelInfo *info)
{
	KalamEstimate estimate;

	if (!bms_is_subset(root->all_baserels, joinrel->relids) || !kalam_join_changes_whole(root, info))
		return;
	kalam_estimate_rows(info, joinrel->reltarget, 0, info->work, &estimate);
	add_join_path(root, joinrel, &estimate, NIL, NIL);
}

void
kalam_GetForeignJoinPaths(PlannerInfo *root, RelOptInfo *joinrel, RelOptInfo *outerrel, RelOptInfo *innerrel,
						  JoinType jointype, JoinPathExtraData *extra)
{
	KalamRelInfo *info;
	KalamEstimate estimate;

	if (joinrel->fdw_private != NULL || !query_allows_joins(root) || !type_allowed(jointype) ||
		!bms_is_empty(joinrel->lateral_relids) || !target_stands_apart(root, joinrel, outerrel, jointype) ||
		!side_allowed(outerrel) || !side_allowed(innerrel))
		return;
	info = join_info(root, joinrel, outerrel->fdw_private, innerrel->fdw_private, jointype, extra->restrictlist);
	if (info == NULL)
		return;					/* in another order of its tables it may be possible */
	joinrel->fdw_private = info;
	if (changes_rows(root))
	{
		add_change_path(root, joinrel, info);
		return;
	}
	kalam_estimate_rows(info, joinrel->reltarget, joinrel->rows, info->work, &estimate);
	add_join_path(root, joinrel, &estimate, NIL, NIL);
	add_sorted_paths(root, joinrel, info, estimate);
}
