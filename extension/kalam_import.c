/*
 * kalam_import.c: IMPORT FOREIGN SCHEMA.
 *
 * The namespace's tables as CREATE FOREIGN TABLE statements, which PostgreSQL
 * runs: they attach, and manage nothing.  Also of the read-only namespace
 * "system".
 *
 * Options: import_not_null (on), import_default (off), import_collate (off;
 * on: columns of text get the order that the server has, COLLATE "C").
 */
#include "postgres.h"

#include "catalog/pg_foreign_table.h"
#include "commands/defrem.h"
#include "foreign/foreign.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"

#include "kalam_core.h"
#include "kalam_ddl.h"

#define SYSTEM_NAMESPACE "system"

typedef struct Import
{
	ForeignServer *server;
	KalamConn  *conn;
	ImportForeignSchemaStmt *stmt;
	bool		not_null;
	bool		defaults;
	bool		collate;
} Import;

/* ---------- options ---------- */

static void
take_options(Import *import)
{
	static const char *const names[] = {"import_default", "import_not_null", "import_collate"};
	bool	   *const values[] = {&import->defaults, &import->not_null, &import->collate};
	ListCell   *lc;

	import->not_null = true;
	foreach(lc, import->stmt->options)
	{
		DefElem    *def = lfirst_node(DefElem, lc);
		int			place = 0;

		while (place < lengthof(names) && strcmp(names[place], def->defname) != 0)
			place++;
		if (place == lengthof(names))
			kalam_bad_option(def->defname, names, lengthof(names));
		*values[place] = defGetBoolean(def);
	}
}

/* ---------- one table ---------- */

static bool
is_text_type(const char *type)
{
	return strcmp(type, "text") == 0 || strncmp(type, "character", 9) == 0 || strncmp(type, "varchar", 7) == 0;
}

/* The server's function in the schema the extension is in; anything else as it stands. */
static const char *
local_default(Import *import, const char *text)
{
	if (strcmp(text, "snowflake_id()") == 0)
		return psprintf("%s.snowflake_id()",
						quote_identifier(get_namespace_name(kalam_extension_namespace(import->server->serverid))));
	return text;
}

static void
append_column(Import *import, StringInfo sql, PGresult *rows, int row)
{
	const char *type = kalam_result_text(rows, row, 1);
	int			place = kalam_attach_key_place(rows, row);
	bool		file = strcmp(type, "file") == 0;

	if (strncmp(type, "embedding", 9) == 0)
		type = OidIsValid(kalam_attach_parse_type("vector")) ? psprintf("vector%s", type + 9) : "text";
	appendStringInfo(sql, "%s%s %s", row > 0 ? ", " : "", kalam_quote(kalam_result_text(rows, row, 0)), file ? "jsonb" : type);
	if (place > 0 || file)
	{
		appendStringInfoString(sql, " OPTIONS (");
		if (place > 0)
			appendStringInfo(sql, "key '%d'%s", place, file ? ", " : "");
		appendStringInfo(sql, "%s)", file ? "remote_type 'file'" : "");
	}
	if (import->collate && is_text_type(type))
		appendStringInfoString(sql, " COLLATE pg_catalog.\"C\"");
	if (import->defaults && !PQgetisnull(rows, row, 3))
		appendStringInfo(sql, " DEFAULT %s", local_default(import, kalam_result_text(rows, row, 3)));
	if (import->not_null && PQgetvalue(rows, row, 2)[0] != '\0')
		appendStringInfoString(sql, " NOT NULL");
}

static char *
statement(Import *import, const char *table, const char *type)
{
	const char *namespace = import->stmt->remote_schema;
	StringInfoData sql;
	PGresult   *rows;

	initStringInfo(&sql);
	appendStringInfo(&sql, "DESCRIBE %s.%s", kalam_quote(namespace), kalam_quote(table));
	rows = kalam_mirror_ask(import->conn, sql.data);
	resetStringInfo(&sql);
	appendStringInfo(&sql, "CREATE FOREIGN TABLE %s (", kalam_quote(table));
	for (int row = 0; row < PQntuples(rows); row++)
		append_column(import, &sql, rows, row);
	appendStringInfo(&sql, ") SERVER %s OPTIONS (namespace %s, \"table\" %s, table_type %s)",
					 quote_identifier(import->server->servername), quote_literal_cstr(namespace),
					 quote_literal_cstr(table), quote_literal_cstr(type));
	kalam_result_free(rows);
	return sql.data;
}

/* ---------- the namespace ---------- */

static void
check_namespace(Import *import)
{
	PGresult   *rows;
	bool		found = strcmp(import->stmt->remote_schema, SYSTEM_NAMESPACE) == 0;

	if (found)
		return;
	rows = kalam_mirror_ask(import->conn, "SHOW NAMESPACES");
	for (int row = 0; row < PQntuples(rows) && !found; row++)
		found = kalam_result_is(rows, row, 0, import->stmt->remote_schema);
	kalam_result_free(rows);
	if (!found)
		ereport(ERROR,
				(errcode(ERRCODE_FDW_SCHEMA_NOT_FOUND),
				 errmsg("namespace \"%s\" does not exist on server \"%s\"", import->stmt->remote_schema,
						import->server->servername)));
}

static List *
import_schema(ImportForeignSchemaStmt *stmt, Oid serverid)
{
	Import		import = {.server = GetForeignServer(serverid), .stmt = stmt};
	List	   *statements = NIL;
	PGresult   *rows;

	take_options(&import);
	import.conn = kalam_connection_for_server(serverid, GetUserId());
	check_namespace(&import);
	rows = kalam_mirror_ask(import.conn, psprintf("SHOW TABLES IN %s", kalam_quote(stmt->remote_schema)));
	for (int row = 0; row < PQntuples(rows); row++)
	{
		/* a name that this database cannot have is an error only where it is wanted */
		if (IsImportableForeignTable(kalam_message_from_utf8(PQgetvalue(rows, row, 1)), stmt))
			statements = lappend(statements, statement(&import, kalam_result_text(rows, row, 1),
													   kalam_result_text(rows, row, 2)));
	}
	kalam_result_free(rows);
	return statements;
}

void
kalam_import_routine(FdwRoutine *routine)
{
	routine->ImportForeignSchema = import_schema;
}
