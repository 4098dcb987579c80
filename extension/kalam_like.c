/*
 * kalam_like.c: LIKE in CREATE TABLE … USING kalamdb, written out.
 *
 * PostgreSQL has no LIKE for foreign tables before version 18.  Expressions
 * are printed and parsed again, so that they mean the new table's columns.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "catalog/namespace.h"
#include "catalog/pg_attribute.h"
#include "catalog/pg_class.h"
#include "catalog/pg_constraint.h"
#include "catalog/pg_index.h"
#include "commands/comment.h"
#include "nodes/makefuncs.h"
#include "parser/parser.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/relcache.h"
#include "utils/ruleutils.h"
#include "utils/syscache.h"
#include "miscadmin.h"

#include "kalam_core.h"
#include "kalam_ddl.h"

typedef struct Like
{
	Relation	rel;
	bits32		options;
	bool		ours;			/* the source is a table of ours, too */
	List	   *context;		/* for printing expressions */
	KalamLike  *result;
} Like;

static Node *
parse_expression(const char *text)
{
	RawStmt    *raw = linitial_node(RawStmt, raw_parser(text, RAW_PARSE_PLPGSQL_EXPR));

	return linitial_node(ResTarget, ((SelectStmt *) raw->stmt)->targetList)->val;
}

static Node *
reparsed(Like *like, const char *stored)
{
	return parse_expression(deparse_expression(stringToNode(stored), like->context, false, false));
}

static const char *
stored_default(Like *like, AttrNumber attnum)
{
	TupleConstr *constr = RelationGetDescr(like->rel)->constr;

	for (int i = 0; constr && i < constr->num_defval; i++)
	{
		if (constr->defval[i].adnum == attnum)
			return constr->defval[i].adbin;
	}
	return NULL;
}

/* ---------- columns ---------- */

static void
add_expression(Like *like, ColumnDef *column, Form_pg_attribute att)
{
	const char *stored = att->atthasdef ? stored_default(like, att->attnum) : NULL;
	bool		wanted = (like->options & (att->attgenerated ? CREATE_TABLE_LIKE_GENERATED : CREATE_TABLE_LIKE_DEFAULTS)) != 0;
	Constraint *constraint;

	if (att->attidentity && (like->options & CREATE_TABLE_LIKE_IDENTITY))
	{
		constraint = kalam_create_constraint(CONSTR_IDENTITY);
		constraint->generated_when = att->attidentity;
		column->constraints = lappend(column->constraints, constraint);
	}
	if (stored == NULL || !wanted)
		return;
	constraint = kalam_create_constraint(att->attgenerated ? CONSTR_GENERATED : CONSTR_DEFAULT);
	constraint->raw_expr = reparsed(like, stored);
	if (att->attgenerated)
	{
		constraint->generated_when = ATTRIBUTE_IDENTITY_ALWAYS;
#if PG_VERSION_NUM >= 180000
		constraint->generated_kind = att->attgenerated;
#endif
	}
	column->constraints = lappend(column->constraints, constraint);
}

static void
add_comment(Like *like, Form_pg_attribute att)
{
	char	   *comment;

	if ((like->options & CREATE_TABLE_LIKE_COMMENTS) == 0)
		return;
	comment = GetComment(RelationGetRelid(like->rel), RelationRelationId, att->attnum);
	if (comment)
		like->result->comments = lappend(like->result->comments,
										 list_make2(pstrdup(NameStr(att->attname)), comment));
}

static void
add_column(Like *like, Form_pg_attribute att)
{
	ColumnDef  *column = makeColumnDef(NameStr(att->attname), att->atttypid, att->atttypmod, att->attcollation);

	if (att->attnotnull)
		column->constraints = lappend(column->constraints, kalam_create_constraint(CONSTR_NOTNULL));
	add_expression(like, column, att);
	if (like->ours)
	{
		const char *type = kalam_find_option(GetForeignColumnOptions(RelationGetRelid(like->rel), att->attnum),
											 "remote_type");

		if (type)
			column->fdwoptions = list_make1(makeDefElem("remote_type", (Node *) makeString(pstrdup(type)), -1));
	}
	add_comment(like, att);
	like->result->elements = lappend(like->result->elements, column);
}

