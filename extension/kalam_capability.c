/*
 * kalam_capability.c: what the server says it can do.
 *
 * SHOW CAPABILITIES names operators, functions and types as pg_catalog does;
 * here they become OIDs.  What this PostgreSQL does not have is left out.
 * Tables are kept for the backend's life and shared by all connections whose
 * servers say the same, so a reconnect costs a comparison of texts.
 */
#include "postgres.h"

#include <ctype.h>

#include "catalog/pg_namespace.h"
#include "catalog/pg_operator.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_type.h"
#include "utils/builtins.h"
#include "utils/hsearch.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/syscache.h"

#include "kalam_core.h"

#define KEY_SIZE (offsetof(KalamCap, kind) + sizeof(char))
#define MAX_ARGS 8
#define FIRST_CONSTANT "const1="

typedef struct Fact
{
	char	   *name;
	char	   *value;
} Fact;

struct KalamCapTable
{
	KalamCapTable *next;
	char	   *text;			/* all rows, as the server sent them */
	MemoryContext cxt;
	HTAB	   *caps;
	List	   *facts;
};

static KalamCapTable *tables = NULL;

/* ---------- names to OIDs ---------- */

static Oid
type_oid(const char *name)
{
	return GetSysCacheOid2(TYPENAMENSP, Anum_pg_type_oid, CStringGetDatum(name),
						   ObjectIdGetDatum(PG_CATALOG_NAMESPACE));
}

/* "int8,int8": their number, -1 if one is unknown here or there are too many */
static int
parse_args(const char *text, Oid *args)
{
	char	   *copy = pstrdup(text);
	char	   *rest = copy;
	int			n = 0;

	if (text[0] == '\0')
		return 0;
	while (rest)
	{
		char	   *name = strsep(&rest, ",");

		if (n == MAX_ARGS)
			return -1;
		args[n] = type_oid(name);
		if (!OidIsValid(args[n++]))
			return -1;
	}
	pfree(copy);
	return n;
}

static Oid
operator_oid(const char *name, int nargs, const Oid *args)
{
	Oid			left = nargs == 2 ? args[0] : InvalidOid;
	Oid			right = nargs == 2 ? args[1] : args[0];

	if (nargs != 1 && nargs != 2)
		return InvalidOid;
	return GetSysCacheOid4(OPERNAMENSP, Anum_pg_operator_oid, CStringGetDatum(name), ObjectIdGetDatum(left),
						   ObjectIdGetDatum(right), ObjectIdGetDatum(PG_CATALOG_NAMESPACE));
}

static Oid
function_oid(const char *name, int nargs, const Oid *args)
{
	oidvector  *vector = buildoidvector(args, nargs);

	return GetSysCacheOid3(PROCNAMEARGSNSP, Anum_pg_proc_oid, CStringGetDatum(name), PointerGetDatum(vector),
						   ObjectIdGetDatum(PG_CATALOG_NAMESPACE));
}

static Oid
resolve(char kind, const char *name, const char *text)
{
	Oid			args[MAX_ARGS];
	int			nargs;

	if (strlen(name) >= NAMEDATALEN)
		return InvalidOid;
	if (kind == 't' || kind == 'c')
		return type_oid(name);
	if (kind == 'i' || kind == 'u') /* from or to text */
		return type_oid(kind == 'i' ? name : text);
	nargs = parse_args(text, args);
	if (nargs < 0)
		return InvalidOid;
	return kind == 'o' ? operator_oid(name, nargs, args) : function_oid(name, nargs, args);
}

/* ---------- the table ---------- */

static char
kind_letter(const char *kind)
{
	if (strcmp(kind, "type") == 0 || strcmp(kind, "kept") == 0)
		return 't';
	if (strcmp(kind, "operator") == 0)
		return 'o';
	if (strcmp(kind, "function") == 0)
		return 'f';
	if (strcmp(kind, "aggregate") == 0)
		return 'a';
	if (strcmp(kind, "window") == 0)
		return 'w';
	if (strcmp(kind, "input") == 0)
		return 'i';
	if (strcmp(kind, "output") == 0)
		return 'u';
	if (strcmp(kind, "compared") == 0)
		return 'c';
	return '\0';				/* a newer server's */
}

static bool
has_flag(const char *flags, const char *flag)
{
	int			len = strlen(flag);

	for (const char *f = flags; (f = strstr(f, flag)) != NULL; f += len)
	{
		if ((f == flags || !isalnum((unsigned char) f[-1])) && !isalnum((unsigned char) f[len]))
			return true;
	}
	return false;
}

/* "from16" and "before16": in PostgreSQL from, or before, that version on */
static bool
is_of_this_version(const char *flags)
{
	const char *from = strstr(flags, "from");
	const char *before = strstr(flags, "before");

	return (from == NULL || PG_VERSION_NUM / 10000 >= atoi(from + strlen("from"))) &&
		(before == NULL || PG_VERSION_NUM / 10000 < atoi(before + strlen("before")));
}

static void
add_fact(KalamCapTable *table, const char *name, const char *value)
{
	MemoryContext old = MemoryContextSwitchTo(table->cxt);
	Fact	   *fact = palloc(sizeof(Fact));

	fact->name = pstrdup(name);
	fact->value = pstrdup(value);
	table->facts = lappend(table->facts, fact);
	MemoryContextSwitchTo(old);
}

