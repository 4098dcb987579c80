/*
 * kalam_statement.c: prints statements in the wire dialect of docs/protocol.md:
 * SELECT of a table or join, and the steps that PostgreSQL would take above it,
 * which are the clauses of the same statement; UPDATE and DELETE as a whole.
 *
 * With several tables each is called r and its number in the range table.
 */
#include "postgres.h"

#include "lib/stringinfo.h"
#include "optimizer/optimizer.h"
#include "parser/parsetree.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"

#include "kalam_read.h"

static void deparse_from(KalamRelInfo *info, KalamDeparse *cxt);

/* ---------- FROM ---------- */

int
kalam_wrap_number(KalamRelInfo *wrap)
{
	return bms_next_member(wrap->scope.relids, -1);
}

/* The SELECTs that stand in this FROM. */
static List *
wraps_in(KalamRelInfo *info)
{
	List	   *wraps = NIL;

	if (info->table != NULL)
		return NIL;
	wraps = info->wrap_outer ? list_make1(info->outer) : wraps_in(info->outer);
	if (info->jointype == JOIN_SEMI || info->jointype == JOIN_ANTI)
		return wraps;
	return list_concat(wraps, info->wrap_inner ? list_make1(info->inner) : wraps_in(info->inner));
}

static void
deparse_base(KalamRelInfo *info, KalamDeparse *cxt)
{
	kalam_deparse_table(cxt->buf, info->table);
	if (cxt->qualify)
		appendStringInfo(cxt->buf, " r%u", info->rtindex);
}

/* Conditions in a row; before stands in front of them if there are any. */
static void
deparse_conditions(const char *before, List *conds, List *exists, KalamDeparse *cxt)
{
	bool		several = list_length(conds) + list_length(exists) > 1;
	const char *separator = "";
	ListCell   *lc;

	if (conds == NIL && exists == NIL)
		return;
	appendStringInfo(cxt->buf, " %s %s", before, several ? "(" : "");
	kalam_deparse_joined(conds, " AND ", cxt);
	if (conds != NIL)
		separator = " AND ";
	foreach(lc, exists)
	{
		KalamExists *item = lfirst(lc);
		List	   *wraps = cxt->wraps;

		cxt->wraps = list_concat_copy(wraps, wraps_in(item->inner));
		appendStringInfo(cxt->buf, "%s(%sEXISTS (SELECT NULL FROM ", separator, item->anti ? "NOT " : "");
		deparse_from(item->inner, cxt);
		deparse_conditions("WHERE", list_concat_copy(item->conds, item->inner->conds), item->inner->exists, cxt);
		appendStringInfoString(cxt->buf, "))");
		cxt->wraps = wraps;
		separator = " AND ";
	}
	if (several)
		appendStringInfoChar(cxt->buf, ')');
}

static const char *
join_name(JoinType type)
{
	switch (type)
	{
		case JOIN_LEFT:
			return "LEFT";
		case JOIN_RIGHT:
			return "RIGHT";
		case JOIN_FULL:
			return "FULL";
		default:
			return "INNER";
	}
}

/* A side of an outer join as a SELECT of its own. */
static void
deparse_wrap(KalamRelInfo *info, KalamDeparse *cxt)
{
	List	   *wraps = cxt->wraps;
	List	   *known = cxt->known;
	const char *separator = "(SELECT ";
	ListCell   *lc;

	cxt->wraps = wraps_in(info);
	cxt->known = NIL;			/* those are the names of what is seen outside */
	if (info->columns == NIL)
		appendStringInfoString(cxt->buf, "(SELECT NULL AS \"none\"");
	foreach(lc, info->columns)
	{
		appendStringInfoString(cxt->buf, separator);
		kalam_deparse(lfirst(lc), cxt);
		appendStringInfoString(cxt->buf, " AS ");
		kalam_deparse_wrapped(lfirst(lc), cxt);
		separator = ", ";
	}
	appendStringInfoString(cxt->buf, " FROM ");
	deparse_from(info, cxt);
	deparse_conditions("WHERE", info->conds, info->exists, cxt);
	appendStringInfo(cxt->buf, ") s%d", kalam_wrap_number(info));
	cxt->wraps = wraps;
	cxt->known = known;
}

static void
deparse_side(KalamRelInfo *side, bool wrapped, KalamDeparse *cxt)
{
	if (wrapped)
		deparse_wrap(side, cxt);
	else
		deparse_from(side, cxt);
}

