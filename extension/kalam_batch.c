/*
 * kalam_batch.c: rows on their way to the server.
 *
 * What the callers may rely on: a row is copied when it is added, so slots and
 * tuples may be reused at once; a batch that fails to be sent stays failed, and
 * every later use raises the same error again.  That matters when a query
 * inside an exception block of a function sends the rows of the statement
 * outside: the block may swallow the error, the outer statement must not.
 *
 * A full batch is sent without waiting for the answer: it comes in while the
 * next one is filled, and is taken before that one goes out, or when anything
 * else is to be done on the connection.
 *
 * A batch and all it holds live in one memory context.  When that goes, by an
 * error or otherwise, the batch takes itself off the list of pending writes.
 */
#include "postgres.h"

#include "access/detoast.h"
#include "kalam_batch.h"
#include "kalam_core.h"
#include "lib/stringinfo.h"
#include "utils/datum.h"
#include "utils/memutils.h"

#define BATCH_DEFAULT_ROWS 10000
#define BATCH_MAX_BYTES (4 * 1024 * 1024)

struct KalamBatch
{
	KalamPending pending;		/* first: the list hands it back to us */
	bool		listed;			/* on the list of pending writes */
	bool		detached;		/* outlives its statement */
	KalamBatchSpec spec;		/* rel and estate: not once detached */
	char	   *relname;
	MemoryContext cxt;			/* everything of this batch */
	MemoryContext row_cxt;		/* the held row and conversions; reset often */
	MemoryContextCallback on_reset;
	char	   *sql_rows;		/* FROM ARROW form */
	char	   *sql_values;		/* VALUES form, or NULL */
	int			ncols;
	int			nkeys;			/* the last of them */
	KalamConverter *converters;
	bool		needs_modes;	/* some column travels as text */
	KalamArrowBuilder *builder; /* made with the second row of an INSERT */
	Datum	   *held;			/* first row of an INSERT */
	bool	   *held_null;
	int64		rows;
	int64		sent;
	int64		affected;		/* of those */
	KalamAhead *ahead;			/* rows were sent whose answer was not taken yet, */
	int64		ahead_rows;		/* so many */
	MemoryContext ahead_cxt;
	MemoryContext result_cxt;	/* where the result of one row is wanted; else NULL */
	PGresult   *result;
	int			max_rows;
	ErrorData  *error;			/* of the flush that failed */
};

static int64 batch_flush(KalamBatch *batch, bool commit, bool ahead);
static void batch_flush_pending(KalamPending *pending, bool commit);
static void batch_discard(KalamPending *pending);

/* ---------- text ---------- */

static void
append_columns(StringInfo buf, Oid relid, List *attnos)
{
	const char *separator = "";
	ListCell   *lc;

	appendStringInfoChar(buf, '(');
	foreach(lc, attnos)
	{
		appendStringInfo(buf, "%s%s", separator,
						 kalam_quote(kalam_remote_column(relid, lfirst_int(lc))));
		separator = ", ";
	}
	appendStringInfoChar(buf, ')');
}

static void
append_parameters(StringInfo buf, int before, int n)
{
	appendStringInfoString(buf, " VALUES (");
	for (int i = 1; i <= n; i++)
		appendStringInfo(buf, "%s$%d", i == 1 ? "" : ", ", before + i);
	appendStringInfoChar(buf, ')');
}

static void
append_conflict(StringInfo buf, const KalamBatchSpec *spec, bool by_row)
{
	ListCell   *lc;

	if (spec->skip_conflicts)
		appendStringInfoString(buf, " ON CONFLICT DO NOTHING");
	if (spec->conflict == NULL)
		return;
	appendStringInfo(buf, " %s", spec->conflict->sql);
	if (!by_row)
		return;
	foreach(lc, spec->conflict->returning)
		appendStringInfo(buf, "%s%s", lc == list_head(spec->conflict->returning) ? " RETURNING " : ", ",
						 kalam_quote(kalam_remote_column(RelationGetRelid(spec->rel), lfirst_int(lc))));
}

