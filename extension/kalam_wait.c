/*
 * kalam_wait.c: waiting for the server.
 *
 * To wake a processor that sleeps takes longer than most answers, above all in
 * a virtual machine, so before it sleeps a backend looks at the socket for a
 * while (busy polling).  Where answers take longer than that, or other
 * processes need the processor, it soon leaves off: after each time in vain it
 * sleeps at once for twice as many answers.
 */
#include "postgres.h"

#include <poll.h>
#include <sched.h>
#include <unistd.h>

#include "miscadmin.h"
#include "portability/instr_time.h"
#include "storage/latch.h"
#if PG_VERSION_NUM >= 180000
#include "storage/waiteventset.h"
#endif
#include "utils/timestamp.h"
#include "utils/wait_event.h"

#include "kalam_core.h"

#define POLL_REST 255			/* answers without polling after times in vain, at most */

int			kalam_busy_poll = 500;

long
kalam_ms_until(TimestampTz deadline)
{
	return TimestampDifferenceMilliseconds(GetCurrentTimestamp(), deadline);
}

/* PostgreSQL before 17 knows no names: it shows "Extension". */
uint32
kalam_wait_event(KalamWait wait)
{
#if PG_VERSION_NUM >= 170000
	static const char *const names[] = {"KalamDBConnect", "KalamDBAnswer", "KalamDBCancel", "KalamDBOutcome"};
	static uint32 events[lengthof(names)];

	if (events[wait] == 0)
		events[wait] = WaitEventExtensionNew(names[wait]);
	return events[wait];
#else
	return PG_WAIT_EXTENSION;
#endif
}

/* ---------- busy polling ---------- */

/* With one processor the server could not run meanwhile. */
static bool
processors_to_spare(void)
{
	static long count = 0;

	if (count == 0)
	{
#ifdef CPU_COUNT
		cpu_set_t	set;

		if (sched_getaffinity(0, sizeof(set), &set) == 0)
			count = CPU_COUNT(&set);
		else
#endif
			count = sysconf(_SC_NPROCESSORS_ONLN);
	}
	return count > 1;
}

/* True: something has come. An interrupt, a set latch and the limit end it. */
static bool
poll_socket(int socket)
{
	struct pollfd polled = {.fd = socket,.events = POLLIN};
	instr_time	began;
	instr_time	now;

	INSTR_TIME_SET_CURRENT(began);
	for (;;)
	{
		if (poll(&polled, 1, 0) > 0)
			return true;
		if (InterruptPending || MyLatch->is_set)
			return false;
		(void) sched_yield();	/* to whoever can run */
		INSTR_TIME_SET_CURRENT(now);
		INSTR_TIME_SUBTRACT(now, began);
		if (INSTR_TIME_GET_MICROSEC(now) >= kalam_busy_poll)
			return false;
	}
}

static bool
poll_for_answer(KalamConn *conn)
{
	if (kalam_busy_poll == 0 || !processors_to_spare())
		return false;
	if (conn->poll_rest > 0)
	{
		conn->poll_rest--;
		return false;
	}
	if (poll_socket(PQsocket(conn->pg)))
	{
		conn->poll_next_rest = 0;
		return true;
	}
	conn->poll_rest = conn->poll_next_rest;
	conn->poll_next_rest = Min(2 * conn->poll_next_rest + 1, POLL_REST);
	return false;
}

/* ---------- sleeping ---------- */

/* What is waited for is the same each time, and making the set costs more than waiting with it. */
static WaitEventSet *
wait_set(KalamConn *conn)
{
	WaitEventSet *set = conn->waits;

	if (set != NULL)
		return set;
#if PG_VERSION_NUM >= 170000
	set = CreateWaitEventSet(NULL, 3);
#else
	set = CreateWaitEventSet(TopMemoryContext, 3);
#endif
	AddWaitEventToSet(set, WL_LATCH_SET, PGINVALID_SOCKET, MyLatch, NULL);
	AddWaitEventToSet(set, WL_EXIT_ON_PM_DEATH, PGINVALID_SOCKET, NULL, NULL);
	AddWaitEventToSet(set, WL_SOCKET_READABLE, PQsocket(conn->pg), NULL, NULL);
	conn->waits = set;
	return set;
}

/* One wait for the socket, and what has come is taken in. */
void
kalam_wait_for_answer(KalamConn *conn, bool unsent, TimestampTz deadline)
{
	long		timeout = deadline ? kalam_ms_until(deadline) : -1;
	WaitEvent	event;
	int			rc = 0;

	if (unsent)
		rc = WaitLatchOrSocket(MyLatch, WL_LATCH_SET | WL_EXIT_ON_PM_DEATH | WL_SOCKET_READABLE |
							   WL_SOCKET_WRITEABLE | (deadline ? WL_TIMEOUT : 0),
							   PQsocket(conn->pg), timeout, kalam_wait_event(KALAM_WAIT_ANSWER));
	else if (poll_for_answer(conn))
		rc = WL_SOCKET_READABLE;
	else if (WaitEventSetWait(wait_set(conn), timeout, &event, 1, kalam_wait_event(KALAM_WAIT_ANSWER)) > 0)
		rc = event.events;
	if (rc & WL_SOCKET_READABLE)
		(void) PQconsumeInput(conn->pg);	/* a failure shows in the connection's status */
	if (rc & WL_LATCH_SET)
		ResetLatch(MyLatch);
}
