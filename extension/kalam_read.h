/*
 * kalam_read.h: what the files of the reading half know of each other.
 *
 * kalam_shippable.c     may this expression be sent?
 * kalam_deparse.c       print it; kalam_statement.c: and a statement around it
 * kalam_estimate.c      how many rows, at what cost
 * kalam_plan.c          paths of tables, and all plans
 * kalam_join.c          paths of joins
 * kalam_order.c         orders of rows that paths may have
 * kalam_upper.c         paths of what is done with joined rows: groups, windows, DISTINCT, ORDER BY, LIMIT
 * kalam_scan.c          running a plan
 * kalam_change.c        UPDATE and DELETE that are sent whole: which, and their plans
 * kalam_direct.c        running them
 * kalam_rules.c         what the server enforces of a table's constraints
 * kalam_conflict.c      INSERT ... ON CONFLICT (key)
 * kalam_parameter.c     what a statement's parameters are
 * kalam_async.c         running several at the same time
 * kalam_reader.c        results to rows
 * kalam_size.c          how large a table is
 * kalam_analyze.c       ANALYZE
 * kalam_explain.c       EXPLAIN (ANALYZE)
 * kalam_arrow.c         record batches in
 * kalam_arrow_writer.c  record batches out
 * kalam_datum.c         values
 */
#ifndef KALAM_READ_H
#define KALAM_READ_H

#include "kalam_arrow.h"

/* ---------- kalam_shippable.c ---------- */
/* where an expression is to be evaluated */
typedef struct KalamScope
{
	PlannerInfo *root;
	KalamConn  *conn;
	Relids		relids;			/* whose columns it may name; all else is a parameter */
	bool		plain;			/* only what the store evaluates by itself: under a lock, of a table without a key */
	bool		grouped;		/* it may hold aggregates */
	List	   *group_keys;		/* of TargetEntry: what GROUPING() and sets refer to */
	List	   *windows;		/* WindowClauses of the window functions it may hold */
	List	   *window_exprs;	/* what these partition and sort by */
} KalamScope;

/* may it be sent, as it is? */
extern bool kalam_is_shippable(const KalamScope *scope, Expr *expr);
/* the tables at whose join it is computed; NULL if it cannot be told */
extern Relids kalam_placeholder_relids(PlannerInfo *root, PlaceHolderVar *phv);
/* names no column of these: computed here, and sent as a parameter */
extern bool kalam_is_parameter(Relids relids, Expr *expr);
/* "=", where it is IN, or NOT IN; otherwise invalid */
extern Oid	kalam_in_equality(ScalarArrayOpExpr *expr);
/* a cast by output and input functions, one of which is text's; NULL: not there, or not the same */
/* kalam_argument.c: are these the arguments that the capability asks for? */
extern bool kalam_arguments_allowed(KalamConn *conn, const KalamCap *cap, List *args, Oid collation);
extern bool kalam_has_ascii_letters(Oid collation);
/* kalam_pattern.c */
extern bool kalam_is_common_pattern(const char *pattern, bool single, bool *classes);
/* kalam_math.c: what the C library's functions give, in one text */
extern const char *kalam_libm(void);
extern const KalamCap *kalam_conversion(KalamConn *conn, CoerceViaIO *expr);
/* how ANY and ALL travel */
typedef enum KalamArrayForm
{
	KALAM_ARRAY_ELEMENTS,		/* a comparison, or a value of IN, for each element */
	KALAM_ARRAY_IN,				/* IN, and the array as one parameter */
	KALAM_ARRAY_EACH,			/* kalam_any or kalam_all of it */
} KalamArrayForm;

extern KalamArrayForm kalam_array_form(const KalamScope *scope, ScalarArrayOpExpr *expr);
/* may rows be sorted by "<", or told apart by "=", of this collation? */
extern bool kalam_operator_allowed(KalamConn *conn, Oid operator, Oid collation);
/* may rows be sorted by this clause, whose expression has this collation? */
extern bool kalam_sort_allowed(KalamConn *conn, const SortGroupClause *clause, Oid collation);

/* is it "<" of its type, rather than ">"? */
extern bool kalam_sorts_upwards(Oid sortop);

