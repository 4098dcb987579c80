/*
 * kalam_commit.c: COMMIT, on one server or several.
 *
 * With several that were written to there is no moment at which all commit.
 * What can be known before is looked at first; then they commit one after the
 * other, or, with the option parallel_commit, all at once.  If one fails when
 * others have committed, the error says so, by name: nothing undoes them.
 *
 * An answer that is lost is asked for by the transaction's id.
 */
#include "postgres.h"

#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "storage/latch.h"
#include "utils/memutils.h"

#include "kalam_core.h"

#define STOPPED_MS 100			/* for the end of a scan that the server was told to stop */
#define RESOLVE_MS 10000		/* for the outcome of a COMMIT, unless the timeout says otherwise */

/* ---------- outcome of a lost COMMIT ---------- */

KALAM_NORETURN static void outcome_unknown(const char *where, const char *id, const char *why);

static void
outcome_unknown(const char *where, const char *id, const char *why)
{
	ereport(ERROR,
			(errcode(ERRCODE_TRANSACTION_RESOLUTION_UNKNOWN),
			 errmsg("it is not known whether KalamDB at %s committed the transaction", where),
			 errdetail_internal("%s", why),
			 errhint("SHOW TRANSACTION OUTCOME '%s' on the server tells.", id)));
}

/* Will the server be there again? */
static bool
is_passing(int sqlstate)
{
	return ERRCODE_TO_CATEGORY(sqlstate) == ERRCODE_CONNECTION_EXCEPTION || sqlstate == ERRCODE_ADMIN_SHUTDOWN ||
		sqlstate == ERRCODE_CRASH_SHUTDOWN || sqlstate == ERRCODE_CANNOT_CONNECT_NOW;
}

/*
 * Asks on a new connection; NULL while the server cannot be reached.  Any other
 * error must not look like that of a transaction undone: it becomes *why.
 */
static char *
ask_outcome(KalamConn *conn, const char *id, char **why)
{
	MemoryContext context = CurrentMemoryContext;
	char	   *volatile answer = NULL;

	PG_TRY();
	{
		PGresult   *res = kalam_request_plain(conn, psprintf("SHOW TRANSACTION OUTCOME '%s'", id));

		if (PQntuples(res) == 1 && PQnfields(res) == 1)
			answer = pstrdup(PQgetvalue(res, 0, 0));
		else
			*why = "The server does not know the transaction.";
		kalam_result_free(res);
	}
	PG_CATCH();
	{
		ErrorData  *error;

		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		FlushErrorState();
		if (!is_passing(error->sqlerrcode))
			*why = pstrdup(error->message);
		FreeErrorData(error);
	}
	PG_END_TRY();
	return answer;
}

/* A cancel ends the waiting, and is over with that. */
static bool
wait_a_moment(void)
{
	(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, 50, kalam_wait_event(KALAM_WAIT_OUTCOME));
	ResetLatch(MyLatch);
	if (ProcDiePending)
		CHECK_FOR_INTERRUPTS();
	if (!QueryCancelPending)
		return true;
	QueryCancelPending = false;
	return false;
}

/* A definite answer, or NULL and why there is none. */
static char *
await_outcome(KalamConn *conn, const char *where, char **why)
{
	int			limit = conn->timeout > 0 ? conn->timeout : RESOLVE_MS;
	TimestampTz deadline = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), limit);
	char	   *answer;

	*why = NULL;
	do
	{
		answer = ask_outcome(conn, conn->txn_id, why);
		if (*why)
			return NULL;
		if (strcmp(where, conn->where) != 0)
			*why = psprintf("The server is at %s by now.", conn->where);	/* and may be another one */
		else if (answer && strcmp(answer, "in progress") != 0)
			return answer;
		else if (kalam_ms_until(deadline) == 0)
			*why = "The connection was lost during COMMIT, and could not be made again in time.";
		else if (!wait_a_moment())
			*why = "The connection was lost during COMMIT, and the wait for a new one was ended.";
	} while (*why == NULL);
	return NULL;
}

