/*
 * kalam_shippable.c: may this expression be sent?
 *
 * What the server evaluates exactly as PostgreSQL does is in its capability
 * table; beyond that only what docs/protocol.md calls always understood (AND,
 * OR, NOT, IS NULL, IN, IS TRUE …).  Assumptions:
 *
 *	- The server compares text by code points and knows no collations.  So it
 *	  does not matter where an operator's collation comes from, only whether it
 *	  orders (flag c) or equates (flag d) as code points do, and whether its
 *	  letters are those of ASCII (flag a).
 *	- A part without a column of this table is computed here and becomes a
 *	  parameter, so it may be anything that has one value for the whole scan and
 *	  a type with an exact wire form.
 *	- Such a part may raise an error; inside AND, OR and CASE, where PostgreSQL
 *	  might not have computed it, only parts are taken that cannot.
 */
#include "postgres.h"

#include "access/stratnum.h"
#include "catalog/pg_aggregate.h"
#include "catalog/pg_collation.h"
#include "catalog/pg_database.h"
#include "catalog/pg_type.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "nodes/nodeFuncs.h"
#include "optimizer/clauses.h"
#include "optimizer/optimizer.h"
#include "optimizer/tlist.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/lsyscache.h"
#include "utils/syscache.h"
#include "utils/typcache.h"

#include "kalam_read.h"

#define MAX_IN_VALUES 2000
#define MAX_SINGLE_VALUES 16		/* of IN; longer constant lists are one parameter, so that the text is the same */
#define MAX_PARAMETERS 10000		/* of one condition; the protocol has room for 65535 in a statement */

typedef struct ShipContext
{
	const KalamScope *scope;
	bool		conditional;	/* inside AND, OR or CASE */
	bool		in_aggregate;
	bool		in_window;
	bool		in_case;		/* there is a value that CASE compares */
	int		   *nparams;		/* so far */
} ShipContext;

static bool ship(Node *node, ShipContext *cxt);

/* ---------- collations ---------- */

#if PG_VERSION_NUM >= 170000
#define Anum_collation_locale Anum_pg_collation_colllocale
#define Anum_database_locale Anum_pg_database_datlocale
#else
#define Anum_collation_locale Anum_pg_collation_colliculocale
#define Anum_database_locale Anum_pg_database_daticulocale
#endif

#define PROVIDER_BUILTIN 'b'	/* since 17 */

/* What a collation is of; a name is NULL where the provider has none. */
typedef struct Locale
{
	char		provider;
	char	   *collate;		/* libc */
	char	   *ctype;
	char	   *name;			/* the others */
} Locale;

static char *
text_attribute(int cache, HeapTuple tuple, AttrNumber attno)
{
	bool		isnull;
	Datum		value = SysCacheGetAttr(cache, tuple, attno, &isnull);

	return isnull ? NULL : TextDatumGetCString(value);
}

static bool
find_locale(Oid collation, Locale *locale)
{
	bool		is_database = collation == DEFAULT_COLLATION_OID;
	int			cache = is_database ? DATABASEOID : COLLOID;
	HeapTuple	tuple = SearchSysCache1(cache, ObjectIdGetDatum(is_database ? MyDatabaseId : collation));

	if (!HeapTupleIsValid(tuple))
		return false;
	if (is_database)
		locale->provider = ((Form_pg_database) GETSTRUCT(tuple))->datlocprovider;
	else
		locale->provider = ((Form_pg_collation) GETSTRUCT(tuple))->collprovider;
	locale->collate = text_attribute(cache, tuple, is_database ? Anum_pg_database_datcollate : Anum_pg_collation_collcollate);
	locale->ctype = text_attribute(cache, tuple, is_database ? Anum_pg_database_datctype : Anum_pg_collation_collctype);
	locale->name = text_attribute(cache, tuple, is_database ? Anum_database_locale : Anum_collation_locale);
	ReleaseSysCache(tuple);
	return true;
}

static bool
is_one_of(const char *name, const char *const *names)
{
	for (; name && *names; names++)
	{
		if (strcmp(name, *names) == 0)
			return true;
	}
	return false;
}

