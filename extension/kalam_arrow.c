/*
 * kalam_arrow.c: reading Arrow IPC messages.
 *
 * One message is: the marker 0xFFFFFFFF, the length of its metadata, the
 * metadata (a flatbuffer of type Message), and a body of buffers.  Only what
 * docs/protocol.md allows is understood: eight layouts, 32-bit offsets, no
 * compression, no dictionaries.  The bytes come from outside: nothing is read
 * before its position has been compared with the message's end, and anything
 * else is 08P01.  Nothing is assumed about alignment either, since libpq hands
 * out values wherever they happened to arrive.
 *
 * Writing is in kalam_arrow_writer.c.
 */
#include "postgres.h"

#include "kalam_arrow.h"

/* a piece of memory, every position relative to its start */
typedef struct Bytes
{
	const uint8 *data;
	uint32		len;
} Bytes;

/* a flatbuffer table: where it is, and its vtable */
typedef struct Table
{
	uint32		start;
	uint32		vtable;
	uint16		vtable_size;
} Table;

/* a vector: where its elements begin, and how many there are */
typedef struct Vector
{
	uint32		start;
	uint32		count;
} Vector;

KALAM_NORETURN static void malformed(const char *what);

static void
malformed(const char *what)
{
	ereport(ERROR,
			(errcode(ERRCODE_PROTOCOL_VIOLATION),
			 errmsg("malformed Arrow message from KalamDB: %s", what)));
}

/* ---------- flatbuffers ---------- */

static const uint8 *
at(const Bytes *b, uint64 pos, uint64 len)
{
	if (pos > b->len || len > b->len - pos)
		malformed("position beyond its end");
	return b->data + pos;
}

static uint8
get_u8(const Bytes *b, uint64 pos)
{
	return *at(b, pos, 1);
}

static uint16
get_u16(const Bytes *b, uint64 pos)
{
	const uint8 *p = at(b, pos, 2);

	return p[0] | (p[1] << 8);
}

static uint32
get_u32(const Bytes *b, uint64 pos)
{
	const uint8 *p = at(b, pos, 4);

	return p[0] | (p[1] << 8) | (p[2] << 16) | ((uint32) p[3] << 24);
}

static int64
get_i64(const Bytes *b, uint64 pos)
{
	return (int64) (get_u32(b, pos) | ((uint64) get_u32(b, pos + 4) << 32));
}

/* where the reference at pos points; references only point forward */
static uint32
follow(const Bytes *b, uint64 pos)
{
	uint64		target = pos + get_u32(b, pos);

	if (target >= b->len)
		malformed("reference beyond its end");
	return (uint32) target;
}

static Table
get_table(const Bytes *b, uint64 reference)
{
	Table		t;
	int64		vtable;

	t.start = follow(b, reference);
	vtable = (int64) t.start - (int32) get_u32(b, t.start);
	if (vtable < 0 || vtable >= b->len)
		malformed("table without description");
	t.vtable = (uint32) vtable;
	t.vtable_size = get_u16(b, t.vtable);
	if (t.vtable_size < 4)
		malformed("table with a short description");
	at(b, t.vtable, t.vtable_size);
	return t;
}

/* position of a field; 0 if it has its default value */
static uint64
get_field(const Bytes *b, const Table *t, int id)
{
	uint16		offset;

	if (4 + 2 * id + 2 > t->vtable_size)
		return 0;
	offset = get_u16(b, t->vtable + 4 + 2 * id);
	return offset == 0 ? 0 : (uint64) t->start + offset;
}

static int64
field_i64(const Bytes *b, const Table *t, int id)
{
	uint64		pos = get_field(b, t, id);

	return pos ? get_i64(b, pos) : 0;
}

static int
field_u8(const Bytes *b, const Table *t, int id)
{
	uint64		pos = get_field(b, t, id);

	return pos ? get_u8(b, pos) : 0;
}

static int
field_i16(const Bytes *b, const Table *t, int id)
{
	uint64		pos = get_field(b, t, id);

	return pos ? (int16) get_u16(b, pos) : 0;
}

static Vector
field_vector(const Bytes *b, const Table *t, int id, uint32 width)
{
	uint64		pos = get_field(b, t, id);
	Vector		v = {0, 0};

	if (pos == 0)
		return v;
	v.start = follow(b, pos);
	v.count = get_u32(b, v.start);
	v.start += 4;
	at(b, v.start, (uint64) v.count * width);
	return v;
}

/* ---------- messages ---------- */

