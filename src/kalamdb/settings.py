"""The server's settings: one place that says each one's name, default, limits and meaning.

A setting comes from the TOML file (``--config``, else ``kalamdb.toml`` in the data directory), over that from the
environment (``rpc.port`` is ``KALAM_RPC_PORT``), over that from the command line. An unknown name or a bad value raises
``SettingError``, which names the setting, where it came from and what is allowed; a secret's value is never shown.
Storages have names of their own: ``storages.cold.bucket`` is ``bucket`` of the storage "cold", in the environment
``KALAM_STORAGES_COLD_BUCKET``.
``docs/settings.md`` is ``python -m kalamdb.settings``.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

ENV_PREFIX = "KALAM_"
#: What container platforms put into the environment of every program for a service called "kalam".
_FOREIGN_ENV = re.compile(r"KALAM_(\w+_)?(SERVICE_(HOST|PORT)(_\w+)?|PORT(_\d+_(TCP|UDP)(_\w+)?)?)")
#: Names that are not settings: for the program's callers and for tests.
_OTHER_ENV = re.compile(r"KALAM_(CONFIG|PASSWORD|TEST_\w+|BENCH_\w+|DEMO_\w+)")

#: bytes of a socket's path
LONGEST_SOCKET = 103 if sys.platform == "darwin" else 107

_DEFAULT_DATA = Path("kalamdb-data")

Parser = Callable[[object], Any]


class SettingError(ValueError):
    """A setting is unknown or its value is not allowed; ``hint`` may say what was meant."""

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message if hint is None else f"{message}\nhint: {hint}")
        self.message = message
        self.hint = hint


# ---------- kinds of values: callables that raise ValueError(what is allowed) ----------


def _text(value: object) -> str:
    if not isinstance(value, str) or not value or "\0" in value:
        raise ValueError("a text that is not empty")
    return value


def _path(value: object) -> Path:
    return Path(_text(value)).expanduser()


def _directory(value: object) -> Path | None:
    """Clients know a directory of sockets by its absolute path; a comma separates hosts for them."""
    if value == "":
        return None
    if not isinstance(value, str) or "\0" in value or "," in value or not Path(value).expanduser().is_absolute():
        raise ValueError("the absolute path of a directory, without a comma")
    return Path(value).expanduser()


def _secret(shortest: int) -> Parser:
    def parse(value: object) -> str:
        if not isinstance(value, str) or len(value) < shortest or not value.isprintable():
            raise ValueError(f"a text of printable characters, at least {shortest}")
        return value

    return parse


def _integer(low: int, high: int) -> Parser:
    def parse(value: object) -> int:
        number = int(value) if isinstance(value, str) and re.fullmatch(r"[+-]?\d{1,18}", value.strip()) else value
        if not isinstance(number, int) or isinstance(number, bool) or not low <= number <= high:
            raise ValueError(f"an integer from {low} to {high}")
        return number

    return parse


def _number(low: float, high: float) -> Parser:
    def parse(value: object) -> float:
        allowed = f"a number from {low:g} to {high:g}"
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise ValueError(allowed)
        try:
            number = float(value)
        except ValueError:
            raise ValueError(allowed) from None
        if not low <= number <= high:  # NaN too
            raise ValueError(allowed)
        return number

    return parse


def _http_port(value: object) -> int:
    if isinstance(value, str) and value.strip().lower() == "off":
        return -1
    try:
        return int(_integer(-1, 65535)(value))
    except ValueError:
        raise ValueError('an integer from 0 to 65535 (0: a free one), or "off"') from None


def _choice(*names: str) -> Parser:
    def parse(value: object) -> str:
        if not isinstance(value, str) or value.lower() not in names:
            raise ValueError("one of " + ", ".join(f'"{name}"' for name in names))
        return value.lower()

    return parse


def _size(value: object) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[1-9]\d{0,8}(\.\d+)? ?([KMGT]i?B)", value):
        raise ValueError('a size such as "512MB" or "4GB"')
    return value.replace(" ", "")


def _flush_policy(value: object) -> str:
    parts = [part.strip().partition(":") for part in value.split(",")] if isinstance(value, str) else []
    names = [name for name, _, _ in parts]
    if not parts or len(set(names)) < len(names) or not all(
        name in ("rows", "interval") and number.isdecimal() and int(number) > 0 for name, _, number in parts
    ):
        raise ValueError('"rows:N", "interval:SECONDS", or both with a comma')
    return str(value)


def _flag(value: object) -> bool:
    text = str(value).strip().lower()
    if not isinstance(value, bool | str) or text not in ("true", "false"):
        raise ValueError("true or false")
    return text == "true"


def _bucket(value: object) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{1,61}[A-Za-z0-9]", value):
        raise ValueError("a bucket's name: 3 to 63 letters, digits, dots and dashes")
    return value


def _prefix(value: object) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"([\w-][\w.-]*(/[\w-][\w.-]*){0,7}/?)?", value, re.ASCII):
        raise ValueError('parts of letters, digits, dots, "_" and "-" with "/" between them')
    return value


def _endpoint(value: object) -> str:
    # Neither a user nor a query: they could be credentials, and the address is shown.
    if not isinstance(value, str) or not re.fullmatch(
        r"https?://([A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])(:\d{1,5})?(/[A-Za-z0-9._/-]*)?", value
    ):
        raise ValueError('an address such as "https://s3.example.com" or "http://127.0.0.1:9000", no user or query')
    return value


# ---------- the settings ----------


def _setting(default: object, parse: Parser, doc: str, *, shown: str | None = None, secret: bool = False) -> Any:
    """``shown``: the default as the documentation writes it."""
    metadata = {"parse": parse, "doc": doc, "shown": shown, "secret": secret}
    return field(default=default, repr=not secret, metadata=metadata)


@dataclass(frozen=True, slots=True, kw_only=True)
class RpcSettings:
    host: str = _setting("127.0.0.1", _text, "Address the RPC listener (PostgreSQL wire protocol) binds to.")
    port: int = _setting(9188, _integer(0, 65535), "Its port; 0: a free one, written to `server.json`.")
    socket_dir: Path | None = _setting(  # noqa: RUF009 - None
        None, _directory, "Directory in which it listens on a Unix-domain socket, too: `.s.PGSQL.` and the port, as "
        "PostgreSQL's. Clients give the directory as their host. Whoever may enter it reaches the server.", shown="none"
    )
    max_message: int = _setting(
        256, _integer(1, 1023), "Largest message of an authenticated client, in MiB; a larger one is an error (54000)."
    )
    busy_poll: int = _setting(
        300, _integer(0, 10_000), "Microseconds that the server looks out for the next statement of a client who alone "
        "sends some, before it sleeps; 0: it sleeps at once. Its processor is busy meanwhile."
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpSettings:
    host: str = _setting("127.0.0.1", _text, "Address the HTTP listener binds to.")
    port: int = _setting(8080, _http_port, "Its port; 0: a free one; `-1` or `off`: no HTTP listener.")


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthSettings:
    mode: str | None = _setting(
        None, _choice("trust", "password"),
        "`trust`: everybody is let in as dba, an account's name with its role; `password`: a shared secret, a signed "
        "token or an account's password is asked for. On an address that is not loopback it must be set.",
        shown="`password` if a secret or key is set, else `trust`",
    )
    shared_secret: str | None = _setting(
        None, _secret(1), "Secret that `auth_header 'Bearer …'` may carry; its holder acts as dba.", secret=True
    )
    jwt_key: str | None = _setting(
        None, _secret(32), "Key of signed tokens (JWT, HS256; claims `sub`, `role`, `exp`).", secret=True
    )
    max_failures: int = _setting(5, _integer(1, 1_000_000), "Failed log-ins in a row that lock an account.")
    lockout: float = _setting(60.0, _number(0, 86_400), "Seconds an account stays locked.")


@dataclass(frozen=True, slots=True, kw_only=True)
class DuckDbSettings:
    memory_limit: str = _setting("1GB", _size, "Memory that analytical queries may use in total.")
    threads: int = _setting(0, _integer(0, 1024), "Threads of analytical queries; 0: one for each processor.")


@dataclass(frozen=True, slots=True, kw_only=True)
class TierSettings:
    flush_policy: str = _setting(
        "rows:1000000", _flush_policy, "When hot rows of a table that declares no `flush_policy` go to segments."
    )
    cache_mib: int = _setting(256, _integer(1, 1_000_000), "MiB of decoded row groups of segments kept in memory.")


@dataclass(frozen=True, slots=True, kw_only=True)
class FileSettings:
    max_mib: int = _setting(1024, _integer(1, 1 << 20), "Largest content of a FILE column, in MiB.")
    grace: float = _setting(
        24.0, _number(0, 87_600), "Hours that a content stays after it was put or a row last referred to it."
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageSettings:
    """One storage besides ``local``; its name is the key in ``Settings.storages``."""

    type: str | None = _setting(None, _choice("s3"), "`s3`: a bucket of an S3-compatible service.", shown="must be set")
    bucket: str = _setting("", _bucket, "Its bucket, which exists.", shown="must be set")
    prefix: str = _setting("", _prefix, "What the names of its objects begin with, such as `kalam/prod`.", shown="none")
    region: str = _setting("us-east-1", _text, "Region of the bucket.")
    endpoint: str | None = _setting(None, _endpoint, "Address of the service.", shown="that of Amazon's region")
    access_key_id: str | None = _setting(
        None, _secret(1), "Key that requests are signed with; never shown.", shown="the AWS environment's", secret=True
    )
    secret_access_key: str | None = _setting(
        None, _secret(1), "Secret of the key; never shown.", shown="the AWS environment's", secret=True
    )
    allow_http: bool = _setting(False, _flag, "Whether an endpoint with `http:` is used, without encryption.")
    cache_bytes: int = _setting(
        1 << 30, _integer(0, 1 << 50), "Bytes of its files kept on the server's disk.", shown="`1073741824` (1 GiB)"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All settings of one server. ``Settings()`` has every default."""

    data: Path = _setting(  # noqa: RUF009 - a Path cannot change
        _DEFAULT_DATA, _path, "Data directory; made if it does not exist."
    )
    node_id: int | None = _setting(
        None, _integer(0, 1023), "Number of this node in `snowflake_id()`; distinct among servers that share data.",
        shown="drawn at random once, kept in the data directory",
    )
    log_level: str = _setting("info", _choice("debug", "info", "warning", "error"), "Least severe log lines written.")
    max_connections: int = _setting(500, _integer(1, 100_000), "Clients at one time; further ones get 53300.")
    authentication_timeout: float = _setting(10.0, _number(0.1, 600), "Seconds a client has to log in.")
    lock_timeout: int = _setting(
        60_000, _integer(1, 86_400_000), "Milliseconds a statement waits for a row lock before 55P03."
    )
    idle_in_transaction_session_timeout: int = _setting(
        0, _integer(0, 86_400_000),
        "Milliseconds a transaction may sit without a statement before 25P03 ends its session; 0: for ever. What a "
        "session sets under this name goes before.",
    )
    shutdown_timeout: float = _setting(
        30.0, _number(0, 3600), "Seconds running statements are given to end after SIGTERM."
    )
    drop_grace: float = _setting(24.0, _number(0, 87_600), "Hours that dropped tables' data is kept.")
    rpc: RpcSettings = field(default_factory=RpcSettings)
    http: HttpSettings = field(default_factory=HttpSettings)
    auth: AuthSettings = field(default_factory=AuthSettings)
    duckdb: DuckDbSettings = field(default_factory=DuckDbSettings)
    tiers: TierSettings = field(default_factory=TierSettings)
    files: FileSettings = field(default_factory=FileSettings)
    storages: Mapping[str, StorageSettings] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Definition:
    """One setting as documentation and parsers see it."""

    name: str  # dotted
    default: Any
    shown: str | None
    doc: str
    parse: Parser
    secret: bool

    @property
    def env(self) -> str:
        return ENV_PREFIX + self.name.replace(".", "_").upper()


