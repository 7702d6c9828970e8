"""What time alone changes: machines that fall silent, leases that nobody renews.

Each pass finds the machines whose record no longer says the truth, a batch a transaction, and touches no others.
Machines that somebody else has locked are left for the next pass.
"""

from __future__ import annotations

from metal_kit.db import Connection

from metal_inventory.liveliness import SILENCE_LIMIT
from metal_inventory.store.machines import MachineStore
from metal_inventory.telemetry import SILENCED

BATCH = 200

# The rule of liveliness.py as SQL; a test keeps the two equal.
LIVELINESS = """
CASE WHEN l.last_event_at IS NULL THEN 'NOT_AVAILABLE'
     WHEN clock_timestamp() - l.last_event_at <= $1::interval THEN 'ALIVE'
     WHEN m.allocation_id IS NOT NULL THEN 'UNKNOWN'
     ELSE 'DEAD' END
"""
_STALE = f"""
SELECT m.id FROM machine m JOIN lifecycle l ON l.machine = m.id
WHERE l.liveliness <> {LIVELINESS} ORDER BY m.id LIMIT $2 FOR NO KEY UPDATE OF m SKIP LOCKED
"""
# Judged again under the lock: between finding and locking a machine it may have been heard of.
_JUDGE = f"""
UPDATE lifecycle SET liveliness = fresh.liveliness
FROM (SELECT l.machine, {LIVELINESS} AS liveliness FROM lifecycle l JOIN machine m ON m.id = l.machine
      WHERE l.machine = ANY ($2::uuid[])) AS fresh
WHERE lifecycle.machine = fresh.machine AND lifecycle.liveliness <> fresh.liveliness
RETURNING lifecycle.machine
"""
# now(), of which Postgres knows how many leases lie before it.
_EXPIRED = """
SELECT m.id FROM waiting_lease w JOIN machine m ON m.id = w.machine
WHERE w.expires_at <= now() ORDER BY m.id LIMIT $1 FOR NO KEY UPDATE OF m SKIP LOCKED
"""
_DROP = """
DELETE FROM waiting_lease WHERE machine = ANY ($1::uuid[]) AND expires_at <= clock_timestamp() RETURNING machine
"""


class SweepStore:
    """One batch a call; a full one means that there may be more."""

    def __init__(self, machines: MachineStore) -> None:
        self._machines = machines

    async def liveliness(self, conn: Connection) -> tuple[int, bool]:
        """Bring the liveliness of some machines up to date; how many changed, and whether the batch was full."""
        stale = [row["id"] for row in await conn.fetch(_STALE, SILENCE_LIMIT, BATCH)]
        changed = [row["machine"] for row in await conn.fetch(_JUDGE, SILENCE_LIMIT, stale)] if stale else []
        SILENCED.inc(len(changed))
        for machine in changed:
            await self._machines.change(conn, machine)
            await self._machines.publish(conn, machine)
        return len(changed), len(stale) == BATCH

    async def leases(self, conn: Connection) -> tuple[int, bool]:
        """End some leases that have run out; how many, and whether the batch was full."""
        expired = [row["id"] for row in await conn.fetch(_EXPIRED, BATCH)]
        ended = [row["machine"] for row in await conn.fetch(_DROP, expired)] if expired else []
        for machine in ended:
            await self._machines.change(conn, machine, waiting=False)
            await self._machines.publish(conn, machine)
        return len(ended), len(expired) == BATCH
