/*
 * kalam_async.c: scans of several partitions at the same time.
 *
 * An Append asks all its asynchronous scans for a row before it waits for any,
 * so that servers work side by side.  A connection does one thing at a time:
 * of the scans on one, a request is under way for one, and the others queue,
 * until its answer is here.  They then take their turn while its rows are read.
 *
 * An answer may also be taken in by somebody else who needs the connection, a
 * function in a condition, say.  Then no event comes any more, and the scan is
 * served when the Append is about to wait.
 *
 * PostgreSQL waits by itself here: the server's option timeout is kept by a
 * timer, which wakes it up.
 */
#include "postgres.h"

#include "executor/execAsync.h"
#include "executor/instrument.h"
#include "miscadmin.h"
#include "storage/latch.h"
#if PG_VERSION_NUM >= 180000
#include "storage/waiteventset.h"
#endif
#include "utils/timeout.h"

#include "kalam_core.h"
#include "kalam_read.h"

/* ---------- planning ---------- */

/* One table of it is enough, as with postgres_fdw. */
static bool
may_be_async(const KalamRelInfo *info)
{
	if (info->steps)
		return may_be_async(info->from);
	if (info->table != NULL)
		return info->table->async_capable;
	return may_be_async(info->outer) || may_be_async(info->inner);
}

static bool
kalam_IsForeignPathAsyncCapable(ForeignPath *path)
{
	return may_be_async(path->path.parent->fdw_private);
}

/* ---------- rows ---------- */

/* A row of what is here already, or the end; false if the server has to be asked, or was. */
static bool
serve(AsyncRequest *areq)
{
	ForeignScanState *node = (ForeignScanState *) areq->requestee;

	for (;;)
	{
		TupleTableSlot *slot = areq->requestee->ExecProcNodeReal(areq->requestee);
		KalamAhead *asked = kalam_scan_asked(node);

		if (!TupIsNull(slot))
		{
			ExecAsyncRequestDone(areq, slot);
			return true;
		}
		if (asked == NULL && kalam_scan_has_more(node))
			return false;
		if (asked == NULL)
		{
			ExecAsyncRequestDone(areq, NULL);
			return true;
		}
		if (!kalam_ahead_poll(asked))
			return false;
		kalam_scan_take(node);
	}
}

/* Asks for rows if nothing has been asked for, and the connection is free. */
static void
ask(AsyncRequest *areq)
{
	ForeignScanState *node = (ForeignScanState *) areq->requestee;

	if (kalam_scan_asked(node) == NULL && !kalam_scan_connection(node)->busy)
		kalam_scan_ask(node);
}

static void
kalam_ForeignAsyncRequest(AsyncRequest *areq)
{
	if (serve(areq))
		return;
	ExecAsyncRequestPending(areq);
	ask(areq);
}

/* ---------- others on the same connection ---------- */

static AsyncRequest *
waiting_sibling(AsyncRequest *areq, int number)
{
	AppendState *append = (AppendState *) areq->requestor;
	AsyncRequest *other = append->as_asyncrequests[number];
	KalamConn  *conn = kalam_scan_connection((ForeignScanState *) areq->requestee);

	if (other == NULL || other == areq || !other->callback_pending ||
		((ForeignScanState *) other->requestee)->fdwroutine->ForeignAsyncRequest != kalam_ForeignAsyncRequest ||
		kalam_scan_connection((ForeignScanState *) other->requestee) != conn)
		return NULL;
	return other;
}

/* Is the connection working for another scan of the same Append, which waits for it as well? */
static bool
sibling_is_under_way(AsyncRequest *areq)
{
	AppendState *append = (AppendState *) areq->requestor;

	for (int i = 0; i < append->as_nplans; i++)
	{
		AsyncRequest *other = waiting_sibling(areq, i);
		KalamAhead *asked = other ? kalam_scan_asked((ForeignScanState *) other->requestee) : NULL;

		if (asked && kalam_ahead_under_way(asked))
			return true;
	}
	return false;
}

