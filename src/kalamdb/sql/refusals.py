"""Statements and objects of PostgreSQL that this server does not have: 0A000, and what to do instead.

What nobody has is 42601, with the nearest word that could have been meant.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from kalamdb.errors import KalamError

_IN_POSTGRESQL = "It works in PostgreSQL, on the tables that are attached there."
_ROLES = "ALTER USER ... ROLE and a shared table's option access_level say who may do what."
_NO_CODE = "Functions and procedures live in PostgreSQL."
#: first word of a statement → the way out
STATEMENTS: dict[str, str] = {
    "analyze": "PostgreSQL's ANALYZE of the attached table collects statistics here.",
    "backup": "The command kalam backup copies a data directory while its server runs.",
    "call": _NO_CODE,
    "checkpoint": "What is committed is on the disk; STORAGE FLUSH moves rows to files.",
    "cluster": "STORAGE COMPACT TABLE name writes a table's files anew, in the order of its key.",
    "comment": "PostgreSQL keeps the comments of attached tables.",
    "copy": "INSERT ... VALUES takes many rows, or use COPY in PostgreSQL, on the attached table.",
    "deallocate": "DEALLOCATE [PREPARE] name or ALL is a statement of its own, on the RPC port.",
    "declare": "Results are sent in portions as they are read; PostgreSQL has cursors over attached tables.",
    "do": _NO_CODE,
    "explain": "EXPLAIN (ANALYZE, VERBOSE) in PostgreSQL shows what the server does for an attached table.",
    "grant": _ROLES,
    "import": "IMPORT FOREIGN SCHEMA is a statement of PostgreSQL; it attaches to this server's tables.",
    "kill": "CANCEL JOB n cancels work in the background; a cancel request cancels a statement.",
    "listen": "LISTEN and NOTIFY work in PostgreSQL.",
    "load": "Libraries are loaded in PostgreSQL.",
    "lock": "SELECT ... FOR UPDATE locks rows.",
    "merge": "Use INSERT ... ON CONFLICT DO UPDATE, or an UPDATE and an INSERT in one transaction.",
    "move": "FETCH n FROM cursor reads on.",
    "notify": "LISTEN and NOTIFY work in PostgreSQL.",
    "prepare": "Clients prepare statements by the extended protocol.",
    "reassign": _ROLES,
    "refresh": "There are no materialized views; INSERT ... SELECT keeps a query's rows.",
    "reindex": "There are no indexes but the key; STORAGE COMPACT TABLE name writes a table's files anew.",
    "revoke": _ROLES,
    "security": _ROLES,
    "subscribe": "SELECT rows WHERE _seq > the last one seen: _seq grows in commit order.",
    "truncate": "DELETE FROM name deletes all rows; PostgreSQL's TRUNCATE works on the attached table.",
    "unlisten": "LISTEN and NOTIFY work in PostgreSQL.",
    "use": "SET search_path = namespace",
    "vacuum": "STORAGE COMPACT TABLE name leaves dead rows out of a table's files; it also happens by itself.",
}
_USER = "CREATE USER name PASSWORD '...' ROLE user, service, dba or system makes an account."
_STORAGE = "Storages are tables [storages.NAME] of the server's settings; SHOW STORAGES lists them."
_TABLE = "CREATE [USER | SHARED | STREAM] TABLE makes a table that stays."
#: what CREATE, ALTER and DROP name → the way out
OBJECTS: dict[str, str] = {
    "access": "", "aggregate": _NO_CODE, "cast": "", "collation": "Text is in the order of its code points.",
    "conversion": "", "database": "A server is one database; CREATE NAMESPACE makes a namespace in it.",
    "default": _ROLES, "domain": "A CHECK of the column does what a domain would.", "event": _NO_CODE,
    "extension": "Extensions belong to PostgreSQL.", "foreign": "Tables here are the server's own.",
    "function": _NO_CODE, "global": _TABLE, "group": _USER,
    "index": "The key is the only index; rows are found by it or by a scan that prunes files.", "language": _NO_CODE,
    "large": "", "local": _TABLE, "materialized": "INSERT ... SELECT keeps a query's rows in a table.",
    "operator": _NO_CODE, "owned": _ROLES,
    "policy": "User tables are each tenant's own; shared ones have access_level.",
    "procedure": _NO_CODE, "procedural": _NO_CODE, "publication": "", "recursive": _IN_POSTGRESQL, "role": _USER,
    "routine": _NO_CODE, "rule": _NO_CODE, "sequence": "DEFAULT snowflake_id() gives keys that grow.",
    "server": "Servers are objects of PostgreSQL.", "statistics": "PostgreSQL keeps the statistics of attached tables.",
    "storage": _STORAGE, "subscription": "", "system": "The server's settings are in its settings file.",
    "tablespace": _STORAGE, "temp": _TABLE, "temporary": _TABLE, "text": "", "transform": "",
    "trigger": "Triggers belong to PostgreSQL, on the attached table.", "trusted": _NO_CODE,
    "type": "PostgreSQL's own types can be a column's; a CHECK does what an enum would.",
    "unique": "The key is unique; there are no other indexes.", "unlogged": _TABLE,
    "view": "Views belong to PostgreSQL, over the attached tables.",
}


def nearest(word: str, words: Iterable[str]) -> str | None:
    """The word that was probably meant."""
    found = difflib.get_close_matches(word.lower(), list(words), 1, 0.7)
    return found[0] if found else None


def meant(word: str, words: Iterable[str], otherwise: str) -> str:
    """A hint: the word that was probably meant, or what could have been."""
    near = nearest(word, words)
    return f"Did you mean {near.upper()}?" if near is not None else otherwise


def unsupported(what: str, position: int, hint: str) -> KalamError:
    return KalamError("0A000", f"{what} is not supported", position=position, hint=hint or _IN_POSTGRESQL)
