/*
 * kalam_request.c: one statement there and its answer back.
 *
 * A connection does one thing at a time.  A request asked ahead is under way
 * until somebody takes its answer; whoever comes between first takes it in on
 * the other's behalf.  All waits watch the latch; an interrupt stops the
 * statement on the server before it is acted on here.
 *
 * Results belong to memory contexts, so that an error anywhere frees them.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/namespace.h"
#include "lib/stringinfo.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "storage/proc.h"
#include "utils/builtins.h"
#include "utils/json.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"

#include "kalam_core.h"

#define STOP_MS 900				/* until a request that nobody waits for has ended */

struct KalamAhead
{
	KalamConn  *conn;
	PGresult   *res;			/* taken in already */
	bool		under_way;
	uint64		made;			/* the connection it was asked on: cursors are named anew on each */
	char	   *sql;
	uint32		flags;
	TimestampTz deadline;		/* the server's option timeout; 0: none */
	MemoryContextCallback on_reset;
};

static int64 round_trips = 0;

int64
kalam_count_round_trips(void)
{
	return round_trips;
}

/* ---------- results and memory ---------- */

typedef struct ResultGuard
{
	dlist_node	node;
	PGresult   *res;
	MemoryContext cxt;			/* its own: deleting it frees all */
	MemoryContextCallback on_reset;
} ResultGuard;

static dlist_head guards = DLIST_STATIC_INIT(guards);

static void
guard_reset(void *arg)
{
	ResultGuard *guard = arg;

	dlist_delete(&guard->node);
	PQclear(guard->res);
}

PGresult *
kalam_result_guard(PGresult *res)
{
	MemoryContext cxt;
	ResultGuard *guard;

	PG_TRY();
	{
		cxt = AllocSetContextCreate(CurrentMemoryContext, "KalamDB result", ALLOCSET_SMALL_SIZES);
		guard = MemoryContextAlloc(cxt, sizeof(ResultGuard));
	}
	PG_CATCH();
	{
		PQclear(res);
		PG_RE_THROW();
	}
	PG_END_TRY();
	guard->res = res;
	guard->cxt = cxt;
	guard->on_reset.func = guard_reset;
	guard->on_reset.arg = guard;
	MemoryContextRegisterResetCallback(cxt, &guard->on_reset);
	dlist_push_head(&guards, &guard->node);
	return res;
}

void
kalam_result_free(PGresult *res)
{
	dlist_iter	iter;

	dlist_foreach(iter, &guards)
	{
		ResultGuard *guard = dlist_container(ResultGuard, node, iter.cur);

		if (guard->res == res)
		{
			MemoryContextDelete(guard->cxt);
			return;
		}
	}
}

/* "SELECT 256 scan_7": points into the result; NULL if no cursor is named */
static const char *
tag_cursor(PGresult *res)
{
	const char *tag = PQcmdStatus(res);
	const char *last = strrchr(tag, ' ');

	if (last == NULL || (last[1] >= '0' && last[1] <= '9') ||
		(strncmp(tag, "SELECT ", 7) != 0 && strncmp(tag, "FETCH ", 6) != 0 && strncmp(tag, "SAMPLE ", 7) != 0 &&
		 strncmp(tag, "UPDATE ", 7) != 0 && strncmp(tag, "DELETE ", 7) != 0))
		return NULL;
	return last + 1;
}

char *
kalam_result_cursor(PGresult *res)
{
	const char *cursor = tag_cursor(res);

	return cursor ? pstrdup(cursor) : NULL;
}

/* PQcmdTuples does not know tags that name a cursor. */
int64
kalam_result_affected(PGresult *res)
{
	const char *count = strchr(PQcmdStatus(res), ' ');

	return count == NULL ? 0 : strtoll(count, NULL, 10);
}

void
kalam_cursor_abandon(KalamConn *conn, const char *cursor)
{
	MemoryContext old;

	if (conn->pg == NULL)
		return;
	old = MemoryContextSwitchTo(conn->cxt);
	conn->abandoned = lappend(conn->abandoned, pstrdup(cursor));
	MemoryContextSwitchTo(old);
}

