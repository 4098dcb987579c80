/*
 * kalam_analyze.c: ANALYZE.
 *
 * Of a shared table the server draws random rows; only with the option
 * analyze_sampling off do all rows travel, and some are kept here.  Of a user
 * or stream table no value comes here, since statistics are read by all
 * tenants: the number of rows, and the average widths of columns, which are
 * entered into pg_statistic here, because PostgreSQL would take widths only
 * from values.  Neither needs a tenant.
 *
 * A table that ANALYZE does not name, but one that it is a partition of, fails
 * with a warning, as the rest can do without it.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/indexing.h"
#include "catalog/namespace.h"
#include "catalog/pg_statistic.h"
#include "commands/vacuum.h"
#include "common/pg_prng.h"
#include "executor/tuptable.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "tcop/pquery.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/resowner.h"
#include "utils/syscache.h"

#include "kalam_core.h"
#include "kalam_read.h"

/* A table being analyzed */
typedef struct KalamAnalyze
{
	Relation	rel;
	KalamTable *table;
	KalamConn  *conn;
	List	   *attrs;			/* attnums of the columns that the server has */
	int			elevel;

	/* the sample */
	HeapTuple  *rows;
	int			wanted;
	int			kept;
	double		total;			/* rows of the table */
	KalamSize	size;
} KalamAnalyze;

/* ---------- failing ---------- */

/* Does the statement name it, rather than a table that it is a partition of? */
static bool
is_named(Relation rel)
{
	PlannedStmt *stmt;
	ListCell   *lc;

	if (ActivePortal == NULL || list_length(ActivePortal->stmts) != 1)
		return true;
	stmt = linitial_node(PlannedStmt, ActivePortal->stmts);
	if (stmt->utilityStmt == NULL || !IsA(stmt->utilityStmt, VacuumStmt))
		return true;
	foreach(lc, ((VacuumStmt *) stmt->utilityStmt)->rels)
	{
		VacuumRelation *named = lfirst_node(VacuumRelation, lc);

		if (named->relation && RangeVarGetRelid(named->relation, NoLock, true) == RelationGetRelid(rel))
			return true;
	}
	return false;
}

static void
warn_instead(Relation rel, ErrorData *error)
{
	ereport(WARNING,
			(errcode(error->sqlerrcode),
			 errmsg("skipping foreign table \"%s\": %s", RelationGetRelationName(rel), error->message),
			 error->detail ? errdetail_internal("%s", error->detail) : 0,
			 error->hint ? errhint("%s", error->hint) : 0));
}

/* Runs a step; false with a warning where it fails, unless the table is named. */
static bool
attempt(KalamAnalyze *analyze, void (*step) (KalamAnalyze *))
{
	MemoryContext cxt = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	ErrorData  *volatile error = NULL;

	if (is_named(analyze->rel))
	{
		step(analyze);
		return true;
	}
	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(cxt);
	PG_TRY();
	{
		step(analyze);
		ReleaseCurrentSubTransaction();
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(cxt);
		error = CopyErrorData();
		if (error->sqlerrcode == ERRCODE_QUERY_CANCELED)
			PG_RE_THROW();
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
	}
	PG_END_TRY();
	MemoryContextSwitchTo(cxt);
	CurrentResourceOwner = owner;
	if (error)
		warn_instead(analyze->rel, error);
	return error == NULL;
}

/* ---------- the table ---------- */

/* Statistics are made for everybody, so the owner's account asks. */
static void
connect_as_owner(KalamAnalyze *analyze)
{
	analyze->table = kalam_table_get(RelationGetRelid(analyze->rel));
	analyze->conn = kalam_connection_get(kalam_user_mapping(analyze->table->serverid,
															analyze->rel->rd_rel->relowner));
}

static void
ask_size(KalamAnalyze *analyze)
{
	connect_as_owner(analyze);
	kalam_remote_size(analyze->conn, analyze->table, NULL, &analyze->size);
}

static List *
stored_columns(Relation rel)
{
	TupleDesc	desc = RelationGetDescr(rel);
	List	   *attrs = NIL;

	for (int i = 0; i < desc->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(desc, i);

		if (att->attisdropped)
			continue;
#if PG_VERSION_NUM >= 180000
		if (att->attgenerated == ATTRIBUTE_GENERATED_VIRTUAL)
			continue;
#endif
		attrs = lappend_int(attrs, att->attnum);
	}
	return attrs;
}

/* ---------- a sample ---------- */

static void
append_columns(StringInfo sql, KalamAnalyze *analyze)
{
	ListCell   *lc;
	const char *separator = "";

	foreach(lc, analyze->attrs)
	{
		appendStringInfo(sql, "%s%s", separator,
						 kalam_quote(kalam_remote_column(RelationGetRelid(analyze->rel), lfirst_int(lc))));
		separator = ", ";
	}
}

