/*
 * kalam_arrow_writer.c: collecting rows and writing them as one Arrow stream.
 *
 * A builder keeps one set of buffers per column, in the memory context it was
 * made in.  kalam_arrow_finish writes Schema, one RecordBatch and the end
 * marker, and empties the buffers for the next rows.
 *
 * Flatbuffers are usually written from the back; here they are written from
 * the front, each table before what it refers to, and the references filled in
 * as their targets come.  The layout of the tables is fixed, so that is simple.
 */
#include "postgres.h"

#include "kalam_arrow.h"
#include "lib/stringinfo.h"

typedef struct BuilderColumn
{
	KalamLayout layout;
	int64		rows;
	int64		nulls;
	StringInfoData validity;	/* empty until the first null */
	StringInfoData values;		/* or the offsets, without the first, which is 0 */
	StringInfoData data;
} BuilderColumn;

struct KalamArrowBuilder
{
	MemoryContext cxt;
	int			ncols;
	BuilderColumn *cols;
};

/* ---------- collecting ---------- */

static bool
has_data(KalamLayout layout)
{
	return layout == KALAM_UTF8 || layout == KALAM_BINARY;
}

KalamArrowBuilder *
kalam_arrow_builder(MemoryContext cxt, int ncols, const KalamLayout *layouts)
{
	MemoryContext old = MemoryContextSwitchTo(cxt);
	KalamArrowBuilder *b = palloc0(sizeof(KalamArrowBuilder));

	b->cxt = cxt;
	b->ncols = ncols;
	b->cols = palloc0(sizeof(BuilderColumn) * Max(ncols, 1));
	for (int i = 0; i < ncols; i++)
	{
		b->cols[i].layout = layouts[i];
		initStringInfo(&b->cols[i].validity);
		initStringInfo(&b->cols[i].values);
		initStringInfo(&b->cols[i].data);
	}
	MemoryContextSwitchTo(old);
	return b;
}

/* Sets bit i of a bitmap that grows with it. */
static void
put_bit(StringInfo bits, int64 i, bool value)
{
	if (i / 8 >= bits->len)
		appendStringInfoChar(bits, '\0');
	if (value)
		bits->data[i / 8] |= 1 << (i % 8);
}

static void
put_validity(BuilderColumn *col, bool valid)
{
	if (valid && col->nulls == 0)
		return;
	if (col->nulls == 0)
	{
		for (int64 i = 0; i < col->rows; i++)
			put_bit(&col->validity, i, true);
	}
	put_bit(&col->validity, col->rows, valid);
	if (!valid)
		col->nulls++;
}

static void
put_offset(BuilderColumn *col)
{
	int32		end = col->data.len;

	appendBinaryStringInfo(&col->values, (const char *) &end, sizeof(end));
}

void
kalam_arrow_append_null(KalamArrowBuilder *b, int i)
{
	static const char zero[8] = {0};
	BuilderColumn *col = &b->cols[i];

	put_validity(col, false);
	if (has_data(col->layout))
		put_offset(col);
	else if (col->layout == KALAM_BOOL)
		put_bit(&col->values, col->rows, false);
	else
		appendBinaryStringInfo(&col->values, zero, kalam_layout_width(col->layout));
	col->rows++;
}

void
kalam_arrow_append(KalamArrowBuilder *b, int i, const void *data, int len)
{
	BuilderColumn *col = &b->cols[i];

	put_validity(col, true);
	if (has_data(col->layout))
	{
		appendBinaryStringInfo(&col->data, data, len);
		put_offset(col);
	}
	else if (col->layout == KALAM_BOOL)
		put_bit(&col->values, col->rows, *(const bool *) data);
	else
		appendBinaryStringInfo(&col->values, data, kalam_layout_width(col->layout));
	col->rows++;
}

int64
kalam_arrow_rows(KalamArrowBuilder *b)
{
	return b->ncols > 0 ? b->cols[0].rows : 0;
}

int64
kalam_arrow_bytes(KalamArrowBuilder *b)
{
	int64		bytes = 0;

	for (int i = 0; i < b->ncols; i++)
		bytes += b->cols[i].validity.len + b->cols[i].values.len + b->cols[i].data.len;
	return bytes;
}

/* ---------- flatbuffers ---------- */

/* a flatbuffer under construction: positions are relative to start */
typedef struct Writer
{
	StringInfo	out;
	int			start;
} Writer;

static int
here(Writer *w)
{
	return w->out->len - w->start;
}

static void
put_zeros(Writer *w, int n)
{
	enlargeStringInfo(w->out, n);
	memset(w->out->data + w->out->len, 0, n);
	w->out->len += n;
}

static void
align(Writer *w, int to)
{
	put_zeros(w, (to - here(w) % to) % to);
}

static void
put_u16(Writer *w, uint16 value)
{
	uint8		bytes[] = {value & 0xFF, value >> 8};

	appendBinaryStringInfo(w->out, (const char *) bytes, 2);
}

/* little-endian, at a position already written */
static void
set_int(Writer *w, int pos, int width, uint64 value)
{
	char	   *p = w->out->data + w->start + pos;

	for (int i = 0; i < width; i++)
		p[i] = (char) (value >> (8 * i));
}

