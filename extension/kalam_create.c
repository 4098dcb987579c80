/*
 * kalam_create.c: CREATE TABLE … USING kalamdb becomes CREATE FOREIGN TABLE.
 *
 * Only the parse tree is dealt with here, and only as far as foreign tables
 * differ from tables: the primary key goes into column options, SERIAL and
 * IDENTITY become defaults, FILE becomes jsonb, WITH becomes OPTIONS, and the
 * system columns are appended.  Everything else is left for PostgreSQL to
 * judge.  The server is not talked to: kalam_mirror.c does that from the
 * catalog, when the local table stands.
 */
#include "postgres.h"

#include "access/tableam.h"
#include "catalog/namespace.h"
#include "catalog/pg_collation.h"
#include "catalog/pg_type.h"
#include "commands/defrem.h"
#include "miscadmin.h"
#include "nodes/makefuncs.h"
#include "parser/parse_type.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"

#include "kalam_core.h"
#include "kalam_ddl.h"

/* options of WITH; table_type is called type there, and the server is named by an option */
static const char *const with_options[] = {
	"type", "server", "namespace", "table", "storage_id", "flush_policy", "deleted_retention_hours",
	"ttl_seconds", "access_level", "use_user_storage", "compression", "system_columns", "fetch_size",
	"batch_size", "use_remote_estimate", "updatable", "truncatable", "async_capable", "analyze_sampling",
};

typedef struct Rewrite
{
	const CreateStmt *stmt;
	ForeignServer *server;
	char	   *type;			/* 'user', 'shared', 'stream', or a wrong one the validator will name */
	bool		system_columns;
	List	   *options;		/* of the foreign table */
	List	   *elements;
	List	   *key;			/* column names, as String */
	char	   *key_constraint;
	bool		has_key;
	Oid			parent;			/* PARTITION OF; InvalidOid: none */
	List	   *comments;		/* of columns, from LIKE */
} Rewrite;

bool
kalam_is_access_method(const char *name)
{
	if (name == NULL)
		name = default_table_access_method;
	return name != NULL && strcmp(name, KALAM_AM_NAME) == 0 && OidIsValid(get_table_am_oid(name, true));
}

/* Where the extension's functions are: with the wrapper's handler. */
Oid
kalam_extension_namespace(Oid serverid)
{
	ForeignDataWrapper *fdw = GetForeignDataWrapper(GetForeignServer(serverid)->fdwid);

	return get_func_namespace(fdw->fdwhandler);
}

/* ---------- options ---------- */

static DefElem *
option(const char *name, const char *value)
{
	return makeDefElem(pstrdup(name), (Node *) makeString(pstrdup(value)), -1);
}

static void
check_with_name(const DefElem *def)
{
	char	   *name = def->defnamespace ? psprintf("%s.%s", def->defnamespace, def->defname) : def->defname;

	if (def->defnamespace == NULL && strcmp(name, "key") == 0)
		ereport(ERROR,
				(errcode(ERRCODE_FDW_INVALID_OPTION_NAME),
				 errmsg("option \"key\" is for CREATE TABLE AS"),
				 errhint("Declare a PRIMARY KEY.")));
	for (int i = 0; i < lengthof(with_options); i++)
	{
		if (def->defnamespace == NULL && strcmp(with_options[i], name) == 0)
			return;
	}
	kalam_bad_option(name, with_options, lengthof(with_options));
}

static void
take_with_option(Rewrite *rw, DefElem *def)
{
	char	   *name = def->defname;
	char	   *value = def->arg ? defGetString(def) : pstrdup("true");

	check_with_name(def);
	if (strcmp(name, "server") == 0)
	{
		if (rw->server)
			ereport(ERROR,
					(errcode(ERRCODE_DUPLICATE_OBJECT),
					 errmsg("option \"server\" provided more than once")));
		rw->server = kalam_server_by_name(value);
		return;
	}
	if (strcmp(name, "type") == 0)
	{
		rw->type = value;
		name = "table_type";
	}
	if (strcmp(name, "system_columns") == 0 && !parse_bool(value, &rw->system_columns))
		ereport(ERROR,
				(errcode(ERRCODE_FDW_INVALID_OPTION_NAME),
				 errmsg("invalid value for option \"system_columns\": \"%s\"", value),
				 errhint("It is a boolean.")));
	rw->options = lappend(rw->options, option(name, value));
}