/* ---------- kalam_estimate.c ---------- */
/*
 * What planning knows of a table, a join or a step above: RelOptInfo.fdw_private.
 *
 * The steps above a join are clauses of the same statement, since PostgreSQL
 * takes them in the order in which SQL does; each has a copy of what is below.
 */
typedef struct KalamRelInfo
{
	KalamScope	scope;
	PlannerInfo *root;
	Relids		relids;			/* the relation's own, outer joins included */
	Relids		visible;		/* of scope.relids: not the inner sides of semi- and anti-joins */
	double		startup_cost;	/* the options fdw_startup_cost and fdw_tuple_cost */
	double		tuple_cost;

	/* a table */
	KalamTable *table;
	Index		rtindex;
	List	   *keys;			/* attnums of the key, in its order */

	/* a join; of a semi- or anti-join only the outer side is in FROM */
	struct KalamRelInfo *outer;
	struct KalamRelInfo *inner;
	JoinType	jointype;
	List	   *on;				/* conditions as in conds */
	List	   *columns;		/* Vars and PlaceHolderVars that are wanted above it */
	bool		wrap_outer;		/* that side is a SELECT of its own in FROM, with its own WHERE, */
	bool		wrap_inner;		/* because an outer join may replace its rows by NULLs */

	/* its WHERE: expressions, and KalamExists */
	List	   *conds;
	List	   *exists;
	List	   *on_exists;

	/* of a table: RestrictInfos that are sent, and those that are not; of others, local_conds are expressions */
	List	   *remote_conds;
	List	   *local_conds;
	QualCost	local_cost;
	double		remote_rows;	/* that satisfy remote_conds, as the server estimates; -1: it was not asked */
	bool		locked;			/* rows are locked as they are read */
	bool		gated;			/* a condition that is decided once, before the scan, stands above it */
	bool		steps;			/* it is a step above a table or join */
	double		discount;		/* of a step's costs, to be preferred */

	/* the steps above: a copy of the table's or join's info with */
	struct KalamRelInfo *from;	/* that table or join */
	List	   *outputs;		/* expressions that the statement gives; NIL: columns as they are needed */
	List	   *junk;			/* that it need not give, though the target has them */
	List	   *groups;			/* GROUP BY */
	List	   *sets;			/* GROUPING SETS: lists of references to scope.group_keys */
	List	   *having;
	bool		nonempty;		/* GROUP BY values known here: one group, but none of no rows */
	List	   *qualify;		/* what values of windows must satisfy */
	bool		distinct;
	List	   *distinct_on;
	RelOptInfo *input;			/* of ORDER BY and LIMIT: the relation whose plan it becomes */
	List	   *order;			/* of KalamSortKey's: lists of an expression and its flags */

	/* costs */
	double		rows;			/* that travel */
	Cost		work;			/* to make them */
} KalamRelInfo;

/* [NOT] EXISTS (SELECT … WHERE the conditions, and the inner side's own) */
typedef struct KalamExists
{
	KalamRelInfo *inner;
	List	   *conds;
	bool		anti;
} KalamExists;

#define KALAM_SORT_DESC			0x01
#define KALAM_SORT_NULLS_FIRST	0x02

/* what a scan costs that sends these RestrictInfos */
typedef struct KalamEstimate
{
	double		fetched;		/* rows that travel */
	bool		by_key;			/* the whole key is given, maybe with several values */
	Cost		work;
	Cost		startup_cost;
	Cost		total_cost;
} KalamEstimate;

extern void kalam_estimate_size(PlannerInfo *root, RelOptInfo *rel, KalamRelInfo *info);
extern void kalam_estimate_scan(PlannerInfo *root, RelOptInfo *rel, KalamRelInfo *info, List *conds,
								KalamEstimate *estimate);
/* what rows cost that the server makes with so much work */
extern void kalam_estimate_rows(KalamRelInfo *info, PathTarget *target, double rows, Cost work,
								KalamEstimate *estimate);
/* what sorting them adds */
extern void kalam_estimate_sort(KalamEstimate *estimate, double rows);
/* the same for a merge join */
extern void kalam_estimate_merge(const KalamRelInfo *info, KalamEstimate *estimate);

