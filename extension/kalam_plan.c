/*
 * kalam_plan.c: paths of foreign tables, and the plans of all foreign scans.
 *
 * A table has one plain path, some in orders that the query or a merge join can
 * use, and one for each set of other tables whose columns, as parameters,
 * restrict it: a nested loop then looks rows up by key.
 *
 * ForeignScan.fdw_private is a list, by KalamPlanPart.  ForeignScan.fdw_exprs
 * are the statement's parameters, $1 first.
 *
 * Rows are locked as they are read: for FOR UPDATE and FOR SHARE, and under
 * UPDATE and DELETE, whose new values are computed from what is read here.
 */
#include "postgres.h"

#include "access/sysattr.h"
#include "access/table.h"
#include "catalog/heap.h"
#include "miscadmin.h"
#include "nodes/makefuncs.h"
#include "nodes/nodeFuncs.h"
#include "optimizer/cost.h"
#include "optimizer/optimizer.h"
#include "optimizer/pathnode.h"
#include "optimizer/paths.h"
#include "optimizer/planmain.h"
#include "optimizer/prep.h"
#include "optimizer/restrictinfo.h"
#include "optimizer/tlist.h"
#include "utils/lsyscache.h"

#include "kalam_read.h"

/* ---------- size ---------- */

static KalamConn *
plan_connection(RelOptInfo *rel, KalamTable *table)
{
	Oid			userid = OidIsValid(rel->userid) ? rel->userid : GetUserId();

	return kalam_connection_get(kalam_user_mapping(table->serverid, userid));
}

static void
classify_conditions(RelOptInfo *rel, KalamRelInfo *info)
{
	ListCell   *lc;

	foreach(lc, rel->baserestrictinfo)
	{
		RestrictInfo *rinfo = lfirst_node(RestrictInfo, lc);

		info->gated |= rinfo->pseudoconstant;
		if (kalam_is_shippable(&info->scope, rinfo->clause))
			info->remote_conds = lappend(info->remote_conds, rinfo);
		else
			info->local_conds = lappend(info->local_conds, rinfo);
	}
}

const char *
kalam_locking_clause(PlannerInfo *root, Index rtindex, const char *of)
{
	PlanRowMark *mark;
	const char *wait = "";

	if (bms_is_member(rtindex, root->all_result_relids) &&
		(root->parse->commandType == CMD_UPDATE || root->parse->commandType == CMD_DELETE))
		return "FOR UPDATE";
	mark = get_plan_rowmark(root->rowMarks, rtindex);
	if (mark == NULL || mark->strength == LCS_NONE)
		return NULL;
	if (mark->waitPolicy != LockWaitBlock)
		wait = mark->waitPolicy == LockWaitError ? " NOWAIT" : " SKIP LOCKED";
	return psprintf("%s%s%s", mark->strength >= LCS_FORNOKEYUPDATE ? "FOR UPDATE" : "FOR SHARE", of, wait);
}

/*
 * In the order in which PostgreSQL would look at them, by what they cost: those
 * of equivalence classes stand last in the list, and one that costs little may
 * be there to keep another from rows for which it fails.
 */
static List *
ordered_clauses(PlannerInfo *root, List *rinfos)
{
	List	   *ordered = NIL;
	List	   *costs = NIL;	/* of double, alongside */
	List	   *clauses = NIL;
	ListCell   *lc;

	foreach(lc, rinfos)
	{
		RestrictInfo *rinfo = lfirst_node(RestrictInfo, lc);
		QualCost	cost;
		double	   *key = palloc(sizeof(double));
		int			place = list_length(ordered);

		if (rinfo->pseudoconstant)
			continue;			/* it gates the whole scan */
		cost_qual_eval_node(&cost, (Node *) rinfo, root);
		*key = cost.per_tuple;
		while (place > 0)
		{
			RestrictInfo *before = list_nth(ordered, place - 1);

			if (before->security_level < rinfo->security_level ||
				(before->security_level == rinfo->security_level && *(double *) list_nth(costs, place - 1) <= *key))
				break;
			place--;
		}
		ordered = list_insert_nth(ordered, place, rinfo);
		costs = list_insert_nth(costs, place, key);
	}
	foreach(lc, ordered)
		clauses = lappend(clauses, ((RestrictInfo *) lfirst(lc))->clause);
	return clauses;
}