/* Pins the remote names, so that a local rename or move keeps the mapping. */
static List *
pin_names(List *options, Oid namespace, const char *relname)
{
	if (!kalam_find_option(options, "namespace"))
		options = lappend(options, option("namespace", get_namespace_name(namespace)));
	if (!kalam_find_option(options, "table"))
		options = lappend(options, option("table", relname));
	return options;
}

static void
take_with(Rewrite *rw)
{
	ListCell   *lc;

	rw->type = "shared";
	rw->system_columns = true;
	foreach(lc, rw->stmt->options)
		take_with_option(rw, lfirst_node(DefElem, lc));
	if (rw->server == NULL)
		rw->server = kalam_server_by_name(kalam_default_server);
	kalam_check_usage(rw->server);
	if (!kalam_find_option(rw->options, "table_type"))
		rw->options = lcons(option("table_type", rw->type), rw->options);
}

/* ---------- columns ---------- */

Constraint *
kalam_create_constraint(ConstrType type)
{
	Constraint *constraint = makeNode(Constraint);

	constraint->contype = type;
	constraint->location = -1;
#if PG_VERSION_NUM >= 180000
	constraint->is_enforced = true;
#endif
	constraint->initially_valid = true;
	return constraint;
}

static bool
has_constraint(const ColumnDef *column, ConstrType type)
{
	ListCell   *lc;

	foreach(lc, column->constraints)
	{
		if (lfirst_node(Constraint, lc)->contype == type)
			return true;
	}
	return false;
}

static void
require_not_null(ColumnDef *column)
{
	if (!column->is_not_null && !has_constraint(column, CONSTR_NOTNULL))
		column->constraints = lappend(column->constraints, kalam_create_constraint(CONSTR_NOTNULL));
}

/* the plain one-word type names of the grammar's "serial" and "file" */
static const char *
word_type(const TypeName *type)
{
	if (type == NULL || list_length(type->names) != 1 || type->pct_type || type->setof ||
		type->arrayBounds != NIL || type->typmods != NIL)
		return NULL;
	return strVal(linitial(type->names));
}

/* SERIAL and IDENTITY both come to this; was is what the user wrote. */
static void
make_snowflake(Rewrite *rw, ColumnDef *column, const char *was, bool narrower)
{
	if (narrower)
		ereport(NOTICE,
				(errmsg("column \"%s\" declared as %s becomes bigint DEFAULT snowflake_id()", column->colname, was)));
	column->typeName = makeTypeNameFromOid(INT8OID, -1);
	require_not_null(column);
	if (!has_constraint(column, CONSTR_DEFAULT))
	{
		Constraint *def = kalam_create_constraint(CONSTR_DEFAULT);
		char	   *schema = get_namespace_name(kalam_extension_namespace(rw->server->serverid));

		def->raw_expr = (Node *) makeFuncCall(list_make2(makeString(schema), makeString(pstrdup("snowflake_id"))),
											  NIL, COERCE_EXPLICIT_CALL, -1);
		column->constraints = lappend(column->constraints, def);
	}
}

static void
rewrite_type(Rewrite *rw, ColumnDef *column)
{
	static const char *const wide[] = {"bigserial", "serial8"};
	static const char *const narrow[] = {"serial", "serial4", "smallserial", "serial2"};
	const char *word = word_type(column->typeName);

	if (word == NULL)
		return;
	for (int i = 0; i < lengthof(wide); i++)
	{
		if (strcmp(word, wide[i]) == 0)
		{
			make_snowflake(rw, column, word, false);
			return;
		}
	}
	for (int i = 0; i < lengthof(narrow); i++)
	{
		if (strcmp(word, narrow[i]) == 0)
		{
			make_snowflake(rw, column, word, true);
			return;
		}
	}
	if (strcmp(word, "file") == 0 && LookupTypeName(NULL, column->typeName, NULL, true) == NULL)
	{
		column->typeName = makeTypeNameFromOid(JSONBOID, -1);
		column->fdwoptions = lappend(column->fdwoptions, option("remote_type", "file"));
	}
}

static void
rewrite_identity(Rewrite *rw, ColumnDef *column)
{
	Oid			typid;

	if (column->typeName == NULL)
		kalam_refuse("an identity column of a partition", "Give the partitioned table's column DEFAULT snowflake_id().");
	typid = typenameTypeId(NULL, column->typeName);
	if (typid != INT2OID && typid != INT4OID && typid != INT8OID)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("identity column type must be smallint, integer, or bigint")));
	make_snowflake(rw, column, psprintf("%s GENERATED AS IDENTITY", format_type_be(typid)), typid != INT8OID);
}

