/*
 * kalam_options.c: settings, and the options of servers, mappings, tables and
 * columns.
 *
 * The validator sees the whole list an object will have, also on ALTER, and
 * only that object's: what depends on another object (a mapping's login_user
 * on its server's auth_mode) is checked when a connection is made.  Messages
 * never show the value of an option that may be secret.
 */
#include "postgres.h"

#include "access/reloptions.h"
#include "access/table.h"
#include "catalog/pg_attribute.h"
#include "catalog/pg_foreign_data_wrapper.h"
#include "catalog/pg_foreign_server.h"
#include "catalog/pg_foreign_table.h"
#include "catalog/pg_language.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_type.h"
#include "catalog/pg_user_mapping.h"
#include "commands/defrem.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/syscache.h"
#include "utils/varlena.h"

#include "kalam_core.h"

PG_FUNCTION_INFO_V1(pg_kalam_validator);

char	   *kalam_user_id = NULL;
char	   *kalam_default_server = NULL;
int			kalam_node_id = -1;

/* objects that have options, as bits */
#define ON_SERVER	0x1
#define ON_MAPPING	0x2
#define ON_TABLE	0x4
#define ON_COLUMN	0x8

typedef enum OptionKind
{
	OPT_TEXT,					/* anything but control characters */
	OPT_NAME,					/* the same, and not empty */
	OPT_BOOL,
	OPT_INT,					/* between min and max */
	OPT_COST,					/* floating-point number, 0 or more */
	OPT_WORD,					/* one of words */
	OPT_HEADER,
	OPT_FLUSH,
	OPT_PEM,					/* PEM text or a file's path */
} OptionKind;

typedef struct OptionDef
{
	const char *name;
	int			on;
	OptionKind	kind;
	int			min;
	int			max;
	const char *words;
} OptionDef;

static const OptionDef option_defs[] = {
	{"host", ON_SERVER, OPT_NAME},
	{"port", ON_SERVER, OPT_INT, 1, 65535},
	{"auth_mode", ON_SERVER, OPT_WORD, 0, 0, "none, static_header, account_login"},
	{"auth_header", ON_SERVER | ON_MAPPING, OPT_HEADER},
	{"login_user", ON_SERVER | ON_MAPPING, OPT_NAME},
	{"login_password", ON_SERVER | ON_MAPPING, OPT_NAME},
	{"user_id", ON_MAPPING, OPT_NAME},
	{"timeout", ON_SERVER, OPT_INT, 0, INT_MAX},
	{"ca_cert", ON_SERVER, OPT_PEM},
	{"client_cert", ON_SERVER | ON_MAPPING, OPT_PEM},
	{"client_key", ON_SERVER | ON_MAPPING, OPT_PEM},
	{"application_name", ON_SERVER, OPT_TEXT},
	{"keep_connections", ON_SERVER, OPT_BOOL},
	{"parallel_commit", ON_SERVER, OPT_BOOL},
	{"parallel_abort", ON_SERVER, OPT_BOOL},
	{"fetch_size", ON_SERVER | ON_TABLE, OPT_INT, 1, 1000000},
	{"batch_size", ON_SERVER | ON_TABLE, OPT_INT, 1, 1000000},
	{"fdw_startup_cost", ON_SERVER, OPT_COST},
	{"fdw_tuple_cost", ON_SERVER, OPT_COST},
	{"use_remote_estimate", ON_SERVER | ON_TABLE, OPT_BOOL},
	{"async_capable", ON_SERVER | ON_TABLE, OPT_BOOL},
	{"truncatable", ON_SERVER | ON_TABLE, OPT_BOOL},
	{"updatable", ON_SERVER | ON_TABLE, OPT_BOOL},
	{"analyze_sampling", ON_TABLE, OPT_WORD, 0, 0, "off, auto, random, system, bernoulli"},
	{"table_type", ON_TABLE, OPT_WORD, 0, 0, "user, shared, stream"},
	{"namespace", ON_TABLE, OPT_NAME},
	{"table", ON_TABLE, OPT_NAME},
	{"storage_id", ON_TABLE, OPT_NAME},
	{"flush_policy", ON_TABLE, OPT_FLUSH},
	{"deleted_retention_hours", ON_TABLE, OPT_INT, 0, INT_MAX},
	{"ttl_seconds", ON_TABLE, OPT_INT, 1, INT_MAX},
	{"access_level", ON_TABLE, OPT_WORD, 0, 0, "public, private, restricted, dba"},
	{"use_user_storage", ON_TABLE, OPT_BOOL},
	{"compression", ON_TABLE, OPT_WORD, 0, 0, "zstd, snappy, none"},
	{"system_columns", ON_TABLE, OPT_BOOL},
	{"key_constraint", ON_TABLE, OPT_NAME},
	{"column_name", ON_COLUMN, OPT_NAME},
	{"key", ON_COLUMN, OPT_INT, 1, 1600},
	{"remote_type", ON_COLUMN, OPT_WORD, 0, 0, "file"},
};

