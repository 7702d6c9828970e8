"""AllocationService."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

from google.protobuf.field_mask_pb2 import FieldMask
from metal_kit import watch
from metal_kit.clock import Clock
from metal_kit.controller import enqueue
from metal_kit.db import Database
from metal_kit.errors import FailedPrecondition
from metal_kit.etag import check_etag
from metal_kit.fieldmask import apply_update
from metal_kit.identity import current_caller, missing
from metal_kit.paging import Paging
from metalplane.allocation.v1 import allocation_pb2 as pb
from metalplane.allocation.v1.allocation_pb2_grpc import AllocationServiceServicer
from metalplane.allocation.v1.events_pb2 import AllocationChanged
from metalplane.common.v1.access_pb2 import PlaneRole, Role
from metalplane.common.v1.condition_pb2 import ChangeType
from metalplane.inventory.v1.machine_pb2 import GetMachineRequest, MachineState

from metal_allocation.changes import publish
from metal_allocation.claiming import Claimer
from metal_allocation.clients import Clients
from metal_allocation.controller import KIND
from metal_allocation.messages import to_message
from metal_allocation.phase import FREEING, Phase
from metal_allocation.record import Record
from metal_allocation.store import AllocationStore, ListFilter

MUTABLE = ("spec.description", "spec.labels")
FIRST_ID = "00000000-0000-0000-0000-000000000000"


@dataclass(slots=True)
class AllocationApi(AllocationServiceServicer):
    """Create, read, watch, change, free."""

    db: Database
    clients: Clients
    claimer: Claimer
    paging: Paging
    clock: Clock
    stopping: Any
    allocations: AllocationStore

    async def CreateAllocation(self, request: pb.CreateAllocationRequest, context: Any) -> pb.Allocation:
        caller = current_caller()
        operator = caller.may_plane(PlaneRole.PLANE_ROLE_OPERATOR)
        return await self.claimer.create(request, caller=caller.label, operator=operator)

    async def GetAllocation(self, request: pb.GetAllocationRequest, context: Any) -> pb.Allocation:
        return await self._message(await self._load(request.id, Role.ROLE_VIEWER))

    async def ListAllocations(self, request: pb.ListAllocationsRequest, context: Any) -> pb.ListAllocationsResponse:
        phase = pb.AllocationPhase.Name(request.phase).removeprefix("ALLOCATION_PHASE_").lower()
        which = ListFilter(
            projects=_visible(request.project),
            machine=request.machine or None,
            phase=phase if request.phase else None,
            released=request.include_released or phase == Phase.RELEASED,
        )
        size = self.paging.page_size(request.page_size)
        filter_key = _filter_key(which)
        key = self.paging.parse(request.page_token, filter_key=filter_key)
        async with self.db.connection() as conn:
            records = await self.allocations.page(conn, which, after=str(key[0]) if key else FIRST_ID, limit=size + 1)
            page = records[:size]
            lines = await self.allocations.timelines(conn, [record.id for record in page])
        more = len(records) > size
        return pb.ListAllocationsResponse(
            allocations=[to_message(record, lines[record.id]) for record in page],
            next_page_token=self.paging.token((page[-1].id,), filter_key=filter_key) if more else "",
        )

    async def WatchAllocations(
        self, request: pb.WatchAllocationsRequest, context: Any
    ) -> AsyncIterator[pb.WatchAllocationsResponse]:
        caller = current_caller()
        if request.project:
            caller.require_project(request.project, Role.ROLE_VIEWER, what=f"project {request.project}")
        position = request.position
        if not position:
            async with self.db.connection() as conn:
                position = await watch.current_position(conn)
            first = []
            if request.allocation:
                record = await self._load(request.allocation, Role.ROLE_VIEWER)
                kind = ChangeType.CHANGE_TYPE_UPSERTED
                first = [pb.AllocationChange(type=kind, allocation=await self._message(record))]
            yield pb.WatchAllocationsResponse(changes=first, position=position)
        async for batch in watch.follow(self.db, self.stopping, entity="allocation", position=position):
            changes = [
                _change(change)
                for change in batch
                if (not request.allocation or change.entity_id == request.allocation)
                and (not request.project or change.scope == request.project)
                and caller.may_project(change.scope, Role.ROLE_VIEWER)
            ]
            if batch:
                position = batch[-1].position
            yield pb.WatchAllocationsResponse(changes=changes, position=position)

    async def UpdateAllocation(self, request: pb.UpdateAllocationRequest, context: Any) -> pb.Allocation:
        wanted = request.allocation
        await self._load(wanted.id, Role.ROLE_EDITOR)
        async with self.db.transaction(purpose="update an allocation") as conn:
            record = await self.allocations.get(conn, wanted.id, lock=True)
            if record is None:
                raise missing(f"allocation {wanted.id}")
            check_etag(wanted.etag, record.version, what=f"allocation {wanted.id}")
            target = to_message(record, [])
            apply_update(target, wanted, _mask(request.update_mask), mutable=MUTABLE)
            record.description = target.spec.description
            record.labels = dict(target.spec.labels)
            await self.allocations.update(conn, record)
            await publish(conn, record, installation_changed=False)
        return await self._message(record)

    async def FreeAllocation(self, request: pb.FreeAllocationRequest, context: Any) -> pb.Allocation:
        known = await self._load(request.id, Role.ROLE_EDITOR)
        if known.phase in FREEING:
            return await self._message(known)
        machine = await self.clients.machines.GetMachine(GetMachineRequest(id=known.machine))
        if machine.state == MachineState.MACHINE_STATE_LOCKED:
            raise FailedPrecondition(
                "MACHINE_LOCKED",
                f"machine {machine.id} is locked ({machine.state_description}): have it unlocked",
            )
        async with self.db.transaction(purpose="free an allocation") as conn:
            record = await self.allocations.get(conn, request.id, lock=True)
            if record is None:
                raise missing(f"allocation {request.id}")
            if record.phase not in FREEING:
                before = record.installation
                now = self.clock.now()
                record.free_time = now
                record.enter(Phase.FENCING, now, "FREE_REQUESTED", f"asked for by {current_caller().label}")
                await self.allocations.update(conn, record)
                await publish(conn, record, installation_changed=before is not record.installation)
                await enqueue(conn, KIND, record.id)
        return await self._message(record)

    async def _load(self, allocation: str, role: Role.ValueType) -> Record:
        what = f"allocation {allocation}"
        async with self.db.connection() as conn:
            record = await self.allocations.get(conn, allocation)
        if record is None:
            raise missing(what)
        current_caller().require_project(record.project, role, what=what)
        return record

    async def _message(self, record: Record) -> pb.Allocation:
        async with self.db.connection() as conn:
            lines = await self.allocations.timelines(conn, [record.id])
        return to_message(record, lines[record.id])


def _visible(project: str) -> Sequence[str] | None:
    """The projects whose allocations the caller may list: the asked one, all of his, or (None) every one."""
    caller = current_caller()
    if project:
        caller.require_project(project, Role.ROLE_VIEWER, what=f"project {project}")
        return [project]
    if caller.may_plane(PlaneRole.PLANE_ROLE_VIEWER):
        return None
    return sorted(caller.projects)


def _filter_key(which: ListFilter) -> str:
    text = repr((which.projects, which.machine, which.phase, which.released))
    return "allocations:" + hashlib.sha256(text.encode()).hexdigest()[:16]


def _mask(mask: FieldMask) -> FieldMask:
    """Without a mask only what may change is looked at, so that a message that was read can be sent back."""
    return mask if mask.paths else FieldMask(paths=list(MUTABLE))


def _change(change: watch.Change) -> pb.AllocationChange:
    deleted = ChangeType.CHANGE_TYPE_DELETED
    return pb.AllocationChange(
        type=deleted if change.deleted else ChangeType.CHANGE_TYPE_UPSERTED,
        allocation=AllocationChanged.FromString(change.payload).allocation,
    )
