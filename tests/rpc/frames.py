"""The client's half of the wire protocol, as bytes, for tests that a real client library would not let happen."""

from __future__ import annotations

import struct
from collections.abc import Sequence


def message(kind: str, body: bytes = b"") -> bytes:
    return kind.encode() + struct.pack("!i", len(body) + 4) + body


def z(text: str) -> bytes:
    return text.encode() + b"\0"


def startup(minor: int = 0, /, **parameters: str) -> bytes:
    body = struct.pack("!i", 3 << 16 | minor) + b"".join(z(k) + z(v) for k, v in parameters.items()) + b"\0"
    return struct.pack("!i", len(body) + 4) + body


def special(code: int, rest: bytes = b"") -> bytes:
    return struct.pack("!ii", 8 + len(rest), code) + rest


SSL_REQUEST = special(80877103)
GSSENC_REQUEST = special(80877104)


def cancel(pid: int, key: bytes) -> bytes:
    return special(80877102, struct.pack("!i", pid) + key)


def password(text: str) -> bytes:
    return message("p", z(text))


def query(sql: str) -> bytes:
    return message("Q", z(sql))


def parse(sql: str, name: str = "", types: Sequence[int] = ()) -> bytes:
    return message("P", z(name) + z(sql) + struct.pack(f"!H{len(types)}I", len(types), *types))


def bind(
    params: Sequence[bytes | None] = (), *, portal: str = "", name: str = "", formats: Sequence[int] = (),
    result_formats: Sequence[int] = (),
) -> bytes:
    body = z(portal) + z(name) + struct.pack(f"!H{len(formats)}H", len(formats), *formats)
    body += struct.pack("!H", len(params))
    for value in params:
        body += struct.pack("!i", -1) if value is None else struct.pack("!i", len(value)) + value
    return message("B", body + struct.pack(f"!H{len(result_formats)}H", len(result_formats), *result_formats))


def describe(kind: str = "P", name: str = "") -> bytes:
    return message("D", kind.encode() + z(name))


def execute(portal: str = "", max_rows: int = 0) -> bytes:
    return message("E", z(portal) + struct.pack("!i", max_rows))


def close(kind: str, name: str = "") -> bytes:
    return message("C", kind.encode() + z(name))


SYNC = message("S")
FLUSH = message("H")
TERMINATE = message("X")


def flight(sql: str, params: Sequence[bytes | None] = (), types: Sequence[int] = (), result_format: int = 0) -> bytes:
    """What PQsendQueryParams sends."""
    return parse(sql, types=types) + bind(params, result_formats=[result_format]) + describe() + execute() + SYNC


# ---------- what the server answers ----------


def split(data: bytes) -> list[tuple[str, bytes]]:
    """The messages of a server, as (type, body); raises if a part is left over."""
    out = []
    while data:
        kind, (length,) = data[:1].decode(), struct.unpack_from("!i", data, 1)
        assert len(data) >= length + 1, f"an incomplete message of type {kind}"
        out.append((kind, data[5 : length + 1]))
        data = data[length + 1 :]
    return out


def kinds(data: bytes) -> str:
    return "".join(kind for kind, _ in split(data))


def error_fields(body: bytes) -> dict[str, str]:
    return {part[:1].decode(): part[1:].decode() for part in body.split(b"\0") if part}


def errors(data: bytes) -> list[dict[str, str]]:
    return [error_fields(body) for kind, body in split(data) if kind == "E"]


def tags(data: bytes) -> list[str]:
    return [body[:-1].decode() for kind, body in split(data) if kind == "C"]


def row(body: bytes) -> list[bytes | None]:
    (count,) = struct.unpack_from("!H", body)
    values: list[bytes | None] = []
    at = 2
    for _ in range(count):
        (length,) = struct.unpack_from("!i", body, at)
        at += 4
        values.append(None if length < 0 else body[at : at + length])
        at += max(length, 0)
    assert at == len(body)
    return values


def rows(data: bytes) -> list[list[bytes | None]]:
    return [row(body) for kind, body in split(data) if kind == "D"]
