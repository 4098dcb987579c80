/*
 * kalam_drift.c: where a table and the one on the server differ, and taking
 * ownership of one.
 *
 * Somebody may alter the remote table behind PostgreSQL's back.  Statements
 * then say HV005; kalam_drift() says what differs, with the statement that
 * mends it.  Those statements are safe on a table that manages its remote one,
 * too: what the server has already is no change there.
 */
#include "postgres.h"

#include "access/table.h"
#include "catalog/objectaddress.h"
#include "catalog/pg_class.h"
#include "catalog/pg_type.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "parser/parse_type.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"

#include "kalam_core.h"
#include "kalam_ddl.h"

PG_FUNCTION_INFO_V1(sql_kalam_drift);
PG_FUNCTION_INFO_V1(sql_kalam_manage);

typedef struct Difference
{
	const char *object;
	const char *problem;
	const char *here;			/* NULL: nothing, as the next two */
	const char *there;
	const char *mend;
} Difference;

typedef struct Comparison
{
	Oid			relid;
	KalamTable *table;
	KalamConn  *conn;
	PGresult   *facts;			/* SHOW TABLE */
	PGresult   *columns;		/* DESCRIBE */
	const char *name;			/* the table's, for statements */
	List	   *found;			/* of Difference */
} Comparison;

static void
differ(Comparison *c, const char *object, const char *problem, const char *here, const char *there, const char *mend)
{
	Difference *found = palloc0(sizeof(Difference));

	*found = (Difference) {object, problem, here, there, mend};
	c->found = lappend(c->found, found);
}

/* ---------- columns ---------- */

static bool
is_true(PGresult *rows, int row, int field)
{
	return !PQgetisnull(rows, row, field) && PQgetvalue(rows, row, field)[0] != '\0';
}

/* The server's type as PostgreSQL writes it; as it came, where that is not known here. */
static const char *
shown_type(const char *remote)
{
	Oid			typid = kalam_attach_parse_type(remote);
	int32		typmod = -1;

	if (!OidIsValid(typid))
		return remote;
#if PG_VERSION_NUM >= 160000
	(void) parseTypeString(remote, &typid, &typmod, NULL);
#else
	parseTypeString(remote, &typid, &typmod, true);
#endif
	return format_type_with_typemod(typid, typmod);
}

static const char *
mending(Comparison *c, const char *column, const char *what)
{
	return psprintf("ALTER FOREIGN TABLE %s ALTER COLUMN %s %s", c->name, quote_identifier(column), what);
}

/* A table made by a server that did not know the type. */
static bool
is_kept_as_text(KalamConn *conn, Oid typid, const char *there)
{
	const KalamCap *cap = kalam_capability(conn, 't', getBaseType(typid));

	return strcmp(there, "text") == 0 && cap != NULL && cap->kept;
}

static void
compare_type(Comparison *c, Form_pg_attribute att, int row)
{
	const char *here = shown_type(kalam_mirror_column_type(c->conn, c->relid, att));
	const char *there = shown_type(kalam_result_text(c->columns, row, 1));

	if (strcmp(here, there) != 0 && !is_kept_as_text(c->conn, att->atttypid, there))
		differ(c, psprintf("column %s", quote_identifier(NameStr(att->attname))), "has another type",
			   format_type_with_typemod(att->atttypid, att->atttypmod), there,
			   mending(c, NameStr(att->attname), psprintf("TYPE %s", strcmp(there, "file") == 0 ? "jsonb" : there)));
}

static void
compare_null(Comparison *c, Form_pg_attribute att, int row)
{
	bool		there = is_true(c->columns, row, 2);

	if (att->attnotnull != there)
		differ(c, psprintf("column %s", quote_identifier(NameStr(att->attname))), "is NOT NULL on one side",
			   att->attnotnull ? "NOT NULL" : NULL, there ? "NOT NULL" : NULL,
			   mending(c, NameStr(att->attname), there ? "SET NOT NULL" : "DROP NOT NULL"));
}

/* '2.5' and 2.5 are one to the server */
static bool
same_default(const char *here, const char *there)
{
	size_t		len = strlen(here);

	if (strcmp(here, there) == 0)
		return true;
	return len > 1 && here[0] == '\'' && here[len - 1] == '\'' && strlen(there) == len - 2 &&
		strncmp(here + 1, there, len - 2) == 0;
}

static void
compare_default(Comparison *c, Relation rel, Form_pg_attribute att, int row)
{
	const char *here = kalam_mirror_default(rel, c->table->serverid, att->attnum);
	const char *there = PQgetisnull(c->columns, row, 3) ? NULL : kalam_result_text(c->columns, row, 3);

	if ((here == NULL) != (there == NULL) || (here && !same_default(here, there)))
		differ(c, psprintf("column %s", quote_identifier(NameStr(att->attname))), "has another default", here, there,
			   mending(c, NameStr(att->attname), there ? psprintf("SET DEFAULT %s", there) : "DROP DEFAULT"));
}

