/*
 * kalam_attach.c: CREATE FOREIGN TABLE meets what is on the server.
 *
 * A remote table that is there is compared with the local columns, and what
 * the statement left open (key, table_type) is taken from it.  One that is not
 * there is created where table_type says so, else refused: a typo must not
 * make an empty table.
 *
 * A dump's statement says everything (namespace, table, table_type) but the
 * options of columns, which follow in statements of their own.  So that a dump
 * restores always, such a statement is compared only as far as the columns
 * found go, and where the server is down, or has no such table, or one of
 * another form, it stands as it is, with a warning: the next use will tell.
 */
#include "postgres.h"

#include "access/table.h"
#include "catalog/namespace.h"
#include "catalog/pg_type.h"
#include "commands/defrem.h"
#include "commands/event_trigger.h"
#include "commands/tablecmds.h"
#include "miscadmin.h"
#include "nodes/makefuncs.h"
#if PG_VERSION_NUM >= 160000
#include "nodes/miscnodes.h"
#endif
#include "parser/parse_type.h"
#include "port/pg_bswap.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/resowner.h"

#include "kalam_core.h"
#include "kalam_ddl.h"

static const char *const type_names[] = {
	[KALAM_SHARED] = "shared",
	[KALAM_USER] = "user",
	[KALAM_STREAM] = "stream",
};

/* ---------- filling in ---------- */

static AlterTableCmd *
add_option(AlterTableType subtype, const char *column, const char *name, const char *value)
{
	AlterTableCmd *cmd = makeNode(AlterTableCmd);
	DefElem    *def = makeDefElem(pstrdup(name), (Node *) makeString(pstrdup(value)), -1);

	def->defaction = DEFELEM_ADD;
	cmd->subtype = subtype;
	cmd->name = column ? pstrdup(column) : NULL;
	cmd->def = (Node *) list_make1(def);
	return cmd;
}

static AlterTableCmd *
set_not_null(const char *column)
{
	AlterTableCmd *cmd = makeNode(AlterTableCmd);

	cmd->subtype = AT_SetNotNull;
	cmd->name = pstrdup(column);
	return cmd;
}

static void
alter(Oid relid, List *cmds)
{
	AlterTableStmt *stmt;

	if (cmds == NIL)
		return;
	stmt = makeNode(AlterTableStmt);
	stmt->relation = makeRangeVar(get_namespace_name(get_rel_namespace(relid)), get_rel_name(relid), -1);
	stmt->cmds = cmds;
	stmt->objtype = OBJECT_FOREIGN_TABLE;
	EventTriggerAlterTableStart((Node *) stmt);
	AlterTableInternal(relid, cmds, false);
	EventTriggerAlterTableEnd();
	CommandCounterIncrement();
}

void
kalam_attach_pin_column(Oid relid, const char *column)
{
	alter(relid, list_make1(add_option(AT_AlterColumnGenericOptions, column, "column_name", column)));
}

/* ---------- creating ---------- */

/* Places are numbers that somebody wrote: they must be 1, 2, 3 … */
static void
check_places(Oid relid, List *key)
{
	int			place = 0;
	ListCell   *lc;

	foreach(lc, key)
	{
		AttrNumber	attnum = lfirst_int(lc);
		const char *given = kalam_find_option(GetForeignColumnOptions(relid, attnum), "key");

		if (atoi(given) != ++place)
			ereport(ERROR,
					(errcode(ERRCODE_FDW_INVALID_OPTION_NAME),
					 errmsg("option \"key\" of column \"%s\" is %s, but %d is the next place of the key",
							get_attname(relid, attnum, false), given, place),
					 errhint("Number the key's columns 1, 2, 3 ...")));
	}
}