/* ---------- kalam_statement.c ---------- */
/* SELECT; NIL and NULL are what it has not */
typedef struct KalamStatement
{
	KalamRelInfo *from;			/* a table or join */
	const KalamScope *scope;	/* of the outputs */
	List	   *outputs;		/* expressions; none: one NULL a row */
	List	   *conds;			/* WHERE, without what from->exists adds */
	List	   *groups;
	List	   *sets;			/* of groups */
	List	   *having;
	bool		nonempty;
	List	   *qualify;
	bool		distinct;
	List	   *distinct_on;
	List	   *order;
	Node	   *limit;
	Node	   *offset;
	const char *locking;		/* as "FOR UPDATE" */
} KalamStatement;

extern void kalam_deparse_statement(StringInfo buf, const KalamStatement *statement, List **params);
/* UPDATE or DELETE of one table, or of one that is joined with others */
typedef struct KalamChange
{
	CmdType		operation;
	KalamRelInfo *target;
	KalamRelInfo *from;			/* the join that holds it; NULL: the table alone */
	const KalamScope *scope;
	List	   *attnos;			/* UPDATE: columns to set, */
	List	   *exprs;			/* and to what */
	List	   *conds;			/* WHERE */
	List	   *returning;		/* Vars that are wanted of the rows */
	const char *relies_on;		/* the remote definition whose rules hold for it, or NULL */
} KalamChange;

/* ON CONFLICT DO UPDATE */
typedef struct KalamUpsert
{
	Index		target;
	Index		excluded;		/* the row proposed */
	Oid			relid;
	const KalamScope *scope;
	List	   *keys;			/* attnums of the key */
	List	   *attnos;			/* as in KalamChange */
	List	   *exprs;
	List	   *conds;
} KalamUpsert;

extern void kalam_deparse_upsert(StringInfo buf, PlannerInfo *root, const KalamUpsert *upsert, List **params);
extern void kalam_deparse_change(StringInfo buf, const KalamChange *change, List **params);
/* "public.orders r1, public.lines r2" */
extern char *kalam_relation_names(KalamRelInfo *from);

/* ---------- kalam_deparse.c ---------- */
typedef struct KalamDeparse
{
	StringInfo	buf;
	PlannerInfo *root;
	const KalamScope *scope;
	bool		qualify;		/* columns: there is more than one table */
	bool		bare;			/* columns are handed on, not computed with */
	Index		excluded;		/* the row proposed, in ON CONFLICT; 0: none */
	List	  **params;			/* expressions that became $1, $2, … */
	List	   *known;			/* expressions that stand in the statement already, */
	List	   *known_texts;	/* and how: there they must be written alike */
	List	   *wraps;			/* of KalamRelInfo: the SELECTs in FROM that are in sight */
	Node	   *tested;			/* what CASE compares */
} KalamDeparse;

extern void kalam_deparse(Node *node, KalamDeparse *cxt);
extern void kalam_deparse_joined(List *nodes, const char *separator, KalamDeparse *cxt);
/* prints it, and wherever it occurs from now on, prints it the same */
extern void kalam_deparse_known(Node *node, KalamDeparse *cxt);
/* the name of a column or placeholder among the outputs of a SELECT in FROM, and that SELECT's own number */
extern void kalam_deparse_wrapped(Node *node, KalamDeparse *cxt);
extern int	kalam_wrap_number(KalamRelInfo *wrap);
extern void kalam_deparse_sort_key(Node *node, int flags, KalamDeparse *cxt);

/* ---------- kalam_plan.c ---------- */
/* ForeignScan.fdw_private */
typedef enum KalamPlanPart
{
	KALAM_PLAN_SQL,				/* String: the statement */
	KALAM_PLAN_ATTRS,			/* IntList: attnums of the scan's row that it gives */
	KALAM_PLAN_WANTED,			/* Integer: no more rows than this are wanted at first; 0: all */
	KALAM_PLAN_LOCKS,			/* Boolean: it locks what it reads */
	KALAM_PLAN_RELATIONS,		/* String: its tables, where there are several or a step above */
} KalamPlanPart;

extern bool kalam_is_stored(Form_pg_attribute att);
/* how rows of a table are locked, as "FOR UPDATE"; NULL: they are not */
extern const char *kalam_locking_clause(PlannerInfo *root, Index rtindex, const char *of);

