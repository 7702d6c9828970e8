"""Binding: the compare-and-set that makes a machine an allocation's, and its end."""

from __future__ import annotations

import asyncpg
from metal_kit.db import Connection
from metal_kit.errors import FailedPrecondition
from metalplane.inventory.v1.machine_pb2 import Machine

from metal_inventory import snapshot
from metal_inventory.binding import EXPLANATIONS, Refusal, refuse_bind, refuse_unbind
from metal_inventory.liveliness import liveliness
from metal_inventory.store.machines import MachineStore
from metal_inventory.telemetry import REFUSED_BINDS

_ELSEWHERE = "SELECT id::text FROM machine WHERE allocation_id = $1 AND id <> $2"


class BindingStore:
    """Binds and unbinds machines that the caller has locked."""

    def __init__(self, machines: MachineStore) -> None:
        self._machines = machines

    async def bind(
        self, conn: Connection, row: asyncpg.Record, *, allocation: str, project: str, allow_tainted: bool
    ) -> Machine:
        """Bind the machine, or return it unchanged when this allocation has it already.

        Raises FailedPrecondition with the refusal as reason.
        """
        machine = snapshot.bindable(row)
        refusal = refuse_bind(machine, now=row["now"], allocation_id=allocation, allow_tainted=allow_tainted)
        if refusal is not None:
            REFUSED_BINDS.labels(refusal.value).inc()
            raise _refused(row, refusal)
        if machine.allocation_id == allocation:
            return snapshot.machine(row)
        elsewhere = await conn.fetchval(_ELSEWHERE, allocation, row["id"])
        if elsewhere is not None:
            raise _has_machine(allocation)
        await conn.execute("DELETE FROM waiting_lease WHERE machine = $1", row["id"])
        try:
            await self._machines.change(
                conn, row["id"], allocation_id=allocation, project_id=project, bound_at=row["now"], waiting=False
            )
        except asyncpg.UniqueViolationError as error:
            raise _has_machine(allocation) from error
        return await self._machines.publish(conn, row["id"])

    async def unbind(self, conn: Connection, row: asyncpg.Record, *, allocation: str) -> Machine:
        """End the binding to this allocation; without effect when another allocation, or none, has the machine.

        Raises FailedPrecondition when the machine is locked.
        """
        machine = snapshot.bindable(row)
        refusal = refuse_unbind(machine, allocation_id=allocation)
        if refusal is not None:
            raise _refused(row, refusal)
        if machine.allocation_id != allocation:
            return snapshot.machine(row)
        # Silence of a machine that nobody uses any more means something else than it did before.
        now_is = liveliness(machine.last_event_time, allocated=False, now=row["now"])
        await conn.execute("UPDATE lifecycle SET liveliness = $2 WHERE machine = $1", row["id"], now_is.name)
        await self._machines.change(conn, row["id"], allocation_id=None, project_id=None, bound_at=None)
        return await self._machines.publish(conn, row["id"], scope=str(row["project_id"]))


def _refused(row: asyncpg.Record, refusal: Refusal) -> FailedPrecondition:
    return FailedPrecondition(refusal.value, f"machine {row['id']} {EXPLANATIONS[refusal]}", field="machine")


def _has_machine(allocation: str) -> FailedPrecondition:
    return FailedPrecondition(
        "ALLOCATION_HAS_MACHINE", f"allocation {allocation} is bound to another machine", field="allocation"
    )
