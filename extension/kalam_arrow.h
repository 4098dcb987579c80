/*
 * kalam_arrow.h: numbers of the Arrow IPC format (format/Message.fbs and
 * Schema.fbs of Apache Arrow), and what reader, writer and converters share.
 */
#ifndef KALAM_ARROW_H
#define KALAM_ARROW_H

#include "kalam.h"

#define ARROW_CONTINUATION 0xFFFFFFFFU
#define ARROW_V5 4				/* value of MetadataVersion.V5 */

/* MessageHeader */
#define ARROW_SCHEMA 1
#define ARROW_RECORD_BATCH 3

/* Type */
#define ARROW_INT 2
#define ARROW_FLOAT 3
#define ARROW_BINARY 4
#define ARROW_UTF8 5
#define ARROW_BOOL 6

#define FLOAT_SINGLE 1
#define FLOAT_DOUBLE 2

/* field numbers of the tables */
enum
{
	MESSAGE_VERSION, MESSAGE_HEADER_TYPE, MESSAGE_HEADER, MESSAGE_BODY_LENGTH, MESSAGE_FIELDS
};
enum
{
	SCHEMA_ENDIANNESS, SCHEMA_FIELDS, SCHEMA_NFIELDS
};
enum
{
	FIELD_NAME, FIELD_NULLABLE, FIELD_TYPE_TYPE, FIELD_TYPE, FIELD_DICTIONARY, FIELD_CHILDREN, FIELD_FIELDS
};
enum
{
	INT_BIT_WIDTH, INT_IS_SIGNED, INT_FIELDS
};
enum
{
	FLOAT_PRECISION, FLOAT_FIELDS
};
enum
{
	BATCH_LENGTH, BATCH_NODES, BATCH_BUFFERS, BATCH_COMPRESSION, BATCH_FIELDS
};

/* structs FieldNode {length, null_count} and Buffer {offset, length} */
#define NODE_SIZE 16
#define BUFFER_SIZE 16

extern int	kalam_layout_width(KalamLayout layout);	/* bytes of a value; 0: bits, or of no fixed width */
extern const char *kalam_layout_name(KalamLayout layout);

/* offset i of a utf8 or binary column, wherever it lies in memory */
static inline int32
kalam_arrow_offset(const uint8 *offsets, int64 i)
{
	int32		value;

	memcpy(&value, offsets + 4 * i, 4);
	return value;
}

static inline bool
kalam_arrow_bit(const uint8 *bits, int64 i)
{
	return (bits[i >> 3] >> (i & 7)) & 1;
}

#endif							/* KALAM_ARROW_H */