def _walk(cls: type, prefix: str) -> Iterator[Definition]:
    for item in dataclasses.fields(cls):
        if "parse" in item.metadata:
            yield Definition(name=prefix + item.name, default=item.default, **item.metadata)
        elif dataclasses.is_dataclass(item.default_factory):
            yield from _walk(item.default_factory, f"{prefix}{item.name}.")


DEFINITIONS: dict[str, Definition] = {d.name: d for d in _walk(Settings, "")}
_GROUPS = {name.split(".")[0] for name in DEFINITIONS if "." in name}
_BY_ENV = {d.env: d for d in DEFINITIONS.values()}
#: of every storage; NAME stands for its own
STORAGE_DEFINITIONS: dict[str, Definition] = {
    d.name.rpartition(".")[2]: d for d in _walk(StorageSettings, "storages.NAME.")
}
_STORAGE_NAME = re.compile(r"[a-z][a-z0-9_]{0,62}")
_STORAGE_ENV = re.compile(rf"KALAM_STORAGES_([A-Z0-9_]+?)_({'|'.join(name.upper() for name in STORAGE_DEFINITIONS)})")


# ---------- reading them ----------


def load(
    cli: Mapping[str, object] | None = None, *, env: Mapping[str, str] | None = None, config: Path | None = None
) -> Settings:
    """Settings from file, environment and command line (dotted names; the last wins). Raises SettingError."""
    env = os.environ if env is None else env
    if config is None and "KALAM_CONFIG" in env:
        config = Path(env["KALAM_CONFIG"])
    values = _from_env(env)
    for name, value in (cli or {}).items():
        values[name] = _parse(_known(name, "command line"), value, "command line")
    if config is not None:
        values = _from_file(config) | values
    else:
        data = values.get("data", DEFINITIONS["data"].default)
        if (data / "kalamdb.toml").is_file():
            values = _inside_data(data) | values
    return _check(_build(Settings, "", values), "auth.mode" in values)


