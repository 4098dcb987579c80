/*
 * kalam_refuse.c: statements that PostgreSQL would run, or would refuse for a
 * reason that helps nobody, and that would leave the two sides apart.
 *
 * A change of columns, defaults or constraints of a table that manages its
 * remote table is refused until it is mirrored.  Of a table that is merely
 * attached, such a change is local and goes through, as with postgres_fdw.
 */
#include "postgres.h"

#include "catalog/namespace.h"
#include "catalog/pg_foreign_table.h"
#include "catalog/pg_inherits.h"
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
kalam_refuse_create_as(const CreateTableAsStmt *stmt)
{
	if (!kalam_is_access_method(stmt->into->accessMethod))
		return;
	if (stmt->objtype == OBJECT_MATVIEW)
		kalam_refuse("MATERIALIZED VIEW", "Add USING heap.");
	kalam_refuse("CREATE TABLE AS", "CREATE TABLE ... USING kalamdb first, then INSERT ... SELECT.");
}

/* ---------- ALTER ---------- */

static const char *
constraint_command(const AlterTableCmd *cmd)
{
	kalam_refuse_constraint(((Constraint *) cmd->def)->contype);
	if (((Constraint *) cmd->def)->contype == CONSTR_PRIMARY)
		kalam_refuse("ADD PRIMARY KEY", "Declare the key when you create the table.");
	return "ADD CONSTRAINT";
}

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

static const char *
options_command(const AlterTableCmd *cmd)
{
	ListCell   *lc;

	foreach(lc, (List *) cmd->def)
	{
		DefElem    *def = lfirst_node(DefElem, lc);

		if (is_local_option(def))
			continue;
		if (def->arg != NULL)	/* what is no option at all is told as such */
			kalam_check_option(ForeignTableRelationId, def->defname, defGetString(def));
		return psprintf("changing option \"%s\"", def->defname);
	}
	return NULL;
}

/* What a subcommand does that the server would have to do too; NULL if nothing. */
static const char *
mirrored_command(const AlterTableCmd *cmd)
{
	switch (cmd->subtype)
	{
		case AT_AddColumn:
			return "ADD COLUMN";
		case AT_DropColumn:
			return "DROP COLUMN";
		case AT_AlterColumnType:
			return "ALTER COLUMN TYPE";
		case AT_ColumnDefault:
		case AT_CookedColumnDefault:
			return "ALTER COLUMN SET/DROP DEFAULT";
		case AT_SetNotNull:
			return "SET NOT NULL";
		case AT_DropNotNull:
			return "DROP NOT NULL";
		case AT_AddConstraint:
			return "ADD CONSTRAINT";
		case AT_DropConstraint:
			return "DROP CONSTRAINT";
		case AT_AlterConstraint:
			return "ALTER CONSTRAINT";
		case AT_DropExpression:
			return "DROP EXPRESSION";
#if PG_VERSION_NUM >= 170000
		case AT_SetExpression:
			return "SET EXPRESSION";
#endif
		case AT_AddIdentity:
		case AT_SetIdentity:
		case AT_DropIdentity:
			return "IDENTITY";
		case AT_AlterColumnGenericOptions:
			return "changing a column's options";
		default:
			return NULL;
	}
}

static void
refuse_mirrored(const char *what)
{
	kalam_refuse(psprintf("%s through ALTER TABLE", what),
				 "Create a new table and copy the rows by INSERT ... SELECT.");
}

/* Constraints we never have are refused whoever manages the table. */
static const char *
alter_own(const AlterTableCmd *cmd)
{
	if (cmd->subtype == AT_SetAccessMethod)
		kalam_refuse("SET ACCESS METHOD", "Create a new table and copy the rows by INSERT ... SELECT.");
	if (cmd->subtype == AT_AddConstraint && cmd->def)
		return constraint_command(cmd);
	if (cmd->subtype == AT_GenericOptions)
		return options_command(cmd);
	return mirrored_command(cmd);
}

static void
refuse_column_constraints(const AlterTableCmd *cmd)
{
	ListCell   *lc;

	if (cmd->subtype != AT_AddColumn || cmd->def == NULL)
		return;
	foreach(lc, ((ColumnDef *) cmd->def)->constraints)
		kalam_refuse_constraint(lfirst_node(Constraint, lc)->contype);
}

static void
refuse_alter_own(Oid relid, const AlterTableStmt *stmt)
{
	const char *what = NULL;
	ListCell   *lc;

	foreach(lc, stmt->cmds)
	{
		AlterTableCmd *cmd = lfirst_node(AlterTableCmd, lc);
		const char *mirrored;

		refuse_column_constraints(cmd);
		mirrored = alter_own(cmd);
		if (what == NULL)
			what = mirrored;
	}
	if (what && kalam_mirror_is_managed(relid))
		refuse_mirrored(what);
}

/* A change of a parent reaches its children, ours among them. */
static void
refuse_for_children(Oid relid, const char *what)
{
	ListCell   *lc;

	if (!has_subclass(relid))
		return;
	foreach(lc, find_all_inheritors(relid, NoLock, NULL))
	{
		Oid			child = lfirst_oid(lc);

		if (child != relid && get_rel_relkind(child) == RELKIND_FOREIGN_TABLE &&
			kalam_is_relation(child) && kalam_mirror_is_managed(child))
			ereport(ERROR,
					(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
					 errmsg("%s on the parent of KalamDB table \"%s\" is not supported", what, get_rel_name(child)),
					 errhint("DETACH PARTITION or NO INHERIT first.")));
	}
}

void
kalam_refuse_alter(const AlterTableStmt *stmt)
{
	Oid			relid;
	ListCell   *lc;

	if (stmt->objtype != OBJECT_TABLE && stmt->objtype != OBJECT_FOREIGN_TABLE && stmt->objtype != OBJECT_MATVIEW)
		return;
	relid = kalam_utility_relation(stmt->relation);
	if (OidIsValid(relid))
	{
		if (!kalam_is_being_created(relid))
			refuse_alter_own(relid, stmt);
		return;
	}
	relid = RangeVarGetRelid(stmt->relation, NoLock, true);
	if (!OidIsValid(relid))
		return;
	foreach(lc, stmt->cmds)
	{
		AlterTableCmd *cmd = lfirst_node(AlterTableCmd, lc);
		const char *what = mirrored_command(cmd);

		if (cmd->subtype == AT_SetAccessMethod && kalam_is_access_method(cmd->name))
			kalam_refuse("SET ACCESS METHOD", "CREATE TABLE ... USING kalamdb, then INSERT ... SELECT.");
		if (what && stmt->relation->inh)
			refuse_for_children(relid, what);
	}
}

/* The remote names are pinned in options, so only parts of a table matter. */
void
kalam_refuse_rename(const RenameStmt *stmt)
{
	const char *what = stmt->renameType == OBJECT_COLUMN ? "RENAME COLUMN" : "RENAME CONSTRAINT";
	Oid			relid;

	if (stmt->renameType != OBJECT_TABCONSTRAINT &&
		!(stmt->renameType == OBJECT_COLUMN &&
		  (stmt->relationType == OBJECT_TABLE || stmt->relationType == OBJECT_FOREIGN_TABLE)))
		return;
	relid = kalam_utility_relation(stmt->relation);
	if (OidIsValid(relid))
	{
		if (kalam_mirror_is_managed(relid))
			refuse_mirrored(what);
		return;
	}
	relid = RangeVarGetRelid(stmt->relation, NoLock, true);
	if (OidIsValid(relid) && stmt->relation->inh)
		refuse_for_children(relid, what);
}