void
kalam_transaction_resolve(KalamConn *conn, KalamCommit how)
{
	char	   *where = pstrdup(conn->where);
	char	   *why;
	char	   *answer;

	kalam_connection_drop(conn);
	conn->lost = false;
	conn->wrote = false;
	if (how == KALAM_COMMIT_INTERRUPTED)
	{
		if (ProcDiePending)
			CHECK_FOR_INTERRUPTS();
		QueryCancelPending = false;
		outcome_unknown(where, conn->txn_id, "The wait for its answer was ended.");
	}
	answer = await_outcome(conn, where, &why);
	if (answer == NULL)
		outcome_unknown(where, conn->txn_id, why);
	if (strcmp(answer, "committed") == 0)
		return;
	if (strcmp(answer, "aborted") == 0)
		ereport(ERROR,
				(errcode(ERRCODE_CONNECTION_FAILURE),
				 errmsg("connection to KalamDB at %s was lost during COMMIT", where),
				 errdetail("The server did not commit the transaction.")));
	outcome_unknown(where, conn->txn_id, psprintf("The server says \"%s\".", answer));
}

/* ---------- one server ---------- */

KALAM_NORETURN static void rolled_back(KalamConn *conn);

static void
rolled_back(KalamConn *conn)
{
	ereport(ERROR,
			(errcode(ERRCODE_TRANSACTION_ROLLBACK),
			 errmsg("KalamDB at %s rolled the transaction back", conn->where),
			 errdetail("A statement in it had failed there.")));
}

static void
check_commit(KalamConn *conn, PGresult *res)
{
	if (PQresultStatus(res) != PGRES_COMMAND_OK)
		kalam_raise(conn, res, "COMMIT", 0);
	if (strcmp(PQcmdStatus(res), "COMMIT") == 0)
	{
		PQclear(res);
		return;
	}
	PQclear(res);
	rolled_back(conn);
}

static void
send_commit(KalamConn *conn)
{
	conn->changing = true;
	if (!kalam_send_plain(conn, "COMMIT"))
	{
		kalam_connection_drop(conn);
		kalam_connection_lost(conn, NULL);
	}
}

/* The answer decides, so it is waited for; not for long if it is no use any more. */
static void
take_commit(KalamConn *conn, bool in_vain)
{
	PGresult   *res = NULL;
	KalamCommit outcome = kalam_receive_commit(conn, &res, in_vain);

	if (outcome != KALAM_COMMIT_DONE)
	{
		if (res)
			PQclear(res);
		kalam_transaction_resolve(conn, outcome);
		return;
	}
	conn->changing = false;
	kalam_transaction_after(conn, 0);
	check_commit(conn, res);
}

/* Nothing was written: its end is sent, and the answer taken in at the next use. */
static void
commit_later(KalamConn *conn)
{
	conn->open = false;
	if (!kalam_send_plain(conn, "COMMIT"))
		kalam_connection_drop(conn);
}

/* ---------- before ---------- */

/* A scan that ended early may still be under way, on a server that does not stop it: nobody waits for its rows. */
static void
stop_reading(KalamConn *conn)
{
	bool		lost = conn->lost;

	if (conn->wrote || kalam_settle_by(conn, TimestampTzPlusMilliseconds(GetCurrentTimestamp(), STOPPED_MS)))
		return;
	kalam_cancel(conn);
	conn->lost = lost;			/* there is nothing to be lost */
}

/* Whatever tells now that it will not commit does so before another has. */
static void
prepare(KalamConn *conn)
{
	if (!conn->lost && (conn->open || conn->changing))	/* else it is the end of a cursor, or of a transaction */
	{
		stop_reading(conn);
		kalam_settle(conn);
	}
	if (conn->pg && conn->open && conn->wrote && !PQconsumeInput(conn->pg))
		kalam_connection_drop(conn);
	if (conn->lost)
		kalam_connection_lost(conn, "The transaction's changes on the server are undone.");
	if (conn->open && conn->wrote && PQtransactionStatus(conn->pg) == PQTRANS_INERROR)
		rolled_back(conn);
}

