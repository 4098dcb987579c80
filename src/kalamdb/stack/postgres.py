"""The private PostgreSQL: a cluster in a folder, on 127.0.0.1 alone, its superuser behind a password.

PostgreSQL refuses to run as root. Root starts it under another user id of a user namespace, in which root's files stay
readable. Where the system does not allow that (containers often forbid it), it runs under the account ``nobody``, to
which the folder is then given, with the right to pass folders that only root may enter, if root has that to give.
"""

from __future__ import annotations

import functools
import os
import pwd
import random
import shutil
import signal
import socket
import subprocess
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psycopg

from kalamdb.stack.common import StackError, alive, end, is_zombie, runs_in, spawn, tail, wait_for, working_in

SUPERUSER = "postgres"
START_SECONDS = 30.0
ORPHAN_SECONDS = 10.0
KEPT_PORTS = range(16_000, 32_000)


class Cluster:
    """``folder`` holds the data directory and what belongs to it."""

    def __init__(self, folder: Path, bindir: Path, password: str) -> None:
        self.data = folder
        self.log = folder.with_name("postgres.log")
        self.bindir = bindir
        self.password = password

    # ---------- what is there ----------
    @property
    def exists(self) -> bool:
        return (self.data / "PG_VERSION").is_file()

    @property
    def pid(self) -> int | None:
        """Of the running postmaster."""
        with suppress(OSError, ValueError, IndexError):
            pid = int((self.data / "postmaster.pid").read_text().splitlines()[0])
            if runs_in(pid, self.data):
                return pid
        return None

    def dsn(self, port: int, database: str) -> str:
        return f"postgresql://{SUPERUSER}:{self.password}@127.0.0.1:{port}/{database}"

    # ---------- making ----------
    def create(self) -> None:
        """initdb; UTF-8 and a locale that is there everywhere."""
        with tempfile.NamedTemporaryFile("w", dir=self.data.parent, prefix=".pw") as secret:
            secret.write(self.password + "\n")
            secret.flush()
            shutil.rmtree(self.data, ignore_errors=True)
            self.data.mkdir(mode=0o700)
            runner = _runner()
            runner.give(self.data)
            runner.give(Path(secret.name))
            command = [*runner.prefix, str(self.bindir / "initdb"), "-D", str(self.data), "-U", SUPERUSER, "-E", "UTF8",
                       "--locale=C.UTF-8", "-A", "scram-sha-256", f"--pwfile={secret.name}", "--no-sync"]
            try:
                done = subprocess.run(command, capture_output=True, text=True, check=False, cwd="/")
            except OSError as error:
                raise StackError(f"cannot run {self.bindir / 'initdb'}: {error.strerror}") from None
        if done.returncode:
            shutil.rmtree(self.data, ignore_errors=True)
            raise StackError(f"initdb failed:\n{(done.stderr or done.stdout)[-3000:]}")
        with (self.data / "postgresql.conf").open("a", encoding="utf-8") as conf:
            conf.write("include_if_exists = 'kalam.conf'\n")

    def configure(self, port: int) -> None:
        lines = {
            "port": port, "listen_addresses": "127.0.0.1", "unix_socket_directories": "",
            "shared_preload_libraries": "pg_kalam", "logging_collector": "off",
        }
        text = "# written by kalam up; put settings of your own into postgresql.conf, below the include\n"
        (self.data / "kalam.conf").write_text(text + "".join(f"{name} = '{value}'\n" for name, value in lines.items()))

    # ---------- running ----------
    def start(self, port: int) -> subprocess.Popen[bytes]:
        """Start it; ``wait`` says when it is ready."""
        self._clear_lock_file()
        self.configure(port)
        runner = _runner()
        runner.take_over(self.data)
        return spawn([*runner.prefix, str(self.bindir / "postgres"), "-D", str(self.data)], self.log)

    def _clear_lock_file(self) -> None:
        """Remove the lock file of a postmaster that was killed and that nobody has reaped.

        PostgreSQL takes such a process for a living one. Its children end by themselves; as long as one of them works
        in the folder, the file stays, and PostgreSQL refuses to start.
        """
        lock = self.data / "postmaster.pid"
        with suppress(OSError, ValueError, IndexError):
            pid = int(lock.read_text().splitlines()[0])
            if is_zombie(pid) and wait_for(lambda: not working_in(self.data), ORPHAN_SECONDS):
                lock.unlink()

    def wait(self, process: subprocess.Popen[bytes] | None, port: int) -> None:
        failed: list[str] = []

        def answers() -> bool:
            if process is not None and process.poll() is not None:
                raise StackError(f"PostgreSQL did not start; the end of {self.log}:\n{tail(self.log)}")
            try:
                psycopg.connect(self.dsn(port, "postgres"), connect_timeout=5).close()
            except psycopg.OperationalError as error:
                failed[:] = [str(error)]
                return False
            return True

        if not wait_for(answers, START_SECONDS):
            raise StackError(f"PostgreSQL does not answer on port {port}: {failed[0].strip()}",
                             f"Its log is {self.log}.")

    def stop(self) -> bool:
        """Fast shutdown; was it running?"""
        pid = self.pid
        if pid is None:
            return False
        end(pid, signal.SIGINT, 30.0, signal.SIGQUIT)
        wait_for(lambda: not alive(pid), 5.0)
        return True


