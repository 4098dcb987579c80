/*
 * kalam_read.h: what the files of the reading half know of each other.
 *
 * kalam_shippable.c     may this expression be sent?
 * kalam_deparse.c       print it
 * kalam_estimate.c      how many rows, at what cost
 * kalam_plan.c          paths and plans
 * kalam_scan.c          running a plan
 * kalam_arrow.c         record batches in
 * kalam_arrow_writer.c  record batches out
 * kalam_datum.c         values
 */
#ifndef KALAM_READ_H
#define KALAM_READ_H

#include "kalam_arrow.h"

/* ---------- kalam_datum.c ---------- */
/* n values of an Arrow column from row start on; what they point to is in the current context */
extern void kalam_block_from_arrow(KalamConverter *c, const KalamArrowColumn *col, int64 start, int n,
								   Datum *values, bool *nulls);
/* can fields of this type be read as the converter's type? */
extern bool kalam_converter_accepts(const KalamConverter *c, Oid remote_oid);

#endif							/* KALAM_READ_H */
