"""MachineService: what operators change."""

from __future__ import annotations

import asyncpg
from google.protobuf.empty_pb2 import Empty
from metal_kit import validation
from metal_kit.db import Connection
from metal_kit.errors import FailedPrecondition, InvalidArgument
from metal_kit.etag import check_etag
from metal_kit.fieldmask import apply_update
from metal_kit.ids import parse_uuid
from metalplane.fabric.v1.cabling_pb2 import DisconnectMachineRequest
from metalplane.inventory.v1 import machine_pb2 as pb

from metal_inventory import contract, snapshot
from metal_inventory.api.tools import Tools
from metal_inventory.binding import EXPLANATIONS, refuse_delete
from metal_inventory.state import AdminState, StateRefusal, refuse_change

MUTABLE = ("description", "labels")


class Changing:
    """Update, administrative state, deletion."""

    tools: Tools

    async def UpdateMachine(self, request: pb.UpdateMachineRequest, context: object) -> pb.Machine:
        id_ = parse_uuid(request.machine.id, field="machine.id")
        machines = self.tools.machines
        async with self.tools.db.transaction(purpose="update machine") as conn:
            row = await machines.lock(conn, id_)
            check_etag(request.machine.etag, row["version"], what=f"machine {id_}")
            machine = snapshot.machine(row)
            apply_update(machine, request.machine, request.update_mask, mutable=MUTABLE)
            validation.check(machine, field="machine")
            await machines.change(conn, id_, description=machine.description, labels=dict(machine.labels))
            return await machines.publish(conn, id_)

    async def SetMachineState(self, request: pb.SetMachineStateRequest, context: object) -> pb.Machine:
        state, description = contract.ADMIN_STATES[request.state], request.description.strip()
        machines = self.tools.machines
        async with self.tools.db.transaction(purpose="set machine state") as conn:
            row = await machines.lock(conn, request.id)
            check_etag(request.etag, row["version"], what=f"machine {request.id}")
            current = AdminState[row["state"]]
            _raise(request.id, current, refuse_change(current, state, description))
            await machines.change(conn, request.id, state=state.name, state_description=description)
            return await machines.publish(conn, request.id)

    async def DeleteMachine(self, request: pb.DeleteMachineRequest, context: object) -> Empty:
        machines, id_ = self.tools.machines, request.id
        # First without its cabling, so that whatever fails on the way leaves a machine that nobody is given.
        async with self.tools.db.transaction(purpose="begin to delete machine") as conn:
            row = await self._deletable(conn, id_)
            check_etag(request.etag, row["version"], what=f"machine {id_}")
            await self._uncable(conn, row)
        if row["generation"]:
            await self.tools.cabling.DisconnectMachine(DisconnectMachineRequest(machine=id_))
        try:
            async with self.tools.db.transaction(purpose="delete machine") as conn:
                await machines.delete(conn, await self._deletable(conn, id_))
        except FailedPrecondition:
            # It has come back and registered meanwhile, with cables that fabric has just forgotten again.
            async with self.tools.db.transaction(purpose="keep machine") as conn:
                await self._uncable(conn, await machines.lock(conn, id_))
            raise
        return Empty()

    async def _uncable(self, conn: Connection, row: asyncpg.Record) -> None:
        if row["cabled"]:
            reason = "its deletion has begun; delete it again, or let it register again"
            await self.tools.machines.change(conn, row["id"], cabled=False, rack="", cabling_error=reason)
            await self.tools.machines.publish(conn, row["id"])

    async def _deletable(self, conn: Connection, id_: str) -> asyncpg.Record:
        row = await self.tools.machines.lock(conn, id_)
        refusal = refuse_delete(snapshot.bindable(row), now=row["now"])
        if refusal is not None:
            raise FailedPrecondition(refusal.value, f"machine {id_} {EXPLANATIONS[refusal]}", field="id")
        return row


def _raise(id_: str, current: AdminState, refusal: StateRefusal | None) -> None:
    match refusal:
        case None:
            return
        case StateRefusal.DESCRIPTION_MISSING:
            text = "description: must say why the machine is tainted or locked"
            raise InvalidArgument(refusal.value, text, field="description")
        case StateRefusal.DESCRIPTION_NOT_ALLOWED:
            raise InvalidArgument(
                refusal.value, "description: must be empty for an available machine", field="description"
            )
        case StateRefusal.NOT_FROM_THIS_STATE:
            text = f"machine {id_} is {current.value}: make it available first, so that its reason is looked at"
            raise FailedPrecondition(refusal.value, text, field="state")
