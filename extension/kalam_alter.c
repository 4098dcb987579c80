/*
 * kalam_alter.c: ALTER TABLE and RENAME of tables of ours, and of parents of
 * such tables.
 *
 * PostgreSQL runs the statement on its catalog; what changed there is sent to
 * the server in the same transaction (kalam_definition.c), for every table
 * that manages its remote one.  Of a table that is merely attached the change
 * is local, as with postgres_fdw.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "catalog/dependency.h"
#include "catalog/indexing.h"
#include "catalog/namespace.h"
#include "catalog/pg_attribute.h"
#include "catalog/pg_class.h"
#include "catalog/pg_collation.h"
#include "catalog/pg_depend.h"
#include "catalog/pg_inherits.h"
#include "catalog/pg_type.h"
#include "commands/comment.h"
#include "commands/tablecmds.h"
#include "miscadmin.h"
#include "nodes/makefuncs.h"
#include "utils/attoptcache.h"
#include "utils/fmgroids.h"
#include "utils/lsyscache.h"
#include "utils/syscache.h"

#include "kalam_core.h"
#include "kalam_ddl.h"

/* ---------- whom it is about ---------- */

/* Tables of ours among a relation and those that inherit from it. */
static List *
find_ours(Oid relid, bool children, LOCKMODE lockmode)
{
	List	   *found = NIL;
	ListCell   *lc;
	List	   *all = children && has_subclass(relid) ? find_all_inheritors(relid, lockmode, NULL) :
		list_make1_oid(relid);

	foreach(lc, all)
	{
		Oid			each = lfirst_oid(lc);

		if (get_rel_relkind(each) == RELKIND_FOREIGN_TABLE && kalam_is_relation(each))
			found = lappend_oid(found, each);
	}
	return found;
}

static void
ask_managed(Oid relid, void *arg)
{
	*(bool *) arg = kalam_mirror_is_managed(relid);
}

/*
 * restoring: the statement is one that a dump has; with the server down it is
 * about a table that is not attached yet.
 */
static List *
take_managed(List *ours, bool restoring)
{
	List	   *managed = NIL;
	ListCell   *lc;

	foreach(lc, ours)
	{
		Oid			relid = lfirst_oid(lc);
		bool		is_managed = false;

		if (restoring)
			(void) kalam_attach_try(ask_managed, relid, &is_managed);
		else
			ask_managed(relid, &is_managed);
		if (is_managed)
			managed = lappend(managed, kalam_definition_take(relid));
	}
	return managed;
}

static void
send_changes(List *managed)
{
	ListCell   *lc;

	foreach(lc, managed)
		kalam_definition_send(lfirst(lc));
}

/* ---------- system columns stay last ---------- */

static bool
has_dependents(Oid relid, AttrNumber attnum)
{
	Relation	catalog = table_open(DependRelationId, AccessShareLock);
	ScanKeyData keys[3];
	SysScanDesc scan;
	bool		found;

	ScanKeyInit(&keys[0], Anum_pg_depend_refclassid, BTEqualStrategyNumber, F_OIDEQ,
				ObjectIdGetDatum(RelationRelationId));
	ScanKeyInit(&keys[1], Anum_pg_depend_refobjid, BTEqualStrategyNumber, F_OIDEQ, ObjectIdGetDatum(relid));
	ScanKeyInit(&keys[2], Anum_pg_depend_refobjsubid, BTEqualStrategyNumber, F_INT4EQ, Int32GetDatum(attnum));
	scan = systable_beginscan(catalog, DependReferenceIndexId, true, NULL, 3, keys);
	found = HeapTupleIsValid(systable_getnext(scan));
	systable_endscan(scan);
	table_close(catalog, AccessShareLock);
	return found;
}

static bool
has_distinct_setting(Oid relid, AttrNumber attnum)
{
	AttributeOpts *options = get_attribute_options(relid, attnum);

	return options && (options->n_distinct != 0 || options->n_distinct_inherited != 0);
}

