"""Events of other services that inventory takes in."""

from __future__ import annotations

from datetime import UTC

from metal_kit.db import Connection
from metal_kit.errors import NotFound
from metal_kit.events import Consumer
from metal_kit.logs import get_logger
from metalplane.common.v1.event_pb2 import Event
from metalplane.fabric.v1.events_pb2 import MachineSeen

from metal_inventory.lifecycle import EventType
from metal_inventory.store.events import EventStore, Report
from metal_inventory.store.machines import MachineStore

log = get_logger(__name__)

SEEN = "metalplane.fabric.machine.seen"


def phone_home(machines: MachineStore, events: EventStore) -> Consumer:
    """A system that announced itself on a leaf has phoned home.

    Anybody on a tenant's port can announce anything: an unknown machine, or one of another partition, is not created
    or touched by it.
    """

    async def seen(event: Event, conn: Connection) -> None:
        payload = MachineSeen()
        if not event.payload.Unpack(payload):
            log.warning("event.not_understood", subject=event.subject, id=event.id)
            return
        machine, message = payload.phone_home.machine, payload.phone_home.message
        try:
            row = await machines.lock(conn, machine)
        except NotFound:
            log.info("phone_home.unknown_machine", machine=machine, switch=payload.switch_id)
            return
        if row["partition"] != payload.partition:
            log.warning("phone_home.wrong_partition", machine=machine, switch=payload.switch_id)
            return
        reported = payload.phone_home.time.ToDatetime(tzinfo=UTC) if payload.phone_home.HasField("time") else None
        text = f"seen on {payload.switch_id} {payload.phone_home.port}: {message}".removesuffix(": ")
        # As of when fabric heard it: what has waited on the bus for us must not look like a system that runs on.
        heard = event.time.ToDatetime(tzinfo=UTC) if event.HasField("time") else None
        report = Report(EventType.PHONED_HOME, text[:1024], reported_time=reported, time=heard)
        await events.record(conn, row, [report])

    return Consumer("inventory-phone-home", [SEEN], seen)
