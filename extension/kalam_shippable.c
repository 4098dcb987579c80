/*
 * kalam_shippable.c: may this expression be sent?
 *
 * What the server evaluates exactly as PostgreSQL does is in its capability
 * table; beyond that only what docs/protocol.md calls always understood (AND,
 * OR, NOT, IS NULL, IN, IS TRUE …).  Assumptions:
 *
 *	- The server compares text by code points and knows no collations.  So it
 *	  does not matter where an operator's collation comes from, only whether it
 *	  orders (flag c) or equates (flag d) as code points do.
 *	- A part without a column of this table is computed here and becomes a
 *	  parameter, so it may be anything that has one value for the whole scan and
 *	  a type with an exact wire form.
 *	- Such a part may raise an error; inside AND and OR, where PostgreSQL might
 *	  not have computed it, only parts are taken that cannot.
 */
#include "postgres.h"

#include "catalog/pg_collation.h"
#include "catalog/pg_database.h"
#include "catalog/pg_type.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "nodes/nodeFuncs.h"
#include "optimizer/clauses.h"
#include "optimizer/optimizer.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/syscache.h"

#include "kalam_read.h"

#define MAX_IN_VALUES 2000
#define MAX_PARAMETERS 10000		/* of one condition; the protocol has room for 65535 in a statement */

typedef struct ShipContext
{
	KalamConn  *conn;
	RelOptInfo *rel;
	bool		conditional;	/* inside AND or OR */
	int		   *nparams;		/* so far */
} ShipContext;

static bool ship(Node *node, ShipContext *cxt);

/* ---------- collations ---------- */

static bool
is_code_point_locale(char provider, const char *locale)
{
	static const char *const names[] = {"C", "POSIX", "C.UTF-8", "C.utf8"};

	if (provider == 'b')		/* builtin, since 17: all of them */
		return true;
	if (provider != COLLPROVIDER_LIBC || locale == NULL)
		return false;
	for (int i = 0; i < lengthof(names); i++)
	{
		if (strcmp(locale, names[i]) == 0)
			return true;
	}
	return false;
}

static char *
text_attribute(int cache, HeapTuple tuple, AttrNumber attno)
{
	bool		isnull;
	Datum		value = SysCacheGetAttr(cache, tuple, attno, &isnull);

	return isnull ? NULL : TextDatumGetCString(value);
}

static bool
is_code_point_database(void)
{
	HeapTuple	tuple = SearchSysCache1(DATABASEOID, ObjectIdGetDatum(MyDatabaseId));
	bool		result;

	if (!HeapTupleIsValid(tuple))
		return false;
	result = is_code_point_locale(((Form_pg_database) GETSTRUCT(tuple))->datlocprovider,
								  text_attribute(DATABASEOID, tuple, Anum_pg_database_datcollate));
	ReleaseSysCache(tuple);
	return result;
}

static bool
is_code_point_collation(Oid collation)
{
	HeapTuple	tuple;
	bool		result;

	/* bytes must be in the order of code points, too */
	if (GetDatabaseEncoding() != PG_UTF8 && GetDatabaseEncoding() != PG_LATIN1)
		return false;
	if (collation == DEFAULT_COLLATION_OID)
		return is_code_point_database();
	tuple = SearchSysCache1(COLLOID, ObjectIdGetDatum(collation));
	if (!HeapTupleIsValid(tuple))
		return false;
	result = is_code_point_locale(((Form_pg_collation) GETSTRUCT(tuple))->collprovider,
								  text_attribute(COLLOID, tuple, Anum_pg_collation_collcollate));
	ReleaseSysCache(tuple);
	return result;
}

static bool
collation_allowed(const KalamCap *cap, Oid collation)
{
	if (!cap->needs_c && !cap->needs_deterministic)
		return true;
	if (!OidIsValid(collation) || !get_collation_isdeterministic(collation))
		return false;
	return !cap->needs_c || is_code_point_collation(collation);
}

/* ---------- parameters ---------- */

static bool
names_column(Node *node, void *arg)
{
	RelOptInfo *rel = arg;

	if (node == NULL)
		return false;
	if (IsA(node, Var))
		return ((Var *) node)->varlevelsup == 0 && bms_is_member(((Var *) node)->varno, rel->relids);
	if (IsA(node, PlaceHolderVar))
		return true;			/* wherever it is computed */
	return expression_tree_walker(node, names_column, arg);
}

bool
kalam_is_parameter(RelOptInfo *rel, Expr *expr)
{
	return !names_column((Node *) expr, rel);
}

/* Has it more than one value, or none outside the plan's own places for it? */
static bool
is_unsteady(Node *node, void *arg)
{
	if (node == NULL)
		return false;
	switch (nodeTag(node))
	{
		case T_SubPlan:
		case T_AlternativeSubPlan:
		case T_SubLink:
		case T_Aggref:
		case T_GroupingFunc:
		case T_WindowFunc:
		case T_CurrentOfExpr:
			return true;
		case T_Param:
			return ((Param *) node)->paramkind == PARAM_MULTIEXPR;
		default:
			return expression_tree_walker(node, is_unsteady, arg);
	}
}

static bool
cannot_fail(Node *node)
{
	switch (nodeTag(node))
	{
		case T_Const:
		case T_Param:
		case T_Var:
		case T_SQLValueFunction:
			return true;
		case T_RelabelType:
			return cannot_fail((Node *) ((RelabelType *) node)->arg);
		case T_FuncExpr:		/* now() */
			return ((FuncExpr *) node)->args == NIL;
		default:
			return false;
	}
}

