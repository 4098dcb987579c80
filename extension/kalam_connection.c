/*
 * kalam_connection.c: the cache of connections, and how one is made.
 *
 * A connection belongs to a user mapping, never to a table or a tenant; the
 * tenant travels with each statement.  Credentials come from the role's
 * mapping, or, where that has none, from PUBLIC's, which is where a secret
 * given on the server is kept.
 *
 * libpq is told everything it may know: no environment, service file or
 * password file of the operating system's user takes part.
 */
#include "postgres.h"

#include <ctype.h>

#include "access/reloptions.h"
#include "access/xact.h"
#include "catalog/pg_user_mapping.h"
#include "commands/dbcommands.h"
#include "commands/defrem.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "storage/fd.h"
#include "storage/latch.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/hsearch.h"
#include "utils/inval.h"
#include "utils/memutils.h"
#include "utils/syscache.h"

#include "kalam_core.h"

HTAB	   *kalam_connections = NULL;

/* What a connection is made from. */
typedef struct Target
{
	const char *server;
	const char *host;
	const char *port;
	char	   *where;			/* as messages name it */
	const char *mode;
	const char *user;
	const char *password;		/* NULL: none */
	const char *application_name;
	int			timeout;
	bool		keep;
	bool		parallel_commit;
	bool		parallel_abort;
	bool		lent;			/* the server object is a superuser's: it may do without credentials */
	char	   *made_from;
} Target;

/* ---------- mappings ---------- */

UserMapping *
kalam_find_mapping(Oid serverid, Oid userid)
{
	HeapTuple	tuple = SearchSysCache2(USERMAPPINGUSERSERVER, ObjectIdGetDatum(userid), ObjectIdGetDatum(serverid));
	UserMapping *user;
	Datum		options;
	bool		isnull;

	if (!HeapTupleIsValid(tuple))
		return NULL;
	user = palloc0(sizeof(UserMapping));
	user->umid = ((Form_pg_user_mapping) GETSTRUCT(tuple))->oid;
	user->serverid = serverid;
	options = SysCacheGetAttr(USERMAPPINGUSERSERVER, tuple, Anum_pg_user_mapping_umoptions, &isnull);
	user->options = isnull ? NIL : untransformRelOptions(options);
	ReleaseSysCache(tuple);
	return user;
}

UserMapping *
kalam_user_mapping(Oid serverid, Oid userid)
{
	UserMapping *user = kalam_find_mapping(serverid, userid);

	if (user == NULL)
		user = kalam_find_mapping(serverid, InvalidOid);
	if (user == NULL)
	{
		user = palloc0(sizeof(UserMapping));
		user->serverid = serverid;
	}
	user->userid = userid;
	return user;
}

static bool
has_credentials(List *options)
{
	return kalam_find_option(options, "auth_header") || kalam_find_option(options, "login_user");
}

/* ---------- the target ---------- */

KALAM_NORETURN static void missing_option(const ForeignServer *server, const char *name);

static void
missing_option(const ForeignServer *server, const char *name)
{
	ereport(ERROR,
			(errcode(ERRCODE_FDW_OPTION_NAME_NOT_FOUND),
			 errmsg("server \"%s\" has no option \"%s\"", server->servername, name),
			 errhint("ALTER SERVER %s OPTIONS (ADD %s '...');", quote_identifier(server->servername), name)));
}

KALAM_NORETURN static void wrong_credentials(const ForeignServer *server, const char *mode, const char *wanted);

static void
wrong_credentials(const ForeignServer *server, const char *mode, const char *wanted)
{
	ereport(ERROR,
			(errcode(ERRCODE_FDW_INVALID_OPTION_NAME),
			 errmsg("auth_mode of server \"%s\" is \"%s\", which needs %s", server->servername, mode, wanted),
			 errhint("Give it to the user mapping, or change auth_mode.")));
}

static void
refuse_tls(List *server, List *mapping)
{
	if (kalam_find_option(server, "ca_cert") || kalam_find_option(server, "client_cert") ||
		kalam_find_option(mapping, "client_cert"))
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("TLS is not supported yet"),
				 errhint("Drop the options ca_cert, client_cert and client_key.")));
}

