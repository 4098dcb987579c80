/*
 * kalam_drop.c: what DROP, in all its forms, means for the server.
 *
 * PostgreSQL tells the object-access hook of every relation that goes,
 * whatever statement took it: DROP TABLE, DROP SCHEMA CASCADE, DROP OWNED.
 * They are noted there, and when the statement is through the server is told
 * to drop each table *if this relation owns it*; its answer says which.  When
 * the server object itself went in the same statement, nothing remote is
 * touched: the table is merely let go.
 *
 * Notes belong to the statement that runs ("scope"); a statement inside it
 * (an event trigger's) has its own.  A drop that no statement of ours is
 * around is dealt with on the spot.
 */
#include "postgres.h"

#include "access/table.h"
#include "catalog/namespace.h"
#include "catalog/objectaccess.h"
#include "catalog/pg_class.h"
#include "catalog/pg_foreign_server.h"
#include "catalog/pg_user_mapping.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/syscache.h"

#include "kalam_ddl.h"

typedef struct DroppedTable
{
	Oid			relid;
	Oid			serverid;
	char	   *column;			/* NULL: the whole table; else only this column (its remote name) went */
	char	   *local;
	char	   *remote;			/* "ns"."t" */
	char	   *owner;
} DroppedTable;

typedef struct Scope
{
	struct Scope *outer;
	MemoryContext context;
	List	   *dropped;		/* DroppedTable */
	List	   *servers;		/* OIDs of servers that went */
	List	   *altered;		/* OIDs of tables whose lost columns are somebody else's business */
	bool		creating;
	List	   *created;		/* OIDs of relations made meanwhile, an event trigger's among them */
} Scope;

static object_access_hook_type next_access_hook = NULL;
static Scope *scope = NULL;

/* ---------- after the statement ---------- */

static void
notice_detached(const DroppedTable *table)
{
	ereport(NOTICE,
			(errmsg("\"%s\" was detached; remote table %s and its data stay", table->local, table->remote)));
}

static PGresult *
ask_to_drop(const DroppedTable *table)
{
	StringInfoData sql;

	initStringInfo(&sql);
	appendStringInfo(&sql, "DROP TABLE IF EXISTS %s OWNED BY ", table->remote);
	kalam_append_literal(&sql, table->owner);
	return kalam_mirror_request(kalam_connection_for_server(table->serverid, GetUserId()), sql.data);
}

/* An unreachable server must not be the end of it: say what can be done. */
static PGresult *
ask_with_hint(const DroppedTable *table)
{
	MemoryContext context = CurrentMemoryContext;
	PGresult   *volatile res = NULL;

	PG_TRY();
	{
		res = ask_to_drop(table);
	}
	PG_CATCH();
	{
		ErrorData  *error;

		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		if (error->sqlerrcode != ERRCODE_SQLCLIENT_UNABLE_TO_ESTABLISH_SQLCONNECTION &&
			error->sqlerrcode != ERRCODE_CONNECTION_FAILURE)
			PG_RE_THROW();
		FlushErrorState();
		error->hint = psprintf("Start KalamDB and try again. DROP SERVER %s CASCADE detaches all its tables without it.",
							   quote_identifier(GetForeignServer(table->serverid)->servername));
		ReThrowError(error);
	}
	PG_END_TRY();
	return res;
}

static void
tell_server(const DroppedTable *table)
{
	PGresult   *res = ask_with_hint(table);

	if (strcmp(PQcmdStatus(res), "DETACH") == 0)
		notice_detached(table);
	else
		ereport(NOTICE,
				(errmsg("remote table %s was dropped", table->remote),
				 errdetail("The server keeps its data for the grace period (KALAM_DROP_GRACE)."),
				 errhint("UNDROP TABLE %s there brings it back; kalam_manage() lets a table attached to it manage it.",
						 table->remote)));
	kalam_result_free(res);
}

/* A column that went by the CASCADE of something else, as DROP TYPE. */
static void
tell_of_column(const DroppedTable *table)
{
	StringInfoData sql;

	if (!SearchSysCacheExists1(RELOID, ObjectIdGetDatum(table->relid)))
		return;					/* its table went as well */
	initStringInfo(&sql);
	appendStringInfo(&sql, "ALTER TABLE IF EXISTS %s OWNED BY ", table->remote);
	kalam_append_literal(&sql, table->owner);
	appendStringInfo(&sql, " DROP COLUMN IF EXISTS %s", table->column);
	kalam_result_free(kalam_mirror_request(kalam_connection_for_server(table->serverid, GetUserId()), sql.data));
}

static void
settle_table(const DroppedTable *table)
{
	if (table->column)
		tell_of_column(table);
	else if (scope && list_member_oid(scope->servers, table->serverid))
		notice_detached(table);
	else if (IsBinaryUpgrade)
		notice_detached(table);
	else
		tell_server(table);
}