static bool
ship_parameter(Node *node, ShipContext *cxt)
{
	if (kalam_capability(cxt->conn, 't', getBaseType(exprType(node))) == NULL)
		return false;
	if (cxt->conditional && !cannot_fail(node))
		return false;
	return ++*cxt->nparams <= MAX_PARAMETERS && !is_unsteady(node, NULL) && !contain_volatile_functions(node);
}

/* ---------- kinds of nodes ---------- */

static bool
ship_list(List *nodes, ShipContext *cxt)
{
	ListCell   *lc;

	foreach(lc, nodes)
	{
		if (!ship(lfirst(lc), cxt))
			return false;
	}
	return true;
}

/* An operand may not be a condition: docs/protocol.md. */
static bool
ship_operand(Node *node, ShipContext *cxt)
{
	if (exprType(node) == BOOLOID && !IsA(node, Var) && !kalam_is_parameter(cxt->rel, (Expr *) node))
		return false;
	return ship(node, cxt);
}

static bool
ship_operands(List *nodes, ShipContext *cxt)
{
	ListCell   *lc;

	foreach(lc, nodes)
	{
		if (!ship_operand(lfirst(lc), cxt))
			return false;
	}
	return true;
}

/* Not the system columns that every table has, nor the row as a whole. */
static bool
ship_var(Var *var)
{
	return var->varattno > 0;
}

static bool
ship_call(char kind, Oid oid, Oid collation, List *args, ShipContext *cxt)
{
	const KalamCap *cap = kalam_capability(cxt->conn, kind, oid);

	return cap != NULL && collation_allowed(cap, collation) && ship_operands(args, cxt);
}

/* The operator must be equality, or for NOT IN its negation. */
static bool
in_operator(ScalarArrayOpExpr *expr, ShipContext *cxt)
{
	Oid			equality = expr->useOr ? expr->opno : get_negator(expr->opno);
	const KalamCap *cap = OidIsValid(equality) ? kalam_capability(cxt->conn, 'o', equality) : NULL;
	char	   *name;

	if (cap == NULL || !collation_allowed(cap, expr->inputcollid))
		return false;
	name = get_opname(equality);
	return name != NULL && strcmp(name, "=") == 0;
}

static bool
in_values(Node *values, ShipContext *cxt)
{
	int			n;

	if (IsA(values, ArrayExpr))
	{
		ArrayExpr  *array = (ArrayExpr *) values;

		n = list_length(array->elements);
		if (array->multidims || !kalam_is_parameter(cxt->rel, (Expr *) array) || !ship_list(array->elements, cxt))
			return false;
	}
	else if (IsA(values, Const) && !((Const *) values)->constisnull)
	{
		ArrayType  *array = DatumGetArrayTypeP(((Const *) values)->constvalue);

		n = ArrayGetNItems(ARR_NDIM(array), ARR_DIMS(array));
		*cxt->nparams += n;
		if (*cxt->nparams > MAX_PARAMETERS ||
			kalam_capability(cxt->conn, 't', getBaseType(ARR_ELEMTYPE(array))) == NULL)
			return false;
	}
	else
		return false;
	return n > 0 && n <= MAX_IN_VALUES;
}

static bool
ship_in(ScalarArrayOpExpr *expr, ShipContext *cxt)
{
	return in_operator(expr, cxt) && in_values(lsecond(expr->args), cxt) &&
		ship_operand(linitial(expr->args), cxt);
}

/*
 * The column is compared as it is stored: only where both types are stored
 * alike.  The planner leaves COLLATE as such a node, too.
 */
static bool
ship_relabel(RelabelType *expr, ShipContext *cxt)
{
	Oid			from = getBaseType(exprType((Node *) expr->arg));
	Oid			to = getBaseType(expr->resulttype);

	if (from != to && !((from == TEXTOID || from == VARCHAROID) && (to == TEXTOID || to == VARCHAROID)))
		return false;
	return ship((Node *) expr->arg, cxt);
}

static bool
ship_bool(BoolExpr *expr, ShipContext *cxt)
{
	ShipContext inner = *cxt;

	if (expr->boolop != NOT_EXPR)
		inner.conditional = true;
	return ship_list(expr->args, &inner);
}

static bool
ship(Node *node, ShipContext *cxt)
{
	if (kalam_is_parameter(cxt->rel, (Expr *) node))
		return ship_parameter(node, cxt);
	switch (nodeTag(node))
	{
		case T_Var:
			return ship_var((Var *) node);
		case T_OpExpr:
			return !((OpExpr *) node)->opretset &&
				ship_call('o', ((OpExpr *) node)->opno, ((OpExpr *) node)->inputcollid, ((OpExpr *) node)->args, cxt);
		case T_FuncExpr:
			return !((FuncExpr *) node)->funcretset && !((FuncExpr *) node)->funcvariadic &&
				ship_call('f', ((FuncExpr *) node)->funcid, ((FuncExpr *) node)->inputcollid,
						  ((FuncExpr *) node)->args, cxt);
		case T_ScalarArrayOpExpr:
			return ship_in((ScalarArrayOpExpr *) node, cxt);
		case T_BoolExpr:
			return ship_bool((BoolExpr *) node, cxt);
		case T_NullTest:
			return !((NullTest *) node)->argisrow && ship((Node *) ((NullTest *) node)->arg, cxt);
		case T_BooleanTest:
			return ship((Node *) ((BooleanTest *) node)->arg, cxt);
		case T_RelabelType:
			return ship_relabel((RelabelType *) node, cxt);
		default:
			return false;
	}
}

bool
kalam_is_shippable(KalamConn *conn, RelOptInfo *rel, Expr *expr)
{
	int			nparams = 0;
	ShipContext cxt = {conn, rel, false, &nparams};

	return ship((Node *) expr, &cxt);
}