static bool
is_code_point_collation(Oid collation)
{
	static const char *const names[] = {"C", "POSIX", "C.UTF-8", "C.utf8", NULL};
	Locale		locale;

	/* bytes must be in the order of code points, too */
	if (GetDatabaseEncoding() != PG_UTF8 && GetDatabaseEncoding() != PG_LATIN1)
		return false;
	if (!find_locale(collation, &locale))
		return false;
	return locale.provider == PROVIDER_BUILTIN ||	/* all of them */
		(locale.provider == COLLPROVIDER_LIBC && is_one_of(locale.collate, names));
}

/* Have A to Z another case, and nothing else?  PostgreSQL then asks no library. */
bool
kalam_has_ascii_letters(Oid collation)
{
	static const char *const names[] = {"C", "POSIX", NULL};
	Locale		locale;

	if (!find_locale(collation, &locale))
		return false;
	if (locale.provider == PROVIDER_BUILTIN)
		return is_one_of(locale.name, (const char *const[]) {"C", NULL});
	return locale.provider == COLLPROVIDER_LIBC && is_one_of(locale.ctype, names);
}

static bool
collation_allowed(const KalamCap *cap, Oid collation)
{
	if (!cap->needs_c && !cap->needs_deterministic && !cap->needs_ascii)
		return true;
	if (!OidIsValid(collation) || !get_collation_isdeterministic(collation))
		return false;
	return (!cap->needs_c || is_code_point_collation(collation)) &&
		(!cap->needs_ascii || kalam_has_ascii_letters(collation));
}

bool
kalam_operator_allowed(KalamConn *conn, Oid operator, Oid collation)
{
	const KalamCap *cap = OidIsValid(operator) ? kalam_capability(conn, 'o', operator) : NULL;

	return cap != NULL && collation_allowed(cap, collation);
}

/* PostgreSQL 18 tells what an operator compares for, not by which number */
#if PG_VERSION_NUM >= 180000
typedef CompareType OrderKind;
#define ORDER_LESS COMPARE_LT
#else
typedef int16 OrderKind;
#define ORDER_LESS BTLessStrategyNumber
#endif

/* "<" of the type's own order, or ">" of it */
static bool
is_usual_order(Oid sortop)
{
	Oid			opfamily;
	Oid			type;
	OrderKind	kind;

	return get_ordering_op_properties(sortop, &opfamily, &type, &kind) &&
		lookup_type_cache(type, TYPECACHE_BTREE_OPFAMILY)->btree_opf == opfamily;
}

bool
kalam_sorts_upwards(Oid sortop)
{
	Oid			opfamily;
	Oid			type;
	OrderKind	kind;

	return get_ordering_op_properties(sortop, &opfamily, &type, &kind) && kind == ORDER_LESS;
}

bool
kalam_sort_allowed(KalamConn *conn, const SortGroupClause *clause, Oid collation)
{
	return is_usual_order(clause->sortop) && kalam_operator_allowed(conn, clause->sortop, collation);
}

/* ---------- placeholders ---------- */

/* The tables at whose join it is computed; NULL if that depends on a row outside of it. */
Relids
kalam_placeholder_relids(PlannerInfo *root, PlaceHolderVar *phv)
{
	ListCell   *lc;

	foreach(lc, root->placeholder_list)
	{
		PlaceHolderInfo *info = lfirst_node(PlaceHolderInfo, lc);

		if (info->phid == phv->phid)
			return phv->phlevelsup == 0 && bms_is_empty(info->ph_lateral) ?
				bms_intersect(info->ph_eval_at, root->all_baserels) : NULL;
	}
	return NULL;
}

/* ---------- parameters ---------- */

static bool
names_column(Node *node, void *arg)
{
	Relids		relids = arg;

	if (node == NULL)
		return false;
	switch (nodeTag(node))
	{
		case T_Var:
			return ((Var *) node)->varlevelsup == 0 && bms_is_member(((Var *) node)->varno, relids);
		case T_ArrayCoerceExpr: /* its CaseTestExpr is its own element */
			return names_column((Node *) ((ArrayCoerceExpr *) node)->arg, arg);
		case T_PlaceHolderVar:	/* wherever it is computed */
		case T_CaseTestExpr:	/* stands for something around it */
		case T_Aggref:			/* of rows, even without an argument */
		case T_GroupingFunc:
		case T_WindowFunc:
			return true;
		default:
			return expression_tree_walker(node, names_column, arg);
	}
}

