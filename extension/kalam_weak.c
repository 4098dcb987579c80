/*
 * kalam_weak.c: placeholders for files that have not landed yet.  Deleted when all have.
 */
#include "postgres.h"

#include "kalam_core.h"

#define MISSING() \
	ereport(ERROR, (errcode(ERRCODE_FEATURE_NOT_SUPPORTED), errmsg("%s is not there yet", __func__)))
#define WEAK __attribute__((weak))

WEAK void kalam_plan_routine(FdwRoutine *routine) {}
WEAK void kalam_scan_routine(FdwRoutine *routine) {}
WEAK void kalam_modify_routine(FdwRoutine *routine) {}
WEAK void kalam_modify_init(void) {}
WEAK bool kalam_is_shippable(KalamConn *conn, RelOptInfo *rel, Expr *expr) { MISSING(); return false; }
WEAK void kalam_deparse_select(StringInfo buf, KalamConn *conn, PlannerInfo *root, RelOptInfo *rel,
	Relation relation, KalamTable *table, List *attrs, List *conds, const char *locking, List **params_list) { MISSING(); }
WEAK const char *
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
WEAK void
kalam_deparse_table(StringInfo buf, KalamTable *table)
{
	appendStringInfo(buf, "%s.%s", kalam_quote(table->namespace), kalam_quote(table->name));
}
