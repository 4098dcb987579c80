/*
 * kalam.h: what the files of pg_kalam know of each other.
 *
 * One file per object; a function used elsewhere is declared here, under the
 * file that defines it.  The boundary to the server is docs/protocol.md.
 */
#ifndef KALAM_H
#define KALAM_H

#include "postgres.h"

#include "access/xact.h"
#include "commands/explain.h"
#include "executor/executor.h"
#include "foreign/fdwapi.h"
#include "foreign/foreign.h"
#include "lib/ilist.h"
#include "libpq-fe.h"
#include "nodes/parsenodes.h"
#include "nodes/pathnodes.h"
#include "utils/rel.h"

#define KALAM_VERSION "0.1.0"
#define KALAM_SCRIPTS "0.1.1"	/* default_version of the control file: docs/upgrade.md */
#define KALAM_FDW_NAME "pg_kalam"
#define KALAM_AM_NAME "kalamdb"

/* PostgreSQL 18 renamed it and moved it to the front */
#if PG_VERSION_NUM >= 180000
#define KALAM_NORETURN pg_noreturn
#else
#define KALAM_NORETURN pg_attribute_noreturn()
#endif

/* OIDs of the protocol's own types (docs/protocol.md) */
#define KALAM_CONTEXT_OID ((Oid) 90001)
#define KALAM_ARROW_OID ((Oid) 90002)

#define KALAM_SEQ_COLUMN "_seq"
#define KALAM_USERID_COLUMN "_userid"
#define KALAM_DELETED_COLUMN "_deleted"

/* ---------- kalam_init.c: _PG_init is a list of calls ---------- */
extern void kalam_options_init(void);		/* settings (GUCs) */
extern void kalam_estimate_init(void);		/* statistics hook */
extern void kalam_modify_init(void);		/* executor hooks */
extern void kalam_conflict_init(void);		/* planner hook */
extern void kalam_ddl_init(void);			/* utility and object-access hooks */
extern void kalam_functions_init(void);		/* shared memory for snowflakes */
extern void kalam_secret_init(void);		/* emit_log hook */
extern void kalam_hint_init(void);			/* emit_log hook */

/* ---------- kalam_options.c ---------- */
typedef enum KalamTableType
{
	KALAM_SHARED,
	KALAM_USER,
	KALAM_STREAM,
} KalamTableType;

/* What the options of a foreign table say. Strings live in the caller's context. */
typedef struct KalamTable
{
	Oid			relid;
	Oid			serverid;
	char	   *namespace;		/* remote namespace, never NULL */
	char	   *name;			/* remote table name, never NULL */
	bool		has_type;		/* table_type given */
	KalamTableType type;		/* SHARED unless given */
	int			fetch_size;
	int			batch_size;
	bool		updatable;
	bool		truncatable;
	bool		remote_estimate;	/* use_remote_estimate */
	bool		async_capable;
	double		startup_cost;
	double		tuple_cost;
} KalamTable;

extern char *kalam_user_id;			/* GUC kalam.user_id, "" when unset */
extern char *kalam_default_server;	/* GUC kalam.default_server */

extern bool kalam_is_fdw(Oid fdwid);			/* is this wrapper ours (by its handler)? */
extern bool kalam_is_server(Oid serverid);
extern bool kalam_is_relation(Oid relid);		/* a foreign table of ours? */
extern KalamTable *kalam_table_get(Oid relid);
extern char *kalam_remote_column(Oid relid, AttrNumber attnum); /* column_name option or the attribute's name */
extern List *kalam_key_columns(Oid relid);		/* list of int: attnums in key order; NIL if none */
extern bool kalam_is_system_column(Oid relid, AttrNumber attnum); /* _seq or _userid, by name and type */
/* tenant for this user mapping: the mapping's user_id, else the GUC; NULL if none */
extern const char *kalam_tenant(UserMapping *user);
/* HV00D unless a table that the server is to make has all the options it needs */
extern void kalam_check_creation(Oid relid);
/* HV00D error that names the option, lists the valid ones, hints at the nearest */
KALAM_NORETURN extern void kalam_bad_option(const char *name, const char *const *valid, int nvalid);

/* ---------- kalam_connection.c ---------- */
typedef struct KalamConn KalamConn;

/* one capability: an operator or function that may be sent, or a type */
typedef struct KalamCap
{
	Oid			oid;			/* hash key: operator, function or type OID */
	char		kind;			/* 'o' operator, 'f' function, 'a' aggregate, 'w' window function, 't' type, 'i' and 'u' its
								 * input and output function, 'c' type that is kept as text and compared there */
	char	   *remote;			/* template, or type name in server SQL */
	char	   *layout;			/* types: wire layout; 'c': by which type parameters are announced */
	bool		needs_c;		/* only under a code-point collation */
	bool		needs_deterministic;
	bool		needs_ascii;	/* only under a collation for which nothing but A to Z has another case */
	bool		needs_order;	/* aggregates: their result depends on the order of rows */
	bool		needs_utf8;		/* only if the database has the server's encoding */
	bool		needs_libm;		/* only if the server's C library computes as this one */
	bool		needs_masked_shift; /* only where the processor takes a shift's number modulo the width */
	char		pattern;		/* the second argument must be a regular expression that means the same: 'm' to match, '1'
								 * to be found */
	bool		needs_flat;		/* only with arrays that are known to have one dimension */
	char	   *constants;		/* only with one of these as first argument, "a|b"; NULL: with any */
	bool		plain;			/* evaluated by the store itself, so under FOR UPDATE, too */
	bool		is_key;			/* types: may be a key column */
	bool		kept;			/* types: travels as its text; kalam_compared says more */
} KalamCap;