def _known(name: str, source: str, *, names: Mapping[str, Any] = DEFINITIONS) -> str:
    if name in names or (name.startswith("storages.") and _of_storage(name, source)):
        return name
    near = difflib.get_close_matches(name, names, 1, 0.6)
    hint = f'did you mean "{near[0]}"?' if near else "the settings are " + ", ".join(sorted(names))
    raise SettingError(f'unknown setting "{name}" ({source})', hint)


def _of_storage(name: str, source: str) -> bool:
    """Whether ``storages.NAME.SETTING`` is one; raises SettingError if not, with what is wrong."""
    storage, _, setting = name.removeprefix("storages.").partition(".")
    if not _STORAGE_NAME.fullmatch(storage) or storage == "local":
        raise SettingError(f'bad name of a storage in setting "{name}" ({source}): it must be lower-case letters, '
                           'digits and "_" after a letter, and not "local"')
    if not setting:
        raise SettingError(f'setting "{name}" ({source}) must be a table with at least "type" and "bucket"')
    if setting not in STORAGE_DEFINITIONS:
        near = difflib.get_close_matches(setting, STORAGE_DEFINITIONS, 1, 0.6)
        hint = f'did you mean "storages.{storage}.{near[0]}"?' if near else "a storage's settings are " + ", ".join(
            STORAGE_DEFINITIONS)
        raise SettingError(f'unknown setting "{name}" ({source})', hint)
    return True