/* ---------- the scope ---------- */

static void
enter(Scope *inner)
{
	memset(inner, 0, sizeof(Scope));
	inner->outer = scope;
	inner->context = CurrentMemoryContext;
	scope = inner;
}

void
kalam_drop_run(KalamUtility *u)
{
	Scope		inner;
	ListCell   *lc;

	enter(&inner);
	PG_TRY();
	{
		kalam_utility_run(u);
		if (inner.dropped != NIL)
			CommandCounterIncrement();
		foreach(lc, inner.dropped)
			settle_table(lfirst(lc));
	}
	PG_FINALLY();
	{
		scope = inner.outer;
	}
	PG_END_TRY();
}

void
kalam_altered_run(KalamUtility *u, Node *stmt, List *tables)
{
	Scope		inner;
	ListCell   *lc;

	enter(&inner);
	inner.altered = tables;
	PG_TRY();
	{
		kalam_utility_run_as(u, stmt);
		CommandCounterIncrement();
		foreach(lc, inner.dropped)
			settle_table(lfirst(lc));
	}
	PG_FINALLY();
	{
		scope = inner.outer;
	}
	PG_END_TRY();
}

Oid
kalam_create_run(KalamUtility *u, CreateForeignTableStmt *stmt)
{
	Scope		inner;
	Oid			relid;

	enter(&inner);
	inner.creating = true;
	PG_TRY();
	{
		kalam_utility_run_as(u, (Node *) stmt);
	}
	PG_FINALLY();
	{
		scope = inner.outer;
	}
	PG_END_TRY();
	CommandCounterIncrement();
	relid = RangeVarGetRelid(stmt->base.relation, NoLock, true);
	return list_member_oid(inner.created, relid) ? relid : InvalidOid;
}

/*
 * CREATE FOREIGN TABLE and ADD COLUMN give column options in an ALTER of its
 * own, which must not be taken for a user's.
 */
bool
kalam_is_being_created(Oid relid)
{
	return scope && ((scope->creating && list_member_oid(scope->created, relid)) ||
					 list_member_oid(scope->altered, relid));
}

/* ---------- the hook ---------- */

static void
note_dropped(Oid relid, AttrNumber column)
{
	MemoryContext context = MemoryContextSwitchTo(scope ? scope->context : CurrentMemoryContext);
	DroppedTable *table = palloc0(sizeof(DroppedTable));
	KalamTable *mapping = kalam_table_get(relid);
	StringInfoData remote;

	initStringInfo(&remote);
	kalam_deparse_table(&remote, mapping);
	table->relid = relid;
	table->serverid = mapping->serverid;
	table->column = column == 0 ? NULL : pstrdup(kalam_quote(kalam_remote_column(relid, column)));
	table->local = get_rel_name(relid);
	table->remote = remote.data;
	table->owner = kalam_mirror_owner(relid);
	if (scope)
		scope->dropped = lappend(scope->dropped, table);
	else
		settle_table(table);
	MemoryContextSwitchTo(context);
}

static void
note_server(Oid serverid)
{
	MemoryContext context;

	if (scope == NULL)
		return;
	context = MemoryContextSwitchTo(scope->context);
	scope->servers = lappend_oid(scope->servers, serverid);
	MemoryContextSwitchTo(context);
}

static bool
is_settled(Oid relid, AttrNumber column)
{
	return column != 0 && ((scope && list_member_oid(scope->altered, relid)) || kalam_is_system_column(relid, column));
}

/* Columns may go one by one although their table is on the list, too. */
static void
on_drop(Oid class, Oid object, int column)
{
	if (class == ForeignServerRelationId)
		note_server(object);
	else if (class == UserMappingRelationId)
		kalam_mapping_drop(object);
	else if (class == RelationRelationId && get_rel_relkind(object) == RELKIND_FOREIGN_TABLE &&
			 kalam_is_relation(object) && !is_settled(object, column))
		note_dropped(object, column);
}

static void
on_create(Oid class, Oid object, int column)
{
	MemoryContext context;

	if (scope == NULL || !scope->creating || class != RelationRelationId || column != 0)
		return;
	context = MemoryContextSwitchTo(scope->context);
	scope->created = lappend_oid(scope->created, object);
	MemoryContextSwitchTo(context);
}

static void
kalam_object_access(ObjectAccessType access, Oid class, Oid object, int column, void *arg)
{
	if (next_access_hook)
		next_access_hook(access, class, object, column, arg);
	if (access == OAT_DROP)
		on_drop(class, object, column);
	else if (access == OAT_POST_CREATE)
		on_create(class, object, column);
}

void
kalam_drop_init(void)
{
	next_access_hook = object_access_hook;
	object_access_hook = kalam_object_access;
}