/* Would a column that is dropped and added again be the same to everybody? */
static bool
is_movable(Oid relid, AttrNumber attnum)
{
	HeapTuple	tuple = SearchSysCacheAttNum(relid, attnum);
	bool		plain;

	if (!HeapTupleIsValid(tuple))
		return false;
	plain = ((Form_pg_attribute) GETSTRUCT(tuple))->attinhcount == 0 &&
		!((Form_pg_attribute) GETSTRUCT(tuple))->atthasdef &&
		!((Form_pg_attribute) GETSTRUCT(tuple))->attnotnull &&
		heap_attisnull(tuple, Anum_pg_attribute_attacl, NULL) &&
		heap_attisnull(tuple, Anum_pg_attribute_attfdwoptions, NULL);
	ReleaseSysCache(tuple);
	return plain && !has_distinct_setting(relid, attnum) && !has_dependents(relid, attnum) &&
		GetComment(relid, RelationRelationId, attnum) == NULL;
}

static List *
movable_columns(Oid relid)
{
	static const char *const names[] = {KALAM_SEQ_COLUMN, KALAM_USERID_COLUMN};
	List	   *found = NIL;

	if (has_subclass(relid))
		return NIL;
	for (int i = 0; i < lengthof(names); i++)
	{
		AttrNumber	attnum = get_attnum(relid, names[i]);

		if (attnum <= 0 || !kalam_is_system_column(relid, attnum))
			continue;
		if (!is_movable(relid, attnum))
			return NIL;			/* one alone would change their order */
		found = lappend(found, (void *) names[i]);
	}
	return found;
}

static AlterTableCmd *
new_command(AlterTableType subtype, const char *name)
{
	AlterTableCmd *cmd = makeNode(AlterTableCmd);

	cmd->subtype = subtype;
	cmd->name = name ? pstrdup(name) : NULL;
	cmd->behavior = DROP_RESTRICT;
	return cmd;
}

/* DROP comes before ADD in one ALTER, whatever their order there. */
static List *
move_system_columns(Oid relid, List *cmds)
{
	ListCell   *lc;

	foreach(lc, movable_columns(relid))
	{
		const char *name = lfirst(lc);
		bool		is_seq = strcmp(name, KALAM_SEQ_COLUMN) == 0;
		AlterTableCmd *add = new_command(AT_AddColumn, NULL);

		add->def = (Node *) makeColumnDef(name, is_seq ? INT8OID : TEXTOID, -1,
										  is_seq ? InvalidOid : DEFAULT_COLLATION_OID);
		cmds = lappend(cmds, new_command(AT_DropColumn, name));
		cmds = lappend(cmds, add);
	}
	return cmds;
}

/* ---------- ALTER TABLE ---------- */

static bool
names_column(List *cmds, AlterTableType subtype, const char *name)
{
	ListCell   *lc;

	foreach(lc, cmds)
	{
		AlterTableCmd *cmd = lfirst_node(AlterTableCmd, lc);

		if (cmd->subtype == subtype && cmd->name && strcmp(cmd->name, name) == 0)
			return true;
	}
	return false;
}

/* The statement as it is to run on a table of ours; it is ours to scribble on. */
static void
prepare(Oid relid, AlterTableStmt *stmt)
{
	bool		adds = false;
	ListCell   *lc;

	foreach(lc, stmt->cmds)
	{
		AlterTableCmd *cmd = lfirst_node(AlterTableCmd, lc);

		if (cmd->subtype != AT_AddColumn)
			continue;
		kalam_create_added_column(GetForeignTable(relid)->serverid, (ColumnDef *) cmd->def);
		adds = true;
	}
	if (adds && !names_column(stmt->cmds, AT_DropColumn, KALAM_SEQ_COLUMN) &&
		!names_column(stmt->cmds, AT_DropColumn, KALAM_USERID_COLUMN))
		stmt->cmds = move_system_columns(relid, stmt->cmds);
}

static bool
only_adds_column_options(const AlterTableStmt *stmt)
{
	ListCell   *lc;
	ListCell   *option;

	foreach(lc, stmt->cmds)
	{
		AlterTableCmd *cmd = lfirst_node(AlterTableCmd, lc);

		if (cmd->subtype != AT_AlterColumnGenericOptions)
			return false;
		foreach(option, (List *) cmd->def)
		{
			DefElemAction action = lfirst_node(DefElem, option)->defaction;

			if (action != DEFELEM_ADD && action != DEFELEM_UNSPEC)
				return false;
		}
	}
	return true;
}

static bool
any_mirrored(const AlterTableStmt *stmt)
{
	ListCell   *lc;

	foreach(lc, stmt->cmds)
	{
		if (kalam_alter_is_mirrored(lfirst_node(AlterTableCmd, lc)))
			return true;
	}
	return false;
}