bool
kalam_is_parameter(Relids relids, Expr *expr)
{
	return !names_column((Node *) expr, relids);
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
		case T_CaseTestExpr:	/* below */
			return true;
		case T_ArrayCoerceExpr:
			return cannot_fail((Node *) ((ArrayCoerceExpr *) node)->arg) &&
				cannot_fail((Node *) ((ArrayCoerceExpr *) node)->elemexpr);
		case T_FuncExpr:		/* now() */
			return ((FuncExpr *) node)->args == NIL;
		default:
			return false;
	}
}

/* Has the server a form of its own for it? */
static bool
is_native(Oid type, ShipContext *cxt)
{
	const KalamCap *cap = kalam_capability(cxt->scope->conn, 't', getBaseType(type));

	return cap != NULL && !cap->kept;
}

/* Is this known to the server as a type, not just as some text? */
static bool
type_allowed(Oid type, ShipContext *cxt)
{
	return is_native(type, cxt) || kalam_compared(cxt->scope->conn, type) != NULL;
}

static bool
ship_value(Node *node, Oid type, ShipContext *cxt)
{
	if (!type_allowed(type, cxt))
		return false;
	if (cxt->conditional && !cannot_fail(node))
		return false;
	return ++*cxt->nparams <= MAX_PARAMETERS && !is_unsteady(node, NULL) && !contain_volatile_functions(node);
}

