/*
 * kalam_core.h: what the files around the connection know of each other.
 *
 * kalam_options.c     settings and options
 * kalam_table.c       what the options of a table say
 * kalam_secret.c      where secrets may stand, and what logs may show
 * kalam_connection.c  the cache of connections, and how one is made
 * kalam_capability.c  what the server says it can do
 * kalam_request.c     one statement there and its answer back
 * kalam_wait.c        waiting for the answer
 * kalam_cancel.c      the end of a statement nobody waits for any more
 * kalam_transaction.c what PostgreSQL's transactions mean over there
 * kalam_commit.c      COMMIT, on one server or several
 * kalam_functions.c   the SQL functions; kalam_snowflake.c: snowflake_id()
 * kalam_version.c     SQL objects of other releases than the library
 * kalam_hint.c        hints for what PostgreSQL itself refuses
 */
#ifndef KALAM_CORE_H
#define KALAM_CORE_H

#include "kalam.h"

#include "utils/timestamp.h"

#define KALAM_DEFAULT_FETCH 10000
#define KALAM_DEFAULT_BATCH 10000

#define KALAM_TXN_ID_LEN 32

/* Two roles share a connection if they share a mapping; without one they do not. */
typedef struct KalamConnKey
{
	Oid			umid;
	Oid			serverid;		/* these two only where umid is invalid */
	Oid			userid;
} KalamConnKey;

typedef struct KalamCapTable KalamCapTable;
typedef struct KalamNotice KalamNotice;

/*
 * One connection.  The entry stays for the backend's life, so that a scan's
 * pointer to it never dangles; the libpq connection in it comes and goes.
 */
struct KalamConn
{
	KalamConnKey key;			/* hash key: first */
	Oid			serverid;
	Oid			userid;			/* for whom it was made; shown by kalam_connections() */
	PGconn	   *pg;				/* NULL: not connected */
	struct WaitEventSet *waits;	/* for its answers; NULL until the first */
	int			poll_rest;		/* answers without busy polling from now on */
	int			poll_next_rest; /* after the next time in vain */
	KalamCapTable *caps;		/* stays when the connection goes, for plans made with it */
	bool		asked;			/* caps are this connection's */
	uint64		made;			/* how many there were so far: a cursor belongs to one of them */
	MemoryContext cxt;			/* the strings below */
	char	   *where;			/* host:port, for messages */
	char	   *made_from;		/* every parameter it was made from */
	int			timeout;		/* of a request, in ms; 0: none */
	bool		keep;			/* keep_connections */
	bool		parallel_commit;
	bool		parallel_abort;
	bool		stale;			/* options changed since: compare them before the next use */
	bool		outdated;		/* its own server's or mapping's did, or they are gone */
	uint32		server_hash;	/* of their catalog rows, as invalidations name them */
	uint32		mapping_hash;

	/* what is under way */
	bool		busy;			/* sent, and not answered to the end */
	bool		changing;		/* a COMMIT, ROLLBACK or the like is being made; found set later: drop */
	KalamAhead *ahead;			/* who gets the answer; NULL while busy: nobody */
	PGresult   *partial;		/* answer so far */
	KalamNotice *notices;
	int			nnotices;

	/* the remote transaction, and the local one it belongs to */
	bool		used;			/* by this local transaction */
	bool		open;			/* the server is in a transaction of ours */
	bool		lost;			/* it was, and the connection broke */
	bool		wrote;
	bool		told;			/* with others, to roll back: its answer is still to come */
	char		txn_id[KALAM_TXN_ID_LEN + 1];
	int			level;			/* savepoint levels on the server */
	int			floor;			/* lowest local level since the last statement */
	int			flush_level;	/* level of the pending writes being flushed; 0: none */
	uint64		serial;			/* of the local transaction */
	int			last_snapshot;
	List	   *snapshots;		/* of KalamHeldSnapshot, in txn_cxt */
	List	   *dropped;		/* snapshot numbers to tell the server, in txn_cxt */
	MemoryContext txn_cxt;		/* reset when the local transaction ends */
	List	   *abandoned;		/* cursor names, in cxt */
	bool		lone;			/* a cursor may be open that is a transaction of its own */
};

/* ---------- kalam_options.c ---------- */
extern int	kalam_node_id;		/* GUC kalam.node_id, -1: the server's */
extern bool kalam_option_is_secret(const char *name);
extern void kalam_check_option(Oid catalog, const char *name, const char *value);
extern void kalam_check_credentials(List *options);
extern void kalam_check_path(const char *name, const char *value);
extern const char *kalam_find_option(List *options, const char *name);

extern ForeignServer *kalam_server_by_name(const char *name);	/* raises what it is not */
extern void kalam_check_usage(const ForeignServer *server);	/* 42501 with the GRANT */

/* ---------- kalam_secret.c ---------- */
extern bool kalam_secret_hook_active(void); /* is the validator called below our utility hook? */
extern bool kalam_text_has_secret(const char *text);	/* may this text carry a secret? */

/* ---------- kalam_version.c ---------- */
extern char *kalam_scripts_version(void);	/* of the SQL objects here; NULL: there are none */

/* ---------- kalam_connection.c ---------- */
extern UserMapping *kalam_find_mapping(Oid serverid, Oid userid);	/* that very role's; NULL: it has none */
extern HTAB *kalam_connections;		/* of KalamConn; NULL before the first */
/*
 * Makes the connection usable for a request: settles what is under way, and
 * where no remote transaction depends on it, replaces one that is broken.
 */
