/*
 * kalam_deparse.c: prints what kalam_shippable.c has let through, in the wire
 * dialect of docs/protocol.md.
 *
 * Every constant becomes a parameter, and none is shared between two places:
 * so the statement's text depends on its shape only, and the server finds its
 * plan again.  Templates of the capability table hold $1 … $9 for their
 * arguments, which are printed in place.
 */
#include "postgres.h"

#include "lib/stringinfo.h"
#include "nodes/makefuncs.h"
#include "utils/array.h"
#include "utils/lsyscache.h"

#include "kalam_read.h"

typedef struct DeparseContext
{
	StringInfo	buf;
	KalamConn  *conn;
	RelOptInfo *rel;
	Oid			relid;
	List	  **params;
} DeparseContext;

static void deparse(Node *node, DeparseContext *cxt);

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

static void
deparse_parameter(Node *node, DeparseContext *cxt)
{
	*cxt->params = lappend(*cxt->params, node);
	appendStringInfo(cxt->buf, "$%d", list_length(*cxt->params));
}

static void
deparse_call(char kind, Oid oid, List *args, DeparseContext *cxt)
{
	const KalamCap *cap = kalam_capability(cxt->conn, kind, oid);

	for (const char *c = cap->remote; *c; c++)
	{
		int			place = c[0] == '$' && c[1] >= '1' && c[1] <= '9' ? c[1] - '1' : -1;

		if (place < 0)
			appendStringInfoChar(cxt->buf, *c);
		else if (place >= list_length(args))
			ereport(ERROR,
					(errcode(ERRCODE_PROTOCOL_VIOLATION),
					 errmsg("KalamDB server's template \"%s\" has more arguments than the function", cap->remote)));
		else
		{
			deparse(list_nth(args, place), cxt);
			c++;
		}
	}
}

/* The elements of an array constant, as constants; NULL is written out. */
static void
deparse_elements(Const *array, DeparseContext *cxt)
{
	ArrayType  *a = DatumGetArrayTypeP(array->constvalue);
	Oid			type = ARR_ELEMTYPE(a);
	int16		len;
	bool		byval;
	char		align;
	Datum	   *values;
	bool	   *nulls;
	int			n;

	get_typlenbyvalalign(type, &len, &byval, &align);
	deconstruct_array(a, type, len, byval, align, &values, &nulls, &n);
	for (int i = 0; i < n; i++)
	{
		appendStringInfoString(cxt->buf, i == 0 ? "" : ", ");
		if (nulls[i])
			appendStringInfoString(cxt->buf, "NULL");
		else
			deparse_parameter((Node *) makeConst(type, -1, array->constcollid, len, values[i], false, byval), cxt);
	}
}

static void
deparse_joined(List *nodes, const char *separator, DeparseContext *cxt)
{
	ListCell   *lc;

	foreach(lc, nodes)
	{
		if (lc != list_head(nodes))
			appendStringInfoString(cxt->buf, separator);
		deparse(lfirst(lc), cxt);
	}
}

static void
deparse_in(ScalarArrayOpExpr *expr, DeparseContext *cxt)
{
	Node	   *values = lsecond(expr->args);

	appendStringInfoString(cxt->buf, expr->useOr ? "(" : "(NOT (");
	deparse(linitial(expr->args), cxt);
	appendStringInfoString(cxt->buf, " IN (");
	if (IsA(values, ArrayExpr))
		deparse_joined(((ArrayExpr *) values)->elements, ", ", cxt);
	else
		deparse_elements(castNode(Const, values), cxt);
	appendStringInfoString(cxt->buf, expr->useOr ? "))" : ")))");
}

static void
deparse_bool(BoolExpr *expr, DeparseContext *cxt)
{
	appendStringInfoChar(cxt->buf, '(');
	if (expr->boolop == NOT_EXPR)
		appendStringInfoString(cxt->buf, "NOT ");
	deparse_joined(expr->args, expr->boolop == OR_EXPR ? " OR " : " AND ", cxt);
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
deparse_test(Expr *arg, const char *test, DeparseContext *cxt)
{
	appendStringInfoChar(cxt->buf, '(');
	deparse((Node *) arg, cxt);
	appendStringInfo(cxt->buf, " IS %s)", test);
}

static void
deparse(Node *node, DeparseContext *cxt)
{
	if (kalam_is_parameter(cxt->rel, (Expr *) node))
	{
		deparse_parameter(node, cxt);
		return;
	}
	switch (nodeTag(node))
	{
		case T_Var:
			appendStringInfoString(cxt->buf, kalam_quote(kalam_remote_column(cxt->relid, ((Var *) node)->varattno)));
			break;
		case T_OpExpr:
			deparse_call('o', ((OpExpr *) node)->opno, ((OpExpr *) node)->args, cxt);
			break;
		case T_FuncExpr:
			deparse_call('f', ((FuncExpr *) node)->funcid, ((FuncExpr *) node)->args, cxt);
			break;
		case T_ScalarArrayOpExpr:
			deparse_in((ScalarArrayOpExpr *) node, cxt);
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
		case T_RelabelType:
			deparse((Node *) ((RelabelType *) node)->arg, cxt);
			break;
		default:
			elog(ERROR, "unexpected node type %d in a condition that was to be sent", (int) nodeTag(node));
	}
}

/* ---------- statements ---------- */

static void
deparse_columns(List *attrs, DeparseContext *cxt)
{
	const char *separator = "";
	ListCell   *lc;

	if (attrs == NIL)
		appendStringInfoString(cxt->buf, "NULL");
	foreach(lc, attrs)
	{
		appendStringInfo(cxt->buf, "%s%s", separator, kalam_quote(kalam_remote_column(cxt->relid, lfirst_int(lc))));
		separator = ", ";
	}
}

/* conds: bare expressions; locking: as "FOR UPDATE", or NULL */
void
kalam_deparse_select(StringInfo buf, KalamConn *conn, PlannerInfo *root, RelOptInfo *rel, Relation relation,
					 KalamTable *table, List *attrs, List *conds, const char *locking, List **params_list)
{
	DeparseContext cxt = {buf, conn, rel, RelationGetRelid(relation), params_list};

	appendStringInfoString(buf, "SELECT ");
	deparse_columns(attrs, &cxt);
	appendStringInfoString(buf, " FROM ");
	kalam_deparse_table(buf, table);
	if (conds != NIL)
	{
		appendStringInfoString(buf, list_length(conds) > 1 ? " WHERE (" : " WHERE ");
		deparse_joined(conds, " AND ", &cxt);
		appendStringInfoString(buf, list_length(conds) > 1 ? ")" : "");
	}
	if (locking != NULL)
		appendStringInfo(buf, " %s", locking);
}