void
kalam_abandon_result(KalamConn *conn, PGresult *res)
{
	const char *cursor = tag_cursor(res);

	if (cursor)
		kalam_cursor_abandon(conn, cursor);
}

/* ---------- errors ---------- */

char *
kalam_from_utf8(const char *text, int len)
{
	char	   *converted = pg_any_to_server(text, len, PG_UTF8);

	return converted == text ? pnstrdup(text, len) : converted;
}

char *
kalam_result_text(PGresult *res, int row, int col)
{
	return kalam_from_utf8(PQgetvalue(res, row, col), PQgetlength(res, row, col));
}

bool
kalam_result_is(PGresult *res, int row, int col, const char *text)
{
	return strcmp(PQgetvalue(res, row, col), pg_server_to_any(text, strlen(text), PG_UTF8)) == 0;
}

/* How far the text, from its beginning, can be in this database's encoding; it is appended. */
static int
append_convertible(StringInfo buf, const char *text, int len)
{
	int			encoding = GetDatabaseEncoding();
	Oid			proc = encoding == PG_UTF8 || encoding == PG_SQL_ASCII ? InvalidOid :
		FindDefaultConversionProc(PG_UTF8, encoding);
	int			taken;

	if (OidIsValid(proc))
	{
		enlargeStringInfo(buf, len * MAX_CONVERSION_GROWTH);
		taken = pg_do_encoding_conversion_buf(proc, PG_UTF8, encoding, (unsigned char *) text, len,
											  (unsigned char *) buf->data + buf->len, buf->maxlen - buf->len, true);
		buf->len += strlen(buf->data + buf->len);
	}
	else
	{
		taken = pg_encoding_verifymbstr(PG_UTF8, text, len);
		appendBinaryStringInfo(buf, text, taken);
	}
	return taken;
}

/* An error's text must not raise another: a character that this database's encoding has not becomes "?". */
char *
kalam_message_from_utf8(const char *text)
{
	StringInfoData buf;
	int			len = strlen(text);

	initStringInfo(&buf);
	while (len > 0)
	{
		int			taken = append_convertible(&buf, text, len);

		if (taken < len)
		{
			appendStringInfoChar(&buf, '?');
			taken += Min(len - taken, pg_encoding_mblen(PG_UTF8, text + taken));
		}
		text += taken;
		len -= taken;
	}
	return buf.data;
}

static char *
result_field(PGresult *res, int field)
{
	char	   *value = PQresultErrorField(res, field);

	return value ? kalam_message_from_utf8(value) : NULL;
}

static int
result_sqlstate(PGresult *res)
{
	const char *s = PQresultErrorField(res, PG_DIAG_SQLSTATE);

	return s && strlen(s) == 5 ? MAKE_SQLSTATE(s[0], s[1], s[2], s[3], s[4]) : ERRCODE_CONNECTION_FAILURE;
}

/* A table's own statement names columns and a table that the server no longer has. */
static int
own_sqlstate(int sqlstate, uint32 flags, char **hint)
{
	if (flags & KALAM_REQ_EXEC)
		return sqlstate;
	if (sqlstate == ERRCODE_UNDEFINED_COLUMN)
	{
		*hint = "The remote table has changed: SELECT * FROM kalam_drift('the table') shows how, and the ALTER FOREIGN TABLE that mends it.";
		return ERRCODE_FDW_COLUMN_NAME_NOT_FOUND;
	}
	if (sqlstate == ERRCODE_UNDEFINED_TABLE || sqlstate == ERRCODE_INVALID_SCHEMA_NAME)
		return ERRCODE_FDW_TABLE_NOT_FOUND;
	return sqlstate;
}

/* where in a user's statement an error is; query is NULL if that is not to be told */
typedef struct ErrorPlace
{
	int			position;		/* in characters, from 1 */
	const char *query;
} ErrorPlace;

