"""The command ``kalam``."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from kalamdb import __version__
from kalamdb.cli.output import err, out, report, told

app = typer.Typer(
    name="kalam", no_args_is_help=True, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False,
    help="KalamDB for PostgreSQL: tables made with CREATE TABLE … USING kalamdb.\n\n"
         "First steps: `kalam up`, then psql with the connection string it prints.",
)
pg = typer.Typer(no_args_is_help=True, help="The extension pg_kalam in a PostgreSQL of yours.")
app.add_typer(pg, name="pg")
file = typer.Typer(no_args_is_help=True, help="Contents of FILE columns.")
app.add_typer(file, name="file")

DEFAULT_DATA = Path(".kalam")
Data = Annotated[Path, typer.Option("--data", metavar="DIR", help="Data directory; $KALAM_DATA names another default.",
                                    envvar="KALAM_DATA")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
Port = Annotated[int, typer.Option(min=0, max=65535, metavar="N", help="0: the one it had before, or a free one.")]
Host = Annotated[str | None, typer.Option(help="A server elsewhere; with --port.")]
RpcPort = Annotated[int | None, typer.Option(min=1, max=65535, help="Its RPC port.")]
User = Annotated[str | None, typer.Option(help="Account; bearer: the password is a token or the shared secret.")]
Tenant = Annotated[str | None, typer.Option(metavar="ID", help="Sets kalam.user_id first.")]
_WHICH = "bundled16, bundled18, or the path of a pg_config."


@app.callback()
def first() -> None:
    # For psql they are; here they would lead a connection elsewhere, and into PostgreSQL's own environment.
    for name in [name for name in os.environ if name.startswith("PG")]:
        del os.environ[name]


@app.command()
def up(
    data: Data = DEFAULT_DATA,
    postgres: Annotated[str | None, typer.Option(metavar="WHICH", help=f"{_WHICH} Default: bundled16, or as before."
                                                 )] = None,
    pg_port: Port = 0,
    rpc_port: Port = 0,
    http_port: Port = 0,
    as_json: AsJson = False,
) -> None:
    """Start a private PostgreSQL and a KalamDB server, or what of them does not run.

    Returns when a query works. Both go on in the background until `kalam down`. With --json it prints one object:
    dsn, rpc {host, port}, http, data, pids {server, postgres}.
    """
    from kalamdb.stack import stack

    with told():
        found = stack.up(data, postgres=postgres, pg_port=pg_port, rpc_port=rpc_port, http_port=http_port,
                         report=report)
    if as_json:
        print(json.dumps(dataclasses.asdict(found)))
        return
    out.print(Text(f"PostgreSQL  {found.dsn}\nKalamDB     {found.rpc['host']}:{found.rpc['port']}"
                   + (f", {found.http}" if found.http else "") + f"\ndata        {found.data}"))
    out.print(Text(f'\npsql "{found.dsn}"', "bold"))


@app.command()
def down(data: Data = DEFAULT_DATA) -> None:
    """Stop what `kalam up` started on this data directory. The data stay."""
    from kalamdb.stack import stack

    with told():
        stopped = stack.down(data)
    err.print(Text(f"stopped: {', '.join(stopped)}" if stopped else "nothing was running"))


@app.command()
def status(data: Data = DEFAULT_DATA, as_json: AsJson = False) -> None:
    """Say what runs on a data directory; exit code 3 unless both programs do."""
    from kalamdb.stack import stack

    with told():
        found = stack.status(data)
    if as_json:
        print(json.dumps(dataclasses.asdict(found)))
    else:
        for name, pid in (("PostgreSQL", found.postgres_pid), ("KalamDB server", found.server_pid)):
            out.print(Text(f"{name:<15} {f'running, process {pid}' if pid else 'not running'}"))
        out.print(Text(f"{'made with':<15} {found.postgres}\n{'data':<15} {found.data}"))
        if found.stack is not None:
            out.print(Text(f"{'connect':<15} {found.stack.dsn}"))
    if found.stack is None:
        raise typer.Exit(3)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []})
def serve(
    context: typer.Context,
    data: Annotated[Path | None, typer.Option("--data", metavar="DIR", help="Data directory.")] = None,
) -> None:
    """Run the KalamDB server in the foreground; every setting is an option (kalam serve --help, docs/settings.md)."""
    from kalamdb.server import main

    raise typer.Exit(main([*(("--data", str(data)) if data is not None else ()), *context.args]))


@app.command("sql")
def sql_command(
    statement: Annotated[str | None, typer.Argument(help="Statements of the server's own SQL; none: a prompt, or what "
                                                    "comes on standard input.")] = None,
    data: Data = DEFAULT_DATA,
    host: Host = None,
    port: RpcPort = None,
    user: User = None,
    tenant: Tenant = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a row.")] = False,
) -> None:
    """Run SQL on the KalamDB server itself.

    A password comes from $KALAM_PASSWORD; the shared secret of a data directory's server is found by itself. Exit code
    1 if a statement failed.
    """
    from kalamdb.cli.sql import Shell, prompt, server

    with told(), server(data, host, port, user, tenant) as connection:
        shell = Shell(connection, as_json=as_json)
        if statement is None and sys.stdin.isatty():
            prompt(shell, f"{connection.info.host}:{connection.info.port}")
        elif not shell.run(statement if statement is not None else sys.stdin.read()):
            raise typer.Exit(1)


Column = Annotated[str, typer.Argument(metavar="[NAMESPACE.]TABLE.COLUMN", help="A column of type FILE.")]
Key = Annotated[list[str], typer.Option("--key", metavar="VALUE", help="Key of the row; once for each of its columns.")]


@file.command("put")
def file_put(
    column: Column,
    path: Annotated[Path, typer.Argument(help="The file; - is standard input.")],
    key: Key = [],  # noqa: B006 - typer copies it
    name: Annotated[str | None, typer.Option(help="What the reference calls it; by default as the file here.")] = None,
    mime: Annotated[str | None, typer.Option(help="Media type; by default guessed by the name.")] = None,
    data: Data = DEFAULT_DATA,
    host: Host = None,
    port: RpcPort = None,
    user: User = None,
    tenant: Tenant = None,
) -> None:
    """Send a file to the server and print its reference, the JSON that a row's FILE column takes.

    With --key that row's column is set to it. A file that no row refers to is removed after a while (setting
    files.grace).
    """
    from kalamdb.cli import file as files
    from kalamdb.cli.sql import server

    target = files.target_of(column)
    with told(), server(data, host, port, user, tenant) as connection:
        print(files.put(connection, target, path, name=name, mime=mime, key=key))


@file.command("get")
def file_get(
    column: Column,
    path: Annotated[Path, typer.Argument(help="The file to write; - is standard output.")],
    key: Key,
    data: Data = DEFAULT_DATA,
    host: Host = None,
    port: RpcPort = None,
    user: User = None,
    tenant: Tenant = None,
) -> None:
    """Write the file that a row refers to, verified.

    A file that is there is replaced when the new one is whole.
    """
    from kalamdb.cli import file as files
    from kalamdb.cli.sql import server

    target = files.target_of(column)
    with told(), server(data, host, port, user, tenant) as connection:
        files.get(connection, target, path, key)


PgConfig = Annotated[str, typer.Option("--pg-config", metavar="WHICH", help=_WHICH)]


@pg.command("install")
def pg_install(pg_config: PgConfig = "pg_config") -> None:
    """Build the extension and install it into a PostgreSQL's folders. Running sessions keep what they have loaded."""
    from kalamdb.stack import install

    with told():
        found = install.find(pg_config)
        changed = install.install(found, report)
    for path in changed:
        out.print(Text(f"installed {path}"))
    if not changed:
        out.print(Text(f"PostgreSQL {found.version} has this version already"))
    err.print(Text("next: kalam pg config-snippet", "dim"))


