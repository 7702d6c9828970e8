"""MachineService: the compare-and-set of the allocation service."""

from __future__ import annotations

from metal_kit.ids import parse_uuid
from metalplane.inventory.v1 import machine_pb2 as pb

from metal_inventory.api.tools import Tools


class Binding:
    """Bind and unbind."""

    tools: Tools

    async def BindMachine(self, request: pb.BindMachineRequest, context: object) -> pb.Machine:
        async with self.tools.db.transaction(purpose="bind machine") as conn:
            row = await self.tools.machines.lock(conn, request.machine)
            return await self.tools.bindings.bind(
                conn,
                row,
                allocation=parse_uuid(request.allocation, field="allocation"),
                project=request.project,
                allow_tainted=request.allow_tainted,
            )

    async def UnbindMachine(self, request: pb.UnbindMachineRequest, context: object) -> pb.Machine:
        async with self.tools.db.transaction(purpose="unbind machine") as conn:
            row = await self.tools.machines.lock(conn, request.machine)
            allocation = parse_uuid(request.allocation, field="allocation")
            return await self.tools.bindings.unbind(conn, row, allocation=allocation)