static void
kalam_GetForeignRelSize(PlannerInfo *root, RelOptInfo *rel, Oid foreigntableid)
{
	KalamRelInfo *info = palloc0(sizeof(KalamRelInfo));

	info->table = kalam_table_get(foreigntableid);
	info->root = root;
	info->rtindex = rel->relid;
	info->scope.root = root;
	info->scope.conn = plan_connection(rel, info->table);
	info->scope.relids = rel->relids;
	info->relids = rel->relids;
	info->visible = rel->relids;
	info->startup_cost = info->table->startup_cost;
	info->tuple_cost = info->table->tuple_cost;
	info->keys = kalam_key_columns(foreigntableid);
	info->locked = kalam_locking_clause(root, rel->relid, "") != NULL;
	info->scope.plain = info->locked && info->keys == NIL;
	classify_conditions(rel, info);
	info->conds = ordered_clauses(root, info->remote_conds);
	info->columns = kalam_sent_columns(root, rel->reltarget->exprs);
	cost_qual_eval(&info->local_cost, info->local_conds, root);
	kalam_estimate_size(root, rel, info);
	rel->fdw_private = info;
}

/* ---------- paths ---------- */

static void
add_scan_path(PlannerInfo *root, RelOptInfo *rel, const KalamEstimate *estimate, double rows, Relids required_outer,
			  List *pathkeys, List *private)
{
	ForeignPath *path;

	path = create_foreignscan_path(root, rel, NULL, rows,
#if PG_VERSION_NUM >= 180000
								   0,
#endif
								   estimate->startup_cost, estimate->total_cost, pathkeys, required_outer, NULL,
#if PG_VERSION_NUM >= 170000
								   NIL,
#endif
								   private);
	add_path(rel, (Path *) path);
}

/* A clause that says something about rel as soon as the other side is known; which tables that needs. */
static Relids
outer_of_clause(RelOptInfo *rel, KalamRelInfo *info, RestrictInfo *rinfo)
{
	Relids		outer;

	if (!join_clause_is_movable_to(rinfo, rel) || !kalam_is_shippable(&info->scope, rinfo->clause))
		return NULL;
	outer = bms_union(rinfo->clause_relids, rel->lateral_relids);
	return bms_del_member(outer, rel->relid);
}

static List *
add_outer(List *outers, Relids outer)
{
	ListCell   *lc;

	if (bms_is_empty(outer))
		return outers;
	foreach(lc, outers)
	{
		if (bms_equal(lfirst(lc), outer))
			return outers;
	}
	return lappend(outers, outer);
}

static List *
add_outers(List *outers, RelOptInfo *rel, KalamRelInfo *info, List *clauses)
{
	ListCell   *lc;

	foreach(lc, clauses)
		outers = add_outer(outers, outer_of_clause(rel, info, lfirst_node(RestrictInfo, lc)));
	return outers;
}

/* Is this member of an equivalence class the column, maybe relabelled? */
static bool
is_column(PlannerInfo *root, RelOptInfo *rel, EquivalenceClass *ec, EquivalenceMember *em, void *arg)
{
	Expr	   *expr = em->em_expr;

	while (IsA(expr, RelabelType))
		expr = ((RelabelType *) expr)->arg;
	return IsA(expr, Var) && ((Var *) expr)->varno == rel->relid && ((Var *) expr)->varattno == *(AttrNumber *) arg;
}

