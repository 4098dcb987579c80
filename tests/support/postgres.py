"""A PostgreSQL of the tests' own: own directory, own socket folder, stopped, killed and restarted at will.

It listens on a socket in its directory only. PostgreSQL refuses to run as root; root starts it under another user id of
a user namespace, in which root's files stay readable.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess

import psycopg

from . import places
from .build import Installed
from .ports import free_port, wait_until


def as_postgres(command: list[str]) -> list[str]:
    """The command as PostgreSQL lets itself be run."""
    if os.geteuid() != 0:
        return command
    account = pwd.getpwnam("nobody")
    return ["unshare", "-U", f"--map-user={account.pw_uid}", f"--map-group={account.pw_gid}", *command]


class Postgres:
    """One cluster; settings are lines of postgresql.conf."""

    def __init__(self, installed: Installed, **settings: str) -> None:
        self.installed = installed
        self.dir = places.new("kpg")
        self.data = self.dir / "data"
        self.log = self.dir / "log"
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None
        try:
            self._initdb()
            self.configure(port=str(self.port), unix_socket_directories=str(self.dir), listen_addresses="")
            self.configure(shared_preload_libraries="pg_kalam", max_connections="100", fsync="off")
            self.configure(log_line_prefix="%m [%p] ", log_checkpoints="off", **settings)
        except BaseException:
            self.close()
            raise

    def _initdb(self) -> None:
        options = ["-E", "UTF8", "--locale=C.UTF-8", "-U", "postgres", "-A", "trust", "--no-sync"]
        command = as_postgres([str(self.installed.bin / "initdb"), "-D", str(self.data), *options])
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"initdb failed:\n{done.stdout}{done.stderr}")

    def configure(self, **settings: str) -> None:
        """More lines for postgresql.conf; they count from the next start."""
        with (self.data / "postgresql.conf").open("a", encoding="utf-8") as conf:
            for name, value in settings.items():
                quoted = value.replace("'", "''")
                conf.write(f"{name} = '{quoted}'\n")

    def dsn(self, dbname: str = "postgres", user: str = "postgres", **more: str) -> str:
        return psycopg.conninfo.make_conninfo(
            "", host=str(self.dir), port=str(self.port), user=user, dbname=dbname, **more
        )

    def connect(self, dbname: str = "postgres", **more: str) -> psycopg.Connection:
        return psycopg.connect(self.dsn(dbname, **more), autocommit=True)

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def start(self) -> None:
        """Start it unless it runs, and wait until a query works: it may just be recovering from a crash."""
        if not self.running:
            command = as_postgres([str(self.installed.bin / "postgres"), "-D", str(self.data)])
            with self.log.open("ab") as log:
                self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        wait_until(self._answers, "PostgreSQL's start", 30)

    def _answers(self) -> bool:
        assert self.running, f"PostgreSQL did not start:\n{self.log_since(0)[-4000:]}"
        try:
            self.connect().close()
        except psycopg.OperationalError:
            return False
        return True

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """SIGINT: clients are disconnected, a checkpoint is made."""
        if self.process is None:
            return
        if self.running:
            self.process.send_signal(how)
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGQUIT)
            self.process.wait(30)
        finally:
            self.process = None

    def kill(self) -> None:
        """An immediate shutdown: every backend ends on the spot, and the next start has a recovery to do."""
        self.stop(signal.SIGQUIT)

    def restart(self) -> None:
        self.stop()
        self.start()

    def close(self) -> None:
        self.stop()
        shutil.rmtree(self.dir, ignore_errors=True)

    def log_size(self) -> int:
        return self.log.stat().st_size if self.log.exists() else 0

    def log_since(self, offset: int) -> str:
        """What was logged after this size of the log."""
        if not self.log.exists():
            return ""
        with self.log.open("rb") as log:
            log.seek(offset)
            return log.read().decode(errors="replace")