#define KALAM_REQ_TXN		0x01	/* run in the remote transaction, open it if need be */
#define KALAM_REQ_WRITE		0x02	/* changes data (implies TXN unless COMMIT stands alone) */
#define KALAM_REQ_COMMIT	0x04	/* commit in the same round trip */
#define KALAM_REQ_ARROW		0x08	/* large results may come as Arrow */
#define KALAM_REQ_EXEC		0x10	/* kalam_exec: human dialect, with search path */
#define KALAM_REQ_TEXT		0x20	/* the values of the result come as text */
#define KALAM_REQ_BOUND		0x40	/* kalam_exec: for this tenant and no other */

typedef struct KalamRequest
{
	const char *sql;
	int			nparams;		/* without the context, which is added */
	const Oid  *types;
	const char *const *values;
	const int  *lengths;
	const int  *formats;
	uint32		flags;
	int			fetch_size;		/* 0: server's default */
	int			snapshot;		/* from kalam_snapshot_number; 0: none */
	const char *tenant;			/* NULL: none */
	int			report;			/* number of the report to add to; 0: none */
	const char *rules;			/* the remote definition that it relies on; NULL: none */
} KalamRequest;

/*
 * Live connection for a user mapping, opened (and its capabilities read) if
 * need be.  Raises 08001, 28P01 … with the hints of SPEC section 7.  Outside a
 * remote transaction a connection found broken is replaced.
 */
extern KalamConn *kalam_connection_get(UserMapping *user);
/* the same by server, for functions and DDL: mapping of the current user, or PUBLIC's, or an empty one */
extern KalamConn *kalam_connection_for_server(Oid serverid, Oid userid);
extern UserMapping *kalam_user_mapping(Oid serverid, Oid userid); /* never fails for want of a mapping */

/*
 * Sends a request and waits for its (single) result, watching the latch:
 * a cancel or termination reaches the server before it is raised here.
 * First flushes pending writes of the connection (unless called by a flush).
 * A failed remote statement is raised with all its fields and the CONTEXT.
 * A result without a tag (COMMIT): the answer was lost, and it was committed.
 * The result is freed with CurrentMemoryContext, or by kalam_result_free.
 */
extern PGresult *kalam_request(KalamConn *conn, const KalamRequest *req);
extern void kalam_result_free(PGresult *res);
/* ask ahead: send now, take the result later; anything else asked meanwhile on
 * the connection first drains it into a buffer of its own.  Lives in CurrentMemoryContext;
 * when that goes before it was waited for, its answer is thrown away and its cursor closed */
typedef struct KalamAhead KalamAhead;
extern KalamAhead *kalam_request_ahead(KalamConn *conn, const KalamRequest *req);
extern PGresult *kalam_ahead_wait(KalamAhead *ahead);
/* name of the open cursor in a result's tag, NULL if the scan is finished; palloc'd */
extern char *kalam_result_cursor(PGresult *res);
/* rows that an UPDATE or DELETE has changed */
extern int64 kalam_result_affected(PGresult *res);
/* cursor that nobody reads to its end: closed with the next request or at transaction end */
extern void kalam_ahead_stop(KalamAhead *ahead);
/* closes, without waiting for it, the cursors that were abandoned */
extern void kalam_cursors_close(KalamConn *conn);
extern void kalam_cursor_abandon(KalamConn *conn, const char *cursor);

extern const KalamCap *kalam_capability(KalamConn *conn, char kind, Oid oid);
/* of a type kept as text that the server can compare: how a column of it is written; else NULL */
extern const KalamCap *kalam_compared(KalamConn *conn, Oid typid);
extern const char *kalam_server_fact(KalamConn *conn, const char *name); /* 'info' rows; NULL if absent */

/* ---------- kalam_transaction.c ---------- */
/* in an autocommit, top-level, READ COMMITTED statement with nothing open remotely? */
extern bool kalam_transaction_is_lone(KalamConn *conn);
/* number that stands for this executor state's snapshot on the server (see protocol: snap) */
extern int	kalam_snapshot_number(KalamConn *conn, EState *estate);

/*
 * Writes collected locally and not yet sent.  flush sends them (commit: may be
 * the remote transaction's last words, so KALAM_REQ_COMMIT may be set);
 * discard forgets them, at abort, and must not fail.
 */
typedef struct KalamPending
{
	dlist_node	node;
	KalamConn  *conn;
	int			nestlevel;		/* transaction nest level it was made at */
	void		(*flush) (struct KalamPending *pending, bool commit);
	void		(*discard) (struct KalamPending *pending);
} KalamPending;