def _definition(name: str) -> Definition:
    return DEFINITIONS.get(name) or STORAGE_DEFINITIONS[name.rpartition(".")[2]]


def _parse(name: str, value: object, source: str) -> Any:
    setting = _definition(name)
    try:
        return setting.parse(value)
    except ValueError as error:
        # An address with "@" has a password in it.
        given = "" if setting.secret or "@" in str(value) else f" {value!r}"
        raise SettingError(f'bad value{given} of setting "{name}" ({source}): it must be {error}') from None


def _from_env(env: Mapping[str, str]) -> dict[str, Any]:
    found = {}
    for key in sorted(env):
        if not key.startswith(ENV_PREFIX) or _OTHER_ENV.fullmatch(key):
            continue
        if key not in _BY_ENV and _FOREIGN_ENV.fullmatch(key):
            continue
        if storage := _STORAGE_ENV.fullmatch(key):
            name = _known(f"storages.{storage[1]}.{storage[2]}".lower(), f"environment variable {key}")
        else:
            name = _BY_ENV[_known(key, "environment", names=_BY_ENV)].name
        found[name] = _parse(name, env[key], f"environment variable {key}")
    return found


def _inside_data(data: Path) -> dict[str, Any]:
    found = _from_file(data / "kalamdb.toml")
    if "data" in found:
        raise SettingError(f'setting "data" cannot be set in the data directory\'s own file ({data / "kalamdb.toml"})')
    return found


