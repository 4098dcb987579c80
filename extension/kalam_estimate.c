/*
 * kalam_estimate.c: how many rows a scan gives, and what it costs.
 *
 * Planning must stay cheap.  What is known is the row count that ANALYZE left,
 * PostgreSQL's own guesses of selectivity, and the key: the server finds rows
 * by its leading columns without reading others, and a whole key names one row.
 *
 * Of a table never analyzed, or that had few rows then and may have many now,
 * and of one whose rows are shared out among tenants, the server is asked how
 * many rows there are to read, once in some minutes (kalam_size.c).  Nothing is asked for a row found by its key, nor
 * of another tenant of a table that is read alone, unless for EXPLAIN.  With the option use_remote_estimate the server is asked for each scan how many of
 * its rows satisfy the condition.
 */
#include "postgres.h"

#include <math.h>

#include "catalog/pg_class.h"
#include "miscadmin.h"
#include "nodes/nodeFuncs.h"
#include "optimizer/cost.h"
#include "optimizer/optimizer.h"
#include "optimizer/restrictinfo.h"
#include "utils/lsyscache.h"
#include "utils/selfuncs.h"

#include "kalam_core.h"
#include "kalam_read.h"

#define FEW_TUPLES 1000			/* a plan for so few is a bad one for many */
#define UNKNOWN_PAGES 10		/* of a table never analyzed, as PostgreSQL guesses for new tables */

/* ---------- the key ---------- */

static Node *
strip_relabel(Node *node)
{
	while (node && IsA(node, RelabelType))
		node = (Node *) ((RelabelType *) node)->arg;
	return node;
}

static bool
is_equality(Oid operator)
{
	char	   *name = get_opname(operator);

	return name && strcmp(name, "=") == 0;
}

static bool
is_column_of(RelOptInfo *rel, Node *node)
{
	return IsA(node, Var) && bms_is_member(((Var *) node)->varno, rel->relids);
}

/* The column that a clause sets equal to something known; 0 if it is no such clause. */
static AttrNumber
equal_column(RelOptInfo *rel, Expr *clause)
{
	OpExpr	   *op = (OpExpr *) clause;
	Node	   *left;
	Node	   *right;

	if (!IsA(clause, OpExpr) || list_length(op->args) != 2 || !is_equality(op->opno))
		return InvalidAttrNumber;
	left = strip_relabel(linitial(op->args));
	right = strip_relabel(lsecond(op->args));
	if (is_column_of(rel, left) && kalam_is_parameter(rel->relids, (Expr *) right))
		return ((Var *) left)->varattno;
	if (is_column_of(rel, right) && kalam_is_parameter(rel->relids, (Expr *) left))
		return ((Var *) right)->varattno;
	return InvalidAttrNumber;
}

/* How many known values a clause allows this column to have; 0 if it is no such clause. */
static double
listed_values(PlannerInfo *root, RelOptInfo *rel, Expr *clause, AttrNumber column)
{
	ScalarArrayOpExpr *op = (ScalarArrayOpExpr *) clause;
	Node	   *left;

	if (!IsA(clause, ScalarArrayOpExpr) || !op->useOr || !is_equality(op->opno))
		return 0;
	left = strip_relabel(linitial(op->args));
	if (!is_column_of(rel, left) || ((Var *) left)->varattno != column ||
		!kalam_is_parameter(rel->relids, (Expr *) lsecond(op->args)))
		return 0;
#if PG_VERSION_NUM >= 170000
	return Max(estimate_array_length(root, lsecond(op->args)), 1);
#else
	return Max(estimate_array_length(lsecond(op->args)), 1);
#endif
}

/*
 * How many leading columns of the key do these RestrictInfos give?  The last
 * one's value may be one of several.
 */
static int
key_columns_given(PlannerInfo *root, RelOptInfo *rel, KalamRelInfo *info, List *conds, double *values)
{
	List	   *given = NIL;
	int			n = 0;
	ListCell   *lc;

	*values = 1;
	foreach(lc, conds)
		given = lappend_int(given, equal_column(rel, lfirst_node(RestrictInfo, lc)->clause));
	foreach(lc, info->keys)
	{
		if (!list_member_int(given, lfirst_int(lc)))
			break;
		n++;
	}
	list_free(given);
	if (n != list_length(info->keys) - 1)
		return n;
	foreach(lc, conds)
	{
		*values = listed_values(root, rel, lfirst_node(RestrictInfo, lc)->clause, llast_int(info->keys));
		if (*values > 0)
			return n + 1;
	}
	return n;
}

/* How many rows at most, if the whole key is given; else 0. */
static double
rows_by_key(PlannerInfo *root, RelOptInfo *rel, KalamRelInfo *info, List *conds)
{
	double		values;

	if (info->keys == NIL || key_columns_given(root, rel, info, conds, &values) < list_length(info->keys))
		return 0;
	return values;
}

