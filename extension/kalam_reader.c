/*
 * kalam_reader.c: results to rows.
 *
 * A result holds DataRows, or Arrow messages in one column: the schema first,
 * where an execution begins, then record batches.  Either way a block of rows
 * is converted at a time, column by column, and handed out row by row: so the
 * work that a column needs once is done once a block.  What a row points to
 * stays until the row after it is asked for.
 */
#include "postgres.h"

#include "executor/tuptable.h"
#include "utils/builtins.h"
#include "utils/memutils.h"

#include "kalam_read.h"

#define BLOCK_ROWS 256

struct KalamReader
{
	TupleDesc	desc;
	Relation	rel;			/* NULL: a join's, or those of a step above */
	int			ncols;			/* columns fetched; with none the result has one of NULLs */
	AttrNumber *attnos;
	KalamConverter *converters;
	bool		needs_modes;	/* some column travels as text */
	KalamLayout *layouts;		/* of the Arrow schema */
	PGresult   *res;
	int			next_row;		/* in res: of DataRows, or of messages */
	bool		arrow;
	KalamArrowBatch batch;
	int64		batch_row;		/* the next one in batch */
	int			column;			/* being converted, for error messages; -1: none */

	/* the block */
	MemoryContext block_cxt;
	Datum	  **values;			/* by column, then row */
	bool	  **nulls;
	int			nrows;
	int			at;
};

static void
remote_columns_differ(KalamReader *reader, int col, const char *remote)
{
	Form_pg_attribute att = TupleDescAttr(reader->desc, reader->attnos[col] - 1);
	char	   *local = format_type_with_typemod(att->atttypid, att->atttypmod);

	if (reader->rel == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_FDW_INVALID_DATA_TYPE),
				 errmsg("KalamDB computes column %d of its answer as %s instead of %s", col + 1, remote, local),
				 errhint("Columns may have other types there than here: IMPORT FOREIGN SCHEMA again.")));
	ereport(ERROR,
			(errcode(ERRCODE_FDW_COLUMN_NAME_NOT_FOUND),
			 errmsg("column \"%s\" of foreign table \"%s\" differs from the remote column", NameStr(att->attname),
					RelationGetRelationName(reader->rel)),
			 errdetail("It is of type %s here, and %s there.", local, remote),
			 errhint("ALTER FOREIGN TABLE ... ALTER COLUMN ... TYPE, or IMPORT FOREIGN SCHEMA again.")));
}

/* ---------- creating ---------- */

static void
prepare_columns(KalamReader *reader, KalamConn *conn, List *attrs)
{
	for (int i = 0; i < reader->ncols; i++)
	{
		Form_pg_attribute att = TupleDescAttr(reader->desc, list_nth_int(attrs, i) - 1);

		reader->attnos[i] = att->attnum;
		kalam_converter(&reader->converters[i], conn, att->atttypid, att->atttypmod);
		reader->needs_modes |= reader->converters[i].as_text;
		reader->values[i] = palloc(sizeof(Datum) * BLOCK_ROWS);
		reader->nulls[i] = palloc(sizeof(bool) * BLOCK_ROWS);
	}
}

KalamReader *
kalam_reader_create(MemoryContext cxt, TupleDesc desc, Relation rel, KalamConn *conn, List *attrs)
{
	MemoryContext old = MemoryContextSwitchTo(cxt);
	KalamReader *reader = palloc0(sizeof(KalamReader));
	int			n = list_length(attrs);

	reader->desc = desc;
	reader->rel = rel;
	reader->ncols = n;
	reader->column = -1;
	reader->attnos = palloc(sizeof(AttrNumber) * Max(n, 1));
	reader->converters = palloc(sizeof(KalamConverter) * Max(n, 1));
	reader->layouts = palloc(sizeof(KalamLayout) * Max(n, 1));
	reader->values = palloc(sizeof(Datum *) * Max(n, 1));
	reader->nulls = palloc(sizeof(bool *) * Max(n, 1));
	/* never reallocated: the most columns there can be are known */
	reader->batch.cols = palloc(sizeof(KalamArrowColumn) * Max(n, 1));
	reader->batch.ncols = Max(n, 1);
	reader->block_cxt = AllocSetContextCreate(cxt, "KalamDB rows", ALLOCSET_DEFAULT_SIZES);
	prepare_columns(reader, conn, attrs);
	MemoryContextSwitchTo(old);
	return reader;
}

/* ---------- a result ---------- */

KALAM_NORETURN static void wrong_number(int has, int wants);

static void
wrong_number(int has, int wants)
{
	ereport(ERROR,
			(errcode(ERRCODE_PROTOCOL_VIOLATION),
			 errmsg("KalamDB sent %d columns instead of %d", has, wants)));
}

/* DataRows: every field as announced must be readable. */
static void
check_fields(KalamReader *reader)
{
	int			wants = Max(reader->ncols, 1);

	if (PQnfields(reader->res) != wants)
		wrong_number(PQnfields(reader->res), wants);
	for (int i = 0; i < reader->ncols; i++)
	{
		if (PQfformat(reader->res, i) != 1)
			ereport(ERROR,
					(errcode(ERRCODE_PROTOCOL_VIOLATION),
					 errmsg("KalamDB sent text where binary values were asked for")));
		if (!kalam_converter_accepts(&reader->converters[i], PQftype(reader->res, i)))
			remote_columns_differ(reader, i, format_type_be(PQftype(reader->res, i)));
	}
}