static void
error_context(const char *remote, const char *sql)
{
	if (remote)
		errcontext("%s", remote);
	if (sql && kalam_text_has_secret(sql))
		errcontext("remote SQL command: (not shown: it may carry a secret)");
	else if (sql)
		errcontext("remote SQL command: %s", sql);
}

/* A user's statement is shown with the place in it that the error is about, as PL/pgSQL shows its queries. */
static void
error_place(PGresult *res, ErrorPlace *place, const char *sql, uint32 flags)
{
	const char *position = PQresultErrorField(res, PG_DIAG_STATEMENT_POSITION);

	place->position = 0;
	place->query = NULL;
	if (position == NULL || sql == NULL || !(flags & KALAM_REQ_EXEC) || kalam_text_has_secret(sql))
		return;
	place->position = atoi(position);
	place->query = sql;
}

void
kalam_raise(KalamConn *conn, PGresult *res, const char *sql, uint32 flags)
{
	char	   *message = result_field(res, PG_DIAG_MESSAGE_PRIMARY);
	char	   *detail = result_field(res, PG_DIAG_MESSAGE_DETAIL);
	char	   *hint = result_field(res, PG_DIAG_MESSAGE_HINT);
	char	   *context = result_field(res, PG_DIAG_CONTEXT);
	char	   *schema = result_field(res, PG_DIAG_SCHEMA_NAME);
	char	   *table = result_field(res, PG_DIAG_TABLE_NAME);
	char	   *column = result_field(res, PG_DIAG_COLUMN_NAME);
	char	   *datatype = result_field(res, PG_DIAG_DATATYPE_NAME);
	char	   *constraint = result_field(res, PG_DIAG_CONSTRAINT_NAME);
	int			sqlstate = own_sqlstate(result_sqlstate(res), flags, &hint);
	ErrorPlace	place;

	error_place(res, &place, sql, flags);
	if (message == NULL)
		message = PQresultErrorMessage(res)[0] ? kalam_message_from_utf8(PQresultErrorMessage(res)) :
			pstrdup("unexpected answer from KalamDB");
	PQclear(res);
	ereport(ERROR,
			(errcode(sqlstate),
			 errmsg_internal("%s", message),
			 detail ? errdetail_internal("%s", detail) : 0,
			 hint ? errhint("%s", hint) : 0,
			 error_context(context, sql),
			 place.query ? internalerrposition(place.position) : 0,
			 place.query ? internalerrquery(place.query) : 0,
			 schema ? err_generic_string(PG_DIAG_SCHEMA_NAME, schema) : 0,
			 table ? err_generic_string(PG_DIAG_TABLE_NAME, table) : 0,
			 column ? err_generic_string(PG_DIAG_COLUMN_NAME, column) : 0,
			 datatype ? err_generic_string(PG_DIAG_DATATYPE_NAME, datatype) : 0,
			 constraint ? err_generic_string(PG_DIAG_CONSTRAINT_NAME, constraint) : 0));
}

static bool
is_success(PGresult *res)
{
	ExecStatusType status = PQresultStatus(res);

	return status == PGRES_COMMAND_OK || status == PGRES_TUPLES_OK || status == PGRES_EMPTY_QUERY;
}

/* ---------- waiting ---------- */

/* An interrupt's error is raised only when the server has been told. */
static void
check_interrupts(KalamConn *conn)
{
	if (!InterruptPending || !INTERRUPTS_CAN_BE_PROCESSED())
		return;
	if (ProcDiePending)
		kalam_cancel(conn);		/* FATAL passes no PG_CATCH */
	PG_TRY();
	{
		CHECK_FOR_INTERRUPTS();
	}
	PG_CATCH();
	{
		kalam_cancel(conn);
		PG_RE_THROW();
	}
	PG_END_TRY();
}

KALAM_NORETURN static void request_timed_out(KalamConn *conn);