static void
put_int(Writer *w, int width, uint64 value)
{
	int			pos = here(w);

	put_zeros(w, width);
	set_int(w, pos, width, value);
}

/* The reference at pos means what is written next. */
static void
refer_here(Writer *w, int pos, int alignment)
{
	align(w, alignment);
	set_int(w, pos, 4, here(w) - pos);
}

/*
 * Writes a table of n fields of the given sizes (0: left out) for the
 * reference at pos, values still zero, and tells where each field is.
 */
static void
put_table(Writer *w, int pos, int n, const uint8 *sizes, int *fields)
{
	int			size = 4;
	int			vtable;
	int			table;

	for (int i = 0; i < n; i++)
	{
		if (sizes[i] == 0)
			continue;
		size = TYPEALIGN(sizes[i], size);
		fields[i] = size;
		size += sizes[i];
	}
	align(w, 2);
	vtable = here(w);
	put_u16(w, 4 + 2 * n);
	put_u16(w, size);
	for (int i = 0; i < n; i++)
		put_u16(w, sizes[i] ? fields[i] : 0);
	align(w, 8);
	table = here(w);
	set_int(w, pos, 4, table - pos);
	put_int(w, 4, table - vtable);
	put_zeros(w, size - 4);
	for (int i = 0; i < n; i++)
		fields[i] += table;
}

/* Length of a vector whose elements follow, aligned, for the reference at pos. */
static void
put_vector(Writer *w, int pos, int count, int alignment)
{
	while ((here(w) + 4) % alignment != 0 || here(w) % 4 != 0)
		put_zeros(w, 1);
	set_int(w, pos, 4, here(w) - pos);
	put_int(w, 4, count);
}

/* ---------- messages ---------- */

/* Begins a message; fields of the Message table. */
static Writer
begin_message(StringInfo out, int kind, int64 body_len, int *fields)
{
	static const uint8 sizes[MESSAGE_FIELDS] = {2, 1, 4, 8};
	Writer		prefix = {out, out->len};
	Writer		w;

	put_int(&prefix, 4, ARROW_CONTINUATION);
	put_int(&prefix, 4, 0);		/* length: end_metadata knows */
	w.out = out;
	w.start = out->len;
	put_int(&w, 4, 0);			/* reference to the root */
	put_table(&w, 0, MESSAGE_FIELDS, sizes, fields);
	set_int(&w, fields[MESSAGE_VERSION], 2, ARROW_V5);
	set_int(&w, fields[MESSAGE_HEADER_TYPE], 1, kind);
	set_int(&w, fields[MESSAGE_BODY_LENGTH], 8, body_len);
	return w;
}

static void
end_metadata(Writer *w)
{
	align(w, 8);
	set_int(w, -4, 4, here(w));
}

static void
put_type(Writer *w, const int *field, KalamLayout layout)
{
	static const uint8 int_sizes[INT_FIELDS] = {4, 1};
	static const uint8 float_sizes[FLOAT_FIELDS] = {2};
	int			fields[INT_FIELDS] = {0};
	int			kind = 0;

	switch (layout)
	{
		case KALAM_INT16:
		case KALAM_INT32:
		case KALAM_INT64:
			kind = ARROW_INT;
			put_table(w, field[FIELD_TYPE], INT_FIELDS, int_sizes, fields);
			set_int(w, fields[INT_BIT_WIDTH], 4, 8 * kalam_layout_width(layout));
			set_int(w, fields[INT_IS_SIGNED], 1, 1);
			break;
		case KALAM_FLOAT32:
		case KALAM_FLOAT64:
			kind = ARROW_FLOAT;
			put_table(w, field[FIELD_TYPE], FLOAT_FIELDS, float_sizes, fields);
			set_int(w, fields[FLOAT_PRECISION], 2, layout == KALAM_FLOAT32 ? FLOAT_SINGLE : FLOAT_DOUBLE);
			break;
		case KALAM_BOOL:
			kind = ARROW_BOOL;
			put_table(w, field[FIELD_TYPE], 0, NULL, NULL);
			break;
		case KALAM_UTF8:
		case KALAM_BINARY:
			kind = layout == KALAM_UTF8 ? ARROW_UTF8 : ARROW_BINARY;
			put_table(w, field[FIELD_TYPE], 0, NULL, NULL);
			break;
	}
	set_int(w, field[FIELD_TYPE_TYPE], 1, kind);
}

static void
put_field(Writer *w, int pos, int number, KalamLayout layout)
{
	static const uint8 sizes[FIELD_FIELDS] = {4, 1, 1, 4, 0, 4};
	int			fields[FIELD_FIELDS] = {0};
	char		name[16];
	int			len = snprintf(name, sizeof(name), "c%d", number);

	put_table(w, pos, FIELD_FIELDS, sizes, fields);
	set_int(w, fields[FIELD_NULLABLE], 1, 1);
	refer_here(w, fields[FIELD_NAME], 4);
	put_int(w, 4, len);
	appendBinaryStringInfo(w->out, name, len + 1);
	put_type(w, fields, layout);
	put_vector(w, fields[FIELD_CHILDREN], 0, 4);
}

