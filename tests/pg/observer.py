"""A connection of its own to the server that tells what other sessions do and hold there."""

from __future__ import annotations

import psycopg

from support.server import KalamServer


class Observer:
    """What the server says of other sessions."""

    def __init__(self, server: KalamServer) -> None:
        self.conn = psycopg.connect(server.dsn(), autocommit=True)

    def _number(self, what: str) -> int:
        found = self.conn.execute(f"SELECT {what}").fetchone()
        assert found is not None
        return int(found[0] or 0)

    def active(self) -> int:
        """Statements that run."""
        return self._number("count(*) FROM system.sessions WHERE id <> pg_backend_pid() AND state = 'active'")

    def cursors(self) -> int:
        return self._number("sum(cursors) FROM system.sessions WHERE id <> pg_backend_pid()")

    def transactions(self) -> int:
        return self._number("count(*) FROM system.transactions WHERE session <> pg_backend_pid()")

    def locks(self) -> int:
        return self._number("count(*) FROM system.locks WHERE session <> pg_backend_pid()")

    def at_rest(self) -> bool:
        """Nobody's statement runs, no transaction, cursor or lock is left."""
        return not (self.active() or self.cursors() or self.transactions() or self.locks())
