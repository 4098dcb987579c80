"""Named failure points, for tests of what a crash or a failing disk leaves behind.

``reach(name)`` does nothing unless the process was started with ``KALAM_FAULT=name:action``; the action is ``kill``
(SIGKILL, at once) or ``error`` (OSError ENOSPC). A number after a second colon means the n-th time it is reached.
"""

from __future__ import annotations

import errno
import os
import signal

_spec = os.environ.get("KALAM_FAULT", "").split(":")
_left = int(_spec[2]) if len(_spec) > 2 else 1


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
