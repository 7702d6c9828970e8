"""Owners that are over.

An allocation's id is never used again, so once it was released it acquires nothing more. Owners of other kinds are not
ipam's to judge: they may come back.
"""

from __future__ import annotations

from metal_kit.db import Connection
from metal_kit.errors import FailedPrecondition

from metal_ipam.addresses import Owner

_ENDING = frozenset({"allocation"})


def ends(owner: Owner) -> bool:
    """Whether the owner is over once it was released."""
    return owner.kind in _ENDING


async def hold(connection: Connection, owner: Owner) -> None:
    """Keep the owner from being released until the transaction ends. The first lock that a transaction takes.

    Raises:
        FailedPrecondition: OWNER_RELEASED.
    """
    if ends(owner) and not await connection.fetchval("SELECT hold_owner($1, $2)", owner.kind, owner.id):
        raise FailedPrecondition("OWNER_RELEASED", f"{owner} was released; it acquires nothing more")


async def end(connection: Connection, owner: Owner) -> None:
    """Wait for calls under way for the owner, and let no later one begin. The first lock that a transaction takes."""
    if ends(owner):
        await connection.execute("SELECT end_owner($1, $2)", owner.kind, owner.id)


async def forget(connection: Connection, limit: int) -> int:
    """Drop owners that were released over a day ago: nothing is under way for so long. How many."""
    rows = await connection.fetch(
        """DELETE FROM released_owner WHERE ctid = ANY (ARRAY(
               SELECT ctid FROM released_owner WHERE at < now() - interval '1 day' ORDER BY at LIMIT $1
               FOR UPDATE SKIP LOCKED)) RETURNING 1""",
        limit,
    )
    return len(rows)