@pg.command("config-snippet")
def pg_config_snippet(
    host: Annotated[str, typer.Option(help="Where the KalamDB server is.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Its RPC port.")] = 9188,
) -> None:
    """Print what to add to postgresql.conf, and the SQL to run once in each database."""
    quoted = host.replace("'", "''")
    print(
        "# postgresql.conf; then restart PostgreSQL\n"
        "shared_preload_libraries = 'pg_kalam'   # after a comma, if others are there\n\n"
        "-- once in each database, as a superuser\n"
        "CREATE EXTENSION pg_kalam;\n"
        f"CREATE SERVER kalam_server FOREIGN DATA WRAPPER pg_kalam OPTIONS (host '{quoted}', port '{port}');\n"
        "-- for roles that make tables and choose a tenant\n"
        "-- GRANT USAGE ON FOREIGN SERVER kalam_server TO app;\n"
        "-- GRANT SET ON PARAMETER kalam.user_id TO app;"
    )


@app.command()
def doctor(pg_config: PgConfig = "pg_config") -> None:
    """Say which file of the extension is missing in which directory of a PostgreSQL; exit code 1 if one is."""
    from kalamdb.stack import install
    from kalamdb.stack.doctor import examine

    with told():
        findings = examine(install.find(pg_config))
    for finding in findings:
        out.print(Text(f"{'good' if finding.good else 'BAD':<5} {finding.text}"))
    hints = dict.fromkeys(finding.hint for finding in findings if finding.hint)
    for hint in hints:
        err.print(Text(f"hint: {hint}"))
    if hints:
        raise typer.Exit(1)


@app.command()
def check(
    data: Data = DEFAULT_DATA,
    quick: Annotated[bool, typer.Option("--quick", help="Do not read the segments' contents.")] = False,
    as_json: AsJson = False,
) -> None:
    """Verify a data directory whose server is down: database, manifests, segment files, keys.

    One line for each problem; exit code 1 if there is one, 2 where it could not be verified.
    """
    from kalamdb.cli import data as commands

    commands.check(data, quick=quick, as_json=as_json)


@app.command()
def backup(
    to: Annotated[Path, typer.Option("--to", metavar="DIR", help="Directory of backups; segments in it are not copied "
                                                                 "again.")],
    data: Data = DEFAULT_DATA,
    keep: Annotated[int, typer.Option(min=0, metavar="N", help="Remove all but the newest N afterwards; 0: none.")] = 0,
    show: Annotated[bool, typer.Option("--list", help="Only list the backups that are there.")] = False,
    as_json: AsJson = False,
) -> None:
    """Copy a data directory, also while its server runs: consistent, and only segments that are new."""
    from kalamdb.cli import data as commands

    commands.backup(data, to, keep=keep, show=show, as_json=as_json)


@app.command()
def restore(
    from_: Annotated[Path, typer.Option("--from", metavar="DIR", help="Directory of backups.")],
    data: Annotated[Path, typer.Option("--data", metavar="DIR", help="A new data directory, for kalam serve.")],
    name: Annotated[str | None, typer.Option(metavar="NAME", help="Which backup; the newest by default.")] = None,
) -> None:
    """Make a data directory of a backup, and verify it."""
    from kalamdb.cli import data as commands

    commands.restore(from_, data, name)


@app.command()
def version() -> None:
    """Print the release."""
    print(f"kalamdb {__version__}")