static void
request_timed_out(KalamConn *conn)
{
	kalam_cancel(conn);
	ereport(ERROR,
			(errcode(ERRCODE_QUERY_CANCELED),
			 errmsg("KalamDB at %s did not answer within %d ms", conn->where, conn->timeout),
			 errhint("The server's option \"timeout\" bounds every request.")));
}

/* Takes a result in; the first error stays. */
static void
keep_result(KalamConn *conn, PGresult *res)
{
	if (conn->partial && !is_success(conn->partial))
	{
		PQclear(res);
		return;
	}
	if (conn->partial)
		PQclear(conn->partial);
	conn->partial = res;
}

static bool
is_copy(PGresult *res)
{
	ExecStatusType status = PQresultStatus(res);

	return status == PGRES_COPY_IN || status == PGRES_COPY_OUT || status == PGRES_COPY_BOTH;
}

/* Moves on what can be moved without waiting; true when the answer is complete or the connection broken. */
static bool
take_results(KalamConn *conn)
{
	while (!PQisBusy(conn->pg))
	{
		PGresult   *res = PQgetResult(conn->pg);

		if (res == NULL)
			return true;
		if (is_copy(res))
		{
			PQclear(res);
			kalam_connection_drop(conn);
			ereport(ERROR,
					(errcode(ERRCODE_PROTOCOL_VIOLATION),
					 errmsg("KalamDB answered with COPY, which was not asked for")));
		}
		keep_result(conn, res);
		if (PQstatus(conn->pg) != CONNECTION_OK)
			return true;
	}
	return PQstatus(conn->pg) != CONNECTION_OK;
}

static PGresult *
answer_complete(KalamConn *conn)
{
	PGresult   *res = conn->partial;

	conn->partial = NULL;
	conn->busy = false;
	return res;
}

/* The whole answer. NULL: the connection broke. The caller owns the result. */
static PGresult *
receive(KalamConn *conn)
{
	TimestampTz deadline = conn->timeout > 0 ? TimestampTzPlusMilliseconds(GetCurrentTimestamp(), conn->timeout) : 0;

	for (;;)
	{
		int			unsent = PQflush(conn->pg);

		if (take_results(conn))
			break;
		check_interrupts(conn);
		if (deadline && kalam_ms_until(deadline) == 0)
			request_timed_out(conn);
		kalam_wait_for_answer(conn, unsent > 0, deadline);
	}
	return answer_complete(conn);
}

/* The server has stopped it: PostgreSQL knows better why, unless it was our own time limit. */
static void
raise_interrupt(KalamConn *conn, PGresult **res)
{
	if (!(QueryCancelPending || ProcDiePending) || !INTERRUPTS_CAN_BE_PROCESSED())
		return;
	conn->changing = false;
	kalam_transaction_after(conn, 0);
	kalam_result_guard(*res);
	CHECK_FOR_INTERRUPTS();
	pg_unreachable();
}

/* A cancel that comes this very moment waits for the next look at its flag. */
static void
check_but_cancels(void)
{
	HOLD_CANCEL_INTERRUPTS();
	CHECK_FOR_INTERRUPTS();
	RESUME_CANCEL_INTERRUPTS();
}

/*
 * A COMMIT under way may succeed although its sender is interrupted, and then
 * has to be told so: the interrupt asks the server to stop, and is forgotten
 * if the answer is success.
 */
