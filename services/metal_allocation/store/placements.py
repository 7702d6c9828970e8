"""Claims, the machines to choose from, and the lock under which one is chosen."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from metal_kit.db import Connection

from metal_allocation.placement import Candidate, Held
from metal_allocation.record import Record

ENSURE_CLASS = "INSERT INTO placement_lock (partition, size) VALUES ($1, $2) ON CONFLICT DO NOTHING"
LOCK_CLASS = "SELECT 1 FROM placement_lock WHERE partition = $1 AND size = $2 FOR UPDATE"
FREE = """
SELECT machine, rack FROM candidate c
WHERE partition = $1 AND size = $2 AND waiting AND alive AND clean AND cabled AND NOT bound AND state = 'available'
  AND NOT EXISTS (SELECT 1 FROM claim WHERE claim.machine = c.machine)
  AND machine <> ALL ($3::uuid[])
"""
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
FACTS = "SELECT * FROM candidate WHERE machine = $1"
COUNTS = """
SELECT count(*) AS machines,
       count(*) FILTER (WHERE bound OR EXISTS (SELECT 1 FROM claim WHERE claim.machine = c.machine)) AS taken,
       count(*) FILTER (WHERE state <> 'available') AS not_available,
       count(*) FILTER (WHERE NOT alive) AS not_alive,
       count(*) FILTER (WHERE NOT waiting) AS not_waiting,
       count(*) FILTER (WHERE NOT clean) AS not_clean,
       count(*) FILTER (WHERE NOT cabled) AS not_cabled
FROM candidate c WHERE partition = $1 AND size = $2
"""
UPSERT = """
INSERT INTO candidate AS c (machine, partition, size, rack, state, waiting, alive, clean, cabled, bound, version)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)
ON CONFLICT (machine) DO UPDATE SET
    partition = excluded.partition, size = excluded.size, rack = excluded.rack, state = excluded.state,
    waiting = excluded.waiting, alive = excluded.alive, clean = excluded.clean, cabled = excluded.cabled,
    bound = excluded.bound, version = excluded.version, seen_time = clock_timestamp()
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
    bound: bool
    version: int


class PlacementStore:
    """Who may be chosen, who has been."""

    async def lock_class(self, conn: Connection, partition: str, size: str) -> None:
        """Let nobody else choose a machine of this partition and size until the transaction ends."""
        await conn.execute(ENSURE_CLASS, partition, size)
        await conn.fetchrow(LOCK_CLASS, partition, size)

    async def lock_project(self, conn: Connection, project: str) -> int:
        """Let nobody else claim for this project until the transaction ends; answers how many machines it has."""
        await conn.execute(LOCK_PROJECT, project)
        count: int = await conn.fetchval(CLAIMS_OF_PROJECT, project)
        return count

    async def free(self, conn: Connection, partition: str, size: str, *, but: Collection[str]) -> list[Candidate]:
        """Machines of the class that could be taken, except those in `but`."""
        rows = await conn.fetch(FREE, partition, size, list(but))
        return [Candidate(str(row["machine"]), row["rack"]) for row in rows]

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

    async def facts(self, conn: Connection, machine: str) -> CandidateFacts | None:
        """What is known of a machine."""
        row = await conn.fetchrow(FACTS, machine)
        if row is None:
            return None
        names = [name for name in CandidateFacts.__slots__ if name != "machine"]
        return CandidateFacts(machine=str(row["machine"]), **{name: row[name] for name in names})

    async def counts(self, conn: Connection, partition: str, size: str) -> Mapping[str, int]:
        """How many machines of the class there are, and how many each condition rules out."""
        row = await conn.fetchrow(COUNTS, partition, size)
        return dict(row) if row else {}

    async def upsert(self, conn: Connection, facts: CandidateFacts) -> None:
        """Take over what inventory says, unless something newer is known."""
        await conn.execute(
            UPSERT, facts.machine, facts.partition, facts.size, facts.rack, facts.state, facts.waiting, facts.alive,
            facts.clean, facts.cabled, facts.bound, facts.version,
        )  # fmt: skip

    async def forget(self, conn: Connection, machine: str) -> None:
        """Drop a machine that inventory no longer has."""
        await conn.execute(FORGET, machine)

    async def forget_unseen(self, conn: Connection, since: datetime) -> None:
        """Drop machines that inventory has not named since a complete comparison began."""
        await conn.execute(FORGET_UNSEEN, since)
