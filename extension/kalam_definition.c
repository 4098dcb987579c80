/*
 * kalam_definition.c: what a table looks like in the catalog, and the ALTER
 * that brings the server from one look to another.
 *
 * A definition is taken before PostgreSQL alters a table and again after it,
 * and the difference is sent.  Columns are the same if their numbers are,
 * constraints if their OIDs are; names, types and defaults are compared as the
 * server would be told them, so that what it does not know of is no difference.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/transam.h"
#include "catalog/indexing.h"
#include "catalog/pg_constraint.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_type.h"
#include "executor/executor.h"
#include "foreign/foreign.h"
#include "miscadmin.h"
#include "nodes/nodeFuncs.h"
#include "optimizer/optimizer.h"
#include "parser/parse_coerce.h"
#include "rewrite/rewriteHandler.h"
#include "tcop/dest.h"
#include "tcop/tcopprot.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/typcache.h"

#include "kalam_core.h"
#include "kalam_ddl.h"

typedef struct Column
{
	bool		live;			/* not dropped, and no system column */
	char	   *name;			/* remote, as the next two */
	char	   *type;
	const char *value;			/* its DEFAULT; NULL: none that the server knows */
	Oid			typid;			/* local type */
	Oid			base;			/* without domains, and its modifier */
	int32		typmod;
	bool		not_null;
	bool		generated;
} Column;

typedef struct Check
{
	Oid			oid;
	char	   *name;
	Node	   *expr;
	char	   *sql;			/* as the server is told it */
	bool		valid;
	bool		remote;			/* the server is told of it */
} Check;

struct KalamDefinition
{
	Oid			relid;
	KalamTable *table;
	KalamConn  *conn;
	int			natts;
	Column	   *columns;		/* by attnum - 1 */
	List	   *checks;
	List	   *options;
};

/* ---------- taking ---------- */

static void
take_columns(KalamDefinition *def, Relation rel)
{
	TupleDesc	desc = RelationGetDescr(rel);

	def->natts = desc->natts;
	def->columns = palloc0(sizeof(Column) * (desc->natts + 1));
	for (int i = 0; i < desc->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(desc, i);
		Column	   *column = &def->columns[i];

		if (att->attisdropped || kalam_is_system_column(def->relid, att->attnum))
			continue;
		column->live = true;
		column->name = kalam_remote_column(def->relid, att->attnum);
		column->type = pstrdup(kalam_mirror_column_type(def->conn, def->relid, att));
		column->value = kalam_mirror_default(rel, def->table->serverid, att->attnum);
		column->typid = att->atttypid;
		column->typmod = att->atttypmod;
		column->base = getBaseTypeAndTypmod(att->atttypid, &column->typmod);
		column->not_null = att->attnotnull;
		column->generated = att->attgenerated != '\0';
	}
}

static void
take_check(KalamDefinition *def, Relation rel, HeapTuple tuple, Relation catalog)
{
	Form_pg_constraint form = (Form_pg_constraint) GETSTRUCT(tuple);
	bool		isnull;
	Datum		value = heap_getattr(tuple, Anum_pg_constraint_conbin, RelationGetDescr(catalog), &isnull);
	Node	   *expr;
	Check	   *check;

	if (form->contype != CONSTRAINT_CHECK || isnull)
		return;
#if PG_VERSION_NUM >= 180000
	if (!form->conenforced)
		return;
#endif
	expr = stringToNode(TextDatumGetCString(value));
	check = palloc0(sizeof(Check));
	check->remote = kalam_mirror_same_names(rel, expr);
	check->oid = form->oid;
	check->name = pstrdup(NameStr(form->conname));
	check->valid = form->convalidated;
	check->expr = expr;
	check->sql = kalam_mirror_expression(rel, expr);
	def->checks = lappend(def->checks, check);
}

static void
take_checks(KalamDefinition *def, Relation rel)
{
	Relation	catalog = table_open(ConstraintRelationId, AccessShareLock);
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple	tuple;

	ScanKeyInit(&key, Anum_pg_constraint_conrelid, BTEqualStrategyNumber, F_OIDEQ, ObjectIdGetDatum(def->relid));
	scan = systable_beginscan(catalog, ConstraintRelidTypidNameIndexId, true, NULL, 1, &key);
	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
		take_check(def, rel, tuple, catalog);
	systable_endscan(scan);
	table_close(catalog, AccessShareLock);
}