/* The key's columns are NOT NULL, and "id" is the key where none is named. */
static void
settle_key(Oid relid, KalamTable *table)
{
	List	   *key = kalam_key_columns(relid);
	List	   *cmds = NIL;
	ListCell   *lc;

	if (key == NIL)
	{
		AttrNumber	id = get_attnum(relid, "id");

		if (id > 0)
		{
			key = list_make1_int(id);
			cmds = list_make1(add_option(AT_AlterColumnGenericOptions, "id", "key", "1"));
		}
		else if (table->type != KALAM_STREAM)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_TABLE_DEFINITION),
					 errmsg("foreign table \"%s\" has no key", get_rel_name(relid)),
					 errhint("Give the key's columns OPTIONS (key '1'), (key '2') ..., or a column named \"id\".")));
	}
	else
		check_places(relid, key);
	foreach(lc, key)
		cmds = lappend(cmds, set_not_null(get_attname(relid, lfirst_int(lc), false)));
	if (key != NIL && !kalam_find_option(GetForeignTable(relid)->options, "key_constraint"))
		cmds = lappend(cmds, add_option(AT_GenericOptions, NULL, "key_constraint",
										makeObjectName(get_rel_name(relid), NULL, "pkey")));
	alter(relid, cmds);
}

/* ---------- comparing ---------- */

int
kalam_attach_find_column(PGresult *rows, const char *name)
{
	for (int i = 0; i < PQntuples(rows); i++)
	{
		if (kalam_result_is(rows, i, 0, name))
			return i;
	}
	return -1;
}

Oid
kalam_attach_parse_type(const char *name)
{
	Oid			typid = InvalidOid;
	int32		typmod;

#if PG_VERSION_NUM >= 160000
	ErrorSaveContext escontext = {T_ErrorSaveContext};

	if (!parseTypeString(name, &typid, &typmod, (Node *) &escontext))
		return InvalidOid;
#else
	parseTypeString(name, &typid, &typmod, true);
#endif
	return typid;
}

static bool
is_text(Oid typid)
{
	return typid == TEXTOID || typid == VARCHAROID || typid == BPCHAROID;
}

static bool
comparable(KalamConn *conn, Oid local, const char *remote_name)
{
	Oid			remote;
	const KalamCap *cap;

	local = getBaseType(local);
	cap = kalam_capability(conn, 't', local);
	if (strcmp(remote_name, "file") == 0)
		return local == JSONBOID;
	remote = kalam_attach_parse_type(remote_name);
	if (local == remote || (is_text(local) && is_text(remote)))
		return true;
	/* what the server has no form for it keeps as text */
	return (is_text(remote) && (cap == NULL || cap->kept)) ||
		(kalam_mirror_is_vector(local) && strncmp(remote_name, "embedding", 9) == 0);
}

static void
compare_column(KalamConn *conn, Oid relid, Form_pg_attribute att, KalamTable *table, PGresult *rows)
{
	char	   *name = kalam_remote_column(relid, att->attnum);
	int			row = kalam_attach_find_column(rows, name);
	StringInfoData remote;
	char	   *type;

	initStringInfo(&remote);
	kalam_deparse_table(&remote, table);
	if (row < 0)
		ereport(ERROR,
				(errcode(ERRCODE_FDW_COLUMN_NAME_NOT_FOUND),
				 errmsg("column \"%s\" does not exist in remote table %s", name, remote.data),
				 errhint("Leave the column out, or name the remote one by OPTIONS (column_name '...').")));
	type = kalam_result_text(rows, row, 1);
	if (!comparable(conn, att->atttypid, type))
		ereport(ERROR,
				(errcode(ERRCODE_FDW_COLUMN_NAME_NOT_FOUND),
				 errmsg("column \"%s\" is of type %s, but of type %s in remote table %s", NameStr(att->attname),
						format_type_be(att->atttypid), type, remote.data),
				 errhint("Declare the column as %s.", type)));
}

/* A system column exists on every table that has tenants; _seq on all. */
static void
compare_system_column(const char *name, KalamTable *table, const char *remote_type)
{
	if (strcmp(name, KALAM_USERID_COLUMN) == 0 && strcmp(remote_type, "shared") == 0)
		ereport(ERROR,
				(errcode(ERRCODE_FDW_COLUMN_NAME_NOT_FOUND),
				 errmsg("column \"%s\" does not exist in shared table %s.%s", name, kalam_quote(table->namespace),
						kalam_quote(table->name))));
}

