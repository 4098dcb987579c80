/*
 * kalam_ddl.c: the utility hook.
 *
 * Looks at each utility statement once, by node tag; what is not about our
 * tables goes on unchanged.  It runs for nested statements too (functions,
 * extension scripts, CREATE SCHEMA), whose trees may belong to a cached plan:
 * so a statement is copied before anything in it is changed.
 */
#include "postgres.h"

#include "catalog/namespace.h"
#include "catalog/pg_class.h"
#include "commands/comment.h"
#include "commands/defrem.h"
#include "foreign/foreign.h"
#include "miscadmin.h"
#include "nodes/makefuncs.h"
#include "tcop/utility.h"
#include "utils/lsyscache.h"

#include "kalam_core.h"
#include "kalam_ddl.h"

static ProcessUtility_hook_type next_utility_hook = NULL;
bool		kalam_explaining = false;

void
kalam_utility_run(KalamUtility *u)
{
	if (next_utility_hook)
		next_utility_hook(u->pstmt, u->query, u->read_only_tree, u->context,
						  u->params, u->env, u->dest, u->qc);
	else
		standard_ProcessUtility(u->pstmt, u->query, u->read_only_tree, u->context,
								u->params, u->env, u->dest, u->qc);
}

void
kalam_utility_run_as(KalamUtility *u, Node *stmt)
{
	KalamUtility changed = *u;

	changed.pstmt = makeNode(PlannedStmt);
	memcpy(changed.pstmt, u->pstmt, sizeof(PlannedStmt));
	changed.pstmt->utilityStmt = stmt;
	changed.read_only_tree = false;
	kalam_utility_run(&changed);
}

Oid
kalam_utility_relation(const RangeVar *name)
{
	Oid			relid = RangeVarGetRelid(name, NoLock, true);

	if (OidIsValid(relid) && get_rel_relkind(relid) == RELKIND_FOREIGN_TABLE && kalam_is_relation(relid))
		return relid;
	return InvalidOid;
}

/* Comments that LIKE brings: (column, text). */
static void
comment_columns(Oid relid, List *comments)
{
	ListCell   *lc;

	foreach(lc, comments)
	{
		List	   *comment = lfirst(lc);

		CreateComments(relid, RelationRelationId, get_attnum(relid, linitial(comment)), lsecond(comment));
	}
}

Oid
kalam_create_table_run(KalamUtility *u, CreateStmt *stmt)
{
	List	   *comments = NIL;
	CreateForeignTableStmt *foreign = kalam_create_rewrite(stmt, &comments);
	Oid			relid;

	if (foreign == NULL)
	{
		kalam_utility_run(u);
		return InvalidOid;
	}
	relid = kalam_create_run(u, foreign);
	if (OidIsValid(relid) && !IsBinaryUpgrade)
		kalam_mirror_create(relid);
	if (OidIsValid(relid))
		comment_columns(relid, comments);
	return relid;
}

static void
create_foreign_table(KalamUtility *u, CreateForeignTableStmt *stmt)
{
	ForeignServer *server = GetForeignServerByName(stmt->servername, true);
	bool		restored = kalam_find_option(stmt->options, "namespace") && kalam_find_option(stmt->options, "table") &&
		kalam_find_option(stmt->options, "table_type");
	Oid			relid;

	if (server == NULL || !kalam_is_fdw(server->fdwid))
	{
		kalam_utility_run(u);
		return;
	}
	stmt = copyObject(stmt);
	if (!kalam_create_pin(stmt))
	{
		kalam_utility_run_as(u, (Node *) stmt);
		return;
	}
	relid = kalam_create_run(u, stmt);
	if (OidIsValid(relid) && !IsBinaryUpgrade)
		kalam_attach(relid, restored);
}

static void
explain(KalamUtility *u, ExplainStmt *stmt)
{
	Query	   *query = (Query *) stmt->query;
	bool		before = kalam_explaining;

	if (query && IsA(query, Query) && query->utilityStmt && IsA(query->utilityStmt, CreateTableAsStmt))
		kalam_refuse_explain_as((CreateTableAsStmt *) query->utilityStmt);
	kalam_explaining = true;
	PG_TRY();
	{
		kalam_utility_run(u);
	}
	PG_FINALLY();
	{
		kalam_explaining = before;
	}
	PG_END_TRY();
}

/* PostgreSQL's partitioned tables have no access method by default */
static bool
is_ours(const CreateStmt *stmt)
{
	if (stmt->accessMethod == NULL && stmt->partspec != NULL)
		return false;
	return kalam_is_access_method(stmt->accessMethod);
}

static void
dispatch(KalamUtility *u)
{
	Node	   *stmt = u->pstmt->utilityStmt;

	switch (nodeTag(stmt))
	{
		case T_CreateStmt:
			if (is_ours((CreateStmt *) stmt))
				(void) kalam_create_table_run(u, (CreateStmt *) stmt);
			else
				kalam_utility_run(u);
			break;
		case T_CreateForeignTableStmt:
			create_foreign_table(u, (CreateForeignTableStmt *) stmt);
			break;
		case T_CreateTableAsStmt:
			if (kalam_is_access_method(((CreateTableAsStmt *) stmt)->into->accessMethod))
				kalam_create_as_run(u);
			else
				kalam_utility_run(u);
			break;
		case T_ExplainStmt:
			explain(u, (ExplainStmt *) stmt);
			break;
		case T_AlterTableStmt:
			kalam_refuse_attributes((AlterTableStmt *) stmt);
			kalam_bridge_alter(u);
			break;
		case T_AlterEnumStmt:
			kalam_refuse_enum_rename((AlterEnumStmt *) stmt);
			kalam_utility_run(u);
			break;
		case T_RenameStmt:
			kalam_rename_run(u);
			break;
		case T_IndexStmt:
			kalam_refuse_index((IndexStmt *) stmt);
			kalam_utility_run(u);
			break;
		case T_DropStmt:
			kalam_bridge_drop(u);
			break;
		case T_CreateForeignServerStmt:
		case T_AlterForeignServerStmt:
		case T_CreateUserMappingStmt:
		case T_AlterUserMappingStmt:
			kalam_secret_run(u);
			break;
		case T_DropOwnedStmt:
			kalam_drop_run(u);
			break;
		case T_CommentStmt:
			kalam_bridge_comment(u);
			break;
		case T_CopyStmt:
			kalam_bridge_copy(u);
			break;
		case T_LockStmt:
			kalam_bridge_lock(u);
			break;
		default:
			kalam_utility_run(u);
			break;
	}
}

static void
kalam_utility(PlannedStmt *pstmt, const char *query, bool read_only_tree, ProcessUtilityContext context,
			  ParamListInfo params, QueryEnvironment *env, DestReceiver *dest, QueryCompletion *qc)
{
	KalamUtility u = {pstmt, query, read_only_tree, context, params, env, dest, qc};

	dispatch(&u);
}

void
kalam_ddl_init(void)
{
	next_utility_hook = ProcessUtility_hook;
	ProcessUtility_hook = kalam_utility;
	kalam_drop_init();
}
