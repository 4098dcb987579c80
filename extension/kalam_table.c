/*
 * kalam_table.c: what the options of a foreign table say of the remote one.
 *
 * Every statement asks several times, and options are texts in catalogs, so the
 * answers are kept until an invalidation message names the table, or tells of
 * a change to a server, a foreign table or a schema.
 */
#include "postgres.h"

#include "access/table.h"
#include "commands/defrem.h"
#include "foreign/foreign.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/hsearch.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/syscache.h"

#include "kalam_core.h"

#define MANY_TABLES 256			/* from here on those that may be gone are forgotten before another is learnt */

typedef struct TableEntry
{
	Oid			relid;			/* hash key: first */
	uint64		changes;		/* of it, as far as is known here */
	bool		learnt;
	uint64		learnt_at;		/* after so many of them */
	MemoryContext cxt;			/* what follows */
	KalamTable	table;
	List	   *key;			/* attnums in key order */
	int			natts;
	char	  **columns;		/* remote names; NULL: dropped here */
} TableEntry;

static HTAB *tables = NULL;

/* ---------- invalidation ---------- */

static void
forget(Datum arg, Oid relid)
{
	HASH_SEQ_STATUS scan;
	TableEntry *entry;

	if (OidIsValid(relid))
	{
		entry = hash_search(tables, &relid, HASH_FIND, NULL);
		if (entry)
			entry->changes++;
		return;
	}
	hash_seq_init(&scan, tables);
	while ((entry = hash_seq_search(&scan)) != NULL)
		entry->changes++;
}

static void
forget_all(Datum arg, int cacheid, uint32 hashvalue)
{
	forget(arg, InvalidOid);
}

static void
make_tables(void)
{
	HASHCTL		ctl = {0};

	ctl.keysize = sizeof(Oid);
	ctl.entrysize = sizeof(TableEntry);
	tables = hash_create("KalamDB tables", 64, &ctl, HASH_ELEM | HASH_BLOBS);
	CacheRegisterRelcacheCallback(forget, (Datum) 0);
	CacheRegisterSyscacheCallback(FOREIGNTABLEREL, forget_all, (Datum) 0);
	CacheRegisterSyscacheCallback(FOREIGNSERVEROID, forget_all, (Datum) 0);
	CacheRegisterSyscacheCallback(NAMESPACEOID, forget_all, (Datum) 0);
}

/* ---------- what the catalogs say ---------- */

static void
take_planning(KalamTable *table, List *options)
{
	ListCell   *lc;

	foreach(lc, options)
	{
		DefElem    *def = lfirst_node(DefElem, lc);

		if (strcmp(def->defname, "fetch_size") == 0)
			(void) parse_int(defGetString(def), &table->fetch_size, 0, NULL);
		else if (strcmp(def->defname, "batch_size") == 0)
			(void) parse_int(defGetString(def), &table->batch_size, 0, NULL);
		else if (strcmp(def->defname, "updatable") == 0)
			(void) parse_bool(defGetString(def), &table->updatable);
		else if (strcmp(def->defname, "truncatable") == 0)
			(void) parse_bool(defGetString(def), &table->truncatable);
		else if (strcmp(def->defname, "use_remote_estimate") == 0)
			(void) parse_bool(defGetString(def), &table->remote_estimate);
		else if (strcmp(def->defname, "async_capable") == 0)
			(void) parse_bool(defGetString(def), &table->async_capable);
		else if (strcmp(def->defname, "fdw_startup_cost") == 0)
			(void) parse_real(defGetString(def), &table->startup_cost, 0, NULL);
		else if (strcmp(def->defname, "fdw_tuple_cost") == 0)
			(void) parse_real(defGetString(def), &table->tuple_cost, 0, NULL);
	}
}

static void
take_type(KalamTable *table, const char *type)
{
	if (type == NULL)
		return;
	table->has_type = true;
	table->type = strcmp(type, "user") == 0 ? KALAM_USER : strcmp(type, "stream") == 0 ? KALAM_STREAM : KALAM_SHARED;
}

