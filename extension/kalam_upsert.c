/*
 * kalam_upsert.c: ON CONFLICT DO UPDATE where PostgreSQL computes the change.
 *
 * So it is where an expression cannot be sent, or where the changed row must be
 * checked here: CHECK constraints, generated columns, a partition's bounds.  A
 * row is inserted if its key is free; else the row that is there is locked and
 * read, condition and new values are computed as PostgreSQL does for a local
 * table, and the change joins a batch.
 *
 * Which rows the command has inserted or changed is remembered by their keys:
 * none may be changed again.
 */
#include "postgres.h"

#include "executor/nodeModifyTable.h"
#include "miscadmin.h"
#include "utils/memutils.h"

#include "kalam_modify.h"
#include "kalam_read.h"

struct KalamUpsertHere
{
	ModifyTableState *mtstate;
	KalamBatchSpec spec;		/* of the changes */
	KalamBatch *changes;
	HTAB	   *touched;		/* keys of rows that the command has written */
	char	   *sql;			/* the row of a key, locked */
	KalamConverter *converters; /* of the key */
	Oid		   *types;
	KalamReader *reader;
	Datum	   *values;			/* one row for the batch */
	bool	   *nulls;
};

/* ---------- beginning ---------- */

static List *
stored_columns(Relation rel)
{
	List	   *attnos = NIL;

	for (AttrNumber attno = 1; attno <= RelationGetDescr(rel)->natts; attno++)
	{
		if (kalam_is_stored(TupleDescAttr(RelationGetDescr(rel), attno - 1)))
			attnos = lappend_int(attnos, attno);
	}
	return attnos;
}

/* Columns that DO UPDATE sets, without _seq, and generated ones. */
static List *
changed_columns(KalamModify *state, List *set)
{
	Relation	rel = state->spec.rel;
	List	   *attnos = NIL;
	ListCell   *lc;

	foreach(lc, stored_columns(rel))
	{
		AttrNumber	attno = lfirst_int(lc);

		if (attno != state->seq_attno &&
			(list_member_int(set, attno) ||
			 TupleDescAttr(RelationGetDescr(rel), attno - 1)->attgenerated == ATTRIBUTE_GENERATED_STORED))
			attnos = lappend_int(attnos, attno);
	}
	return attnos != NIL ? attnos : kalam_key_columns(RelationGetRelid(rel));
}

static char *
select_text(KalamModify *state, List *columns, List *keys)
{
	Oid			relid = RelationGetRelid(state->spec.rel);
	StringInfoData sql;
	ListCell   *lc;
	int			n = 0;

	initStringInfo(&sql);
	foreach(lc, columns)
		appendStringInfo(&sql, "%s%s", lc == list_head(columns) ? "SELECT " : ", ",
						 kalam_quote(kalam_remote_column(relid, lfirst_int(lc))));
	appendStringInfoString(&sql, " FROM ");
	kalam_deparse_table(&sql, state->spec.table);
	appendStringInfoString(&sql, list_length(keys) > 1 ? " WHERE (" : " WHERE ");
	foreach(lc, keys)
		appendStringInfo(&sql, "%s(%s = $%d)", lc == list_head(keys) ? "" : " AND ",
						 kalam_quote(kalam_remote_column(relid, lfirst_int(lc))), ++n);
	appendStringInfoString(&sql, list_length(keys) > 1 ? ") FOR UPDATE" : " FOR UPDATE");
	return sql.data;
}

void
kalam_upsert_begin(KalamModify *state, ModifyTableState *mtstate)
{
	MemoryContext old = MemoryContextSwitchTo(state->cxt);
	Relation	rel = state->spec.rel;
	KalamUpsertHere *here = palloc0(sizeof(KalamUpsertHere));
	List	   *keys = kalam_row_identity(rel);
	List	   *columns = stored_columns(rel);
	int			i = 0;
	ListCell   *lc;

	here->mtstate = mtstate;
	here->spec = state->spec;
	here->spec.operation = CMD_UPDATE;
	here->spec.skip_conflicts = false;
	here->spec.attnos = changed_columns(state, ((ModifyTable *) mtstate->ps.plan)->onConflictCols);
	here->spec.keys = keys;
	here->changes = kalam_batch_create(state->cxt, &here->spec);
	here->touched = kalam_changed_create(state->cxt);
	here->sql = select_text(state, columns, keys);
	here->converters = palloc0(sizeof(KalamConverter) * list_length(keys));
	here->types = palloc(sizeof(Oid) * list_length(keys));
	foreach(lc, keys)
	{
		Form_pg_attribute att = TupleDescAttr(RelationGetDescr(rel), lfirst_int(lc) - 1);

		kalam_converter(&here->converters[i], state->spec.conn, att->atttypid, att->atttypmod);
		here->types[i] = here->converters[i].wire_oid;
		i++;
	}
	here->reader = kalam_reader_create(state->cxt, RelationGetDescr(rel), rel, state->spec.conn, columns);
	here->values = palloc(sizeof(Datum) * (RelationGetDescr(rel)->natts * 2 + 1));
	here->nulls = palloc(sizeof(bool) * (RelationGetDescr(rel)->natts * 2 + 1));
	state->here = here;
	MemoryContextSwitchTo(old);
}