char *
kalam_batch_sql(const KalamBatchSpec *spec, bool by_row)
{
	StringInfoData buf;
	Oid			relid = RelationGetRelid(spec->rel);
	int			before = spec->conflict ? list_length(spec->conflict->exprs) : 0;

	initStringInfo(&buf);
	appendStringInfoString(&buf, spec->operation == CMD_INSERT ? "INSERT INTO " :
						   spec->operation == CMD_UPDATE ? "UPDATE " : "DELETE FROM ");
	kalam_deparse_table(&buf, spec->table);
	if (spec->conflict != NULL)
		appendStringInfo(&buf, " AS r%u", spec->conflict->alias);
	if (spec->operation == CMD_UPDATE)
		appendStringInfoString(&buf, " SET");
	if (spec->operation != CMD_DELETE)
	{
		appendStringInfoChar(&buf, ' ');
		append_columns(&buf, relid, spec->attnos);
	}
	if (by_row)
		append_parameters(&buf, before, list_length(spec->attnos));
	else
		appendStringInfo(&buf, " FROM ARROW $%d", before + 1);
	if (spec->operation != CMD_INSERT)
	{
		appendStringInfoString(&buf, " KEY ");
		append_columns(&buf, relid, spec->keys);
	}
	append_conflict(&buf, spec, by_row);
	return buf.data;
}

/* ---------- life ---------- */

static void
batch_unlist(KalamBatch *batch)
{
	if (batch->listed)
	{
		batch->listed = false;
		kalam_pending_remove(&batch->pending);
	}
}

static void
batch_on_reset(void *arg)
{
	batch_unlist((KalamBatch *) arg);
}

static void
batch_converters(KalamBatch *batch, List *attnos, int *n)
{
	TupleDesc	desc = RelationGetDescr(batch->spec.rel);
	ListCell   *lc;

	foreach(lc, attnos)
	{
		Form_pg_attribute att = TupleDescAttr(desc, lfirst_int(lc) - 1);
		KalamConverter *c = &batch->converters[(*n)++];

		kalam_converter(c, batch->spec.conn, att->atttypid, att->atttypmod);
		batch->needs_modes |= c->as_text;
	}
}

KalamBatch *
kalam_batch_create(MemoryContext parent, const KalamBatchSpec *spec)
{
	MemoryContext cxt = AllocSetContextCreate(parent, "kalam write batch", ALLOCSET_DEFAULT_SIZES);
	MemoryContext old = MemoryContextSwitchTo(cxt);
	KalamBatch *batch = palloc0(sizeof(KalamBatch));
	int			n = 0;

	batch->spec = *spec;
	batch->spec.tenant = spec->tenant ? pstrdup(spec->tenant) : NULL;
	batch->relname = pstrdup(RelationGetRelationName(spec->rel));
	batch->cxt = cxt;
	batch->row_cxt = AllocSetContextCreate(cxt, "kalam write row", ALLOCSET_DEFAULT_SIZES);
	batch->ahead_cxt = AllocSetContextCreate(cxt, "kalam rows under way", ALLOCSET_SMALL_SIZES);
	batch->pending.conn = spec->conn;
	batch->pending.flush = batch_flush_pending;
	batch->pending.discard = batch_discard;
	batch->on_reset.func = batch_on_reset;
	batch->on_reset.arg = batch;
	MemoryContextRegisterResetCallback(cxt, &batch->on_reset);

	batch->nkeys = list_length(spec->keys);
	batch->ncols = list_length(spec->attnos) + batch->nkeys;
	batch->converters = palloc0(sizeof(KalamConverter) * batch->ncols);
	batch_converters(batch, spec->attnos, &n);
	batch_converters(batch, spec->keys, &n);
	batch->sql_rows = kalam_batch_sql(spec, false);
	if (spec->operation == CMD_INSERT)
		batch->sql_values = kalam_batch_sql(spec, true);
	batch->max_rows = spec->table->batch_size > 0 ? spec->table->batch_size : BATCH_DEFAULT_ROWS;
	MemoryContextSwitchTo(old);
	return batch;
}

void
kalam_batch_free(KalamBatch *batch)
{
	MemoryContextDelete(batch->cxt);
}

int64
kalam_batch_rows(KalamBatch *batch)
{
	return batch->rows;
}

int64
kalam_batch_sent(KalamBatch *batch)
{
	return batch->sent;
}

int64
kalam_batch_affected(KalamBatch *batch)
{
	return batch->affected;
}

/* ---------- collecting ---------- */

static void
batch_list(KalamBatch *batch)
{
	if (batch->listed)
		return;
	batch->pending.nestlevel = GetCurrentTransactionNestLevel();
	kalam_pending_add(&batch->pending);
	batch->listed = true;
}

