"""The events of an allocation, written in the transaction of its change."""

from __future__ import annotations

from metal_kit.db import Connection
from metal_kit.outbox import emit
from metalplane.allocation.v1.events_pb2 import AllocationChanged, InstallationChanged

from metal_allocation.messages import to_message
from metal_allocation.record import Record
from metal_allocation.store import AllocationStore

CHANGED = "metalplane.allocation.allocation.changed"
INSTALLATION_CHANGED = "metalplane.allocation.installation.changed"


async def publish(conn: Connection, record: Record, *, installation_changed: bool) -> None:
    """Publish the allocation as it now is and, where it changed, that the installer has something new to do.

    The second is an event of the allocation, too: versions of a machine's allocations have no order among each other.
    """
    lines = (await AllocationStore().timelines(conn, [record.id]))[record.id]
    await emit(
        conn,
        subject=CHANGED,
        entity="allocation",
        entity_id=record.id,
        version=record.version,
        payload=AllocationChanged(allocation=to_message(record, lines)),
        partition=record.partition,
        scope=record.project,
    )
    if installation_changed:
        await emit(
            conn,
            subject=INSTALLATION_CHANGED,
            entity="installation",
            entity_id=record.id,
            version=record.version,
            payload=InstallationChanged(machine=record.machine, allocation=record.id),
            partition=record.partition,
            scope=record.project,
        )