/* The sets of other tables that could give this one's scan parameters. */
static List *
outer_sets(PlannerInfo *root, RelOptInfo *rel, KalamRelInfo *info)
{
	List	   *outers = add_outers(NIL, rel, info, rel->joininfo);

	if (!rel->has_eclass_joins)
		return outers;
	for (AttrNumber attno = 1; attno <= rel->max_attr; attno++)
	{
		/* which columns joins need is known of a base relation only, not of a partition */
		if (rel->reloptkind == RELOPT_BASEREL &&
			bms_is_subset(rel->attr_needed[attno - rel->min_attr], rel->relids))
			continue;
		outers = add_outers(outers, rel, info,
							generate_implied_equalities_for_column(root, rel, is_column, &attno,
																   rel->lateral_referencers));
	}
	return outers;
}

static List *
shippable_clauses(RelOptInfo *rel, KalamRelInfo *info, List *clauses)
{
	List	   *result = NIL;
	ListCell   *lc;

	foreach(lc, clauses)
	{
		if (kalam_is_shippable(&info->scope, lfirst_node(RestrictInfo, lc)->clause))
			result = lappend(result, lfirst(lc));
	}
	return result;
}

static void
add_parameterized_path(PlannerInfo *root, RelOptInfo *rel, KalamRelInfo *info, Relids outer)
{
	ParamPathInfo *param = get_baserel_parampathinfo(root, rel, outer);
	List	   *conds = shippable_clauses(rel, info, param->ppi_clauses);
	KalamEstimate estimate;

	kalam_estimate_scan(root, rel, info, list_concat(conds, info->remote_conds), &estimate);
	if (estimate.by_key)
		param->ppi_rows = estimate.fetched; /* no statistics would tell */
	add_scan_path(root, rel, &estimate, param->ppi_rows, outer, NIL, NIL);
}

/*
 * In the order that the query wants, if the server can give it.  Rows that are
 * locked are locked in that order, and only as many as are asked for: best in
 * the one in which they are read, as otherwise all are found and sorted first.
 */
static void
add_query_order(PlannerInfo *root, RelOptInfo *rel, KalamRelInfo *info, KalamEstimate estimate)
{
	List	   *order = kalam_order(info, root->query_pathkeys);
	List	   *key = NIL;

	if (info->locked && (key = kalam_key_order(rel, info, order)) != NIL)
		order = key;
	else if (info->scope.plain)
		return;
	if (order == NIL)
		return;
	if (key == NIL)
		kalam_estimate_sort(&estimate, estimate.fetched);
	add_scan_path(root, rel, &estimate, rel->rows, rel->lateral_relids, root->query_pathkeys,
				  list_make3(order, NULL, NULL));
}

static void
add_merge_orders(PlannerInfo *root, RelOptInfo *rel, KalamRelInfo *info, KalamEstimate estimate)
{
	ListCell   *lc;

	kalam_estimate_merge(info, &estimate);
	foreach(lc, kalam_merge_orders(root, rel, info))
		add_scan_path(root, rel, &estimate, rel->rows, rel->lateral_relids, lfirst(lc),
					  list_make3(kalam_order(info, lfirst(lc)), NULL, NULL));
}

static void
kalam_GetForeignPaths(PlannerInfo *root, RelOptInfo *rel, Oid foreigntableid)
{
	KalamRelInfo *info = rel->fdw_private;
	KalamEstimate estimate;
	ListCell   *lc;

	kalam_estimate_scan(root, rel, info, info->remote_conds, &estimate);
	info->rows = estimate.fetched;
	info->work = estimate.work;
	add_scan_path(root, rel, &estimate, rel->rows, rel->lateral_relids, NIL, NIL);
	add_query_order(root, rel, info, estimate);
	add_merge_orders(root, rel, info, estimate);
	foreach(lc, outer_sets(root, rel, info))
		add_parameterized_path(root, rel, info, lfirst(lc));
}

/* ---------- plan ---------- */

/* A column that rows have on the server, too */
bool
kalam_is_stored(Form_pg_attribute att)
{
#if PG_VERSION_NUM >= 180000
	if (att->attgenerated == ATTRIBUTE_GENERATED_VIRTUAL)
		return false;
#endif
	return !att->attisdropped;
}