static void
take_schema(KalamReader *reader)
{
	int			wants = Max(reader->ncols, 1);
	int			n;

	if (PQntuples(reader->res) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_PROTOCOL_VIOLATION),
				 errmsg("KalamDB sent an Arrow result without its schema")));
	n = kalam_arrow_read_schema(PQgetvalue(reader->res, 0, 0), PQgetlength(reader->res, 0, 0), reader->layouts, wants);
	if (n != wants)
		wrong_number(n, wants);
	for (int i = 0; i < reader->ncols; i++)
	{
		if (reader->layouts[i] != reader->converters[i].layout)
			remote_columns_differ(reader, i, kalam_layout_name(reader->layouts[i]));
	}
	reader->next_row = 1;
}

void
kalam_reader_take(KalamReader *reader, PGresult *res, bool first)
{
	bool		arrow = PQnfields(res) == 1 && PQftype(res, 0) == KALAM_ARROW_OID;

	reader->res = res;
	reader->next_row = 0;
	reader->batch.nrows = 0;
	reader->batch_row = 0;
	reader->nrows = reader->at = 0;
	if (!first && arrow != reader->arrow)
		ereport(ERROR,
				(errcode(ERRCODE_PROTOCOL_VIOLATION),
				 errmsg("KalamDB changed the form of a result between its chunks")));
	reader->arrow = arrow;
	if (!arrow)
		check_fields(reader);
	else if (first)
		take_schema(reader);
}

void
kalam_reader_clear(KalamReader *reader)
{
	reader->res = NULL;
	reader->nrows = reader->at = 0;
}

/* ---------- blocks ---------- */

static void
conversion_context(void *arg)
{
	KalamReader *reader = arg;

	if (reader->column >= 0 && reader->rel == NULL)
		errcontext("column %d of KalamDB's answer", reader->column + 1);
	else if (reader->column >= 0)
		errcontext("column \"%s\" of foreign table \"%s\"",
				   NameStr(TupleDescAttr(RelationGetDescr(reader->rel), reader->attnos[reader->column] - 1)->attname),
				   RelationGetRelationName(reader->rel));
}

/* Columns of the next nrows DataRows. */
static void
convert_fields(KalamReader *reader)
{
	for (int i = 0; i < reader->ncols; i++)
	{
		Oid			type = PQftype(reader->res, i);

		reader->column = i;
		for (int row = 0; row < reader->nrows; row++)
		{
			int			at = reader->next_row + row;

			reader->nulls[i][row] = PQgetisnull(reader->res, at, i);
			if (!reader->nulls[i][row])
				reader->values[i][row] = kalam_from_binary(&reader->converters[i], type,
														   PQgetvalue(reader->res, at, i),
														   PQgetlength(reader->res, at, i));
		}
	}
	reader->next_row += reader->nrows;
}

/* Columns of the batch's next nrows rows. */
static void
convert_batch(KalamReader *reader)
{
	for (int i = 0; i < reader->ncols; i++)
	{
		reader->column = i;
		kalam_block_from_arrow(&reader->converters[i], &reader->batch.cols[i], reader->batch_row, reader->nrows,
							   reader->values[i], reader->nulls[i]);
	}
	reader->batch_row += reader->nrows;
}

/* How many rows the next block has; reads the next batch where need be. */
static int
rows_at_hand(KalamReader *reader)
{
	if (!reader->arrow)
		return Min(PQntuples(reader->res) - reader->next_row, BLOCK_ROWS);
	while (reader->batch_row == reader->batch.nrows)
	{
		if (reader->next_row == PQntuples(reader->res))
			return 0;
		kalam_arrow_read_batch(PQgetvalue(reader->res, reader->next_row, 0),
							   PQgetlength(reader->res, reader->next_row, 0),
							   reader->layouts, Max(reader->ncols, 1), &reader->batch);
		reader->next_row++;
		reader->batch_row = 0;
	}
	return (int) Min(reader->batch.nrows - reader->batch_row, BLOCK_ROWS);
}

static void
convert_block(KalamReader *reader)
{
	ErrorContextCallback callback = {error_context_stack, conversion_context, reader};
	int			nestlevel = reader->needs_modes ? kalam_set_transmission_modes() : 0;

	error_context_stack = &callback;
	if (reader->arrow)
		convert_batch(reader);
	else
		convert_fields(reader);
	reader->column = -1;
	error_context_stack = callback.previous;
	if (reader->needs_modes)
		kalam_reset_transmission_modes(nestlevel);
}

static bool
next_block(KalamReader *reader)
{
	MemoryContext old;

	if (reader->res == NULL)
		return false;
	reader->at = 0;
	reader->nrows = rows_at_hand(reader);
	if (reader->nrows == 0)
		return false;
	MemoryContextReset(reader->block_cxt);
	old = MemoryContextSwitchTo(reader->block_cxt);
	convert_block(reader);
	MemoryContextSwitchTo(old);
	return true;
}

bool
kalam_reader_next(KalamReader *reader, TupleTableSlot *slot)
{
	if (reader->at >= reader->nrows && !next_block(reader))
		return false;
	ExecClearTuple(slot);
	memset(slot->tts_isnull, true, slot->tts_tupleDescriptor->natts * sizeof(bool));
	for (int i = 0; i < reader->ncols; i++)
	{
		int			attr = reader->attnos[i] - 1;

		slot->tts_values[attr] = reader->values[i][reader->at];
		slot->tts_isnull[attr] = reader->nulls[i][reader->at];
	}
	reader->at++;
	ExecStoreVirtualTuple(slot);
	return true;
}
