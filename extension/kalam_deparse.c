/*
 * kalam_deparse.c: prints what kalam_shippable.c has let through, in the wire
 * dialect of docs/protocol.md.
 *
 * Every constant becomes a parameter, and none is shared between two places:
 * so the statement's text depends on its shape only, and the server finds its
 * plan again.  Only an expression that GROUP BY or the output has already is
 * written with the same parameters once more, as both must be seen to be one.
 * Templates of the capability table hold $1 … $9 for their arguments, and $* for
 * any number of them, which are printed in place.
 */
#include "postgres.h"

#include "catalog/pg_collation.h"
#include "catalog/pg_type.h"
#include "lib/stringinfo.h"
#include "nodes/makefuncs.h"
#include "nodes/nodeFuncs.h"
#include "optimizer/optimizer.h"
#include "optimizer/tlist.h"
#include "parser/parsetree.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"

#include "kalam_read.h"

/* ---------- names ---------- */

const char *
kalam_quote(const char *ident)
{
	StringInfoData buf;

	initStringInfo(&buf);
	appendStringInfoChar(&buf, '"');
	for (; *ident; ident++)
	{
		if (*ident == '"')
			appendStringInfoChar(&buf, '"');
		appendStringInfoChar(&buf, *ident);
	}
	appendStringInfoChar(&buf, '"');
	return buf.data;
}

void
kalam_deparse_table(StringInfo buf, KalamTable *table)
{
	appendStringInfo(buf, "%s.%s", kalam_quote(table->namespace), kalam_quote(table->name));
}

/* ---------- expressions ---------- */

/* A literal that nothing gave a type, as text. */
static Node *
typed_literal(Const *literal)
{
	Datum		text = literal->constisnull ? (Datum) 0 : CStringGetTextDatum(DatumGetCString(literal->constvalue));

	return (Node *) makeConst(TEXTOID, -1, DEFAULT_COLLATION_OID, -1, text, literal->constisnull, false);
}

static void
deparse_parameter(Node *node, KalamDeparse *cxt)
{
	if (IsA(node, Const) && ((Const *) node)->consttype == UNKNOWNOID)
		node = typed_literal((Const *) node);
	*cxt->params = lappend(*cxt->params, node);
	appendStringInfo(cxt->buf, "$%d", list_length(*cxt->params));
}

static void
deparse_template(const KalamCap *cap, List *args, KalamDeparse *cxt)
{
	for (const char *c = cap->remote; *c; c++)
	{
		int			place = c[0] == '$' && c[1] >= '1' && c[1] <= '9' ? c[1] - '1' : -1;

		if (c[0] == '$' && c[1] == '*')
		{
			kalam_deparse_joined(args, ", ", cxt);
			c++;
		}
		else if (place < 0)
			appendStringInfoChar(cxt->buf, *c);
		else if (place >= list_length(args))
			ereport(ERROR,
					(errcode(ERRCODE_PROTOCOL_VIOLATION),
					 errmsg("KalamDB server's template \"%s\" has more arguments than the function", cap->remote)));
		else
		{
			kalam_deparse(list_nth(args, place), cxt);
			c++;
		}
	}
}

static void
deparse_call(char kind, Oid oid, List *args, KalamDeparse *cxt)
{
	deparse_template(kalam_capability(cxt->scope->conn, kind, oid), args, cxt);
}

/* The elements of an array, as constants or expressions; a constant NULL is a NULL pointer. */
static List *
array_elements(Node *values)
{
	Const	   *array = (Const *) values;
	ArrayType  *a;
	List	   *result = NIL;
	int16		len;
	bool		byval;
	char		align;
	Datum	   *elements;
	bool	   *nulls;
	int			n;

	if (IsA(values, ArrayExpr))
		return ((ArrayExpr *) values)->elements;
	a = DatumGetArrayTypeP(castNode(Const, values)->constvalue);
	get_typlenbyvalalign(ARR_ELEMTYPE(a), &len, &byval, &align);
	deconstruct_array(a, ARR_ELEMTYPE(a), len, byval, align, &elements, &nulls, &n);
	for (int i = 0; i < n; i++)
		result = lappend(result, nulls[i] ? NULL :
						 makeConst(ARR_ELEMTYPE(a), -1, array->constcollid, len, elements[i], false, byval));
	return result;
}