def free_port() -> int:
    """A port to keep: not one of those that systems give to outgoing connections, which may have it while we are down.
    """
    for port in random.sample(KEPT_PORTS, 50):
        if port_is_free(port):
            return port
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def port_is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


# ---------- as whom ----------
@dataclass(frozen=True)
class _Runner:
    """How a command is run as somebody else than root; ``owner`` then owns PostgreSQL's files, None: as it is."""

    prefix: tuple[str, ...] = ()
    owner: tuple[int, int] | None = None

    def give(self, path: Path) -> None:
        if self.owner is not None:
            os.chown(path, *self.owner, follow_symlinks=False)

    def take_over(self, folder: Path) -> None:
        """The files of a cluster that root has run in the other way before."""
        if self.owner is None:
            return
        now = folder.stat().st_uid
        if now == self.owner[0]:
            return
        if now not in (0, _other_account()[0]):
            raise StackError(f"{folder} belongs to user {_name(now)}", "Run this as that user.")
        for path in (folder, *folder.rglob("*")):
            self.give(path)


def _other_account() -> tuple[int, int]:
    for name in ("nobody", "daemon"):
        with suppress(KeyError):
            found = pwd.getpwnam(name)
            return found.pw_uid, found.pw_gid
    found = next(item for item in pwd.getpwall() if item.pw_uid)
    return found.pw_uid, found.pw_gid


def _name(user: int) -> str:
    with suppress(KeyError):
        return pwd.getpwuid(user).pw_name
    return str(user)


@functools.cache
def _runner() -> _Runner:
    """The first way that works here.

    In the user namespace PostgreSQL can reach what root can. As an account it needs a capability for that: reading is
    enough, but what containers usually leave to root is only the wider one.
    """
    if os.geteuid() != 0:
        return _Runner()
    user, group = _other_account()
    inside = ("unshare", "-U", f"--map-user={user}", f"--map-group={group}")
    if _works(inside):
        return _Runner(inside, (0, 0))
    account = ("setpriv", f"--reuid={user}", f"--regid={group}", "--clear-groups")
    for right in ("dac_read_search", "dac_override", None):
        rights = (f"--inh-caps=+{right}", f"--ambient-caps=+{right}") if right else ()
        if _works((*account, *rights)):
            return _Runner((*account, *rights), (user, group))
    raise StackError("PostgreSQL refuses to run as root, and there is no way to become somebody else here",
                     "Run this as an ordinary user, or install util-linux (unshare, setpriv).")


def _works(prefix: tuple[str, ...]) -> bool:
    if shutil.which(prefix[0]) is None:
        return False
    return subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode == 0