static void
learn_table(KalamTable *table, Oid relid)
{
	ForeignTable *foreign = GetForeignTable(relid);
	ForeignServer *server = GetForeignServer(foreign->serverid);
	const char *namespace = kalam_find_option(foreign->options, "namespace");
	const char *name = kalam_find_option(foreign->options, "table");

	memset(table, 0, sizeof(KalamTable));
	table->relid = relid;
	table->serverid = foreign->serverid;
	table->namespace = namespace ? pstrdup(namespace) : get_namespace_name(get_rel_namespace(relid));
	table->name = name ? pstrdup(name) : get_rel_name(relid);
	take_type(table, kalam_find_option(foreign->options, "table_type"));
	table->fetch_size = KALAM_DEFAULT_FETCH;
	table->batch_size = KALAM_DEFAULT_BATCH;
	table->updatable = true;
	table->truncatable = true;
	table->startup_cost = 100.0;
	table->tuple_cost = 0.01;
	take_planning(table, server->options);
	take_planning(table, foreign->options);
}

typedef struct KeyColumn
{
	int			place;
	AttrNumber	attnum;
} KeyColumn;

static int
compare_places(const void *a, const void *b)
{
	return ((const KeyColumn *) a)->place - ((const KeyColumn *) b)->place;
}

static void
learn_columns(TableEntry *entry)
{
	Relation	rel = table_open(entry->relid, AccessShareLock);
	TupleDesc	desc = RelationGetDescr(rel);
	KeyColumn  *found = palloc(sizeof(KeyColumn) * Max(desc->natts, 1));
	int			n = 0;

	entry->key = NIL;
	entry->natts = desc->natts;
	entry->columns = palloc0(sizeof(char *) * Max(desc->natts, 1));
	for (int i = 0; i < desc->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(desc, i);
		List	   *options;
		const char *place;
		const char *name;

		if (att->attisdropped)
			continue;
		options = GetForeignColumnOptions(entry->relid, att->attnum);
		name = kalam_find_option(options, "column_name");
		entry->columns[i] = pstrdup(name ? name : NameStr(att->attname));
		place = kalam_find_option(options, "key");
		if (place && parse_int(place, &found[n].place, 0, NULL))
			found[n++].attnum = att->attnum;
	}
	table_close(rel, AccessShareLock);
	qsort(found, n, sizeof(KeyColumn), compare_places);
	for (int i = 0; i < n; i++)
		entry->key = lappend_int(entry->key, found[i].attnum);
	pfree(found);
}

/* Tables come and go, and a backend may live long. */
static void
make_room(void)
{
	HASH_SEQ_STATUS scan;
	TableEntry *entry;

	if (hash_get_num_entries(tables) < MANY_TABLES)
		return;
	hash_seq_init(&scan, tables);
	while ((entry = hash_seq_search(&scan)) != NULL)
	{
		if (entry->learnt && entry->learnt_at == entry->changes)
			continue;
		if (entry->cxt)
			MemoryContextDelete(entry->cxt);
		(void) hash_search(tables, &entry->relid, HASH_REMOVE, NULL);
	}
}

static TableEntry *
known(Oid relid)
{
	TableEntry *entry;
	uint64		changes;
	MemoryContext old;

	if (tables == NULL)
		make_tables();
	entry = hash_search(tables, &relid, HASH_FIND, NULL);
	if (entry == NULL)
	{
		make_room();
		entry = hash_search(tables, &relid, HASH_ENTER, NULL);
		memset((char *) entry + sizeof(Oid), 0, sizeof(TableEntry) - sizeof(Oid));
	}
	if (entry->learnt && entry->learnt_at == entry->changes)
		return entry;
	entry->learnt = false;
	changes = entry->changes;	/* what comes meanwhile counts */
	if (entry->cxt == NULL)
		entry->cxt = AllocSetContextCreate(CacheMemoryContext, "KalamDB table", ALLOCSET_SMALL_SIZES);
	MemoryContextReset(entry->cxt);
	old = MemoryContextSwitchTo(entry->cxt);
	learn_table(&entry->table, relid);
	learn_columns(entry);
	MemoryContextSwitchTo(old);
	entry->learnt_at = changes;
	entry->learnt = true;
	return entry;
}

/* ---------- for the others ---------- */

KalamTable *
kalam_table_get(Oid relid)
{
	KalamTable *table = palloc(sizeof(KalamTable));

	*table = known(relid)->table;
	table->namespace = pstrdup(table->namespace);
	table->name = pstrdup(table->name);
	return table;
}

char *
kalam_remote_column(Oid relid, AttrNumber attnum)
{
	TableEntry *entry = known(relid);

	if (attnum <= 0 || attnum > entry->natts || entry->columns[attnum - 1] == NULL)
		return get_attname(relid, attnum, false);
	return pstrdup(entry->columns[attnum - 1]);
}

List *
kalam_key_columns(Oid relid)
{
	return list_copy(known(relid)->key);
}
