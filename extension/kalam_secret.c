/*
 * kalam_secret.c: where secrets may stand, and what logs may show.
 *
 * Everybody may read pg_foreign_server, so CREATE and ALTER SERVER are
 * stripped of their secrets before PostgreSQL runs them, and the secrets put
 * into the mapping of PUBLIC, which only the server's owner may see.
 *
 * A log line that would show the text of a statement with a secret hides it.
 * Such a statement is known by its words, since the line may come from a
 * syntax error, long before there is a parse tree.
 */
#include "postgres.h"

#include <ctype.h>

#include "access/xact.h"
#include "catalog/pg_foreign_server.h"
#include "catalog/pg_user_mapping.h"
#include "commands/defrem.h"
#include "foreign/foreign.h"
#include "miscadmin.h"
#include "nodes/makefuncs.h"
#include "tcop/tcopprot.h"
#include "utils/builtins.h"
#include "utils/elog.h"
#include "utils/syscache.h"

#include "kalam_core.h"
#include "kalam_ddl.h"

#define HIDDEN	"(not shown: it may carry a secret)"

static emit_log_hook_type next_emit_log = NULL;
static int	hook_depth = 0;

/* ---------- texts ---------- */

/* Does text contain the lower-case word, in any case? */
static bool
contains(const char *text, const char *word)
{
	size_t		len = strlen(word);

	for (const char *p = text; *p; p++)
	{
		if (tolower((unsigned char) *p) == word[0] && pg_strncasecmp(p, word, len) == 0)
			return true;
	}
	return false;
}

static const char *
past_word(const char *p, const char *word)
{
	size_t		len = strlen(word);

	if (pg_strncasecmp(p, word, len) != 0)
		return NULL;
	p += len;
	while (isspace((unsigned char) *p))
		p++;
	return p;
}

/*
 * CREATE USER or ALTER USER of the server's own SQL, whose password may stand
 * where the word "password" was forgotten; not … USER TABLE, … USER MAPPING.
 */
static bool
makes_account(const char *text)
{
	for (const char *p = text; *p; p++)
	{
		const char *rest = past_word(p, "create");

		if (rest == NULL)
			rest = past_word(p, "alter");
		if (rest != NULL)
			rest = past_word(rest, "user");
		if (rest != NULL && past_word(rest, "table") == NULL && past_word(rest, "mapping") == NULL)
			return true;
	}
	return false;
}

bool
kalam_text_has_secret(const char *text)
{
	static const char *const words[] = {
		"auth_header", "login_password", "client_key", "bearer ", "private key-----", "password",
	};

	for (int i = 0; i < lengthof(words); i++)
	{
		if (contains(text, words[i]))
			return true;
	}
	return makes_account(text);
}

/*
 * "password" alone is no business of ours (ALTER ROLE, a column of that name):
 * only beside something of KalamDB's, as in kalam_exec('CREATE USER …').
 */
static bool
log_has_secret(const char *text)
{
	static const char *const words[] = {
		"auth_header", "login_password", "client_key", "bearer ", "private key-----",
	};

	for (int i = 0; i < lengthof(words); i++)
	{
		if (contains(text, words[i]))
			return true;
	}
	return (contains(text, "password") || makes_account(text)) && contains(text, "kalam");
}

/* debug_print_parse and its kin break lines within words, and escape spaces. */
static bool
dump_has_secret(const char *dump)
{
	char	   *text = palloc(strlen(dump) + 1);
	char	   *end = text;
	bool		found;

	for (const char *p = dump; *p; p++)
	{
		if (*p == '\\' && p[1] == ' ')
			*end++ = *++p;
		else if (!isspace((unsigned char) *p))
			*end++ = *p;
	}
	*end = '\0';
	found = log_has_secret(text);
	pfree(text);
	return found;
}

static char *
hidden_in_log(char *text)
{
	return text && log_has_secret(text) ? pstrdup(HIDDEN) : text;
}

/* "statement: …" and "duration: 1 ms  statement: …" keep what is before the text. */
static char *
hidden_message(char *message)
{
	char	   *text;

	if (message == NULL || !log_has_secret(message))
		return message;
	text = strstr(message, "statement: ");
	if (text == NULL)
		text = strstr(message, "execute ");
	if (text == NULL)
		text = strstr(message, "parse ");
	return psprintf("%.*s" HIDDEN, text ? (int) (strcspn(text, " ") + 1 + text - message) : 0,
					message);
}

