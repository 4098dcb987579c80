/*
 * kalam_mirror.c: a foreign table that exists locally is created on the server.
 *
 * Everything is read from the catalog, never from the statement's text, and
 * runs in the session's remote transaction: when anything fails, or the
 * transaction is rolled back, neither side keeps it.
 *
 * A default is sent when the server evaluates it to the same value (constants,
 * now(), snowflake_id(), gen_random_uuid()); others are PostgreSQL's alone.
 * Every CHECK over columns of one name on both sides is sent; the server keeps
 * what it cannot evaluate as text.  A stored generated column is a plain one
 * there.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/table.h"
#include "access/transam.h"
#include "access/xlog.h"
#include "catalog/pg_type.h"
#include "commands/defrem.h"
#include "foreign/foreign.h"
#include "miscadmin.h"
#include "nodes/nodeFuncs.h"
#include "optimizer/optimizer.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/ruleutils.h"
#include "utils/syscache.h"
#include "utils/typcache.h"

#include "kalam_core.h"
#include "kalam_ddl.h"

/* table options that are the server's too */
const char *const kalam_mirror_options[] = {
	"storage_id", "flush_policy", "deleted_retention_hours", "ttl_seconds", "access_level",
	"use_user_storage", "compression", NULL,
};

typedef struct Mirror
{
	Relation	rel;
	KalamTable *table;
	KalamConn  *conn;
	List	   *key;			/* attnums */
	StringInfoData sql;
} Mirror;

/* ---------- helpers for the other DDL files ---------- */

void
kalam_append_literal(StringInfo buf, const char *value)
{
	appendStringInfoChar(buf, '\'');
	for (const char *c = value; *c; c++)
	{
		if (*c == '\'')
			appendStringInfoChar(buf, '\'');
		appendStringInfoChar(buf, *c);
	}
	appendStringInfoChar(buf, '\'');
}

/*
 * Values are printed in their portable forms, and names that are not
 * PostgreSQL's own with their schema: the server must not take a user's
 * lower() for the one it knows.  Only for printing: users' functions run under
 * the session's settings.
 */
int
kalam_mirror_set_modes(void)
{
	int			nestlevel = kalam_set_transmission_modes();

	(void) set_config_option("standard_conforming_strings", "on", PGC_USERSET, PGC_S_SESSION, GUC_ACTION_SAVE, true,
							 0, false);
	return nestlevel;
}

char *
kalam_mirror_output(Oid typid, Datum value)
{
	int			nestlevel = kalam_mirror_set_modes();
	Oid			output;
	bool		varlena;
	char	   *text;

	getTypeOutputInfo(typid, &output, &varlena);
	text = OidOutputFunctionCall(output, value);
	kalam_reset_transmission_modes(nestlevel);
	return text;
}

char *
kalam_mirror_expression(Relation rel, Node *expr)
{
	List	   *context = deparse_context_for(RelationGetRelationName(rel), RelationGetRelid(rel));
	int			nestlevel = kalam_mirror_set_modes();
	char	   *sql = deparse_expression(expr, context, false, false);

	kalam_reset_transmission_modes(nestlevel);
	return sql;
}

/* a question: sees what the transaction did, and does not count as a write */
PGresult *
kalam_mirror_ask(KalamConn *conn, const char *sql)
{
	KalamRequest req = {.sql = sql, .flags = KALAM_REQ_TXN};

	return kalam_request(conn, &req);
}

PGresult *
kalam_mirror_request(KalamConn *conn, const char *sql)
{
	KalamRequest req = {.sql = sql, .flags = KALAM_REQ_TXN | KALAM_REQ_WRITE};

	return kalam_request(conn, &req);
}

char *
kalam_mirror_owner(Oid relid)
{
	return psprintf(UINT64_FORMAT "/%u/%u", GetSystemIdentifier(), MyDatabaseId, relid);
}

char *
kalam_mirror_fact(PGresult *rows, const char *name)
{
	for (int i = 0; i < PQntuples(rows); i++)
	{
		if (kalam_result_is(rows, i, 0, name))
			return PQgetisnull(rows, i, 1) ? NULL : kalam_result_text(rows, i, 1);
	}
	return NULL;
}

bool
kalam_mirror_is_managed(Oid relid)
{
	KalamTable *table = kalam_table_get(relid);
	StringInfoData sql;
	PGresult   *rows;
	char	   *owner;
	bool		managed;

	initStringInfo(&sql);
	appendStringInfoString(&sql, "SHOW TABLE IF EXISTS ");
	kalam_deparse_table(&sql, table);
	rows = kalam_mirror_ask(kalam_connection_for_server(table->serverid, GetUserId()), sql.data);
	owner = kalam_mirror_fact(rows, "owner");
	managed = owner && strcmp(owner, kalam_mirror_owner(relid)) == 0;
	kalam_result_free(rows);
	return managed;
}