static void
take_credentials(Target *t, const ForeignServer *server, List *options)
{
	const char *header = kalam_find_option(options, "auth_header");
	const char *login = kalam_find_option(options, "login_user");
	const char *mode = kalam_find_option(server->options, "auth_mode");

	if (mode == NULL)
		mode = header ? "static_header" : "none";
	t->mode = mode;
	t->user = "kalam";
	if (strcmp(mode, "static_header") == 0)
	{
		if (header == NULL)
			wrong_credentials(server, mode, "auth_header");
		t->user = "bearer";
		t->password = header + strlen("Bearer ");
	}
	else if (strcmp(mode, "account_login") == 0)
	{
		if (login == NULL)
			wrong_credentials(server, mode, "login_user and login_password");
		t->user = login;
		t->password = kalam_find_option(options, "login_password");
	}
	else if (header || login)
		wrong_credentials(server, mode, "no credentials");
}

/* As postgres_fdw: %a application, %c session, %d database, %p process, %u user, %C cluster. */
static char *
expand_application_name(const char *pattern)
{
	StringInfoData buf;

	initStringInfo(&buf);
	for (const char *p = pattern; *p; p++)
	{
		if (*p != '%' || p[1] == '\0')
			appendStringInfoChar(&buf, *p);
		else if (*++p == 'a')
			appendStringInfoString(&buf, GetConfigOption("application_name", true, false));
		else if (*p == 'c')
			appendStringInfo(&buf, "%lx.%x", (long) MyStartTime, MyProcPid);
		else if (*p == 'C')
			appendStringInfoString(&buf, GetConfigOption("cluster_name", true, false));
		else if (*p == 'd')
			appendStringInfoString(&buf, get_database_name(MyDatabaseId));
		else if (*p == 'p')
			appendStringInfo(&buf, "%d", MyProcPid);
		else if (*p == 'u')
			appendStringInfoString(&buf, GetUserNameFromId(GetSessionUserId(), false));
		else if (*p == '%')
			appendStringInfoChar(&buf, '%');
	}
	return buf.data;
}

static bool
server_flag(const ForeignServer *server, const char *name, bool flag)
{
	const char *value = kalam_find_option(server->options, name);

	if (value)
		(void) parse_bool(value, &flag);
	return flag;
}

/* A host that begins with a slash is a directory of sockets to libpq, "@" a name without a file; a comma, several hosts. */
static char *
address_of(const char *host, const char *port)
{
	if ((host[0] == '/' || host[0] == '@') && strchr(host, ',') == NULL)
		return psprintf("%s/.s.PGSQL.%s", host, port);
	return psprintf("%s:%s", host, port);
}

static Target *
make_target(UserMapping *user)
{
	ForeignServer *server = GetForeignServer(user->serverid);
	Target	   *t = palloc0(sizeof(Target));
	List	   *options = user->options;
	const char *value;

	if (!has_credentials(options))
	{
		UserMapping *everybody = kalam_find_mapping(user->serverid, InvalidOid);

		options = everybody ? everybody->options : NIL;
	}
	refuse_tls(server->options, options);
	t->server = server->servername;
	t->host = kalam_find_option(server->options, "host");
	t->port = kalam_find_option(server->options, "port");
	if (t->host == NULL)
		missing_option(server, "host");
	if (t->port == NULL)
		missing_option(server, "port");
	t->where = address_of(t->host, t->port);
	take_credentials(t, server, options);
	value = kalam_find_option(server->options, "application_name");
	t->application_name = value && value[0] ? expand_application_name(value) : "pg_kalam";
	value = kalam_find_option(server->options, "timeout");
	if (value)
		(void) parse_int(value, &t->timeout, 0, NULL);
	t->keep = server_flag(server, "keep_connections", true);
	t->parallel_commit = server_flag(server, "parallel_commit", false);
	t->parallel_abort = server_flag(server, "parallel_abort", false);
	t->lent = superuser_arg(server->owner);
	t->made_from = psprintf("%s\n%s\n%s\n%s\n%s\n%s\n%d\n%d%d%d%d", t->host, t->port, t->mode, t->user,
							t->password ? t->password : "", t->application_name, t->timeout, t->keep,
							t->parallel_commit, t->parallel_abort, t->lent);
	return t;
}

/* ---------- failures ---------- */