/* Also what goes to the client passes here, but only what is logged as well. */
static void
kalam_emit_log(ErrorData *edata)
{
	if (next_emit_log)
		next_emit_log(edata);
	if (debug_query_string && !edata->hide_stmt && log_has_secret(debug_query_string))
		edata->hide_stmt = true;
	if (edata->elevel < WARNING)
	{
		if (edata->detail && edata->funcname && strcmp(edata->funcname, "elog_node_display") == 0 &&
			dump_has_secret(edata->detail))
			edata->detail = pstrdup(HIDDEN);
		edata->message = hidden_message(edata->message);
		edata->detail = hidden_in_log(edata->detail);
	}
	edata->detail_log = hidden_in_log(edata->detail_log);
	edata->context = hidden_in_log(edata->context);
	edata->internalquery = hidden_in_log(edata->internalquery);
}

/* ---------- statements ---------- */

static List **
statement_options(Node *stmt)
{
	switch (nodeTag(stmt))
	{
		case T_CreateForeignServerStmt:
			return &((CreateForeignServerStmt *) stmt)->options;
		case T_AlterForeignServerStmt:
			return &((AlterForeignServerStmt *) stmt)->options;
		case T_CreateUserMappingStmt:
			return &((CreateUserMappingStmt *) stmt)->options;
		case T_AlterUserMappingStmt:
			return &((AlterUserMappingStmt *) stmt)->options;
		default:
			return NULL;
	}
}

/* What belongs to a secret moves with it. */
static bool
is_moved(const char *name)
{
	return kalam_option_is_secret(name) || strcmp(name, "login_user") == 0 || strcmp(name, "client_cert") == 0;
}

static bool
is_our_server(Node *stmt)
{
	if (IsA(stmt, CreateForeignServerStmt))
	{
		ForeignDataWrapper *fdw = GetForeignDataWrapperByName(((CreateForeignServerStmt *) stmt)->fdwname, true);

		return fdw && kalam_is_fdw(fdw->fdwid);
	}
	else
	{
		const char *name = IsA(stmt, AlterForeignServerStmt) ? ((AlterForeignServerStmt *) stmt)->servername :
			IsA(stmt, CreateUserMappingStmt) ? ((CreateUserMappingStmt *) stmt)->servername :
			((AlterUserMappingStmt *) stmt)->servername;
		ForeignServer *server = GetForeignServerByName(name, true);

		return server && kalam_is_fdw(server->fdwid);
	}
}

static void
check_given(Oid catalog, List *options)
{
	ListCell   *lc;

	foreach(lc, options)
	{
		DefElem    *def = lfirst_node(DefElem, lc);

		if (def->defaction == DEFELEM_DROP)
			continue;
		kalam_check_path(def->defname, defGetString(def));
		if (catalog == ForeignServerRelationId && is_moved(def->defname))
			kalam_check_option(catalog, def->defname, defGetString(def));
	}
}

/* ---------- the mapping of PUBLIC ---------- */

/* ADD or SET as the mapping has it, whichever was written. */
static List *
settle_actions(List *moved, List *present)
{
	List	   *result = NIL;
	ListCell   *lc;

	foreach(lc, moved)
	{
		DefElem    *def = copyObject(lfirst_node(DefElem, lc));
		bool		there = kalam_find_option(present, def->defname) != NULL;

		if (def->defaction != DEFELEM_DROP)
			def->defaction = there ? DEFELEM_SET : DEFELEM_ADD;
		else if (!there)
			ereport(ERROR,
					(errcode(ERRCODE_UNDEFINED_OBJECT),
					 errmsg("option \"%s\" not found", def->defname)));
		result = lappend(result, def);
	}
	return result;
}

static RoleSpec *
public_role(void)
{
	RoleSpec   *role = makeNode(RoleSpec);

	role->roletype = ROLESPEC_PUBLIC;
	role->location = -1;
	return role;
}