/* ---------- types ---------- */

/* "timestamp(3) with time zone", but "character varying(3)" */
static char *
with_modifier(const char *type, const char *modifier, int len)
{
	const char *space = strncmp(type, "time", 4) == 0 ? strchr(type, ' ') : NULL;
	int			head = space ? space - type : strlen(type);

	return psprintf("%.*s%.*s%s", head, type, len, modifier, type + head);
}

/* pgvector's, in whatever schema it is */
bool
kalam_mirror_is_vector(Oid typid)
{
	HeapTuple	tuple = SearchSysCache1(TYPEOID, ObjectIdGetDatum(typid));
	Form_pg_type form;
	bool		found;

	if (!HeapTupleIsValid(tuple))
		return false;
	form = (Form_pg_type) GETSTRUCT(tuple);
	found = typid >= FirstGenbkiObjectId && form->typtype == TYPTYPE_BASE && strcmp(NameStr(form->typname), "vector") == 0;
	ReleaseSysCache(tuple);
	return found;
}

/* Types whose input functions take nothing. */
static bool
is_unreadable(Oid typid)
{
	static const Oid unreadable[] = {
		PG_NODE_TREEOID, PG_NDISTINCTOID, PG_DEPENDENCIESOID, PG_MCV_LISTOID, PG_BRIN_BLOOM_SUMMARYOID,
		PG_BRIN_MINMAX_MULTI_SUMMARYOID, GTSVECTOROID,
	};

	for (int i = 0; i < lengthof(unreadable); i++)
	{
		if (unreadable[i] == typid)
			return true;
	}
	return false;
}

static bool
is_storable(Oid typid)
{
	Oid			base = getBaseType(typid);
	Oid			element = get_element_type(base);
	TupleDesc	desc;
	bool		storable = true;

	check_stack_depth();
	if (OidIsValid(element))
		return is_storable(element);
	if (get_typtype(base) != TYPTYPE_COMPOSITE)
		return !is_unreadable(base);
	desc = lookup_rowtype_tupdesc(base, -1);
	for (int i = 0; i < desc->natts && storable; i++)
		storable = TupleDescAttr(desc, i)->attisdropped || is_storable(TupleDescAttr(desc, i)->atttypid);
	ReleaseTupleDesc(desc);
	return storable;
}

char *
kalam_mirror_type(KalamConn *conn, Oid typid, int32 typmod)
{
	Oid			base = getBaseTypeAndTypmod(typid, &typmod);
	const KalamCap *cap = kalam_capability(conn, 't', base);
	char	   *local;
	char	   *open;
	char	   *close;

	if (cap == NULL && kalam_mirror_is_vector(base))
		return typmod > 0 ? psprintf("embedding(%d)", typmod) : "embedding";
	if (cap == NULL)
		return "text";
	if (typmod < 0 || OidIsValid(get_element_type(base)) || strcmp(cap->remote, "text") == 0)
		return pstrdup(cap->remote);
	local = format_type_with_typemod(base, typmod);
	open = strchr(local, '(');
	close = open ? strchr(open, ')') : NULL;
	if (close == NULL)
		return pstrdup(cap->remote);
	return with_modifier(cap->remote, open, close - open + 1);
}

/* Labels of enums are equal where their texts are; they sort otherwise, which is left to PostgreSQL. */
static bool
is_enum(Oid typid)
{
	Oid			element = get_element_type(typid);

	return get_typtype(OidIsValid(element) ? element : typid) == TYPTYPE_ENUM;
}

static void
check_key_type(Mirror *m, Form_pg_attribute att)
{
	const KalamCap *cap = kalam_capability(m->conn, 't', getBaseType(att->atttypid));

	if (OidIsValid(att->attcollation) && !get_collation_isdeterministic(att->attcollation))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_TABLE_DEFINITION),
				 errmsg("column \"%s\" with a nondeterministic collation cannot be part of the key",
						NameStr(att->attname)),
				 errhint("The server compares keys byte by byte.")));
	if ((cap && cap->is_key) || is_enum(getBaseType(att->atttypid)))
		return;
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_TABLE_DEFINITION),
			 errmsg("column \"%s\" of type %s cannot be part of the key", NameStr(att->attname),
					format_type_be(att->atttypid)),
			 errhint("The server does not know which values of the type are equal. Make the key of columns of PostgreSQL's own types.")));
}

/* ---------- defaults ---------- */

static bool
is_snowflake(Oid serverid, Oid funcid)
{
	char	   *name = get_func_name(funcid);

	return name && strcmp(name, "snowflake_id") == 0 && get_func_nargs(funcid) == 0 &&
		get_func_namespace(funcid) == kalam_extension_namespace(serverid);
}

