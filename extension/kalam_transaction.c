/*
 * kalam_transaction.c: what PostgreSQL's transactions mean over there.
 *
 * A remote transaction is opened by the first statement that wants one, in the
 * same flight (the context's "txn"), and so are savepoint levels: nothing is
 * sent when a subtransaction starts or is released, only when one is undone
 * that the server has a level for.
 *
 * What can fail happens at PRE_COMMIT: pending writes are sent, then what
 * PostgreSQL's own commit may still refuse is tried, then COMMIT is sent
 * (kalam_commit.c).  From then to the local commit no cancel is heeded.  After
 * an abort the server is told within a bounded time, or the connection is
 * closed, which undoes the transaction, too; nothing is raised there.
 *
 * conn->open says that the server is in a transaction; conn->lost that it was,
 * and the connection broke: then the local transaction cannot commit.
 */
#include "postgres.h"

#include "access/xact.h"
#include "commands/tablecmds.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "storage/latch.h"
#include "storage/predicate.h"
#include "storage/proc.h"
#include "utils/elog.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timeout.h"

#include "kalam_core.h"

#define ABORT_MS 1000			/* for ROLLBACK and the like */

/* One of PostgreSQL's snapshots as of one command, and the executor states that use it. */
typedef struct HeldSnapshot
{
	Snapshot	snapshot;
	CommandId	curcid;
	int			number;
	bool		taken;			/* the server has been told of it */
	List	   *estates;
} HeldSnapshot;

static dlist_head pendings = DLIST_STATIC_INIT(pendings);
static bool any_used = false;
static bool holding_cancels = false;
static uint64 local_serial = 1;

static void on_xact(XactEvent event, void *arg);
static void on_subxact(SubXactEvent event, SubTransactionId mine, SubTransactionId parent, void *arg);

/* ---------- use ---------- */

void
kalam_transaction_use(KalamConn *conn)
{
	static bool registered = false;

	if (!registered)
	{
		RegisterXactCallback(on_xact, NULL);
		RegisterSubXactCallback(on_subxact, NULL);
		registered = true;
	}
	if (conn->used)
		return;
	conn->used = true;
	conn->serial = local_serial;
	conn->level = conn->floor = 1;
	any_used = true;
}

bool
kalam_transaction_has_pending(KalamConn *conn)
{
	dlist_iter	iter;

	dlist_foreach(iter, &pendings)
	{
		if (dlist_container(KalamPending, node, iter.cur)->conn == conn)
			return true;
	}
	return false;
}

bool
kalam_transaction_is_lone(KalamConn *conn)
{
	return !IsTransactionBlock() && GetCurrentTransactionNestLevel() == 1 && !IsolationUsesXactSnapshot() &&
		!conn->open && !conn->lost && !kalam_transaction_has_pending(conn);
}

/* ---------- the context ---------- */

static const char *
isolation_name(void)
{
	if (XactIsoLevel == XACT_SERIALIZABLE)
		return "serializable";
	return XactIsoLevel == XACT_REPEATABLE_READ ? "repeatable read" : "read committed";
}

/*
 * Unlike any other's: who lost the answer to a COMMIT asks by it.  Random bytes
 * are dear, so a backend draws some once and counts behind them.
 */
static void
make_txn_id(char *id)
{
	static char drawn[KALAM_TXN_ID_LEN - 8 + 1];
	static uint32 number = 0;
	uint8		bytes[(sizeof(drawn) - 1) / 2];

	if (number == 0)
	{
		if (!pg_strong_random(bytes, sizeof(bytes)))
			ereport(ERROR, (errcode(ERRCODE_INTERNAL_ERROR), errmsg("could not generate random bytes")));
		for (int i = 0; i < (int) sizeof(bytes); i++)
			snprintf(drawn + 2 * i, 3, "%02x", bytes[i]);
	}
	memcpy(id, drawn, sizeof(drawn) - 1);
	snprintf(id + sizeof(drawn) - 1, 9, "%08x", number++);
}

/* Takes the list. */
static void
append_numbers(StringInfo json, const char *key, List *numbers)
{
	const char *separator = "";
	ListCell   *lc;

	if (numbers == NIL)
		return;
	appendStringInfo(json, "\"%s\":[", key);
	foreach(lc, numbers)
	{
		appendStringInfo(json, "%s%d", separator, lfirst_int(lc));
		separator = ",";
	}
	appendStringInfoString(json, "],");
	list_free(numbers);
}