/* Types are printed with their schemas; false: the server has no such column. */
static bool
compare_there(Comparison *c, Form_pg_attribute att, int row)
{
	int			nestlevel = kalam_mirror_set_modes();

	if (row < 0)
		differ(c, psprintf("column %s", quote_identifier(NameStr(att->attname))), "is not on the server",
			   format_type_with_typemod(att->atttypid, att->atttypmod), NULL,
			   psprintf("ALTER FOREIGN TABLE %s DROP COLUMN %s", c->name, quote_identifier(NameStr(att->attname))));
	else
		compare_type(c, att, row);
	kalam_reset_transmission_modes(nestlevel);
	return row >= 0;
}

/* Only the owner's definition is meant to be the server's; others may have defaults of their own. */
static void
compare_column(Comparison *c, Relation rel, Form_pg_attribute att, bool managed)
{
	int			row = kalam_attach_find_column(c->columns, kalam_remote_column(c->relid, att->attnum));

	if (!compare_there(c, att, row) || !managed)
		return;
	compare_null(c, att, row);
	compare_default(c, rel, att, row);
}

static void
compare_columns(Comparison *c, bool managed)
{
	Relation	rel = table_open(c->relid, AccessShareLock);
	TupleDesc	desc = RelationGetDescr(rel);

	for (int i = 0; i < desc->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(desc, i);

		if (!att->attisdropped && !kalam_is_system_column(c->relid, att->attnum))
			compare_column(c, rel, att, managed);
	}
	table_close(rel, AccessShareLock);
	for (int row = 0; managed && row < PQntuples(c->columns); row++)
	{
		const char *name;

		if (is_true(c->columns, row, 5) || kalam_attach_local_column(c->relid, c->columns, row) != 0)
			continue;
		name = kalam_result_text(c->columns, row, 0);
		differ(c, psprintf("column %s", quote_identifier(name)), "is not here", NULL,
			   shown_type(kalam_result_text(c->columns, row, 1)),
			   psprintf("ALTER FOREIGN TABLE %s ADD COLUMN %s %s%s%s", c->name, quote_identifier(name),
						shown_type(kalam_result_text(c->columns, row, 1)),
						is_true(c->columns, row, 2) ? " NOT NULL" : "",
						PQgetisnull(c->columns, row, 3) ? "" :
						psprintf(" DEFAULT %s", kalam_result_text(c->columns, row, 3))));
	}
}

/* ---------- key and options ---------- */

static void
compare_key(Comparison *c)
{
	int			place = 0;
	ListCell   *lc;

	foreach(lc, kalam_key_columns(c->relid))
	{
		char	   *name = kalam_remote_column(c->relid, lfirst_int(lc));
		int			row = kalam_attach_find_column(c->columns, name);

		place++;
		if (row >= 0 && kalam_attach_key_place(c->columns, row) != place)
			differ(c, psprintf("column %s", quote_identifier(get_attname(c->relid, lfirst_int(lc), false))),
				   "has another place in the key", psprintf("%d", place),
				   psprintf("%d", kalam_attach_key_place(c->columns, row)),
				   mending(c, get_attname(c->relid, lfirst_int(lc), false),
						   psprintf("OPTIONS (SET key '%d')", kalam_attach_key_place(c->columns, row))));
	}
}

static void
compare_options(Comparison *c)
{
	List	   *options = GetForeignTable(c->relid)->options;

	for (int i = 0; kalam_mirror_options[i]; i++)
	{
		const char *name = kalam_mirror_options[i];
		const char *here = kalam_find_option(options, name);
		const char *there = kalam_mirror_fact(c->facts, name);

		if (here && (there == NULL || strcmp(here, there) != 0))
			differ(c, psprintf("option %s", name), "has another value", here, there,
				   there ? psprintf("ALTER FOREIGN TABLE %s OPTIONS (SET %s %s)", c->name, name,
									quote_literal_cstr(there)) :
				   psprintf("ALTER FOREIGN TABLE %s OPTIONS (DROP %s)", c->name, name));
	}
}

/* ---------- the whole ---------- */

static PGresult *
ask(Comparison *c, const char *what)
{
	StringInfoData sql;

	initStringInfo(&sql);
	appendStringInfo(&sql, "%s ", what);
	kalam_deparse_table(&sql, c->table);
	return kalam_mirror_ask(c->conn, sql.data);
}

static bool
is_managed(Comparison *c)
{
	const char *owner = kalam_mirror_fact(c->facts, "owner");

	return owner && strcmp(owner, kalam_mirror_owner(c->relid)) == 0;
}

