/*
 * kalam_functions.c: the SQL functions.
 */
#include "postgres.h"

#include "fmgr.h"
#include "utils/builtins.h"

#include "kalam_core.h"

PG_FUNCTION_INFO_V1(sql_kalam_version);
PG_FUNCTION_INFO_V1(sql_kalam_compiled_mode);
PG_FUNCTION_INFO_V1(sql_kalam_user_id_guc_name);

Datum
sql_kalam_version(PG_FUNCTION_ARGS)
{
	PG_RETURN_TEXT_P(cstring_to_text(KALAM_VERSION));
}

Datum
sql_kalam_compiled_mode(PG_FUNCTION_ARGS)
{
	PG_RETURN_TEXT_P(cstring_to_text("remote"));
}

Datum
sql_kalam_user_id_guc_name(PG_FUNCTION_ARGS)
{
	PG_RETURN_TEXT_P(cstring_to_text("kalam.user_id"));
}