/*
 * Rows have no place and no transaction numbers here; only tableoid is known.
 * In the rows of a partition they may be: PostgreSQL itself asks all partitions
 * for ctid to lock the local ones' rows by it.
 */
static void
refuse_system_columns(Relation relation, Bitmapset *used)
{
	for (int attno = FirstLowInvalidHeapAttributeNumber + 1; attno < 0; attno++)
	{
		if (attno != TableOidAttributeNumber &&
			bms_is_member(attno - FirstLowInvalidHeapAttributeNumber, used))
			ereport(ERROR,
					(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
					 errmsg("rows of foreign table \"%s\" have no system column \"%s\"",
							RelationGetRelationName(relation),
							NameStr(SystemAttributeDefinition(attno)->attname))));
	}
}

/* What the plan's rows need, and what the conditions left here need. */
static List *
fetched_columns(RelOptInfo *rel, Relation relation, List *local_exprs)
{
	TupleDesc	desc = RelationGetDescr(relation);
	Bitmapset  *used = NULL;
	List	   *attrs = NIL;
	bool		whole_row;

	pull_varattnos((Node *) local_exprs, rel->relid, &used);
	refuse_system_columns(relation, used);
	pull_varattnos((Node *) rel->reltarget->exprs, rel->relid, &used);
	if (rel->reloptkind == RELOPT_BASEREL)
		refuse_system_columns(relation, used);
	whole_row = bms_is_member(0 - FirstLowInvalidHeapAttributeNumber, used);
	for (AttrNumber attno = 1; attno <= desc->natts; attno++)
	{
		if (!kalam_is_stored(TupleDescAttr(desc, attno - 1)))
			continue;
		if (whole_row || bms_is_member(attno - FirstLowInvalidHeapAttributeNumber, used))
			attrs = lappend_int(attrs, attno);
	}
	return attrs;
}

/*
 * How many rows LIMIT or EXISTS will ask for, if they are the scan's first:
 * more would be read, and locked, in vain.  0: no limit is known.
 */
static int
rows_wanted(PlannerInfo *root, ForeignPath *path, double wanted, List *local_exprs)
{
	RelOptInfo *rel = path->path.parent;
	Relids		wholly = IS_OTHER_REL(rel) ? rel->top_parent_relids : rel->relids;

	if (wanted < 1 || wanted > PG_INT32_MAX || local_exprs != NIL ||
		!pathkeys_contained_in(root->query_pathkeys, path->path.pathkeys) ||
		root->parse->hasAggs || root->parse->groupClause != NIL || root->parse->distinctClause != NIL ||
		root->parse->hasWindowFuncs || !bms_is_subset(root->all_baserels, wholly))
		return 0;
	return (int) wanted;
}

/* The same as a LIMIT; NULL where it is not certain. */
static Node *
known_limit(PlannerInfo *root, ForeignPath *path, List *local_exprs)
{
	Query	   *parse = root->parse;
	int			wanted = rows_wanted(root, path, root->limit_tuples, local_exprs);

	if (wanted == 0 || parse->limitOption == LIMIT_OPTION_WITH_TIES || !IsA(parse->limitCount, Const) ||
		(parse->limitOffset != NULL && !IsA(parse->limitOffset, Const)))
		return NULL;
	return (Node *) makeConst(INT8OID, -1, InvalidOid, sizeof(int64), Int64GetDatum(wanted), false, FLOAT8PASSBYVAL);
}

/* LIMIT of rows that are locked: not one more may be. */
static Node *
lock_limit(PlannerInfo *root, ForeignPath *path, KalamRelInfo *info, List *local_exprs)
{
	Query	   *parse = root->parse;
	Node	   *count = parse->limitCount;

	if (count == NULL || parse->limitOption == LIMIT_OPTION_WITH_TIES || IS_OTHER_REL(path->path.parent))
		return NULL;
	if (!IsA(count, Const) && parse->limitOffset == NULL && rows_wanted(root, path, 1, local_exprs) != 0 &&
		kalam_is_parameter(info->scope.relids, (Expr *) count) && kalam_is_shippable(&info->scope, (Expr *) count))
		return count;
	return known_limit(root, path, local_exprs);
}