static void
compare(Comparison *c, Oid relid, bool as_owner)
{
	if (get_rel_relkind(relid) != RELKIND_FOREIGN_TABLE || !kalam_is_relation(relid))
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("\"%s\" is not a KalamDB table", get_rel_name(relid) ? get_rel_name(relid) : "")));
	c->relid = relid;
	c->table = kalam_table_get(relid);
	c->conn = kalam_connection_for_server(c->table->serverid, GetUserId());
	c->name = quote_qualified_identifier(get_namespace_name(get_rel_namespace(relid)), get_rel_name(relid));
	c->facts = ask(c, "SHOW TABLE IF EXISTS");
	if (PQntuples(c->facts) == 0)
	{
		differ(c, "table", "is not on the server", c->name, NULL, psprintf("DROP FOREIGN TABLE %s", c->name));
		return;
	}
	c->columns = ask(c, "DESCRIBE");
	compare_columns(c, as_owner || is_managed(c));
	compare_key(c);
	if (as_owner || is_managed(c))
		compare_options(c);
}

static void
check_select(Oid relid)
{
	AclResult	acl = pg_class_aclcheck(relid, GetUserId(), ACL_SELECT);

	if (acl != ACLCHECK_OK)
		aclcheck_error(acl, OBJECT_FOREIGN_TABLE, get_rel_name(relid));
}

static Datum
text_or_null(const char *value, bool *isnull)
{
	*isnull = value == NULL;
	return value ? CStringGetTextDatum(value) : (Datum) 0;
}

Datum
sql_kalam_drift(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	Comparison	c = {0};
	ListCell   *lc;

	InitMaterializedSRF(fcinfo, 0);
	if (get_rel_name(PG_GETARG_OID(0)))
		check_select(PG_GETARG_OID(0));
	compare(&c, PG_GETARG_OID(0), false);
	foreach(lc, c.found)
	{
		Difference *found = lfirst(lc);
		Datum		values[5];
		bool		nulls[5];

		values[0] = text_or_null(found->object, &nulls[0]);
		values[1] = text_or_null(found->problem, &nulls[1]);
		values[2] = text_or_null(found->here, &nulls[2]);
		values[3] = text_or_null(found->there, &nulls[3]);
		values[4] = text_or_null(found->mend, &nulls[4]);
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
	}
	PG_RETURN_VOID();
}

/* ---------- ownership ---------- */

static void
check_owner(Oid relid)
{
#if PG_VERSION_NUM >= 160000
	bool		owner = object_ownercheck(RelationRelationId, relid, GetUserId());
#else
	bool		owner = pg_class_ownercheck(relid, GetUserId());
#endif

	if (!owner)
		aclcheck_error(ACLCHECK_NOT_OWNER, OBJECT_FOREIGN_TABLE, get_rel_name(relid));
}

Datum
sql_kalam_manage(PG_FUNCTION_ARGS)
{
	Oid			relid = PG_GETARG_OID(0);
	Comparison	c = {0};
	StringInfoData sql;
	const char *before;

	if (get_rel_name(relid))
		check_owner(relid);
	compare(&c, relid, true);
	if (PQntuples(c.facts) == 0)
	{
		kalam_mirror_create(relid);
		ereport(NOTICE,
				(errmsg("remote table %s.%s was created", kalam_quote(c.table->namespace), kalam_quote(c.table->name))));
		PG_RETURN_VOID();
	}
	if (c.found != NIL)
	{
		Difference *first = linitial(c.found);

		ereport(ERROR,
				(errcode(ERRCODE_FDW_COLUMN_NAME_NOT_FOUND),
				 errmsg("%s of \"%s\" %s", first->object, get_rel_name(relid), first->problem),
				 errdetail("Here: %s; on the server: %s.", first->here ? first->here : "-",
						   first->there ? first->there : "-"),
				 errhint("%s;", first->mend)));
	}
	if (is_managed(&c))
		PG_RETURN_VOID();
	before = kalam_mirror_fact(c.facts, "owner");
	initStringInfo(&sql);
	appendStringInfoString(&sql, "ALTER TABLE ");
	kalam_deparse_table(&sql, c.table);
	appendStringInfoString(&sql, " SET (owner = ");
	kalam_append_literal(&sql, kalam_mirror_owner(relid));
	appendStringInfoChar(&sql, ')');
	kalam_result_free(kalam_mirror_request(c.conn, sql.data));
	ereport(NOTICE,
			(errmsg("\"%s\" manages remote table %s.%s now", get_rel_name(relid), kalam_quote(c.table->namespace),
					kalam_quote(c.table->name)),
			 before ? errdetail("It was managed by %s (system identifier/database/relation).", before) : 0));
	PG_RETURN_VOID();
}
