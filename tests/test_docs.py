"""What the documents say, checked against the thing: links, make targets, commands with their options, settings."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import typer

from kalamdb import settings

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
# Code: in back quotes, or the lines of a fenced block.
CODE = re.compile(r"`([^`\n]+)`|^(?!```)(make .*|kalam .*)$", re.MULTILINE)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
# Places of one machine, or of one person on it, that a file of the project must not name.
MACHINE = re.compile(r"(?<![\w.$}>*])/(home|root|Users|opt|mnt|work|workspace|srv)/\w")


def code(page: Path, first: str) -> list[str]:
    """Every piece of code on the page that begins with this word, without a comment behind it."""
    texts = [quoted or line for quoted, line in CODE.findall(page.read_text(encoding="utf-8"))]
    return [text.partition(" # ")[0].strip() for text in texts if text.split()[0] == first]


def anchors(page: Path) -> set[str]:
    """The names that headings get in a rendered page."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    dead = []
    for link in LINK.findall(page.read_text(encoding="utf-8")):
        if "://" in link or link.startswith("mailto:"):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or not target.is_relative_to(ROOT) or (anchor and anchor not in anchors(target)):
            dead.append(link)
    assert not dead


def test_every_decision_has_its_number_once() -> None:
    names = [path.name for path in (ROOT / "docs" / "decisions").glob("*.md")]
    assert all(re.fullmatch(r"\d{3}-[a-z0-9-]+\.md", name) for name in names)
    assert len({name[:3] for name in names}) == len(names)


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = {text.split()[1] for page in PAGES for text in code(page, "make") if len(text.split()) > 1}
    assert {"demo", "down", "test", "up"} <= named
    assert named - targets - {"install"} == set()


def test_make_shows_every_target() -> None:
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    (phony,) = re.findall(r"^\.PHONY: (.*)$", text, re.MULTILINE)
    assert set(re.findall(r"^([a-z][\w-]*):.*## ", text, re.MULTILINE)) == set(phony.split())


def root() -> Any:
    """The command ``kalam``."""
    from kalamdb.cli.main import app

    return typer.main.get_command(app)


def known(text: str) -> str | None:
    """None if the command line names a command of ``kalam`` and only options it has, else what it does not know."""
    command = root()
    words = shlex.split(text)[1:]
    while words and hasattr(command, "commands"):
        if words[0] not in command.commands:
            return words[0]
        command = command.commands[words.pop(0)]
    options = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    return next((word for word in words if word.startswith("-") and word.split("=")[0] not in options), None)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_and_their_options_exist(page: Path) -> None:
    texts = [re.sub(r"[\[\]…|]", " ", text) for text in code(page, "kalam")]
    assert {text: known(text) for text in texts if known(text)} == {}


@pytest.mark.parametrize("text", ["kalam nosuch", "kalam up --nosuch", "kalam pg nosuch", "kalam up --data DIR --jso"])
def test_unknown_commands_are_found(text: str) -> None:
    assert known(text)


def test_readme_names_every_command() -> None:
    command = root()
    named = {text.split()[1] for text in code(ROOT / "README.md", "kalam") if len(text.split()) > 1}
    hidden = {name for name, inner in command.commands.items() if inner.hidden}
    assert set(command.commands) - hidden - named == {"version"}


def test_settings_page_is_what_the_code_says() -> None:
    """To renew it: python -m kalamdb.settings >docs/settings.md"""
    assert (ROOT / "docs" / "settings.md").read_text(encoding="utf-8") == settings.markdown()


def test_no_places_of_one_machine() -> None:
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=False)
    if listed.returncode:  # not a clone: an unpacked source distribution
        pytest.skip("the list of the project's files comes from git")
    found = []
    for name in filter(None, listed.stdout.decode().split("\0")):
        try:
            text = (ROOT / name).read_text(encoding="utf-8")
        except (UnicodeDecodeError, FileNotFoundError):
            continue
        found += [f"{name}: {match.group()}" for match in MACHINE.finditer(text)]
        if str(ROOT) in text:
            found.append(f"{name}: {ROOT}")
    assert found == []


# ---------- docs/sql.md ----------
def statements() -> list[str]:
    from kalamdb.sql.lexer import split

    page = (ROOT / "docs" / "sql.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```sql\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    return [sql for block in blocks for _, sql in split(block)]


def test_every_statement_of_the_sql_page_parses() -> None:
    from kalamdb.sql.parse import parse

    found = statements()
    assert len(found) > 60
    for sql in found:
        parse(sql)


def test_the_sql_page_has_every_statement_of_the_parser() -> None:
    """But those that only pg_kalam sends."""
    from kalamdb.sql import parse, parseadmin

    own = {"estimate", "sample", "fetch", "close"}
    words = {sql.split()[0].strip("(").lower() for sql in statements()} | {"desc", "end", "abort", "table"}
    assert (set(parse._STATEMENTS) | parse._QUERY_WORDS) - words == own
    shown = {sql.split()[1].lower() for sql in statements() if sql.startswith("SHOW")} | {"schemas"}
    assert set(parseadmin.FORMS) - shown == set()
