"""MachineService: get, list, export, watch."""

from __future__ import annotations

from collections.abc import AsyncIterator

from google.protobuf.message import Message
from metal_kit import watch
from metal_kit.errors import Unavailable
from metal_kit.ids import parse_uuid
from metalplane.common.v1.condition_pb2 import ChangeType
from metalplane.inventory.v1 import machine_pb2 as pb
from metalplane.inventory.v1.events_pb2 import MachineChanged, MachineDeleted

from metal_inventory import contract, snapshot
from metal_inventory.api.tools import Tools
from metal_inventory.api.visibility import may_see, require_visible, visible
from metal_inventory.store.machines import ENTITY
from metal_inventory.store.queries import FIRST, Filter, Visible

EXPORT_BATCH = 100
"""Machines a message of an export: the fastest size for messages of 2 KB each."""
EXPORT_FETCH = 500
"""Machines a query of an export; a query has a price of its own."""


class Reading:
    """The methods that change nothing."""

    tools: Tools

    async def GetMachine(self, request: pb.GetMachineRequest, context: object) -> pb.Machine:
        async with self.tools.db.connection() as conn:
            row = await self.tools.machines.get(conn, request.id)
        return snapshot.machine(require_visible(row, request.id))

    async def ListMachines(self, request: pb.ListMachinesRequest, context: object) -> pb.ListMachinesResponse:
        filter_key = key_of("machines", request.filter)
        page = self.tools.paging.page(request.page_size, request.page_token, filter_key=filter_key)
        which, view = wanted(request.filter), visible()
        async with self.tools.db.connection() as conn:
            rows = await self.tools.queries.page(conn, which, view, after=page.after_text(FIRST), limit=page.limit)
        shown, token = page.cut(rows, lambda row: (str(row["id"]),))
        response = pb.ListMachinesResponse(next_page_token=token)
        for row in shown:
            snapshot.fill(response.machines.add(), row)
        return response

    async def StreamMachines(
        self, request: pb.StreamMachinesRequest, context: object
    ) -> AsyncIterator[pb.StreamMachinesResponse]:
        which, view, after = wanted(request.filter), visible(), FIRST
        async with self.tools.db.connection() as conn:
            position = await watch.current_position(conn)
        yield pb.StreamMachinesResponse(watch_position=position)
        while not self.tools.stopping.is_set():
            # A connection a query: a slow reader must not hold one for the length of its export.
            async with self.tools.db.connection() as conn:
                rows = await self.tools.queries.page(conn, which, view, after=after, limit=EXPORT_FETCH)
            for begin in range(0, len(rows), EXPORT_BATCH):
                response = pb.StreamMachinesResponse()
                for row in rows[begin : begin + EXPORT_BATCH]:
                    snapshot.fill(response.machines.add(), row)
                yield response
            if len(rows) < EXPORT_FETCH:
                return
            after = str(rows[-1]["id"])
        raise Unavailable("SHUTTING_DOWN", "this server is being stopped; export again")

    async def WatchMachines(
        self, request: pb.WatchMachinesRequest, context: object
    ) -> AsyncIterator[pb.WatchMachinesResponse]:
        view, position = visible(), request.position
        machine = parse_uuid(request.machine, field="machine") if request.machine else ""
        if not position:
            async with self.tools.db.connection() as conn:
                position = await watch.current_position(conn)
            # At once, so that a client that loses the connection before the first change can resume from here.
            yield pb.WatchMachinesResponse(position=position)
        async for batch in watch.follow(self.tools.db, self.tools.stopping, entity=ENTITY, position=position):
            shown = [_change(each, view) for each in batch if machine in ("", each.entity_id)]
            changes = [change for change in shown if change is not None]
            yield pb.WatchMachinesResponse(changes=changes, position=batch[-1].position)


def wanted(message: pb.MachineFilter) -> Filter:
    """The filter of a request."""
    return Filter(
        partition=message.partition,
        rack=message.rack,
        size=message.size,
        project=message.project,
        state=contract.ADMIN_STATES.get(message.state),
        lifecycle=contract.STATES[message.lifecycle] if message.lifecycle else None,
        allocated=message.allocated if message.HasField("allocated") else None,
        waiting=message.waiting if message.HasField("waiting") else None,
        labels=dict(message.labels),
        mac=message.mac,
    )


def key_of(method: str, *messages: Message) -> str:
    """What a page token is bound to."""
    return " ".join([method, *(message.SerializeToString(deterministic=True).hex() for message in messages)])


def _change(change: watch.Change, view: Visible) -> pb.MachineChange | None:
    """The change as this caller may see it; None when it is not his business.

    A machine that has left the caller's project is gone for him: what it is and does next is not shown any more.
    """
    if change.deleted:
        machine = MachineDeleted.FromString(change.payload).machine
    else:
        machine = MachineChanged.FromString(change.payload).machine
    if not may_see(view, change.scope, machine.partition):
        return None
    if change.deleted or not may_see(view, machine.binding.project, machine.partition):
        last = machine if view.everything or view.partition else pb.Machine(id=machine.id)
        return pb.MachineChange(type=ChangeType.CHANGE_TYPE_DELETED, machine=last)
    return pb.MachineChange(type=ChangeType.CHANGE_TYPE_UPSERTED, machine=machine)