/* NULL: the server is not to sample. */
static const char *
sampling_method(KalamAnalyze *analyze)
{
	const char *method = kalam_find_option(GetForeignTable(RelationGetRelid(analyze->rel))->options, "analyze_sampling");

	if (method == NULL)
		return "auto";
	return strcmp(method, "off") == 0 ? NULL : method;
}

static void
deparse_sample(StringInfo sql, KalamAnalyze *analyze, const char *method)
{
	if (method)
	{
		appendStringInfo(sql, "SAMPLE %d ROWS OF ", analyze->wanted);
		kalam_deparse_table(sql, analyze->table);
		appendStringInfoString(sql, " (");
		append_columns(sql, analyze);
		appendStringInfo(sql, ") METHOD %s", method);
		return;
	}
	appendStringInfoString(sql, "SELECT ");
	append_columns(sql, analyze);
	appendStringInfoString(sql, " FROM ");
	kalam_deparse_table(sql, analyze->table);
}

/* Keeps the row, or another one, or neither, so that all have the same chance. */
static void
keep_row(KalamAnalyze *analyze, TupleTableSlot *slot)
{
	int			place = analyze->kept;

	analyze->total++;
	if (analyze->kept < analyze->wanted)
		analyze->kept++;
	else
	{
		uint64		any = pg_prng_uint64_range(&pg_global_prng_state, 0, (uint64) analyze->total - 1);

		if (any >= (uint64) analyze->wanted)
			return;
		place = (int) any;
		heap_freetuple(analyze->rows[place]);
	}
	analyze->rows[place] = ExecCopySlotHeapTuple(slot);
}

/* "SAMPLE 10000 1200000 scan_7": the second is how many rows there are.  -1: it is no sample. */
static double
tag_total(PGresult *res)
{
	double		total;

	return sscanf(PQcmdStatus(res), "SAMPLE %*d %lf", &total) == 1 ? total : -1;
}

/* Reads the answer and what follows it. */
static void
read_rows(KalamAnalyze *analyze, KalamReader *reader, KalamRequest *req)
{
	TupleTableSlot *slot = MakeSingleTupleTableSlot(RelationGetDescr(analyze->rel), &TTSOpsVirtual);
	PGresult   *res = kalam_request(analyze->conn, req);
	double		total = tag_total(res);
	bool		first = true;
	char	   *cursor;

	for (;;)
	{
		kalam_reader_take(reader, res, first);
		first = false;
		while (kalam_reader_next(reader, slot))
			keep_row(analyze, slot);
		cursor = kalam_result_cursor(res);
		ExecClearTuple(slot);
		if (cursor == NULL)
			break;
		kalam_result_free(res);
		req->sql = psprintf("FETCH %d FROM %s", req->fetch_size, cursor);
		res = kalam_request(analyze->conn, req);
	}
	if (total >= 0)
		analyze->total = total;
	kalam_result_free(res);
	ExecDropSingleTupleTableSlot(slot);
}

/* All but the rows themselves is in a memory context of its own. */
static void
take_sample(KalamAnalyze *analyze)
{
	MemoryContext cxt = AllocSetContextCreate(CurrentMemoryContext, "KalamDB sample", ALLOCSET_DEFAULT_SIZES);
	KalamRequest req = {0};
	const char *method = sampling_method(analyze);
	StringInfoData sql;

	connect_as_owner(analyze);
	initStringInfo(&sql);
	deparse_sample(&sql, analyze, method);
	req.sql = sql.data;
	req.flags = KALAM_REQ_ARROW;
	req.fetch_size = method ? KALAM_DEFAULT_FETCH : analyze->table->fetch_size;
	read_rows(analyze, kalam_reader_create(cxt, RelationGetDescr(analyze->rel), analyze->rel, analyze->conn,
										   analyze->attrs), &req);
	MemoryContextDelete(cxt);
	ereport(analyze->elevel,
			(errmsg("\"%s\": table contains %.0f rows, %d rows in sample",
					RelationGetRelationName(analyze->rel), analyze->total, analyze->kept)));
}

/* ---------- widths ---------- */

static HeapTuple
width_tuple(Relation statistics, Oid relid, AttrNumber attnum, int width, HeapTuple before)
{
	Datum		values[Natts_pg_statistic] = {0};
	bool		nulls[Natts_pg_statistic] = {0};
	bool		replaces[Natts_pg_statistic];

	values[Anum_pg_statistic_starelid - 1] = ObjectIdGetDatum(relid);
	values[Anum_pg_statistic_staattnum - 1] = Int16GetDatum(attnum);
	values[Anum_pg_statistic_stainherit - 1] = BoolGetDatum(false);
	values[Anum_pg_statistic_stanullfrac - 1] = Float4GetDatum(0.0);
	values[Anum_pg_statistic_stawidth - 1] = Int32GetDatum(width);
	values[Anum_pg_statistic_stadistinct - 1] = Float4GetDatum(0.0);	/* unknown */
	for (int i = 0; i < STATISTIC_NUM_SLOTS; i++)
	{
		nulls[Anum_pg_statistic_stanumbers1 - 1 + i] = true;
		nulls[Anum_pg_statistic_stavalues1 - 1 + i] = true;
	}
	if (before == NULL)
		return heap_form_tuple(RelationGetDescr(statistics), values, nulls);
	memset(replaces, true, sizeof(replaces));
	return heap_modify_tuple(before, RelationGetDescr(statistics), values, nulls, replaces);
}