static void
deparse_in(Node *left, List *elements, bool useOr, KalamDeparse *cxt)
{
	ListCell   *lc;

	appendStringInfoString(cxt->buf, useOr ? "(" : "(NOT (");
	kalam_deparse(left, cxt);
	appendStringInfoString(cxt->buf, " IN (");
	foreach(lc, elements)
	{
		appendStringInfoString(cxt->buf, lc == list_head(elements) ? "" : ", ");
		if (lfirst(lc) == NULL)
			appendStringInfoString(cxt->buf, "NULL");
		else
			kalam_deparse(lfirst(lc), cxt);
	}
	appendStringInfoString(cxt->buf, useOr ? "))" : ")))");
}

/* ANY and ALL of other operators: one comparison an element. */
static void
deparse_any_all(ScalarArrayOpExpr *expr, List *elements, KalamDeparse *cxt)
{
	Oid			type = get_element_type(exprType(lsecond(expr->args)));
	ListCell   *lc;

	appendStringInfoChar(cxt->buf, '(');
	foreach(lc, elements)
	{
		Node	   *element = lfirst(lc) ? lfirst(lc) : (Node *) makeNullConst(type, -1, InvalidOid);

		if (lc != list_head(elements))
			appendStringInfoString(cxt->buf, expr->useOr ? " OR " : " AND ");
		deparse_call('o', expr->opno, list_make2(linitial(expr->args), element), cxt);
	}
	appendStringInfoChar(cxt->buf, ')');
}

/* The array's parameter stands for each element in turn. */
static void
deparse_each(ScalarArrayOpExpr *expr, KalamDeparse *cxt)
{
	List	   *known = cxt->known;
	List	   *known_texts = cxt->known_texts;

	cxt->known = list_copy(known);
	cxt->known_texts = list_copy(known_texts);
	appendStringInfoString(cxt->buf, expr->useOr ? "kalam_any(" : "kalam_all(");
	kalam_deparse_known(lsecond(expr->args), cxt);
	appendStringInfoString(cxt->buf, ", ");
	deparse_call('o', expr->opno, expr->args, cxt);
	appendStringInfoChar(cxt->buf, ')');
	cxt->known = known;
	cxt->known_texts = known_texts;
}

static void
deparse_array_op(ScalarArrayOpExpr *expr, KalamDeparse *cxt)
{
	Node	   *values = lsecond(expr->args);
	List	   *elements;

	if (IsA(values, Const) && ((Const *) values)->constisnull)
	{
		deparse_parameter((Node *) makeNullConst(BOOLOID, -1, InvalidOid), cxt);
		return;
	}
	switch (kalam_array_form(cxt->scope, expr))
	{
		case KALAM_ARRAY_IN:
			deparse_in(linitial(expr->args), list_make1(values), expr->useOr, cxt);
			return;
		case KALAM_ARRAY_EACH:
			deparse_each(expr, cxt);
			return;
		case KALAM_ARRAY_ELEMENTS:
			break;
	}
	elements = array_elements(values);
	if (elements == NIL)
		deparse_parameter(makeBoolConst(!expr->useOr, false), cxt);
	else if (OidIsValid(kalam_in_equality(expr)))
		deparse_in(linitial(expr->args), elements, expr->useOr, cxt);
	else
		deparse_any_all(expr, elements, cxt);
}

void
kalam_deparse_joined(List *nodes, const char *separator, KalamDeparse *cxt)
{
	ListCell   *lc;

	foreach(lc, nodes)
	{
		if (lc != list_head(nodes))
			appendStringInfoString(cxt->buf, separator);
		kalam_deparse(lfirst(lc), cxt);
	}
}

