/*
 * kalam_create_as.c: CREATE TABLE AS and SELECT INTO, by USING kalamdb or
 * default_table_access_method.
 *
 * The query's columns become a CREATE TABLE, which goes the way of any other,
 * and then the query's rows are inserted: INSERT … SELECT, planned from the
 * query as it was analyzed.  The key is named by the option "key", else it is
 * the column "id".
 */
#include "postgres.h"

#include "access/table.h"
#include "commands/defrem.h"
#include "executor/execdesc.h"
#include "executor/executor.h"
#include "miscadmin.h"
#include "nodes/makefuncs.h"
#include "nodes/nodeFuncs.h"
#include "parser/parse_node.h"
#include "parser/parse_relation.h"
#include "parser/parsetree.h"
#include "rewrite/rewriteHandler.h"
#include "tcop/tcopprot.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/varlena.h"

#include "kalam_core.h"
#include "kalam_ddl.h"

/* ---------- the table ---------- */

static const char *
column_name(List *names, int place, const TargetEntry *entry)
{
	return place < list_length(names) ? strVal(list_nth(names, place)) : entry->resname;
}

static List *
new_columns(const Query *query, List *names)
{
	List	   *columns = NIL;
	int			place = 0;
	ListCell   *lc;

	foreach(lc, query->targetList)
	{
		TargetEntry *entry = lfirst_node(TargetEntry, lc);
		Node	   *expr = (Node *) entry->expr;

		if (entry->resjunk)
			continue;
		columns = lappend(columns, makeColumnDef(column_name(names, place++, entry), exprType(expr), exprTypmod(expr),
												 exprCollation(expr)));
	}
	if (place < list_length(names))
		ereport(ERROR,
				(errcode(ERRCODE_SYNTAX_ERROR),
				 errmsg("too many column names were specified")));
	return columns;
}

/* The option "key" as a PRIMARY KEY; what is left of the options. */
static List *
take_key(List *options, Constraint **key)
{
	List	   *left = NIL;
	ListCell   *lc;

	foreach(lc, options)
	{
		DefElem    *def = lfirst_node(DefElem, lc);
		List	   *names;
		ListCell   *name;

		if (def->defnamespace != NULL || strcmp(def->defname, "key") != 0)
		{
			left = lappend(left, def);
			continue;
		}
		if (!SplitIdentifierString(pstrdup(defGetString(def)), ',', &names) || names == NIL)
			ereport(ERROR,
					(errcode(ERRCODE_FDW_INVALID_OPTION_NAME),
					 errmsg("invalid value for option \"key\": \"%s\"", defGetString(def)),
					 errhint("Name the key's columns, separated by commas.")));
		*key = kalam_create_constraint(CONSTR_PRIMARY);
		foreach(name, names)
			(*key)->keys = lappend((*key)->keys, makeString(lfirst(name)));
	}
	return left;
}

static CreateStmt *
new_table(const CreateTableAsStmt *stmt, const Query *query)
{
	CreateStmt *create = makeNode(CreateStmt);
	Constraint *key = NULL;

	create->relation = copyObject(stmt->into->rel);
	create->tableElts = new_columns(query, stmt->into->colNames);
	create->options = take_key(copyObject(stmt->into->options), &key);
	if (key)
		create->tableElts = lappend(create->tableElts, key);
	create->oncommit = stmt->into->onCommit;
	create->tablespacename = stmt->into->tableSpaceName;
	create->accessMethod = stmt->into->accessMethod;
	create->if_not_exists = stmt->if_not_exists;
	return create;
}

/* ---------- the rows ---------- */

