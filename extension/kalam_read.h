/*
 * kalam_read.h: what the files of the reading half know of each other.
 *
 * kalam_shippable.c     may this expression be sent?
 * kalam_deparse.c       print it
 * kalam_estimate.c      how many rows, at what cost
 * kalam_plan.c          paths and plans
 * kalam_scan.c          running a plan
 * kalam_reader.c        results to rows
 * kalam_arrow.c         record batches in
 * kalam_arrow_writer.c  record batches out
 * kalam_datum.c         values
 */
#ifndef KALAM_READ_H
#define KALAM_READ_H

#include "kalam_arrow.h"

/* ---------- kalam_shippable.c ---------- */
/* names no column of rel: computed here, and sent as a parameter */
extern bool kalam_is_parameter(RelOptInfo *rel, Expr *expr);

/* ---------- kalam_estimate.c ---------- */
/* What planning knows of one table of a query: RelOptInfo.fdw_private */
typedef struct KalamRelInfo
{
	KalamTable *table;
	KalamConn  *conn;
	List	   *keys;			/* attnums of the key, in its order */
	List	   *remote_conds;	/* RestrictInfos that are sent */
	List	   *local_conds;	/* and those that are not */
	QualCost	local_cost;
} KalamRelInfo;

/* what a scan costs that sends these RestrictInfos */
typedef struct KalamEstimate
{
	double		fetched;		/* rows that travel */
	bool		one_row;		/* the whole key is given */
	Cost		startup_cost;
	Cost		total_cost;
} KalamEstimate;

extern void kalam_estimate_size(PlannerInfo *root, RelOptInfo *rel, KalamRelInfo *info);
extern void kalam_estimate_scan(PlannerInfo *root, RelOptInfo *rel, KalamRelInfo *info, List *conds,
								KalamEstimate *estimate);

/* ---------- kalam_plan.c ---------- */
/* ForeignScan.fdw_private: the statement, attnums it fetches, and these two numbers */
typedef enum KalamPlanPart
{
	KALAM_PLAN_SQL,				/* String */
	KALAM_PLAN_ATTRS,			/* IntList */
	KALAM_PLAN_WANTED,			/* Integer: no more rows than this are wanted at first; 0: all */
	KALAM_PLAN_LOCKS,			/* Boolean: it locks what it reads */
} KalamPlanPart;

/* ---------- kalam_reader.c ---------- */
/* Turns results into rows, a block of rows at a time, column by column. */
typedef struct KalamReader KalamReader;

extern KalamReader *kalam_reader_create(MemoryContext cxt, Relation rel, KalamConn *conn, List *attrs);
/* the next result to read; first: of a new execution.  It must stay until the next one is given. */
extern void kalam_reader_take(KalamReader *reader, PGresult *res, bool first);
/* stores the next row; false at the result's end */
extern bool kalam_reader_next(KalamReader *reader, TupleTableSlot *slot);

/* ---------- kalam_datum.c ---------- */
/* n values of an Arrow column from row start on; what they point to is in the current context */
extern void kalam_block_from_arrow(KalamConverter *c, const KalamArrowColumn *col, int64 start, int n,
								   Datum *values, bool *nulls);
/* can fields of this type be read as the converter's type? */
extern bool kalam_converter_accepts(const KalamConverter *c, Oid remote_oid);

#endif							/* KALAM_READ_H */
