/*
 * kalam_refuse.c: statements that PostgreSQL would run, or would refuse for a
 * reason that helps nobody, and that would leave the two sides apart.
 *
 * Of a table that manages its remote one, what the server cannot follow is
 * refused; of a table that is merely attached it is local and goes through, as
 * with postgres_fdw.
 */
#include "postgres.h"

#include "catalog/namespace.h"
#include "catalog/pg_foreign_table.h"
#include "commands/defrem.h"
#include "utils/lsyscache.h"

#include "kalam_core.h"
#include "kalam_ddl.h"

/* options of a foreign table that say nothing to the server */
static const char *const local_options[] = {
	"fetch_size", "batch_size", "use_remote_estimate", "updatable", "truncatable", "async_capable",
	"analyze_sampling", "fdw_startup_cost", "fdw_tuple_cost", "system_columns",
};

void
kalam_refuse(const char *what, const char *hint)
{
	ereport(ERROR,
			(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
			 errmsg("%s is not supported for KalamDB tables", what),
			 errhint("%s", hint)));
}

void
kalam_refuse_constraint(ConstrType type)
{
	if (type == CONSTR_UNIQUE)
		kalam_refuse("UNIQUE", "Only the PRIMARY KEY is enforced; make the columns part of it, or keep them in a KalamDB table of their own whose key they are.");
	if (type == CONSTR_EXCLUSION)
		kalam_refuse("EXCLUDE", "Only the PRIMARY KEY is enforced.");
	if (type == CONSTR_FOREIGN)
		kalam_refuse("FOREIGN KEY", "Check the reference in a BEFORE trigger.");
}

void
kalam_refuse_index(const IndexStmt *stmt)
{
	if (stmt->relation && OidIsValid(kalam_utility_relation(stmt->relation)))
		kalam_refuse("CREATE INDEX", "The server keeps rows in key order and prunes segments by column ranges; choose the PRIMARY KEY for your lookups.");
}

void
kalam_refuse_explain_as(const CreateTableAsStmt *stmt)
{
	if (kalam_is_access_method(stmt->into->accessMethod))
		kalam_refuse("EXPLAIN of CREATE TABLE AS", "EXPLAIN the query alone, or INSERT ... SELECT.");
}

/* ---------- ALTER ---------- */

static bool
is_local_option(const DefElem *def)
{
	for (int i = 0; i < lengthof(local_options); i++)
	{
		if (strcmp(def->defname, local_options[i]) == 0)
			return true;
	}
	return false;
}

static bool
is_server_option(const DefElem *def)
{
	for (int i = 0; kalam_mirror_options[i]; i++)
	{
		if (strcmp(def->defname, kalam_mirror_options[i]) == 0)
			return true;
	}
	return false;
}

/* An option that says which table it is, and so cannot change. */
static const char *
options_command(const AlterTableCmd *cmd)
{
	ListCell   *lc;

	foreach(lc, (List *) cmd->def)
	{
		DefElem    *def = lfirst_node(DefElem, lc);

		if (is_local_option(def) || is_server_option(def))
			continue;
		if (def->arg != NULL)	/* what is no option at all is told as such */
			kalam_check_option(ForeignTableRelationId, def->defname, defGetString(def));
		return psprintf("changing option \"%s\"", def->defname);
	}
	return NULL;
}

/* Would the server have to do it, too? */
bool
kalam_alter_is_mirrored(const AlterTableCmd *cmd)
{
	switch (cmd->subtype)
	{
		case AT_AddColumn:
		case AT_DropColumn:
		case AT_AlterColumnType:
		case AT_ColumnDefault:
		case AT_CookedColumnDefault:
		case AT_SetNotNull:
		case AT_DropNotNull:
		case AT_AddConstraint:
		case AT_DropConstraint:
		case AT_AlterConstraint:
		case AT_DropExpression:
#if PG_VERSION_NUM >= 170000
		case AT_SetExpression:
#endif
		case AT_AddIdentity:
		case AT_SetIdentity:
		case AT_DropIdentity:
		case AT_AlterColumnGenericOptions:
		case AT_GenericOptions:
			return true;
		default:
			return false;
	}
}

static void
refuse_type(const AlterTableCmd *cmd)
{
	if (((ColumnDef *) cmd->def)->raw_default)
		kalam_refuse("ALTER COLUMN TYPE ... USING", "Add a column of the new type, UPDATE it, and drop the old one.");
	if (strcmp(cmd->name, KALAM_SEQ_COLUMN) == 0 || strcmp(cmd->name, KALAM_USERID_COLUMN) == 0)
		kalam_refuse("altering a system column", "Cast it in the query.");
}

/* What is not mirrored, of a table that manages its remote one. */
void
kalam_refuse_managed(const AlterTableCmd *cmd)
{
	const char *what = NULL;

	switch (cmd->subtype)
	{
		case AT_AlterColumnType:
			refuse_type(cmd);
			break;
		case AT_AlterConstraint:
			what = "ALTER CONSTRAINT";
			break;
		case AT_DropExpression:
			what = "DROP EXPRESSION";
			break;
#if PG_VERSION_NUM >= 170000
		case AT_SetExpression:
			what = "SET EXPRESSION";
			break;
#endif
		case AT_AddIdentity:
		case AT_SetIdentity:
		case AT_DropIdentity:
			what = "IDENTITY";
			break;
		case AT_AlterColumnGenericOptions:
			what = "changing a column's options";
			break;
		case AT_GenericOptions:
			what = options_command(cmd);
			break;
		default:
			break;
	}
	if (what)
		kalam_refuse(psprintf("%s through ALTER TABLE", what),
					 "Create a new table and copy the rows by INSERT ... SELECT.");
}

static void
refuse_column_constraints(const AlterTableCmd *cmd)
{
	ListCell   *lc;

	if (cmd->def == NULL)
		return;
	foreach(lc, ((ColumnDef *) cmd->def)->constraints)
		kalam_refuse_constraint(lfirst_node(Constraint, lc)->contype);
}

/* Constraints we never have are refused whoever manages the table. */
static void
refuse_own(const AlterTableCmd *cmd)
{
	if (cmd->subtype == AT_SetAccessMethod)
		kalam_refuse("SET ACCESS METHOD", "Create a new table and copy the rows by INSERT ... SELECT.");
	if (cmd->subtype == AT_AddColumn)
		refuse_column_constraints(cmd);
	if (cmd->subtype != AT_AddConstraint || cmd->def == NULL)
		return;
	kalam_refuse_constraint(((Constraint *) cmd->def)->contype);
	if (((Constraint *) cmd->def)->contype == CONSTR_PRIMARY)
		kalam_refuse("ADD PRIMARY KEY", "Declare the key when you create the table.");
}

void
kalam_refuse_alter(const AlterTableStmt *stmt)
{
	bool		ours;
	ListCell   *lc;

	if (stmt->objtype != OBJECT_TABLE && stmt->objtype != OBJECT_FOREIGN_TABLE && stmt->objtype != OBJECT_MATVIEW)
		return;
	ours = OidIsValid(kalam_utility_relation(stmt->relation));
	foreach(lc, stmt->cmds)
	{
		AlterTableCmd *cmd = lfirst_node(AlterTableCmd, lc);

		if (ours)
			refuse_own(cmd);
		else if (cmd->subtype == AT_SetAccessMethod && kalam_is_access_method(cmd->name))
			kalam_refuse("SET ACCESS METHOD", "CREATE TABLE ... USING kalamdb, then INSERT ... SELECT.");
	}
}