static void
take_key(Rewrite *rw, Constraint *constraint, List *key)
{
	if (rw->has_key)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_TABLE_DEFINITION),
				 errmsg("multiple primary keys for table \"%s\" are not allowed", rw->stmt->relation->relname)));
	if (constraint->deferrable || constraint->initdeferred)
		kalam_refuse("a deferrable primary key", "The server checks keys when rows are written.");
	if (constraint->including != NIL || constraint->options != NIL || constraint->indexspace != NULL)
		kalam_refuse("INCLUDE, WITH or USING INDEX TABLESPACE on a primary key", "The key has no index of its own.");
#if PG_VERSION_NUM >= 180000
	if (constraint->without_overlaps)
		kalam_refuse("WITHOUT OVERLAPS", "Declare the key without it.");
#endif
	rw->has_key = true;
	rw->key = key;
	rw->key_constraint = constraint->conname;
}

/*
 * One constraint of a column: true if the column keeps it.  DEFERRABLE and
 * the like follow the constraint they belong to, so the caller remembers it.
 */
static bool
take_column_constraint(Rewrite *rw, ColumnDef *column, Constraint *constraint, const Constraint *previous)
{
	bool		of_key = previous && previous->contype == CONSTR_PRIMARY;

	kalam_refuse_constraint(constraint->contype);
	switch (constraint->contype)
	{
		case CONSTR_PRIMARY:
			take_key(rw, constraint, list_make1(makeString(column->colname)));
			return false;
		case CONSTR_IDENTITY:
			return false;
		case CONSTR_ATTR_DEFERRABLE:
		case CONSTR_ATTR_DEFERRED:
			if (of_key)
				kalam_refuse("a deferrable primary key", "The server checks keys when rows are written.");
			return true;
		case CONSTR_ATTR_NOT_DEFERRABLE:
		case CONSTR_ATTR_IMMEDIATE:
			return !of_key;
		default:
			return true;
	}
}

static void
refuse_virtual(const ColumnDef *column)
{
#if PG_VERSION_NUM >= 180000
	ListCell   *lc;

	foreach(lc, column->constraints)
	{
		Constraint *constraint = lfirst_node(Constraint, lc);

		if (constraint->contype == CONSTR_GENERATED && constraint->generated_kind == ATTRIBUTE_GENERATED_VIRTUAL)
			kalam_refuse("a virtual generated column", "Write GENERATED ALWAYS AS (...) STORED.");
	}
#endif
}

static void
refuse_reserved(const ColumnDef *column)
{
	if (strcmp(column->colname, KALAM_SEQ_COLUMN) == 0 || strcmp(column->colname, KALAM_USERID_COLUMN) == 0 ||
		strcmp(column->colname, KALAM_DELETED_COLUMN) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_RESERVED_NAME),
				 errmsg("column name \"%s\" is reserved for KalamDB's system columns", column->colname),
				 errhint("Leave it out: system columns are added by themselves.")));
}

static void
rewrite_column(Rewrite *rw, ColumnDef *column)
{
	List	   *kept = NIL;
	Constraint *previous = NULL;
	bool		identity = has_constraint(column, CONSTR_IDENTITY);
	ListCell   *lc;

	refuse_reserved(column);
	refuse_virtual(column);
	foreach(lc, column->constraints)
	{
		Constraint *constraint = lfirst_node(Constraint, lc);

		if (take_column_constraint(rw, column, constraint, previous))
			kept = lappend(kept, constraint);
		if (constraint->contype < CONSTR_ATTR_DEFERRABLE)
			previous = constraint;
	}
	column->constraints = kept;
	if (identity)
		rewrite_identity(rw, column);
	else
		rewrite_type(rw, column);
	rw->elements = lappend(rw->elements, column);
}

/* One that was dropped here may come again. */
static bool
is_system_column(const ColumnDef *column)
{
	Oid			typid = column->typeName ? LookupTypeNameOid(NULL, column->typeName, true) : InvalidOid;

	return (strcmp(column->colname, KALAM_SEQ_COLUMN) == 0 && typid == INT8OID) ||
		(strcmp(column->colname, KALAM_USERID_COLUMN) == 0 && typid == TEXTOID);
}