static bool
ship_parameter(Node *node, ShipContext *cxt)
{
	Oid			type = exprType(node);

	/* a literal that nothing gave a type: kalam_deparse.c makes it text */
	return ship_value(node, type == UNKNOWNOID && IsA(node, Const) ? TEXTOID : type, cxt);
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

/* Of what the store evaluates by itself, an operand may not be a condition: docs/protocol.md. */
static bool
ship_operand(Node *node, ShipContext *cxt)
{
	Oid			element = get_element_type(getBaseType(exprType(node)));

	/* an array is sent as a value only */
	if (OidIsValid(element))
		return kalam_is_parameter(cxt->scope->relids, (Expr *) node) && ship_value(node, element, cxt);
	if (cxt->scope->plain && exprType(node) == BOOLOID && !IsA(node, Var) && !kalam_is_parameter(cxt->scope->relids, (Expr *) node))
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

/* Computed somewhere below; the value may be handed up through outer joins: kalam_join.c. */
static bool
ship_placeholder(PlaceHolderVar *phv, ShipContext *cxt)
{
	Relids		made = kalam_placeholder_relids(cxt->scope->root, phv);

	return made != NULL && bms_is_subset(made, cxt->scope->relids) &&
		type_allowed(exprType((Node *) phv), cxt) && ship((Node *) phv->phexpr, cxt);
}

/* Where the database has no encoding, its functions of text count bytes. */
static bool
encoding_allowed(const KalamCap *cap, Oid collation)
{
	if (GetDatabaseEncoding() == PG_SQL_ASCII && OidIsValid(collation) && !cap->plain)
		return false;
	return !cap->needs_utf8 || GetDatabaseEncoding() == PG_UTF8;
}

static bool
cap_allowed(const KalamCap *cap, Oid collation, ShipContext *cxt)
{
	return cap != NULL && (cap->plain || !cxt->scope->plain) && collation_allowed(cap, collation) &&
		encoding_allowed(cap, collation);
}

static bool
ship_call(char kind, Oid oid, Oid collation, List *args, ShipContext *cxt)
{
	const KalamCap *cap = kalam_capability(cxt->scope->conn, kind, oid);

	return cap_allowed(cap, collation, cxt) && kalam_arguments_allowed(cxt->scope->conn, cap, args, collation) &&
		ship_operands(args, cxt);
}

static bool
is_text(Oid type)
{
	return type == TEXTOID || type == VARCHAROID;
}

const KalamCap *
kalam_conversion(KalamConn *conn, CoerceViaIO *expr)
{
	Oid			from = getBaseType(exprType((Node *) expr->arg));

	if (is_text(expr->resulttype))
		return kalam_capability(conn, 'u', from);
	return is_text(from) ? kalam_capability(conn, 'i', expr->resulttype) : NULL;
}

static bool
ship_conversion(CoerceViaIO *expr, ShipContext *cxt)
{
	return cap_allowed(kalam_conversion(cxt->scope->conn, expr), exprCollation((Node *) expr->arg), cxt) &&
		ship_operand((Node *) expr->arg, cxt);
}

/* "=", where it is IN, or NOT IN; otherwise invalid */
Oid
kalam_in_equality(ScalarArrayOpExpr *expr)
{
	Oid			equality = expr->useOr ? expr->opno : get_negator(expr->opno);
	char	   *name = OidIsValid(equality) ? get_opname(equality) : NULL;

	return name != NULL && strcmp(name, "=") == 0 ? equality : InvalidOid;
}

/* The operator of which ANY or ALL is made; IN and NOT IN are made of "=" both. */
static bool
array_operator(ScalarArrayOpExpr *expr, ShipContext *cxt)
{
	Oid			operator = kalam_in_equality(expr);
	const KalamCap *cap;

	if (!OidIsValid(operator))
	{
		if (cxt->scope->plain)
			return false;
		operator = expr->opno;
	}
	cap = kalam_capability(cxt->scope->conn, 'o', operator);
	return cap_allowed(cap, expr->inputcollid, cxt) &&
		kalam_arguments_allowed(cxt->scope->conn, cap, NIL, expr->inputcollid); /* not if it asks something of them */
}

static int
constant_length(Const *array)
{
	ArrayType  *a;

	if (array->constisnull)
		return 0;
	a = DatumGetArrayTypeP(array->constvalue);
	return ArrayGetNItems(ARR_NDIM(a), ARR_DIMS(a));
}

/*
 * Of an array that has a value here: as one parameter for IN or for the general
 * form, or as a parameter for each element.
 */
KalamArrayForm
kalam_array_form(const KalamScope *scope, ScalarArrayOpExpr *expr)
{
	Node	   *values = lsecond(expr->args);
	Oid			equality = kalam_in_equality(expr);
	const KalamCap *cap = OidIsValid(equality) ? kalam_capability(scope->conn, 'o', equality) : NULL;
	bool		in = cap != NULL && cap->plain;

	if (IsA(values, ArrayExpr) || !kalam_is_parameter(scope->relids, (Expr *) values) ||
		(IsA(values, Const) && constant_length((Const *) values) <= (in ? MAX_SINGLE_VALUES : MAX_IN_VALUES)))
		return KALAM_ARRAY_ELEMENTS;
	return in ? KALAM_ARRAY_IN : KALAM_ARRAY_EACH;
}

/* The array's elements, one by one. */
static bool
array_values(Node *values, ShipContext *cxt)
{
	int			n;

	if (IsA(values, ArrayExpr))
	{
		ArrayExpr  *array = (ArrayExpr *) values;

		n = list_length(array->elements);
		if (array->multidims || (cxt->scope->plain && !kalam_is_parameter(cxt->scope->relids, (Expr *) array)) ||
			!ship_list(array->elements, cxt))
			return false;
	}
	else if (IsA(values, Const))
	{
		n = constant_length((Const *) values);
		*cxt->nparams += n;
		if (*cxt->nparams > MAX_PARAMETERS || !type_allowed(get_element_type(((Const *) values)->consttype), cxt))
			return false;
	}
	else
		return false;
	return (n > 0 || !cxt->scope->plain) && n <= MAX_IN_VALUES;
}

static bool
ship_array_op(ScalarArrayOpExpr *expr, ShipContext *cxt)
{
	Node	   *values = lsecond(expr->args);

	if (!array_operator(expr, cxt) || !ship_operand(linitial(expr->args), cxt))
		return false;
	if (kalam_array_form(cxt->scope, expr) != KALAM_ARRAY_ELEMENTS)
		return ship_value(values, get_element_type(getBaseType(exprType(values))), cxt);
	return array_values(values, cxt);
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

	/* a cidr is an inet to the server, too */
	if (from != to && !(is_text(from) && is_text(to)) && !(from == CIDROID && to == INETOID))
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

/* ---------- kinds of nodes that the store does not evaluate by itself ---------- */

/* Each part only where PostgreSQL would compute it. */
static bool
ship_case(CaseExpr *expr, ShipContext *cxt)
{
	ShipContext inner = *cxt;
	ListCell   *lc;

	if (!type_allowed(expr->casetype, cxt) || (expr->arg && !ship((Node *) expr->arg, cxt)))
		return false;
	inner.conditional = true;
	foreach(lc, expr->args)
	{
		CaseWhen   *when = lfirst_node(CaseWhen, lc);

		inner.in_case = expr->arg != NULL;
		if (!ship((Node *) when->expr, &inner))
			return false;
		inner.in_case = cxt->in_case;
		if (!ship((Node *) when->result, &inner))
			return false;
	}
	return expr->defresult == NULL || ship((Node *) expr->defresult, &inner);
}

static bool
ship_coalesce(CoalesceExpr *expr, ShipContext *cxt)
{
	ShipContext inner = *cxt;

	inner.conditional = true;
	return type_allowed(expr->coalescetype, cxt) && ship_list(expr->args, &inner);
}

/* GREATEST and LEAST compare as "<" of the type does. */
static bool
ship_min_max(MinMaxExpr *expr, ShipContext *cxt)
{
	TypeCacheEntry *cache = lookup_type_cache(expr->minmaxtype, TYPECACHE_LT_OPR);

	return kalam_operator_allowed(cxt->scope->conn, cache->lt_opr, expr->inputcollid) &&
		is_native(expr->minmaxtype, cxt) && ship_list(expr->args, cxt);
}

/* IS DISTINCT FROM and NULLIF are made of "=". */
static bool
ship_equality(OpExpr *expr, ShipContext *cxt)
{
	char	   *name = get_opname(expr->opno);

	return name != NULL && strcmp(name, "=") == 0 && type_allowed(exprType(linitial(expr->args)), cxt) &&
		ship_call('o', expr->opno, expr->inputcollid, expr->args, cxt);
}

/* Inside the argument of an aggregate or window function. */
static bool
ship_arguments(List *args, Expr *filter, ShipContext *cxt)
{
	return ship_list(args, cxt) && (filter == NULL || ship((Node *) filter, cxt));
}

static bool
sorts_allowed(List *clauses, List *tlist, bool order, ShipContext *cxt)
{
	ListCell   *lc;

	foreach(lc, clauses)
	{
		SortGroupClause *clause = lfirst_node(SortGroupClause, lc);
		Node	   *expr = get_sortgroupclause_expr(clause, tlist);
		Oid			collation = exprCollation(expr);
		KalamConn  *conn = cxt->scope->conn;

		/* the server's query engine refuses to sort an aggregate's input by a constant */
		if (order && kalam_is_parameter(cxt->scope->relids, (Expr *) expr))
			return false;
		if (order ? !kalam_sort_allowed(conn, clause, collation) :
			!kalam_operator_allowed(conn, clause->eqop, collation))
			return false;
	}
	return true;
}

/*
 * DISTINCT sorts, too.  Of equal values that look different it leaves any; where
 * all are shown, that would show.
 */
static bool
order_given(Aggref *agg, ShipContext *cxt)
{
	Oid			type = linitial_oid(agg->aggargtypes);

	if (agg->aggdistinct == NIL)
		return agg->aggorder != NIL;
	if (type == NUMERICOID || type == FLOAT4OID || type == FLOAT8OID || type == JSONBOID)
		return false;
	return agg->aggorder != NIL || sorts_allowed(agg->aggdistinct, agg->args, true, cxt);
}

/* An array is read as its text. */
static bool
result_allowed(Oid type, ShipContext *cxt)
{
	Oid			element = get_element_type(type);

	return OidIsValid(element) ? is_native(element, cxt) : type_allowed(type, cxt);
}

static bool
ship_aggregate(Aggref *agg, ShipContext *cxt)
{
	const KalamCap *cap = kalam_capability(cxt->scope->conn, 'a', agg->aggfnoid);
	ShipContext inner = *cxt;
	List	   *args = NIL;
	ListCell   *lc;

	if (!cxt->scope->grouped || cxt->in_aggregate || agg->aggsplit != AGGSPLIT_SIMPLE ||
		agg->aggkind != AGGKIND_NORMAL || agg->aggvariadic || agg->agglevelsup > 0 ||
		!cap_allowed(cap, agg->inputcollid, cxt) ||
		(agg->aggdistinct && list_length(agg->aggargtypes) > 1 && !cap->needs_order) || (cap->needs_order && !order_given(agg, cxt)) ||
		!result_allowed(agg->aggtype, cxt))
		return false;
	inner.in_aggregate = true;
	inner.conditional = true;
	foreach(lc, agg->args)
		args = lappend(args, lfirst_node(TargetEntry, lc)->expr);
	/* the server's query engine knows one separator for all rows */
	if (cap->needs_order && list_length(agg->aggargtypes) > 1 &&
		!kalam_is_parameter(cxt->scope->relids, lsecond(args)))
		return false;
	return ship_arguments(args, agg->aggfilter, &inner) &&
		sorts_allowed(agg->aggdistinct, agg->args, false, cxt) && sorts_allowed(agg->aggorder, agg->args, true, cxt);
}

static bool
is_group_key(Index ref, const KalamScope *scope)
{
	ListCell   *lc;

	foreach(lc, scope->group_keys)
	{
		if (lfirst_node(TargetEntry, lc)->ressortgroupref == ref)
			return true;
	}
	return false;
}

/* Which of the group's keys a row's set has not. */
static bool
ship_grouping(GroupingFunc *func, ShipContext *cxt)
{
	ListCell   *lc;

	if (!cxt->scope->grouped || cxt->in_aggregate || func->agglevelsup > 0)
		return false;
	foreach(lc, func->refs)
	{
		if (!is_group_key(lfirst_int(lc), cxt->scope))
			return false;
	}
	return true;
}

static WindowClause *
window_of(WindowFunc *func, const KalamScope *scope)
{
	ListCell   *lc;

	foreach(lc, scope->windows)
	{
		if (lfirst_node(WindowClause, lc)->winref == func->winref)
			return lfirst(lc);
	}
	return NULL;
}

/* A distance is part of the statement's text, so it may be no parameter; a negative one is PostgreSQL's error. */
static bool
distance_allowed(Node *distance)
{
	Const	   *number = (Const *) distance;

	return distance == NULL || (IsA(distance, Const) && number->consttype == INT8OID && !number->constisnull &&
								DatumGetInt64(number->constvalue) >= 0);
}

/* RANGE and GROUPS with distances need arithmetic on what is sorted by. */
static bool
frame_allowed(WindowClause *window)
{
	int			distances = FRAMEOPTION_START_OFFSET | FRAMEOPTION_END_OFFSET;

	if (window->frameOptions & (FRAMEOPTION_EXCLUSION | FRAMEOPTION_GROUPS))
		return false;
	return (window->frameOptions & distances) == 0 ||
		((window->frameOptions & FRAMEOPTION_ROWS) && distance_allowed(window->startOffset) &&
		 distance_allowed(window->endOffset));
}

/*
 * The server refuses to partition and sort windows by what may fail: its query
 * engine takes such expressions for volatile.  Columns, aggregates and what is
 * chosen among them by comparisons cannot.
 */
static bool
may_fail(Node *node, ShipContext *cxt)
{
	const KalamCap *cap;

	if (node == NULL || IsA(node, Aggref) || kalam_is_parameter(cxt->scope->relids, (Expr *) node))
		return false;
	if (IsA(node, FuncExpr) || IsA(node, CoerceViaIO))
		return true;
	if (IsA(node, OpExpr))
	{
		cap = kalam_capability(cxt->scope->conn, 'o', ((OpExpr *) node)->opno);
		if (cap == NULL || !cap->plain)
			return true;
	}
	return expression_tree_walker(node, may_fail, cxt);
}

static bool
ship_window_keys(ShipContext *cxt)
{
	ListCell   *lc;

	foreach(lc, cxt->scope->window_exprs)
	{
		if (may_fail(lfirst(lc), cxt))
			return false;
	}
	return ship_list(cxt->scope->window_exprs, cxt);
}

static bool
ship_window(WindowFunc *func, ShipContext *cxt)
{
	WindowClause *window = window_of(func, cxt->scope);
	KalamConn  *conn = cxt->scope->conn;
	const KalamCap *cap = kalam_capability(conn, func->winagg ? 'a' : 'w', func->winfnoid);
	ShipContext inner = *cxt;

	if (window == NULL || cxt->in_window || cxt->in_aggregate || !frame_allowed(window) ||
		!cap_allowed(cap, func->inputcollid, cxt) || (cap->needs_order && func->winagg) ||
		!type_allowed(func->wintype, cxt))
		return false;
	/* PostgreSQL looks at a partition's first row for it */
	if (func->winfnoid == F_NTILE && !kalam_is_parameter(cxt->scope->relids, linitial(func->args)))
		return false;
	inner.in_window = true;
	inner.conditional = true;
	return ship_arguments(func->args, func->aggfilter, &inner) && ship_window_keys(&inner);
}

/* Functions that take any number of values of any types make texts of them. */
static bool
texts_allowed(FuncExpr *expr, ShipContext *cxt)
{
	ListCell   *lc;

	if (expr->funcvariadic)
		return false;
	foreach(lc, expr->args)
	{
		Oid			type = getBaseType(exprType(lfirst(lc)));

		if (!is_text(type) && type != BOOLOID && type != UNKNOWNOID && kalam_capability(cxt->scope->conn, 'u', type) == NULL)
			return false;
	}
	return true;
}

static bool
ship_function(FuncExpr *expr, ShipContext *cxt)
{
	return !expr->funcretset &&
		(get_func_variadictype(expr->funcid) != ANYOID || texts_allowed(expr, cxt)) &&
		ship_call('f', expr->funcid, expr->inputcollid, expr->args, cxt);
}

static bool
ship_more(Node *node, ShipContext *cxt)
{
	switch (nodeTag(node))
	{
		case T_CaseExpr:
			return ship_case((CaseExpr *) node, cxt);
		case T_CaseTestExpr:
			return cxt->in_case;
		case T_CoalesceExpr:
			return ship_coalesce((CoalesceExpr *) node, cxt);
		case T_MinMaxExpr:
			return ship_min_max((MinMaxExpr *) node, cxt);
		case T_NullIfExpr:
		case T_DistinctExpr:
			return ship_equality((OpExpr *) node, cxt);
		case T_PlaceHolderVar:
			return ship_placeholder((PlaceHolderVar *) node, cxt);
		case T_Aggref:
			return ship_aggregate((Aggref *) node, cxt);
		case T_GroupingFunc:
			return ship_grouping((GroupingFunc *) node, cxt);
		case T_WindowFunc:
			return ship_window((WindowFunc *) node, cxt);
		default:
			return false;
	}
}

static bool
ship(Node *node, ShipContext *cxt)
{
	if (kalam_is_parameter(cxt->scope->relids, (Expr *) node))
		return ship_parameter(node, cxt);
	switch (nodeTag(node))
	{
		case T_Var:
			return ship_var((Var *) node);
		case T_OpExpr:
			return !((OpExpr *) node)->opretset &&
				ship_call('o', ((OpExpr *) node)->opno, ((OpExpr *) node)->inputcollid, ((OpExpr *) node)->args, cxt);
		case T_FuncExpr:
			return ship_function((FuncExpr *) node, cxt);
		case T_ScalarArrayOpExpr:
			return ship_array_op((ScalarArrayOpExpr *) node, cxt);
		case T_BoolExpr:
			return ship_bool((BoolExpr *) node, cxt);
		case T_NullTest:
			return !((NullTest *) node)->argisrow && ship((Node *) ((NullTest *) node)->arg, cxt);
		case T_BooleanTest:
			return ship((Node *) ((BooleanTest *) node)->arg, cxt);
		case T_RelabelType:
			return ship_relabel((RelabelType *) node, cxt);
		case T_CoerceViaIO:
			return ship_conversion((CoerceViaIO *) node, cxt);
		default:
			return !cxt->scope->plain && ship_more(node, cxt);
	}
}

bool
kalam_is_shippable(const KalamScope *scope, Expr *expr)
{
	int			nparams = 0;
	ShipContext cxt = {.scope = scope, .nparams = &nparams};

	return ship((Node *) expr, &cxt);
}
