"""A PostgreSQL of the test's own: directory, port, socket folder; killed and restarted at will."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import psycopg


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def as_postgres(command: list[str]) -> list[str]:
    if os.geteuid() != 0:
        return command
    account = pwd.getpwnam("nobody")
    return ["unshare", "-U", f"--map-user={account.pw_uid}", f"--map-group={account.pw_gid}", *command]


class Postgres:
    def __init__(self, pg_config: Path, **settings: str) -> None:
        self.bin = Path(subprocess.run([pg_config, "--bindir"], capture_output=True, text=True, check=True).stdout.strip())
        self.dir = Path(tempfile.mkdtemp(prefix="k"))
        self.port = free_port()
        self.log = self.dir / "log"
        self.settings = settings
        self.process: subprocess.Popen[bytes] | None = None
        subprocess.run(
            as_postgres([str(self.bin / "initdb"), "-D", str(self.dir / "d"), "-E", "UTF8", "--locale=C.UTF-8",
                         "-U", "postgres", "-A", "trust", "--no-sync"]),
            check=True, stdout=subprocess.DEVNULL,
        )
        with (self.dir / "d" / "postgresql.conf").open("a") as conf:
            conf.write(f"port={self.port}\nunix_socket_directories='{self.dir}'\nlisten_addresses=''\n"
                       "shared_preload_libraries='pg_kalam'\nfsync=off\nmax_connections=100\n")
            for name, value in settings.items():
                conf.write(f"{name}='{value}'\n")

    def dsn(self, dbname: str = "postgres", **more: str) -> str:
        return psycopg.conninfo.make_conninfo(
            "", host=str(self.dir), port=str(self.port), user=more.pop("user", "postgres"), dbname=dbname, **more)

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                as_postgres([str(self.bin / "postgres"), "-D", str(self.dir / "d")]), stdout=log, stderr=log)
        deadline = time.monotonic() + 20
        while True:
            try:
                psycopg.connect(self.dsn()).close()
                return
            except psycopg.OperationalError:
                assert self.process.poll() is None, self.log.read_text()
                assert time.monotonic() < deadline
                time.sleep(0.05)

    def stop(self) -> None:
        if self.process:
            self.process.send_signal(signal.SIGINT)
            self.process.wait(20)
            self.process = None

    def close(self) -> None:
        self.stop()
        shutil.rmtree(self.dir, ignore_errors=True)
