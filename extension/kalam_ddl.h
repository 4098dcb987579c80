/*
 * kalam_ddl.h: what the DDL files know of each other.
 *
 * kalam_ddl.c     the utility hook: which statements are ours, who handles them
 * kalam_create.c  CREATE TABLE … USING kalamdb becomes CREATE FOREIGN TABLE
 * kalam_create_as.c  CREATE TABLE AS
 * kalam_like.c    LIKE in CREATE TABLE
 * kalam_mirror.c  a foreign table that exists locally is created on the server
 * kalam_attach.c  or compared with the one that is there
 * kalam_alter.c   ALTER TABLE and RENAME: who is told
 * kalam_definition.c  what changed, as an ALTER for the server
 * kalam_drift.c   where the two sides differ; taking ownership
 * kalam_drop.c    what DROP, in all its forms, means for the server
 * kalam_refuse.c  statements that would leave the two sides apart
 * kalam_types.c   changes of a type that rows would not survive
 * kalam_secret.c  secrets given on a server go into a mapping
 * kalam_mapping.c who may bind a role to a tenant
 * kalam_bridge.c  statements PostgreSQL knows for its own tables only
 */
#ifndef KALAM_DDL_H
#define KALAM_DDL_H

#include "kalam.h"

#include "tcop/utility.h"

/* One call of the utility hook, so that handlers can run it changed, or twice. */
typedef struct KalamUtility
{
	PlannedStmt *pstmt;
	const char *query;
	bool		read_only_tree;
	ProcessUtilityContext context;
	ParamListInfo params;
	QueryEnvironment *env;
	DestReceiver *dest;
	QueryCompletion *qc;
} KalamUtility;

/* ---------- kalam_ddl.c ---------- */
/* the statement as it came, through the previous hook */
extern void kalam_utility_run(KalamUtility *u);
/* another statement in its place; stmt must be ours to scribble on */
extern void kalam_utility_run_as(KalamUtility *u, Node *stmt);
/* CREATE TABLE of ours in place of the statement; InvalidOid: IF NOT EXISTS, and there was one */
extern Oid	kalam_create_table_run(KalamUtility *u, CreateStmt *stmt);
/* relation of ours behind a name, without lock; InvalidOid if it is none of ours or is not there */
extern Oid	kalam_utility_relation(const RangeVar *name);

/* ---------- kalam_create.c ---------- */
/* does this name, or (NULL) the default, mean our access method? */
extern bool kalam_is_access_method(const char *name);
/* NULL: IF NOT EXISTS, and there is one; comments: (column, text) of columns */
extern CreateForeignTableStmt *kalam_create_rewrite(const CreateStmt *stmt, List **comments);
extern Constraint *kalam_create_constraint(ConstrType type);
/* CREATE FOREIGN TABLE on a server of ours: pins namespace and table; false if IF NOT EXISTS makes it nothing */
extern bool kalam_create_pin(CreateForeignTableStmt *stmt);
extern Oid	kalam_extension_namespace(Oid serverid);
/* ADD COLUMN: what CREATE TABLE … USING does to a column; refuses what a column that comes late cannot be */
extern void kalam_create_added_column(Oid serverid, ColumnDef *column);

/* ---------- kalam_mapping.c ---------- */
/* 42501 if CREATE or ALTER USER MAPPING changes who is bound to which tenant, and is not the owner's */
extern void kalam_mapping_check(Node *stmt);
extern void kalam_mapping_drop(Oid umid);	/* the same, for any DROP */

/* ---------- kalam_create_as.c ---------- */
extern void kalam_create_as_run(KalamUtility *u);

/* ---------- kalam_like.c ---------- */
typedef struct KalamLike
{
	List	   *elements;		/* ColumnDef and Constraint */
	Constraint *key;			/* NULL: none */
	List	   *comments;		/* lists of a column's name and its comment */
} KalamLike;

extern KalamLike *kalam_like_expand(const TableLikeClause *clause);

