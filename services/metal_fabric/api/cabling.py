"""CablingService: how machines hang on their leaves."""

from __future__ import annotations

from typing import Any

from google.protobuf.empty_pb2 import Empty
from metal_kit.ids import parse_uuid
from metal_kit.paging import Paging
from metalplane.fabric.v1 import cabling_pb2
from metalplane.fabric.v1.cabling_pb2_grpc import CablingServiceServicer

from metal_fabric.cabling import Neighbour
from metal_fabric.machines import Machines
from metal_fabric.messages import cable_message
from metal_fabric.refusals import answered


class CablingApi(CablingServiceServicer):
    """Implements CablingService."""

    def __init__(self, machines: Machines, paging: Paging) -> None:
        self._machines = machines
        self._paging = paging

    async def ConnectMachine(
        self, request: cabling_pb2.ConnectMachineRequest, context: Any
    ) -> cabling_pb2.ConnectMachineResponse:
        machine = parse_uuid(request.machine, field="machine")
        neighbours = [Neighbour(each.nic_mac, each.system_name, each.port_id) for each in request.neighbours]
        with answered():
            cabling = await self._machines.connect(machine, request.partition, neighbours)
        return cabling_pb2.ConnectMachineResponse(
            rack=cabling.rack, cables=[cable_message(cable) for cable in cabling.cables]
        )

    async def DisconnectMachine(self, request: cabling_pb2.DisconnectMachineRequest, context: Any) -> Empty:
        with answered():
            await self._machines.disconnect(parse_uuid(request.machine, field="machine"))
        return Empty()

    async def ListCables(self, request: cabling_pb2.ListCablesRequest, context: Any) -> cabling_pb2.ListCablesResponse:
        machine = parse_uuid(request.machine, field="machine") if request.machine else None
        filter_key = f"cables\0{request.switch_id}\0{machine}"
        page = self._paging.page(request.page_size, request.page_token, filter_key=filter_key)
        cables = await self._machines.cables(
            after=(str(page.after[0]), str(page.after[1])) if page.after else ("", ""),
            switch_id=request.switch_id,
            machine=machine,
            limit=page.limit,
        )
        shown, token = page.cut(cables, lambda cable: (cable.switch_id, cable.port))
        return cabling_pb2.ListCablesResponse(cables=[cable_message(cable) for cable in shown], next_page_token=token)
