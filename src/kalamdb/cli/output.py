"""How the command talks: results on stdout, everything else on stderr, one line for an error and one for its hint."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
import typer
from rich.console import Console

from kalamdb.errors import KalamError
from kalamdb.settings import SettingError
from kalamdb.stack.common import StackError

#: a pipe or a file has no edge to fold lines at
out = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 1 << 20)
err = Console(stderr=True, highlight=False, soft_wrap=True)


def report(text: str) -> None:
    """Progress of something that takes a while."""
    err.print(f"[dim]{text} …[/dim]")


def fail(message: str, hint: str | None = None, code: int = 1) -> typer.Exit:
    print(f"error: {message}", file=sys.stderr)
    if hint:
        print(f"hint: {hint}", file=sys.stderr)
    return typer.Exit(code)


@contextmanager
def told(code: int = 1) -> Iterator[None]:
    """What a user can cause ends the command with its message and this exit code."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read this has seen enough; the interpreter must not try again at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(code) from None
    except (StackError, KalamError, SettingError) as error:
        raise fail(error.message, error.hint, code) from None
    except psycopg.Error as error:
        raise fail(str(error).strip(), code=code) from None
    except OSError as error:
        raise fail(f"{error.filename}: {error.strerror}" if error.filename else str(error), code=code) from None
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