/* ---------- kalam_mirror.c ---------- */
extern void kalam_mirror_create(Oid relid);
extern char *kalam_mirror_owner(Oid relid);	/* 'sysid/dboid/relid' */
extern PGresult *kalam_mirror_ask(KalamConn *conn, const char *sql);
extern PGresult *kalam_mirror_request(KalamConn *conn, const char *sql);
extern void kalam_mirror_check_columns(Oid relid);
extern void kalam_append_literal(StringInfo buf, const char *value);	/* quoted for the server */
/* value of an option in SHOW TABLE's rows, NULL if absent; palloc'd */
extern char *kalam_mirror_fact(PGresult *rows, const char *name);
/* does this server's table belong to this relation? asks the server */
extern bool kalam_mirror_is_managed(Oid relid);
/* type's name in server SQL, with its modifier; "text" for what is kept as text */
extern char *kalam_mirror_type(KalamConn *conn, Oid typid, int32 typmod);
extern bool kalam_mirror_is_vector(Oid typid);
extern const char *kalam_mirror_column_type(KalamConn *conn, Oid relid, Form_pg_attribute att);
/* a column's DEFAULT in server SQL; NULL: none, or one that is PostgreSQL's alone */
extern const char *kalam_mirror_default(Relation rel, Oid serverid, AttrNumber attnum);
/* is every column of the expression called the same on both sides? */
extern bool kalam_mirror_same_names(Relation rel, Node *expr);
extern int	kalam_mirror_set_modes(void);	/* for text in statements; undo with kalam_reset_transmission_modes */
extern char *kalam_mirror_output(Oid typid, Datum value);	/* under these modes, as the next */
extern char *kalam_mirror_expression(Relation rel, Node *expr);
extern const char *const kalam_mirror_options[];	/* table options that are the server's too; NULL at the end */

/* ---------- kalam_definition.c ---------- */
typedef struct KalamDefinition KalamDefinition;

extern KalamDefinition *kalam_definition_take(Oid relid);
extern void kalam_definition_send(KalamDefinition *before);

/* ---------- kalam_alter.c ---------- */
extern void kalam_alter_run(KalamUtility *u, AlterTableStmt *stmt);
extern void kalam_rename_run(KalamUtility *u);

/* ---------- kalam_attach.c ---------- */
/* restored: the statement says everything, as one of a dump does */
extern void kalam_attach(Oid relid, bool restored);
/* calls work; NULL, or the error of a server that is down, everything undone */
extern ErrorData *kalam_attach_try(void (*work) (Oid relid, void *arg), Oid relid, void *arg);
/* about DESCRIBE's rows; -1, 0 and InvalidOid: there is none */
extern int	kalam_attach_find_column(PGresult *rows, const char *name);
extern int	kalam_attach_key_place(PGresult *rows, int row);
extern AttrNumber kalam_attach_local_column(Oid relid, PGresult *rows, int row);
extern Oid	kalam_attach_parse_type(const char *name);
extern void kalam_attach_pin_column(Oid relid, const char *column);	/* OPTIONS (column_name …) of its present name */

/* ---------- kalam_drop.c ---------- */
extern void kalam_drop_init(void);
extern void kalam_drop_run(KalamUtility *u);	/* runs a DROP of any kind, then tells the servers */
/* runs stmt and returns the foreign table it created, InvalidOid if none */
extern Oid	kalam_create_run(KalamUtility *u, CreateForeignTableStmt *stmt);

/* runs stmt, which alters these tables: columns that they lose are the caller's business */
extern void kalam_altered_run(KalamUtility *u, Node *stmt, List *tables);

extern bool kalam_is_being_created(Oid relid);

/* ---------- kalam_refuse.c ---------- */
KALAM_NORETURN extern void kalam_refuse(const char *what, const char *hint);
extern void kalam_refuse_constraint(ConstrType type);	/* returns if the type is one that foreign tables have */
extern void kalam_refuse_alter(const AlterTableStmt *stmt);
extern bool kalam_alter_is_mirrored(const AlterTableCmd *cmd);
extern void kalam_refuse_managed(const AlterTableCmd *cmd);
extern void kalam_refuse_explain_as(const CreateTableAsStmt *stmt);
extern void kalam_refuse_index(const IndexStmt *stmt);

/* ---------- kalam_types.c ---------- */
extern void kalam_refuse_enum_rename(const AlterEnumStmt *stmt);
extern void kalam_refuse_attributes(const AlterTableStmt *stmt);

/* ---------- kalam_secret.c ---------- */
extern void kalam_secret_run(KalamUtility *u);	/* CREATE and ALTER of a SERVER or USER MAPPING */

/* ---------- kalam_bridge.c ---------- */
extern void kalam_bridge_alter(KalamUtility *u);
extern void kalam_bridge_copy(KalamUtility *u);
extern void kalam_bridge_comment(KalamUtility *u);
extern void kalam_bridge_lock(KalamUtility *u);
extern void kalam_bridge_drop(KalamUtility *u);

#endif							/* KALAM_DDL_H */