static void
store_width(Relation statistics, Oid relid, AttrNumber attnum, int width)
{
	HeapTuple	before = SearchSysCache3(STATRELATTINH, ObjectIdGetDatum(relid), Int16GetDatum(attnum),
										 BoolGetDatum(false));
	HeapTuple	after = width_tuple(statistics, relid, attnum, width, before);

	if (HeapTupleIsValid(before))
	{
		CatalogTupleUpdate(statistics, &before->t_self, after);
		ReleaseSysCache(before);
	}
	else
		CatalogTupleInsert(statistics, after);
	heap_freetuple(after);
}

/* Of types with one width PostgreSQL knows it; 0: the server has seen no value. */
static bool
width_is_news(Relation rel, AttrNumber attnum, int width)
{
	return width > 0 && TupleDescAttr(RelationGetDescr(rel), attnum - 1)->attlen < 0;
}

static int
remote_width(PGresult *res, const char *column)
{
	for (int row = 0; row < PQntuples(res); row++)
	{
		if (strcmp(kalam_from_utf8(PQgetvalue(res, row, 0), PQgetlength(res, row, 0)), column) == 0)
			return (int) kalam_result_int(res, row, 1);
	}
	return 0;
}

static void
store_widths(KalamAnalyze *analyze, PGresult *res)
{
	Relation	statistics = table_open(StatisticRelationId, RowExclusiveLock);
	Oid			relid = RelationGetRelid(analyze->rel);
	ListCell   *lc;

	foreach(lc, analyze->attrs)
	{
		int			width = remote_width(res, kalam_remote_column(relid, lfirst_int(lc)));

		if (width_is_news(analyze->rel, lfirst_int(lc), width))
			store_width(statistics, relid, lfirst_int(lc), width);
	}
	table_close(statistics, RowExclusiveLock);
}

/*
 * Only where the table itself is being analyzed, and not the rows that it has
 * as a partition, ANALYZE has locked it so that nobody else writes its entries.
 */
static bool
may_store(Relation rel)
{
	return CheckRelationLockedByMe(rel, ShareUpdateExclusiveLock, true);
}

static void
take_widths(KalamAnalyze *analyze)
{
	PGresult   *res;

	connect_as_owner(analyze);
	res = kalam_ask_about(analyze->conn, analyze->table, NULL, "SHOW COLUMN WIDTHS");
	if (PQntuples(res) > 0)
		analyze->total = (double) kalam_result_int(res, 0, 2);
	if (may_store(analyze->rel))
		store_widths(analyze, res);
	kalam_result_free(res);
	ereport(analyze->elevel,
			(errmsg("\"%s\": table contains %.0f rows of all tenants; only counts and widths are collected",
					RelationGetRelationName(analyze->rel), analyze->total)));
}

/* ---------- callbacks ---------- */

static int
acquire_sample_rows(Relation relation, int elevel, HeapTuple *rows, int targrows, double *totalrows,
					double *totaldeadrows)
{
	KalamAnalyze analyze = {0};
	bool		shared;

	analyze.rel = relation;
	analyze.table = kalam_table_get(RelationGetRelid(relation));
	analyze.attrs = stored_columns(relation);
	analyze.elevel = elevel;
	analyze.rows = rows;
	analyze.wanted = targrows;
	shared = !analyze.table->has_type || analyze.table->type == KALAM_SHARED;
	if (!attempt(&analyze, shared && analyze.attrs != NIL ? take_sample : take_widths))
		analyze.kept = 0;
	*totalrows = analyze.total;
	*totaldeadrows = 0;
	return analyze.kept;
}

static bool
kalam_AnalyzeForeignTable(Relation relation, AcquireSampleRowsFunc *func, BlockNumber *totalpages)
{
	KalamAnalyze analyze = {0};

	analyze.rel = relation;
	if (!attempt(&analyze, ask_size))
		return false;
	*func = acquire_sample_rows;
	*totalpages = (BlockNumber) Min(Max(analyze.size.bytes / BLCKSZ, 1), (double) MaxBlockNumber);
	return true;
}

void
kalam_analyze_routine(FdwRoutine *routine)
{
	routine->AnalyzeForeignTable = kalam_AnalyzeForeignTable;
}
