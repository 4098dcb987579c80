"""A row read by its whole key outside a block, as pg_kalam asks for it, without a transaction or snapshot.

What is unusual, errors included, is not for here: the usual way tells.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kalamdb.api import ClientSession, Context, Role, Row
from kalamdb.errors import KalamError
from kalamdb.sql import access
from kalamdb.sql.planning import Bound, Entry
from kalamdb.sql.read import ReadPlan
from kalamdb.sql.values import decode
from kalamdb.txn.api import Engine, NotInMemory, StaleDefinition


@dataclass(slots=True)
class LoneRead:
    """A plan for one tenant's row, good for any key as long as it ``stands``."""

    engine: Engine
    session: ClientSession
    entry: Entry
    bound: Bound
    plan: ReadPlan
    context: Context
    tenant: str

    @classmethod
    def of(cls, engine: Engine, session: ClientSession, entry: Entry, context: Context) -> LoneRead | None:
        """None where the statement is something else, or its account may not read everything."""
        account = session.account
        if account.role < Role.DBA or context.exec or context.bound or context.stats or context.txn is not None:
            return None
        bound = entry.bounds.get(access.search_path(session, context))
        if bound is None or not isinstance(bound.plan, ReadPlan) or not bound.plan.one:
            return None
        try:
            tenant = access.read_tenant(account, bound.plan.table, context.user)
        except KalamError:
            return None
        return None if tenant is None else cls(engine, session, entry, bound, bound.plan, context, tenant)

    def stands(self) -> bool:
        """Would the same statement have the same plan now, and run alone?"""
        return self.session.transaction is None and (
            self.entry.bounds.get(access.search_path(self.session, self.context)) is self.bound)

    def rows(self, params: Sequence[bytes | None], formats: Sequence[int]) -> list[Row] | None:
        """One or none, as last committed. None: it takes more than this."""
        if not self.bound.fits(self.engine.committed):
            return None
        try:
            found = self.plan.row(self.engine, self.tenant, decode(params, formats, self.bound.kinds))
        except (KalamError, NotInMemory, StaleDefinition):
            return None
        self.session.tenant = self.context.user
        return found