/* The message without libpq's preface, and without the secret if it should be there. */
static char *
clean_message(const char *text, const Target *t)
{
	const char *preface = strstr(text, " failed: ");
	char	   *message;
	int			len;

	if (strncmp(text, "connection to server ", 21) == 0 && preface)
		text = preface + 9;
	message = kalam_message_from_utf8(text);
	if (t->password && t->password[0] && strstr(message, t->password))
		message = pstrdup("(the message is not shown: it has the credentials in it)");
	len = strlen(message);
	while (len > 0 && isspace((unsigned char) message[len - 1]))
		message[--len] = '\0';
	return message;
}

/* "FATAL:  28P01: text\nDETAIL:  …\nHINT:  …", as libpq prints a server's error verbosely */
typedef struct ServerError
{
	int			sqlstate;
	char	   *message;
	char	   *hint;
} ServerError;

static char *
error_line(const char *text, const char *label)
{
	const char *start = strstr(text, label);

	if (start == NULL)
		return NULL;
	start += strlen(label);
	return pnstrdup(start, strcspn(start, "\n"));
}

static bool
parse_server_error(const char *text, ServerError *error)
{
	const char *p = strstr(text, "FATAL:  ");

	if (p == NULL)
		p = strstr(text, "ERROR:  ");
	if (p == NULL || strlen(p) < 16 || strncmp(p + 13, ": ", 2) != 0)
		return false;
	p += 8;
	error->sqlstate = MAKE_SQLSTATE(p[0], p[1], p[2], p[3], p[4]);
	error->message = pnstrdup(p + 7, strcspn(p + 7, "\n"));
	error->hint = error_line(p, "\nHINT:  ");
	return true;
}

static const char *
credentials_hint(const Target *t)
{
	if (strcmp(t->mode, "static_header") == 0)
		return "Check auth_header in the user mapping: ALTER USER MAPPING ... OPTIONS (SET auth_header 'Bearer ...').";
	if (strcmp(t->mode, "account_login") == 0)
		return "Check login_user and login_password in the user mapping.";
	return "The server wants credentials: give auth_header, or login_user and login_password with auth_mode 'account_login', in the user mapping.";
}

KALAM_NORETURN static void fail_connecting(const Target *t, const char *text);

static void
fail_connecting(const Target *t, const char *text)
{
	char	   *message = clean_message(text, t);
	ServerError error = {ERRCODE_SQLCLIENT_UNABLE_TO_ESTABLISH_SQLCONNECTION, message, NULL};

	if (!parse_server_error(message, &error))
	{
		if (strstr(message, "received invalid response") || strstr(message, "expected authentication request"))
			error.hint = "This does not speak KalamDB's protocol; if it is KalamDB's HTTP port, give its RPC port instead (9188 unless set otherwise).";
		error.message[strcspn(error.message, "\n")] = '\0';
	}
	if (ERRCODE_TO_CATEGORY(error.sqlstate) == ERRCODE_INVALID_AUTHORIZATION_SPECIFICATION)
		error.hint = psprintf("%s%s%s", credentials_hint(t), error.hint ? " " : "", error.hint ? error.hint : "");
	else
		error.sqlstate = ERRCODE_SQLCLIENT_UNABLE_TO_ESTABLISH_SQLCONNECTION;
	ereport(ERROR,
			(errcode(error.sqlstate),
			 errmsg("could not connect to KalamDB at %s: %s", t->where, error.message),
			 error.hint ? errhint("%s", error.hint) : 0));
}

void
kalam_connection_lost(KalamConn *conn, const char *detail)
{
	char	   *shown = detail ? pstrdup(detail) : NULL;

	if (shown)
		shown[strcspn(shown, "\n")] = '\0';
	ereport(ERROR,
			(errcode(ERRCODE_CONNECTION_FAILURE),
			 errmsg("connection to KalamDB at %s was lost", conn->where),
			 shown && shown[0] ? errdetail_internal("%s", shown) : 0));
}

/* ---------- connecting ---------- */

/* libpq calls it with a server's NOTICE; what may raise must wait until libpq has returned. */
struct KalamNotice
{
	KalamNotice *next;
	char		message[FLEXIBLE_ARRAY_MEMBER];
};