KalamCommit
kalam_receive_commit(KalamConn *conn, PGresult **res, bool in_vain)
{
	TimestampTz deadline = conn->timeout > 0 ? TimestampTzPlusMilliseconds(GetCurrentTimestamp(), conn->timeout) : 0;
	bool		interrupted = false;

	for (;;)
	{
		int			unsent = PQflush(conn->pg);

		if (take_results(conn))
			break;
		if (!interrupted && (in_vain || (QueryCancelPending || ProcDiePending) ||
							 (deadline && kalam_ms_until(deadline) == 0)))
		{
			interrupted = true;
			deadline = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), 900);
			if (!kalam_cancel_send(conn, TimestampTzPlusMilliseconds(GetCurrentTimestamp(), 400)))
				return KALAM_COMMIT_INTERRUPTED;
		}
		if (interrupted && kalam_ms_until(deadline) == 0)
			return KALAM_COMMIT_INTERRUPTED;
		if (!interrupted)
			check_but_cancels();
		kalam_wait_for_answer(conn, unsent > 0, deadline);
	}
	*res = answer_complete(conn);
	if (PQstatus(conn->pg) != CONNECTION_OK || *res == NULL)
		return KALAM_COMMIT_BROKEN;
	if (interrupted && is_success(*res))
		QueryCancelPending = false;
	else if (interrupted)
		raise_interrupt(conn, res);
	return KALAM_COMMIT_DONE;
}

/* ---------- sending ---------- */

static bool
sent(KalamConn *conn, int ok)
{
	if (!ok || PQstatus(conn->pg) != CONNECTION_OK)
		return false;
	conn->busy = true;
	round_trips++;
	(void) PQflush(conn->pg);
	return true;
}

bool
kalam_send_plain(KalamConn *conn, const char *sql)
{
	return sent(conn, PQsendQueryParams(conn->pg, sql, 0, NULL, NULL, NULL, NULL, 0));
}

static void
append_strings(StringInfo json, const char *key, List *strings)
{
	ListCell   *lc;
	const char *separator = "";

	if (strings == NIL)
		return;
	appendStringInfo(json, "\"%s\":[", key);
	foreach(lc, strings)
	{
		appendStringInfoString(json, separator);
		escape_json(json, lfirst(lc));
		separator = ",";
	}
	appendStringInfoString(json, "],");
}

static List *
search_path_names(void)
{
	List	   *names = NIL;
	ListCell   *lc;

	foreach(lc, fetch_search_path(false))
	{
		char	   *name = get_namespace_name(lfirst_oid(lc));

		if (name)
			names = lappend(names, name);
	}
	return names;
}

/* The context parameter: docs/protocol.md. */
static char *
context_json(KalamConn *conn, const KalamRequest *req)
{
	StringInfoData json;

	initStringInfo(&json);
	appendStringInfoChar(&json, '{');
	if (req->tenant)
	{
		appendStringInfoString(&json, "\"user\":");
		escape_json(&json, req->tenant);
		appendStringInfoChar(&json, ',');
	}
	kalam_transaction_context(conn, &json, req);
	if (req->snapshot)
		appendStringInfo(&json, "\"snap\":%d,", req->snapshot);
	append_strings(&json, "close", conn->abandoned);
	if (req->fetch_size > 0)
		appendStringInfo(&json, "\"fetch\":%d,", req->fetch_size);
	if (req->flags & KALAM_REQ_ARROW)
		appendStringInfoString(&json, "\"arrow\":true,");
	if (req->flags & KALAM_REQ_COMMIT)
		appendStringInfoString(&json, "\"commit\":true,");
	if (req->flags & KALAM_REQ_EXEC)
	{
		appendStringInfoString(&json, "\"exec\":true,");
		if (req->flags & KALAM_REQ_BOUND)
			appendStringInfoString(&json, "\"bound\":true,");
		append_strings(&json, "path", search_path_names());
	}
	if (req->report > 0)
		appendStringInfo(&json, "\"stats\":%d,", req->report);
	if (req->rules)
	{
		appendStringInfoString(&json, "\"rules\":");
		escape_json(&json, req->rules);
		appendStringInfoChar(&json, ',');
	}
	if (LockTimeout > 0)
		appendStringInfo(&json, "\"lock_timeout\":%d,", LockTimeout);
	if (json.data[json.len - 1] == ',')
		json.data[--json.len] = '\0';
	appendStringInfoChar(&json, '}');
	return json.data;
}

static char *
to_utf8(const char *text)
{
	return pg_server_to_any(text, strlen(text), PG_UTF8);
}

