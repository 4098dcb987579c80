/*
 * kalam_bridge.c: statements that PostgreSQL has for tables and not for
 * foreign tables, carried over.
 *
 * COPY TO becomes COPY (SELECT …) TO, and COPY without a column list means
 * the user's columns; COMMENT ON TABLE and DROP TABLE become the statements
 * for foreign tables; LOCK TABLE takes PostgreSQL's lock, which holds among
 * the sessions of this PostgreSQL, not against other clients of the server.
 *
 * pg_dump writes a column's options as an ALTER of their own, after the CREATE
 * that has taken them from the server already: saying again what is so is
 * nothing.
 */
#include "postgres.h"

#include "access/table.h"
#include "catalog/namespace.h"
#include "commands/defrem.h"
#include "miscadmin.h"
#include "nodes/makefuncs.h"
#include "storage/lmgr.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"

#include "kalam_core.h"
#include "kalam_ddl.h"

/* ---------- ALTER COLUMN OPTIONS ---------- */

/* Does the subcommand only add options that the column has? */
static bool
says_what_is(Oid relid, AlterTableCmd *cmd)
{
	AttrNumber	attnum;
	List	   *present;
	ListCell   *lc;

	if (cmd->subtype != AT_AlterColumnGenericOptions)
		return false;
	attnum = get_attnum(relid, cmd->name);
	if (attnum <= 0)
		return false;
	present = GetForeignColumnOptions(relid, attnum);
	foreach(lc, (List *) cmd->def)
	{
		DefElem    *def = lfirst_node(DefElem, lc);
		const char *value = kalam_find_option(present, def->defname);

		if ((def->defaction != DEFELEM_ADD && def->defaction != DEFELEM_UNSPEC) ||
			value == NULL || strcmp(value, defGetString(def)) != 0)
			return false;
	}
	return true;
}

void
kalam_bridge_alter(KalamUtility *u)
{
	AlterTableStmt *stmt = (AlterTableStmt *) u->pstmt->utilityStmt;
	Oid			relid = kalam_utility_relation(stmt->relation);
	List	   *cmds = NIL;
	ListCell   *lc;

	if (OidIsValid(relid) && !kalam_is_being_created(relid))
	{
		foreach(lc, stmt->cmds)
		{
			if (!says_what_is(relid, lfirst_node(AlterTableCmd, lc)))
				cmds = lappend(cmds, lfirst(lc));
		}
		if (list_length(cmds) < list_length(stmt->cmds))
		{
			stmt = copyObject(stmt);
			stmt->cmds = copyObject(cmds);
		}
		if (cmds == NIL)
			return;
	}
	kalam_refuse_alter(stmt);
	if (OidIsValid(relid) && kalam_is_being_created(relid))
		kalam_utility_run(u);
	else
		kalam_alter_run(u, stmt);
}

/* ---------- COPY ---------- */

static List *
user_columns(Oid relid)
{
	Relation	rel = table_open(relid, AccessShareLock);
	TupleDesc	desc = RelationGetDescr(rel);
	List	   *names = NIL;

	for (int i = 0; i < desc->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(desc, i);

		if (!att->attisdropped && !att->attgenerated && !kalam_is_system_column(relid, att->attnum))
			names = lappend(names, makeString(pstrdup(NameStr(att->attname))));
	}
	table_close(rel, NoLock);
	return names;
}

static Node *
select_columns(RangeVar *relation, List *names)
{
	SelectStmt *select = makeNode(SelectStmt);
	ListCell   *lc;

	foreach(lc, names)
	{
		ColumnRef  *column = makeNode(ColumnRef);
		ResTarget  *target = makeNode(ResTarget);

		column->fields = list_make1(lfirst(lc));
		column->location = -1;
		target->val = (Node *) column;
		target->location = -1;
		select->targetList = lappend(select->targetList, target);
	}
	relation->inh = false;		/* as COPY of a table leaves out its children */
	select->fromClause = list_make1(relation);
	return (Node *) select;
}

void
kalam_bridge_copy(KalamUtility *u)
{
	CopyStmt   *stmt = (CopyStmt *) u->pstmt->utilityStmt;
	Oid			relid = stmt->relation ? kalam_utility_relation(stmt->relation) : InvalidOid;

	if (!OidIsValid(relid) || (stmt->is_from && stmt->attlist != NIL))
	{
		kalam_utility_run(u);
		return;
	}
	stmt = copyObject(stmt);
	if (stmt->attlist == NIL)
		stmt->attlist = user_columns(relid);
	if (!stmt->is_from)
	{
		stmt->query = select_columns(stmt->relation, stmt->attlist);
		stmt->relation = NULL;
		stmt->attlist = NIL;
	}
	kalam_utility_run_as(u, (Node *) stmt);
}

