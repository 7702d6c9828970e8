"""From a request to a bound machine: look up what it names, claim a machine, have inventory bind it.

The claim is one short transaction under the lock of the machine's class; no call goes out while it is open. Inventory's
compare-and-set then confirms it, since the projection that the choice went by may be a moment old: a refused machine is
given up for the next one, a bounded number of times.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta

from metal_kit import idempotency
from metal_kit.clock import Clock
from metal_kit.controller import enqueue
from metal_kit.db import Connection, Database
from metal_kit.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    Problem,
    ResourceExhausted,
    Unavailable,
)
from metal_kit.ids import uuid7
from metalplane.allocation.v1.allocation_pb2 import Allocation, AllocationRole, AllocationSpec, CreateAllocationRequest

from metal_allocation.changes import publish
from metal_allocation.clients import Clients
from metal_allocation.controller import KIND
from metal_allocation.fit import disk_serials
from metal_allocation.lookup import Resolved, resolve
from metal_allocation.messages import to_message
from metal_allocation.phase import DEADLINES, Phase
from metal_allocation.placement import choose
from metal_allocation.record import Record
from metal_allocation.request import check
from metal_allocation.steps.binding import bind_request
from metal_allocation.store import AllocationStore, PlacementStore

METHOD = "/metalplane.allocation.v1.AllocationService/CreateAllocation"
MAX_CANDIDATES = 5
# The controller takes over a binding whose request died; long enough for a live request to finish first.
TAKE_OVER = timedelta(seconds=15)
BIND_TIMEOUT = 5.0


@dataclass(slots=True)
class Claimer:
    """Creates allocations."""

    db: Database
    clients: Clients
    clock: Clock
    allocations: AllocationStore = field(default_factory=AllocationStore)
    placements: PlacementStore = field(default_factory=PlacementStore)
    rng: random.Random = field(default_factory=random.SystemRandom)

    async def create(self, request: CreateAllocationRequest, *, caller: str, operator: bool) -> Allocation:
        """Create an allocation and bind its machine.

        Raises InvalidArgument or FailedPrecondition for what the request names, ResourceExhausted when no machine can
        be had or the project's quota is used up. With a `request_id` that has been answered, answers the same again.
        """
        async with self.db.connection() as conn:
            known = await self._remembered(conn, caller, request)
        if known is not None:
            return known
        check(request.spec)
        if request.spec.machine and not operator:
            raise InvalidArgument(
                "MACHINE_BY_UUID",
                "only plane operators choose machines; name partition and size",
                field="spec.machine",
            )
        if request.spec.machine:
            async with self.db.connection() as conn:
                facts = await self.placements.facts(conn, request.spec.machine)
            if facts is None:
                raise NotFound("NOT_FOUND", f"machine {request.spec.machine} does not exist", field="spec.machine")
            partition, size = facts.partition, facts.size
        else:
            partition, size = request.spec.partition, request.spec.size
        resolved = await resolve(request, self.clients, partition=partition, size=size)
        return await self._claim_and_bind(request, resolved, caller)

    async def _claim_and_bind(self, request: CreateAllocationRequest, resolved: Resolved, caller: str) -> Allocation:
        record = new_record(request, resolved, creator=caller, clock=self.clock)
        refused: dict[str, Problem] = {}
        async with self.db.transaction(purpose="claim a machine") as conn:
            known = await self._remembered(conn, caller, request)
            if known is not None:
                return known
            await self._check_quota(conn, resolved)
            await self._choose(conn, record, refused)
            record.enter(Phase.BINDING, self.clock.now())
            await self.allocations.insert(conn, record)
            if not await self.placements.claim(conn, record):
                raise self._taken(record)
            await enqueue(conn, KIND, record.id, after=TAKE_OVER)
            await self._remember(conn, caller, request, record)
            await publish(conn, record, installation_changed=False)
        return await self._bind(request, record, refused, caller)

    async def _bind(
        self, request: CreateAllocationRequest, record: Record, refused: dict[str, Problem], caller: str
    ) -> Allocation:
        while True:
            try:
                async with asyncio.timeout(BIND_TIMEOUT):
                    machine = await self.clients.machines.BindMachine(bind_request(record))
                record.disk_serials = disk_serials(record.layout, machine.hardware)
                break
            except (Unavailable, DeadlineExceeded, TimeoutError):
                # Whether inventory bound it is unknown: the controller asks again. The caller has his allocation.
                return await self._answer(record)
            except (FailedPrecondition, NotFound) as problem:
                refused[record.machine] = problem
                await self._next_candidate(request, record, refused, caller)
        async with self.db.transaction(purpose="machine bound") as conn:
            before = record.installation
            record.enter(Phase.ADDRESSING, self.clock.now(), "BOUND", f"machine {record.machine} in rack {record.rack}")
            await self.allocations.update(conn, record)
            await publish(conn, record, installation_changed=before is not record.installation)
            await enqueue(conn, KIND, record.id)
        return await self._answer(record)

    async def _next_candidate(
        self, request: CreateAllocationRequest, record: Record, refused: Mapping[str, Problem], caller: str
    ) -> None:
        """Move the claim to another machine; without one, undo the allocation and say why."""
        last = refused[record.machine]
        failure: Problem | None = None
        async with self.db.transaction(purpose="claim another machine") as conn:
            await self.placements.unclaim(conn, record.id)
            try:
                if record.spec.machine or len(refused) >= MAX_CANDIDATES:
                    raise last
                await self._choose(conn, record, refused)
                if not await self.placements.claim(conn, record):
                    raise self._taken(record)
                record.note("CANDIDATE_REFUSED", f"{last.message}; machine {record.machine} is tried next")
                await self.allocations.update(conn, record)
            except Problem as problem:
                failure = problem
                record.enter(Phase.RELEASED, self.clock.now(), problem.reason, problem.message)
                await self.allocations.update(conn, record)
                await publish(conn, record, installation_changed=False)
                # A retry with the same request id is a new try: nothing came of this one.
                await idempotency.forget(conn, caller=caller, method=METHOD, request_id=request.request_id)
        if failure is not None:
            raise failure

    async def _choose(self, conn: Connection, record: Record, refused: Mapping[str, Problem]) -> None:
        """Set the record's machine and rack, under the lock of its class."""
        await self.placements.lock_class(conn, record.partition, record.size)
        if record.spec.machine:
            facts = await self.placements.facts(conn, record.spec.machine)
            record.machine, record.rack = record.spec.machine, facts.rack if facts else ""
            return
        free = await self.placements.free(conn, record.partition, record.size, but=refused)
        held = await self.placements.held(conn, record.project, record.partition, record.size, record.role)
        chosen = choose(free, held, record.placement_labels, self.rng)
        if chosen is None:
            raise await self._none_left(conn, record, refused)
        record.machine, record.rack = chosen.machine, chosen.rack

    async def _none_left(self, conn: Connection, record: Record, refused: Mapping[str, Problem]) -> Problem:
        counts = await self.placements.counts(conn, record.partition, record.size)
        ruled_out = {name: count for name, count in counts.items() if name != "machines" and count}
        why = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in ruled_out.items()) or "none known"
        if refused:
            why += f", {len(refused)} refused by inventory"
        return ResourceExhausted(
            "NO_MACHINE",
            f"no machine of size {record.size} is free in partition {record.partition}: "
            f"{counts.get('machines', 0)} in all, of these {why}",
            metadata={name: str(count) for name, count in counts.items()},
        )

    async def _check_quota(self, conn: Connection, resolved: Resolved) -> None:
        quota = resolved.project.machine_quota
        if quota and await self.placements.lock_project(conn, resolved.project.id) >= quota:
            raise ResourceExhausted(
                "QUOTA", f"the project's quota of {quota} machines is used up; free one, or have it raised"
            )

    async def _answer(self, record: Record) -> Allocation:
        async with self.db.connection() as conn:
            lines = await self.allocations.timelines(conn, [record.id])
        return to_message(record, lines[record.id])

    async def _remembered(self, conn: Connection, caller: str, request: CreateAllocationRequest) -> Allocation | None:
        """The allocation that an earlier request with this id made, as it is now."""
        if not request.request_id:
            return None
        known = await idempotency.remembered(
            conn,
            caller=caller,
            method=METHOD,
            request_id=request.request_id,
            request=request,
            response_type=Allocation,
        )
        if known is None:
            return None
        record = await self.allocations.get(conn, known.id)
        if record is None:
            return known
        return to_message(record, (await self.allocations.timelines(conn, [record.id]))[record.id])

    async def _remember(self, conn: Connection, caller: str, request: CreateAllocationRequest, record: Record) -> None:
        if request.request_id:
            await idempotency.remember(
                conn,
                caller=caller,
                method=METHOD,
                request_id=request.request_id,
                request=request,
                response=Allocation(id=record.id),
            )

    def _taken(self, record: Record) -> Problem:
        return FailedPrecondition("MACHINE_TAKEN", f"machine {record.machine} has an allocation", field="spec.machine")


def new_record(request: CreateAllocationRequest, resolved: Resolved, *, creator: str, clock: Clock) -> Record:
    """The allocation that a request asks for, without a machine yet."""
    spec = AllocationSpec()
    spec.CopyFrom(request.spec)
    spec.ClearField("userdata")
    spec.ClearField("labels")
    spec.ClearField("description")
    firewall = spec.role == AllocationRole.ALLOCATION_ROLE_FIREWALL
    now = clock.now()
    return Record(
        id=uuid7(),
        project=request.project,
        creator=creator,
        name=spec.name,
        role="firewall" if firewall else "machine",
        spec=spec,
        userdata=request.spec.userdata,
        description=request.spec.description,
        labels=dict(request.spec.labels),
        placement_labels=dict(request.spec.placement_labels),
        phase=Phase.BINDING,
        phase_time=now,
        phase_deadline=now + DEADLINES[Phase.BINDING],
        machine="",
        partition=resolved.partition.id,
        rack="",
        size=resolved.size,
        image=resolved.image,
        layout=resolved.layout,
        dns_servers=list(spec.dns_servers) or list(resolved.partition.dns_servers),
        ntp_servers=list(spec.ntp_servers) or list(resolved.partition.ntp_servers),
    )