/* False: the connection is broken and nothing was sent. */
static bool
send_request(KalamConn *conn, const KalamRequest *req)
{
	MemoryContext scratch = AllocSetContextCreate(CurrentMemoryContext, "KalamDB request", ALLOCSET_SMALL_SIZES);
	MemoryContext old = MemoryContextSwitchTo(scratch);
	int			n = req->nparams;
	Oid		   *types = palloc(sizeof(Oid) * (n + 1));
	const char **values = palloc(sizeof(char *) * (n + 1));
	int		   *lengths = palloc0(sizeof(int) * (n + 1));
	int		   *formats = palloc0(sizeof(int) * (n + 1));
	bool		ok;

	for (int i = 0; i < n; i++)
	{
		types[i] = req->types ? req->types[i] : InvalidOid;
		values[i] = req->values[i];
		lengths[i] = req->lengths ? req->lengths[i] : 0;
		formats[i] = req->formats ? req->formats[i] : 0;
	}
	types[n] = KALAM_CONTEXT_OID;
	values[n] = to_utf8(context_json(conn, req));
	conn->changing = (req->flags & (KALAM_REQ_TXN | KALAM_REQ_COMMIT | KALAM_REQ_WRITE)) != 0;
	ok = sent(conn, PQsendQueryParams(conn->pg, to_utf8(req->sql), n + 1, types, values, lengths, formats,
									  (req->flags & KALAM_REQ_TEXT) ? 0 : 1));
	if (!ok)
		conn->changing = false;
	MemoryContextSwitchTo(old);
	MemoryContextDelete(scratch);
	return ok;
}

/* ---------- asking ahead ---------- */

/* Its answer, when it comes, is taken in and thrown away, and the cursor it names closed. */
static void
ahead_discard(KalamAhead *ahead)
{
	if (ahead->under_way && ahead->conn->ahead == ahead)
		ahead->conn->ahead = NULL;
	ahead->under_way = false;
	if (ahead->res)
	{
		if (ahead->made == ahead->conn->made)
			kalam_abandon_result(ahead->conn, ahead->res);
		PQclear(ahead->res);
	}
	ahead->res = NULL;
}

static void
ahead_reset(void *arg)
{
	ahead_discard(arg);
}

/* A failed read leaves the transaction failed: better this error now than 25P02 from what is asked next. */
static void
settle_ahead(KalamConn *conn, KalamAhead *ahead, PGresult *res)
{
	ahead->under_way = false;
	if (res && !is_success(res) && PQtransactionStatus(conn->pg) == PQTRANS_INERROR)
		kalam_raise(conn, res, ahead->sql, ahead->flags);
	ahead->res = res;
}

/* Nobody waits for it: only the state it leaves behind matters. */
static void
settle_ownerless(KalamConn *conn, PGresult *res)
{
	bool		failed = res == NULL || (!is_success(res) && result_sqlstate(res) != ERRCODE_QUERY_CANCELED);

	if (!failed)
		kalam_abandon_result(conn, res);
	if (res)
		PQclear(res);
	if (failed && !conn->open)
		kalam_connection_drop(conn);
}

static void
settle_with(KalamConn *conn, PGresult *res)
{
	KalamAhead *ahead = conn->ahead;

	conn->ahead = NULL;
	conn->changing = false;
	if (PQstatus(conn->pg) != CONNECTION_OK)
		kalam_connection_drop(conn);
	else
		kalam_transaction_after(conn, ahead ? ahead->flags : 0);
	if (ahead)
		settle_ahead(conn, ahead, res);
	else
		settle_ownerless(conn, res);
}

/* Whose answer is under way gets it. */
void
kalam_settle(KalamConn *conn)
{
	if (conn->busy)
		settle_with(conn, receive(conn));
}

bool
kalam_settle_nowait(KalamConn *conn)
{
	if (!conn->busy)
		return true;
	(void) PQconsumeInput(conn->pg);	/* a failure shows in the connection's status */
	(void) PQflush(conn->pg);
	if (!take_results(conn))
		return false;
	settle_with(conn, answer_complete(conn));
	return true;
}