/* ---------- rows ---------- */

static bool
never_analyzed(RelOptInfo *rel)
{
	return rel->tuples < 0 || (rel->tuples == 0 && rel->pages == 0);
}

static void
guess_size(RelOptInfo *rel)
{
	rel->pages = UNKNOWN_PAGES;
	rel->tuples = clamp_row_est(UNKNOWN_PAGES * (double) BLCKSZ / (rel->reltarget->width + 24));
}

/* For whom the query will read, as far as can be told now; whether he may is told then. */
static const char *
planned_tenant(KalamTable *table, Oid userid)
{
	const char *bound = kalam_find_option(kalam_user_mapping(table->serverid, userid)->options, "user_id");

	if (bound)
		return bound;
	return kalam_user_id && kalam_user_id[0] ? kalam_user_id : NULL;
}

/*
 * Is there one plan, whatever is estimated?  Then a trip to the server would
 * serve nobody but who looks at the plan.
 */
static bool
is_only_plan(PlannerInfo *root, RelOptInfo *rel, KalamRelInfo *info)
{
	Query	   *query = root->parse;

	return !kalam_explaining && root->parent_root == NULL && query->commandType == CMD_SELECT &&
		bms_equal(root->all_baserels, rel->relids) && !info->table->remote_estimate && query->rowMarks == NIL &&
		query->cteList == NIL && query->groupClause == NIL && query->groupingSets == NIL &&
		query->distinctClause == NIL && query->sortClause == NIL && query->limitCount == NULL &&
		query->limitOffset == NULL && query->setOperations == NULL && !query->hasAggs && !query->hasWindowFuncs &&
		!query->hasSubLinks && !query->hasTargetSRFs;
}

/* What the server has, for the tenant alone where it knows that. */
static void
ask_size(PlannerInfo *root, RelOptInfo *rel, KalamRelInfo *info)
{
	Oid			userid = OidIsValid(rel->userid) ? rel->userid : GetUserId();
	KalamSize	size;
	double		rows;

	kalam_known_size(info->scope.conn, info->table, userid, planned_tenant(info->table, userid),
					 is_only_plan(root, rel, info), &size);
	if (size.rows < 0)
	{
		guess_size(rel);
		return;
	}
	rows = size.tenant_rows >= 0 ? size.tenant_rows : size.rows;
	rel->tuples = rows;
	rel->pages = (BlockNumber) Min(ceil(size.bytes / BLCKSZ * (size.rows > 0 ? rows / size.rows : 1)), MaxBlockNumber);
}

/* The values of a statement's parameters, if all are known while planning. */
static bool
known_parameters(PlannerInfo *root, KalamConn *conn, List *exprs, KalamRequest *req)
{
	int			n = list_length(exprs);
	Oid		   *types = palloc(sizeof(Oid) * (n + 1));
	char	  **values = palloc0(sizeof(char *) * (n + 1));
	int		   *lengths = palloc0(sizeof(int) * (n + 1));
	int		   *formats = palloc0(sizeof(int) * (n + 1));

	for (int i = 0; i < n; i++)
	{
		Node	   *expr = estimate_expression_value(root, list_nth(exprs, i));
		KalamConverter converter;

		if (!IsA(expr, Const))
			return false;
		kalam_parameter_converter(&converter, conn, exprType(expr), exprTypmod(expr));
		types[i] = converter.wire_oid;
		if (!((Const *) expr)->constisnull)
			values[i] = kalam_to_param(&converter, ((Const *) expr)->constvalue, &lengths[i], &formats[i]);
	}
	req->nparams = n;
	req->types = types;
	req->values = (const char *const *) values;
	req->lengths = lengths;
	req->formats = formats;
	return true;
}

/* use_remote_estimate: how many rows satisfy what is sent?  -1: that cannot be asked. */
static double
remote_rows(PlannerInfo *root, RelOptInfo *rel, KalamRelInfo *info)
{
	Oid			userid = OidIsValid(rel->userid) ? rel->userid : GetUserId();
	KalamStatement statement = {.from = info,.scope = &info->scope,.conds = info->conds};
	KalamRequest req = {0};
	StringInfoData sql;
	List	   *params = NIL;
	PGresult   *res;
	double		rows = -1;

	req.tenant = planned_tenant(info->table, userid);
	if (info->table->type != KALAM_SHARED && req.tenant == NULL)
		return -1;
	initStringInfo(&sql);
	appendStringInfoString(&sql, "ESTIMATE ");
	kalam_deparse_statement(&sql, &statement, &params);
	req.sql = sql.data;
	if (!known_parameters(root, info->scope.conn, params, &req))
		return -1;
	res = kalam_request(info->scope.conn, &req);
	if (PQntuples(res) == 1)
		rows = (double) kalam_result_int(res, 0, 0);
	kalam_result_free(res);
	return rows;
}