/* which type of table an option is for; all types unless listed */
typedef struct OptionType
{
	const char *name;
	const char *types;
} OptionType;

static const OptionType option_types[] = {
	{"flush_policy", "user, shared"},
	{"deleted_retention_hours", "user, shared"},
	{"ttl_seconds", "stream"},
	{"access_level", "shared"},
	{"use_user_storage", "user"},
	{"compression", "user, shared"},
};

/* ---------- errors ---------- */

static char *
list_names(const char *const *names, int n)
{
	StringInfoData buf;

	initStringInfo(&buf);
	for (int i = 0; i < n; i++)
		appendStringInfo(&buf, "%s%s", i > 0 ? ", " : "", names[i]);
	return buf.data;
}

/* The valid name that differs least, if it differs little. */
static const char *
nearest(const char *name, const char *const *valid, int nvalid)
{
	const char *best = NULL;
	int			least = 4;		/* at most three letters wrong */
	int			len = strlen(name);

	if (len == 0 || len > 100)
		return NULL;
	for (int i = 0; i < nvalid; i++)
	{
		int			d = varstr_levenshtein_less_equal(name, len, valid[i], strlen(valid[i]), 1, 1, 1, least, true);

		if (d < least && d <= (len + 1) / 2)
		{
			best = valid[i];
			least = d;
		}
	}
	return best;
}

/* The statement is hidden: a secret under a misspelt name is a secret, too. */
void
kalam_bad_option(const char *name, const char *const *valid, int nvalid)
{
	const char *meant = nearest(name, valid, nvalid);

	ereport(ERROR,
			(errcode(ERRCODE_FDW_INVALID_OPTION_NAME),
			 errmsg("invalid option \"%s\"", name),
			 meant ?
			 errhint("Did you mean \"%s\"? Valid options: %s.", meant, list_names(valid, nvalid)) :
			 nvalid > 0 ? errhint("Valid options: %s.", list_names(valid, nvalid)) :
			 errhint("There are no valid options in this context."),
			 errhidestmt(true)));
}

KALAM_NORETURN static void bad_value(const char *name, const char *value, const char *hint);

/* value may be NULL: it is secret */
static void
bad_value(const char *name, const char *value, const char *hint)
{
	ereport(ERROR,
			(errcode(ERRCODE_FDW_INVALID_OPTION_NAME),
			 value ? errmsg("invalid value for option \"%s\": \"%s\"", name, value) :
			 errmsg("invalid value for option \"%s\"", name),
			 errhint("%s", hint),
			 errhidestmt(value == NULL)));
}

KALAM_NORETURN static void bad_combination(const char *name, const char *problem, const char *hint);

static void
bad_combination(const char *name, const char *problem, const char *hint)
{
	ereport(ERROR,
			(errcode(ERRCODE_FDW_INVALID_OPTION_NAME),
			 errmsg("option \"%s\" %s", name, problem),
			 errhint("%s", hint),
			 errhidestmt(true)));
}