extern void kalam_connection_ready(KalamConn *conn);
extern void kalam_connection_open(KalamConn *conn); /* connects, without asking for capabilities */
extern void kalam_connection_drop(KalamConn *conn); /* never fails; a remote transaction in it is lost */
KALAM_NORETURN extern void kalam_connection_lost(KalamConn *conn, const char *detail);	/* 08006 */

/* ---------- kalam_capability.c ---------- */
extern KalamCapTable *kalam_capability_table(PGresult *rows);
extern long kalam_capability_count(KalamCapTable *table);
extern void kalam_capability_facts(KalamCapTable *table, void (*each) (const char *, const char *, void *), void *arg);

/* ---------- kalam_request.c ---------- */
/* a statement of our own without a context, as COMMIT; raises what fails */
extern PGresult *kalam_request_plain(KalamConn *conn, const char *sql);
/* sends it without waiting; false if the connection is broken */
extern bool kalam_send_plain(KalamConn *conn, const char *sql);
/* takes in what is under way: into the KalamAhead it is for, or nowhere */
extern void kalam_settle(KalamConn *conn);
/* the same within bounds, heeding no interrupt; false: it is still under way */
extern bool kalam_settle_by(KalamConn *conn, TimestampTz deadline);
/* the same if it is all here already, else false */
extern bool kalam_settle_nowait(KalamConn *conn);
/* is its answer still to come? */
extern bool kalam_ahead_under_way(const KalamAhead *ahead);
/* takes in what has come of it; true when that is all, or the connection broke: then kalam_ahead_wait does not wait */
extern bool kalam_ahead_poll(KalamAhead *ahead);
extern TimestampTz kalam_ahead_deadline(const KalamAhead *ahead);	/* 0: none */
/* takes in the answer of one asked ahead within bounds, raising nothing */
extern bool kalam_ahead_take(KalamAhead *ahead, TimestampTz deadline);
/* closes, later, the cursor that a result names, if it names one */
extern void kalam_abandon_result(KalamConn *conn, PGresult *res);
/* frees with the context; the result itself is returned */
extern PGresult *kalam_result_guard(PGresult *res);
KALAM_NORETURN extern void kalam_raise(KalamConn *conn, PGresult *res, const char *sql, uint32 flags);
extern void kalam_emit_notices(KalamConn *conn);
extern int64 kalam_count_round_trips(void);
/* the server's text in this database's encoding, palloc'd */
extern char *kalam_from_utf8(const char *text, int len);
extern char *kalam_result_text(PGresult *res, int row, int col);	/* a field, as the above; NULL is "" */
/* is that what the field says? fails for no text that this database's encoding has not */
extern bool kalam_result_is(PGresult *res, int row, int col, const char *text);
extern char *kalam_message_from_utf8(const char *text);	/* raises nothing for what the encoding has not */

/* outcome of a request that was to commit */
typedef enum KalamCommit
{
	KALAM_COMMIT_DONE,			/* answered, with success or an error */
	KALAM_COMMIT_BROKEN,		/* no answer */
	KALAM_COMMIT_INTERRUPTED,	/* cancelled, and no answer in time */
} KalamCommit;

/* takes in a COMMIT's answer, without letting an interrupt hide it; in_vain: the server is asked to stop */
extern KalamCommit kalam_receive_commit(KalamConn *conn, PGresult **res, bool in_vain);

/* ---------- kalam_wait.c ---------- */
extern long kalam_ms_until(TimestampTz deadline);	/* 0 when it has passed */
/* what pg_stat_activity shows while a backend waits */
typedef enum KalamWait
{
	KALAM_WAIT_CONNECT,
	KALAM_WAIT_ANSWER,
	KALAM_WAIT_CANCEL,			/* for the end of a statement that nobody waits for any more */
	KALAM_WAIT_OUTCOME,			/* to learn what became of a commit */
} KalamWait;

extern uint32 kalam_wait_event(KalamWait wait);
/* one wait, and what has come is taken in; unsent: the socket is waited for to be written, too */
extern void kalam_wait_for_answer(KalamConn *conn, bool unsent, TimestampTz deadline);
extern int	kalam_busy_poll;	/* GUC kalam.busy_poll, in microseconds; 0: off */

/* ---------- kalam_cancel.c ---------- */
/* within a second: the running statement is over, or the connection dropped (false) */
extern bool kalam_cancel(KalamConn *conn);
extern bool kalam_cancel_within(KalamConn *conn, int ms);
/* asks the server to stop it; false if that could not be said in time */
extern bool kalam_cancel_send(KalamConn *conn, TimestampTz deadline);
/* reads the answer until it ends or time is up, heeding no interrupt */
extern bool kalam_drain(KalamConn *conn, TimestampTz deadline);

/* ---------- kalam_transaction.c ---------- */
extern void kalam_transaction_use(KalamConn *conn);	/* this local transaction uses the connection */
extern void kalam_transaction_context(KalamConn *conn, StringInfo json, const KalamRequest *req);
/* the server's state after an answer */
extern void kalam_transaction_after(KalamConn *conn, uint32 flags);
extern bool kalam_transaction_has_pending(KalamConn *conn);

/* ---------- kalam_commit.c ---------- */
/* ends the transactions of these connections, or raises why one could not commit */
extern void kalam_commit(List *conns);
/* a COMMIT's answer was lost: returns if it was committed after all, else raises */
extern void kalam_transaction_resolve(KalamConn *conn, KalamCommit how);

#endif							/* KALAM_CORE_H */
