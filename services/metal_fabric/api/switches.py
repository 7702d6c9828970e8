"""SwitchService: switches for operators, attachments for allocation."""

from __future__ import annotations

from typing import Any

from google.protobuf.empty_pb2 import Empty
from metal_kit import validation
from metal_kit.etag import check_etag
from metal_kit.fieldmask import apply_update
from metal_kit.ids import parse_uuid
from metal_kit.paging import Paging
from metalplane.fabric.v1 import switch_pb2
from metalplane.fabric.v1.switch_pb2_grpc import SwitchServiceServicer

from metal_fabric.administration import Administration
from metal_fabric.filters import networks, wish
from metal_fabric.life import SwitchLife
from metal_fabric.machines import Machines
from metal_fabric.messages import ROLE_OF, STATE_OF, attachment_message, switch_message, switch_of_device
from metal_fabric.refusals import answered
from metal_fabric.store import SwitchView

# A switch takes up to some 30 kB in an answer, and gRPC carries 4 MiB: pages may be shorter than asked for (AIP-158).
MOST_SWITCHES = 100


class SwitchApi(SwitchServiceServicer):
    """Implements SwitchService."""

    def __init__(self, administration: Administration, life: SwitchLife, machines: Machines, paging: Paging) -> None:
        self._administration = administration
        self._life = life
        self._machines = machines
        self._paging = paging

    async def GetSwitch(self, request: switch_pb2.GetSwitchRequest, context: Any) -> switch_pb2.Switch:
        return switch_message(await self._administration.get(request.id))

    async def ListSwitches(
        self, request: switch_pb2.ListSwitchesRequest, context: Any
    ) -> switch_pb2.ListSwitchesResponse:
        filter_key = f"switches\0{request.partition}\0{request.rack}"
        page = self._paging.page(request.page_size, request.page_token, filter_key=filter_key, most=MOST_SWITCHES)
        views = await self._administration.page(
            after=page.after_text(),
            partition=request.partition,
            rack=request.rack,
            limit=page.limit,
        )
        shown, token = page.cut(views, lambda view: (view.id,))
        return switch_pb2.ListSwitchesResponse(switches=[switch_message(view) for view in shown], next_page_token=token)

    async def UpdateSwitch(self, request: switch_pb2.UpdateSwitchRequest, context: Any) -> switch_pb2.Switch:
        def edit(view: SwitchView) -> str:
            check_etag(request.switch.etag, view.version, what=f"switch {view.id}")
            target = switch_message(view)
            apply_update(target, request.switch, request.update_mask, mutable=["description"])
            validation.check(target, field="switch")
            return target.description

        return switch_message(await self._administration.describe(request.switch.id, edit))

    async def SetPortState(self, request: switch_pb2.SetPortStateRequest, context: Any) -> switch_pb2.Switch:
        with answered():
            view = await self._administration.want_port(request.id, request.port, STATE_OF[request.state])
        return switch_message(view)

    async def RecordDevice(self, request: switch_pb2.RecordDeviceRequest, context: Any) -> switch_pb2.Switch:
        with answered():
            return switch_message(await self._life.record(switch_of_device(request)))

    async def ReplaceSwitch(self, request: switch_pb2.ReplaceSwitchRequest, context: Any) -> switch_pb2.Switch:
        with answered():
            return switch_message(await self._life.replace(request.id, cancel=request.cancel))

    async def MigrateSwitch(self, request: switch_pb2.MigrateSwitchRequest, context: Any) -> switch_pb2.Switch:
        with answered():
            return switch_message(await self._life.migrate(request.id, request.target))

    async def DeleteSwitch(self, request: switch_pb2.DeleteSwitchRequest, context: Any) -> Empty:
        with answered():
            await self._life.forget(request.id)
        return Empty()

    async def AttachMachine(self, request: switch_pb2.AttachMachineRequest, context: Any) -> switch_pb2.Attachment:
        machine = parse_uuid(request.machine, field="machine")
        allocation = parse_uuid(request.allocation, field="allocation")
        with answered():
            wanted = wish(ROLE_OF[request.role], request.vrf, request.allowed_prefixes, request.vnis)
            whose = networks(wanted, request.networks)
            attachment = await self._machines.attach(machine, allocation, wanted, whose)
        return attachment_message(attachment)

    async def DetachMachine(self, request: switch_pb2.DetachMachineRequest, context: Any) -> switch_pb2.Attachment:
        machine = parse_uuid(request.machine, field="machine")
        allocation = parse_uuid(request.allocation, field="allocation")
        with answered():
            attachment = await self._machines.detach(machine, allocation, will_return=request.will_return)
        return attachment_message(attachment)

    async def GetAttachment(self, request: switch_pb2.GetAttachmentRequest, context: Any) -> switch_pb2.Attachment:
        return attachment_message(await self._machines.attachment(parse_uuid(request.machine, field="machine")))