static void
put_schema(StringInfo out, KalamArrowBuilder *b)
{
	static const uint8 sizes[SCHEMA_NFIELDS] = {0, 4};
	int			message[MESSAGE_FIELDS] = {0};
	int			schema[SCHEMA_NFIELDS] = {0};
	Writer		w = begin_message(out, ARROW_SCHEMA, 0, message);
	int			elements;

	put_table(&w, message[MESSAGE_HEADER], SCHEMA_NFIELDS, sizes, schema);
	put_vector(&w, schema[SCHEMA_FIELDS], b->ncols, 4);
	elements = here(&w);
	put_zeros(&w, 4 * b->ncols);
	for (int i = 0; i < b->ncols; i++)
		put_field(&w, elements + 4 * i, i, b->cols[i].layout);
	end_metadata(&w);
}

/* The buffers of a column in the order of the format; tells how many. */
static int
column_buffers(BuilderColumn *col, StringInfo *buffers)
{
	buffers[0] = &col->validity;
	buffers[1] = &col->values;
	buffers[2] = &col->data;
	return has_data(col->layout) ? 3 : 2;
}

/* bytes of a buffer in the body, without padding; offsets get their first one there */
static int64
buffer_length(BuilderColumn *col, StringInfo buffer)
{
	return buffer->len + (buffer == &col->values && has_data(col->layout) ? 4 : 0);
}

static int64
body_length(KalamArrowBuilder *b, int *nbuffers)
{
	int64		len = 0;

	*nbuffers = 0;
	for (int i = 0; i < b->ncols; i++)
	{
		StringInfo	buffers[3];
		int			n = column_buffers(&b->cols[i], buffers);

		for (int k = 0; k < n; k++)
			len += TYPEALIGN(8, buffer_length(&b->cols[i], buffers[k]));
		*nbuffers += n;
	}
	return len;
}

static void
put_nodes(Writer *w, KalamArrowBuilder *b)
{
	for (int i = 0; i < b->ncols; i++)
	{
		put_int(w, 8, b->cols[i].rows);
		put_int(w, 8, b->cols[i].nulls);
	}
}

static void
put_buffers(Writer *w, KalamArrowBuilder *b)
{
	int64		offset = 0;

	for (int i = 0; i < b->ncols; i++)
	{
		StringInfo	buffers[3];
		int			n = column_buffers(&b->cols[i], buffers);

		for (int k = 0; k < n; k++)
		{
			int64		len = buffer_length(&b->cols[i], buffers[k]);

			put_int(w, 8, offset);
			put_int(w, 8, len);
			offset += TYPEALIGN(8, len);
		}
	}
}

static void
put_body(Writer *w, KalamArrowBuilder *b)
{
	for (int i = 0; i < b->ncols; i++)
	{
		StringInfo	buffers[3];
		int			n = column_buffers(&b->cols[i], buffers);

		for (int k = 0; k < n; k++)
		{
			if (buffer_length(&b->cols[i], buffers[k]) > buffers[k]->len)
				put_int(w, 4, 0);
			appendBinaryStringInfo(w->out, buffers[k]->data, buffers[k]->len);
			align(w, 8);
		}
	}
}

static void
put_batch(StringInfo out, KalamArrowBuilder *b)
{
	static const uint8 sizes[BATCH_FIELDS] = {8, 4, 4, 0};
	int			message[MESSAGE_FIELDS] = {0};
	int			batch[BATCH_FIELDS] = {0};
	int			nbuffers;
	int64		body_len = body_length(b, &nbuffers);
	Writer		w = begin_message(out, ARROW_RECORD_BATCH, body_len, message);

	put_table(&w, message[MESSAGE_HEADER], BATCH_FIELDS, sizes, batch);
	set_int(&w, batch[BATCH_LENGTH], 8, kalam_arrow_rows(b));
	put_vector(&w, batch[BATCH_NODES], b->ncols, 8);
	put_nodes(&w, b);
	put_vector(&w, batch[BATCH_BUFFERS], nbuffers, 8);
	put_buffers(&w, b);
	end_metadata(&w);
	put_body(&w, b);
}

static void
builder_reset(KalamArrowBuilder *b)
{
	for (int i = 0; i < b->ncols; i++)
	{
		b->cols[i].rows = 0;
		b->cols[i].nulls = 0;
		resetStringInfo(&b->cols[i].validity);
		resetStringInfo(&b->cols[i].values);
		resetStringInfo(&b->cols[i].data);
	}
}

void
kalam_arrow_finish(KalamArrowBuilder *b, StringInfo out)
{
	Writer		w = {out, out->len};

	for (int i = 1; i < b->ncols; i++)
	{
		if (b->cols[i].rows != b->cols[0].rows)
			elog(ERROR, "columns of an Arrow batch differ in length");
	}
	put_schema(out, b);
	put_batch(out, b);
	put_int(&w, 4, ARROW_CONTINUATION);
	put_int(&w, 4, 0);
	builder_reset(b);
}
