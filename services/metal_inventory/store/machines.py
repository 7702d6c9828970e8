"""A machine's record: read it, lock it, change it, and tell the plane about the change.

Every change of a machine ends with :meth:`MachineStore.publish` in the same transaction: the version was raised and
the event carries the whole machine.
"""

from __future__ import annotations

import asyncpg
from metal_kit import outbox
from metal_kit.db import Connection
from metal_kit.errors import FailedPrecondition
from metal_kit.identity import missing
from metalplane.inventory.v1.events_pb2 import MachineChanged, MachineDeleted
from metalplane.inventory.v1.machine_pb2 import Machine

from metal_inventory import snapshot

CHANGED = "metalplane.inventory.machine.changed"
DELETED = "metalplane.inventory.machine.deleted"
ENTITY = "machine"

# clock_timestamp(): one clock for all replicas, and the true time even late in a transaction.
COLUMNS = """
SELECT m.id, m.version, m.created_at, m.updated_at, m.partition, m.rack, m.size, m.matching_sizes, m.description,
    m.labels, m.state, m.state_description, m.allocation_id, m.project_id, m.bound_at, m.generation, m.session,
    m.installer_version, m.disks_clean, m.quarantined_disks, m.waiting, m.cabled, m.cabling_error, m.report,
    l.state AS lifecycle, l.sequence, l.last_event_at, l.liveliness, l.crash_loop, l.failed_reclaim,
    l.error_type, l.error_at, l.error_reported_at, l.error_message,
    b.machine IS NOT NULL AS bmc, b.address AS bmc_address, b.mac AS bmc_mac, b.firmware AS bmc_firmware,
    b.power AS bmc_power, b.observed_at AS bmc_observed_at, b.fru AS bmc_fru,
    b.fault_reason AS bmc_fault_reason, b.fault AS bmc_fault, b.fault_since AS bmc_fault_since,
    w.holder AS lease_holder, w.expires_at AS lease_expires_at, clock_timestamp() AS now
"""
DETAILS = """
JOIN lifecycle l ON l.machine = m.id
LEFT JOIN bmc b ON b.machine = m.id
LEFT JOIN waiting_lease w ON w.machine = m.id
"""
SELECT = f"{COLUMNS} FROM machine m {DETAILS}"
_LOCK = "SELECT 1 FROM machine WHERE id = $1 FOR NO KEY UPDATE"
_INSERT = """
WITH fresh AS (INSERT INTO machine (id, partition) VALUES ($1, $2) ON CONFLICT (id) DO NOTHING RETURNING id)
INSERT INTO lifecycle (machine) SELECT id FROM fresh RETURNING machine
"""


class MachineStore:
    """Machines as rows of :data:`SELECT`."""

    async def get(self, conn: Connection, id_: str) -> asyncpg.Record | None:
        """The machine's row; None when it is not known."""
        return await conn.fetchrow(f"{SELECT} WHERE m.id = $1", id_)

    async def lock(self, conn: Connection, id_: str) -> asyncpg.Record:
        """The machine's row, locked until the transaction ends. Raises NotFound.

        Two statements on purpose: a join that waits for a row lock sees the locked table's new row beside the other
        tables' old ones.
        """
        if await conn.fetchrow(_LOCK, id_) is None:
            raise missing(f"machine {id_}")
        row = await self.get(conn, id_)
        assert row is not None
        return row

    async def lock_or_create(self, conn: Connection, id_: str, partition: str) -> asyncpg.Record:
        """The machine's locked row, created in the partition when it is new.

        Raises FailedPrecondition when the partition does not exist or another one claims the machine.
        """
        try:
            await conn.execute(_INSERT, id_, partition)
        except asyncpg.ForeignKeyViolationError as error:
            raise no_partition(partition) from error
        row = await self.lock(conn, id_)
        if row["partition"] is None:
            await self.change(conn, id_, partition=partition)
            row = await self.lock(conn, id_)
        require_partition(row, partition)
        return row

    async def change(self, conn: Connection, id_: str, **columns: object) -> None:
        """Set columns of a locked machine and raise its version. Names are constants of the code."""
        sets = "".join(f", {name} = ${n}" for n, name in enumerate(columns, 2))
        await conn.execute(
            f"UPDATE machine SET version = version + 1, updated_at = clock_timestamp(){sets} WHERE id = $1",
            id_,
            *columns.values(),
        )

    async def publish(self, conn: Connection, id_: str, *, scope: str = "") -> Machine:
        """Tell of a change that was just written; the machine as it is now.

        `scope` is the project whose watchers learn of it when that is not the machine's own: the one it leaves.
        """
        row = await self.get(conn, id_)
        assert row is not None
        machine = snapshot.machine(row)
        await outbox.emit(
            conn,
            subject=CHANGED,
            entity=ENTITY,
            entity_id=machine.id,
            version=row["version"],
            payload=MachineChanged(machine=machine),
            partition=machine.partition,
            scope=scope or machine.binding.project,
        )
        return machine

    async def delete(self, conn: Connection, row: asyncpg.Record) -> None:
        """Forget a locked machine and tell of it."""
        machine = snapshot.machine(row)
        await conn.execute("DELETE FROM machine WHERE id = $1", row["id"])
        await outbox.emit(
            conn,
            subject=DELETED,
            entity=ENTITY,
            entity_id=machine.id,
            version=row["version"] + 1,
            payload=MachineDeleted(machine=machine),
            partition=machine.partition,
            deleted=True,
        )


def no_partition(partition: str) -> FailedPrecondition:
    """The problem of a partition that nobody has created."""
    return FailedPrecondition(
        "PARTITION_NOT_FOUND", f"partition {partition} does not exist: create it first", field="partition"
    )


def require_partition(row: asyncpg.Record, partition: str) -> None:
    """Raise FailedPrecondition unless the machine is in this partition: agents speak for their own only."""
    if row["partition"] != partition:
        raise FailedPrecondition(
            "MACHINE_IN_OTHER_PARTITION",
            f"machine {row['id']} belongs to another partition; delete it there before it is used here",
            field="partition",
        )