static void
deparse_from(KalamRelInfo *info, KalamDeparse *cxt)
{
	if (info->table != NULL)
	{
		deparse_base(info, cxt);
		return;
	}
	if (info->jointype == JOIN_SEMI || info->jointype == JOIN_ANTI)
	{
		deparse_from(info->outer, cxt);	/* the other side is a condition */
		return;
	}
	appendStringInfoChar(cxt->buf, '(');
	deparse_side(info->outer, info->wrap_outer, cxt);
	appendStringInfo(cxt->buf, " %s JOIN ", join_name(info->jointype));
	deparse_side(info->inner, info->wrap_inner, cxt);
	if (info->on == NIL && info->on_exists == NIL)
		appendStringInfoString(cxt->buf, " ON TRUE");
	deparse_conditions("ON", info->on, info->on_exists, cxt);
	appendStringInfoChar(cxt->buf, ')');
}

/* ---------- the statement ---------- */

static void
deparse_known_list(const char *before, List *nodes, KalamDeparse *cxt)
{
	ListCell   *lc;

	foreach(lc, nodes)
	{
		appendStringInfoString(cxt->buf, lc == list_head(nodes) ? before : ", ");
		kalam_deparse_known(lfirst(lc), cxt);
	}
}

/* Columns that are handed on as they are stored need no mark; what was printed otherwise is printed so again. */
static void
deparse_outputs(const KalamStatement *statement, KalamDeparse *cxt)
{
	bool		plain = statement->groups == NIL && statement->sets == NIL && !statement->distinct &&
		statement->distinct_on == NIL;
	ListCell   *lc;

	foreach(lc, statement->outputs)
	{
		appendStringInfoString(cxt->buf, lc == list_head(statement->outputs) ? "" : ", ");
		cxt->bare = plain && IsA(lfirst(lc), Var);
		if (cxt->bare)
			kalam_deparse(lfirst(lc), cxt);
		else
			kalam_deparse_known(lfirst(lc), cxt);
		cxt->bare = false;
	}
}

static void
deparse_order(List *order, KalamDeparse *cxt)
{
	ListCell   *lc;

	foreach(lc, order)
	{
		List	   *key = lfirst_node(List, lc);

		appendStringInfoString(cxt->buf, lc == list_head(order) ? " ORDER BY " : ", ");
		kalam_deparse_sort_key(linitial(key), intVal(lsecond(key)), cxt);
	}
}

static void
deparse_number(const char *before, Node *number, KalamDeparse *cxt)
{
	if (number == NULL)
		return;
	appendStringInfoString(cxt->buf, before);
	kalam_deparse(number, cxt);
}

static void
deparse_sets(List *sets, KalamDeparse *cxt)
{
	ListCell   *lc;
	ListCell   *ref;

	foreach(lc, sets)
	{
		appendStringInfoString(cxt->buf, lc == list_head(sets) ? " GROUP BY GROUPING SETS (" : ", ");
		appendStringInfoChar(cxt->buf, '(');
		foreach(ref, (List *) lfirst(lc))
		{
			appendStringInfoString(cxt->buf, ref == list_head((List *) lfirst(lc)) ? "" : ", ");
			kalam_deparse_known((Node *) get_sortgroupref_tle(lfirst_int(ref), cxt->scope->group_keys)->expr, cxt);
		}
		appendStringInfoChar(cxt->buf, ')');
	}
	appendStringInfoChar(cxt->buf, ')');
}

/*
 * What GROUP BY names must be written alike in the output, HAVING and ORDER BY,
 * and so must what DISTINCT leaves: what was printed once is remembered.
 */
void
kalam_deparse_statement(StringInfo buf, const KalamStatement *statement, List **params)
{
	KalamRelInfo *from = statement->from;
	StringInfoData groups;
	KalamDeparse cxt = {.buf = &groups, .root = from->root, .scope = statement->scope, .params = params,
	.qualify = from->table == NULL,.wraps = wraps_in(from)};

	initStringInfo(&groups);
	if (statement->sets != NIL)
		deparse_sets(statement->sets, &cxt);
	else
		deparse_known_list(" GROUP BY ", statement->groups, &cxt);
	cxt.buf = buf;
	appendStringInfoString(buf, statement->distinct ? "SELECT DISTINCT " : "SELECT ");
	deparse_known_list("DISTINCT ON (", statement->distinct_on, &cxt);
	if (statement->distinct_on != NIL)
		appendStringInfoString(buf, ") ");
	if (statement->outputs == NIL)
		appendStringInfoString(buf, "NULL");
	deparse_outputs(statement, &cxt);
	appendStringInfoString(buf, " FROM ");
	deparse_from(from, &cxt);
	deparse_conditions("WHERE", statement->conds, from->exists, &cxt);
	appendStringInfoString(buf, groups.data);
	deparse_conditions(statement->nonempty ? "HAVING (count(*) > 0) AND" : "HAVING", statement->having, NIL, &cxt);
	if (statement->nonempty && statement->having == NIL)
		appendStringInfoString(buf, " HAVING (count(*) > 0)");
	deparse_conditions("QUALIFY", statement->qualify, NIL, &cxt);
	deparse_order(statement->order, &cxt);
	deparse_number(" LIMIT ", statement->limit, &cxt);
	deparse_number(" OFFSET ", statement->offset, &cxt);
	if (statement->locking != NULL)
		appendStringInfo(buf, " %s", statement->locking);
}