/* ---------- one value ---------- */

bool
kalam_option_is_secret(const char *name)
{
	return strcmp(name, "auth_header") == 0 || strcmp(name, "login_password") == 0 ||
		strcmp(name, "client_key") == 0;
}

static bool
has_control(const char *value, bool pem)
{
	for (const unsigned char *c = (const unsigned char *) value; *c; c++)
	{
		if (pem && (*c == '\n' || *c == '\r' || *c == '\t'))
			continue;
		if (*c < 0x20 || *c == 0x7f)
			return true;
	}
	return false;
}

static bool
is_word(const char *words, const char *value)
{
	int			len = strcspn(value, " ,");

	if (value[len] != '\0')
		return false;			/* several words of the list */
	for (const char *w = words; len > 0 && (w = strstr(w, value)) != NULL; w += len)
	{
		if ((w == words || w[-1] == ' ') && (w[len] == ',' || w[len] == '\0'))
			return true;
	}
	return false;
}

static void
check_header(const char *value)
{
	if (strncmp(value, "Bearer ", 7) != 0 || value[7] == '\0' || value[7] == ' ')
		bad_value("auth_header", NULL, "Write it as 'Bearer <token>'.");
}

/* rows:N, interval:SECONDS, or both in either order */
static void
check_flush(const char *value)
{
	const char *hint = "Write 'rows:N', 'interval:SECONDS', or both separated by a comma; the numbers are greater than 0.";
	const char *p = value;
	bool		seen[2] = {false, false};

	for (;;)
	{
		int			which = strncmp(p, "rows:", 5) == 0 ? 0 : strncmp(p, "interval:", 9) == 0 ? 1 : -1;
		long		n;
		char	   *end;

		if (which < 0 || seen[which])
			bad_value("flush_policy", value, hint);
		seen[which] = true;
		p += which == 0 ? 5 : 9;
		errno = 0;
		n = strtol(p, &end, 10);
		if (*p < '0' || *p > '9' || errno != 0 || n <= 0 || n > INT_MAX)
			bad_value("flush_policy", value, hint);
		if (*end == '\0')
			return;
		if (*end != ',')
			bad_value("flush_policy", value, hint);
		p = end + 1;
		while (*p == ' ')
			p++;
	}
}

static void
check_int(const OptionDef *def, const char *value)
{
	int			n;
	const char *hintmsg;

	if (!parse_int(value, &n, 0, &hintmsg) || n < def->min || n > def->max)
		bad_value(def->name, value,
				  def->max == INT_MAX ? psprintf("It is an integer, %d or more.", def->min) :
				  psprintf("It is an integer from %d to %d.", def->min, def->max));
}

static void
check_value(const OptionDef *def, const char *value)
{
	bool		flag;
	double		cost;

	if (has_control(value, def->kind == OPT_PEM))
		bad_value(def->name, NULL, "Control characters are not allowed.");
	switch (def->kind)
	{
		case OPT_TEXT:
			break;
		case OPT_NAME:
		case OPT_PEM:
			if (value[0] == '\0')
				bad_value(def->name, value, "It must not be empty.");
			break;
		case OPT_BOOL:
			if (!parse_bool(value, &flag))
				bad_value(def->name, value, "It is a boolean: true or false.");
			break;
		case OPT_INT:
			check_int(def, value);
			break;
		case OPT_COST:
			if (!parse_real(value, &cost, 0, NULL) || !(cost >= 0))
				bad_value(def->name, value, "It is a number, 0 or more.");
			break;
		case OPT_WORD:
			if (!is_word(def->words, value))
				bad_value(def->name, value, psprintf("It is one of: %s.", def->words));
			break;
		case OPT_HEADER:
			check_header(value);
			break;
		case OPT_FLUSH:
			check_flush(value);
			break;
	}
}

/* ---------- several together ---------- */

const char *
kalam_find_option(List *options, const char *name)
{
	ListCell   *lc;

	foreach(lc, options)
	{
		DefElem    *def = lfirst_node(DefElem, lc);

		if (strcmp(def->defname, name) == 0)
			return defGetString(def);
	}
	return NULL;
}