/* Opens a message of the wanted kind: its metadata, its header table and its body. */
static Table
open_message(const char *msg, int len, int kind, Bytes *meta, Bytes *body)
{
	Bytes		whole = {(const uint8 *) msg, (uint32) Max(len, 0)};
	Table		message;
	uint64		header;
	uint32		size;
	int64		body_len;

	if (get_u32(&whole, 0) != ARROW_CONTINUATION)
		malformed("no continuation marker");
	size = get_u32(&whole, 4);
	meta->data = at(&whole, 8, size);
	meta->len = size;
	body->data = meta->data + size;
	body->len = whole.len - 8 - size;

	message = get_table(meta, 0);
	if (field_i16(meta, &message, MESSAGE_VERSION) != ARROW_V5)
		malformed("metadata version is not V5");
	if (field_u8(meta, &message, MESSAGE_HEADER_TYPE) != kind)
		malformed(kind == ARROW_SCHEMA ? "not a schema" : "not a record batch");
	body_len = field_i64(meta, &message, MESSAGE_BODY_LENGTH);
	if (body_len < 0 || body_len > body->len)
		malformed("body is cut off");
	body->len = (uint32) body_len;
	header = get_field(meta, &message, MESSAGE_HEADER);
	if (header == 0)
		malformed("no header");
	return get_table(meta, header);
}

/* ---------- schema ---------- */

static KalamLayout
int_layout(const Bytes *b, const Table *type)
{
	uint64		width = get_field(b, type, INT_BIT_WIDTH);

	if (field_u8(b, type, INT_IS_SIGNED))
		switch (width ? get_u32(b, width) : 0)
		{
			case 16:
				return KALAM_INT16;
			case 32:
				return KALAM_INT32;
			case 64:
				return KALAM_INT64;
		}
	malformed("integer layout that is not in use");
}

static KalamLayout
float_layout(const Bytes *b, const Table *type)
{
	switch (field_i16(b, type, FLOAT_PRECISION))
	{
		case FLOAT_SINGLE:
			return KALAM_FLOAT32;
		case FLOAT_DOUBLE:
			return KALAM_FLOAT64;
	}
	malformed("floating-point layout that is not in use");
}

static KalamLayout
field_layout(const Bytes *b, const Table *field)
{
	uint64		type_pos = get_field(b, field, FIELD_TYPE);
	Table		type;

	if (get_field(b, field, FIELD_DICTIONARY) != 0)
		malformed("column with a dictionary");
	if (type_pos == 0)
		malformed("column without a type");
	type = get_table(b, type_pos);
	switch (field_u8(b, field, FIELD_TYPE_TYPE))
	{
		case ARROW_INT:
			return int_layout(b, &type);
		case ARROW_FLOAT:
			return float_layout(b, &type);
		case ARROW_BINARY:
			return KALAM_BINARY;
		case ARROW_UTF8:
			return KALAM_UTF8;
		case ARROW_BOOL:
			return KALAM_BOOL;
	}
	malformed("layout that is not in use");
}

int
kalam_arrow_read_schema(const char *msg, int len, KalamLayout *layouts, int max)
{
	Bytes		meta;
	Bytes		body;
	Table		schema = open_message(msg, len, ARROW_SCHEMA, &meta, &body);
	Vector		fields = field_vector(&meta, &schema, SCHEMA_FIELDS, 4);

	if (field_i16(&meta, &schema, SCHEMA_ENDIANNESS) != 0)
		malformed("big-endian");
	if (fields.count > (uint32) max)
		malformed("more columns than asked for");
	for (uint32 i = 0; i < fields.count; i++)
	{
		Table		field = get_table(&meta, fields.start + 4 * i);

		layouts[i] = field_layout(&meta, &field);
	}
	return (int) fields.count;
}

/* ---------- record batch ---------- */

/* what is left to take of a batch's nodes and buffers */
typedef struct BatchReader
{
	Bytes		meta;
	Bytes		body;
	Vector		nodes;
	Vector		buffers;
	uint32		node;
	uint32		buffer;
} BatchReader;

/* the next buffer; at least need bytes of it */
static Bytes
next_buffer(BatchReader *r, uint64 need)
{
	Bytes		found;
	uint64		pos;
	int64		offset;
	int64		len;

	if (r->buffer >= r->buffers.count)
		malformed("too few buffers");
	pos = r->buffers.start + BUFFER_SIZE * (uint64) r->buffer++;
	offset = get_i64(&r->meta, pos);
	len = get_i64(&r->meta, pos + 8);
	if (offset < 0 || len < 0 || offset > r->body.len || len > r->body.len - offset)
		malformed("buffer outside the body");
	if ((uint64) len < need)
		malformed("buffer is too short for its rows");
	found.data = r->body.data + offset;
	found.len = (uint32) len;
	return found;
}