static void
change_mapping_of(const ForeignServer *server, UserMapping *present, List *moved)
{
	if (present)
	{
		AlterUserMappingStmt *alter = makeNode(AlterUserMappingStmt);

		alter->user = public_role();
		alter->servername = server->servername;
		alter->options = moved;
		AlterUserMapping(alter);
	}
	else
	{
		CreateUserMappingStmt *create = makeNode(CreateUserMappingStmt);

		create->user = public_role();
		create->servername = server->servername;
		create->options = moved;
		CreateUserMapping(create);
	}
	CommandCounterIncrement();
}

static void
change_mapping(const char *servername, List *moved)
{
	ForeignServer *server = GetForeignServerByName(servername, false);
	UserMapping *present = kalam_find_mapping(server->serverid, InvalidOid);

	moved = settle_actions(moved, present ? present->options : NIL);
	hook_depth++;
	PG_TRY();
	{
		change_mapping_of(server, present, moved);
	}
	PG_FINALLY();
	{
		hook_depth--;
	}
	PG_END_TRY();
}

static void
warn_moved(const char *servername, List *moved)
{
	ListCell   *lc;

	foreach(lc, moved)
	{
		DefElem    *def = lfirst_node(DefElem, lc);

		if (def->defaction != DEFELEM_DROP && kalam_option_is_secret(def->defname))
			ereport(WARNING,
					(errmsg("option \"%s\" was moved to the user mapping of PUBLIC on server \"%s\"", def->defname,
							servername),
					 errdetail("Everybody may read a server's options.")));
	}
}

/* ---------- the hook's part ---------- */

bool
kalam_secret_hook_active(void)
{
	return hook_depth > 0;
}

/* A nested statement may raise: the depth must not stay up. */
static void
run(KalamUtility *u, Node *stmt)
{
	hook_depth++;
	PG_TRY();
	{
		if (stmt)
			kalam_utility_run_as(u, stmt);
		else
			kalam_utility_run(u);
	}
	PG_FINALLY();
	{
		hook_depth--;
	}
	PG_END_TRY();
}

static bool
is_nothing(Node *stmt)
{
	CreateForeignServerStmt *create = (CreateForeignServerStmt *) stmt;

	return IsA(stmt, CreateForeignServerStmt) && create->if_not_exists &&
		GetForeignServerByName(create->servername, true) != NULL;
}

/* Takes the options that move off the list. */
static List *
take_moved(List **options)
{
	List	   *moved = NIL;
	List	   *kept = NIL;
	ListCell   *lc;

	foreach(lc, *options)
	{
		DefElem    *def = lfirst_node(DefElem, lc);

		if (is_moved(def->defname))
			moved = lappend(moved, def);
		else
			kept = lappend(kept, def);
	}
	*options = kept;
	return moved;
}

static void
run_server(KalamUtility *u, Node *stmt)
{
	List	  **options;
	List	   *moved;
	const char *name;
	bool		nothing = is_nothing(stmt);

	stmt = copyObject(stmt);
	options = statement_options(stmt);
	if (IsA(stmt, CreateForeignServerStmt))
		kalam_check_credentials(*options);
	moved = take_moved(options);
	name = IsA(stmt, CreateForeignServerStmt) ? ((CreateForeignServerStmt *) stmt)->servername :
		((AlterForeignServerStmt *) stmt)->servername;
	/* ALTER SERVER with nothing left would be no statement */
	if (IsA(stmt, CreateForeignServerStmt) || *options != NIL || ((AlterForeignServerStmt *) stmt)->has_version)
		run(u, stmt);
	if (moved == NIL || nothing)
		return;
	CommandCounterIncrement();
	change_mapping(name, moved);
	warn_moved(name, moved);
}

void
kalam_secret_run(KalamUtility *u)
{
	Node	   *stmt = u->pstmt->utilityStmt;
	bool		of_server = IsA(stmt, CreateForeignServerStmt) || IsA(stmt, AlterForeignServerStmt);

	if (!is_our_server(stmt))
	{
		kalam_utility_run(u);
		return;
	}
	check_given(of_server ? ForeignServerRelationId : UserMappingRelationId, *statement_options(stmt));
	if (of_server)
		run_server(u, stmt);
	else
	{
		kalam_mapping_check(stmt);
		run(u, NULL);
	}
}

void
kalam_secret_init(void)
{
	next_emit_log = emit_log_hook;
	emit_log_hook = kalam_emit_log;
}
