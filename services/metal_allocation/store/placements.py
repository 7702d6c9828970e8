"""Claims, the machines to choose from, and the lock under which one is chosen."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import astuple, dataclass
from datetime import datetime

from metal_kit.db import Connection

from metal_allocation.placement import Choice, Held
from metal_allocation.record import Record

ENSURE_CLASS = "INSERT INTO placement_lock (partition, size) VALUES ($1, $2) ON CONFLICT DO NOTHING"
LOCK_CLASS = "SELECT 1 FROM placement_lock WHERE partition = $1 AND size = $2 FOR UPDATE"
IS_FREE = """
    partition = $1 AND size = $2 AND waiting AND alive AND clean AND cabled AND NOT reclaim_failed AND NOT bound
    AND state = 'available' AND machine <> ALL ($3::uuid[])
    AND NOT EXISTS (SELECT 1 FROM claim WHERE claim.machine = candidate.machine)
"""
FREE = f"SELECT rack, count(*) AS machines FROM candidate WHERE {IS_FREE} GROUP BY rack"
PICK = f"SELECT machine, rack FROM candidate WHERE {IS_FREE} AND rack = ANY ($4) ORDER BY machine OFFSET $5 LIMIT 1"
HELD = """
SELECT c.rack, a.placement_labels FROM claim c JOIN allocation a ON a.id = c.allocation
WHERE c.project = $1 AND c.partition = $2 AND c.size = $3 AND c.role = $4
"""
CLAIM = """
INSERT INTO claim (machine, allocation, project, role, partition, size, rack) VALUES ($1, $2, $3, $4, $5, $6, $7)
ON CONFLICT (machine) DO NOTHING
"""
UNCLAIM = "DELETE FROM claim WHERE allocation = $1"
CLAIMS_OF_PROJECT = "SELECT count(*) FROM claim WHERE project = $1"
LOCK_PROJECT = "SELECT pg_advisory_xact_lock(hashtextextended('allocation-quota:' || $1, 0))"
COUNTS = """
SELECT count(*) AS machines,
       count(*) FILTER (WHERE bound OR EXISTS (SELECT 1 FROM claim WHERE claim.machine = c.machine)) AS taken,
       count(*) FILTER (WHERE state <> 'available') AS not_available,
       count(*) FILTER (WHERE NOT alive) AS not_alive,
       count(*) FILTER (WHERE NOT waiting) AS not_waiting,
       count(*) FILTER (WHERE NOT clean) AS not_clean,
       count(*) FILTER (WHERE NOT cabled) AS not_cabled,
       count(*) FILTER (WHERE reclaim_failed) AS reclaim_failed
FROM candidate c WHERE partition = $1 AND size = $2
"""
UPSERT = """
INSERT INTO candidate AS c
    (machine, partition, size, rack, state, waiting, alive, clean, cabled, reclaim_failed, bound, version)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)
ON CONFLICT (machine) DO UPDATE SET
    partition = excluded.partition, size = excluded.size, rack = excluded.rack, state = excluded.state,
    waiting = excluded.waiting, alive = excluded.alive, clean = excluded.clean, cabled = excluded.cabled,
    reclaim_failed = excluded.reclaim_failed, bound = excluded.bound, version = excluded.version,
    seen_time = clock_timestamp()
WHERE c.version <= excluded.version
"""
FORGET = "DELETE FROM candidate WHERE machine = $1"
FORGET_UNSEEN = "DELETE FROM candidate WHERE seen_time < $1"


@dataclass(frozen=True, slots=True)
class CandidateFacts:
    """What choosing needs to know of a machine."""

    machine: str
    partition: str
    size: str
    rack: str
    state: str
    waiting: bool
    alive: bool
    clean: bool
    cabled: bool
    reclaim_failed: bool
    bound: bool
    version: int


class PlacementStore:
    """Who may be chosen, who has been."""

    async def lock_class(self, conn: Connection, partition: str, size: str) -> None:
        """Let nobody else choose a machine of this partition and size until the transaction ends.

        Taken before any claim is changed: whoever changed one first could wait here for somebody who waits for it.
        """
        if await conn.fetchrow(LOCK_CLASS, partition, size) is None:
            await conn.execute(ENSURE_CLASS, partition, size)
            await conn.fetchrow(LOCK_CLASS, partition, size)

    async def lock_project(self, conn: Connection, project: str) -> int:
        """Let nobody else claim for this project until the transaction ends; answers how many machines it has."""
        await conn.execute(LOCK_PROJECT, project)
        count: int = await conn.fetchval(CLAIMS_OF_PROJECT, project)
        return count

    async def free(self, conn: Connection, partition: str, size: str, *, but: Collection[str]) -> Mapping[str, int]:
        """How many machines of the class could be taken in each rack, without those in `but`."""
        rows = await conn.fetch(FREE, partition, size, list(but))
        return {row["rack"]: row["machines"] for row in rows}

    async def pick(
        self, conn: Connection, partition: str, size: str, choice: Choice, *, but: Collection[str]
    ) -> tuple[str, str] | None:
        """The chosen machine and its rack; None when it is no longer free."""
        row = await conn.fetchrow(PICK, partition, size, list(but), list(choice.racks), choice.position)
        return (str(row["machine"]), row["rack"]) if row else None

    async def held(self, conn: Connection, project: str, partition: str, size: str, role: str) -> Sequence[Held]:
        """Machines of the class that the project has for this role, claims in flight included."""
        rows = await conn.fetch(HELD, project, partition, size, role)
        return [Held(row["rack"], row["placement_labels"]) for row in rows]

    async def claim(self, conn: Connection, record: Record) -> bool:
        """Claim the record's machine; False when another allocation has it."""
        done = await conn.execute(
            CLAIM, record.machine, record.id, record.project, record.role, record.partition, record.size, record.rack
        )
        return bool(done == "INSERT 0 1")

    async def unclaim(self, conn: Connection, allocation: str) -> None:
        """Give up the allocation's claim; without effect when it has none."""
        await conn.execute(UNCLAIM, allocation)

    async def counts(self, conn: Connection, partition: str, size: str) -> Mapping[str, int]:
        """How many machines of the class there are, and how many each condition rules out."""
        row = await conn.fetchrow(COUNTS, partition, size)
        return dict(row) if row else {}

    async def upsert(self, conn: Connection, facts: Sequence[CandidateFacts]) -> None:
        """Take over what inventory says of machines, unless something newer is known."""
        await conn.executemany(UPSERT, [astuple(each) for each in facts])

    async def forget(self, conn: Connection, machine: str) -> None:
        """Drop a machine that inventory no longer has."""
        await conn.execute(FORGET, machine)

    async def forget_unseen(self, conn: Connection, since: datetime) -> None:
        """Drop machines that inventory has not named since a complete comparison began."""
        await conn.execute(FORGET_UNSEEN, since)
