/*
 * kalam_order.c: rows of tables, partitions and joins in an order that
 * PostgreSQL has a use for.
 *
 * That is the query's own order (of ORDER BY, or for GROUP BY, DISTINCT and
 * windows that stay here), and the order of each equivalence class by which a
 * merge join could find rows.  Of partitions in an order PostgreSQL merges the
 * rows.  The server sorts numbers and times as PostgreSQL does, text by code
 * points: what may be sorted there kalam_sort_allowed knows.
 */
#include "postgres.h"

#include "access/stratnum.h"
#include "nodes/makefuncs.h"
#include "nodes/nodeFuncs.h"
#include "optimizer/optimizer.h"
#include "optimizer/paths.h"
#include "utils/lsyscache.h"

#include "kalam_read.h"

/* ---------- what to sort by ---------- */

#if PG_VERSION_NUM >= 180000
#define IS_ASCENDING(pathkey) ((pathkey)->pk_cmptype == COMPARE_LT)
#define ORDER_ASCENDING COMPARE_LT
#else
#define IS_ASCENDING(pathkey) ((pathkey)->pk_strategy == BTLessStrategyNumber)
#define ORDER_ASCENDING BTLessStrategyNumber
#endif

/* Is this what the server has at this point?  A member for a partition's column is that partition's only. */
static bool
is_at_hand(KalamRelInfo *info, EquivalenceMember *em)
{
	if (em->em_is_const)
		return false;
	if (info->steps)			/* a varchar is sorted as text, and may be given as what it is */
		return list_member(info->outputs, em->em_expr) ||
			(IsA(em->em_expr, RelabelType) && list_member(info->outputs, ((RelabelType *) em->em_expr)->arg));
	return !bms_is_empty(em->em_relids) && bms_is_subset(em->em_relids, info->relids) &&
		!bms_overlap(em->em_relids, bms_difference(info->scope.relids, info->visible)) &&
		!kalam_is_parameter(info->scope.relids, em->em_expr) && kalam_is_shippable(&info->scope, em->em_expr);
}

static bool
may_sort_by(KalamRelInfo *info, EquivalenceClass *ec, Oid opfamily, EquivalenceMember *em)
{
	SortGroupClause clause = {.type = T_SortGroupClause};

	clause.sortop = get_opfamily_member(opfamily, em->em_datatype, em->em_datatype, BTLessStrategyNumber);
	return OidIsValid(clause.sortop) && is_at_hand(info, em) &&
		kalam_sort_allowed(info->scope.conn, &clause, ec->ec_collation);
}

static bool
is_sortable(KalamRelInfo *info, EquivalenceClass *ec)
{
	/* above grouping sets one member may be NULL where another is not: PostgreSQL before 18 does not tell them apart */
	return !ec->ec_has_volatile && (info->sets == NIL || list_length(ec->ec_members) == 1);
}

/* What to sort by for this class; NULL if the server cannot. */
static Expr *
sort_expression(KalamRelInfo *info, EquivalenceClass *ec, Oid opfamily)
{
#if PG_VERSION_NUM >= 180000
	EquivalenceMemberIterator members;
	EquivalenceMember *em;

	if (!is_sortable(info, ec))
		return NULL;
	setup_eclass_member_iterator(&members, ec, info->relids);
	while ((em = eclass_member_iterator_next(&members)) != NULL)
	{
		if (may_sort_by(info, ec, opfamily, em))
			return em->em_expr;
	}
#else
	ListCell   *lc;

	if (!is_sortable(info, ec))
		return NULL;
	foreach(lc, ec->ec_members)
	{
		if (may_sort_by(info, ec, opfamily, lfirst_node(EquivalenceMember, lc)))
			return ((EquivalenceMember *) lfirst(lc))->em_expr;
	}
#endif
	return NULL;
}

List *
kalam_order(KalamRelInfo *info, List *pathkeys)
{
	List	   *order = NIL;
	ListCell   *lc;

	foreach(lc, pathkeys)
	{
		PathKey    *pathkey = lfirst_node(PathKey, lc);
		Expr	   *expr = sort_expression(info, pathkey->pk_eclass, pathkey->pk_opfamily);
		int			flags = pathkey->pk_nulls_first ? KALAM_SORT_NULLS_FIRST : 0;

		if (expr == NULL)
			return NIL;
		if (!IS_ASCENDING(pathkey))
			flags |= KALAM_SORT_DESC;
		order = lappend(order, list_make2(expr, makeInteger(flags)));
	}
	return order;
}

