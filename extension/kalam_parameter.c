/*
 * kalam_parameter.c: the parameters of a statement: expressions that are
 * computed here, once an execution, and sent as values.
 */
#include "postgres.h"

#include "executor/executor.h"
#include "nodes/nodeFuncs.h"
#include "utils/memutils.h"

#include "kalam_read.h"

/* What it makes lives in the current context; parent is NULL where no plan node owns the expressions. */
void
kalam_parameters_prepare(KalamParameters *params, KalamConn *conn, List *exprs, PlanState *parent)
{
	int			n = list_length(exprs);

	params->n = n;
	params->exprs = ExecInitExprList(exprs, parent);
	params->converters = palloc(sizeof(KalamConverter) * Max(n, 1));
	params->types = palloc(sizeof(Oid) * Max(n, 1));
	for (int i = 0; i < n; i++)
	{
		Node	   *expr = list_nth(exprs, i);

		kalam_parameter_converter(&params->converters[i], conn, exprType(expr), exprTypmod(expr));
		params->types[i] = params->converters[i].wire_oid;
		params->needs_modes |= params->converters[i].as_text;
	}
}

/* Computes them into a request, in the expression context's memory, which lasts until the next row. */
void
kalam_parameters_take(KalamParameters *params, ExprContext *econtext, KalamRequest *req)
{
	MemoryContext old = MemoryContextSwitchTo(econtext->ecxt_per_tuple_memory);
	int			n = params->n;
	char	  **values = palloc0(sizeof(char *) * n);
	int		   *lengths = palloc0(sizeof(int) * n);
	int		   *formats = palloc0(sizeof(int) * n);
	Datum	   *datums = palloc(sizeof(Datum) * n);
	bool	   *nulls = palloc(sizeof(bool) * n);
	int			nestlevel = 0;

	for (int i = 0; i < n; i++)
		datums[i] = ExecEvalExpr(list_nth_node(ExprState, params->exprs, i), econtext, &nulls[i]);
	if (params->needs_modes)
		nestlevel = kalam_set_transmission_modes();
	for (int i = 0; i < n; i++)
	{
		if (!nulls[i])
			values[i] = kalam_to_param(&params->converters[i], datums[i], &lengths[i], &formats[i]);
	}
	if (params->needs_modes)
		kalam_reset_transmission_modes(nestlevel);
	req->nparams = n;
	req->types = params->types;
	req->values = (const char *const *) values;
	req->lengths = lengths;
	req->formats = formats;
	MemoryContextSwitchTo(old);
}