/* Another remote transaction knows nothing of what the last one was told. */
static void
forget_told(KalamConn *conn)
{
	ListCell   *lc;

	foreach(lc, conn->snapshots)
		((HeldSnapshot *) lfirst(lc))->taken = false;
}

/* A statement around this one, which has not read yet, must not see what this one writes. */
static void
append_snapshots(KalamConn *conn, StringInfo json, int own)
{
	List	   *taken = NIL;
	ListCell   *lc;

	foreach(lc, conn->snapshots)
	{
		HeldSnapshot *held = lfirst(lc);

		if (!held->taken && held->number != own)
			taken = lappend_int(taken, held->number);
		held->taken = true;
	}
	append_numbers(json, "take", taken);
	append_numbers(json, "drop", conn->dropped);
	conn->dropped = NIL;
}

/* Levels count as told once they are sent: the server applies them whatever the statement does. */
void
kalam_transaction_context(KalamConn *conn, StringInfo json, const KalamRequest *req)
{
	int			level = conn->flush_level ? conn->flush_level : GetCurrentTransactionNestLevel();

	if (!conn->open)
	{
		if (!(req->flags & (KALAM_REQ_TXN | KALAM_REQ_WRITE | KALAM_REQ_COMMIT)))
			return;
		make_txn_id(conn->txn_id);
		conn->floor = 1;
		conn->wrote = false;
		forget_told(conn);
	}
	appendStringInfo(json, "\"txn\":{\"id\":\"%s\",\"iso\":\"%s\",\"ro\":%s},", conn->txn_id, isolation_name(),
					 XactReadOnly ? "true" : "false");
	conn->floor = Min(conn->floor, level);
	if (conn->floor != 1 || level != 1)
		appendStringInfo(json, "\"floor\":%d,\"level\":%d,", conn->floor, level);
	conn->level = conn->floor = level;
	append_snapshots(conn, json, req->snapshot);
}

void
kalam_transaction_after(KalamConn *conn, uint32 flags)
{
	PGTransactionStatusType status = PQtransactionStatus(conn->pg);

	conn->open = status == PQTRANS_INTRANS || status == PQTRANS_INERROR;
	if (conn->open && (flags & (KALAM_REQ_WRITE | KALAM_REQ_EXEC)))
		conn->wrote = true;
}

/* ---------- snapshots ---------- */

typedef struct Holder
{
	KalamConn  *conn;
	uint64		serial;			/* of the transaction; later the pointers below are gone */
	HeldSnapshot *held;
	EState	   *estate;
	MemoryContextCallback on_reset;
} Holder;

static void
holder_reset(void *arg)
{
	Holder	   *holder = arg;
	KalamConn  *conn = holder->conn;
	HeldSnapshot *held = holder->held;
	MemoryContext old;

	if (!conn->used || conn->serial != holder->serial)
		return;
	held->estates = list_delete_ptr(held->estates, holder->estate);
	if (held->estates != NIL)
		return;
	conn->snapshots = list_delete_ptr(conn->snapshots, held);
	if (conn->open && held->taken)
	{
		old = MemoryContextSwitchTo(conn->txn_cxt);
		conn->dropped = lappend_int(conn->dropped, held->number);
		MemoryContextSwitchTo(old);
	}
	pfree(held);
}

static HeldSnapshot *
find_held(KalamConn *conn, Snapshot snapshot)
{
	ListCell   *lc;
	HeldSnapshot *held;

	foreach(lc, conn->snapshots)
	{
		held = lfirst(lc);
		if (held->snapshot == snapshot && held->curcid == snapshot->curcid)
			return held;
	}
	held = palloc0(sizeof(HeldSnapshot));
	held->snapshot = snapshot;
	held->curcid = snapshot->curcid;
	held->number = ++conn->last_snapshot;
	conn->snapshots = lappend(conn->snapshots, held);
	return held;
}

/*
 * An executor state holds a reference to its snapshot, so the pointer means
 * this snapshot as long as one of them lives.
 */
int
kalam_snapshot_number(KalamConn *conn, EState *estate)
{
	MemoryContext old;
	HeldSnapshot *held;
	Holder	   *holder;

	if (estate->es_snapshot == NULL)
		return 0;
	kalam_pending_flush_all(conn);	/* which is from before it */
	holder = MemoryContextAllocZero(estate->es_query_cxt, sizeof(Holder));
	old = MemoryContextSwitchTo(conn->txn_cxt);
	held = find_held(conn, estate->es_snapshot);
	if (!list_member_ptr(held->estates, estate))
	{
		held->estates = lappend(held->estates, estate);
		holder->conn = conn;
		holder->serial = conn->serial;
		holder->held = held;
		holder->estate = estate;
		holder->on_reset.func = holder_reset;
		holder->on_reset.arg = holder;
		MemoryContextRegisterResetCallback(estate->es_query_cxt, &holder->on_reset);
	}
	else
		pfree(holder);
	MemoryContextSwitchTo(old);
	return held->number;
}