static void
check_pair(List *options, const char *one, const char *other)
{
	bool		has_one = kalam_find_option(options, one) != NULL;

	if (has_one == (kalam_find_option(options, other) != NULL))
		return;
	bad_combination(has_one ? one : other, psprintf("needs option \"%s\"", has_one ? other : one),
					"Give both or neither.");
}

/* of a server, with what will be moved to the mapping, or of a mapping */
void
kalam_check_credentials(List *options)
{
	const char *mode = kalam_find_option(options, "auth_mode");
	bool		header = kalam_find_option(options, "auth_header") != NULL;
	bool		login = kalam_find_option(options, "login_user") != NULL;

	check_pair(options, "login_user", "login_password");
	check_pair(options, "client_cert", "client_key");
	if (header && login)
		bad_combination("auth_header", "and option \"login_user\" exclude each other",
						"Give auth_header, or login_user and login_password.");
	if (mode && header && strcmp(mode, "static_header") != 0)
		bad_combination("auth_header", psprintf("is not allowed with auth_mode '%s'", mode),
						"It goes with auth_mode 'static_header'.");
	if (mode && login && strcmp(mode, "account_login") != 0)
		bad_combination("login_user", psprintf("is not allowed with auth_mode '%s'", mode),
						"It goes with auth_mode 'account_login'.");
}

static void
check_table(List *options)
{
	const char *type = kalam_find_option(options, "table_type");

	if (type == NULL)
		return;					/* taken from the remote table when it is attached */
	for (int i = 0; i < lengthof(option_types); i++)
	{
		if (kalam_find_option(options, option_types[i].name) && !is_word(option_types[i].types, type))
			bad_combination(option_types[i].name, psprintf("is not allowed on %s tables", type),
							psprintf("It is for: %s.", option_types[i].types));
	}
}

/*
 * What a table made on the server needs, and one that is attached does not:
 * so not the validator's business.
 */
void
kalam_check_creation(Oid relid)
{
	List	   *options = GetForeignTable(relid)->options;
	const char *type = kalam_find_option(options, "table_type");

	if (type && strcmp(type, "stream") == 0 && !kalam_find_option(options, "ttl_seconds"))
		bad_combination("ttl_seconds", "is required on stream tables",
						"It says after how many seconds the events disappear.");
}

/*
 * A server's or mapping's file paths make the backend read files as the
 * operating system's user.  Looked at when given (the utility hook calls
 * this), for later changes of other options must stay possible to the owner.
 */
void
kalam_check_path(const char *name, const char *value)
{
	if (strcmp(name, "ca_cert") != 0 && strcmp(name, "client_cert") != 0 && strcmp(name, "client_key") != 0)
		return;
	if (strncmp(value, "-----BEGIN", 10) == 0 || superuser())
		return;
	ereport(ERROR,
			(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
			 errmsg("only superusers may set option \"%s\" to a file path", name),
			 errhint("Give the certificate's PEM text instead."),
			 errhidestmt(true)));
}

/*
 * The hook moves secrets off the server before this is called; without it,
 * they must not get into a catalog that everybody reads.
 */
static void
refuse_secret(const char *name)
{
	if (!kalam_option_is_secret(name))
		return;
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("option \"%s\" on a server needs the library pg_kalam to be loaded", name),
			 errhint("LOAD 'pg_kalam' first, or give it to a user mapping: everybody may read a server's options."),
			 errhidestmt(true)));
}

/* The same for who is bound to which tenant: kalam_mapping.c knows, the validator does not even know the server. */
static void
refuse_binding(List *options)
{
	if (kalam_secret_hook_active() || superuser() || kalam_find_option(options, "user_id") == NULL)
		return;
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("a user mapping with option \"user_id\" needs the library pg_kalam to be loaded"),
			 errhint("shared_preload_libraries = 'pg_kalam' loads it for everybody.")));
}

