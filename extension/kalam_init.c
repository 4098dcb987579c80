/*
 * kalam_init.c: how PostgreSQL meets the library.
 *
 * _PG_init, the handler of the foreign-data wrapper, assembled from what the
 * files for planning, reading, ANALYZE and writing provide, and the access method
 * "kalamdb", whose only job is to say that the utility hook is missing.
 */
#include "postgres.h"

#include "fmgr.h"

#include "kalam_core.h"
#include "kalam_modify.h"

PG_MODULE_MAGIC;

PG_FUNCTION_INFO_V1(pg_kalam_handler);
PG_FUNCTION_INFO_V1(kalamdb_handler);

void		_PG_init(void);

void
_PG_init(void)
{
	kalam_options_init();
	kalam_functions_init();
	kalam_secret_init();
	kalam_estimate_init();
	kalam_modify_init();
	kalam_conflict_init();
	kalam_ddl_init();
	kalam_hint_init();
}

Datum
pg_kalam_handler(PG_FUNCTION_ARGS)
{
	FdwRoutine *routine = makeNode(FdwRoutine);

	kalam_plan_routine(routine);
	kalam_scan_routine(routine);
	kalam_direct_routine(routine);
	kalam_async_routine(routine);
	kalam_analyze_routine(routine);
	kalam_modify_routine(routine);
	kalam_import_routine(routine);
	kalam_conflict_routine(routine);
	PG_RETURN_POINTER(routine);
}

/*
 * Reached only by a statement that the utility hook has not seen.  Calling it
 * has loaded the library, so the hint is good for the next session at least.
 */
Datum
kalamdb_handler(PG_FUNCTION_ARGS)
{
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("USING " KALAM_AM_NAME " needs the library pg_kalam to be loaded"),
			 errhint("Set shared_preload_libraries = 'pg_kalam' and restart; LOAD 'pg_kalam' does it for this session.")));
	PG_RETURN_NULL();
}
