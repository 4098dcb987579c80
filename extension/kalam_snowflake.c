/*
 * kalam_snowflake.c: snowflake_id().
 *
 * 63 bits: milliseconds since 2020-01-01 UTC, 10 bits of node, 12 bits of
 * sequence.  With the library preloaded all backends draw from one counter in
 * shared memory, which never goes back, whatever the clock does.  Otherwise a
 * backend has a share of each millisecond's sequence, chosen by its slot among
 * the backends; nobody else has the slot while it lives, and its successor
 * begins a millisecond later.
 *
 * The node number is kalam.node_id, or the one that the default server gave.
 */
#include "postgres.h"

#include "access/twophase.h"
#include "fmgr.h"
#include "foreign/foreign.h"
#include "miscadmin.h"
#include "port/atomics.h"
#include "storage/ipc.h"
#include "storage/lwlock.h"
#include "storage/proc.h"
#include "storage/shmem.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "kalam_core.h"

#define SEQUENCE_BITS 12
#define NODE_BITS 10
#define SEQUENCES (1 << SEQUENCE_BITS)
/* 2020-01-01 in PostgreSQL's time, which begins in 2000 */
#define EPOCH_USECS (INT64CONST(7305) * USECS_PER_DAY)

typedef struct SharedCounter
{
	pg_atomic_uint64 last;		/* milliseconds << SEQUENCE_BITS | sequence */
	pg_atomic_uint32 node;		/* what the server gave, plus one; 0: not asked yet */
} SharedCounter;

static SharedCounter *shared = NULL;
static int	own_node = -1;		/* without shared memory */

static shmem_request_hook_type prev_shmem_request = NULL;
static shmem_startup_hook_type prev_shmem_startup = NULL;

PG_FUNCTION_INFO_V1(sql_snowflake_id);

/* ---------- the clock and the counters ---------- */

static uint64
now_ms(void)
{
	TimestampTz now = GetCurrentTimestamp();

	if (now < EPOCH_USECS)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("the system clock is before 2020")));
	return (now - EPOCH_USECS) / 1000;
}

static void
wait_for_ms(uint64 ms)
{
	while (now_ms() < ms)
	{
		CHECK_FOR_INTERRUPTS();
		pg_usleep(100);
	}
}

/* After the last one, and not ahead of the clock by more than waiting for it makes good. */
static uint64
next_shared(void)
{
	uint64		last = pg_atomic_read_u64(&shared->last);
	uint64		next;

	do
	{
		next = Max(now_ms() << SEQUENCE_BITS, last + 1);
	} while (!pg_atomic_compare_exchange_u64(&shared->last, &last, next));
	/* a clock set back must not stop inserts: only a real overflow is waited out */
	if ((next >> SEQUENCE_BITS) == now_ms() + 1)
		wait_for_ms(next >> SEQUENCE_BITS);
	return next;
}

static int
backend_slot(void)
{
#if PG_VERSION_NUM >= 170000
	return MyProcNumber;
#else
	return MyProc->pgprocno;
#endif
}

/* A backend's share of the sequence: 4096 divided by the number of slots. */
static uint64
next_own(void)
{
	static uint64 last_ms = 0;
	static int	used = 0;
	int			share = SEQUENCES / (MaxBackends + NUM_AUXILIARY_PROCS + max_prepared_xacts + 1);
	uint64		ms = now_ms();

	if (share < 1)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("snowflake_id() without preloading serves at most %d connections", SEQUENCES),
				 errhint("Set shared_preload_libraries = 'pg_kalam'.")));
	if (last_ms == 0)
	{
		last_ms = (MyStartTimestamp - EPOCH_USECS) / 1000;
		used = share;			/* the slot's last owner may have used it */
	}
	if (ms <= last_ms)
	{
		ms = last_ms;
		if (++used >= share)
			ms++;
	}
	if (ms > last_ms)
	{
		wait_for_ms(ms);
		last_ms = ms;
		used = 0;
	}
	return (ms << SEQUENCE_BITS) | (backend_slot() * share + used);
}

/* ---------- the node ---------- */

static int
ask_node(void)
{
	ForeignServer *server = GetForeignServerByName(kalam_default_server, true);
	const char *fact = NULL;

	if (server && kalam_is_server(server->serverid))
		fact = kalam_server_fact(kalam_connection_for_server(server->serverid, GetUserId()), "node_id");
	if (fact == NULL || atoi(fact) < 0 || atoi(fact) >= (1 << NODE_BITS))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("snowflake_id() has no node number"),
				 errhint("Set kalam.node_id (0 to 1023, another on every PostgreSQL), or kalam.default_server to a server that gives one.")));
	return atoi(fact);
}

static int
node_number(void)
{
	if (kalam_node_id >= 0)
		return kalam_node_id;
	if (shared && pg_atomic_read_u32(&shared->node) > 0)
		return pg_atomic_read_u32(&shared->node) - 1;
	if (own_node < 0)
		own_node = ask_node();
	if (shared)
		pg_atomic_write_u32(&shared->node, own_node + 1);
	return own_node;
}

Datum
sql_snowflake_id(PG_FUNCTION_ARGS)
{
	uint64		node = node_number();
	uint64		next = shared ? next_shared() : next_own();
	uint64		ms = next >> SEQUENCE_BITS;

	PG_RETURN_INT64((int64) ((ms << (NODE_BITS + SEQUENCE_BITS)) | (node << SEQUENCE_BITS) |
							 (next & (SEQUENCES - 1))));
}

/* ---------- shared memory ---------- */

static void
request_shmem(void)
{
	if (prev_shmem_request)
		prev_shmem_request();
	RequestAddinShmemSpace(MAXALIGN(sizeof(SharedCounter)));
}

static void
startup_shmem(void)
{
	bool		found;

	if (prev_shmem_startup)
		prev_shmem_startup();
	LWLockAcquire(AddinShmemInitLock, LW_EXCLUSIVE);
	shared = ShmemInitStruct("pg_kalam", sizeof(SharedCounter), &found);
	if (!found)
	{
		pg_atomic_init_u64(&shared->last, 0);
		pg_atomic_init_u32(&shared->node, 0);
	}
	LWLockRelease(AddinShmemInitLock);
}

void
kalam_functions_init(void)
{
	if (!process_shared_preload_libraries_in_progress)
		return;
	prev_shmem_request = shmem_request_hook;
	shmem_request_hook = request_shmem;
	prev_shmem_startup = shmem_startup_hook;
	shmem_startup_hook = startup_shmem;
}