/* The connection has become free: the next in the queue may work while this one's rows are read. */
static void
let_next_ask(AsyncRequest *areq)
{
	AppendState *append = (AppendState *) areq->requestor;
	KalamConn  *conn = kalam_scan_connection((ForeignScanState *) areq->requestee);

	for (int i = 0; i < append->as_nplans && !conn->busy; i++)
	{
		AsyncRequest *other = waiting_sibling(areq, i);

		if (other)
			ask(other);
	}
}

static void
kalam_ForeignAsyncNotify(AsyncRequest *areq)
{
	if (!serve(areq))
	{
		ExecAsyncRequestPending(areq);
		ask(areq);
	}
	let_next_ask(areq);
}

/* ---------- waiting ---------- */

static void
wake_up(void)
{
	/* the signal's handler has set the latch already: the next wait sees that the time is over */
}

static void
wake_up_at(TimestampTz deadline)
{
	static TimeoutId timer = MAX_TIMEOUTS;

	if (deadline == 0)
		return;
	if (timer == MAX_TIMEOUTS)
		timer = RegisterTimeout(USER_TIMEOUT, wake_up);
	if (!get_timeout_active(timer) || deadline < get_timeout_finish_time(timer))
		enable_timeout_at(timer, deadline);
}

/*
 * Sees to it that something is under way for this scan; false if it has to
 * wait for its turn on the connection.
 */
static bool
ask_or_queue(AsyncRequest *areq)
{
	AppendState *append = (AppendState *) areq->requestor;
	KalamConn  *conn = kalam_scan_connection((ForeignScanState *) areq->requestee);

	if (conn->busy && sibling_is_under_way(areq))
		return false;
	if (conn->busy)
	{
		/* somebody else's answer: it is waited for only if there is nothing better to do */
		if (!bms_is_empty(append->as_needrequest) || GetNumRegisteredWaitEvents(append->as_eventset) > 1)
			return false;
		kalam_settle(conn);
	}
	ask(areq);
	return true;
}

/* The Append does not know that there is something: it must not sleep now. */
static void
respond(AsyncRequest *areq)
{
	areq->callback_pending = false;
	ExecAsyncResponse(areq);
	if (areq->requestee->instrument)
		InstrUpdateTupleCount(areq->requestee->instrument, TupIsNull(areq->result) ? 0.0 : 1.0);
	SetLatch(MyLatch);
}

static void
kalam_ForeignAsyncConfigureWait(AsyncRequest *areq)
{
	ForeignScanState *node = (ForeignScanState *) areq->requestee;
	WaitEventSet *set = ((AppendState *) areq->requestor)->as_eventset;
	KalamConn  *conn = kalam_scan_connection(node);
	int			events = WL_SOCKET_READABLE;

	if (kalam_scan_asked(node) == NULL && !ask_or_queue(areq))
		return;
	while (kalam_ahead_poll(kalam_scan_asked(node)))
	{
		if (serve(areq))
		{
			respond(areq);
			return;
		}
		ask(areq);
		if (kalam_scan_asked(node) == NULL)
			return;
	}
	if (PQflush(conn->pg) > 0)
		events |= WL_SOCKET_WRITEABLE;	/* to come by again, and send more */
	wake_up_at(kalam_ahead_deadline(kalam_scan_asked(node)));
	AddWaitEventToSet(set, events, PQsocket(conn->pg), NULL, areq);
}

void
kalam_async_routine(FdwRoutine *routine)
{
	routine->IsForeignPathAsyncCapable = kalam_IsForeignPathAsyncCapable;
	routine->ForeignAsyncRequest = kalam_ForeignAsyncRequest;
	routine->ForeignAsyncConfigureWait = kalam_ForeignAsyncConfigureWait;
	routine->ForeignAsyncNotify = kalam_ForeignAsyncNotify;
}