/* ---------- the validator ---------- */

static int
object_kind(Oid catalog)
{
	switch (catalog)
	{
		case ForeignServerRelationId:
			return ON_SERVER;
		case UserMappingRelationId:
			return ON_MAPPING;
		case ForeignTableRelationId:
			return ON_TABLE;
		case AttributeRelationId:
			return ON_COLUMN;
		default:
			return 0;			/* the wrapper itself has none */
	}
}

static const OptionDef *
find_def(const char *name, int on)
{
	for (int i = 0; i < lengthof(option_defs); i++)
	{
		if ((option_defs[i].on & on) && strcmp(option_defs[i].name, name) == 0)
			return &option_defs[i];
	}
	return NULL;
}

static void
unknown_option(const char *name, int on)
{
	const char *valid[lengthof(option_defs)];
	int			n = 0;

	for (int i = 0; i < lengthof(option_defs); i++)
	{
		if (option_defs[i].on & on)
			valid[n++] = option_defs[i].name;
	}
	kalam_bad_option(name, valid, n);
}

/* Also called by the hook, for the options it moves. */
void
kalam_check_option(Oid catalog, const char *name, const char *value)
{
	int			on = object_kind(catalog);
	const OptionDef *def = find_def(name, on);

	if (def == NULL)
		unknown_option(name, on);
	check_value(def, value);
}

Datum
pg_kalam_validator(PG_FUNCTION_ARGS)
{
	List	   *options = untransformRelOptions(PG_GETARG_DATUM(0));
	Oid			catalog = PG_GETARG_OID(1);
	ListCell   *lc;

	foreach(lc, options)
	{
		DefElem    *def = lfirst_node(DefElem, lc);

		kalam_check_option(catalog, def->defname, defGetString(def));
		if (catalog == ForeignServerRelationId)
			refuse_secret(def->defname);
		if (!kalam_secret_hook_active())
			kalam_check_path(def->defname, defGetString(def));
	}
	if (catalog == UserMappingRelationId)
	{
		kalam_check_credentials(options);
		refuse_binding(options);
	}
	if (catalog == ForeignTableRelationId)
		check_table(options);
	PG_RETURN_VOID();
}

/* ---------- what is ours ---------- */

bool
kalam_is_fdw(Oid fdwid)
{
	ForeignDataWrapper *fdw = GetForeignDataWrapperExtended(fdwid, FDW_MISSING_OK);
	HeapTuple	tuple;
	bool		ours = false;

	if (fdw == NULL || !OidIsValid(fdw->fdwhandler))
		return false;
	tuple = SearchSysCache1(PROCOID, ObjectIdGetDatum(fdw->fdwhandler));
	if (HeapTupleIsValid(tuple))
	{
		Form_pg_proc proc = (Form_pg_proc) GETSTRUCT(tuple);
		bool		isnull;
		Datum		prosrc = SysCacheGetAttr(PROCOID, tuple, Anum_pg_proc_prosrc, &isnull);

		ours = !isnull && proc->prolang == ClanguageId &&
			strcmp(TextDatumGetCString(prosrc), "pg_kalam_handler") == 0;
		ReleaseSysCache(tuple);
	}
	return ours;
}

bool
kalam_is_server(Oid serverid)
{
	ForeignServer *server = GetForeignServerExtended(serverid, FSV_MISSING_OK);

	return server && kalam_is_fdw(server->fdwid);
}

bool
kalam_is_relation(Oid relid)
{
	HeapTuple	tuple = SearchSysCache1(FOREIGNTABLEREL, ObjectIdGetDatum(relid));
	Oid			serverid;

	if (!HeapTupleIsValid(tuple))
		return false;
	serverid = ((Form_pg_foreign_table) GETSTRUCT(tuple))->ftserver;
	ReleaseSysCache(tuple);
	return kalam_is_server(serverid);
}