static void
add_cap(KalamCapTable *table, PGresult *rows, int row)
{
	char		kind = kind_letter(PQgetvalue(rows, row, 0));
	const char *args = PQgetvalue(rows, row, 2);
	const char *flags = PQgetvalue(rows, row, 4);
	const char *constants = strstr(flags, FIRST_CONSTANT);	/* always the last flag */
	KalamCap	key = {0};
	KalamCap   *cap;

	if (kind == '\0' || !is_of_this_version(flags))
		return;
	key.kind = kind;
	key.oid = resolve(kind, PQgetvalue(rows, row, 1), args);
	if (!OidIsValid(key.oid))
		return;
	cap = hash_search(table->caps, &key, HASH_ENTER, NULL);
	cap->remote = MemoryContextStrdup(table->cxt, PQgetvalue(rows, row, 3));
	cap->layout = kind == 't' || kind == 'c' ? MemoryContextStrdup(table->cxt, args) : NULL;
	cap->needs_c = has_flag(flags, "c");
	cap->needs_deterministic = has_flag(flags, "d");
	cap->needs_ascii = has_flag(flags, "a");
	cap->needs_order = has_flag(flags, "o");
	cap->needs_utf8 = has_flag(flags, "u");
	cap->needs_flat = has_flag(flags, "flat");
	cap->needs_libm = has_flag(flags, "libm");
	cap->needs_masked_shift = has_flag(flags, "shift");
	cap->pattern = has_flag(flags, "regex") ? 'm' : has_flag(flags, "regex1") ? '1' : '\0';
	cap->constants = constants ? MemoryContextStrdup(table->cxt, constants + strlen(FIRST_CONSTANT)) : NULL;
	cap->plain = has_flag(flags, "plain");
	cap->is_key = has_flag(flags, "key");
	cap->kept = strcmp(PQgetvalue(rows, row, 0), "kept") == 0;
}

static char *
all_text(PGresult *rows)
{
	StringInfoData buf;

	initStringInfo(&buf);
	for (int i = 0; i < PQntuples(rows); i++)
	{
		for (int j = 0; j < PQnfields(rows); j++)
			appendStringInfo(&buf, "%s\t", PQgetvalue(rows, i, j));
		appendStringInfoChar(&buf, '\n');
	}
	return buf.data;
}

static KalamCapTable *
make_table(PGresult *rows, const char *text)
{
	MemoryContext cxt = AllocSetContextCreate(CurrentMemoryContext, "KalamDB capabilities", ALLOCSET_DEFAULT_SIZES);
	KalamCapTable *table = MemoryContextAllocZero(cxt, sizeof(KalamCapTable));
	HASHCTL		ctl = {.keysize = KEY_SIZE, .entrysize = sizeof(KalamCap), .hcxt = cxt};

	table->cxt = cxt;
	table->text = MemoryContextStrdup(cxt, text);
	table->caps = hash_create("KalamDB capabilities", 512, &ctl, HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	for (int i = 0; i < PQntuples(rows); i++)
	{
		if (strcmp(PQgetvalue(rows, i, 0), "info") == 0)
			add_fact(table, PQgetvalue(rows, i, 1), PQgetvalue(rows, i, 3));
		else
			add_cap(table, rows, i);
	}
	MemoryContextSetParent(cxt, CacheMemoryContext);
	table->next = tables;
	tables = table;
	return table;
}

KalamCapTable *
kalam_capability_table(PGresult *rows)
{
	MemoryContext scratch;
	MemoryContext old;
	KalamCapTable *table;
	char	   *text;

	if (PQnfields(rows) != 5)
		ereport(ERROR,
				(errcode(ERRCODE_PROTOCOL_VIOLATION),
				 errmsg("SHOW CAPABILITIES has %d columns instead of 5", PQnfields(rows))));
	scratch = AllocSetContextCreate(CurrentMemoryContext, "KalamDB parsing", ALLOCSET_DEFAULT_SIZES);
	old = MemoryContextSwitchTo(scratch);
	text = all_text(rows);
	for (table = tables; table; table = table->next)
	{
		if (strcmp(table->text, text) == 0)
			break;
	}
	if (table == NULL)
		table = make_table(rows, text);
	MemoryContextSwitchTo(old);
	MemoryContextDelete(scratch);
	return table;
}

/* ---------- questions ---------- */

const KalamCap *
kalam_capability(KalamConn *conn, char kind, Oid oid)
{
	KalamCap	key = {0};

	if (conn->caps == NULL)
		return NULL;
	key.kind = kind;
	key.oid = oid;
	return hash_search(conn->caps->caps, &key, HASH_FIND, NULL);
}

const KalamCap *
kalam_compared(KalamConn *conn, Oid typid)
{
	Oid			base = getBaseType(typid);

	return kalam_capability(conn, 'c', get_typtype(base) == TYPTYPE_ENUM ? ANYENUMOID : base);
}

const char *
kalam_server_fact(KalamConn *conn, const char *name)
{
	ListCell   *lc;

	if (conn->caps == NULL)
		return NULL;
	foreach(lc, conn->caps->facts)
	{
		Fact	   *fact = lfirst(lc);

		if (strcmp(fact->name, name) == 0)
			return fact->value;
	}
	return NULL;
}

long
kalam_capability_count(KalamCapTable *table)
{
	return hash_get_num_entries(table->caps);
}

void
kalam_capability_facts(KalamCapTable *table, void (*each) (const char *, const char *, void *), void *arg)
{
	ListCell   *lc;

	foreach(lc, table->facts)
	{
		Fact	   *fact = lfirst(lc);

		each(fact->name, fact->value, arg);
	}
}