/* The caller holds a lock on the relation. */
KalamDefinition *
kalam_definition_take(Oid relid)
{
	KalamDefinition *def = palloc0(sizeof(KalamDefinition));
	Relation	rel = table_open(relid, NoLock);

	def->relid = relid;
	def->table = kalam_table_get(relid);
	def->conn = kalam_connection_for_server(def->table->serverid, GetUserId());
	def->options = GetForeignTable(relid)->options;
	take_columns(def, rel);
	take_checks(def, rel);
	table_close(rel, NoLock);
	return def;
}

/* ---------- values for the rows that are there ---------- */

/* The default's value now, for all rows; its text, or NULL. */
static char *
evaluate(Node *expr)
{
	EState	   *estate = CreateExecutorState();
	MemoryContext caller = CurrentMemoryContext;
	ExprContext *context = GetPerTupleExprContext(estate);
	ExprState  *state = ExecPrepareExpr((Expr *) expr, estate);
	bool		isnull;
	Datum		value = ExecEvalExprSwitchContext(state, context, &isnull);
	char	   *text = NULL;

	if (!isnull)
		text = MemoryContextStrdup(caller, kalam_mirror_output(exprType(expr), value));
	FreeExecutorState(estate);
	return text;
}

/*
 * Rows that are there show the default as of now.  A function of the server
 * whose values differ from row to row is left to it.
 */
static void
append_fill(StringInfo sql, KalamDefinition *def, AttrNumber attnum)
{
	Relation	rel = table_open(def->relid, NoLock);
	Node	   *expr = build_column_default(rel, attnum);
	Column	   *column = &def->columns[attnum - 1];
	char	   *text;

	table_close(rel, NoLock);
	if (column->generated)
		kalam_refuse("ADD COLUMN ... GENERATED", "The rows that are there would not have its values: create a new table and copy the rows by INSERT ... SELECT.");
	if (expr == NULL)
		return;
	if (contain_volatile_functions(expr))
	{
		if (column->value == NULL)
			kalam_refuse("ADD COLUMN with a volatile default", "Add the column without it, UPDATE the rows, then SET DEFAULT.");
		return;
	}
	text = evaluate((Node *) expression_planner((Expr *) expr));
	appendStringInfoString(sql, " FILL ");
	if (text)
		kalam_append_literal(sql, text);
	else
		appendStringInfoString(sql, "NULL");
}

/* ---------- comparing ---------- */

typedef struct Changes
{
	KalamDefinition *before;
	KalamDefinition *after;
	StringInfoData sql;
	int			count;
} Changes;

static void pg_attribute_printf(2, 3)
change(Changes *c, const char *format, ...)
{
	char		buf[NAMEDATALEN * 4 + 64];
	va_list		args;

	va_start(args, format);
	vsnprintf(buf, sizeof(buf), format, args);
	va_end(args);
	appendStringInfo(&c->sql, "%s%s", c->count++ > 0 ? ", " : " ", buf);
}

static const Check *
find_check(List *checks, Oid oid)
{
	ListCell   *lc;

	foreach(lc, checks)
	{
		Check	   *check = lfirst(lc);

		if (check->oid == oid)
			return check;
	}
	return NULL;
}

static void
drop_checks(Changes *c)
{
	ListCell   *lc;

	foreach(lc, c->before->checks)
	{
		Check	   *check = lfirst(lc);

		if (check->remote && find_check(c->after->checks, check->oid) == NULL)
			change(c, "DROP CONSTRAINT IF EXISTS %s", kalam_quote(check->name));
	}
}

static void
add_checks(Changes *c)
{
	ListCell   *lc;

	foreach(lc, c->after->checks)
	{
		Check	   *check = lfirst(lc);
		const Check *before = find_check(c->before->checks, check->oid);

		if (!check->remote)
			continue;
		if (before && strcmp(before->name, check->name) != 0)
			change(c, "RENAME CONSTRAINT %s TO %s", kalam_quote(before->name), kalam_quote(check->name));
		if (before)
			continue;
		change(c, "ADD CONSTRAINT %s CHECK (", kalam_quote(check->name));
		appendStringInfo(&c->sql, "%s)%s", check->sql, check->valid ? "" : " NOT VALID");
	}
}