void
kalam_create_added_column(Oid serverid, ColumnDef *column)
{
	Rewrite		rw = {.server = GetForeignServer(serverid)};

	if (has_constraint(column, CONSTR_PRIMARY))
		kalam_refuse("ADD PRIMARY KEY", "Declare the key when you create the table.");
	if (kalam_find_option(column->fdwoptions, "key"))
		kalam_refuse("ADD COLUMN to the key", "Declare the key when you create the table.");
	if (!is_system_column(column))
		rewrite_column(&rw, column);
}

static void
take_like(Rewrite *rw, const TableLikeClause *clause)
{
	KalamLike  *like = kalam_like_expand(clause);
	ListCell   *lc;

	foreach(lc, like->elements)
	{
		if (IsA(lfirst(lc), ColumnDef))
			rewrite_column(rw, lfirst_node(ColumnDef, lc));
		else
			rw->elements = lappend(rw->elements, lfirst(lc));
	}
	rw->comments = list_concat(rw->comments, like->comments);
	if (like->key)
		take_key(rw, like->key, like->key->keys);
}

static void
take_element(Rewrite *rw, Node *element)
{
	if (IsA(element, ColumnDef))
		rewrite_column(rw, (ColumnDef *) element);
	else if (IsA(element, TableLikeClause))
		take_like(rw, (TableLikeClause *) element);
	else if (IsA(element, Constraint))
	{
		Constraint *constraint = (Constraint *) element;

		kalam_refuse_constraint(constraint->contype);
		if (constraint->contype == CONSTR_PRIMARY)
			take_key(rw, constraint, constraint->keys);
		else
			rw->elements = lappend(rw->elements, element);
	}
	else
		elog(ERROR, "unrecognized table element: %d", (int) nodeTag(element));
}

/* ---------- the key ---------- */

static ColumnDef *
find_column(List *elements, const char *name)
{
	ListCell   *lc;

	foreach(lc, elements)
	{
		ColumnDef  *column = lfirst(lc);

		if (IsA(column, ColumnDef) && strcmp(column->colname, name) == 0)
			return column;
	}
	return NULL;
}

/* PostgreSQL 18 knows NOT NULL as a table constraint, too. */
static bool
named_not_null(List *elements, const char *name)
{
#if PG_VERSION_NUM >= 180000
	ListCell   *lc;

	foreach(lc, elements)
	{
		Constraint *constraint = lfirst(lc);

		if (IsA(constraint, Constraint) && constraint->contype == CONSTR_NOTNULL &&
			strcmp(strVal(linitial(constraint->keys)), name) == 0)
			return true;
	}
#endif
	return false;
}

static bool
has_column(Rewrite *rw, const char *name)
{
	return find_column(rw->elements, name) || (OidIsValid(rw->parent) && get_attnum(rw->parent, name) > 0);
}

/* The partition's own words about a column that it has from its parent. */
static ColumnDef *
inherited_column(Rewrite *rw, const char *name)
{
	ColumnDef  *column = makeNode(ColumnDef);

	column->colname = pstrdup(name);
	column->is_local = true;
	column->location = -1;
	rw->elements = lappend(rw->elements, column);
	return column;
}

static void
mark_key_column(Rewrite *rw, const char *name, int place)
{
	ColumnDef  *column = find_column(rw->elements, name);

	if (column == NULL && has_column(rw, name))
		column = inherited_column(rw, name);
	if (column == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_COLUMN),
				 errmsg("column \"%s\" named in key does not exist", name)));
	if (kalam_find_option(column->fdwoptions, "key"))
		ereport(ERROR,
				(errcode(ERRCODE_DUPLICATE_COLUMN),
				 errmsg("column \"%s\" appears twice in primary key constraint", name)));
	column->fdwoptions = lappend(column->fdwoptions, option("key", psprintf("%d", place)));
	if (!named_not_null(rw->elements, name))
		require_not_null(column);
}

static void
finish_key(Rewrite *rw)
{
	int			place = 0;
	ListCell   *lc;

	if (!rw->has_key && has_column(rw, "id"))
		rw->key = list_make1(makeString(pstrdup("id")));
	if (rw->key == NIL)
	{
		if (strcmp(rw->type, "stream") == 0)
			return;
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_TABLE_DEFINITION),
				 errmsg("table \"%s\" has no primary key", rw->stmt->relation->relname),
				 errhint("Declare a PRIMARY KEY, or a column named \"id\", which is taken for it.")));
	}
	foreach(lc, rw->key)
		mark_key_column(rw, strVal(lfirst(lc)), ++place);
	if (rw->key_constraint == NULL)
		rw->key_constraint = makeObjectName(rw->stmt->relation->relname, NULL, "pkey");
	rw->options = lappend(rw->options, option("key_constraint", rw->key_constraint));
}