static const uint8 *
next_validity(BatchReader *r, int64 nrows)
{
	uint64		pos;
	int64		nulls;
	Bytes		bits;

	if (r->node >= r->nodes.count)
		malformed("too few columns");
	pos = r->nodes.start + NODE_SIZE * (uint64) r->node++;
	if (get_i64(&r->meta, pos) != nrows)
		malformed("columns of different length");
	nulls = get_i64(&r->meta, pos + 8);
	if (nulls < 0 || nulls > nrows)
		malformed("impossible count of nulls");
	bits = next_buffer(r, nulls > 0 ? (nrows + 7) / 8 : 0);
	return nulls > 0 ? bits.data : NULL;
}

/* Offsets must not fall, nor pass the end of the data. */
static void
check_offsets(const uint8 *offsets, int64 nrows, uint32 data_len)
{
	int32		previous = 0;

	for (int64 i = 0; i <= nrows; i++)
	{
		int32		offset = kalam_arrow_offset(offsets, i);

		if (offset < previous)
			malformed("offsets out of order");
		previous = offset;
	}
	if ((uint32) previous > data_len)
		malformed("offset beyond the data");
}

static void
read_column(BatchReader *r, KalamLayout layout, int64 nrows, KalamArrowColumn *col)
{
	Bytes		values;
	Bytes		data;

	col->layout = layout;
	col->validity = next_validity(r, nrows);
	col->data = NULL;
	col->data_len = 0;
	if (layout == KALAM_UTF8 || layout == KALAM_BINARY)
	{
		/* an empty column may leave its one offset out */
		values = next_buffer(r, nrows > 0 ? 4 * (nrows + 1) : 0);
		data = next_buffer(r, 0);
		if (nrows > 0)
			check_offsets(values.data, nrows, data.len);
		col->data = data.data;
		col->data_len = data.len;
	}
	else
		values = next_buffer(r, layout == KALAM_BOOL ? (nrows + 7) / 8 : nrows * kalam_layout_width(layout));
	col->values = values.data;
}

void
kalam_arrow_read_batch(const char *msg, int len, const KalamLayout *layouts, int ncols, KalamArrowBatch *batch)
{
	BatchReader r = {0};
	Table		header = open_message(msg, len, ARROW_RECORD_BATCH, &r.meta, &r.body);

	if (get_field(&r.meta, &header, BATCH_COMPRESSION) != 0)
		malformed("compressed body");
	batch->nrows = field_i64(&r.meta, &header, BATCH_LENGTH);
	if (batch->nrows < 0 || batch->nrows > PG_INT32_MAX)
		malformed("impossible count of rows");
	r.nodes = field_vector(&r.meta, &header, BATCH_NODES, NODE_SIZE);
	r.buffers = field_vector(&r.meta, &header, BATCH_BUFFERS, BUFFER_SIZE);
	if (r.nodes.count != (uint32) ncols)
		malformed("number of columns differs from the schema's");
	if (batch->cols == NULL || batch->ncols < ncols)
		batch->cols = palloc(sizeof(KalamArrowColumn) * Max(ncols, 1));
	batch->ncols = ncols;
	for (int i = 0; i < ncols; i++)
		read_column(&r, layouts[i], batch->nrows, &batch->cols[i]);
	if (r.buffer != r.buffers.count)
		malformed("more buffers than its columns have");
}

/* ---------- layouts ---------- */

static const struct
{
	const char *name;
	int			width;
}			layout_table[] =
{
	[KALAM_BOOL] = {"bool", 0},
	[KALAM_INT16] = {"int16", 2},
	[KALAM_INT32] = {"int32", 4},
	[KALAM_INT64] = {"int64", 8},
	[KALAM_FLOAT32] = {"float32", 4},
	[KALAM_FLOAT64] = {"float64", 8},
	[KALAM_UTF8] = {"utf8", 0},
	[KALAM_BINARY] = {"binary", 0},
};

int
kalam_layout_width(KalamLayout layout)
{
	return layout_table[layout].width;
}

const char *
kalam_layout_name(KalamLayout layout)
{
	return layout_table[layout].name;
}

KalamLayout
kalam_layout(const char *name)
{
	for (int i = 0; i < lengthof(layout_table); i++)
	{
		if (strcmp(layout_table[i].name, name) == 0)
			return (KalamLayout) i;
	}
	ereport(ERROR,
			(errcode(ERRCODE_PROTOCOL_VIOLATION),
			 errmsg("KalamDB server names an unknown layout \"%s\"", name),
			 errhint("The server is newer than this extension: update pg_kalam.")));
}