/* ---------- rows ---------- */

/* Puts a row's key where the batch has it, and remembers it; was it known? */
static bool
touch(KalamModify *state, TupleTableSlot *slot)
{
	KalamUpsertHere *here = state->here;
	int			n = list_length(here->spec.attnos);
	ListCell   *lc;

	foreach(lc, here->spec.keys)
	{
		here->values[n] = slot_getattr(slot, lfirst_int(lc), &here->nulls[n]);
		n++;
	}
	return kalam_changed_note(state, here->touched, here->changes, here->values);
}

/* The row was new. */
void
kalam_upsert_inserted(KalamModify *state, TupleTableSlot *slot)
{
	(void) touch(state, slot);
}

/* The row of a proposed row's key, locked; false if there is none. */
static bool
read_existing(KalamModify *state, TupleTableSlot *slot, TupleTableSlot *existing)
{
	KalamUpsertHere *here = state->here;
	int			n = list_length(here->spec.keys);
	char	  **values = palloc(sizeof(char *) * n);
	int		   *lengths = palloc0(sizeof(int) * n);
	int		   *formats = palloc0(sizeof(int) * n);
	KalamRequest req = {0};
	int			nestlevel = kalam_set_transmission_modes();

	for (int i = 0; i < n; i++)
	{
		bool		isnull;
		Datum		value = slot_getattr(slot, list_nth_int(here->spec.keys, i), &isnull);

		values[i] = isnull ? NULL : kalam_to_param(&here->converters[i], value, &lengths[i], &formats[i]);
	}
	kalam_reset_transmission_modes(nestlevel);
	req.sql = here->sql;
	req.flags = KALAM_REQ_TXN;
	req.tenant = here->spec.tenant;
	req.nparams = n;
	req.types = here->types;
	req.values = (const char *const *) values;
	req.lengths = lengths;
	req.formats = formats;
	kalam_reader_take(here->reader, kalam_request(here->spec.conn, &req), true);
	return kalam_reader_next(here->reader, existing);
}

/* The changed row joins the batch; existing tells under which key it is found. */
static void
add_change(KalamModify *state, TupleTableSlot *existing, TupleTableSlot *changed)
{
	KalamUpsertHere *here = state->here;
	int			n = 0;
	ListCell   *lc;

	(void) touch(state, changed);
	(void) touch(state, existing);	/* last, as the key that is sent */
	foreach(lc, here->spec.attnos)
	{
		here->values[n] = slot_getattr(changed, lfirst_int(lc), &here->nulls[n]);
		n++;
	}
	kalam_batch_add(here->changes, here->values, here->nulls);
}

static void
refuse_second_change(void)
{
	ereport(ERROR,
			(errcode(ERRCODE_CARDINALITY_VIOLATION),
			 errmsg("ON CONFLICT DO UPDATE command cannot affect row a second time"),
			 errhint("Ensure that no rows proposed for insertion within the same command have duplicate constrained values.")));
}

/* As ExecOnConflictUpdate does; NULL if the condition leaves the row as it is. */
static TupleTableSlot *
change_existing(KalamModify *state, TupleTableSlot *slot, TupleTableSlot *existing)
{
	ModifyTableState *mtstate = state->here->mtstate;
	OnConflictSetState *set = state->rinfo->ri_onConflict;
	ExprContext *econtext = mtstate->ps.ps_ExprContext;
	TupleConstr *constr = RelationGetDescr(state->spec.rel)->constr;
	TupleTableSlot *changed;

	econtext->ecxt_scantuple = existing;
	econtext->ecxt_innertuple = slot;
	econtext->ecxt_outertuple = NULL;
	if (!ExecQual(set->oc_WhereClause, econtext))
		return NULL;
	changed = ExecProject(set->oc_ProjInfo);
	changed->tts_tableOid = RelationGetRelid(state->spec.rel);
	ExecMaterializeSlot(changed);
	if (constr != NULL && constr->has_generated_stored)
		ExecComputeStoredGenerated(state->rinfo, state->estate, changed, CMD_UPDATE);
	kalam_set_system_columns(state, changed);
	kalam_check_row(state, changed);
	add_change(state, existing, changed);
	return changed;
}

/*
 * The proposed row's key was taken.  What the command has made of the row that
 * is there; slot itself if that one has gone meanwhile and this was inserted.
 */
TupleTableSlot *
kalam_upsert_row(KalamModify *state, TupleTableSlot *slot)
{
	TupleTableSlot *existing = state->rinfo->ri_onConflict->oc_Existing;

	while (!read_existing(state, slot, existing))
	{
		CHECK_FOR_INTERRUPTS();
		if (kalam_batch_add(state->batch, state->values, state->nulls) + kalam_batch_flush(state->batch) > 0)
		{
			kalam_upsert_inserted(state, slot);
			return slot;
		}
	}
	if (touch(state, existing))
		refuse_second_change();
	if ((existing = change_existing(state, slot, existing)) == NULL)
		kalam_changed_forget(state->here->touched, state->here->changes, state->here->values);
	return existing;
}

void
kalam_upsert_flush(KalamModify *state)
{
	if (state->here != NULL)
		kalam_batch_flush(state->here->changes);
}