static void
add_columns(Like *like)
{
	TupleDesc	desc = RelationGetDescr(like->rel);

	for (int i = 0; i < desc->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(desc, i);

		if (!att->attisdropped && !(like->ours && kalam_is_system_column(RelationGetRelid(like->rel), att->attnum)))
			add_column(like, att);
	}
}

/* ---------- constraints and key ---------- */

static void
add_checks(Like *like)
{
	TupleConstr *constr = RelationGetDescr(like->rel)->constr;

	if ((like->options & CREATE_TABLE_LIKE_CONSTRAINTS) == 0)
		return;
	for (int i = 0; constr && i < constr->num_check; i++)
	{
		Constraint *check = kalam_create_constraint(CONSTR_CHECK);

		check->conname = pstrdup(constr->check[i].ccname);
		check->raw_expr = reparsed(like, constr->check[i].ccbin);
		check->is_no_inherit = constr->check[i].ccnoinherit;
		like->result->elements = lappend(like->result->elements, check);
	}
}

/* as PostgreSQL, which names it anew */
static void
set_key(Like *like, List *names)
{
	like->result->key = kalam_create_constraint(CONSTR_PRIMARY);
	like->result->key->keys = names;
}

static void
take_index(Like *like, Form_pg_index index)
{
	List	   *names = NIL;

	if (!index->indisprimary)
	{
		if (index->indisunique)
			kalam_refuse_constraint(CONSTR_UNIQUE);
		if (index->indisexclusion)
			kalam_refuse_constraint(CONSTR_EXCLUSION);
		ereport(NOTICE,
				(errmsg("index \"%s\" is not copied", get_rel_name(index->indexrelid))));
		return;
	}
	for (int i = 0; i < index->indnkeyatts; i++)
		names = lappend(names, makeString(get_attname(RelationGetRelid(like->rel), index->indkey.values[i], false)));
	set_key(like, names);
}

static void
take_own_key(Like *like)
{
	List	   *names = NIL;
	ListCell   *lc;

	foreach(lc, kalam_key_columns(RelationGetRelid(like->rel)))
		names = lappend(names, makeString(get_attname(RelationGetRelid(like->rel), lfirst_int(lc), false)));
	if (names != NIL)
		set_key(like, names);
}

static void
take_indexes(Like *like)
{
	ListCell   *lc;

	if ((like->options & CREATE_TABLE_LIKE_INDEXES) == 0)
		return;
	if (like->ours)
	{
		take_own_key(like);
		return;
	}
	foreach(lc, RelationGetIndexList(like->rel))
	{
		HeapTuple	tuple = SearchSysCache1(INDEXRELID, ObjectIdGetDatum(lfirst_oid(lc)));

		if (!HeapTupleIsValid(tuple))
			continue;
		take_index(like, (Form_pg_index) GETSTRUCT(tuple));
		ReleaseSysCache(tuple);
	}
}

/* ---------- the clause ---------- */

static void
check_source(Relation rel)
{
	char		kind = rel->rd_rel->relkind;
	AclResult	acl;

	if (kind != RELKIND_RELATION && kind != RELKIND_VIEW && kind != RELKIND_MATVIEW && kind != RELKIND_FOREIGN_TABLE &&
		kind != RELKIND_PARTITIONED_TABLE)
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("relation \"%s\" is invalid in LIKE clause", RelationGetRelationName(rel))));
	acl = pg_class_aclcheck(RelationGetRelid(rel), GetUserId(), ACL_SELECT);
	if (acl != ACLCHECK_OK)
		aclcheck_error(acl, get_relkind_objtype(kind), RelationGetRelationName(rel));
}

KalamLike *
kalam_like_expand(const TableLikeClause *clause)
{
	Like		like = {.options = clause->options, .result = palloc0(sizeof(KalamLike))};

	like.rel = table_openrv(clause->relation, AccessShareLock);
	check_source(like.rel);
	like.ours = kalam_is_relation(RelationGetRelid(like.rel));
	like.context = deparse_context_for(RelationGetRelationName(like.rel), RelationGetRelid(like.rel));
	add_columns(&like);
	add_checks(&like);
	take_indexes(&like);
	table_close(like.rel, NoLock);
	return like.result;
}