/* restored: a column may get its column_name yet */
static void
compare_columns(KalamConn *conn, Oid relid, KalamTable *table, const char *remote_type, PGresult *rows, bool restored)
{
	Relation	rel = table_open(relid, NoLock);
	TupleDesc	desc = RelationGetDescr(rel);

	for (int i = 0; i < desc->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(desc, i);

		if (att->attisdropped)
			continue;
		if (kalam_is_system_column(relid, att->attnum))
			compare_system_column(NameStr(att->attname), table, remote_type);
		else if (!restored || kalam_attach_find_column(rows, kalam_remote_column(relid, att->attnum)) >= 0)
			compare_column(conn, relid, att, table, rows);
	}
	table_close(rel, NoLock);
}

/* ---------- the key ---------- */

/* Local column that stands for a remote one; 0 if there is none. */
AttrNumber
kalam_attach_local_column(Oid relid, PGresult *rows, int row)
{
	Relation	rel = table_open(relid, NoLock);
	TupleDesc	desc = RelationGetDescr(rel);
	AttrNumber	found = 0;

	for (int i = 0; i < desc->natts && found == 0; i++)
	{
		Form_pg_attribute att = TupleDescAttr(desc, i);

		if (!att->attisdropped && kalam_result_is(rows, row, 0, kalam_remote_column(relid, att->attnum)))
			found = att->attnum;
	}
	table_close(rel, NoLock);
	return found;
}

/* place of a remote column in the key, from 1; 0: not part of it */
int
kalam_attach_key_place(PGresult *rows, int row)
{
	uint32		place;

	if (PQgetisnull(rows, row, 4) || PQgetlength(rows, row, 4) != sizeof(place))
		return 0;
	memcpy(&place, PQgetvalue(rows, row, 4), sizeof(place));
	return (int) pg_ntoh32(place);
}

/*
 * The remote key as column options.  A table whose local columns do not have
 * all of it can be read, and has no key here.
 */
static List *
remote_key(Oid relid, PGresult *rows)
{
	List	   *cmds = NIL;

	for (int i = 0; i < PQntuples(rows); i++)
	{
		AttrNumber	attnum;

		if (kalam_attach_key_place(rows, i) == 0)
			continue;
		attnum = kalam_attach_local_column(relid, rows, i);
		if (attnum == 0)
			return NIL;
		cmds = lappend(cmds, add_option(AT_AlterColumnGenericOptions, get_attname(relid, attnum, false), "key",
										psprintf("%d", kalam_attach_key_place(rows, i))));
	}
	return cmds;
}

static void
compare_key(Oid relid, KalamTable *table, PGresult *rows)
{
	ListCell   *lc;
	int			place = 0;

	foreach(lc, kalam_key_columns(relid))
	{
		char	   *name = kalam_remote_column(relid, lfirst_int(lc));
		int			row = kalam_attach_find_column(rows, name);

		place++;
		if (row < 0 || kalam_attach_key_place(rows, row) != place)
			ereport(ERROR,
					(errcode(ERRCODE_FDW_COLUMN_NAME_NOT_FOUND),
					 errmsg("column \"%s\" is not number %d of the key of remote table %s.%s", name, place,
							kalam_quote(table->namespace), kalam_quote(table->name)),
					 errhint("Leave the key options out: they are taken from the remote table.")));
	}
}