bool
kalam_ahead_under_way(const KalamAhead *ahead)
{
	return ahead->under_way && ahead->conn->ahead == ahead;
}

bool
kalam_ahead_poll(KalamAhead *ahead)
{
	if (!kalam_ahead_under_way(ahead) || kalam_settle_nowait(ahead->conn))
		return true;
	if (ahead->deadline && kalam_ms_until(ahead->deadline) == 0)
		request_timed_out(ahead->conn);
	return false;
}

TimestampTz
kalam_ahead_deadline(const KalamAhead *ahead)
{
	return ahead->deadline;
}

bool
kalam_settle_by(KalamConn *conn, TimestampTz deadline)
{
	if (!conn->busy)
		return true;
	if (!kalam_drain(conn, deadline) && PQstatus(conn->pg) == CONNECTION_OK)
		return false;
	settle_with(conn, answer_complete(conn));
	return true;
}

/*
 * Nobody wants it any more: what the server does for it ends.  The server lets
 * the transaction go on after a read that was cancelled.  An answer that does
 * not come in time is taken in at the next use.
 */
void
kalam_ahead_stop(KalamAhead *ahead)
{
	KalamConn  *conn = ahead->conn;
	TimestampTz deadline = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), STOP_MS);

	if (!ahead->under_way || conn->ahead != ahead || !conn->busy)
		return;
	conn->ahead = NULL;
	ahead->under_way = false;
	(void) PQconsumeInput(conn->pg);
	if ((PQisBusy(conn->pg) && !kalam_cancel_send(conn, deadline)) || PQstatus(conn->pg) != CONNECTION_OK)
	{
		kalam_connection_drop(conn);
		return;
	}
	(void) kalam_settle_by(conn, deadline);
}

/* The next request may be long in coming: so not with it, unless another scan waits for an answer. */
void
kalam_cursors_close(KalamConn *conn)
{
	KalamRequest req = {0};

	if (conn->abandoned == NIL || conn->pg == NULL)
		return;
	if (conn->busy && PQconsumeInput(conn->pg) && !PQisBusy(conn->pg))
		kalam_settle(conn);
	if (conn->pg == NULL || conn->busy)
		return;
	req.sql = psprintf("CLOSE %s", (char *) linitial(conn->abandoned));
	if (!send_request(conn, &req))
	{
		kalam_connection_drop(conn);
		return;
	}
	list_free_deep(conn->abandoned);
	conn->abandoned = NIL;
}

bool
kalam_ahead_take(KalamAhead *ahead, TimestampTz deadline)
{
	KalamConn  *conn = ahead->conn;

	if (!kalam_drain(conn, deadline))
		return false;
	ahead->under_way = false;
	ahead->res = conn->partial;
	conn->partial = NULL;
	conn->ahead = NULL;
	conn->changing = false;
	kalam_transaction_after(conn, ahead->flags);
	return true;
}

KalamAhead *
kalam_request_ahead(KalamConn *conn, const KalamRequest *req)
{
	KalamAhead *ahead;

	kalam_pending_flush_all(conn);
	kalam_connection_ready(conn);
	ahead = palloc0(sizeof(KalamAhead));
	ahead->conn = conn;
	ahead->sql = pstrdup(req->sql);
	ahead->flags = req->flags;
	ahead->on_reset.func = ahead_reset;
	ahead->on_reset.arg = ahead;
	MemoryContextRegisterResetCallback(CurrentMemoryContext, &ahead->on_reset);
	if (!send_request(conn, req))
	{
		kalam_connection_drop(conn);
		kalam_connection_lost(conn, NULL);
	}
	ahead->under_way = true;
	ahead->made = conn->made;
	if (conn->timeout > 0)
		ahead->deadline = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), conn->timeout);
	conn->ahead = ahead;
	return ahead;
}