static void
receive_notice(void *arg, const PGresult *res)
{
	KalamConn  *conn = arg;
	const char *message = PQresultErrorField(res, PG_DIAG_MESSAGE_PRIMARY);
	KalamNotice *notice;

	if (message == NULL || conn->nnotices >= 100)
		return;
	notice = malloc(offsetof(KalamNotice, message) + strlen(message) + 1);
	if (notice == NULL)
		return;
	strcpy(notice->message, message);
	notice->next = conn->notices;
	conn->notices = notice;
	conn->nnotices++;
}

static void
free_notices(KalamConn *conn)
{
	while (conn->notices)
	{
		KalamNotice *notice = conn->notices;

		conn->notices = notice->next;
		free(notice);
	}
	conn->nnotices = 0;
}

void
kalam_emit_notices(KalamConn *conn)
{
	List	   *messages = NIL;
	ListCell   *lc;

	if (conn->notices == NULL)
		return;
	for (KalamNotice *n = conn->notices; n; n = n->next)
		messages = lcons(kalam_message_from_utf8(n->message), messages);
	free_notices(conn);
	foreach(lc, messages)
		ereport(NOTICE, (errmsg_internal("%s", (char *) lfirst(lc))));
}

/*
 * libpq reads PGSERVICE and its like where a parameter is absent, and there is
 * no value that says "none": so it is shown an environment without them.
 */
static PGconn *
start_without_environment(const char *const *keywords, const char *const *values)
{
	extern char **environ;
	char	  **saved = environ;
	int			n = 0;
	char	  **clean;
	PGconn	   *pg;

	while (saved[n])
		n++;
	clean = palloc(sizeof(char *) * (n + 1));
	n = 0;
	for (char **e = saved; *e; e++)
	{
		if (strncmp(*e, "PG", 2) != 0)
			clean[n++] = *e;
	}
	clean[n] = NULL;
	environ = clean;
	pg = PQconnectStartParams(keywords, values, false);
	environ = saved;
	pfree(clean);
	return pg;
}

static PGconn *
start_connecting(const Target *t)
{
	const char *const keywords[] = {
		"host", "port", "dbname", "user", "password", "application_name", "client_encoding",
		"sslmode", "gssencmode", "passfile", NULL
	};
	const char *const values[] = {
		t->host, t->port, "kalam", t->user, t->password, t->application_name, "UTF8",
		"disable", "disable", "/dev/null/none", NULL
	};

	return start_without_environment(keywords, values);
}

/* True when the connection stands; false when the time is up. */
static bool
poll_connection(PGconn *pg, TimestampTz deadline)
{
	PostgresPollingStatusType status = PGRES_POLLING_WRITING;

	while (status != PGRES_POLLING_OK && status != PGRES_POLLING_FAILED && PQstatus(pg) != CONNECTION_BAD)
	{
		int			events = WL_LATCH_SET | WL_EXIT_ON_PM_DEATH | WL_TIMEOUT;
		int			rc;

		events |= status == PGRES_POLLING_READING ? WL_SOCKET_READABLE : WL_SOCKET_WRITEABLE;
		if (deadline != 0 && kalam_ms_until(deadline) == 0)
			return false;
		rc = WaitLatchOrSocket(MyLatch, events, PQsocket(pg), deadline ? kalam_ms_until(deadline) : 60000,
							   kalam_wait_event(KALAM_WAIT_CONNECT));
		if (rc & WL_LATCH_SET)
		{
			ResetLatch(MyLatch);
			CHECK_FOR_INTERRUPTS();
		}
		if (rc & (WL_SOCKET_READABLE | WL_SOCKET_WRITEABLE))
			status = PQconnectPoll(pg);
	}
	return true;
}

/*
 * A KalamDB that asks for no credentials takes whoever reaches it for its
 * master.  That PostgreSQL can reach it is a superuser's to lend, as with
 * postgres_fdw's password_required: else a role with USAGE on the wrapper
 * would make a server of its own to the same address, and be bound by nothing.
 */
static void
refuse_trust(const Target *t)
{
	ereport(ERROR,
			(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
			 errmsg("KalamDB at %s asks for no credentials, and server \"%s\" is not owned by a superuser", t->where,
					t->server),
			 errdetail("It trusts everybody who can reach it."),
			 errhint("Set KalamDB's auth.mode to 'password', or let a superuser own the server: ALTER SERVER %s OWNER TO ...;",
					 quote_identifier(t->server))));
}

