"""Locks on rows, tables and names: fair queues, deadlock detection, timeouts.

A lock's key is a tuple (``(table id, tenant, encoded key)`` for a row). A key that only one transaction holds, and
nobody waits for, costs one dictionary entry. Everything runs in the event loop's thread.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass, field
from itertools import repeat
from operator import is_
from typing import Any, Protocol

from kalamdb.errors import KalamError

LockKey = tuple[Any, ...]


class Owner(Protocol):
    """Who may hold a lock."""

    id: str
    locks: list[LockKey]  # in the order taken; each key once
    waits_for: Waiter | None


@dataclass(slots=True, eq=False)
class Waiter:
    owner: Owner
    key: LockKey
    share: bool
    future: asyncio.Future[None]
    expired: bool = False

    def expire(self) -> None:
        """The time for the wait is up."""
        if not self.future.done():
            self.expired = True
            self.future.cancel()


@dataclass(slots=True, eq=False)
class Shared:
    """A key that is shared or waited for."""

    holders: dict[Owner, bool] = field(default_factory=dict)  # owner → holds it for sharing only
    queue: deque[Waiter] = field(default_factory=deque)

    def allows(self, owner: Owner, share: bool) -> bool:
        return all(holder is owner or (share and shared) for holder, shared in self.holders.items())


class LockTable:
    def __init__(self) -> None:
        self._held: dict[LockKey, Owner | Shared] = {}

    def __len__(self) -> int:
        return len(self._held)

    def try_lock(self, owner: Owner, key: LockKey, *, share: bool = False) -> bool:
        """Take a lock if nobody has to be waited for. Nobody overtakes those who wait, but an owner of the lock."""
        held = self._held.get(key)
        if held is None:
            if share:
                self._held[key] = Shared({owner: True})
            else:
                self._held[key] = owner
            owner.locks.append(key)
            return True
        if held is owner:
            return True
        if not isinstance(held, Shared):
            return False
        mine = held.holders.get(owner)
        if mine is not None and (share or not mine):
            return True
        if not held.allows(owner, share) or (mine is None and held.queue):
            return False
        if mine is None:
            owner.locks.append(key)
        held.holders[owner] = share
        return True

    def is_free(self, key: LockKey, *, share: bool = False) -> bool:
        """Would somebody new get it at once?"""
        held = self._held.get(key)
        if held is None:
            return True
        return share and isinstance(held, Shared) and not held.queue and all(held.holders.values())

    def try_lock_new(self, owner: Owner, keys: Sequence[LockKey]) -> bool:
        """Take locks that nobody has, none of them twice: all, or none if somebody has one."""
        if not self._held.keys().isdisjoint(keys):
            return False
        self._held.update(dict.fromkeys(keys, owner))
        owner.locks.extend(keys)
        return True

    def others_have(self, owner: Owner, table_id: int, tenant: str, keys: Sequence[Any]) -> bool:
        """Has anybody else a lock on one of these rows, or perhaps on one between them? The keys are in order."""
        if len(self._held) > len(keys):
            return any(self._held.get((table_id, tenant, key), owner) is not owner for key in keys)
        least, greatest = keys[0], keys[-1]
        return any(key[0] == table_id and len(key) == 3 and key[1] == tenant and least <= key[2] <= greatest
                   and held is not owner for key, held in self._held.items())

    async def lock(self, owner: Owner, key: LockKey, *, share: bool = False, timeout_ms: int = 0) -> bool:
        """Take a lock, waiting for it; True if it had to wait. 40P01 in a deadlock, 55P03 after ``timeout_ms``."""
        if self.try_lock(owner, key, share=share):
            return False
        held = self._held[key]
        if not isinstance(held, Shared):
            held = self._held[key] = Shared({held: False})
        loop = asyncio.get_running_loop()
        waiter = Waiter(owner, key, share, loop.create_future())
        if owner in held.holders:  # an upgrade goes first: everybody behind it waits for its holder anyway
            held.queue.appendleft(waiter)
        else:
            held.queue.append(waiter)
        owner.waits_for = waiter
        timer = loop.call_later(timeout_ms / 1000, waiter.expire) if timeout_ms else None
        try:
            self._check_deadlock(waiter)
            await waiter.future
        except asyncio.CancelledError:
            if waiter.expired:
                raise KalamError("55P03", "canceling statement due to lock timeout") from None
            raise
        finally:
            if timer is not None:
                timer.cancel()
            owner.waits_for = None
            if not _granted(waiter):
                self._give_up(waiter)
        return True

    def release(self, owner: Owner, keep: int = 0) -> None:
        """Release an owner's locks but the first ``keep``."""
        for key in owner.locks[keep:]:
            held = self._held.get(key)
            if held is owner:
                del self._held[key]
            elif isinstance(held, Shared):
                held.holders.pop(owner, None)
                self._grant(key, held)
        del owner.locks[keep:]

    def release_one(self, owner: Owner, key: LockKey) -> None:
        """Release a lock taken lately, if the owner has it."""
        held = self._held.get(key)
        if held is owner:
            del self._held[key]
        elif isinstance(held, Shared) and owner in held.holders:
            del held.holders[owner]
            self._grant(key, held)
        else:
            return
        place = next(place for place in reversed(range(len(owner.locks))) if owner.locks[place] == key)
        del owner.locks[place]

    def forget_last(self, owner: Owner, keys: Sequence[LockKey], keep: int) -> bool:
        """``forget`` where these are the last that the owner has taken, in this order, and nobody waits for any. False:
        it is not so, and nothing was done."""
        count = len(keys)
        if len(owner.locks) - keep < count or owner.locks[-count] != keys[0] or owner.locks[-count:] != keys:
            return False
        held = self._held
        if not all(map(is_, map(held.get, keys), repeat(owner))):
            return False
        deque(map(held.pop, keys), 0)
        del owner.locks[-count:]
        return True

    def forget(self, owner: Owner, keys: Set[LockKey], keep: int) -> None:
        """Give back those of these locks, beyond an owner's first ``keep``, that nobody waits for: something else
        protects what they did."""
        kept = []
        for key in owner.locks[keep:]:
            if key in keys and self._held.get(key) is owner:
                del self._held[key]
            else:
                kept.append(key)
        owner.locks[keep:] = kept

    def holds_alone(self, owner: Owner, key: LockKey) -> bool:
        held = self._held.get(key)
        return held is owner or (isinstance(held, Shared) and held.holders.get(owner) is False)

    def holders(self) -> list[tuple[LockKey, Owner, bool]]:
        """(key, owner, shared) of every lock held."""
        found: list[tuple[LockKey, Owner, bool]] = []
        for key, held in self._held.items():
            if isinstance(held, Shared):
                found += [(key, owner, shared) for owner, shared in held.holders.items()]
            else:
                found.append((key, held, False))
        return found

    def entries(self) -> Iterator[tuple[LockKey, Owner, bool, bool]]:
        """(key, owner, shared, granted) of every lock held or waited for now.

        There may be millions: only the keys are copied at once, and what comes is for a worker thread to read. A key
        that is shared or waited for is shown as it is when its turn comes, in one piece.
        """
        return _entries(list(self._held.keys()), list(self._held.values()))

    # ---------- the queue ----------
    def _give_up(self, waiter: Waiter) -> None:
        held = self._held.get(waiter.key)
        if isinstance(held, Shared) and waiter in held.queue:
            held.queue.remove(waiter)
            self._grant(waiter.key, held)

    def _grant(self, key: LockKey, held: Shared) -> None:
        while held.queue:
            waiter = held.queue[0]
            if waiter.future.done():
                held.queue.popleft()
                continue
            if not held.allows(waiter.owner, waiter.share):
                return
            held.queue.popleft()
            if waiter.owner not in held.holders:
                waiter.owner.locks.append(key)
            held.holders[waiter.owner] = waiter.share
            waiter.owner.waits_for = None  # at once: until its task runs, others look for deadlocks
            waiter.future.set_result(None)
        if not held.holders:
            del self._held[key]
        elif len(held.holders) == 1:
            (owner, shared), = held.holders.items()
            if not shared:
                self._held[key] = owner

    def _blockers(self, waiter: Waiter) -> list[Owner]:
        """Whom a waiter waits for: holders in conflict, and those before it in the queue in conflict."""
        held = self._held.get(waiter.key)
        if not isinstance(held, Shared):
            return [held] if held is not None and held is not waiter.owner else []
        found = [owner for owner, shared in held.holders.items()
                 if owner is not waiter.owner and not (shared and waiter.share)]
        for other in held.queue:
            if other is waiter:
                break
            if other.owner is not waiter.owner and not (other.share and waiter.share):
                found.append(other.owner)
        return found

    def _check_deadlock(self, waiter: Waiter) -> None:
        start = waiter.owner
        seen: set[int] = set()
        pending: list[tuple[Waiter, tuple[Owner, ...]]] = [(waiter, (start,))]
        while pending:
            current, path = pending.pop()
            for owner in self._blockers(current):
                if owner is start:
                    raise _deadlock(path)
                if id(owner) not in seen and owner.waits_for is not None:
                    seen.add(id(owner))
                    pending.append((owner.waits_for, (*path, owner)))


def _entries(keys: list[LockKey], values: list[Owner | Shared]) -> Iterator[tuple[LockKey, Owner, bool, bool]]:
    for key, held in zip(keys, values, strict=True):
        if not isinstance(held, Shared):
            yield key, held, False, True
            continue
        for owner, shared in held.holders.copy().items():
            yield key, owner, shared, True
        for waiter in held.queue.copy():
            if not waiter.future.done():
                yield key, waiter.owner, waiter.share, False


def _granted(waiter: Waiter) -> bool:
    return waiter.future.done() and not waiter.future.cancelled()


def _deadlock(path: tuple[Owner, ...]) -> KalamError:
    names = [owner.id for owner in path]
    lines = [f"Transaction {one} waits for transaction {other}."
             for one, other in zip(names, [*names[1:], names[0]], strict=True)]
    return KalamError("40P01", "deadlock detected", detail="\n".join(lines), hint="Repeat the transaction.")
