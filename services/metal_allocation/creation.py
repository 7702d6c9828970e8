"""From a request to a bound machine: look up what it names, claim a machine, have inventory bind it.

Inventory's compare-and-set has the last word, since what the choice went by may be a moment old: a machine that it
refuses is given up for the next one, a bounded number of times. Whatever the request does not live to finish, the
controller does.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta

from metal_kit import idempotency
from metal_kit.clock import Clock
from metal_kit.controller import StaleSnapshot, enqueue
from metal_kit.db import Connection, Database
from metal_kit.errors import FailedPrecondition, NotFound, PermissionDenied, Problem, Unavailable
from metal_kit.ids import parse_uuid, uuid7
from metal_kit.logs import get_logger
from metalplane.allocation.v1.allocation_pb2 import Allocation, AllocationRole, AllocationSpec, CreateAllocationRequest
from metalplane.inventory.v1.machine_pb2 import UnbindMachineRequest

from metal_allocation.changes import publish
from metal_allocation.claiming import Claims
from metal_allocation.clients import Clients
from metal_allocation.controller import KIND
from metal_allocation.fit import disk_serials
from metal_allocation.lookup import Resolved, resolve
from metal_allocation.messages import to_message
from metal_allocation.phase import DEADLINES, Phase
from metal_allocation.record import Record
from metal_allocation.request import check
from metal_allocation.steps.binding import bind_request
from metal_allocation.store import AllocationStore
from metal_allocation.telemetry import CREATED, REFUSED

log = get_logger(__name__)

METHOD = "/metalplane.allocation.v1.AllocationService/CreateAllocation"
MAX_CANDIDATES = 8
# The controller takes over a binding whose request died; long enough for a live request to finish first.
TAKE_OVER = timedelta(seconds=15)
BIND_TIMEOUT = 5.0


@dataclass(slots=True)
class Creation:
    """Creates allocations."""

    db: Database
    clients: Clients
    clock: Clock
    claims: Claims = field(default_factory=Claims)
    allocations: AllocationStore = field(default_factory=AllocationStore)

    async def create(self, request: CreateAllocationRequest, *, caller: str, operator: bool) -> Allocation:
        """Create an allocation and bind its machine.

        Raises InvalidArgument, NotFound or FailedPrecondition for what the request names, PermissionDenied when it
        names a machine and the caller is no plane operator, ResourceExhausted when no machine can be had or the
        project's quota is used up. With a `request_id` that has been answered, answers with the same allocation.
        """
        async with self.db.connection() as conn:
            known = await self._remembered(conn, caller, request)
        if known is not None:
            return known
        check(request.spec)
        if request.spec.machine and not operator:
            raise PermissionDenied(
                "MACHINE_BY_UUID",
                "only plane operators choose machines; name partition and size",
                field="spec.machine",
            )
        resolved = await resolve(request, self.clients)
        record = new_record(request, resolved, creator=caller, clock=self.clock)
        async with self.db.transaction(purpose="claim a machine") as conn:
            # Again: of two copies of a request, the second waits here for the first.
            known = await self._remembered(conn, caller, request)
            if known is not None:
                return known
            await self.claims.check_quota(conn, resolved)
            await self.claims.take(conn, record)
            record.enter(Phase.BINDING, self.clock.now())
            await self.allocations.insert(conn, record)
            await enqueue(conn, KIND, record.id, after=TAKE_OVER)
            await self._remember(conn, caller, request, record)
            # The installer hears of it by the binding.
            await publish(conn, record, installation_changed=False)
        try:
            return await self._bind(request, record, caller)
        except StaleSnapshot:
            # Freed meanwhile, or the controller was faster: either way it is as it is now.
            return await self._present(record)

    async def _bind(self, request: CreateAllocationRequest, record: Record, caller: str) -> Allocation:
        refused: dict[str, Problem] = {}
        while (refusal := await self._try(record)) is not None:
            if isinstance(refusal, Unknown):
                return await self._present(record)
            REFUSED.labels(refusal.reason).inc()
            log.info("machine.refused", machine=record.machine, allocation=record.id, reason=refusal.reason)
            refused[record.machine] = refusal
            await self._next_candidate(request, record, refused, caller)
        async with self.db.transaction(purpose="machine bound") as conn:
            await self._catch_up(conn, record, machine=record.machine)
            before = record.installation
            record.enter(Phase.ADDRESSING, self.clock.now(), "BOUND", f"machine {record.machine} in rack {record.rack}")
            await self.allocations.update(conn, record)
            await publish(conn, record, installation_changed=before is not record.installation)
            await enqueue(conn, KIND, record.id)
        CREATED.labels(record.role).inc()
        return await self._present(record)

    async def _try(self, record: Record) -> Problem | None:
        """Bind the claimed machine. None when that worked, the refusal when it is certain that it is not bound, and
        Unknown when nothing is certain."""
        machines = self.clients.machines
        try:
            machine = await machines.BindMachine(bind_request(record), timeout=BIND_TIMEOUT)
        except (FailedPrecondition, NotFound) as problem:
            return problem
        except Problem as problem:
            return Unknown(problem.reason, problem.message)
        try:
            record.disk_serials = disk_serials(record.layout, machine.hardware)
        except FailedPrecondition as misfit:
            try:
                await machines.UnbindMachine(UnbindMachineRequest(machine=record.machine, allocation=record.id))
            except Problem as problem:
                return Unknown(problem.reason, problem.message)
            return misfit
        return None

    async def _next_candidate(
        self, request: CreateAllocationRequest, record: Record, refused: dict[str, Problem], caller: str
    ) -> None:
        """Move the claim to another machine; without one, end the allocation, say why, and raise it."""
        tried = record.machine
        last = refused[tried]
        failure: Problem | None = None
        async with self.db.transaction(purpose="claim another machine") as conn:
            try:
                if record.spec.machine:
                    raise _at("spec.machine", last)
                if len(refused) >= MAX_CANDIDATES:
                    raise _out_of_step(refused)
                await self.claims.take_another(conn, record, but=refused)
                record.note("CANDIDATE_REFUSED", f"{last.message}; machine {record.machine} is tried next")
            except Problem as problem:
                failure = last if all(each.reason.startswith("LAYOUT_") for each in refused.values()) else problem
                await self.claims.give_up(conn, record)
                record.enter(Phase.RELEASED, self.clock.now(), failure.reason, failure.message)
                # A retry with the same request id is a new try: nothing came of this one.
                await idempotency.forget(conn, caller=caller, method=METHOD, request_id=request.request_id)
            await self._catch_up(conn, record, machine=tried)
            await self.allocations.update(conn, record)
            await publish(conn, record, installation_changed=failure is not None)
        if failure is not None:
            raise failure

    async def _catch_up(self, conn: Connection, record: Record, *, machine: str) -> None:
        """Take over what somebody has edited since the machine was claimed: that must not cost the allocation.

        Raises StaleSnapshot when it has been freed, or the controller was faster. Called after the claim was changed,
        as everybody locks the claim before the allocation.
        """
        now = await self.allocations.get(conn, record.id, lock=True)
        if now is None or (now.phase, now.machine) != (Phase.BINDING, machine):
            raise StaleSnapshot(record.id)
        record.version, record.description, record.labels = now.version, now.description, now.labels

    async def _present(self, record: Record) -> Allocation:
        """The allocation as it is now."""
        async with self.db.connection() as conn:
            now = await self.allocations.get(conn, record.id)
            lines = await self.allocations.timelines(conn, [record.id])
        return to_message(now or record, lines[record.id])

    async def _remembered(self, conn: Connection, caller: str, request: CreateAllocationRequest) -> Allocation | None:
        """The allocation that an earlier request with this id made, as it is now."""
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
        await idempotency.remember(
            conn,
            caller=caller,
            method=METHOD,
            request_id=request.request_id,
            request=request,
            response=Allocation(id=record.id),
        )


class Unknown(Problem):
    """Nobody knows whether inventory did as it was asked: the controller asks again, the caller has his allocation."""


def _at(field: str, problem: Problem) -> Problem:
    return type(problem)(problem.reason, problem.message, field=field, metadata=problem.metadata)


def _out_of_step(refused: dict[str, Problem]) -> Problem:
    reasons = ", ".join(sorted({each.reason for each in refused.values()}))
    return Unavailable(
        "CANDIDATES_REFUSED",
        f"{len(refused)} machines that seemed free were refused ({reasons}); try again in a moment",
        retry_after=timedelta(seconds=2),
    )


def new_record(request: CreateAllocationRequest, resolved: Resolved, *, creator: str, clock: Clock) -> Record:
    """The allocation that a request asks for; image, layout and servers as they are now, whatever is edited later."""
    spec = AllocationSpec()
    spec.CopyFrom(request.spec)
    for field_ in ("userdata", "labels", "description"):
        spec.ClearField(field_)
    for wish, network in zip(spec.networks, resolved.networks, strict=True):
        wish.network = network.id
    if spec.machine:
        spec.machine = parse_uuid(spec.machine, field="spec.machine")
    firewall = spec.role == AllocationRole.ALLOCATION_ROLE_FIREWALL
    now = clock.now()
    return Record(
        id=uuid7(),
        project=resolved.project.id,
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
        machine=spec.machine,
        partition=resolved.partition.id,
        rack=resolved.machine.rack if resolved.machine else "",
        size=resolved.size,
        image=resolved.image,
        layout=resolved.layout,
        dns_servers=list(spec.dns_servers) or list(resolved.partition.dns_servers),
        ntp_servers=list(spec.ntp_servers) or list(resolved.partition.ntp_servers),
    )