static const char *
server_function(Oid serverid, Node *node)
{
	if (IsA(node, SQLValueFunction))
		return ((SQLValueFunction *) node)->op == SVFOP_CURRENT_TIMESTAMP ? "now()" : NULL;
	if (!IsA(node, FuncExpr) || ((FuncExpr *) node)->args != NIL)
		return NULL;
	switch (((FuncExpr *) node)->funcid)
	{
		case F_NOW:
		case F_TRANSACTION_TIMESTAMP:
			return "now()";
		case F_GEN_RANDOM_UUID:
			return "gen_random_uuid()";
		default:
			return is_snowflake(serverid, ((FuncExpr *) node)->funcid) ? "snowflake_id()" : NULL;
	}
}

static char *
constant_text(const Const *constant)
{
	StringInfoData buf;
	char	   *text = kalam_mirror_output(constant->consttype, constant->constvalue);

	initStringInfo(&buf);
	switch (constant->consttype)
	{
		case INT2OID:
		case INT4OID:
		case INT8OID:
			return text;
		case BOOLOID:
			return DatumGetBool(constant->constvalue) ? "TRUE" : "FALSE";
		default:
			kalam_append_literal(&buf, text);
			return buf.data;
	}
}

static Node *
default_expression(Relation rel, AttrNumber attnum)
{
	TupleConstr *constr = rel->rd_att->constr;

	for (int i = 0; constr && i < constr->num_defval; i++)
	{
		if (constr->defval[i].adnum == attnum)
			return stringToNode(constr->defval[i].adbin);
	}
	return NULL;
}

const char *
kalam_mirror_default(Relation rel, Oid serverid, AttrNumber attnum)
{
	Form_pg_attribute att = TupleDescAttr(RelationGetDescr(rel), attnum - 1);
	Node	   *node;
	const char *function;

	if (!att->atthasdef || att->attgenerated)
		return NULL;
	node = default_expression(rel, attnum);
	if (node == NULL)
		return NULL;
	node = (Node *) expression_planner((Expr *) node);
	while (IsA(node, RelabelType))
		node = (Node *) ((RelabelType *) node)->arg;
	if (IsA(node, Const))
		return ((Const *) node)->constisnull ? NULL : constant_text((Const *) node);
	function = server_function(serverid, node);
	return function && exprType(node) == getBaseType(att->atttypid) ? function : NULL;
}

/* ---------- CREATE TABLE ---------- */

const char *
kalam_mirror_column_type(KalamConn *conn, Oid relid, Form_pg_attribute att)
{
	const char *type = kalam_find_option(GetForeignColumnOptions(relid, att->attnum), "remote_type");

	if (!is_storable(att->atttypid))
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("column \"%s\" has type %s, whose values cannot be stored in KalamDB", NameStr(att->attname),
						format_type_be(att->atttypid)),
				 errdetail("PostgreSQL reads no value of the type from text."),
				 errhint("Keep the text itself in a column of type text.")));
	if (type && getBaseType(att->atttypid) == JSONBOID)
		return type;
	return kalam_mirror_type(conn, att->atttypid, att->atttypmod);
}

static void
append_column(Mirror *m, Form_pg_attribute att)
{
	Oid			relid = RelationGetRelid(m->rel);
	bool		is_key = list_member_int(m->key, att->attnum);
	const char *value;

	if (is_key)
		check_key_type(m, att);
	appendStringInfo(&m->sql, "%s %s%s", kalam_quote(kalam_remote_column(relid, att->attnum)),
					 kalam_mirror_column_type(m->conn, relid, att), att->attnotnull || is_key ? " NOT NULL" : "");
	value = kalam_mirror_default(m->rel, m->table->serverid, att->attnum);
	if (value)
		appendStringInfo(&m->sql, " DEFAULT %s", value);
}

static void
append_columns(Mirror *m)
{
	TupleDesc	desc = RelationGetDescr(m->rel);
	const char *separator = "";

	for (int i = 0; i < desc->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(desc, i);

		if (att->attisdropped || kalam_is_system_column(RelationGetRelid(m->rel), att->attnum))
			continue;
		appendStringInfoString(&m->sql, separator);
		append_column(m, att);
		separator = ", ";
	}
}