/* INSERT INTO the table's first columns, which are the query's, SELECT … */
static Query *
new_insert(Relation rel, Query *query)
{
	ParseState *pstate = make_parsestate(NULL);
	Query	   *insert = makeNode(Query);
	ParseNamespaceItem *target;
	RangeTblRef *source = makeNode(RangeTblRef);
	AttrNumber	attnum = 0;
	ListCell   *lc;

	target = addRangeTableEntryForRelation(pstate, rel, RowExclusiveLock, NULL, false, false);
	(void) addRangeTableEntryForSubquery(pstate, query, makeAlias("query", NIL), false, false);
	source->rtindex = 2;
	insert->commandType = CMD_INSERT;
	insert->canSetTag = true;
	insert->resultRelation = 1;
	foreach(lc, query->targetList)
	{
		TargetEntry *entry = lfirst_node(TargetEntry, lc);
		Var		   *var;

		if (entry->resjunk)
			continue;
		attnum++;
		var = makeVarFromTargetEntry(2, entry);
		insert->targetList = lappend(insert->targetList,
									 makeTargetEntry((Expr *) var, attnum,
													 pstrdup(NameStr(TupleDescAttr(RelationGetDescr(rel), attnum - 1)->attname)),
													 false));
#if PG_VERSION_NUM >= 160000
		target->p_perminfo->insertedCols = bms_add_member(target->p_perminfo->insertedCols,
														  attnum - FirstLowInvalidHeapAttributeNumber);
#else
		target->p_rte->insertedCols = bms_add_member(target->p_rte->insertedCols,
													 attnum - FirstLowInvalidHeapAttributeNumber);
#endif
	}
#if PG_VERSION_NUM >= 160000
	target->p_perminfo->requiredPerms = ACL_INSERT;
	insert->rteperminfos = pstate->p_rteperminfos;
#else
	target->p_rte->requiredPerms = ACL_INSERT;
#endif
	insert->rtable = pstate->p_rtable;
	insert->jointree = makeFromExpr(list_make1(source), NULL);
	return insert;
}

static uint64
run_insert(KalamUtility *u, Query *insert)
{
	PlannedStmt *plan;
	QueryDesc  *desc;
	uint64		rows;

	plan = pg_plan_query(linitial_node(Query, QueryRewrite(insert)), u->query, CURSOR_OPT_PARALLEL_OK, u->params);
	PushCopiedSnapshot(GetActiveSnapshot());
	UpdateActiveSnapshotCommandId();
	desc = CreateQueryDesc(plan, u->query, GetActiveSnapshot(), InvalidSnapshot, None_Receiver, u->params, u->env, 0);
	ExecutorStart(desc, 0);
#if PG_VERSION_NUM >= 180000
	ExecutorRun(desc, ForwardScanDirection, 0);
#else
	ExecutorRun(desc, ForwardScanDirection, 0, true);
#endif
	rows = desc->estate->es_processed;
	ExecutorFinish(desc);
	ExecutorEnd(desc);
	FreeQueryDesc(desc);
	PopActiveSnapshot();
	return rows;
}

static uint64
fill(KalamUtility *u, Oid relid, Query *query)
{
	Relation	rel = table_open(relid, RowExclusiveLock);
	Query	   *insert = new_insert(rel, query);
	uint64		rows = run_insert(u, insert);

	table_close(rel, NoLock);
	return rows;
}

/* ---------- the statement ---------- */

void
kalam_create_as_run(KalamUtility *u)
{
	CreateTableAsStmt *stmt = (CreateTableAsStmt *) u->pstmt->utilityStmt;
	Query	   *query = copyObject(castNode(Query, stmt->query));
	uint64		rows = 0;
	Oid			relid;

	if (stmt->objtype == OBJECT_MATVIEW)
		kalam_refuse("MATERIALIZED VIEW", "Add USING heap.");
	if (query->commandType == CMD_UTILITY)
		kalam_refuse("CREATE TABLE AS EXECUTE", "CREATE TABLE ... USING kalamdb first, then INSERT ... SELECT.");
	if (query->hasModifyingCTE && !stmt->into->skipData)
		kalam_refuse("CREATE TABLE AS with INSERT, UPDATE or DELETE in WITH", "CREATE TABLE ... USING kalamdb first, then WITH ... INSERT ... SELECT.");
	relid = kalam_create_table_run(u, new_table(stmt, query));
	if (!OidIsValid(relid))
		return;
	if (!stmt->into->skipData)
		rows = fill(u, relid, query);
	if (u->qc)
		SetQueryCompletion(u->qc, CMDTAG_SELECT, rows);
}