/*
 * The first row of an INSERT is held as it is: if no second one comes it
 * travels as parameters.  Detoasted, since it may outlive its snapshot.
 */
static void
batch_hold(KalamBatch *batch, const Datum *values, const bool *isnull)
{
	MemoryContext old = MemoryContextSwitchTo(batch->row_cxt);

	batch->held = palloc(sizeof(Datum) * batch->ncols);
	batch->held_null = palloc(sizeof(bool) * batch->ncols);
	for (int i = 0; i < batch->ncols; i++)
	{
		KalamConverter *c = &batch->converters[i];

		batch->held_null[i] = isnull[i];
		if (isnull[i])
			batch->held[i] = (Datum) 0;
		else if (c->typlen == -1)
			batch->held[i] = PointerGetDatum(PG_DETOAST_DATUM_COPY(values[i]));
		else
			batch->held[i] = datumCopy(values[i], c->typbyval, c->typlen);
	}
	MemoryContextSwitchTo(old);
}

/* Appends a row to the builder; what conversion leaves behind is the caller's to clear. */
static void
batch_append(KalamBatch *batch, const Datum *values, const bool *isnull)
{
	int			nestlevel = 0;

	if (batch->builder == NULL)
	{
		KalamLayout *layouts = palloc(sizeof(KalamLayout) * batch->ncols);

		for (int i = 0; i < batch->ncols; i++)
			layouts[i] = batch->converters[i].layout;
		batch->builder = kalam_arrow_builder(batch->cxt, batch->ncols, layouts);
	}
	if (batch->needs_modes)
		nestlevel = kalam_set_transmission_modes();
	for (int i = 0; i < batch->ncols; i++)
		kalam_to_arrow(&batch->converters[i], batch->builder, i, values[i], isnull[i]);
	if (batch->needs_modes)
		kalam_reset_transmission_modes(nestlevel);
}

static void
batch_check(KalamBatch *batch)
{
	if (batch->error != NULL)
		ReThrowError(batch->error);
}

int64
kalam_batch_add(KalamBatch *batch, const Datum *values, const bool *isnull)
{
	MemoryContext old;

	batch_check(batch);
	if (batch->rows == 0 && batch->spec.operation == CMD_INSERT)
		batch_hold(batch, values, isnull);
	else
	{
		old = MemoryContextSwitchTo(batch->row_cxt);
		if (batch->held != NULL)
			batch_append(batch, batch->held, batch->held_null);
		batch_append(batch, values, isnull);
		MemoryContextSwitchTo(old);
		batch->held = NULL;
		MemoryContextReset(batch->row_cxt);
	}
	batch->rows++;
	batch_list(batch);
	if (batch->rows >= batch->max_rows ||
		(batch->builder != NULL && kalam_arrow_bytes(batch->builder) >= BATCH_MAX_BYTES))
		return batch_flush(batch, false, true);
	return 0;
}

void
kalam_batch_key_image(KalamBatch *batch, const Datum *values, StringInfo buf)
{
	MemoryContext old = MemoryContextSwitchTo(batch->row_cxt);
	int			nestlevel = batch->needs_modes ? kalam_set_transmission_modes() : 0;

	for (int i = batch->ncols - batch->nkeys; i < batch->ncols; i++)
	{
		int			len;
		int			format;
		char	   *image = kalam_to_param(&batch->converters[i], values[i], &len, &format);

		appendBinaryStringInfo(buf, (const char *) &len, sizeof(len));
		appendBinaryStringInfo(buf, image, len);
	}
	if (batch->needs_modes)
		kalam_reset_transmission_modes(nestlevel);
	MemoryContextSwitchTo(old);
	MemoryContextReset(batch->row_cxt);
}

/* ---------- sending ---------- */

/* Parameters of a request under way */
typedef struct Parameters
{
	int			n;				/* so far */
	Oid		   *types;
	const char **values;
	int		   *lengths;
	int		   *formats;
} Parameters;

/* Room for so many, and those of ON CONFLICT before them. */
static void
start_parameters(KalamBatch *batch, Parameters *p, int n)
{
	KalamConflict *conflict = batch->spec.conflict;
	KalamRequest own = {0};

	if (conflict != NULL)
	{
		ResetExprContext(conflict->econtext);
		kalam_parameters_take(&conflict->params, conflict->econtext, &own);
	}
	p->n = own.nparams;
	n += own.nparams;
	p->types = palloc(sizeof(Oid) * n);
	p->values = palloc(sizeof(char *) * n);
	p->lengths = palloc0(sizeof(int) * n);
	p->formats = palloc0(sizeof(int) * n);
	for (int i = 0; i < own.nparams; i++)
	{
		p->types[i] = own.types[i];
		p->values[i] = own.values[i];
		p->lengths[i] = own.lengths[i];
		p->formats[i] = own.formats[i];
	}
}

