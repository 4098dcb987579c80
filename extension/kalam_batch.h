/*
 * kalam_batch.h: the write buffer between kalam_modify.c and the connection.
 *
 * A batch belongs to one statement's writes of one kind on one table.  Rows
 * are copied into it column by column; it sends itself when it is full, when
 * anything else is asked on its connection (it is a KalamPending while it
 * holds rows), and when its statement ends.
 */
#ifndef KALAM_BATCH_H
#define KALAM_BATCH_H

#include "kalam_read.h"

typedef struct KalamBatch KalamBatch;

/* ON CONFLICT DO UPDATE: kalam_conflict.c */
typedef struct KalamConflict
{
	const char *sql;			/* the clause */
	Index		alias;			/* of the target in it */
	List	   *exprs;			/* its parameters: they come before the rows' */
	KalamParameters params;
	ExprContext *econtext;
	List	   *returning;		/* columns wanted of each row; NIL: none, and rows go in batches */
	const char *rules;			/* the remote definition that it relies on, or NULL */
	List	   *set;			/* columns that it sets */
} KalamConflict;

typedef struct KalamBatchSpec
{
	CmdType		operation;		/* INSERT, UPDATE or DELETE */
	Relation	rel;
	KalamTable *table;
	KalamConn  *conn;
	const char *tenant;			/* NULL: none */
	EState	   *estate;
	List	   *attnos;			/* INSERT: columns; UPDATE: columns to set */
	List	   *keys;			/* UPDATE, DELETE: columns of the key */
	bool		skip_conflicts; /* ON CONFLICT DO NOTHING */
	KalamConflict *conflict;	/* ON CONFLICT DO UPDATE, or NULL */
	bool		may_vanish;		/* BEFORE triggers could have changed the rows */
} KalamBatchSpec;

/* text of the statement; by_row: the form with one row's values as parameters */
extern char *kalam_batch_sql(const KalamBatchSpec *spec, bool by_row);

/* kalam_conflict.c: the server has other rules than those that it relies on; 40001 if they do not do */
extern void kalam_conflict_renew(KalamConflict *conflict, KalamConn *conn, KalamTable *table, Relation rel);

extern KalamBatch *kalam_batch_create(MemoryContext parent, const KalamBatchSpec *spec);
/* values in the order of attnos, then keys; they are copied.  The rows affected if the batch was full and went out */
extern int64 kalam_batch_add(KalamBatch *batch, const Datum *values, const bool *isnull);
extern int64 kalam_batch_rows(KalamBatch *batch);	/* waiting to be sent */
extern int64 kalam_batch_sent(KalamBatch *batch);	/* sent so far */
extern int64 kalam_batch_affected(KalamBatch *batch);	/* of those sent */
/* sends one row by itself; the result is the caller's */
extern PGresult *kalam_batch_send_row(KalamBatch *batch, const Datum *values, const bool *isnull);
/* sends what waits; the rows affected */
extern int64 kalam_batch_flush(KalamBatch *batch);
/* leaves what waits to the transaction's end; the batch then frees itself */
extern void kalam_batch_detach(KalamBatch *batch);
extern void kalam_batch_free(KalamBatch *batch);
/* bytes that stand for a key, the same for the same row; appended to buf */
extern void kalam_batch_key_image(KalamBatch *batch, const Datum *values, StringInfo buf);

#endif							/* KALAM_BATCH_H */
