/*
 * kalam_types.c: changes of a type that rows of KalamDB would not survive.
 *
 * Values of enums and composite types are kept as their text.  PostgreSQL
 * refuses to add, drop or retype an attribute while a table has a column of
 * the type, but does not count foreign tables; and it renames a label where it
 * stands, in the catalog.  Both are refused here while a column of a KalamDB
 * table uses the type, by itself or inside an array, a domain, a range or
 * another composite type.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "catalog/dependency.h"
#include "catalog/indexing.h"
#include "catalog/namespace.h"
#include "catalog/pg_class.h"
#include "catalog/pg_depend.h"
#include "catalog/pg_type.h"
#include "miscadmin.h"
#include "nodes/makefuncs.h"
#include "parser/parse_type.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/lsyscache.h"

#include "kalam_core.h"
#include "kalam_ddl.h"

typedef struct User
{
	Oid			relid;
	AttrNumber	attnum;
} User;

static bool find_user(Oid typid, User *user);

/* Is what depends on the type a column of ours, or another type that has one? */
static bool
leads_to_user(Form_pg_depend dependent, User *user)
{
	Oid			relid = dependent->objid;

	if (dependent->classid == TypeRelationId)
		return find_user(dependent->objid, user);
	if (dependent->classid != RelationRelationId || dependent->objsubid <= 0)
		return false;
	if (get_rel_relkind(relid) == RELKIND_FOREIGN_TABLE && kalam_is_relation(relid))
	{
		user->relid = relid;
		user->attnum = dependent->objsubid;
		return true;
	}
	return OidIsValid(get_rel_type_id(relid)) && find_user(get_rel_type_id(relid), user);
}

static bool
find_user(Oid typid, User *user)
{
	Relation	depend = table_open(DependRelationId, AccessShareLock);
	ScanKeyData keys[2];
	SysScanDesc scan;
	HeapTuple	tuple;
	bool		found = false;

	check_stack_depth();
	ScanKeyInit(&keys[0], Anum_pg_depend_refclassid, BTEqualStrategyNumber, F_OIDEQ, ObjectIdGetDatum(TypeRelationId));
	ScanKeyInit(&keys[1], Anum_pg_depend_refobjid, BTEqualStrategyNumber, F_OIDEQ, ObjectIdGetDatum(typid));
	scan = systable_beginscan(depend, DependReferenceIndexId, true, NULL, 2, keys);
	while (!found && HeapTupleIsValid(tuple = systable_getnext(scan)))
		found = leads_to_user((Form_pg_depend) GETSTRUCT(tuple), user);
	systable_endscan(scan);
	table_close(depend, AccessShareLock);
	return found;
}

static void
refuse(Oid typid, const char *hint)
{
	User		user;

	if (!OidIsValid(typid) || !find_user(typid, &user))
		return;
	ereport(ERROR,
			(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
			 errmsg("cannot alter type %s because column \"%s.%s\" uses it", format_type_be(typid),
					get_rel_name(user.relid), get_attname(user.relid, user.attnum, false)),
			 errdetail("KalamDB keeps the values of the column as text."),
			 errhint("%s", hint)));
}

void
kalam_refuse_enum_rename(const AlterEnumStmt *stmt)
{
	if (stmt->oldVal)
		refuse(LookupTypeNameOid(NULL, makeTypeNameFromNameList(stmt->typeName), true),
			   "Add a value of the new name, and UPDATE the rows.");
}

static bool
changes_attribute(const AlterTableStmt *stmt)
{
	ListCell   *lc;

	foreach(lc, stmt->cmds)
	{
		AlterTableType type = lfirst_node(AlterTableCmd, lc)->subtype;

		if (type == AT_AddColumn || type == AT_DropColumn || type == AT_AlterColumnType)
			return true;
	}
	return false;
}

void
kalam_refuse_attributes(const AlterTableStmt *stmt)
{
	Oid			relid;

	if (stmt->objtype != OBJECT_TYPE || !changes_attribute(stmt))
		return;
	relid = RangeVarGetRelid(stmt->relation, NoLock, true);
	if (OidIsValid(relid))
		refuse(get_rel_type_id(relid), "Make a new type and a column of it, UPDATE the rows, and drop the old column.");
}