static void
deparse_bool(BoolExpr *expr, KalamDeparse *cxt)
{
	appendStringInfoChar(cxt->buf, '(');
	if (expr->boolop == NOT_EXPR)
		appendStringInfoString(cxt->buf, "NOT ");
	kalam_deparse_joined(expr->args, expr->boolop == OR_EXPR ? " OR " : " AND ", cxt);
	appendStringInfoChar(cxt->buf, ')');
}

static const char *
boolean_test_name(BoolTestType type)
{
	switch (type)
	{
		case IS_TRUE:
			return "TRUE";
		case IS_NOT_TRUE:
			return "NOT TRUE";
		case IS_FALSE:
			return "FALSE";
		case IS_NOT_FALSE:
			return "NOT FALSE";
		case IS_UNKNOWN:
			return "UNKNOWN";
		case IS_NOT_UNKNOWN:
			break;
	}
	return "NOT UNKNOWN";
}

static void
deparse_test(Expr *arg, const char *test, KalamDeparse *cxt)
{
	appendStringInfoChar(cxt->buf, '(');
	kalam_deparse((Node *) arg, cxt);
	appendStringInfo(cxt->buf, " IS %s)", test);
}

/* ---------- CASE and its relatives ---------- */

/* CASE x WHEN y is printed as CASE WHEN x = y: PostgreSQL has made that of it, with a node that stands for x. */
static void
deparse_case(CaseExpr *expr, KalamDeparse *cxt)
{
	Node	   *outer = cxt->tested;
	ListCell   *lc;

	appendStringInfoString(cxt->buf, "(CASE");
	foreach(lc, expr->args)
	{
		CaseWhen   *when = lfirst_node(CaseWhen, lc);

		appendStringInfoString(cxt->buf, " WHEN ");
		if (expr->arg)
			cxt->tested = (Node *) expr->arg;
		kalam_deparse((Node *) when->expr, cxt);
		cxt->tested = outer;
		appendStringInfoString(cxt->buf, " THEN ");
		kalam_deparse((Node *) when->result, cxt);
	}
	if (expr->defresult)
	{
		appendStringInfoString(cxt->buf, " ELSE ");
		kalam_deparse((Node *) expr->defresult, cxt);
	}
	appendStringInfoString(cxt->buf, " END)");
}

static void
deparse_syntax(const char *name, List *args, KalamDeparse *cxt)
{
	appendStringInfo(cxt->buf, "%s(", name);
	kalam_deparse_joined(args, ", ", cxt);
	appendStringInfoChar(cxt->buf, ')');
}

static void
deparse_distinct(DistinctExpr *expr, KalamDeparse *cxt)
{
	appendStringInfoChar(cxt->buf, '(');
	kalam_deparse_joined(expr->args, " IS DISTINCT FROM ", cxt);
	appendStringInfoChar(cxt->buf, ')');
}

/* ---------- aggregates and window functions ---------- */

void
kalam_deparse_sort_key(Node *node, int flags, KalamDeparse *cxt)
{
	kalam_deparse(node, cxt);
	appendStringInfoString(cxt->buf, flags & KALAM_SORT_DESC ? " DESC" : " ASC");
	appendStringInfoString(cxt->buf, flags & KALAM_SORT_NULLS_FIRST ? " NULLS FIRST" : " NULLS LAST");
}

static void
deparse_sort_clauses(const char *intro, List *clauses, List *tlist, KalamDeparse *cxt)
{
	ListCell   *lc;

	foreach(lc, clauses)
	{
		SortGroupClause *clause = lfirst_node(SortGroupClause, lc);
		int			flags = clause->nulls_first ? KALAM_SORT_NULLS_FIRST : 0;

		if (!kalam_sorts_upwards(clause->sortop))
			flags |= KALAM_SORT_DESC;
		appendStringInfoString(cxt->buf, lc == list_head(clauses) ? intro : ", ");
		kalam_deparse_sort_key(get_sortgroupclause_expr(clause, tlist), flags, cxt);
	}
}

static void
deparse_filter(Expr *filter, KalamDeparse *cxt)
{
	if (filter == NULL)
		return;
	appendStringInfoString(cxt->buf, " FILTER (WHERE ");
	kalam_deparse((Node *) filter, cxt);
	appendStringInfoChar(cxt->buf, ')');
}

