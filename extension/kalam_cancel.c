/*
 * kalam_cancel.c: the end of a statement nobody waits for any more.
 *
 * Everything here is bounded: within a second the statement is over and its
 * answer read, or the connection is closed, which ends it on the server, too.
 * No interrupt is heeded, since this is what happens on an interrupt, and no
 * error is raised, since it also happens while a transaction aborts.
 *
 * PQcancel blocks without limit.  libpq 17 has a cancel that does not; before,
 * the request goes out over a socket of our own.
 */
#include "postgres.h"

#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include "miscadmin.h"
#include "port/pg_bswap.h"
#include "storage/latch.h"

#include "kalam_core.h"

#define CANCEL_MS 400			/* until the server has taken the request */
#define TOTAL_MS 900			/* until the statement is over */

/* Waits for the socket alone; false when the time is up. */
static bool
wait_socket(int sock, int events, TimestampTz deadline)
{
	long		ms = kalam_ms_until(deadline);
	int			rc;

	if (ms == 0)
		return false;
	rc = WaitLatchOrSocket(NULL, events | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, sock, ms, kalam_wait_event(KALAM_WAIT_CANCEL));
	return (rc & events) != 0;
}

/* ---------- the request ---------- */

#ifdef LIBPQ_HAS_ASYNC_CANCEL

static bool
poll_cancel(PGcancelConn *cancel, TimestampTz deadline)
{
	PostgresPollingStatusType status = PGRES_POLLING_WRITING;

	if (!PQcancelStart(cancel))
		return false;
	while (status == PGRES_POLLING_READING || status == PGRES_POLLING_WRITING)
	{
		int			event = status == PGRES_POLLING_READING ? WL_SOCKET_READABLE : WL_SOCKET_WRITEABLE;

		if (!wait_socket(PQcancelSocket(cancel), event, deadline))
			return false;
		status = PQcancelPoll(cancel);
	}
	return status == PGRES_POLLING_OK;
}

bool
kalam_cancel_send(KalamConn *conn, TimestampTz deadline)
{
	PGcancelConn *cancel = PQcancelCreate(conn->pg);
	bool		sent = cancel != NULL && poll_cancel(cancel, deadline);

	PQcancelFinish(cancel);
	return sent;
}

#else

/*
 * The beginning of libpq's struct pg_cancel, 14 to 17.  The process id tells
 * whether this libpq's is like that; if not, the connection is closed instead.
 */
typedef struct CancelKey
{
	struct							/* by itself, for its padding */
	{
		struct sockaddr_storage addr;
		socklen_t	salen;
	}			raddr;
	int			be_pid;
	int			be_key;
} CancelKey;

static bool
cancel_key(PGconn *pg, CancelKey *key)
{
	PGcancel   *cancel;

	if (PQlibVersion() >= 180000)
		return false;
	cancel = PQgetCancel(pg);
	if (cancel == NULL)
		return false;
	memcpy(key, cancel, sizeof(CancelKey));
	PQfreeCancel(cancel);
	return key->be_pid == PQbackendPID(pg) && key->raddr.salen <= sizeof(key->raddr.addr);
}

static bool
connect_socket(int sock, const CancelKey *key, TimestampTz deadline)
{
	int			error = 0;
	socklen_t	len = sizeof(error);

	if (connect(sock, (const struct sockaddr *) &key->raddr.addr, key->raddr.salen) == 0)
		return true;
	if (errno != EINPROGRESS || !wait_socket(sock, WL_SOCKET_WRITEABLE, deadline))
		return false;
	return getsockopt(sock, SOL_SOCKET, SO_ERROR, &error, &len) == 0 && error == 0;
}

/* The server closes the socket once it has acted, so no later statement is hit. */
static bool
send_request(int sock, const CancelKey *key, TimestampTz deadline)
{
	uint32		packet[4] = {pg_hton32(16), pg_hton32((1234 << 16) | 5678),
	pg_hton32(key->be_pid), pg_hton32(key->be_key)};
	char		byte;

	if (!connect_socket(sock, key, deadline) || send(sock, packet, sizeof(packet), MSG_NOSIGNAL) != sizeof(packet))
		return false;
	return wait_socket(sock, WL_SOCKET_READABLE, deadline) && recv(sock, &byte, 1, 0) <= 0;
}

bool
kalam_cancel_send(KalamConn *conn, TimestampTz deadline)
{
	CancelKey	key;
	int			sock;
	bool		sent;

	if (!cancel_key(conn->pg, &key))
		return false;
	sock = socket(key.raddr.addr.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (sock < 0)
		return false;
	sent = send_request(sock, &key, deadline);
	close(sock);
	return sent;
}

#endif

/* ---------- the answer ---------- */

/* What can be read without waiting; true when the answer is complete. */
static bool
read_answer(KalamConn *conn)
{
	while (!PQisBusy(conn->pg))
	{
		PGresult   *res = PQgetResult(conn->pg);

		if (res == NULL)
			return true;
		if (conn->partial)
			PQclear(conn->partial);
		conn->partial = res;
		if (PQresultStatus(res) == PGRES_COPY_IN || PQresultStatus(res) == PGRES_COPY_OUT ||
			PQresultStatus(res) == PGRES_COPY_BOTH || PQstatus(conn->pg) != CONNECTION_OK)
			return false;
	}
	return false;
}

bool
kalam_drain(KalamConn *conn, TimestampTz deadline)
{
	for (;;)
	{
		int			unsent = PQflush(conn->pg);
		int			events = WL_SOCKET_READABLE | (unsent > 0 ? WL_SOCKET_WRITEABLE : 0);

		if (read_answer(conn))
			break;
		if (unsent < 0 || PQstatus(conn->pg) != CONNECTION_OK || !wait_socket(PQsocket(conn->pg), events, deadline) ||
			!PQconsumeInput(conn->pg))
			return false;
	}
	conn->busy = false;
	return PQstatus(conn->pg) == CONNECTION_OK;
}

bool
kalam_cancel(KalamConn *conn)
{
	return kalam_cancel_within(conn, TOTAL_MS);
}

bool
kalam_cancel_within(KalamConn *conn, int ms)
{
	TimestampTz now = GetCurrentTimestamp();

	if (!conn->busy)
		return true;
	if (!kalam_cancel_send(conn, TimestampTzPlusMilliseconds(now, Min(ms, CANCEL_MS))) ||
		!kalam_drain(conn, TimestampTzPlusMilliseconds(now, Min(ms, TOTAL_MS))))
	{
		kalam_connection_drop(conn);
		return false;
	}
	if (conn->partial)
	{
		kalam_abandon_result(conn, conn->partial);
		PQclear(conn->partial);
	}
	conn->partial = NULL;
	conn->ahead = NULL;
	conn->changing = false;
	conn->open = PQtransactionStatus(conn->pg) != PQTRANS_IDLE;
	return true;
}
