-- complain if script is sourced in psql, rather than via CREATE EXTENSION
\echo Use "CREATE EXTENSION pg_kalam" to load this file. \quit

CREATE FUNCTION pg_kalam_handler() RETURNS fdw_handler
AS 'MODULE_PATHNAME' LANGUAGE C STRICT;

CREATE FUNCTION pg_kalam_validator(text[], oid) RETURNS void
AS 'MODULE_PATHNAME' LANGUAGE C STRICT;

CREATE FOREIGN DATA WRAPPER pg_kalam HANDLER pg_kalam_handler VALIDATOR pg_kalam_validator;

-- Never stores anything: the utility hook turns USING kalamdb into a foreign
-- table before it is looked at, and without the hook its handler says so.
CREATE FUNCTION kalamdb_handler(internal) RETURNS table_am_handler
AS 'MODULE_PATHNAME' LANGUAGE C STRICT;

CREATE ACCESS METHOD kalamdb TYPE TABLE HANDLER kalamdb_handler;

CREATE FUNCTION kalam_version() RETURNS text
AS 'MODULE_PATHNAME', 'sql_kalam_version' LANGUAGE C IMMUTABLE PARALLEL SAFE;

CREATE FUNCTION kalam_compiled_mode() RETURNS text
AS 'MODULE_PATHNAME', 'sql_kalam_compiled_mode' LANGUAGE C IMMUTABLE PARALLEL SAFE;

CREATE FUNCTION kalam_user_id() RETURNS text
AS 'MODULE_PATHNAME', 'sql_kalam_user_id' LANGUAGE C STABLE PARALLEL SAFE;

CREATE FUNCTION kalam_user_id_guc_name() RETURNS text
AS 'MODULE_PATHNAME', 'sql_kalam_user_id_guc_name' LANGUAGE C IMMUTABLE PARALLEL SAFE;

CREATE FUNCTION snowflake_id() RETURNS bigint
AS 'MODULE_PATHNAME', 'sql_snowflake_id' LANGUAGE C VOLATILE PARALLEL RESTRICTED;

CREATE FUNCTION kalam_exec(sql text, server name DEFAULT NULL) RETURNS text
AS 'MODULE_PATHNAME', 'sql_kalam_exec' LANGUAGE C VOLATILE PARALLEL UNSAFE;
REVOKE ALL ON FUNCTION kalam_exec(text, name) FROM PUBLIC;

CREATE FUNCTION kalam_flush(relation regclass) RETURNS bigint
AS 'MODULE_PATHNAME', 'sql_kalam_flush' LANGUAGE C VOLATILE STRICT PARALLEL UNSAFE;

CREATE FUNCTION kalam_compact(relation regclass) RETURNS bigint
AS 'MODULE_PATHNAME', 'sql_kalam_compact' LANGUAGE C VOLATILE STRICT PARALLEL UNSAFE;

CREATE FUNCTION kalam_table_stats(relation regclass) RETURNS jsonb
AS 'MODULE_PATHNAME', 'sql_kalam_table_stats' LANGUAGE C VOLATILE STRICT PARALLEL UNSAFE;

CREATE FUNCTION kalam_manage(relation regclass) RETURNS void
AS 'MODULE_PATHNAME', 'sql_kalam_manage' LANGUAGE C VOLATILE STRICT PARALLEL UNSAFE;

CREATE FUNCTION kalam_drift(
	relation regclass, OUT object text, OUT problem text, OUT here text, OUT there text, OUT mend text)
RETURNS SETOF record
AS 'MODULE_PATHNAME', 'sql_kalam_drift' LANGUAGE C VOLATILE STRICT PARALLEL UNSAFE;

CREATE FUNCTION kalam_ping(server name DEFAULT NULL) RETURNS interval
AS 'MODULE_PATHNAME', 'sql_kalam_ping' LANGUAGE C VOLATILE PARALLEL UNSAFE;

CREATE FUNCTION kalam_server_info(server name DEFAULT NULL) RETURNS jsonb
AS 'MODULE_PATHNAME', 'sql_kalam_server_info' LANGUAGE C VOLATILE PARALLEL UNSAFE;

CREATE FUNCTION kalam_connections(
	OUT server_name name, OUT user_name name, OUT valid boolean, OUT used_in_xact boolean)
RETURNS SETOF record
AS 'MODULE_PATHNAME', 'sql_kalam_connections' LANGUAGE C VOLATILE STRICT PARALLEL RESTRICTED;

CREATE FUNCTION kalam_disconnect(server name DEFAULT NULL) RETURNS boolean
AS 'MODULE_PATHNAME', 'sql_kalam_disconnect' LANGUAGE C VOLATILE PARALLEL RESTRICTED;

CREATE FUNCTION kalam_round_trips() RETURNS bigint
AS 'MODULE_PATHNAME', 'sql_kalam_round_trips' LANGUAGE C VOLATILE PARALLEL RESTRICTED;