static void
deparse_aggregate(Aggref *agg, KalamDeparse *cxt)
{
	List	   *known = cxt->known;
	List	   *known_texts = cxt->known_texts;
	ListCell   *lc;
	const char *separator = agg->aggdistinct ? "DISTINCT " : "";

	/* what DISTINCT is of, ORDER BY must be seen to name */
	cxt->known = list_copy(known);
	cxt->known_texts = list_copy(known_texts);

	appendStringInfo(cxt->buf, "%s(", kalam_capability(cxt->scope->conn, 'a', agg->aggfnoid)->remote);
	if (agg->aggstar)
		appendStringInfoChar(cxt->buf, '*');
	foreach(lc, agg->args)
	{
		TargetEntry *entry = lfirst_node(TargetEntry, lc);

		if (entry->resjunk)
			continue;			/* only sorted by */
		appendStringInfoString(cxt->buf, separator);
		if (agg->aggdistinct)
			kalam_deparse_known((Node *) entry->expr, cxt);
		else
			kalam_deparse((Node *) entry->expr, cxt);
		separator = ", ";
	}
	deparse_sort_clauses(" ORDER BY ", agg->aggorder, agg->args, cxt);
	cxt->known = known;
	cxt->known_texts = known_texts;
	appendStringInfoChar(cxt->buf, ')');
	deparse_filter(agg->aggfilter, cxt);
}

/* By references: its arguments may be marked otherwise than what is grouped by. */
static void
deparse_grouping(GroupingFunc *func, KalamDeparse *cxt)
{
	ListCell   *lc;

	appendStringInfoString(cxt->buf, "grouping(");
	foreach(lc, func->refs)
	{
		appendStringInfoString(cxt->buf, lc == list_head(func->refs) ? "" : ", ");
		kalam_deparse((Node *) get_sortgroupref_tle(lfirst_int(lc), cxt->scope->group_keys)->expr, cxt);
	}
	appendStringInfoChar(cxt->buf, ')');
}

static void
deparse_bound(bool unbounded, bool current, Node *offset, const char *direction, KalamDeparse *cxt)
{
	if (unbounded)
		appendStringInfo(cxt->buf, "UNBOUNDED %s", direction);
	else if (current)
		appendStringInfoString(cxt->buf, "CURRENT ROW");
	else
	{
		appendStringInfo(cxt->buf, INT64_FORMAT " %s", DatumGetInt64(castNode(Const, offset)->constvalue), direction);
	}
}

static void
deparse_frame(WindowClause *window, KalamDeparse *cxt)
{
	int			options = window->frameOptions;

	if (!(options & FRAMEOPTION_NONDEFAULT))
		return;
	appendStringInfoString(cxt->buf, options & FRAMEOPTION_ROWS ? " ROWS BETWEEN " : " RANGE BETWEEN ");
	deparse_bound(options & (FRAMEOPTION_START_UNBOUNDED_PRECEDING | FRAMEOPTION_START_UNBOUNDED_FOLLOWING),
				  options & FRAMEOPTION_START_CURRENT_ROW, window->startOffset,
				  options & (FRAMEOPTION_START_OFFSET_PRECEDING | FRAMEOPTION_START_UNBOUNDED_PRECEDING) ?
				  "PRECEDING" : "FOLLOWING", cxt);
	appendStringInfoString(cxt->buf, " AND ");
	deparse_bound(options & (FRAMEOPTION_END_UNBOUNDED_PRECEDING | FRAMEOPTION_END_UNBOUNDED_FOLLOWING),
				  options & FRAMEOPTION_END_CURRENT_ROW, window->endOffset,
				  options & FRAMEOPTION_END_OFFSET_PRECEDING ? "PRECEDING" : "FOLLOWING", cxt);
}