/* Is the new type's value of what is stored the one that PostgreSQL's cast would make? The server has text for both. */
static bool
keeps_text(const Column *before, const Column *after)
{
	Oid			function;

	if (before->base == after->base)
		return before->typmod == after->typmod || (before->base == BPCHAROID && after->typmod > before->typmod);
	if (before->base == TEXTOID || (after->base != TEXTOID && after->base != VARCHAROID))
		return false;
	return find_coercion_pathway(after->base, before->base, COERCION_ASSIGNMENT, &function) ==
		COERCION_PATH_COERCEVIAIO;
}

/* What the server cannot tell apart; of all else it knows whether the values stay what they are. */
static void
check_type(const Column *before, const Column *after)
{
	bool		constrained = before->typid != after->typid && get_typtype(after->typid) == TYPTYPE_DOMAIN &&
		DomainHasConstraints(after->typid);
	bool		same = before->base == after->base && before->typmod == after->typmod;

	if (!constrained && (same || strcmp(before->type, after->type) != 0 || strcmp(after->type, "text") != 0 ||
						 keeps_text(before, after)))
		return;
	ereport(ERROR,
			(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
			 errmsg("cannot alter type of column \"%s\" from %s to %s", after->name,
					format_type_with_typemod(before->typid, before->typid == before->base ? before->typmod : -1),
					format_type_with_typemod(after->typid, after->typid == after->base ? after->typmod : -1)),
			 errhint("Add a column of the new type, UPDATE it, and drop the old one.")));
}

static void
change_column(Changes *c, const Column *before, const Column *after)
{
	const char *name = kalam_quote(after->name);

	if (strcmp(before->name, after->name) != 0)
		change(c, "RENAME COLUMN %s TO %s", kalam_quote(before->name), name);
	check_type(before, after);
	if (strcmp(before->type, after->type) != 0)
		change(c, "ALTER COLUMN %s TYPE %s", name, after->type);
	if (after->value && (before->value == NULL || strcmp(before->value, after->value) != 0))
	{
		change(c, "ALTER COLUMN %s SET DEFAULT ", name);
		appendStringInfoString(&c->sql, after->value);
	}
	if (before->value && after->value == NULL)
		change(c, "ALTER COLUMN %s DROP DEFAULT", name);
	if (before->not_null != after->not_null)
		change(c, "ALTER COLUMN %s %s NOT NULL", name, after->not_null ? "SET" : "DROP");
}

static void
add_column(Changes *c, AttrNumber attnum)
{
	Column	   *column = &c->after->columns[attnum - 1];

	change(c, "ADD COLUMN IF NOT EXISTS %s %s%s", kalam_quote(column->name), column->type, column->not_null ? " NOT NULL" : "");
	if (column->value)
		appendStringInfo(&c->sql, " DEFAULT %s", column->value);
	append_fill(&c->sql, c->after, attnum);
}

static void
change_columns(Changes *c)
{
	for (int i = 0; i < c->before->natts; i++)
	{
		if (c->before->columns[i].live && !c->after->columns[i].live)
			change(c, "DROP COLUMN IF EXISTS %s", kalam_quote(c->before->columns[i].name));
	}
	for (int i = 0; i < c->before->natts; i++)
	{
		if (c->before->columns[i].live && c->after->columns[i].live)
			change_column(c, &c->before->columns[i], &c->after->columns[i]);
	}
	for (int i = c->before->natts; i < c->after->natts; i++)
	{
		if (c->after->columns[i].live)
			add_column(c, i + 1);
	}
}

static void
change_options(Changes *c)
{
	for (int i = 0; kalam_mirror_options[i]; i++)
	{
		const char *name = kalam_mirror_options[i];
		const char *before = kalam_find_option(c->before->options, name);
		const char *after = kalam_find_option(c->after->options, name);

		if (after && (before == NULL || strcmp(before, after) != 0))
		{
			change(c, "SET (%s = ", name);
			kalam_append_literal(&c->sql, after);
			appendStringInfoChar(&c->sql, ')');
		}
		else if (before && after == NULL)
			change(c, "RESET (%s)", name);
	}
}

