"""Named failure points, for tests of what a crash or a failing disk leaves behind.

``reach(name)`` does nothing unless the process was started with ``KALAM_FAULT=name:action`` (or ``arm`` says so later);
the action is ``kill``
(SIGKILL, at once) or ``error`` (OSError ENOSPC). A number after a second colon means the n-th time it is reached.
"""

from __future__ import annotations

import errno
import os
import signal

_spec: list[str]
_left: int


def arm(spec: str) -> None:
    global _spec, _left
    _spec = spec.split(":")
    _left = int(_spec[2]) if len(_spec) > 2 else 1


arm(os.environ.get("KALAM_FAULT", ""))


def reach(name: str) -> None:
    if name == _spec[0]:
        _act()


def _act() -> None:
    global _left
    _left -= 1
    if _left:
        return
    if _spec[1] == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