static void
deparse_window(WindowFunc *func, KalamDeparse *cxt)
{
	List	   *tlist = cxt->root->processed_tlist;
	WindowClause *window = NULL;
	ListCell   *lc;

	foreach(lc, cxt->scope->windows)
	{
		if (lfirst_node(WindowClause, lc)->winref == func->winref)
			window = lfirst(lc);
	}
	Assert(window != NULL);
	appendStringInfo(cxt->buf, "%s(",
					 kalam_capability(cxt->scope->conn, func->winagg ? 'a' : 'w', func->winfnoid)->remote);
	if (func->winstar)
		appendStringInfoChar(cxt->buf, '*');
	kalam_deparse_joined(func->args, ", ", cxt);
	appendStringInfoChar(cxt->buf, ')');
	deparse_filter(func->aggfilter, cxt);
	appendStringInfoString(cxt->buf, " OVER (");
	foreach(lc, window->partitionClause)
	{
		appendStringInfoString(cxt->buf, lc == list_head(window->partitionClause) ? "PARTITION BY " : ", ");
		kalam_deparse(get_sortgroupclause_expr(lfirst_node(SortGroupClause, lc), tlist), cxt);
	}
	deparse_sort_clauses(window->partitionClause ? " ORDER BY " : "ORDER BY ", window->orderClause, tlist, cxt);
	deparse_frame(window, cxt);
	appendStringInfoChar(cxt->buf, ')');
}

/* ---------- all of them ---------- */

/* The SELECT in FROM that has these tables; 0 if they stand there themselves. */
static int
wrap_of(Relids relids, KalamDeparse *cxt)
{
	ListCell   *lc;

	foreach(lc, cxt->wraps)
	{
		KalamRelInfo *wrap = lfirst(lc);

		if (bms_is_subset(relids, wrap->scope.relids))
			return kalam_wrap_number(wrap);
	}
	return 0;
}

/* The same outside of such a SELECT and, as the name of its output, in it. */
void
kalam_deparse_wrapped(Node *node, KalamDeparse *cxt)
{
	if (IsA(node, PlaceHolderVar))
		appendStringInfo(cxt->buf, "\"p%u\"", ((PlaceHolderVar *) node)->phid);
	else
		appendStringInfo(cxt->buf, "\"r%dc%d\"", (int) castNode(Var, node)->varno, (int) castNode(Var, node)->varattno);
}

static bool
deparse_from_wrap(Node *node, Relids relids, KalamDeparse *cxt)
{
	int			number = wrap_of(relids, cxt);

	if (number == 0)
		return false;
	appendStringInfo(cxt->buf, "s%d.", number);
	kalam_deparse_wrapped(node, cxt);
	return true;
}

static void
deparse_placeholder(PlaceHolderVar *phv, KalamDeparse *cxt)
{
	if (cxt->wraps == NIL || !deparse_from_wrap((Node *) phv, kalam_placeholder_relids(cxt->root, phv), cxt))
		kalam_deparse((Node *) phv->phexpr, cxt);
}

static void
deparse_name(Var *var, KalamDeparse *cxt)
{
	Oid			relid = planner_rt_fetch(var->varno, cxt->root)->relid;

	if (cxt->excluded != 0 && var->varno == cxt->excluded)
		appendStringInfoString(cxt->buf, "excluded.");
	else if (cxt->qualify)
		appendStringInfo(cxt->buf, "r%d.", (int) var->varno);
	appendStringInfoString(cxt->buf, kalam_quote(kalam_remote_column(relid, var->varattno)));
}

/* What is kept as text is marked as a value of its type: a table that is older than that has it as mere text. */
static void
deparse_column(Var *var, KalamDeparse *cxt)
{
	const KalamCap *cap;
	const char *mark;

	if (cxt->wraps != NIL && deparse_from_wrap((Node *) var, bms_make_singleton(var->varno), cxt))
		return;
	cap = cxt->bare ? NULL : kalam_compared(cxt->scope->conn, var->vartype);
	mark = cap != NULL ? strstr(cap->remote, "$1") : NULL;
	if (mark != NULL)
		appendBinaryStringInfo(cxt->buf, cap->remote, mark - cap->remote);
	deparse_name(var, cxt);
	if (mark != NULL)
		appendStringInfoString(cxt->buf, mark + 2);
}