extern void kalam_pending_add(KalamPending *pending);
extern void kalam_pending_remove(KalamPending *pending);
extern void kalam_pending_flush_all(KalamConn *conn);	/* NULL: every connection */
/* those of its connection that were added before it */
extern void kalam_pending_flush_before(KalamPending *pending);

/* ---------- kalam_deparse.c: names, for statements of all kinds ---------- */
extern const char *kalam_quote(const char *ident);	/* always quoted, for the server */
extern void kalam_deparse_table(StringInfo buf, KalamTable *table);	/* "ns"."t" */

/* ---------- kalam_plan.c, kalam_scan.c: FDW callbacks for reading ---------- */
extern void kalam_plan_routine(FdwRoutine *routine);
extern void kalam_scan_routine(FdwRoutine *routine);

/* ---------- kalam_ddl.c ---------- */
extern bool kalam_explaining;		/* within EXPLAIN */

/* ---------- kalam_size.c ---------- */
extern void kalam_sizes_changed(int64 rows);	/* so many rows were written at once */

/* ---------- kalam_analyze.c: FDW callback for ANALYZE ---------- */
extern void kalam_analyze_routine(FdwRoutine *routine);

/* ---------- kalam_import.c: FDW callback for IMPORT FOREIGN SCHEMA ---------- */
extern void kalam_import_routine(FdwRoutine *routine);

/* ---------- kalam_modify.c: FDW callbacks for writing ---------- */
extern void kalam_modify_routine(FdwRoutine *routine);

/* ---------- kalam_arrow.c ---------- */
typedef enum KalamLayout
{
	KALAM_BOOL, KALAM_INT16, KALAM_INT32, KALAM_INT64,
	KALAM_FLOAT32, KALAM_FLOAT64, KALAM_UTF8, KALAM_BINARY,
} KalamLayout;

extern KalamLayout kalam_layout(const char *name);	/* of a capability's layout word */

/* reading: one record batch, columns as pointers into the message */
typedef struct KalamArrowColumn
{
	KalamLayout layout;
	const uint8 *validity;		/* NULL: no nulls */
	const uint8 *values;		/* or the offsets, for utf8 and binary */
	const uint8 *data;			/* utf8 and binary */
	int64		data_len;
} KalamArrowColumn;

typedef struct KalamArrowBatch
{
	int64		nrows;
	int			ncols;
	KalamArrowColumn *cols;		/* palloc'd, reused */
} KalamArrowBatch;

/* raise 08P01 on anything malformed; every offset and length is checked */
extern int	kalam_arrow_read_schema(const char *msg, int len, KalamLayout *layouts, int max);
extern void kalam_arrow_read_batch(const char *msg, int len, const KalamLayout *layouts, int ncols,
								   KalamArrowBatch *batch);

/* writing: a builder that collects rows column by column, then one IPC stream */
typedef struct KalamArrowBuilder KalamArrowBuilder;
extern KalamArrowBuilder *kalam_arrow_builder(MemoryContext cxt, int ncols, const KalamLayout *layouts);
extern void kalam_arrow_append_null(KalamArrowBuilder *b, int col);
extern void kalam_arrow_append(KalamArrowBuilder *b, int col, const void *data, int len); /* fixed: len ignored */
extern int64 kalam_arrow_rows(KalamArrowBuilder *b);	/* rows in column 0 */
extern int64 kalam_arrow_bytes(KalamArrowBuilder *b);
extern void kalam_arrow_finish(KalamArrowBuilder *b, StringInfo out);	/* writes the stream, resets the builder */

/* ---------- kalam_datum.c: Datum to and from storage values ---------- */
/* how one column or parameter travels; made once per scan or statement */
typedef struct KalamConverter
{
	Oid			typid;
	int32		typmod;
	KalamLayout layout;
	bool		as_text;		/* through the type's input/output function */
	Oid			wire_oid;		/* type OID announced for parameters: typid, or text */
	FmgrInfo	in;				/* input or receive function */
	FmgrInfo	out;			/* output or send function */
	Oid			ioparam;
	int16		typlen;
	bool		typbyval;
	struct KalamConverter *element; /* of an array parameter; else NULL */
} KalamConverter;

extern void kalam_converter(KalamConverter *c, KalamConn *conn, Oid typid, int32 typmod);
/* the same for a statement's parameter: an array travels as one, where its elements have types of the server */
extern void kalam_parameter_converter(KalamConverter *c, KalamConn *conn, Oid typid, int32 typmod);
/* one field of a DataRow in binary; remote_oid from PQftype */
extern Datum kalam_from_binary(KalamConverter *c, Oid remote_oid, const char *value, int len);
extern void kalam_to_arrow(KalamConverter *c, KalamArrowBuilder *b, int col, Datum value, bool isnull);
/* parameter in binary (or text) form, palloc'd */
extern char *kalam_to_param(KalamConverter *c, Datum value, int *len, int *format);
extern int	kalam_set_transmission_modes(void);		/* DateStyle &c. for text output; undo with AtEOXact_GUC */
extern void kalam_reset_transmission_modes(int nestlevel);

#endif							/* KALAM_H */