/* ---------- pending writes ---------- */

void
kalam_pending_add(KalamPending *pending)
{
	dlist_push_tail(&pendings, &pending->node);
}

void
kalam_pending_remove(KalamPending *pending)
{
	dlist_delete(&pending->node);
}

/* They count for the level they were made at, though a deeper one be open by now. */
static void
flush_one(KalamPending *pending, bool commit)
{
	KalamConn  *conn = pending->conn;
	int			outer = conn->flush_level;

	conn->flush_level = pending->nestlevel;
	PG_TRY();
	{
		pending->flush(pending, commit);
	}
	PG_FINALLY();
	{
		conn->flush_level = outer;
	}
	PG_END_TRY();
}

/* The first one that is for the connection (NULL: any) and was made at that level or deeper. */
static KalamPending *
first_pending(KalamConn *conn, int nestlevel)
{
	dlist_iter	iter;

	dlist_foreach(iter, &pendings)
	{
		KalamPending *pending = dlist_container(KalamPending, node, iter.cur);

		if ((conn == NULL || pending->conn == conn) && pending->nestlevel >= nestlevel)
			return pending;
	}
	return NULL;
}

static void
flush_from(KalamConn *conn, int nestlevel)
{
	KalamPending *pending;

	while ((pending = first_pending(conn, nestlevel)) != NULL)
	{
		flush_one(pending, false);
		if (first_pending(conn, nestlevel) == pending)
			kalam_pending_remove(pending);
	}
}

/* What others have collected since does not overtake what is being sent. */
void
kalam_pending_flush_all(KalamConn *conn)
{
	if (conn == NULL || conn->flush_level == 0)
		flush_from(conn, 1);
}

void
kalam_pending_flush_before(KalamPending *last)
{
	KalamPending *pending;

	while ((pending = first_pending(last->conn, 1)) != last)
	{
		flush_one(pending, false);
		if (first_pending(last->conn, 1) == pending)
			kalam_pending_remove(pending);
	}
}

static void
discard_from(int nestlevel)
{
	dlist_mutable_iter iter;

	dlist_foreach_modify(iter, &pendings)
	{
		KalamPending *pending = dlist_container(KalamPending, node, iter.cur);

		if (pending->nestlevel >= nestlevel)
			pending->discard(pending);
	}
}

/* ---------- commit ---------- */

static List *
used_connections(void)
{
	HASH_SEQ_STATUS scan;
	KalamConn  *conn;
	List	   *used = NIL;

	hash_seq_init(&scan, kalam_connections);
	while ((conn = hash_seq_search(&scan)) != NULL)
	{
		if (conn->used)
			used = lappend(used, conn);
	}
	return used;
}

static void
each_used(void (*f) (KalamConn *conn))
{
	ListCell   *lc;

	foreach(lc, used_connections())
		f(lfirst(lc));
}

static int	writers;

static void
count_writer(KalamConn *conn)
{
	if (conn->lost || conn->wrote || kalam_transaction_has_pending(conn))
		writers++;
}

/* The rows of a lone statement that waited for its end: its time limit is still theirs. */
static void
flush_last(void)
{
	bool		limited = StatementTimeout > 0 && !get_timeout_active(STATEMENT_TIMEOUT);

	if (dlist_is_empty(&pendings))
		return;
	if (limited)
		enable_timeout_at(STATEMENT_TIMEOUT, TimestampTzPlusMilliseconds(GetCurrentStatementStartTimestamp(),
																		 StatementTimeout));
	if (writers == 1 && !dlist_has_next(&pendings, dlist_head_node(&pendings)) &&
		!first_pending(NULL, 1)->conn->lost)
		flush_one(first_pending(NULL, 1), true);	/* the transaction's last words */
	kalam_pending_flush_all(NULL);
	if (limited)
		disable_timeout(STATEMENT_TIMEOUT, false);
}

/*
 * What PostgreSQL's commit can refuse after the PRE_COMMIT callbacks: ON COMMIT
 * actions of temporary tables, and a conflict of serializable transactions.
 * Both will be done again, to no effect.
 */
static void
try_local_commit(void)
{
	PreCommit_on_commit_actions();
	PreCommit_CheckForSerializationFailure();
}