/* ---------- constraints that only PostgreSQL evaluates ---------- */

/*
 * Where its functions would read the rows of all tenants the role need not be
 * one that may: then every one is PostgreSQL's own and immutable, and so are
 * those that a type brings along.
 */
static bool
is_foreign_function(Oid funcid, void *arg)
{
	return funcid >= FirstGenbkiObjectId || func_volatile(funcid) != PROVOLATILE_IMMUTABLE;
}

static bool
is_builtin_type(Oid typid)
{
	Oid			element = get_element_type(typid);

	if (get_typtype(typid) == TYPTYPE_DOMAIN)
		return !DomainHasConstraints(typid) && is_builtin_type(getBaseType(typid));
	if (OidIsValid(element))
		return is_builtin_type(element);
	return typid < FirstGenbkiObjectId || get_typtype(typid) == TYPTYPE_ENUM;
}

static bool
runs_foreign_code(Node *node, void *arg)
{
	if (node == NULL)
		return false;
	switch (nodeTag(node))
	{
		case T_List:
		case T_CaseWhen:
			break;
		case T_Var:
		case T_Const:
		case T_FuncExpr:
		case T_OpExpr:
		case T_DistinctExpr:
		case T_NullIfExpr:
		case T_ScalarArrayOpExpr:
		case T_BoolExpr:
		case T_RelabelType:
		case T_CollateExpr:
		case T_CoerceViaIO:
		case T_ArrayCoerceExpr:
		case T_CaseExpr:
		case T_CaseTestExpr:
		case T_ArrayExpr:
		case T_RowExpr:
		case T_RowCompareExpr:
		case T_SubscriptingRef:
		case T_CoalesceExpr:
		case T_MinMaxExpr:
		case T_NullTest:
		case T_BooleanTest:
			if (!is_builtin_type(exprType(node)) || check_functions_in_node(node, is_foreign_function, NULL))
				return true;
			break;
		default:
			return true;
	}
	return expression_tree_walker(node, runs_foreign_code, NULL);
}

static bool
may_choose_tenants(void)
{
	return pg_parameter_aclcheck("kalam.user_id", GetUserId(), ACL_SET) == ACLCHECK_OK;
}

KALAM_NORETURN static void
refuse_check(const Check *check, const char *reason)
{
	ereport(ERROR,
			(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
			 errmsg("cannot hold check constraint \"%s\" against the rows of all tenants", check->name),
			 errdetail("%s", reason),
			 errhint("Use ADD CONSTRAINT ... NOT VALID.")));
}

/* May this role look at all tenants' rows for the constraint, and for nothing else? */
static void
check_reach(const KalamDefinition *def, const Check *check)
{
	UserMapping *user = kalam_user_mapping(def->table->serverid, GetUserId());
	const char *bound = kalam_find_option(user->options, "user_id");

	if (bound && strcmp(bound, "*") != 0)
		refuse_check(check, psprintf("The user mapping of role \"%s\" binds it to one tenant.",
									 GetUserNameFromId(GetUserId(), true)));
	if (!may_choose_tenants() && runs_foreign_code(check->expr, NULL))
		refuse_check(check, "Its functions, operators or types are not PostgreSQL's own immutable ones, and the role may not SET kalam.user_id.");
}

/* Names mean here what they meant when the constraint was printed. */
static PlannedStmt *
plan_search(const KalamDefinition *def, const Check *check)
{
	int			nestlevel = kalam_mirror_set_modes();
	char	   *sql = psprintf("SELECT 1 FROM ONLY %s.%s WHERE NOT (%s) LIMIT 1",
							   quote_identifier(get_namespace_name(get_rel_namespace(def->relid))),
							   quote_identifier(get_rel_name(def->relid)), check->sql);
	RawStmt    *raw = linitial_node(RawStmt, pg_parse_query(sql));
	Query	   *query = linitial_node(Query, pg_analyze_and_rewrite_fixedparams(raw, sql, NULL, 0, NULL));

	kalam_reset_transmission_modes(nestlevel);
	return pg_plan_query(query, sql, 0, NULL);
}

