"""AllocationService."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from metal_kit import validation, watch
from metal_kit.clock import Clock
from metal_kit.controller import enqueue
from metal_kit.db import Database
from metal_kit.errors import FailedPrecondition, NotFound
from metal_kit.etag import check_etag
from metal_kit.fieldmask import apply_update
from metal_kit.identity import current_caller, missing
from metal_kit.ids import parse_uuid
from metal_kit.paging import Paging
from metalplane.allocation.v1 import allocation_pb2 as pb
from metalplane.allocation.v1.allocation_pb2_grpc import AllocationServiceServicer
from metalplane.common.v1.access_pb2 import PlaneRole, Role
from metalplane.inventory.v1.machine_pb2 import GetMachineRequest, MachineState

from metal_allocation.api import watching
from metal_allocation.changes import publish
from metal_allocation.clients import Clients
from metal_allocation.controller import KIND
from metal_allocation.creation import Creation
from metal_allocation.messages import to_message
from metal_allocation.phase import FREEING, Phase, freeing_begins
from metal_allocation.record import Record
from metal_allocation.request import check_labels
from metal_allocation.store import AllocationStore, ListFilter

MUTABLE = ("spec.description", "spec.labels")
FIRST_ID = "00000000-0000-0000-0000-000000000000"
# Half of what a message may have: a page of the largest allocations still arrives.
MAX_PAGE_BYTES = 2 * 1024 * 1024


@dataclass(slots=True)
class AllocationApi(AllocationServiceServicer):
    """Create, read, watch, change, free."""

    db: Database
    clients: Clients
    creation: Creation
    paging: Paging
    clock: Clock
    stopping: asyncio.Event
    allocations: AllocationStore

    async def CreateAllocation(self, request: pb.CreateAllocationRequest, context: Any) -> pb.Allocation:
        caller = current_caller()
        operator = caller.may_plane(PlaneRole.PLANE_ROLE_OPERATOR)
        return await self.creation.create(request, caller=caller.label, operator=operator)

    async def GetAllocation(self, request: pb.GetAllocationRequest, context: Any) -> pb.Allocation:
        return await self._message(await self._load(request.id, Role.ROLE_VIEWER))

    async def ListAllocations(self, request: pb.ListAllocationsRequest, context: Any) -> pb.ListAllocationsResponse:
        phase = pb.AllocationPhase.Name(request.phase).removeprefix("ALLOCATION_PHASE_").lower()
        which = ListFilter(
            projects=_visible(request.project),
            machine=request.machine.lower() or None,
            phase=phase if request.phase else None,
            released=request.include_released or phase == Phase.RELEASED,
        )
        filter_key = _filter_key(which, asked=request.project)
        page = self.paging.page(request.page_size, request.page_token, filter_key=filter_key)
        async with self.db.connection() as conn:
            records = await self.allocations.page(conn, which, after=page.after_text(FIRST_ID), limit=page.limit)
        # What one message can hold may be less than the page.
        shown = fitting([to_message(record, []) for record in records[: page.size]])
        more = len(records) > len(shown)
        return pb.ListAllocationsResponse(
            allocations=shown,
            next_page_token=self.paging.token((shown[-1].id,), filter_key=filter_key) if more else "",
        )

    async def WatchAllocations(
        self, request: pb.WatchAllocationsRequest, context: Any
    ) -> AsyncIterator[pb.WatchAllocationsResponse]:
        interest = watching.Interest(current_caller(), request.allocation.lower(), request.project.lower())
        if interest.project:
            interest.caller.require_project(interest.project, Role.ROLE_VIEWER, what=f"project {interest.project}")
        record = await self._load(interest.allocation, Role.ROLE_VIEWER) if interest.allocation else None
        position = request.position
        if not position:
            async with self.db.connection() as conn:
                position = await watch.current_position(conn)
            # Read again, after the position was taken: nothing falls between the two.
            yield watching.first([await self._message(record)] if record else [], position)
        async for response in watching.follow(self.db, self.stopping, interest, position=position):
            yield response

    async def UpdateAllocation(self, request: pb.UpdateAllocationRequest, context: Any) -> pb.Allocation:
        wanted = request.allocation
        known = await self._load(parse_uuid(wanted.id, field="allocation.id"), Role.ROLE_EDITOR)
        async with self.db.transaction(purpose="update an allocation") as conn:
            record = await self.allocations.get(conn, known.id, lock=True)
            if record is None:
                raise missing(f"allocation {known.id}")
            check_etag(wanted.etag, record.version, what=f"allocation {record.id}")
            target = to_message(record, [])
            apply_update(target, wanted, request.update_mask, mutable=MUTABLE)
            validation.check(target, field="allocation")
            check_labels("allocation.spec.labels", target.spec.labels)
            record.description = target.spec.description
            record.labels = dict(target.spec.labels)
            await self.allocations.update(conn, record)
            await publish(conn, record, installation_changed=False)
        return await self._message(record)

    async def FreeAllocation(self, request: pb.FreeAllocationRequest, context: Any) -> pb.Allocation:
        known = await self._load(request.id, Role.ROLE_EDITOR)
        if known.phase in FREEING:
            return await self._message(known)
        await self._refuse_locked(known)
        async with self.db.transaction(purpose="free an allocation") as conn:
            record = await self.allocations.get(conn, known.id, lock=True)
            if record is None:
                raise missing(f"allocation {known.id}")
            if record.phase not in FREEING:
                before = record.installation
                now = self.clock.now()
                record.free_time = now
                text = f"asked for by {current_caller().label}"
                record.enter(freeing_begins(record.phase), now, "FREE_REQUESTED", text)
                await self.allocations.update(conn, record)
                await publish(conn, record, installation_changed=before is not record.installation)
                await enqueue(conn, KIND, record.id)
        return await self._message(record)

    async def _refuse_locked(self, record: Record) -> None:
        try:
            machine = await self.clients.machines.GetMachine(GetMachineRequest(id=record.machine))
        except NotFound:
            return  # what is left of the allocation can still be let go of
        ours = machine.binding.allocation == record.id
        if ours and machine.state == MachineState.MACHINE_STATE_LOCKED:
            why = f" ({machine.state_description})" if machine.state_description else ""
            raise FailedPrecondition("MACHINE_LOCKED", f"machine {machine.id} is locked{why}: have it unlocked")

    async def _load(self, allocation: str, role: Role.ValueType) -> Record:
        what = f"allocation {allocation}"
        async with self.db.connection() as conn:
            record = await self.allocations.get(conn, allocation)
        if record is None:
            raise missing(what)
        current_caller().require_project(record.project, role, what=what)
        return record

    async def _message(self, record: Record) -> pb.Allocation:
        """The allocation as it is now; as `record` when it is gone."""
        async with self.db.connection() as conn:
            now = await self.allocations.get(conn, record.id)
            lines = await self.allocations.timelines(conn, [record.id])
        return to_message(now or record, lines[record.id])


def fitting(allocations: Iterable[pb.Allocation]) -> list[pb.Allocation]:
    """As many as fit into one answer, but at least the first."""
    page: list[pb.Allocation] = []
    size = 0
    for each in allocations:
        size += each.ByteSize()
        if page and size > MAX_PAGE_BYTES:
            break
        page.append(each)
    return page


def _visible(project: str) -> Sequence[str] | None:
    """The projects whose allocations the caller may list: the asked one, all of his, or (None) every one."""
    caller = current_caller()
    if project:
        asked = parse_uuid(project, field="project")
        caller.require_project(asked, Role.ROLE_VIEWER, what=f"project {asked}")
        return [asked]
    if caller.may_plane(PlaneRole.PLANE_ROLE_VIEWER):
        return None
    return sorted(caller.projects)


def _filter_key(which: ListFilter, *, asked: str) -> str:
    """By who asks, not by what he may see: that is looked at anew on each page, and may grow between two of them."""
    who = "" if which.projects is None else asked.lower() or current_caller().label
    text = repr((who, which.machine, which.phase, which.released))
    return "allocations:" + hashlib.sha256(text.encode()).hexdigest()[:16]
