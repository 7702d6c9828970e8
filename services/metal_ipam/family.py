"""Children of prefixes that come and go one by one, put together into few statements.

What fails for a whole batch (somebody holds a parent, or one of the requests cannot be written) is nobody's answer:
then each goes the long way by itself, in a transaction that ends with its caller.
"""

from __future__ import annotations

from collections.abc import Sequence

import asyncpg
from metal_kit.db import Database
from metal_kit.errors import Aborted, InvalidArgument

from metal_ipam.batches import Batches
from metal_ipam.cidr import Prefix
from metal_ipam.store import children
from metal_ipam.store.children import Cut, Wanted
from metal_ipam.store.prefixes import PrefixRow

# Of these a statement has had no effect. A unique violation is a twin of a request, with another parent.
_LONG_WAY = (Aborted, InvalidArgument, asyncpg.UniqueViolationError)


class Family:
    """Acquires of a parent share statements, and so do deletions of a namespace, whichever parents they have."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._acquires: Batches[tuple[str, Prefix], Wanted, Cut] = Batches(
            self._acquire, lambda wanted: wanted.request_id or None
        )
        self._deletions: Batches[str, tuple[Prefix, str], str] = Batches(self._delete, lambda asked: str(asked[0]))

    async def acquire(self, namespace: str, parent: Prefix, wanted: Wanted) -> PrefixRow | None:
        """A new child of the parent. None: nothing was done, and only the long way can tell why, or do it.

        Raises:
            Unavailable: too many wait already, or the database is away.
        """
        try:
            cut = await self._acquires.ask((namespace, parent), wanted)
        except _LONG_WAY:
            return None
        return cut.child

    async def delete(self, namespace: str, cidr: Prefix, *, actor: str) -> bool:
        """Delete a prefix that belongs to no network. False: nothing was done, and only the long way can tell why, or
        do it. Raises as `acquire`."""
        try:
            return await self._deletions.ask(namespace, (cidr, actor)) == "ok"
        except _LONG_WAY:
            return False

    async def close(self) -> None:
        """Wait until every call is answered; no new ones may come."""
        await self._acquires.close()
        await self._deletions.close()

    async def _acquire(self, key: tuple[str, Prefix], wanted: Sequence[Wanted]) -> list[Cut]:
        # One statement, which commits: BEGIN and COMMIT would be two more round trips.
        async with self._db.connection() as connection:
            return await children.acquire_at(connection, *key, wanted)

    async def _delete(self, namespace: str, asked: Sequence[tuple[Prefix, str]]) -> list[str]:
        async with self._db.connection() as connection:
            cidrs, actors = [cidr for cidr, _ in asked], [actor for _, actor in asked]
            return await children.delete_at(connection, namespace, cidrs, actors)