static bool
finds_row(PlannedStmt *plan)
{
	QueryDesc  *desc = CreateQueryDesc(plan, "", GetActiveSnapshot(), InvalidSnapshot, None_Receiver, NULL, NULL, 0);
	bool		found;

	ExecutorStart(desc, 0);
#if PG_VERSION_NUM >= 180000
	ExecutorRun(desc, ForwardScanDirection, 1);
#else
	ExecutorRun(desc, ForwardScanDirection, 1, true);
#endif
	found = desc->estate->es_processed > 0;
	ExecutorFinish(desc);
	ExecutorEnd(desc);
	FreeQueryDesc(desc);
	return found;
}

/* What an error says of a value is another tenant's, perhaps. */
static void
rethrow_without_values(const Check *check, MemoryContext caller)
{
	ErrorData  *error;

	MemoryContextSwitchTo(caller);
	error = CopyErrorData();
	if (may_choose_tenants() || ERRCODE_TO_CATEGORY(error->sqlerrcode) != ERRCODE_DATA_EXCEPTION)
		PG_RE_THROW();
	FlushErrorState();
	ereport(ERROR,
			(errcode(error->sqlerrcode),
			 errmsg("check constraint \"%s\" cannot be evaluated for some row", check->name)));
}

static bool
is_violated_by_any(const KalamDefinition *def, const Check *check)
{
	MemoryContext caller = CurrentMemoryContext;
	int			nestlevel = NewGUCNestLevel();
	volatile bool violated = false;

	(void) set_config_option("kalam.user_id", "*", PGC_SUSET, PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
	PG_TRY();
	{
		violated = finds_row(plan_search(def, check));
	}
	PG_CATCH();
	{
		rethrow_without_values(check, caller);
	}
	PG_END_TRY();
	AtEOXact_GUC(true, nestlevel);
	return violated;
}

static void
check_rows(const KalamDefinition *def, const Check *check)
{
	bool		shared = def->table->type == KALAM_SHARED;

	if (!shared)
		check_reach(def, check);
	if (shared ? finds_row(plan_search(def, check)) : is_violated_by_any(def, check))
		ereport(ERROR,
				(errcode(ERRCODE_CHECK_VIOLATION),
				 errmsg("check constraint \"%s\" of relation \"%s\" is violated by some row", check->name,
						get_rel_name(def->relid)),
				 err_generic_string(PG_DIAG_TABLE_NAME, get_rel_name(def->relid)),
				 err_generic_string(PG_DIAG_CONSTRAINT_NAME, check->name)));
}

/* The rows of all tenants; what the server has held them against is looked at again. */
static void
check_locally(const KalamDefinition *before, const KalamDefinition *after, bool all)
{
	ListCell   *lc;

	foreach(lc, after->checks)
	{
		Check	   *check = lfirst(lc);

		if (check->valid && (all || !check->remote) && find_check(before->checks, check->oid) == NULL)
			check_rows(after, check);
	}
}

/* Sends the changes; true if the server could hold every new constraint against the rows. */
static bool
send(KalamDefinition *def, const char *sql)
{
	PGresult   *res = kalam_mirror_request(def->conn, sql);
	const char *tag = PQcmdStatus(res);
	bool		all = strcmp(tag, "ALTER TABLE") == 0 || strcmp(tag, "DETACH") == 0;

	kalam_result_free(res);
	return all;
}

/* Compares with what is there now, and tells the server. */
void
kalam_definition_send(KalamDefinition *before)
{
	Changes		c = {.before = before, .after = kalam_definition_take(before->relid)};

	initStringInfo(&c.sql);
	appendStringInfoString(&c.sql, "ALTER TABLE ");
	kalam_deparse_table(&c.sql, before->table);
	appendStringInfoString(&c.sql, " OWNED BY ");
	kalam_append_literal(&c.sql, kalam_mirror_owner(before->relid));
	drop_checks(&c);
	change_columns(&c);
	add_checks(&c);
	change_options(&c);
	check_locally(before, c.after, c.count > 0 && !send(before, c.sql.data));
}
