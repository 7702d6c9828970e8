"""The waiting lease: an installer waits as long as somebody keeps saying so.

A renewal every few seconds from every waiting machine must cost next to nothing, so it is one statement on a narrow
row. Times are the database's: replicas with skewed clocks agree on who waits.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

import asyncpg
from metal_kit.db import Connection

from metal_inventory.lifecycle import EventType, State
from metal_inventory.store.events import EventStore, Report
from metal_inventory.store.machines import MachineStore

SIGN_OF_LIFE = timedelta(seconds=60)
"""How often a renewal counts as a sign of life; far less than the silence limit, far more than the renewals."""

_RENEW = """
UPDATE waiting_lease w SET expires_at = clock_timestamp() + $4::interval
FROM machine m JOIN lifecycle l ON l.machine = m.id
WHERE w.machine = $1 AND w.holder = $2 AND w.generation = $3 AND w.expires_at > clock_timestamp()
  AND m.id = w.machine AND m.waiting AND m.disks_clean AND m.generation = $3 AND m.partition = $5
  AND l.last_event_at > clock_timestamp() - $6::interval
RETURNING 1
"""
_TAKE = """
INSERT INTO waiting_lease (machine, holder, generation, expires_at)
VALUES ($1, $2, $3, clock_timestamp() + $4::interval)
ON CONFLICT (machine) DO UPDATE SET
    holder = excluded.holder, generation = excluded.generation, expires_at = excluded.expires_at
"""


@dataclass(frozen=True, slots=True)
class Claim:
    """Who asks for the lease, for which registration, and for how long."""

    holder: str
    generation: int
    ttl: timedelta


class LeaseStore:
    """Gives, renews and ends waiting leases."""

    def __init__(self, machines: MachineStore, events: EventStore) -> None:
        self._machines = machines
        self._events = events

    async def renew(self, conn: Connection, machine: str, partition: str, claim: Claim) -> bool:
        """Prolong a lease that is held and in order; False means that the long way has to look why not."""
        values = (machine, claim.holder, claim.generation, claim.ttl, partition, SIGN_OF_LIFE)
        row = await conn.fetchrow(_RENEW, *values)
        return row is not None

    async def take(self, conn: Connection, row: asyncpg.Record, claim: Claim) -> bool:
        """Give the lease of a locked machine to the holder, also over another one's: the newest stream is the
        installer's own. False for a machine that is bound or not clean, which cannot wait for anything."""
        if row["allocation_id"] is not None or not row["disks_clean"]:
            await self.end(conn, row)
            return False
        await conn.execute(_TAKE, row["id"], claim.holder, claim.generation, claim.ttl)
        # A lease that ran out has ended, also before the sweep has said so: whoever was shown a machine that does not
        # wait must hear that it does again.
        waits = row["waiting"] and row["lease_expires_at"] is not None and row["lease_expires_at"] > row["now"]
        if row["lifecycle"] in (State.REGISTERING.name, State.WAITING.name):
            await self._events.record(conn, row, [Report(EventType.ALIVE)], publish=waits)
        if not waits:
            await self._machines.change(conn, row["id"], waiting=True)
            await self._machines.publish(conn, row["id"])
        return True

    async def end(self, conn: Connection, row: asyncpg.Record) -> None:
        """End the lease of a locked machine, whoever holds it."""
        await conn.execute("DELETE FROM waiting_lease WHERE machine = $1", row["id"])
        if row["waiting"]:
            await self._machines.change(conn, row["id"], waiting=False)
            await self._machines.publish(conn, row["id"])