/* ---------- COMMENT ---------- */

void
kalam_bridge_comment(KalamUtility *u)
{
	CommentStmt *stmt = (CommentStmt *) u->pstmt->utilityStmt;

	if (stmt->objtype != OBJECT_TABLE ||
		!OidIsValid(kalam_utility_relation(makeRangeVarFromNameList((List *) stmt->object))))
	{
		kalam_utility_run(u);
		return;
	}
	stmt = copyObject(stmt);
	stmt->objtype = OBJECT_FOREIGN_TABLE;
	kalam_utility_run_as(u, (Node *) stmt);
}

/* ---------- LOCK ---------- */

/* The privileges PostgreSQL asks for LOCK TABLE, in every version the stricter set. */
static void
check_lock_privilege(const RangeVar *name, Oid relid, Oid oldrelid, void *arg)
{
	LOCKMODE	mode = *(LOCKMODE *) arg;
	AclMode		wanted = ACL_UPDATE | ACL_DELETE | ACL_TRUNCATE;
	AclResult	acl;

	if (!OidIsValid(relid))
		return;
	if (mode <= RowExclusiveLock)
		wanted |= ACL_INSERT;
	if (mode <= AccessShareLock)
		wanted |= ACL_SELECT;
	acl = pg_class_aclcheck(relid, GetUserId(), wanted);
	if (acl != ACLCHECK_OK)
		aclcheck_error(acl, OBJECT_FOREIGN_TABLE, name->relname);
}

static void
lock_one(KalamUtility *u, const LockStmt *stmt, RangeVar *name)
{
	LOCKMODE	mode = stmt->mode;

	if (OidIsValid(kalam_utility_relation(name)))
		RangeVarGetRelidExtended(name, mode, stmt->nowait ? RVR_NOWAIT : 0, check_lock_privilege, &mode);
	else
	{
		LockStmt   *single = (LockStmt *) copyObject(stmt);

		single->relations = list_make1(name);
		kalam_utility_run_as(u, (Node *) single);
	}
}

void
kalam_bridge_lock(KalamUtility *u)
{
	LockStmt   *stmt = (LockStmt *) u->pstmt->utilityStmt;
	bool		ours = false;
	ListCell   *lc;

	foreach(lc, stmt->relations)
		ours |= OidIsValid(kalam_utility_relation(lfirst_node(RangeVar, lc)));
	if (!ours)
	{
		kalam_utility_run(u);
		return;
	}
	RequireTransactionBlock(u->context == PROCESS_UTILITY_TOPLEVEL, "LOCK TABLE");
	foreach(lc, stmt->relations)	/* in the order given, on which callers rely against deadlocks */
		lock_one(u, stmt, lfirst_node(RangeVar, lc));
}

/* ---------- DROP TABLE ---------- */

/*
 * Our tables of a mixed list go first: a partitioned parent that is in the
 * same list would take them with it.
 */
void
kalam_bridge_drop(KalamUtility *u)
{
	DropStmt   *stmt = (DropStmt *) u->pstmt->utilityStmt;
	List	   *ours = NIL;
	List	   *others = NIL;
	ListCell   *lc;

	if (stmt->removeType == OBJECT_TABLE)
	{
		foreach(lc, stmt->objects)
		{
			List	   *name = lfirst(lc);

			if (OidIsValid(kalam_utility_relation(makeRangeVarFromNameList(name))))
				ours = lappend(ours, name);
			else
				others = lappend(others, name);
		}
	}
	if (ours != NIL)
	{
		KalamUtility foreign = *u;

		foreign.pstmt = copyObject(u->pstmt);
		stmt = (DropStmt *) foreign.pstmt->utilityStmt;
		stmt->removeType = OBJECT_FOREIGN_TABLE;
		stmt->objects = copyObject(ours);
		kalam_drop_run(&foreign);
	}
	if (ours == NIL)
		kalam_drop_run(u);
	else if (others != NIL)
	{
		KalamUtility rest = *u;

		rest.pstmt = copyObject(u->pstmt);
		((DropStmt *) rest.pstmt->utilityStmt)->objects = copyObject(others);
		kalam_drop_run(&rest);
	}
}