static void
take_row_parameters(KalamBatch *batch, Parameters *p)
{
	int			nestlevel;

	start_parameters(batch, p, batch->ncols);
	nestlevel = batch->needs_modes ? kalam_set_transmission_modes() : 0;
	for (int i = 0; i < batch->ncols; i++, p->n++)
	{
		p->types[p->n] = batch->converters[i].wire_oid;
		p->values[p->n] = batch->held_null[i] ? NULL :
			kalam_to_param(&batch->converters[i], batch->held[i], &p->lengths[p->n], &p->formats[p->n]);
	}
	if (batch->needs_modes)
		kalam_reset_transmission_modes(nestlevel);
}

static void
take_arrow_parameter(KalamBatch *batch, Parameters *p)
{
	StringInfoData stream;

	initStringInfo(&stream);
	kalam_arrow_finish(batch->builder, &stream);
	start_parameters(batch, p, 1);
	p->types[p->n] = KALAM_ARROW_OID;
	p->values[p->n] = stream.data;
	p->lengths[p->n] = stream.len;
	p->formats[p->n] = 1;
	p->n++;
}

static void
take_parameters(KalamBatch *batch, KalamRequest *req)
{
	Parameters	p;

	if (batch->held != NULL)
		take_row_parameters(batch, &p);
	else
		take_arrow_parameter(batch, &p);
	req->sql = batch->held != NULL ? batch->sql_values : batch->sql_rows;
	req->nparams = p.n;
	req->types = p.types;
	req->values = p.values;
	req->lengths = p.lengths;
	req->formats = p.formats;
}

/* Every row of an UPDATE or DELETE was read and locked by this statement: it must be there. */
static void
check_affected(KalamBatch *batch, int64 rows, int64 affected)
{
	if (batch->spec.operation == CMD_INSERT || affected == rows)
		return;
	if (batch->spec.may_vanish)
		ereport(ERROR,
				(errcode(ERRCODE_TRIGGERED_DATA_CHANGE_VIOLATION),
				 errmsg("row of \"%s\" was already modified by an operation triggered by the current command",
						batch->relname),
				 errhint("Consider using an AFTER trigger instead of a BEFORE trigger to propagate changes to other rows.")));
	ereport(ERROR,
			(errcode(ERRCODE_FDW_ERROR),
			 errmsg("server changed " INT64_FORMAT " of " INT64_FORMAT " rows of \"%s\" that this statement had locked",
					affected, rows, batch->relname)));
}

static void
make_request(KalamBatch *batch, KalamRequest *req, uint32 flags)
{
	req->flags = KALAM_REQ_WRITE | flags;
	req->tenant = batch->spec.tenant;
	/* the statement's own writes must not show in a snapshot that its scans take later */
	if (!batch->detached && batch->spec.estate->es_snapshot != NULL &&
		list_length(batch->spec.estate->es_range_table) > 1)
		req->snapshot = kalam_snapshot_number(batch->spec.conn, batch->spec.estate);
	if (batch->spec.conflict != NULL)
		req->rules = batch->spec.conflict->rules;
	take_parameters(batch, req);
}

static PGresult *
send_request(KalamBatch *batch, KalamRequest *req)
{
	PGresult   *res = kalam_request(batch->spec.conn, req);

	while (kalam_is_stale(res))
	{
		kalam_result_free(res);
		kalam_conflict_renew(batch->spec.conflict, batch->spec.conn, batch->spec.table, batch->spec.rel);
		req->rules = batch->spec.conflict->rules;
		res = kalam_request(batch->spec.conn, req);
	}
	return res;
}

/* Sends the rows; with commit, as the remote transaction's last statement. */
static int64
batch_send(KalamBatch *batch, bool commit)
{
	KalamRequest req = {0};
	PGresult   *res;
	int64		affected;

	make_request(batch, &req, commit ? KALAM_REQ_COMMIT : KALAM_REQ_TXN);
	if (batch->result_cxt != NULL)
		MemoryContextSwitchTo(batch->result_cxt);
	res = send_request(batch, &req);
	/* no tag: it was committed, as was learnt later, for the answer was lost */
	affected = PQcmdStatus(res)[0] ? strtoll(PQcmdTuples(res), NULL, 10) : batch->rows;
	if (batch->result_cxt != NULL)
		batch->result = res;
	else
		kalam_result_free(res);
	kalam_sizes_changed(affected);
	check_affected(batch, batch->rows, affected);
	return affected;
}

