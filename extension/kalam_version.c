/*
 * kalam_version.c: the library and the SQL objects of a database, which may be
 * of different releases.
 *
 * The library comes with the files of a PostgreSQL, the objects with CREATE
 * EXTENSION and ALTER EXTENSION pg_kalam UPDATE in each database.  A library
 * works with all older scripts: what they lack can only be missed by name.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "catalog/pg_extension.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/rel.h"

#include "kalam_core.h"

/* in the order of the scripts; a test compares */
static const char *const functions[] = {
	"kalam_version", "kalam_compiled_mode", "kalam_user_id", "kalam_user_id_guc_name", "snowflake_id", "kalam_exec",
	"kalam_flush", "kalam_compact", "kalam_table_stats", "kalam_manage", "kalam_drift", "kalam_ping",
	"kalam_server_info", "kalam_connections", "kalam_disconnect", "kalam_round_trips",
};

static emit_log_hook_type next_emit_log = NULL;

char *
kalam_scripts_version(void)
{
	Relation	rel = table_open(ExtensionRelationId, AccessShareLock);
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple	tuple;
	char	   *version = NULL;

	ScanKeyInit(&key, Anum_pg_extension_extname, BTEqualStrategyNumber, F_NAMEEQ, CStringGetDatum("pg_kalam"));
	scan = systable_beginscan(rel, ExtensionNameIndexId, true, NULL, 1, &key);
	tuple = systable_getnext(scan);
	if (HeapTupleIsValid(tuple))
	{
		bool		isnull;
		Datum		value = heap_getattr(tuple, Anum_pg_extension_extversion, RelationGetDescr(rel), &isnull);

		version = isnull ? NULL : TextDatumGetCString(value);
	}
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	return version;
}

/* Does the message name one of ours, as "function kalam_drift(unknown) does not exist" does? */
static bool
names_function(const char *message)
{
	for (int i = 0; i < lengthof(functions); i++)
	{
		const char *place = strstr(message, functions[i]);

		if (place != NULL && place[strlen(functions[i])] == '(' && (place == message || strchr(" .\"", place[-1]) != NULL))
			return true;
	}
	return false;
}

/* The transaction may be broken: no look into a catalog. */
static void
kalam_emit_log(ErrorData *edata)
{
	if (next_emit_log)
		next_emit_log(edata);
	if (edata->sqlerrcode == ERRCODE_UNDEFINED_FUNCTION && edata->elevel == ERROR && edata->message &&
		edata->funcname && strcmp(edata->funcname, "ParseFuncOrColumn") == 0 && names_function(edata->message))
		edata->hint = pstrdup("If the arguments are right, the extension's SQL objects are of an older release than its library: ALTER EXTENSION pg_kalam UPDATE.");
}

void
kalam_version_init(void)
{
	next_emit_log = emit_log_hook;
	emit_log_hook = kalam_emit_log;
}