static void
refuse_managed(const AlterTableStmt *stmt)
{
	ListCell   *lc;

	foreach(lc, stmt->cmds)
		kalam_refuse_managed(lfirst_node(AlterTableCmd, lc));
}

static void
run_as_it_is(KalamUtility *u, AlterTableStmt *stmt)
{
	if (stmt == (AlterTableStmt *) u->pstmt->utilityStmt)
		kalam_utility_run(u);
	else
		kalam_utility_run_as(u, (Node *) stmt);
}

/* stmt: the statement, or what is left of it */
void
kalam_alter_run(KalamUtility *u, AlterTableStmt *stmt)
{
	Oid			relid = RangeVarGetRelid(stmt->relation, NoLock, true);
	LOCKMODE	lockmode;
	List	   *ours;
	List	   *managed;

	if (!OidIsValid(relid) || IsBinaryUpgrade || !any_mirrored(stmt) ||
		find_ours(relid, stmt->relation->inh, NoLock) == NIL)
	{
		run_as_it_is(u, stmt);
		return;
	}
	lockmode = AlterTableGetLockLevel(stmt->cmds);
	relid = RangeVarGetRelidExtended(stmt->relation, lockmode, stmt->missing_ok ? RVR_MISSING_OK : 0,
									 RangeVarCallbackOwnsRelation, NULL);
	if (!OidIsValid(relid))
	{
		run_as_it_is(u, stmt);
		return;
	}
	ours = find_ours(relid, stmt->relation->inh, lockmode);
	managed = take_managed(ours, only_adds_column_options(stmt));
	if (managed != NIL)
		refuse_managed(stmt);
	stmt = copyObject(stmt);
	if (list_member_oid(ours, relid))
		prepare(relid, stmt);
	kalam_altered_run(u, (Node *) stmt, ours);
	send_changes(managed);
}

/* ---------- RENAME of a column or a constraint ---------- */

static bool
is_part(const RenameStmt *stmt)
{
	return stmt->renameType == OBJECT_TABCONSTRAINT ||
		(stmt->renameType == OBJECT_COLUMN &&
		 (stmt->relationType == OBJECT_TABLE || stmt->relationType == OBJECT_FOREIGN_TABLE));
}

/* An attached table's column keeps its remote name by an option. */
static void
pin_columns(List *ours, const RenameStmt *stmt)
{
	ListCell   *lc;

	foreach(lc, ours)
	{
		Oid			relid = lfirst_oid(lc);
		AttrNumber	attnum = get_attnum(relid, stmt->subname);

		if (attnum > 0 && !kalam_find_option(GetForeignColumnOptions(relid, attnum), "column_name") &&
			!kalam_mirror_is_managed(relid))
			kalam_attach_pin_column(relid, stmt->subname);
	}
}

static void
refuse_system_column(List *ours, const char *name)
{
	ListCell   *lc;

	foreach(lc, ours)
	{
		AttrNumber	attnum = get_attnum(lfirst_oid(lc), name);

		if (attnum > 0 && kalam_is_system_column(lfirst_oid(lc), attnum))
			kalam_refuse(psprintf("renaming system column \"%s\"", name), "Name it otherwise in a query or a view.");
	}
}

void
kalam_rename_run(KalamUtility *u)
{
	RenameStmt *stmt = (RenameStmt *) u->pstmt->utilityStmt;
	Oid			relid = is_part(stmt) ? RangeVarGetRelid(stmt->relation, NoLock, true) : InvalidOid;
	List	   *ours;
	List	   *managed;

	if (!OidIsValid(relid) || IsBinaryUpgrade || find_ours(relid, stmt->relation->inh, NoLock) == NIL)
	{
		kalam_utility_run(u);
		return;
	}
	relid = RangeVarGetRelidExtended(stmt->relation, AccessExclusiveLock, stmt->missing_ok ? RVR_MISSING_OK : 0,
									 RangeVarCallbackOwnsRelation, NULL);
	if (!OidIsValid(relid))
	{
		kalam_utility_run(u);
		return;
	}
	ours = find_ours(relid, stmt->relation->inh, AccessExclusiveLock);
	if (stmt->renameType == OBJECT_COLUMN)
	{
		refuse_system_column(ours, stmt->subname);
		pin_columns(ours, stmt);
	}
	managed = take_managed(ours, false);
	kalam_altered_run(u, u->pstmt->utilityStmt, ours);
	send_changes(managed);
}
