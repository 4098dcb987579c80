/*
 * kalam_rules.c: which NOT NULL and CHECK the server enforces.
 *
 * A statement that is sent whole changes rows that nobody sees here, so what a
 * local table promises must be known to be checked there: the columns that are
 * NOT NULL, and the CHECK constraints of the same name and text that the server
 * can evaluate.  SHOW TABLE tells both, and which definition of the table it
 * told them of; a session asks once, and again when the table's definition
 * here, or the connection, has changed.
 *
 * Others may alter the remote table meanwhile.  So a statement that relies on
 * its rules names that definition, and the server does nothing but say STALE
 * where it has another by now.  Then the rules are learnt anew.
 */
#include "postgres.h"

#include "access/sysattr.h"
#include "miscadmin.h"
#include "nodes/nodeFuncs.h"
#include "optimizer/optimizer.h"
#include "storage/sinval.h"
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
	char	   *definition;		/* NULL: not asked, or the server has no word for it */
	bool		known;
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
		entry->definition = NULL;
		entry->known = false;
		entry->made = conn->made;
		entry->conn = conn;
	}
	return entry;
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

/* Rows of SHOW TABLE: definition, not_null.COLUMN, check.NAME and its text, enforced.NAME. */
static void
learn(RulesEntry *entry, KalamConn *conn, KalamTable *table)
{
	PGresult   *res = kalam_ask_about(conn, table, NULL, "SHOW TABLE");
	const char *definition = fact(res, "definition", "");
	MemoryContext old = MemoryContextSwitchTo(entry->cxt);

	/* where it cannot be named it may change unseen: nothing is known of it */
	entry->known = true;
	entry->definition = definition ? pstrdup(definition) : NULL;
	for (int row = 0; definition != NULL && row < PQntuples(res); row++)
	{
		char	   *option = kalam_result_text(res, row, 0);

		if (strncmp(option, "not_null.", 9) == 0)
			entry->not_null = lappend(entry->not_null, pstrdup(option + 9));
		else if (strncmp(option, "check.", 6) == 0 && fact(res, "enforced.", option + 6) != NULL)
			entry->checks = lappend(entry->checks, list_make2(pstrdup(option + 6), pstrdup(kalam_result_text(res, row, 1))));
	}
	MemoryContextSwitchTo(old);
	kalam_result_free(res);
}

static RulesEntry *
known_entry(KalamConn *conn, KalamTable *table)
{
	RulesEntry *entry = find_entry(conn, table->relid);

	if (!entry->known)
		learn(entry, conn, table);
	return entry;
}

static bool
enforces_not_null(KalamConn *conn, KalamTable *table, AttrNumber attno)
{
	const char *column = kalam_remote_column(table->relid, attno);
	ListCell   *lc;

	foreach(lc, known_entry(conn, table)->not_null)
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

static bool
enforces_checks(KalamConn *conn, KalamTable *table, Relation rel)
{
	TupleConstr *constr = RelationGetDescr(rel)->constr;
	List	   *context = deparse_context_for(RelationGetRelationName(rel), RelationGetRelid(rel));
	RulesEntry *entry = known_entry(conn, table);

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

/* exprs: NIL where it is not known what the columns are set to */
static bool
are_enforced(KalamConn *conn, KalamTable *table, Relation rel, List *attnos, List *exprs, bool *any)
{
	TupleDesc	desc = RelationGetDescr(rel);

	*any = desc->constr != NULL && desc->constr->num_check > 0;
	for (int i = 0; i < list_length(attnos); i++)
	{
		AttrNumber	n = list_nth_int(attnos, i);

		if (!TupleDescAttr(desc, n - 1)->attnotnull || (exprs != NIL && !may_be_null(list_nth(exprs, i))))
			continue;
		*any = true;
		if (!enforces_not_null(conn, table, n))
			return false;
	}
	return desc->constr == NULL || desc->constr->num_check == 0 || enforces_checks(conn, table, rel);
}

static bool
sets_bounds(Relation rel, List *attnos)
{
	Bitmapset  *bounds = NULL;
	ListCell   *lc;

	if (!rel->rd_rel->relispartition)
		return false;
	pull_varattnos((Node *) RelationGetPartitionQual(rel), 1, &bounds);
	foreach(lc, attnos)
	{
		if (bms_is_member(lfirst_int(lc) - FirstLowInvalidHeapAttributeNumber, bounds))
			return true;
	}
	return false;
}

bool
kalam_breaks_rules(KalamConn *conn, KalamTable *table, Relation rel, List *attnos, List *exprs, const char **relies_on)
{
	bool		any;

	*relies_on = NULL;
	if (sets_bounds(rel, attnos) || !are_enforced(conn, table, rel, attnos, exprs, &any))
		return true;
	if (any)
		*relies_on = pstrdup(known_entry(conn, table)->definition);
	return false;
}

/* ---------- when they are others by now ---------- */

bool
kalam_is_stale(PGresult *res)
{
	return strncmp(PQcmdStatus(res), "STALE ", 6) == 0;
}

/* Also plans that were made by them are of no use any more, at once and whatever becomes of the transaction. */
static void
forget_here(Oid relid)
{
	SharedInvalidationMessage message = {0};

	message.rc.id = SHAREDINVALRELCACHE_ID;
	message.rc.dbId = MyDatabaseId;
	message.rc.relId = relid;
	LocalExecuteInvalidationMessage(&message);
	forget((Datum) 0, relid);
}

bool
kalam_rules_hold(KalamConn *conn, KalamTable *table, Relation rel, List *attnos, const char **relies_on)
{
	forget_here(table->relid);
	return !kalam_breaks_rules(conn, table, rel, attnos, NIL, relies_on);
}