static void
split_clauses(RelOptInfo *rel, KalamRelInfo *info, List *clauses, List **remote, List **local)
{
	ListCell   *lc;

	foreach(lc, clauses)
	{
		RestrictInfo *rinfo = lfirst_node(RestrictInfo, lc);

		if (rinfo->pseudoconstant)
			continue;			/* decided once, above the scan */
		if (list_member_ptr(info->remote_conds, rinfo) ||
			(!list_member_ptr(info->local_conds, rinfo) && kalam_is_shippable(&info->scope, rinfo->clause)))
			*remote = lappend(*remote, rinfo->clause);
		else
			*local = lappend(*local, rinfo->clause);
	}
}

static void
take_path_parts(KalamStatement *statement, ForeignPath *path)
{
	if (path->fdw_private == NIL)
		return;
	statement->order = list_nth(path->fdw_private, KALAM_PATH_ORDER);
	statement->limit = list_nth(path->fdw_private, KALAM_PATH_LIMIT);
	statement->offset = list_nth(path->fdw_private, KALAM_PATH_OFFSET);
}

static List *
columns_of(RelOptInfo *rel, Relation relation, List *attrs)
{
	List	   *vars = NIL;
	ListCell   *lc;

	foreach(lc, attrs)
	{
		Form_pg_attribute att = TupleDescAttr(RelationGetDescr(relation), lfirst_int(lc) - 1);

		vars = lappend(vars, makeVar(rel->relid, att->attnum, att->atttypid, att->atttypmod, att->attcollation, 0));
	}
	return vars;
}

static ForeignScan *
plan_table(PlannerInfo *root, RelOptInfo *rel, ForeignPath *path, List *tlist, List *scan_clauses, Plan *outer_plan)
{
	KalamRelInfo *info = rel->fdw_private;
	Relation	relation = table_open(info->table->relid, NoLock);
	KalamStatement statement = {.from = info, .scope = &info->scope, .locking = kalam_locking_clause(root, rel->relid, "")};
	List	   *local = NIL;
	List	   *params = NIL;
	List	   *attrs;
	int			wanted;
	StringInfoData sql;

	split_clauses(rel, info, scan_clauses, &statement.conds, &local);
	attrs = fetched_columns(rel, relation, local);
	statement.outputs = columns_of(rel, relation, attrs);
	table_close(relation, NoLock);
	take_path_parts(&statement, path);
	wanted = rows_wanted(root, path, root->limit_tuples > 0 ? root->limit_tuples : root->tuple_fraction, local);
	if (statement.locking != NULL)
		statement.limit = lock_limit(root, path, info, local);
	else if (IS_OTHER_REL(rel) && root->rowMarks == NIL)
		statement.limit = known_limit(root, path, local);	/* of a partition no more are taken than of all */
	initStringInfo(&sql);
	kalam_deparse_statement(&sql, &statement, &params);
	return make_foreignscan(tlist, local, rel->relid, params,
							list_make5(makeString(sql.data), attrs, makeInteger(wanted),
									   makeBoolean(statement.locking != NULL), makeString("")),
							NIL, statement.conds, outer_plan);
}

/*
 * What a join gives: the columns that are wanted above it, and those that the
 * conditions left here need.  Of the uppermost join the target is by now the
 * query's own, with expressions of any kind, which are computed here.
 */
static List *
joined_columns(PlannerInfo *root, RelOptInfo *rel, KalamRelInfo *info)
{
	List	   *columns = kalam_sent_columns(root, pull_var_clause((Node *) rel->reltarget->exprs, PVC_INCLUDE_PLACEHOLDERS));
	List	   *tlist = add_to_flat_tlist(NIL, columns);

	return add_to_flat_tlist(tlist, pull_var_clause((Node *) info->local_conds, PVC_INCLUDE_PLACEHOLDERS));
}

