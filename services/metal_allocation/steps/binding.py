"""Binding: inventory's compare-and-set."""

from __future__ import annotations

from metal_kit.clock import Clock
from metal_kit.controller import Go, Outcome
from metal_kit.errors import FailedPrecondition, NotFound
from metalplane.inventory.v1.machine_pb2 import BindMachineRequest

from metal_allocation.clients import Clients
from metal_allocation.fit import disk_serials
from metal_allocation.phase import Phase
from metal_allocation.record import Record


async def bind(record: Record, clients: Clients, clock: Clock) -> Outcome:
    """Bind the claimed machine. Only reached when the request that claimed it did not live to do so itself.

    A refusal ends the allocation: nothing was acquired yet, and whoever asked is no longer there to be given another
    machine; the allocation stays readable and says why.
    """
    try:
        machine = await clients.machines.BindMachine(bind_request(record))
        record.disk_serials = disk_serials(record.layout, machine.hardware)
    except (FailedPrecondition, NotFound) as refused:
        return Go(Phase.UNBINDING, refused.reason, f"the machine was refused: {refused.message}")
    return Go(Phase.ADDRESSING, "BOUND", f"machine {record.machine} in rack {record.rack}")


def bind_request(record: Record) -> BindMachineRequest:
    """The compare-and-set that makes the claimed machine this allocation's."""
    return BindMachineRequest(
        machine=record.machine,
        allocation=record.id,
        project=record.project,
        allow_tainted=bool(record.spec.machine),
    )