def _from_file(path: Path) -> dict[str, Any]:
    source = f"file {path}"
    try:
        tree = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingError(f"cannot read the settings ({source}): {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingError(f"the settings are not valid TOML ({source}): {error}") from None
    return {_known(name, source): _parse(name, value, source) for name, value in _flatten(tree, "")}


def _flatten(tree: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, object]]:
    for key, value in tree.items():
        name = prefix + key
        if isinstance(value, dict) and name not in DEFINITIONS and value:
            yield from _flatten(value, name + ".")
        elif value != {} or name not in (*_GROUPS, "storages"):
            yield name, value


def _build(cls: Any, prefix: str, values: Mapping[str, Any]) -> Any:
    arguments = {}
    for item in dataclasses.fields(cls):
        name = prefix + item.name
        if name in DEFINITIONS:
            if name in values:
                arguments[item.name] = values[name]
        elif name == "storages":
            arguments["storages"] = _build_storages(values)
        else:
            arguments[item.name] = _build(item.default_factory, name + ".", values)
    return cls(**arguments)


def _build_storages(values: Mapping[str, Any]) -> Mapping[str, StorageSettings]:
    given: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        if name.startswith("storages."):
            _, storage, setting = name.split(".")
            given.setdefault(storage, {})[setting] = value
    return MappingProxyType({name: _check_storage(name, StorageSettings(**given[name])) for name in sorted(given)})


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a listener on ``host``."""
    return host == "localhost" or host == "::1" or re.fullmatch(r"127(\.\d{1,3}){3}", host) is not None


def socket_file(directory: Path, port: int) -> Path:
    """The Unix-domain socket of a port, where libpq looks for it."""
    return directory / f".s.PGSQL.{port}"


def fits_socket(path: Path) -> bool:
    """Whether the system takes a path of this length for a socket."""
    return len(os.fsencode(path)) <= LONGEST_SOCKET


def _check(settings: Settings, explicit: bool) -> Settings:
    """Rules between settings."""
    auth = settings.auth
    mode = auth.mode or ("password" if auth.shared_secret or auth.jwt_key else "trust")
    if mode == "trust" and not explicit and not is_loopback(settings.rpc.host):
        raise SettingError(
            f'setting "auth.mode" is needed because "rpc.host" is {settings.rpc.host!r}, not a loopback address',
            'set it to "password" (with "auth.shared_secret", "auth.jwt_key" or accounts), or to "trust" on purpose',
        )
    rpc = settings.rpc
    if rpc.socket_dir is not None and not fits_socket(path := socket_file(rpc.socket_dir, rpc.port or 65535)):
        raise SettingError(f'setting "rpc.socket_dir" is too long: the path of its socket, {str(path)!r}, may have '
                           f"{LONGEST_SOCKET} bytes, and has {len(os.fsencode(path))}")
    return dataclasses.replace(settings, auth=dataclasses.replace(auth, mode=mode))


def _check_storage(name: str, storage: StorageSettings) -> StorageSettings:
    """Rules between the settings of a storage."""
    for needed in ("type", "bucket"):
        if not getattr(storage, needed):
            raise SettingError(f'setting "storages.{name}.{needed}" is needed: each storage has its own')
    if (storage.access_key_id is None) != (storage.secret_access_key is None):
        lone = "secret_access_key" if storage.secret_access_key is None else "access_key_id"
        raise SettingError(f'setting "storages.{name}.{lone}" is needed: key and secret go together')
    if storage.endpoint is not None and storage.endpoint.startswith("http:") and not storage.allow_http:
        raise SettingError(f'setting "storages.{name}.endpoint" is without encryption: {storage.endpoint!r}',
                           f'use https:, or set "storages.{name}.allow_http" to true on purpose')
    return storage


# ---------- documentation ----------


MASK = "********"


def described(settings: Settings) -> list[tuple[str, str | None, str, str]]:
    """(name, value, default, meaning) of every setting, as ``system.settings`` shows them; secrets are masked."""
    values = [(name, setting, _value(settings, name)) for name, setting in DEFINITIONS.items()]
    for storage, given in settings.storages.items():
        values += [(f"storages.{storage}.{name}", setting, getattr(given, name))
                   for name, setting in STORAGE_DEFINITIONS.items()]
    return [(name, _shown(setting, value), _default_text(setting).replace("`", ""), setting.doc.replace("`", ""))
            for name, setting, value in values]


def _value(settings: Any, name: str) -> Any:
    for part in name.split("."):
        settings = getattr(settings, part)
    return settings


def _shown(setting: Definition, value: Any) -> str | None:
    """A value as the settings file would have it."""
    if value is None:
        return None
    if setting.secret or "@" in str(value):  # an address with a password in it
        return MASK
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _default_text(setting: Definition) -> str:
    if setting.shown is not None:
        return setting.shown
    if setting.default is None:
        return "–"
    value = setting.default
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


def _row(setting: Definition) -> str:
    return f"| `{setting.name}` | `{setting.env}` | {_default_text(setting)} | {setting.doc} |"


def markdown() -> str:
    """The page docs/settings.md."""
    lines = [
        "# Settings of the server",
        "",
        "They come from a TOML file (`--config FILE`, or `kalamdb.toml` in the data directory), over that from the",
        "environment, over that from the command line of `kalam serve`. A name with a dot is a key in a TOML table:",
        "`rpc.port` is `port` under `[rpc]`. An unknown name or a bad value stops the start and is named.",
        "Options of the extension are in [reference.md](reference.md).",
        "",
        "| setting | environment | default | meaning |",
        "|---|---|---|---|",
    ]
    lines += [_row(setting) for setting in DEFINITIONS.values()]
    lines += [
        "",
        "## Storages",
        "",
        "Segments of a table lie in the storage its `storage_id` names: `local`, which is a directory below the data",
        "directory, or one of these. A table `[storages.cold]` of the settings file makes the storage `cold`; a name",
        "is lower-case letters, digits and `_`. Without a key or an endpoint, that of the server's AWS environment is",
        "used (`AWS_ACCESS_KEY_ID`, `AWS_ENDPOINT_URL`, or the role of a container or machine).",
        "",
        "```toml",
        "[storages.cold]",
        'type = "s3"',
        'bucket = "history"',
        'endpoint = "https://s3.example.com"',
        "# KALAM_STORAGES_COLD_ACCESS_KEY_ID and KALAM_STORAGES_COLD_SECRET_ACCESS_KEY are in the environment",
        "```",
        "",
        "| setting | environment | default | meaning |",
        "|---|---|---|---|",
    ]
    lines += [_row(setting) for setting in STORAGE_DEFINITIONS.values()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(markdown(), end="")