static bool
deparse_known(Node *node, KalamDeparse *cxt)
{
	ListCell   *lc;
	ListCell   *text;

	forboth(lc, cxt->known, text, cxt->known_texts)
	{
		if (equal(lfirst(lc), node))
		{
			appendStringInfoString(cxt->buf, strVal(lfirst(text)));
			return true;
		}
	}
	return false;
}

void
kalam_deparse_known(Node *node, KalamDeparse *cxt)
{
	int			start = cxt->buf->len;

	if (deparse_known(node, cxt))
		return;
	kalam_deparse(node, cxt);
	cxt->known = lappend(cxt->known, node);
	cxt->known_texts = lappend(cxt->known_texts, makeString(pstrdup(cxt->buf->data + start)));
}

static void
deparse_more(Node *node, KalamDeparse *cxt)
{
	switch (nodeTag(node))
	{
		case T_CaseExpr:
			deparse_case((CaseExpr *) node, cxt);
			break;
		case T_CaseTestExpr:
			kalam_deparse(cxt->tested, cxt);
			break;
		case T_CoalesceExpr:
			deparse_syntax("COALESCE", ((CoalesceExpr *) node)->args, cxt);
			break;
		case T_MinMaxExpr:
			deparse_syntax(((MinMaxExpr *) node)->op == IS_GREATEST ? "GREATEST" : "LEAST",
						   ((MinMaxExpr *) node)->args, cxt);
			break;
		case T_NullIfExpr:
			deparse_syntax("NULLIF", ((NullIfExpr *) node)->args, cxt);
			break;
		case T_DistinctExpr:
			deparse_distinct((DistinctExpr *) node, cxt);
			break;
		case T_PlaceHolderVar:
			deparse_placeholder((PlaceHolderVar *) node, cxt);
			break;
		case T_Aggref:
			deparse_aggregate((Aggref *) node, cxt);
			break;
		case T_GroupingFunc:
			deparse_grouping((GroupingFunc *) node, cxt);
			break;
		case T_WindowFunc:
			deparse_window((WindowFunc *) node, cxt);
			break;
		default:
			elog(ERROR, "unexpected node type %d in a condition that was to be sent", (int) nodeTag(node));
	}
}

void
kalam_deparse(Node *node, KalamDeparse *cxt)
{
	if (cxt->known != NIL && deparse_known(node, cxt))
		return;
	if (kalam_is_parameter(cxt->scope->relids, (Expr *) node))
	{
		deparse_parameter(node, cxt);
		return;
	}
	switch (nodeTag(node))
	{
		case T_Var:
			deparse_column((Var *) node, cxt);
			break;
		case T_OpExpr:
			deparse_call('o', ((OpExpr *) node)->opno, ((OpExpr *) node)->args, cxt);
			break;
		case T_FuncExpr:
			deparse_call('f', ((FuncExpr *) node)->funcid, ((FuncExpr *) node)->args, cxt);
			break;
		case T_ScalarArrayOpExpr:
			deparse_array_op((ScalarArrayOpExpr *) node, cxt);
			break;
		case T_BoolExpr:
			deparse_bool((BoolExpr *) node, cxt);
			break;
		case T_NullTest:
			deparse_test(((NullTest *) node)->arg,
						 ((NullTest *) node)->nulltesttype == IS_NULL ? "NULL" : "NOT NULL", cxt);
			break;
		case T_BooleanTest:
			deparse_test(((BooleanTest *) node)->arg, boolean_test_name(((BooleanTest *) node)->booltesttype), cxt);
			break;
		case T_CoerceViaIO:
			deparse_template(kalam_conversion(cxt->scope->conn, (CoerceViaIO *) node),
							 list_make1(((CoerceViaIO *) node)->arg), cxt);
			break;
		case T_RelabelType:
			kalam_deparse((Node *) ((RelabelType *) node)->arg, cxt);
			break;
		default:
			deparse_more(node, cxt);
	}
}