/* rel's own numbers */
void
kalam_estimate_size(PlannerInfo *root, RelOptInfo *rel, KalamRelInfo *info)
{
	double		by_key = rows_by_key(root, rel, info, info->remote_conds);

	rel->fdw_private = info;	/* for what is asked about its columns */
	if (by_key == 0 && (never_analyzed(rel) || rel->tuples < FEW_TUPLES || info->table->type != KALAM_SHARED))
		ask_size(root, rel, info);
	else if (never_analyzed(rel))
		guess_size(rel);
	set_baserel_size_estimates(root, rel);
	info->remote_rows = by_key > 0 || !info->table->remote_estimate ? -1 : remote_rows(root, rel, info);
	if (by_key > 0)
		rel->rows = by_key == 1 ? 1 : clamp_row_est(Min(by_key, rel->rows));
	else if (info->remote_rows >= 0)
	{
		rel->tuples = Max(rel->tuples, info->remote_rows);
		rel->rows = clamp_row_est(info->remote_rows *
								  clauselist_selectivity(root, info->local_conds, 0, JOIN_INNER, NULL));
	}
}

/* ---------- statistics ---------- */

static get_relation_stats_hook_type previous_stats_hook = NULL;

/*
 * A key of one column is unique, as an index would tell of a local table: so
 * joins on it are estimated without statistics, too.  Only estimates use this:
 * for all tenants together it may be untrue.
 */
static bool
relation_stats(PlannerInfo *root, RangeTblEntry *rte, AttrNumber attnum, VariableStatData *vardata)
{
	RelOptInfo *rel = vardata->rel;

	if (rte->relkind == RELKIND_FOREIGN_TABLE && rel != NULL && rel->fdw_private != NULL &&
		kalam_is_server(rel->serverid))
	{
		List	   *keys = ((KalamRelInfo *) rel->fdw_private)->keys;

		if (list_length(keys) == 1 && linitial_int(keys) == attnum)
			vardata->isunique = true;
	}
	return previous_stats_hook && previous_stats_hook(root, rte, attnum, vardata);
}

void
kalam_estimate_init(void)
{
	previous_stats_hook = get_relation_stats_hook;
	get_relation_stats_hook = relation_stats;
}

/* ---------- cost ---------- */

void
kalam_estimate_rows(KalamRelInfo *info, PathTarget *target, double rows, Cost work, KalamEstimate *estimate)
{
	estimate->fetched = rows;
	estimate->work = work;
	estimate->startup_cost = info->startup_cost + info->local_cost.startup + target->cost.startup;
	estimate->total_cost = estimate->startup_cost + work +
		(info->tuple_cost + cpu_tuple_cost + info->local_cost.per_tuple + target->cost.per_tuple) * rows;
}

/* The server sorts columns, several times faster than PostgreSQL does rows, and sends nothing before it is done. */
void
kalam_estimate_sort(KalamEstimate *estimate, double rows)
{
	Cost		sorting = 0.25 * cpu_operator_cost * rows * log2(Max(rows, 2));

	estimate->startup_cost += estimate->work + sorting;
	estimate->total_cost += sorting;
}

/* A merge join may stop long before the end, but a chunk has come by then: a few rows are looked up for less. */
void
kalam_estimate_merge(const KalamRelInfo *info, KalamEstimate *estimate)
{
	kalam_estimate_sort(estimate, estimate->fetched);
	estimate->startup_cost = Min(estimate->startup_cost + (info->tuple_cost + cpu_tuple_cost) *
								 Min(estimate->fetched, KALAM_DEFAULT_FETCH), estimate->total_cost);
}

void
kalam_estimate_scan(PlannerInfo *root, RelOptInfo *rel, KalamRelInfo *info, List *conds, KalamEstimate *estimate)
{
	double		selected = conds == info->remote_conds && info->remote_rows >= 0 ? clamp_row_est(info->remote_rows) :
		clamp_row_est(rel->tuples * clauselist_selectivity(root, conds, rel->relid, JOIN_INNER, NULL));
	double		by_key = rows_by_key(root, rel, info, conds);
	double		values;
	int			given = key_columns_given(root, rel, info, conds, &values);
	double		fetched = by_key == 0 ? selected : by_key == 1 ? 1 : Min(by_key, clamp_row_est(rel->tuples));

	/* reading there what is not sent here: columns at a time, so cheaper than rows in PostgreSQL */
	kalam_estimate_rows(info, rel->reltarget, fetched, cpu_operator_cost * (given > 0 ? fetched : rel->tuples), estimate);
	estimate->by_key = by_key > 0;
}