ForeignServer *
kalam_server_by_name(const char *name)
{
	ForeignServer *server = GetForeignServerByName(name, true);

	if (server == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("server \"%s\" does not exist", name),
				 errhint("CREATE SERVER %s FOREIGN DATA WRAPPER " KALAM_FDW_NAME
						 " OPTIONS (host '127.0.0.1', port '9188');", quote_identifier(name))));
	if (!kalam_is_fdw(server->fdwid))
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("server \"%s\" is not a KalamDB server", name),
				 errhint("Name one whose foreign-data wrapper is " KALAM_FDW_NAME
						 "; kalam.default_server is taken where none is named.")));
	return server;
}

void
kalam_check_usage(const ForeignServer *server)
{
	AclResult	acl;

#if PG_VERSION_NUM >= 160000
	acl = object_aclcheck(ForeignServerRelationId, server->serverid, GetUserId(), ACL_USAGE);
#else
	acl = pg_foreign_server_aclcheck(server->serverid, GetUserId(), ACL_USAGE);
#endif
	if (acl != ACLCHECK_OK)
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("permission denied for foreign server %s", server->servername),
				 errhint("GRANT USAGE ON FOREIGN SERVER %s TO %s;", quote_identifier(server->servername),
						 quote_identifier(GetUserNameFromId(GetUserId(), false)))));
}

bool
kalam_is_system_column(Oid relid, AttrNumber attnum)
{
	HeapTuple	tuple = SearchSysCache2(ATTNUM, ObjectIdGetDatum(relid), Int16GetDatum(attnum));
	Form_pg_attribute att;
	bool		is_system;

	if (!HeapTupleIsValid(tuple))
		return false;
	att = (Form_pg_attribute) GETSTRUCT(tuple);
	is_system = !att->attisdropped &&
		((strcmp(NameStr(att->attname), KALAM_SEQ_COLUMN) == 0 && att->atttypid == INT8OID) ||
		 (strcmp(NameStr(att->attname), KALAM_USERID_COLUMN) == 0 && att->atttypid == TEXTOID));
	ReleaseSysCache(tuple);
	return is_system;
}

/* A role whose mapping names a tenant is bound to it. */
const char *
kalam_tenant(UserMapping *user)
{
	const char *bound = kalam_find_option(user->options, "user_id");
	const char *chosen = kalam_user_id && kalam_user_id[0] ? kalam_user_id : NULL;

	if (bound == NULL)
		return chosen;
	if (chosen && strcmp(chosen, bound) != 0)
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("role \"%s\" may not act for tenant \"%s\"", GetUserNameFromId(user->userid, true), chosen),
				 errdetail("Its user mapping binds it to another tenant."),
				 errhint("RESET kalam.user_id.")));
	return bound;
}

/* ---------- settings ---------- */

static bool
check_user_id(char **newval, void **extra, GucSource source)
{
	if (*newval && has_control(*newval, false))
	{
		GUC_check_errdetail("Control characters are not allowed.");
		return false;
	}
	return true;
}

void
kalam_options_init(void)
{
	DefineCustomStringVariable("kalam.user_id", "Tenant for which statements on KalamDB tables run.",
							   "Empty: none. '*': all tenants, for reading, where the account may.",
							   &kalam_user_id, "", PGC_SUSET, 0, check_user_id, NULL, NULL);
	DefineCustomStringVariable("kalam.default_server", "Server for USING kalamdb and kalam_exec when none is named.",
							   NULL, &kalam_default_server, "kalam_server", PGC_USERSET, 0, NULL, NULL, NULL);
	DefineCustomIntVariable("kalam.node_id", "Node number of snowflake_id().",
							"-1: the one that the server has given this PostgreSQL.",
							&kalam_node_id, -1, -1, 1023, PGC_SUSET, 0, NULL, NULL, NULL);
	DefineCustomIntVariable("kalam.busy_poll", "Microseconds to look out for the server's answer before sleeping.",
							"0: the process sleeps at once.",
							&kalam_busy_poll, 500, 0, 10000, PGC_USERSET, 0, NULL, NULL, NULL);
	MarkGUCPrefixReserved("kalam");
}