/* Sends the rows, whose answer is taken when the next ones are ready, or when anybody asks for it. */
static void
batch_send_ahead(KalamBatch *batch)
{
	KalamRequest req = {0};

	make_request(batch, &req, KALAM_REQ_TXN);
	MemoryContextSwitchTo(batch->ahead_cxt);
	batch->ahead = kalam_request_ahead(batch->spec.conn, &req);
	batch->ahead_rows = batch->rows;
}

static int64
wait_ahead(KalamBatch *batch)
{
	KalamAhead *ahead = batch->ahead;
	PGresult   *res;
	int64		affected;

	if (ahead == NULL)
		return 0;
	batch->ahead = NULL;
	res = kalam_ahead_wait(ahead);
	affected = strtoll(PQcmdTuples(res), NULL, 10);
	kalam_sizes_changed(affected);
	check_affected(batch, batch->ahead_rows, affected);
	kalam_result_free(res);
	MemoryContextReset(batch->ahead_cxt);
	return affected;
}

/* Not the first: only with it does the remote transaction begin, perhaps on a new connection. */
static bool
may_go_ahead(KalamBatch *batch)
{
	return batch->sent > 0 && batch->spec.conflict == NULL && !batch->spec.skip_conflicts && batch->spec.conn->open;
}

static int64
batch_flush(KalamBatch *batch, bool commit, bool ahead)
{
	MemoryContext caller = CurrentMemoryContext;
	KalamConn  *conn = batch->spec.conn;
	int			outer = conn->flush_level;
	int64		affected = 0;

	batch_check(batch);
	if (batch->rows == 0 && batch->ahead == NULL)
		return 0;
	if (batch->listed)
	{
		kalam_pending_flush_before(&batch->pending);
		conn->flush_level = batch->pending.nestlevel;
	}
	batch_unlist(batch);
	PG_TRY();
	{
		MemoryContextSwitchTo(batch->row_cxt);
		affected = wait_ahead(batch);
		if (batch->rows > 0 && ahead && may_go_ahead(batch))
			batch_send_ahead(batch);
		else if (batch->rows > 0)
			affected += batch_send(batch, commit);
		MemoryContextSwitchTo(caller);
	}
	PG_CATCH();
	{
		conn->flush_level = outer;
		MemoryContextSwitchTo(batch->cxt);
		batch->error = CopyErrorData();
		MemoryContextSwitchTo(caller);
		PG_RE_THROW();
	}
	PG_END_TRY();
	conn->flush_level = outer;
	batch->sent += batch->rows;
	batch->affected += affected;
	batch->rows = 0;
	batch->held = NULL;
	MemoryContextReset(batch->row_cxt);
	if (batch->ahead != NULL)
		batch_list(batch);
	return affected;
}

int64
kalam_batch_flush(KalamBatch *batch)
{
	return batch_flush(batch, false, false);
}

PGresult *
kalam_batch_send_row(KalamBatch *batch, const Datum *values, const bool *isnull)
{
	batch_check(batch);
	batch_hold(batch, values, isnull);
	batch->rows++;
	batch->result_cxt = batch->cxt;
	batch_flush(batch, false, false);
	batch->result_cxt = NULL;
	return batch->result;
}

void
kalam_batch_detach(KalamBatch *batch)
{
	batch_check(batch);
	batch->detached = true;
	MemoryContextSetParent(batch->cxt, TopTransactionContext);
}

static void
batch_flush_pending(KalamPending *pending, bool commit)
{
	KalamBatch *batch = (KalamBatch *) pending;

	batch_flush(batch, commit, false);
	if (batch->detached)
		kalam_batch_free(batch);
}

/* The transaction level that made these rows is gone. Must not fail. */
static void
batch_discard(KalamPending *pending)
{
	KalamBatch *batch = (KalamBatch *) pending;

	batch_unlist(batch);
	batch->rows = 0;
	batch->ahead = NULL;		/* its answer is thrown away with its memory */
	if (batch->detached)
		kalam_batch_free(batch);
}