/* ---------- the order of the key ---------- */

/* A condition says which one value the column has. */
static bool
is_fixed(RelOptInfo *rel, AttrNumber attno)
{
	ListCell   *lc;

	foreach(lc, rel->baserestrictinfo)
	{
		RestrictInfo *rinfo = lfirst_node(RestrictInfo, lc);
		OpExpr	   *op = (OpExpr *) rinfo->clause;
		Var		   *var;

		if (!is_opclause(op) || list_length(op->args) != 2 || !bms_is_empty(rinfo->right_relids))
			continue;
		var = linitial(op->args);
		if (IsA(var, Var) && var->varattno == attno && op_mergejoinable(op->opno, var->vartype))
			return true;
	}
	return false;
}

static List *
ascending(RelOptInfo *rel, KalamRelInfo *info, AttrNumber attno)
{
	Oid			type;
	int32		typmod;
	Oid			collation;

	get_atttypetypmodcoll(info->table->relid, attno, &type, &typmod, &collation);
	return list_make2(makeVar(rel->relid, attno, type, typmod, collation, 0), makeInteger(0));
}

/*
 * The order as that in which the store keeps the rows: the key's first columns,
 * ascending; those that are fixed PostgreSQL has left out.  NIL if it is another.
 */
List *
kalam_key_order(RelOptInfo *rel, KalamRelInfo *info, List *order)
{
	List	   *result = NIL;
	int			place = 0;
	ListCell   *lc;

	foreach(lc, order)
	{
		Var		   *var = linitial(lfirst_node(List, lc));

		if (!IsA(var, Var) || intVal(lsecond(lfirst_node(List, lc))) != 0)
			return NIL;
		while (place < list_length(info->keys) && list_nth_int(info->keys, place) != var->varattno &&
			   is_fixed(rel, list_nth_int(info->keys, place)))
			result = lappend(result, ascending(rel, info, list_nth_int(info->keys, place++)));
		if (place == list_length(info->keys) || list_nth_int(info->keys, place++) != var->varattno)
			return NIL;
		result = lappend(result, lfirst(lc));
	}
	return result;
}

/* ---------- orders for merge joins ---------- */

/* The classes that merge joins of this relation with others could be of. */
static List *
merged_classes(PlannerInfo *root, RelOptInfo *rel)
{
	Relids		relids = IS_OTHER_REL(rel) ? rel->top_parent_relids : rel->relids;
	List	   *classes = NIL;
	ListCell   *lc;

	foreach(lc, rel->has_eclass_joins ? root->eq_classes : NIL)
	{
		if (eclass_useful_for_merging(root, lfirst(lc), rel))
			classes = lappend(classes, lfirst(lc));
	}
	/* conditions of outer joins are in no class */
	foreach(lc, rel->joininfo)
	{
		RestrictInfo *rinfo = lfirst_node(RestrictInfo, lc);

		if (rinfo->mergeopfamilies == NIL)
			continue;
		update_mergeclause_eclasses(root, rinfo);
		if (bms_overlap(relids, rinfo->right_ec->ec_relids))
			classes = list_append_unique_ptr(classes, rinfo->right_ec);
		else if (bms_overlap(relids, rinfo->left_ec->ec_relids))
			classes = list_append_unique_ptr(classes, rinfo->left_ec);
	}
	return classes;
}

/* Is the query's order, of which there is a path, this class's own? */
static bool
is_query_order(PlannerInfo *root, EquivalenceClass *ec)
{
	return list_length(root->query_pathkeys) == 1 && linitial_node(PathKey, root->query_pathkeys)->pk_eclass == ec;
}

/* One key each, as more would be a guess at what is joined first. */
List *
kalam_merge_orders(PlannerInfo *root, RelOptInfo *rel, KalamRelInfo *info)
{
	List	   *orders = NIL;
	ListCell   *lc;

	if (info->locked || info->scope.plain)
		return NIL;				/* to lock rows that may not be read is no good */
	foreach(lc, merged_classes(root, rel))
	{
		EquivalenceClass *ec = lfirst(lc);
		Oid			opfamily = linitial_oid(ec->ec_opfamilies);

		if (!ec->ec_has_const && !is_query_order(root, ec) && sort_expression(info, ec, opfamily) != NULL)
			orders = lappend(orders, list_make1(make_canonical_pathkey(root, ec, opfamily, ORDER_ASCENDING, false)));
	}
	return orders;
}