/* ---------- UPDATE and DELETE ---------- */

static void
deparse_settings(Oid relid, List *attnos, List *exprs, KalamDeparse *cxt)
{
	ListCell   *attno;
	ListCell   *expr;

	forboth(attno, attnos, expr, exprs)
	{
		appendStringInfo(cxt->buf, "%s%s = ", attno == list_head(attnos) ? " SET " : ", ",
						 kalam_quote(kalam_remote_column(relid, lfirst_int(attno))));
		kalam_deparse(lfirst(expr), cxt);
	}
}

static bool
holds(KalamRelInfo *info, KalamRelInfo *target)
{
	return bms_is_member(target->rtindex, info->scope.relids);
}

/*
 * FROM without the target, with which the joins that hold it are inner ones:
 * their conditions are collected for WHERE.
 */
static void
deparse_others(KalamRelInfo *info, KalamRelInfo *target, const char **before, List **conds, List **exists,
			   KalamDeparse *cxt)
{
	if (!holds(info, target))
	{
		appendStringInfoString(cxt->buf, *before);
		deparse_from(info, cxt);
		*before = ", ";
	}
	else if (info->table == NULL)
	{
		deparse_others(info->outer, target, before, conds, exists, cxt);
		if (info->jointype != JOIN_INNER)
			return;				/* the other side is a condition */
		deparse_others(info->inner, target, before, conds, exists, cxt);
		*conds = list_concat(*conds, info->on);
		*exists = list_concat(*exists, info->on_exists);
	}
}

static void
deparse_joined_change(const KalamChange *change, KalamDeparse *cxt)
{
	const char *before = change->operation == CMD_UPDATE ? " FROM " : " USING ";
	List	   *conds = list_copy(change->conds);
	List	   *exists = list_copy(change->from->exists);

	deparse_others(change->from, change->target, &before, &conds, &exists, cxt);
	deparse_conditions("WHERE", conds, exists, cxt);
}

void
kalam_deparse_change(StringInfo buf, const KalamChange *change, List **params)
{
	KalamRelInfo *target = change->target;
	KalamDeparse cxt = {.buf = buf, .root = target->root, .scope = change->scope, .params = params,
	.qualify = change->from != NULL,.wraps = change->from != NULL ? wraps_in(change->from) : NIL};
	ListCell   *lc;

	appendStringInfoString(buf, change->operation == CMD_UPDATE ? "UPDATE " : "DELETE FROM ");
	deparse_base(target, &cxt);
	deparse_settings(target->table->relid, change->attnos, change->exprs, &cxt);
	if (change->from != NULL)
		deparse_joined_change(change, &cxt);
	else
		deparse_conditions("WHERE", change->conds, NIL, &cxt);
	cxt.bare = true;
	foreach(lc, change->returning)
	{
		appendStringInfoString(buf, lc == list_head(change->returning) ? " RETURNING " : ", ");
		kalam_deparse(lfirst(lc), &cxt);
	}
}

/* Of the rows' columns, which stand before it, it knows nothing: their parameters follow its own. */
void
kalam_deparse_upsert(StringInfo buf, PlannerInfo *root, const KalamUpsert *upsert, List **params)
{
	KalamDeparse cxt = {.buf = buf, .root = root, .scope = upsert->scope, .params = params, .qualify = true,
	.excluded = upsert->excluded};
	ListCell   *lc;

	foreach(lc, upsert->keys)
		appendStringInfo(buf, "%s%s", lc == list_head(upsert->keys) ? "ON CONFLICT (" : ", ",
						 kalam_quote(kalam_remote_column(upsert->relid, lfirst_int(lc))));
	appendStringInfoString(buf, ") DO UPDATE");
	deparse_settings(upsert->relid, upsert->attnos, upsert->exprs, &cxt);
	deparse_conditions("WHERE", upsert->conds, NIL, &cxt);
}

/* ---------- for EXPLAIN ---------- */

static void
append_names(StringInfo buf, KalamRelInfo *info)
{
	if (info->table != NULL)
		appendStringInfo(buf, "%s%s r%u", buf->len > 0 ? ", " : "",
						 quote_qualified_identifier(get_namespace_name(get_rel_namespace(info->table->relid)),
													get_rel_name(info->table->relid)),
						 info->rtindex);
	else
	{
		append_names(buf, info->outer);
		append_names(buf, info->inner);
	}
}

char *
kalam_relation_names(KalamRelInfo *from)
{
	StringInfoData buf;

	initStringInfo(&buf);
	append_names(&buf, from);
	return buf.data;
}