static void
finish_connecting(KalamConn *conn, const Target *t)
{
	TimestampTz deadline = t->timeout > 0 ? TimestampTzPlusMilliseconds(GetCurrentTimestamp(), t->timeout) : 0;

	PQsetErrorVerbosity(conn->pg, PQERRORS_VERBOSE);
	PQsetNoticeReceiver(conn->pg, receive_notice, conn);
	if (!poll_connection(conn->pg, deadline))
		fail_connecting(t, psprintf("no answer within %d ms", t->timeout));
	if (PQstatus(conn->pg) != CONNECTION_OK)
		fail_connecting(t, PQerrorMessage(conn->pg));
	if (!t->lent && !PQconnectionUsedPassword(conn->pg))
		refuse_trust(t);
	if (PQsetnonblocking(conn->pg, 1) != 0)
		fail_connecting(t, PQerrorMessage(conn->pg));
}

static void
connect_to(KalamConn *conn, const Target *t)
{
	Assert(conn->pg == NULL);
	if (!AcquireExternalFD())
		ereport(ERROR,
				(errcode(ERRCODE_SQLCLIENT_UNABLE_TO_ESTABLISH_SQLCONNECTION),
				 errmsg("could not connect to KalamDB at %s: too many open files", t->where)));
	conn->pg = start_connecting(t);
	if (conn->pg == NULL)
	{
		ReleaseExternalFD();
		ereport(ERROR, (errcode(ERRCODE_OUT_OF_MEMORY), errmsg("out of memory")));
	}
	PG_TRY();
	{
		finish_connecting(conn, t);
	}
	PG_CATCH();
	{
		kalam_connection_drop(conn);
		PG_RE_THROW();
	}
	PG_END_TRY();
}

static void
remember_target(KalamConn *conn, const Target *t)
{
	MemoryContextReset(conn->cxt);
	conn->abandoned = NIL;
	conn->where = MemoryContextStrdup(conn->cxt, t->where);
	conn->made_from = MemoryContextStrdup(conn->cxt, t->made_from);
	conn->timeout = t->timeout;
	conn->keep = t->keep;
	conn->parallel_commit = t->parallel_commit;
	conn->parallel_abort = t->parallel_abort;
	conn->stale = conn->outdated = false;
}

static Target *
current_target(KalamConn *conn)
{
	return make_target(kalam_user_mapping(conn->serverid, conn->userid));
}

void
kalam_connection_open(KalamConn *conn)
{
	MemoryContext scratch = AllocSetContextCreate(CurrentMemoryContext, "KalamDB connecting", ALLOCSET_SMALL_SIZES);
	MemoryContext old = MemoryContextSwitchTo(scratch);
	Target	   *t = current_target(conn);

	remember_target(conn, t);
	connect_to(conn, t);
	conn->made++;
	MemoryContextSwitchTo(old);
	MemoryContextDelete(scratch);
}

void
kalam_connection_drop(KalamConn *conn)
{
	if (conn->open || (conn->busy && conn->changing))
		conn->lost = true;
	conn->open = false;
	conn->busy = false;
	conn->changing = false;
	conn->ahead = NULL;
	conn->asked = false;
	conn->abandoned = NIL;
	free_notices(conn);
	if (conn->partial)
		PQclear(conn->partial);
	conn->partial = NULL;
	if (conn->waits)			/* before its socket goes */
		FreeWaitEventSet(conn->waits);
	conn->waits = NULL;
	if (conn->pg)
	{
		PQfinish(conn->pg);
		ReleaseExternalFD();
	}
	conn->pg = NULL;
}

/* ---------- the cache ---------- */

/* One whose mapping is dropped would never be asked for again, so it is not left to its next use. */
static void
options_changed(Datum arg, int cacheid, uint32 hashvalue)
{
	HASH_SEQ_STATUS scan;
	KalamConn  *conn;

	hash_seq_init(&scan, kalam_connections);
	while ((conn = hash_seq_search(&scan)) != NULL)
	{
		uint32		own = cacheid == USERMAPPINGOID ? conn->mapping_hash : conn->server_hash;

		conn->stale = true;
		conn->outdated |= hashvalue == 0 || hashvalue == own;
		if (conn->outdated && !conn->used)
			kalam_connection_drop(conn);
	}
}