/*
 * No cancel may come between a COMMIT there and the one here.  A backend can
 * still be terminated: another extension's part of the commit may hang.
 */
static void
hold_cancels(void)
{
	HOLD_CANCEL_INTERRUPTS();
	holding_cancels = true;
}

/* An ERROR has ended the holding by itself, also one that somebody else's callback has caught. */
static void
resume_cancels(bool committed)
{
	if (holding_cancels && committed && QueryCancelHoldoffCount > 0)
		RESUME_CANCEL_INTERRUPTS();
	holding_cancels = false;
}

static void
pre_commit(void)
{
	writers = 0;
	each_used(count_writer);
	if (writers > 0)
		try_local_commit();
	flush_last();
	kalam_commit(used_connections());
	if (writers > 0)
		hold_cancels();
}

static void
refuse_prepare(KalamConn *conn)
{
	if (conn->open || conn->lost || kalam_transaction_has_pending(conn))
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("cannot PREPARE a transaction that has used KalamDB tables")));
}

/* ---------- abort ---------- */

/*
 * An ERROR while a transaction aborts ends in a PANIC of all of PostgreSQL.
 * Nothing here raises one but for want of memory or file descriptors; even then
 * it is enough to close the connection, which undoes the transaction there.
 */
static void
quietly(void (*f) (KalamConn *conn, int n), KalamConn *conn, int n)
{
	MemoryContext context = CurrentMemoryContext;
	uint32		holdoff = InterruptHoldoffCount;

	PG_TRY();
	{
		f(conn, n);
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(context);
		FlushErrorState();
		InterruptHoldoffCount = holdoff;
		kalam_connection_drop(conn);
	}
	PG_END_TRY();
}

static void
drop_if_in_trouble(KalamConn *conn)
{
	if (conn->pg && (in_error_recursion_trouble() || (conn->changing && !conn->busy)))
		kalam_connection_drop(conn);
}

/* Whatever is under way is over after this, within ms. */
static void
stop_within(KalamConn *conn, int ms)
{
	drop_if_in_trouble(conn);
	if (conn->pg && conn->busy)
		kalam_cancel_within(conn, ms);
}

static bool
needs_rollback(KalamConn *conn, int nestlevel)
{
	return conn->pg && conn->open && Min(conn->level, conn->floor) >= nestlevel;
}

static void
send_rollback(KalamConn *conn, int nestlevel)
{
	char		sql[64] = "ROLLBACK";

	if (nestlevel > 1)
		snprintf(sql, sizeof(sql), "ROLLBACK TO LEVEL %d", nestlevel);
	conn->changing = true;
	conn->level = nestlevel - 1;
	if (!kalam_send_plain(conn, sql))
		kalam_connection_drop(conn);
}

/* Its answer, waited for within bounds; else the connection goes. */
static void
take_rollback(KalamConn *conn, int ms)
{
	bool		ok;

	if (conn->pg == NULL)
		return;
	ok = kalam_drain(conn, TimestampTzPlusMilliseconds(GetCurrentTimestamp(), ms)) &&
		conn->partial && PQresultStatus(conn->partial) == PGRES_COMMAND_OK;
	if (conn->partial)
		PQclear(conn->partial);
	conn->partial = NULL;
	if (!ok)
	{
		kalam_connection_drop(conn);
		return;
	}
	conn->changing = false;
	kalam_transaction_after(conn, 0);
	if (conn->open && conn->level == 0)
		kalam_connection_drop(conn);
}

/* Those with parallel_abort are told all at once. */
static void
rollback_all(int nestlevel)
{
	TimestampTz deadline;
	HASH_SEQ_STATUS scan;
	KalamConn  *conn;

	hash_seq_init(&scan, kalam_connections);
	while ((conn = hash_seq_search(&scan)) != NULL)
	{
		conn->told = conn->used && conn->parallel_abort && needs_rollback(conn, nestlevel);
		if (conn->told)
			quietly(send_rollback, conn, nestlevel);
	}
	deadline = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), ABORT_MS);
	hash_seq_init(&scan, kalam_connections);
	while ((conn = hash_seq_search(&scan)) != NULL)
	{
		if (conn->told)
			quietly(take_rollback, conn, kalam_ms_until(deadline));
		else if (conn->used && needs_rollback(conn, nestlevel))
		{
			quietly(send_rollback, conn, nestlevel);
			quietly(take_rollback, conn, ABORT_MS);
		}
	}
}