static void
attach(KalamConn *conn, Oid relid, KalamTable *table, const char *remote_type, bool restored)
{
	StringInfoData sql;
	PGresult   *rows;
	List	   *cmds = NIL;

	if (table->has_type && strcmp(type_names[table->type], remote_type) != 0)
		ereport(ERROR,
				(errcode(ERRCODE_FDW_INVALID_OPTION_NAME),
				 errmsg("option \"table_type\" is \"%s\", but remote table %s.%s is a %s table", type_names[table->type],
						kalam_quote(table->namespace), kalam_quote(table->name), remote_type),
				 errhint("Leave table_type out to attach to the table as it is.")));
	initStringInfo(&sql);
	appendStringInfoString(&sql, "DESCRIBE ");
	kalam_deparse_table(&sql, table);
	rows = kalam_mirror_ask(conn, sql.data);
	compare_columns(conn, relid, table, remote_type, rows, restored);
	if (kalam_key_columns(relid) == NIL)
		cmds = remote_key(relid, rows);
	else
		compare_key(relid, table, rows);
	if (!table->has_type)
		cmds = lappend(cmds, add_option(AT_GenericOptions, NULL, "table_type", remote_type));
	alter(relid, cmds);
	kalam_result_free(rows);
}

/* A table that was made here has a key, which a dump tells later. */
static bool
has_key_to_come(Oid relid, KalamTable *table)
{
	if (kalam_key_columns(relid) != NIL)
		return false;
	return kalam_find_option(GetForeignTable(relid)->options, "key_constraint") ||
		(table->type != KALAM_STREAM && get_attnum(relid, "id") <= 0);
}

static void
settle(Oid relid, bool restored)
{
	KalamTable *table = kalam_table_get(relid);
	KalamConn  *conn = kalam_connection_for_server(table->serverid, GetUserId());
	StringInfoData sql;
	PGresult   *facts;

	kalam_mirror_check_columns(relid);
	initStringInfo(&sql);
	appendStringInfoString(&sql, "SHOW TABLE IF EXISTS ");
	kalam_deparse_table(&sql, table);
	facts = kalam_mirror_ask(conn, sql.data);
	if (PQntuples(facts) > 0)
		attach(conn, relid, table, kalam_mirror_fact(facts, "type"), restored);
	else if (restored && has_key_to_come(relid, table))
		ereport(WARNING,
				(errmsg("remote table %s.%s does not exist", kalam_quote(table->namespace), kalam_quote(table->name)),
				 errhint("kalam_manage() creates it when all options of the columns are given.")));
	else if (table->has_type)
	{
		settle_key(relid, table);
		kalam_mirror_create(relid);
	}
	else
		ereport(ERROR,
				(errcode(ERRCODE_FDW_TABLE_NOT_FOUND),
				 errmsg("remote table %s.%s does not exist", kalam_quote(table->namespace), kalam_quote(table->name)),
				 errhint("Check the options namespace and table, or give table_type to create it.")));
	kalam_result_free(facts);
}

static bool
is_down(int sqlstate)
{
	return sqlstate == ERRCODE_SQLCLIENT_UNABLE_TO_ESTABLISH_SQLCONNECTION || sqlstate == ERRCODE_CONNECTION_FAILURE;
}

/* In a subtransaction, so that the failure leaves nothing behind. */
ErrorData *
kalam_attach_try(void (*work) (Oid relid, void *arg), Oid relid, void *arg)
{
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	ErrorData  *volatile error = NULL;

	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(context);
	PG_TRY();
	{
		work(relid, arg);
		ReleaseCurrentSubTransaction();
		MemoryContextSwitchTo(context);
		CurrentResourceOwner = owner;
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
		MemoryContextSwitchTo(context);
		CurrentResourceOwner = owner;
		if (!is_down(error->sqlerrcode))
			ReThrowError(error);
	}
	PG_END_TRY();
	return error;
}

static void
settle_restored(Oid relid, void *arg)
{
	settle(relid, true);
}

void
kalam_attach(Oid relid, bool restored)
{
	ErrorData  *error;

	if (!restored)
	{
		settle(relid, false);
		return;
	}
	error = kalam_attach_try(settle_restored, relid, NULL);
	if (error)
		ereport(WARNING,
				(errmsg("\"%s\" was not compared with its remote table", get_rel_name(relid)),
				 errdetail_internal("%s", error->message),
				 errhint("It is attached at its next use. kalam_drift() compares it.")));
}