PGresult *
kalam_ahead_wait(KalamAhead *ahead)
{
	KalamConn  *conn = ahead->conn;
	PGresult   *res;

	if (ahead->under_way && conn->ahead == ahead)
		kalam_settle(conn);
	kalam_emit_notices(conn);
	res = ahead->res;
	ahead->res = NULL;
	ahead->under_way = false;
	if (res == NULL)
		kalam_connection_lost(conn, NULL);
	if (conn->pg == NULL || ahead->made != conn->made)
	{
		PQclear(res);
		kalam_connection_lost(conn, NULL);
	}
	if (!is_success(res))
		kalam_raise(conn, res, ahead->sql, ahead->flags);
	return kalam_result_guard(res);
}

/* ---------- asking ---------- */

KALAM_NORETURN static void fail_broken(KalamConn *conn, PGresult *res);

/* res: what the server said last, or libpq's complaint */
static void
fail_broken(KalamConn *conn, PGresult *res)
{
	char	   *detail = NULL;

	if (res)
	{
		detail = result_field(res, PG_DIAG_MESSAGE_PRIMARY);
		if (detail == NULL)
			detail = kalam_message_from_utf8(PQresultErrorMessage(res));
		PQclear(res);
	}
	kalam_connection_drop(conn);
	kalam_connection_lost(conn, detail);
}

/*
 * Nothing of the request can have remained on a server that lost the
 * connection: it was not to commit, and no transaction or cursor was open.
 */
static bool
may_repeat(const KalamRequest *req)
{
	return !(req->flags & KALAM_REQ_COMMIT) && strncmp(req->sql, "FETCH ", 6) != 0;
}

/* Sends and waits; false: try again on a new connection. */
static bool
attempt(KalamConn *conn, const KalamRequest *req, bool last, PGresult **res)
{
	bool		was_open;
	bool		was_sent;
	bool		commits = (req->flags & KALAM_REQ_COMMIT) != 0;
	KalamCommit outcome = KALAM_COMMIT_DONE;

	kalam_connection_ready(conn);
	was_open = conn->open;
	*res = NULL;
	was_sent = send_request(conn, req);
	if (was_sent && commits)
		outcome = kalam_receive_commit(conn, res, false);
	else if (was_sent)
		*res = receive(conn);
	if (outcome != KALAM_COMMIT_DONE)
	{
		if (*res)
			PQclear(*res);
		kalam_transaction_resolve(conn, outcome);
		*res = PQmakeEmptyPGresult(NULL, PGRES_COMMAND_OK);
		return true;
	}
	conn->changing = false;
	if (*res && PQstatus(conn->pg) == CONNECTION_OK)
	{
		kalam_transaction_after(conn, req->flags);
		return true;
	}
	if (last || was_open || (was_sent && !may_repeat(req)))
		fail_broken(conn, *res);
	if (*res)
		PQclear(*res);
	kalam_connection_drop(conn);
	return false;
}

PGresult *
kalam_request(KalamConn *conn, const KalamRequest *req)
{
	PGresult   *res;

	kalam_pending_flush_all(conn);
	if (!attempt(conn, req, false, &res))
		(void) attempt(conn, req, true, &res);
	if (conn->abandoned != NIL)
	{
		list_free_deep(conn->abandoned);
		conn->abandoned = NIL;
	}
	if (!is_success(res))
		kalam_raise(conn, res, req->sql, req->flags);
	kalam_result_guard(res);
	kalam_emit_notices(conn);
	return res;
}

PGresult *
kalam_request_plain(KalamConn *conn, const char *sql)
{
	PGresult   *res = NULL;

	kalam_connection_ready(conn);
	if (kalam_send_plain(conn, sql))
		res = receive(conn);
	if (res == NULL || PQstatus(conn->pg) != CONNECTION_OK)
		fail_broken(conn, res);
	if (!is_success(res))
		kalam_raise(conn, res, sql, 0);
	return kalam_result_guard(res);
}
