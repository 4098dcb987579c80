/*
 * kalam_hint.c: hints for errors that PostgreSQL raises while it analyzes a
 * statement, before any hook of ours is asked.
 *
 * They are added where an error is reported.  The transaction may be broken
 * then: no look into a catalog, so a hint says for which tables it holds.
 */
#include "postgres.h"

#include "kalam_core.h"

typedef struct Hint
{
	int			sqlstate;
	const char *raised_by;		/* a function of PostgreSQL */
	const char *hint;
} Hint;

static const Hint hints[] = {
	{ERRCODE_FEATURE_NOT_SUPPORTED, "transformMergeStmt",
	"For a KalamDB table, INSERT ... ON CONFLICT (key) DO UPDATE, or UPDATE and DELETE with FROM and USING, do it."},
	{ERRCODE_UNDEFINED_OBJECT, "get_relation_constraint_attnos",
	"The key of a KalamDB table is no constraint of PostgreSQL: name its columns, ON CONFLICT (key)."},
};

/* in the order of the scripts; a test compares */
static const char *const functions[] = {
	"kalam_version", "kalam_compiled_mode", "kalam_user_id", "kalam_user_id_guc_name", "snowflake_id", "kalam_exec",
	"kalam_flush", "kalam_compact", "kalam_table_stats", "kalam_manage", "kalam_drift", "kalam_ping",
	"kalam_server_info", "kalam_connections", "kalam_disconnect", "kalam_round_trips",
};

static emit_log_hook_type next_emit_log = NULL;

/* Does the message name one of ours, as "function kalam_drift(unknown) does not exist" does? */
static bool
names_function(const char *message)
{
	for (int i = 0; i < lengthof(functions); i++)
	{
		const char *place = strstr(message, functions[i]);

		if (place != NULL && place[strlen(functions[i])] == '(' &&
			(place == message || strchr(" .\"", place[-1]) != NULL))
			return true;
	}
	return false;
}

static const char *
find_hint(const ErrorData *edata)
{
	for (int i = 0; i < lengthof(hints); i++)
	{
		if (hints[i].sqlstate == edata->sqlerrcode && strcmp(hints[i].raised_by, edata->funcname) == 0)
			return hints[i].hint;
	}
	if (edata->sqlerrcode == ERRCODE_UNDEFINED_FUNCTION && strcmp(edata->funcname, "ParseFuncOrColumn") == 0 &&
		edata->message != NULL && names_function(edata->message))
		return "If the arguments are right, the extension's SQL objects are of an older release than its library: ALTER EXTENSION pg_kalam UPDATE.";
	return NULL;
}

static void
kalam_emit_log(ErrorData *edata)
{
	const char *hint;

	if (next_emit_log)
		next_emit_log(edata);
	if (edata->elevel != ERROR || edata->funcname == NULL)
		return;
	hint = find_hint(edata);
	if (hint != NULL)
		edata->hint = pstrdup(hint);
}

void
kalam_hint_init(void)
{
	next_emit_log = emit_log_hook;
	emit_log_hook = kalam_emit_log;
}