/* ForeignPath.fdw_private of a path with ORDER BY or LIMIT: a list of these three */
typedef enum KalamPathPart
{
	KALAM_PATH_ORDER,			/* as KalamRelInfo.order */
	KALAM_PATH_LIMIT,			/* expressions, or NULL */
	KALAM_PATH_OFFSET,
} KalamPathPart;

/* ---------- kalam_join.c, kalam_upper.c ---------- */
extern void kalam_GetForeignJoinPaths(PlannerInfo *root, RelOptInfo *joinrel, RelOptInfo *outerrel,
									  RelOptInfo *innerrel, JoinType jointype, JoinPathExtraData *extra);
extern void kalam_GetForeignUpperPaths(PlannerInfo *root, UpperRelationKind stage, RelOptInfo *input_rel,
									   RelOptInfo *output_rel, void *extra);
/* the columns of these that are sent for: not the whole rows that PostgreSQL asks for to check them again */
extern List *kalam_sent_columns(PlannerInfo *root, List *exprs);

/* ---------- kalam_order.c ---------- */
/* rows in the order of these keys, as KalamRelInfo.order; NIL if it cannot be had */
extern List *kalam_order(KalamRelInfo *info, List *pathkeys);
/* this order as that in which the store keeps a table's rows, which needs no sorting; NIL if it is another */
extern List *kalam_key_order(RelOptInfo *rel, KalamRelInfo *info, List *order);
/* lists of pathkeys, besides the query's, in whose order merge joins could use the rows */
extern List *kalam_merge_orders(PlannerInfo *root, RelOptInfo *rel, KalamRelInfo *info);

/* ---------- kalam_direct.c, kalam_change.c ---------- */
/* ForeignScan.fdw_private of an UPDATE or DELETE that is sent whole */
typedef enum KalamDirectPart
{
	KALAM_DIRECT_SQL,			/* String: the statement */
	KALAM_DIRECT_ATTRS,			/* IntList: attnums of the scan's row that it returns */
	KALAM_DIRECT_RETURNS,		/* Boolean: the query has RETURNING */
	KALAM_DIRECT_COUNTS,		/* Boolean: its rows are the command's */
	KALAM_DIRECT_ORIGINS,		/* IntList, of a join: for each of these the target's attnum, or 0 */
	KALAM_DIRECT_RELATIONS,		/* String: the join's tables */
	KALAM_DIRECT_RULES,			/* String: the remote definition that it relies on, "": none */
	KALAM_DIRECT_SET,			/* IntList: columns that it sets */
	KALAM_DIRECT_WHOLE_SQL,		/* String: the statement that returns all of the target's columns, too, */
	KALAM_DIRECT_WHOLE_ATTRS,	/* IntList: and which these are; where it relies on rules */
} KalamDirectPart;

extern void kalam_direct_routine(FdwRoutine *routine);
extern void kalam_change_routine(FdwRoutine *routine);
/* could an UPDATE or DELETE that joins be sent whole, if all it says can be? */
extern bool kalam_may_change_whole(PlannerInfo *root);
/* and can it, with this join? */
extern bool kalam_join_changes_whole(PlannerInfo *root, KalamRelInfo *join);
/* may a column be set to this? */
extern bool kalam_value_allowed(const KalamScope *scope, Expr *expr);

/* ---------- kalam_rules.c ---------- */
/*
 * Could setting these columns violate what the server knows nothing of?  If
 * not, relies_on becomes the remote definition that says so, for
 * KalamRequest.rules; NULL if there is nothing to violate.
 */
extern bool kalam_breaks_rules(KalamConn *conn, KalamTable *table, Relation rel, List *attnos, List *exprs,
							   const char **relies_on);
/* the answer to a request with rules: the server has done nothing, for it has another definition by now */
extern bool kalam_is_stale(PGresult *res);
/* after that: learns the rules anew; do they still hold, whatever the columns are set to? */
extern bool kalam_rules_hold(KalamConn *conn, KalamTable *table, Relation rel, List *attnos, const char **relies_on);

/* ---------- kalam_parameter.c ---------- */
/* zeroed before they are prepared */
typedef struct KalamParameters
{
	int			n;
	List	   *exprs;			/* of ExprState */
	KalamConverter *converters;
	Oid		   *types;
	bool		needs_modes;	/* some travel as text */
} KalamParameters;

