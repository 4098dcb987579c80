"""SET, RESET and SHOW of a session's settings.

A setting is either one of the server's (checked), or one of PostgreSQL's that clients set when they connect and that
changes nothing here (accepted and remembered), or an error.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from kalamdb.api import ClientSession, Result, Row
from kalamdb.errors import KalamError
from kalamdb.settings import Settings
from kalamdb.sql.access import TENANT_SETTING, check_tenant
from kalamdb.sql.lexer import quote
from kalamdb.sql.parseadmin import FORMS
from kalamdb.sql.refusals import nearest
from kalamdb.sql.statements import ResetSettings, SetSetting
from kalamdb.sql.transaction import SessionState
from kalamdb.txn.api import Transaction

Check = Callable[[str], str]


def _invalid(name: str, value: str, hint: str | None = None) -> KalamError:
    return KalamError("22023", f'invalid value for parameter "{name}": "{value}"', hint=hint)


def _one_of(name: str, *values: str) -> Check:
    def check(value: str) -> str:
        if value.lower() not in values:
            raise _invalid(name, value, f"Available values: {', '.join(values)}.")
        return value.lower()

    return check


def _only(name: str, what: str, *values: str) -> Check:
    """A setting that this server has in one way only."""

    def check(value: str) -> str:
        if value.lower().replace(" ", "") not in values:
            raise KalamError("0A000", f"{name} can only be {what} on this server")
        return value

    return check


def _boolean(name: str) -> Check:
    def check(value: str) -> str:
        word = value.lower()
        if word in ("on", "true", "yes", "1"):
            return "on"
        if word in ("off", "false", "no", "0"):
            return "off"
        raise KalamError("22023", f'parameter "{name}" requires a Boolean value')

    return check


def _duration(name: str) -> Check:
    def check(value: str) -> str:
        if not re.fullmatch(r"\d{1,10}\s*(ms|s|min|h|d)?", value.strip()):
            raise _invalid(name, value, 'Valid units for this parameter are "ms", "s", "min", "h", and "d".')
        return value.strip()

    return check


def _any(value: str) -> str:
    return value


_ISOLATIONS = ("read uncommitted", "read committed", "repeatable read", "serializable")


@dataclass(frozen=True, slots=True)
class Known:
    name: str  # as SHOW and ParameterStatus write it
    default: str
    check: Check = _any


_KNOWN: dict[str, Known] = {
    known.name.lower(): known
    for known in (
        Known(TENANT_SETTING, ""),
        Known("search_path", "public"),
        Known("application_name", ""),
        Known("TimeZone", "UTC", _only("TimeZone", "UTC", "utc", "gmt", "etc/utc", "z", "0", "+00", "+00:00")),
        Known("DateStyle", "ISO, MDY", _only("DateStyle", "ISO", "iso", "iso,mdy", "iso,dmy", "iso,ymd", "mdy")),
        Known("IntervalStyle", "postgres", _only("IntervalStyle", "postgres", "postgres")),
        Known("client_encoding", "UTF8", _only("client_encoding", "UTF8", "utf8", "utf-8", "unicode")),
        Known("standard_conforming_strings", "on", _only("standard_conforming_strings", "on", "on", "true", "1")),
        Known("statement_timeout", "0", _duration("statement_timeout")),
        Known("lock_timeout", "0", _duration("lock_timeout")),
        Known("idle_in_transaction_session_timeout", "0", _duration("idle_in_transaction_session_timeout")),
        Known("default_transaction_isolation", "read committed",
              _one_of("default_transaction_isolation", *_ISOLATIONS)),
        Known("default_transaction_read_only", "off", _boolean("default_transaction_read_only")),
        # nothing here depends on these; clients set them when they connect
        Known("client_min_messages", "notice"), Known("extra_float_digits", "1"), Known("bytea_output", "hex",
              _only("bytea_output", "hex", "hex")),
        Known("synchronous_commit", "on"), Known("row_security", "on"), Known("lc_messages", "C"),
        Known("lc_monetary", "C"), Known("lc_numeric", "C"), Known("lc_time", "C"), Known("jit", "off"),
        Known("geqo", "on"), Known("work_mem", "4MB"), Known("xmloption", "content"),
        Known("default_tablespace", ""), Known("default_table_access_method", "kalamdb"),
        Known("check_function_bodies", "on"), Known("escape_string_warning", "on"),
        Known("backslash_quote", "safe_encoding"), Known("quote_all_identifiers", "off"),
        Known("default_transaction_deferrable", "off"), Known("enable_seqscan", "on"),
        Known("plan_cache_mode", "auto"), Known("idle_session_timeout", "0"), Known("transaction_timeout", "0"),
    )
}
_FIXED: dict[str, str] = {
    "server_version": "16.0", "server_version_num": "160000", "server_encoding": "UTF8", "integer_datetimes": "on",
    "max_identifier_length": "63", "is_superuser": "off", "in_hot_standby": "off", "lc_collate": "C", "lc_ctype": "C",
}


def _known(name: str) -> Known:
    known = _KNOWN.get(name.lower())
    if known is not None:
        return known
    if name.lower() in _FIXED or name.lower() in ("session_authorization", "role"):
        raise KalamError("55P02", f'parameter "{name}" cannot be changed')
    if "." in name:  # a placeholder of some client or extension, as PostgreSQL allows
        return Known(name.lower(), "")
    raise _unrecognized(name)


def _unrecognized(name: str) -> KalamError:
    near = nearest(name, (*_KNOWN, *_FIXED, *FORMS))
    shown = _KNOWN[near].name if near in _KNOWN else near
    return KalamError("42704", f'unrecognized configuration parameter "{name}"',
                      hint=f'Did you mean "{shown}"?' if near is not None else None)


def set_setting(session: ClientSession, state: SessionState, statement: SetSetting, *, in_block: bool) -> Result:
    try:
        known = _known(statement.name)
    except KalamError as error:
        error.position = statement.place
        raise
    if statement.value is None:
        value: str | None = None
    elif known.name == "search_path":
        value = ", ".join(part if part.isidentifier() and part == part.lower() else quote(part)
                          for part in statement.value)
    else:
        value = known.check(", ".join(statement.value))
    if known.name == TENANT_SETTING and value:
        check_tenant(session.account, value)
    if statement.local:
        if not in_block:
            return Result("SET", notices=("SET LOCAL can only be used in transaction blocks",))
        state.settings_local.setdefault(known.name, session.settings.get(known.name))
    else:
        state.settings_local.pop(known.name, None)
    _store(session, known.name, value)
    return Result("SET")


def _store(session: ClientSession, name: str, value: str | None) -> None:
    if name == "application_name":
        session.application = value or ""
    if value is None:
        session.settings.pop(name, None)
    else:
        session.settings[name] = value


def reset_settings(session: ClientSession, statement: ResetSettings) -> Result:
    if statement.name is None:
        if statement.discard and session.transaction is not None:
            raise KalamError("25001", "DISCARD ALL cannot run inside a transaction block")
        session.settings.clear()
    else:
        _store(session, _known(statement.name).name, None)
    return Result("DISCARD ALL" if statement.discard else "RESET")


def show_setting(session: ClientSession, name: str, transaction: Transaction, server: Settings) -> str:
    lowered = name.lower()
    if lowered == "transaction_isolation":
        return transaction.isolation
    if lowered == "transaction_read_only":
        return "on" if transaction.read_only else "off"
    if lowered in _FIXED:
        return _FIXED[lowered]
    known = _KNOWN.get(lowered)
    stored = session.settings.get(known.name if known is not None else lowered)
    if stored is not None:
        return stored
    if known is None:
        raise _unrecognized(name)
    return _default(known, server)


def _default(known: Known, server: Settings) -> str:
    if known.name == "idle_in_transaction_session_timeout" and server.idle_in_transaction_session_timeout:
        return f"{server.idle_in_transaction_session_timeout}ms"
    return known.default


def all_settings(session: ClientSession, server: Settings) -> list[Row]:
    values = {known.name: session.settings.get(known.name, _default(known, server)) for known in _KNOWN.values()}
    values.update({name: value for name, value in session.settings.items() if name not in values})
    values.update(_FIXED)
    return sorted(values.items())