/* The local transaction is over, however. */
static void
end_one(KalamConn *conn)
{
	conn->used = false;
	conn->open = false;
	conn->lost = false;
	conn->wrote = false;
	conn->flush_level = 0;
	conn->level = conn->floor = 1;
	conn->snapshots = NIL;
	conn->dropped = NIL;
	MemoryContextReset(conn->txn_cxt);
	if (!conn->keep || conn->outdated)
		kalam_connection_drop(conn);
	/* of a scan that failed: its memory, with the cursor's name, goes later */
	if (conn->lone && conn->pg && !conn->busy && !kalam_send_plain(conn, "CLOSE ALL"))
		kalam_connection_drop(conn);
	conn->lone = false;
	conn->lost = false;
}

static void
end_all(void)
{
	HASH_SEQ_STATUS scan;
	KalamConn  *conn;

	hash_seq_init(&scan, kalam_connections);
	while ((conn = hash_seq_search(&scan)) != NULL)
	{
		if (conn->used)
			end_one(conn);
	}
	any_used = false;
	local_serial++;
}

static void
abort_all(void)
{
	HASH_SEQ_STATUS scan;
	KalamConn  *conn;
	int			busy = 0;

	discard_from(1);
	hash_seq_init(&scan, kalam_connections);
	while ((conn = hash_seq_search(&scan)) != NULL)
		busy += conn->used && conn->busy;
	hash_seq_init(&scan, kalam_connections);
	while ((conn = hash_seq_search(&scan)) != NULL)
	{
		if (conn->used)
			quietly(stop_within, conn, ABORT_MS / Max(busy, 1));
	}
	rollback_all(1);
	end_all();
}

static void
on_xact(XactEvent event, void *arg)
{
	if (!any_used)
		return;
	switch (event)
	{
		case XACT_EVENT_PRE_COMMIT:
			pre_commit();
			break;
		case XACT_EVENT_PRE_PREPARE:
			each_used(refuse_prepare);
			break;
		case XACT_EVENT_ABORT:
			resume_cancels(false);
			abort_all();
			break;
		case XACT_EVENT_COMMIT:
			end_all();
			resume_cancels(true);
			break;
		case XACT_EVENT_PREPARE:
			end_all();
			break;
		case XACT_EVENT_PARALLEL_PRE_COMMIT:
		case XACT_EVENT_PARALLEL_COMMIT:
		case XACT_EVENT_PARALLEL_ABORT:
			break;				/* workers have no connections */
	}
}

/* ---------- subtransactions ---------- */

/* A scan of an outer level may be reading ahead: its answer is taken in, if it comes. */
static void
settle_bounded(KalamConn *conn)
{
	KalamAhead *ahead = conn->ahead;

	if (ahead == NULL || !kalam_ahead_take(ahead, TimestampTzPlusMilliseconds(GetCurrentTimestamp(), ABORT_MS / 2)))
		kalam_cancel(conn);
}

/* What is under way for an outer level stays so. */
static void
settle_level(KalamConn *conn, int nestlevel)
{
	drop_if_in_trouble(conn);
	if (conn->pg && conn->busy && Min(conn->level, conn->floor) >= nestlevel)
		settle_bounded(conn);
}

static void
abort_level(int nestlevel)
{
	HASH_SEQ_STATUS scan;
	KalamConn  *conn;

	discard_from(nestlevel);
	hash_seq_init(&scan, kalam_connections);
	while ((conn = hash_seq_search(&scan)) != NULL)
	{
		if (conn->used)
			quietly(settle_level, conn, nestlevel);
	}
	rollback_all(nestlevel);
}

static void
end_level(int nestlevel)
{
	HASH_SEQ_STATUS scan;
	KalamConn  *conn;

	hash_seq_init(&scan, kalam_connections);
	while ((conn = hash_seq_search(&scan)) != NULL)
	{
		if (!conn->used)
			continue;
		conn->floor = Min(conn->floor, nestlevel - 1);
		if (conn->flush_level >= nestlevel)
			conn->flush_level = 0;
	}
}

static void
on_subxact(SubXactEvent event, SubTransactionId mine, SubTransactionId parent, void *arg)
{
	int			nestlevel = GetCurrentTransactionNestLevel();

	if (!any_used)
		return;
	switch (event)
	{
		case SUBXACT_EVENT_START_SUB:
			break;
		case SUBXACT_EVENT_PRE_COMMIT_SUB:
			flush_from(NULL, nestlevel);	/* their errors belong to this block */
			break;
		case SUBXACT_EVENT_COMMIT_SUB:
			end_level(nestlevel);
			break;
		case SUBXACT_EVENT_ABORT_SUB:
			abort_level(nestlevel);
			end_level(nestlevel);
			break;
	}
}