/* ---------- several servers ---------- */

/* What became of those that were told to commit */
typedef struct CommitReport
{
	StringInfoData committed;	/* their addresses */
	StringInfoData unknown;
	ErrorData  *error;			/* the first */
} CommitReport;

static void
add_name(StringInfo names, const char *name)
{
	appendStringInfo(names, "%s%s", names->len > 0 ? ", " : "", name);
}

static void
take_error(CommitReport *report, MemoryContext context, const char *where)
{
	ErrorData  *error;

	MemoryContextSwitchTo(context);
	error = CopyErrorData();
	FlushErrorState();
	if (report->error == NULL)
		report->error = error;
	else if (error->sqlerrcode == ERRCODE_TRANSACTION_RESOLUTION_UNKNOWN)
		add_name(&report->unknown, where);
}

static void
commit_guarded(KalamConn *conn, CommitReport *report, void (*step) (KalamConn *conn, bool in_vain))
{
	MemoryContext context = CurrentMemoryContext;
	char	   *where = pstrdup(conn->where);
	volatile bool committed = false;

	PG_TRY();
	{
		step(conn, report->error != NULL);
		committed = true;
	}
	PG_CATCH();
	{
		take_error(report, context, where);
	}
	PG_END_TRY();
	if (committed)
		add_name(&report->committed, where);
}

static void
commit_now(KalamConn *conn, bool in_vain)
{
	send_commit(conn);
	take_commit(conn, false);
}

static void
raise_report(CommitReport *report)
{
	ErrorData  *error = report->error;
	StringInfoData detail;

	if (error == NULL)
		return;
	initStringInfo(&detail);
	if (error->detail)
		appendStringInfoString(&detail, error->detail);
	if (report->committed.len > 0)
		appendStringInfo(&detail, "%sThe transaction's changes on KalamDB at %s are committed, and stay.",
						 detail.len > 0 ? "\n" : "", report->committed.data);
	if (report->unknown.len > 0)
		appendStringInfo(&detail, "%sIt is not known whether KalamDB at %s committed them.",
						 detail.len > 0 ? "\n" : "", report->unknown.data);
	error->detail = detail.len > 0 ? detail.data : NULL;
	ReThrowError(error);
}

/* Those with parallel_commit last: if one of the others fails, none of these has been told. */
static void
commit_several(List *writers)
{
	CommitReport report = {0};
	List	   *told = NIL;
	ListCell   *lc;

	initStringInfo(&report.committed);
	initStringInfo(&report.unknown);
	foreach(lc, writers)
	{
		KalamConn  *conn = lfirst(lc);

		if (conn->parallel_commit)
			continue;
		commit_guarded(conn, &report, commit_now);
		raise_report(&report);
	}
	foreach(lc, writers)
	{
		KalamConn  *conn = lfirst(lc);

		if (!conn->parallel_commit)
			continue;
		conn->changing = true;
		(void) kalam_send_plain(conn, "COMMIT");	/* a failure shows when the answer is taken */
		told = lappend(told, conn);
	}
	foreach(lc, told)
		commit_guarded(lfirst(lc), &report, take_commit);
	raise_report(&report);
}

void
kalam_commit(List *conns)
{
	List	   *writers = NIL;
	ListCell   *lc;

	foreach(lc, conns)
	{
		KalamConn  *conn = lfirst(lc);

		prepare(conn);
		if (conn->open && conn->wrote)
			writers = lappend(writers, conn);
	}
	if (list_length(writers) == 1)
		commit_now(linitial(writers), false);
	else
		commit_several(writers);
	foreach(lc, conns)
	{
		KalamConn  *conn = lfirst(lc);

		if (conn->open)
			commit_later(conn);
	}
}