static void
append_system_columns(Rewrite *rw)
{
	if (!rw->system_columns || OidIsValid(rw->parent))
		return;
	rw->elements = lappend(rw->elements, makeColumnDef(KALAM_SEQ_COLUMN, INT8OID, -1, InvalidOid));
	if (strcmp(rw->type, "shared") != 0)
		rw->elements = lappend(rw->elements,
							   makeColumnDef(KALAM_USERID_COLUMN, TEXTOID, -1, DEFAULT_COLLATION_OID));
}

/* ---------- the statement ---------- */

static void
refuse_clauses(const CreateStmt *stmt)
{
	const char *heap = "Add USING heap for an ordinary table.";

	if (stmt->partspec)
		kalam_refuse("PARTITION BY", "Create the partitioned table without USING, and its partitions by CREATE TABLE ... PARTITION OF ... USING kalamdb.");
	if (stmt->inhRelations != NIL && stmt->partbound == NULL)
		kalam_refuse("INHERITS", "Write the columns out.");
	if (stmt->ofTypename)
		kalam_refuse("OF", "Write the columns out.");
	if (stmt->relation->relpersistence == RELPERSISTENCE_UNLOGGED)
		kalam_refuse("UNLOGGED", heap);
	if (stmt->relation->relpersistence == RELPERSISTENCE_TEMP)
		kalam_refuse("TEMPORARY", heap);
	if (stmt->tablespacename)
		kalam_refuse("TABLESPACE", "WITH (storage_id = ...) says where the server keeps the data.");
}

/*
 * Finds the schema, and writes it into the name, so that what is pinned and
 * what PostgreSQL creates are one.  False if IF NOT EXISTS has nothing to do.
 */
static bool
settle_name(RangeVar *relation, bool if_not_exists, Oid *namespace)
{
	Oid			existing = InvalidOid;

	*namespace = RangeVarGetAndCheckCreationNamespace(relation, NoLock, &existing);
	if (isAnyTempNamespace(*namespace))
		kalam_refuse("a temporary schema", "Its end would come without anybody to tell the server.");
	relation->schemaname = get_namespace_name(*namespace);
	return !(if_not_exists && OidIsValid(existing));
}

CreateForeignTableStmt *
kalam_create_rewrite(const CreateStmt *original, List **comments)
{
	CreateStmt *stmt = (CreateStmt *) copyObject(original);
	CreateForeignTableStmt *foreign = makeNode(CreateForeignTableStmt);
	Rewrite		rw = {.stmt = stmt};
	Oid			namespace;
	ListCell   *lc;

	refuse_clauses(stmt);
	if (!settle_name(stmt->relation, stmt->if_not_exists, &namespace))
		return NULL;
	if (stmt->partbound)
		rw.parent = RangeVarGetRelid(linitial_node(RangeVar, stmt->inhRelations), AccessShareLock, false);
	take_with(&rw);
	foreach(lc, stmt->tableElts)
		take_element(&rw, lfirst(lc));
	finish_key(&rw);
	append_system_columns(&rw);

	foreign->base = *stmt;
	NodeSetTag(&foreign->base, T_CreateForeignTableStmt);
	foreign->base.tableElts = rw.elements;
	foreign->base.options = NIL;
	foreign->base.accessMethod = NULL;
	foreign->servername = rw.server->servername;
	foreign->options = pin_names(rw.options, namespace, stmt->relation->relname);
	*comments = rw.comments;
	return foreign;
}

bool
kalam_create_pin(CreateForeignTableStmt *stmt)
{
	Oid			namespace;
	ListCell   *lc;

	if (!settle_name(stmt->base.relation, stmt->base.if_not_exists, &namespace))
		return false;
	foreach(lc, stmt->base.tableElts)
	{
		if (IsA(lfirst(lc), ColumnDef))
			refuse_virtual(lfirst_node(ColumnDef, lc));
	}
	stmt->options = pin_names(stmt->options, namespace, stmt->base.relation->relname);
	return true;
}