/* "FOR UPDATE OF r1 FOR SHARE OF r2 NOWAIT"; of a join whose tables are not locked, NULL */
static const char *
join_locking(PlannerInfo *root, KalamRelInfo *info)
{
	StringInfoData buf;
	int			rti = -1;

	initStringInfo(&buf);
	while ((rti = bms_next_member(info->scope.relids, rti)) >= 0)
	{
		const char *clause = kalam_locking_clause(root, rti, psprintf(" OF r%d", rti));

		if (clause != NULL)
			appendStringInfo(&buf, "%s%s", buf.len > 0 ? " " : "", clause);
	}
	return buf.len > 0 ? buf.data : NULL;
}

/* Of a join, or a step above a table or join: the rows are no table's. */
static ForeignScan *
plan_step(PlannerInfo *root, RelOptInfo *rel, ForeignPath *path, List *tlist, Plan *outer_plan)
{
	KalamRelInfo *info = rel->fdw_private;
	KalamRelInfo *from = info->steps ? info->from : info;
	KalamStatement statement = {.from = from, .scope = &info->scope, .conds = from->conds, .groups = info->groups,
	.sets = info->sets, .having = info->having, .nonempty = info->nonempty, .qualify = info->qualify,
	.distinct = info->distinct, .distinct_on = info->distinct_on};
	List	   *params = NIL;
	List	   *attrs = NIL;
	List	   *outputs;
	ListCell   *lc;
	StringInfoData sql;

	outputs = info->steps ? add_to_flat_tlist(NIL, info->outputs) : joined_columns(root, rel, info);
	foreach(lc, outputs)
	{
		TargetEntry *entry = lfirst_node(TargetEntry, lc);

		statement.outputs = lappend(statement.outputs, entry->expr);
		attrs = lappend_int(attrs, entry->resno);
	}
	outputs = add_to_flat_tlist(outputs, info->junk);
	take_path_parts(&statement, path);
	if (info->locked)
	{
		statement.locking = join_locking(root, info);
		statement.limit = lock_limit(root, path, info, info->local_conds);
		outputs = add_to_flat_tlist(outputs, pull_var_clause((Node *) rel->reltarget->exprs, PVC_INCLUDE_PLACEHOLDERS));
	}
	initStringInfo(&sql);
	kalam_deparse_statement(&sql, &statement, &params);
	return make_foreignscan(tlist, info->local_conds, 0, params,
							list_make5(makeString(sql.data), attrs, makeInteger(0), makeBoolean(info->locked),
									   makeString(kalam_relation_names(from))),
							outputs, NIL, outer_plan);
}

static ForeignScan *
kalam_GetForeignPlan(PlannerInfo *root, RelOptInfo *rel, Oid foreigntableid, ForeignPath *best_path, List *tlist,
					 List *scan_clauses, Plan *outer_plan)
{
	if (IS_SIMPLE_REL(rel))
		return plan_table(root, rel, best_path, tlist, scan_clauses, outer_plan);
	if (root->parse->commandType == CMD_UPDATE || root->parse->commandType == CMD_DELETE)
		return make_foreignscan(tlist, NIL, 0, NIL, NIL, NIL, NIL, NULL);	/* kalam_change.c makes the rest */
	return plan_step(root, rel, best_path, tlist, outer_plan);
}

void
kalam_plan_routine(FdwRoutine *routine)
{
	routine->GetForeignRelSize = kalam_GetForeignRelSize;
	routine->GetForeignPaths = kalam_GetForeignPaths;
	routine->GetForeignJoinPaths = kalam_GetForeignJoinPaths;
	routine->GetForeignUpperPaths = kalam_GetForeignUpperPaths;
	routine->GetForeignPlan = kalam_GetForeignPlan;
}