static void
create_cache(void)
{
	HASHCTL		ctl = {.keysize = sizeof(KalamConnKey), .entrysize = sizeof(KalamConn)};

	kalam_connections = hash_create("KalamDB connections", 8, &ctl, HASH_ELEM | HASH_BLOBS);
	CacheRegisterSyscacheCallback(FOREIGNSERVEROID, options_changed, (Datum) 0);
	CacheRegisterSyscacheCallback(USERMAPPINGOID, options_changed, (Datum) 0);
}

static KalamConn *
find_entry(UserMapping *user)
{
	KalamConnKey key = {user->umid, InvalidOid, InvalidOid};
	KalamConn  *conn;
	bool		found;

	if (kalam_connections == NULL)
		create_cache();
	if (!OidIsValid(user->umid))
	{
		key.serverid = user->serverid;
		key.userid = user->userid;
	}
	conn = hash_search(kalam_connections, &key, HASH_ENTER, &found);
	if (!found)
	{
		memset((char *) conn + sizeof(KalamConnKey), 0, sizeof(KalamConn) - sizeof(KalamConnKey));
		conn->serverid = user->serverid;
		conn->userid = user->userid;
		conn->server_hash = GetSysCacheHashValue1(FOREIGNSERVEROID, ObjectIdGetDatum(user->serverid));
		conn->mapping_hash = GetSysCacheHashValue1(USERMAPPINGOID, ObjectIdGetDatum(user->umid));
		conn->cxt = AllocSetContextCreate(CacheMemoryContext, "KalamDB connection", ALLOCSET_SMALL_SIZES);
		conn->txn_cxt = AllocSetContextCreate(CacheMemoryContext, "KalamDB transaction", ALLOCSET_SMALL_SIZES);
	}
	return conn;
}

/* Options may have changed, or the server have closed it while nobody looked. */
static void
drop_if_useless(KalamConn *conn)
{
	if (conn->stale)
	{
		MemoryContext scratch = AllocSetContextCreate(CurrentMemoryContext, "KalamDB options", ALLOCSET_SMALL_SIZES);
		MemoryContext old = MemoryContextSwitchTo(scratch);

		if (strcmp(current_target(conn)->made_from, conn->made_from) != 0)
			kalam_connection_drop(conn);
		MemoryContextSwitchTo(old);
		MemoryContextDelete(scratch);
		conn->stale = false;
	}
	if (conn->pg && (!PQconsumeInput(conn->pg) || PQstatus(conn->pg) != CONNECTION_OK))
		kalam_connection_drop(conn);
}

void
kalam_connection_ready(KalamConn *conn)
{
	if (conn->lost)
		kalam_connection_lost(conn, "The transaction's changes on the server are undone.");
	if (conn->changing && !conn->busy)
		kalam_connection_drop(conn);
	kalam_settle(conn);
	if (conn->lost)
		kalam_connection_lost(conn, "The transaction's changes on the server are undone.");
	if (!conn->open && conn->pg)
		drop_if_useless(conn);
	if (conn->pg == NULL)
		kalam_connection_open(conn);
}

static void
check_protocol(KalamConn *conn)
{
	const char *protocol = kalam_server_fact(conn, "protocol");

	if (protocol && strcmp(protocol, "1") == 0)
		return;
	conn->asked = false;
	ereport(ERROR,
			(errcode(ERRCODE_FDW_UNABLE_TO_ESTABLISH_CONNECTION),
			 errmsg("KalamDB at %s speaks protocol %s, and this pg_kalam (" KALAM_VERSION ") protocol 1",
					conn->where, protocol ? protocol : "0"),
			 errhint("Use releases that belong together.")));
}

KalamConn *
kalam_connection_get(UserMapping *user)
{
	KalamConn  *conn = find_entry(user);

	kalam_transaction_use(conn);
	conn->userid = user->userid;
	kalam_connection_ready(conn);
	if (!conn->asked)
	{
		PGresult   *rows = kalam_request_plain(conn, "SHOW CAPABILITIES");

		conn->caps = kalam_capability_table(rows);
		conn->asked = true;
		kalam_result_free(rows);
		check_protocol(conn);
	}
	return conn;
}

KalamConn *
kalam_connection_for_server(Oid serverid, Oid userid)
{
	return kalam_connection_get(kalam_user_mapping(serverid, userid));
}
