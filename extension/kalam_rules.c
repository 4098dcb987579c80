/*
 * kalam_rules.c: which NOT NULL and CHECK the server enforces.
 *
 * A statement that is sent whole changes rows that nobody sees here, so what a
 * local table promises must be known to be checked there: the columns that are
 * NOT NULL (DESCRIBE), and the CHECK constraints of the same name and text that
 * the server can evaluate (SHOW TABLE).  Each is asked for once by a session,
 * and again when the table's definition here, or the connection, has changed.
 */
#include "postgres.h"

#include "access/sysattr.h"
#include "nodes/nodeFuncs.h"
#include "optimizer/optimizer.h"
#include "utils/builtins.h"
#include "utils/hsearch.h"
#include "utils/inval.h"
#include "utils/memutils.h"
#include "utils/partcache.h"
#include "utils/rel.h"
#include "utils/ruleutils.h"

#include "kalam_core.h"
#include "kalam_ddl.h"
#include "kalam_read.h"

typedef struct RulesEntry
{
	Oid			relid;			/* hash key: first */
	KalamConn  *conn;			/* NULL: forgotten, by any look into a catalog */
	uint64		made;			/* the connection that was asked */
	MemoryContext cxt;
	bool		knows_columns;
	bool		knows_checks;
	List	   *not_null;		/* names of columns */
	List	   *checks;			/* of pairs: name, text */
} RulesEntry;

static HTAB *rules = NULL;

static void
forget(Datum arg, Oid relid)
{
	HASH_SEQ_STATUS scan;
	RulesEntry *entry;

	hash_seq_init(&scan, rules);
	while ((entry = hash_seq_search(&scan)) != NULL)
	{
		if (!OidIsValid(relid) || entry->relid == relid)
			entry->conn = NULL;
	}
}

static void
make_table(void)
{
	HASHCTL		ctl = {0};

	ctl.keysize = sizeof(Oid);
	ctl.entrysize = sizeof(RulesEntry);
	rules = hash_create("KalamDB rules of tables", 64, &ctl, HASH_ELEM | HASH_BLOBS);
	CacheRegisterRelcacheCallback(forget, (Datum) 0);
}

static RulesEntry *
find_entry(KalamConn *conn, Oid relid)
{
	RulesEntry *entry;
	bool		found;

	if (rules == NULL)
		make_table();
	entry = hash_search(rules, &relid, HASH_ENTER, &found);
	if (!found)
	{
		memset((char *) entry + sizeof(Oid), 0, sizeof(RulesEntry) - sizeof(Oid));
		entry->cxt = AllocSetContextCreate(CacheMemoryContext, "KalamDB rules of a table", ALLOCSET_SMALL_SIZES);
	}
	if (entry->conn != conn || entry->made != conn->made)
	{
		MemoryContextReset(entry->cxt);
		entry->not_null = entry->checks = NIL;
		entry->knows_columns = entry->knows_checks = false;
		entry->made = conn->made;
		entry->conn = conn;
	}
	return entry;
}

/* Rows of DESCRIBE: name, type, not_null, … */
static void
learn_columns(RulesEntry *entry, KalamConn *conn, KalamTable *table)
{
	PGresult   *res = kalam_ask_about(conn, table, NULL, "DESCRIBE");
	MemoryContext old = MemoryContextSwitchTo(entry->cxt);

	for (int row = 0; row < PQntuples(res); row++)
	{
		if (PQgetlength(res, row, 2) == 1 && PQgetvalue(res, row, 2)[0] != 0)
			entry->not_null = lappend(entry->not_null, pstrdup(kalam_result_text(res, row, 0)));
	}
	entry->knows_columns = true;
	MemoryContextSwitchTo(old);
	kalam_result_free(res);
}

static const char *
fact(PGresult *res, const char *prefix, const char *name)
{
	for (int row = 0; row < PQntuples(res); row++)
	{
		char	   *option = kalam_result_text(res, row, 0);

		if (strncmp(option, prefix, strlen(prefix)) == 0 && strcmp(option + strlen(prefix), name) == 0)
			return kalam_result_text(res, row, 1);
	}
	return NULL;
}

/* Rows of SHOW TABLE: check.NAME and its text, enforced.NAME. */
static void
learn_checks(RulesEntry *entry, KalamConn *conn, KalamTable *table)
{
	PGresult   *res = kalam_ask_about(conn, table, NULL, "SHOW TABLE");
	MemoryContext old = MemoryContextSwitchTo(entry->cxt);

	for (int row = 0; row < PQntuples(res); row++)
	{
		char	   *option = kalam_result_text(res, row, 0);

		if (strncmp(option, "check.", 6) == 0 && fact(res, "enforced.", option + 6) != NULL)
			entry->checks = lappend(entry->checks, list_make2(pstrdup(option + 6), pstrdup(kalam_result_text(res, row, 1))));
	}
	entry->knows_checks = true;
	MemoryContextSwitchTo(old);
	kalam_result_free(res);
}

bool
kalam_enforces_not_null(KalamConn *conn, KalamTable *table, AttrNumber attno)
{
	const char *column = kalam_remote_column(table->relid, attno);
	RulesEntry *entry = find_entry(conn, table->relid);
	ListCell   *lc;

	if (!entry->knows_columns)
		learn_columns(entry, conn, table);
	foreach(lc, entry->not_null)
	{
		if (strcmp(lfirst(lc), column) == 0)
			return true;
	}
	return false;
}

static bool
is_enforced(RulesEntry *entry, const char *name, const char *text)
{
	ListCell   *lc;

	foreach(lc, entry->checks)
	{
		List	   *check = lfirst(lc);

		if (strcmp(linitial(check), name) == 0 && strcmp(lsecond(check), text) == 0)
			return true;
	}
	return false;
}

static bool
may_be_null(Expr *expr)
{
	return !IsA(expr, Const) || ((Const *) expr)->constisnull;
}

bool
kalam_breaks_rules(KalamConn *conn, KalamTable *table, Relation rel, List *attnos, List *exprs)
{
	TupleDesc	desc = RelationGetDescr(rel);
	Bitmapset  *bounds = NULL;
	ListCell   *attno;
	ListCell   *expr;

	if (rel->rd_rel->relispartition)
		pull_varattnos((Node *) RelationGetPartitionQual(rel), 1, &bounds);
	forboth(attno, attnos, expr, exprs)
	{
		AttrNumber	n = lfirst_int(attno);

		if (bms_is_member(n - FirstLowInvalidHeapAttributeNumber, bounds))
			return true;
		if (TupleDescAttr(desc, n - 1)->attnotnull && may_be_null(lfirst(expr)) &&
			!kalam_enforces_not_null(conn, table, n))
			return true;
	}
	return !kalam_enforces_checks(conn, table, rel);
}

bool
kalam_enforces_checks(KalamConn *conn, KalamTable *table, Relation rel)
{
	TupleConstr *constr = RelationGetDescr(rel)->constr;
	List	   *context;
	RulesEntry *entry;

	if (constr == NULL || constr->num_check == 0)
		return true;
	context = deparse_context_for(RelationGetRelationName(rel), RelationGetRelid(rel));
	entry = find_entry(conn, table->relid);
	if (!entry->knows_checks)
		learn_checks(entry, conn, table);
	for (int i = 0; i < constr->num_check; i++)
	{
		Node	   *check = stringToNode(constr->check[i].ccbin);

		/* the same text means the same there only if its columns have the same names */
		if (!kalam_mirror_same_names(rel, check) ||
			!is_enforced(entry, constr->check[i].ccname, deparse_expression(check, context, false, false)))
			return false;
	}
	return true;
}