extern void kalam_parameters_prepare(KalamParameters *params, KalamConn *conn, List *exprs, PlanState *parent);
extern void kalam_parameters_take(KalamParameters *params, ExprContext *econtext, KalamRequest *req);

/* ---------- kalam_scan.c ---------- */
extern Oid	kalam_scan_user(ForeignScanState *node, RangeTblEntry *entry);
/* 42501 if the table is known to have rows of tenants, and there is none */
extern void kalam_require_tenant(const char *tenant, KalamTable *table);

/* ---------- kalam_reader.c ---------- */
/* Turns results into rows, a block of rows at a time, column by column. */
typedef struct KalamReader KalamReader;

/* rows of desc, of the relation, or NULL; attrs: which of them the results' columns are */
extern KalamReader *kalam_reader_create(MemoryContext cxt, TupleDesc desc, Relation rel, KalamConn *conn, List *attrs);
/* the next result to read; first: of a new execution.  It must stay until the next one is given. */
extern void kalam_reader_take(KalamReader *reader, PGresult *res, bool first);
/* there is nothing to read until the next one is given */
extern void kalam_reader_clear(KalamReader *reader);
/* stores the next row; false at the result's end */
extern bool kalam_reader_next(KalamReader *reader, TupleTableSlot *slot);

/* ---------- kalam_scan.c, for kalam_async.c ---------- */
extern KalamConn *kalam_scan_connection(ForeignScanState *node);
/* what it has asked for and not read yet; NULL: nothing */
extern KalamAhead *kalam_scan_asked(ForeignScanState *node);
/* could it ask for rows, having asked for nothing? */
extern bool kalam_scan_has_more(ForeignScanState *node);
/* asks for the first or the next chunk, and does not wait for it */
extern void kalam_scan_ask(ForeignScanState *node);
/* takes what it has asked for, to read it; waits unless it is there */
extern void kalam_scan_take(ForeignScanState *node);

/* ---------- kalam_async.c ---------- */
extern void kalam_async_routine(FdwRoutine *routine);

/* ---------- kalam_explain.c ---------- */
/* What EXPLAIN (ANALYZE) is to tell of a scan */
typedef struct KalamMeasure
{
	int			report;			/* the server's, by number; 0: nobody asks */
	uint64		made;			/* the connection that it belongs to */
	int64		chunks;
	int64		rows;
	int64		bytes;
} KalamMeasure;

extern void kalam_measure_begin(KalamMeasure *measure, EState *estate);
extern void kalam_measure_chunk(KalamMeasure *measure, KalamConn *conn, PGresult *res);
extern void kalam_measure_explain(KalamMeasure *measure, KalamConn *conn, struct ExplainState *es);

/* ---------- kalam_size.c ---------- */
typedef struct KalamSize
{
	double		rows;			/* of all tenants; -1: unknown */
	double		bytes;
	double		tenant_rows;	/* -1: unknown */
} KalamSize;

/* what the server says of a table; tenant may be NULL */
extern void kalam_remote_size(KalamConn *conn, KalamTable *table, const char *tenant, KalamSize *size);
/* the same for planning: as the session was told not long ago; roughly: perhaps of another tenant with few rows */
extern void kalam_known_size(KalamConn *conn, KalamTable *table, Oid userid, const char *tenant, bool roughly,
							 KalamSize *size);
/* the answer to a statement that ends with the table's name, as "SHOW TABLE SIZE" */
extern PGresult *kalam_ask_about(KalamConn *conn, KalamTable *table, const char *tenant, const char *question);
/* a binary int4 or int8; 0 if it is none */
extern int64 kalam_result_int(PGresult *res, int row, int col);

/* ---------- kalam_datum.c ---------- */
/* n values of an Arrow column from row start on; what they point to is in the current context */
extern void kalam_block_from_arrow(KalamConverter *c, const KalamArrowColumn *col, int64 start, int n,
								   Datum *values, bool *nulls);
/* can fields of this type be read as the converter's type? */
extern bool kalam_converter_accepts(const KalamConverter *c, Oid remote_oid);

#endif							/* KALAM_READ_H */
