-- complain if script is sourced in psql, rather than via ALTER EXTENSION
\echo Use "ALTER EXTENSION pg_kalam UPDATE TO '0.1.1'" to load this file. \quit

COMMENT ON FOREIGN DATA WRAPPER pg_kalam IS 'tables of KalamDB servers';
COMMENT ON ACCESS METHOD kalamdb IS 'stores nothing: the library makes a foreign table of CREATE TABLE ... USING kalamdb';
COMMENT ON FUNCTION kalam_version() IS 'release of the library';
COMMENT ON FUNCTION kalam_compiled_mode() IS 'how the library reaches the data: remote';
COMMENT ON FUNCTION kalam_user_id() IS 'the session''s tenant; NULL: none';
COMMENT ON FUNCTION kalam_user_id_guc_name() IS 'name of the setting that holds the tenant';
COMMENT ON FUNCTION snowflake_id() IS 'a new number, ordered by time, that no other session or host gets';
COMMENT ON FUNCTION kalam_exec(text, name) IS 'runs a statement on the server, in this transaction; rows come as a JSON array';
COMMENT ON FUNCTION kalam_flush(regclass) IS 'moves a table''s hot rows to segments; the number moved';
COMMENT ON FUNCTION kalam_compact(regclass) IS 'merges a table''s segments; the number of rows written';
COMMENT ON FUNCTION kalam_table_stats(regclass) IS 'rows, segments and bytes of a table''s tiers';
COMMENT ON FUNCTION kalam_manage(regclass) IS 'makes this table the one that manages its remote table';
COMMENT ON FUNCTION kalam_drift(regclass) IS 'where a table and its remote table differ, and what mends it';
COMMENT ON FUNCTION kalam_ping(name) IS 'time of a round trip to a server';
COMMENT ON FUNCTION kalam_server_info(name) IS 'what was negotiated with a server';
COMMENT ON FUNCTION kalam_connections() IS 'the session''s connections';
COMMENT ON FUNCTION kalam_disconnect(name) IS 'closes the connections to a server, or all; false: there was none';
COMMENT ON FUNCTION kalam_round_trips() IS 'requests that this session has sent so far';