static void
append_key(Mirror *m)
{
	Oid			relid = RelationGetRelid(m->rel);
	const char *name = kalam_find_option(GetForeignTable(relid)->options, "key_constraint");
	const char *separator = "";
	ListCell   *lc;

	if (m->key == NIL)
		return;
	if (name == NULL)
		name = makeObjectName(RelationGetRelationName(m->rel), NULL, "pkey");
	appendStringInfo(&m->sql, ", CONSTRAINT %s PRIMARY KEY (", kalam_quote(name));
	foreach(lc, m->key)
	{
		appendStringInfo(&m->sql, "%s%s", separator, kalam_quote(kalam_remote_column(relid, lfirst_int(lc))));
		separator = ", ";
	}
	appendStringInfoChar(&m->sql, ')');
}

bool
kalam_mirror_same_names(Relation rel, Node *expr)
{
	Bitmapset  *used = NULL;
	int			i = -1;

	pull_varattnos(expr, 1, &used);
	while ((i = bms_next_member(used, i)) >= 0)
	{
		AttrNumber	attnum = i + FirstLowInvalidHeapAttributeNumber;

		if (attnum <= 0 || kalam_is_system_column(RelationGetRelid(rel), attnum) ||
			strcmp(kalam_remote_column(RelationGetRelid(rel), attnum),
				   NameStr(TupleDescAttr(RelationGetDescr(rel), attnum - 1)->attname)) != 0)
			return false;
	}
	return true;
}

static void
append_checks(Mirror *m)
{
	TupleConstr *constr = m->rel->rd_att->constr;

	for (int i = 0; constr && i < constr->num_check; i++)
	{
		Node	   *expr = stringToNode(constr->check[i].ccbin);

		if (kalam_mirror_same_names(m->rel, expr))
			appendStringInfo(&m->sql, ", CONSTRAINT %s CHECK (%s)", kalam_quote(constr->check[i].ccname),
							 kalam_mirror_expression(m->rel, expr));
	}
}

static void
append_options(Mirror *m)
{
	List	   *options = GetForeignTable(RelationGetRelid(m->rel))->options;

	appendStringInfoString(&m->sql, ") WITH (");
	for (int i = 0; kalam_mirror_options[i]; i++)
	{
		const char *value = kalam_find_option(options, kalam_mirror_options[i]);

		if (value == NULL)
			continue;
		appendStringInfo(&m->sql, "%s = ", kalam_mirror_options[i]);
		kalam_append_literal(&m->sql, value);
		appendStringInfoString(&m->sql, ", ");
	}
	appendStringInfoString(&m->sql, "owner = ");
	kalam_append_literal(&m->sql, kalam_mirror_owner(RelationGetRelid(m->rel)));
	appendStringInfoChar(&m->sql, ')');
}

static const char *
type_word(KalamTableType type)
{
	switch (type)
	{
		case KALAM_USER:
			return "USER";
		case KALAM_STREAM:
			return "STREAM";
		case KALAM_SHARED:
			break;
	}
	return "SHARED";
}

static void
build_create(Mirror *m)
{
	appendStringInfo(&m->sql, "CREATE %s TABLE ", type_word(m->table->type));
	kalam_deparse_table(&m->sql, m->table);
	appendStringInfoString(&m->sql, " (");
	append_columns(m);
	append_key(m);
	append_checks(m);
	append_options(m);
}

void
kalam_mirror_check_columns(Oid relid)
{
	Relation	rel = table_open(relid, NoLock);
	TupleDesc	desc = RelationGetDescr(rel);

	for (int i = 0; i < desc->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(desc, i);
		const char *name = NameStr(att->attname);
		Oid			wanted = strcmp(name, KALAM_SEQ_COLUMN) == 0 ? INT8OID :
			strcmp(name, KALAM_USERID_COLUMN) == 0 ? TEXTOID : InvalidOid;

		if (att->attisdropped)
			continue;
		if (strcmp(name, KALAM_DELETED_COLUMN) == 0)
			ereport(ERROR,
					(errcode(ERRCODE_RESERVED_NAME),
					 errmsg("column name \"%s\" is reserved for KalamDB", name)));
		if (OidIsValid(wanted) && att->atttypid != wanted)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_TABLE_DEFINITION),
					 errmsg("system column \"%s\" must be of type %s", name, format_type_be(wanted))));
	}
	table_close(rel, NoLock);
}

void
kalam_mirror_create(Oid relid)
{
	Mirror		m = {.table = kalam_table_get(relid)};

	kalam_check_creation(relid);
	m.conn = kalam_connection_for_server(m.table->serverid, GetUserId());
	m.key = kalam_key_columns(relid);
	m.rel = table_open(relid, NoLock);
	initStringInfo(&m.sql);
	build_create(&m);
	table_close(m.rel, NoLock);
	kalam_result_free(kalam_mirror_request(m.conn, psprintf("CREATE NAMESPACE IF NOT EXISTS %s",
															kalam_quote(m.table->namespace))));
	kalam_result_free(kalam_mirror_request(m.conn, m.sql.data));
}
