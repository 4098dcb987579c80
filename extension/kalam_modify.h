/*
 * kalam_modify.h: state of one target table, shared by kalam_modify.c (rows),
 * kalam_target.c (what a command may do there, and with which columns) and
 * kalam_move.c (rows that leave their partition).
 */
#ifndef KALAM_MODIFY_H
#define KALAM_MODIFY_H

#include "kalam_batch.h"
#include "utils/hsearch.h"

/* One target table of one running statement: ResultRelInfo.ri_FdwState */
typedef struct KalamModify
{
	dlist_node	node;			/* in running; unlinked by on_reset at the latest */
	bool		linked;
	MemoryContext cxt;
	MemoryContextCallback on_reset;
	EState	   *estate;
	ModifyTableState *mtstate;
	ResultRelInfo *rinfo;
	KalamBatchSpec spec;
	KalamBatch *batch;
	KalamBatch *out;			/* UPDATE: rows that leave for another partition; NULL until there are any */
	struct KalamModify *into;	/* UPDATE: for rows that come from other partitions, or NULL */
	AttrNumber	seq_attno;		/* 0: the local table has no such column */
	AttrNumber	userid_attno;
	bool		with_userid;	/* INSERT: _userid is among the columns sent */
	Oid			bound_user;		/* the role, if its mapping binds it to the tenant */
	bool		shows_row;		/* somebody looks at the row after us: RETURNING, triggers, checks */
	bool		routed;			/* COPY or partition routing */
	bool		lone;			/* its last rows may wait for COMMIT */
	List	   *junk;			/* positions of the old key in the plan's rows */
	HTAB	   *changed;		/* keys already changed, where a row may come twice */
	bool		sets_tag;		/* its rows are the command's */
	bool		by_row;			/* ON CONFLICT: what became of each row must be known */
	int64		left_out;		/* rows that ON CONFLICT left out, already taken off the command's */
	struct KalamUpsertHere *here;	/* ON CONFLICT DO UPDATE that is computed here, or NULL */
	KalamReader *reader;		/* ON CONFLICT DO UPDATE ... RETURNING */
	PGresult   *row_result;
	Datum	   *values;			/* one row for the batch */
	bool	   *nulls;
} KalamModify;

/* ---------- kalam_target.c ---------- */
extern void kalam_target_routine(FdwRoutine *routine);	/* planning callbacks */
extern AttrNumber kalam_system_attno(Relation rel, const char *name);	/* 0: not a column here */
extern List *kalam_row_identity(Relation rel);	/* key columns, then _userid where it is one */
extern List *kalam_insert_columns(KalamModify *state);
extern List *kalam_update_columns(KalamModify *state);
extern void kalam_find_junk(KalamModify *state, Plan *plan);
extern bool kalam_plan_only_scans(Plan *plan);	/* cannot give one row of the table twice */
extern bool kalam_has_after_triggers(ResultRelInfo *rinfo, CmdType operation, bool row_only);
extern bool kalam_may_wait_for_commit(KalamModify *state);

/* ---------- kalam_modify.c, for kalam_upsert.c ---------- */
extern HTAB *kalam_changed_create(MemoryContext cxt);	/* a set of keys */
extern bool kalam_changed_note(KalamModify *state, HTAB *changed, KalamBatch *batch, const Datum *values);
extern void kalam_changed_forget(HTAB *changed, KalamBatch *batch, const Datum *values);
/* raises what a local table would, before anything of the row is sent */
extern void kalam_check_row(KalamModify *state, TupleTableSlot *slot);
extern void kalam_set_system_columns(KalamModify *state, TupleTableSlot *slot);

/* ---------- kalam_upsert.c ---------- */
typedef struct KalamUpsertHere KalamUpsertHere;

extern void kalam_upsert_begin(KalamModify *state, ModifyTableState *mtstate);
extern void kalam_upsert_inserted(KalamModify *state, TupleTableSlot *slot);
extern TupleTableSlot *kalam_upsert_row(KalamModify *state, TupleTableSlot *slot);
extern void kalam_upsert_flush(KalamModify *state);

/* ---------- kalam_conflict.c ---------- */
extern void kalam_conflict_routine(FdwRoutine *routine);
extern KalamConflict *kalam_conflict_create(List *private, bool returns, Relation rel);
extern void kalam_conflict_begin(KalamConflict *conflict, KalamConn *conn, EState *estate);
extern bool kalam_conflict_row(KalamModify *state, TupleTableSlot *slot);
/* ---------- kalam_modify.c, for kalam_move.c ---------- */
/* what inserts into this table: a routed INSERT, or an UPDATE that moves rows; NULL if it is none of ours */
extern KalamModify *kalam_modify_inserts(ResultRelInfo *rinfo);
/* checks a new row, and adds it to the batch */
extern void kalam_modify_insert(KalamModify *state, TupleTableSlot *slot);

/* ---------- kalam_move.c ---------- */
/* may the row stay in this partition?  23514 if it is updated as a table of its own */
extern bool kalam_row_stays(KalamModify *state, TupleTableSlot *slot);
/* to the partition where it belongs; old_key: as in the UPDATE's batch */
extern void kalam_move_row(KalamModify *state, TupleTableSlot *slot, const Datum *old_key, const bool *old_null);

#endif							/* KALAM_MODIFY_H */
