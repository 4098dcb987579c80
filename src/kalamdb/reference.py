"""The value of a FILE column: a JSON object that names a content and says what it is.

``sha256`` and ``size`` are the content's and are held against the store; ``name`` and ``mime`` are what its owner says
of it, and ``id`` and ``sub`` what the server gave when it was put. Nothing of a reference is ever used as a path.
"""

from __future__ import annotations

import json
import mimetypes
import re
import unicodedata
from dataclasses import dataclass
from typing import Any

from kalamdb.errors import KalamError
from kalamdb.types import canonical_jsonb

#: folder of a table's contents beside its segments
FOLDER = "files"
NAME_LENGTH = 255
DEFAULT_MIME = "application/octet-stream"
_FIELDS: dict[str, type] = {"id": str, "sub": str, "name": str, "size": int, "mime": str, "sha256": str}
_NEEDED = ("name", "size", "sha256")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_MIME = re.compile(r"[A-Za-z0-9][\w.+!#$&^-]{0,126}/[A-Za-z0-9][\w.+!#$&^-]{0,126}(; ?[\w.-]{1,60}=[\w.\" -]{1,120})*",
                   re.ASCII)
#: as the server writes references: finds the hash without parsing the whole
_HASHED = re.compile(r'"sha256": "([0-9a-f]{64})"')
_HINT = "FILE PUT and kalam file put give one."


@dataclass(frozen=True, slots=True)
class Reference:
    sha256: bytes
    size: int
    name: str
    mime: str = DEFAULT_MIME
    id: str = ""

    def text(self) -> str:
        """As a jsonb's storage value."""
        return canonical_jsonb(json.dumps({
            "id": self.id, "sub": FOLDER, "name": self.name, "size": self.size, "mime": self.mime,
            "sha256": self.sha256.hex(),
        }, ensure_ascii=False))


def hash_of(text: str) -> bytes | None:
    """The content that a stored value refers to, empty where to none. None where that cannot be told: older releases
    kept what clients sent in binary as it came, and took any jsonb."""
    hashed = _HASHED.search(text)
    if hashed is not None:
        return bytes.fromhex(hashed[1])
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    named = found.get("sha256") if isinstance(found, dict) else None
    return bytes.fromhex(named) if isinstance(named, str) and _SHA256.fullmatch(named) else b""


def read(text: str) -> Reference:
    """22023 where a JSON value is no reference."""
    try:
        found: Any = json.loads(text)
    except (ValueError, RecursionError):  # Python does not read a number of thousands of digits
        raise _bad("It has a number that is too long, or is nested too deeply.") from None
    if not isinstance(found, dict):
        raise _bad("It is not an object.")
    for field in _NEEDED:
        if field not in found:
            raise _bad(f'It has no field "{field}".')
    for field, value in found.items():
        kind = _FIELDS.get(field)
        if kind is None:
            raise _bad(f'It has a field "{field}"; the fields are {", ".join(_FIELDS)}.')
        if not isinstance(value, kind) or isinstance(value, bool):
            raise _bad(f'Its field "{field}" is not {"a text" if kind is str else "a whole number"}.')
    if not _SHA256.fullmatch(found["sha256"]):
        raise _bad('Its field "sha256" is not 64 lower-case hexadecimal digits.')
    if found["size"] < 0:
        raise _bad('Its field "size" is negative.')
    mime = found.get("mime", DEFAULT_MIME)
    return Reference(bytes.fromhex(found["sha256"]), found["size"], check_name(found["name"]), check_mime(mime),
                     found.get("id", ""))


def _bad(detail: str) -> KalamError:
    return KalamError("22023", "invalid reference to a file", detail=detail, hint=_HINT)


def check_name(name: str) -> str:
    """The last part of a path, as a file system would take it: whoever reads it may make a file of that name."""
    if name in ("", ".", "..") or "/" in name or "\\" in name or any(map(_is_control, name)):
        raise KalamError("22023", f"invalid name of a file: {_shown(name)}",
                         hint="It is the last part of a path: no slashes, no control characters.")
    if len(name.encode("utf-8", "surrogatepass")) > NAME_LENGTH:
        raise KalamError("22023", f"the name of a file is longer than {NAME_LENGTH} bytes: {_shown(name)}")
    return name


def _is_control(char: str) -> bool:
    """One that nobody sees, or that turns the text around it; joiners are letters' and emojis'."""
    return unicodedata.category(char) in ("Cc", "Cf") and char not in "\u200c\u200d"


def _shown(text: str) -> str:
    short = text if len(text) <= 60 else text[:60] + "…"
    return json.dumps(short, ensure_ascii=False)


def check_mime(mime: str) -> str:
    if not _MIME.fullmatch(mime):
        raise KalamError("22023", f"invalid media type of a file: {_shown(mime)}", hint="Such as image/png.")
    return mime


def guessed_mime(name: str) -> str:
    return mimetypes.guess_type(name)[0] or DEFAULT_MIME


def check_sha256(text: str) -> bytes:
    if not _SHA256.fullmatch(text.lower()):
        raise KalamError("22023", f"invalid SHA-256 of a file: {_shown(text)}", hint="64 hexadecimal digits.")
    return bytes.fromhex(text)
