"""Allocation as it runs, among peers that keep the real ones' rules and fail when they are told to.

Each peer is a real server that answers by the contract: inventory binds by compare-and-set and drops late events of
other allocations, ipam gives nothing to an owner that was released, fabric takes nobody back who has left, bmc gives
the same command to the same request id. `World.faults` and `World.gates` say what goes wrong.
"""

from __future__ import annotations

import asyncio
import base64
import functools
import inspect
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest
from metal_allocation.service import SPEC
from metal_kit import identity
from metal_kit.errors import FailedPrecondition, InvalidArgument, NotFound, Problem, Unauthenticated, Unavailable
from metal_kit.ids import uuid7
from metal_kit.runtime import RunningService
from metalplane.allocation.v1 import allocation_pb2 as pb
from metalplane.allocation.v1 import installation_pb2 as installation
from metalplane.allocation.v1.allocation_pb2_grpc import AllocationServiceStub
from metalplane.allocation.v1.installation_pb2_grpc import InstallationServiceStub
from metalplane.bmc.v1 import bmc_pb2
from metalplane.bmc.v1.bmc_pb2_grpc import BmcServiceServicer, add_BmcServiceServicer_to_server
from metalplane.common.v1.access_pb2 import PlaneRole, Role
from metalplane.fabric.v1 import switch_pb2
from metalplane.fabric.v1.switch_pb2_grpc import SwitchServiceServicer, add_SwitchServiceServicer_to_server
from metalplane.inventory.v1 import image_pb2, layout_pb2, machine_pb2, partition_pb2, size_pb2
from metalplane.inventory.v1.image_pb2_grpc import ImageServiceServicer, add_ImageServiceServicer_to_server
from metalplane.inventory.v1.layout_pb2_grpc import (
    FilesystemLayoutServiceServicer,
    add_FilesystemLayoutServiceServicer_to_server,
)
from metalplane.inventory.v1.machine_pb2_grpc import MachineServiceServicer, add_MachineServiceServicer_to_server
from metalplane.inventory.v1.partition_pb2_grpc import PartitionServiceServicer, add_PartitionServiceServicer_to_server
from metalplane.inventory.v1.size_pb2_grpc import SizeServiceServicer, add_SizeServiceServicer_to_server
from metalplane.ipam.v1 import ip_pb2, network_pb2, pool_pb2
from metalplane.ipam.v1.ip_pb2_grpc import IpServiceServicer, add_IpServiceServicer_to_server
from metalplane.ipam.v1.network_pb2_grpc import NetworkServiceServicer, add_NetworkServiceServicer_to_server
from metalplane.ipam.v1.pool_pb2_grpc import PoolServiceServicer, add_PoolServiceServicer_to_server
from metalplane.tenancy.v1 import project_pb2
from metalplane.tenancy.v1.project_pb2_grpc import ProjectServiceServicer, add_ProjectServiceServicer_to_server
from metalplane.tenancy.v1.token_pb2 import CheckTokenRequest, CheckTokenResponse
from metalplane.tenancy.v1.token_pb2_grpc import TokenServiceServicer, add_TokenServiceServicer_to_server

PARTITION, SIZE, IMAGE, LAYOUT = "mini", "c1-medium", "debian-13.0.1", "plain"
PROJECT = "01980000-0000-7000-8000-000000000001"
OTHER_PROJECT = "01980000-0000-7000-8000-000000000002"
NETWORK = "01980000-0000-7000-8000-0000000000a1"
DEVICE = "/dev/nvme0n1"
SSH_KEY = "ssh-ed25519 " + base64.b64encode(b"\0\0\0\x0bssh-ed25519\0\0\0 " + bytes(32)).decode()
# What a peer does with one call: it never gets it, or does it and the answer is lost.
REFUSE, LOSE = "refuse", "lose"
WAKE = "SELECT pg_notify('metalplane_allocation', 'reconcile:allocation')"

Servicers = list[tuple[Callable[..., None], Any, str]]


@dataclass
class Gate:
    """Holds the next call of one method after its effect, or before it; `open` lets it go on."""

    before: bool = False
    reached: asyncio.Event = field(default_factory=asyncio.Event)
    open: asyncio.Event = field(default_factory=asyncio.Event)

    async def hold(self) -> None:
        self.reached.set()
        await self.open.wait()


class Peer:
    """Wraps each method of a peer with the world's faults."""

    def __init__(self, world: World) -> None:
        self.world = world

    def __init_subclass__(cls) -> None:
        for name, method in list(vars(cls).items()):
            if name[0].isupper() and inspect.iscoroutinefunction(method):
                setattr(cls, name, _faulty(name, method))


def _faulty(name: str, method: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    @functools.wraps(method)
    async def call(self: Peer, request: Any, context: Any) -> Any:
        world = self.world
        world.calls.append((name, request))
        fault = world.fault(name, request)
        if isinstance(fault, Problem):
            raise fault
        if fault == REFUSE:
            raise Unavailable("PEER_DOWN", f"{name} cannot be reached")
        gate = world.gates.pop(name, None)
        if gate is not None and gate.before:
            await gate.hold()
        answer = await method(self, request, context)
        if gate is not None and not gate.before:
            await gate.hold()
        if fault == LOSE:
            raise Unavailable("ANSWER_LOST", f"the answer of {name} is lost")
        return answer

    return call


class Tenancy(Peer, TokenServiceServicer, ProjectServiceServicer):
    """Tokens are their own meaning: `operator`, `plane-viewer`, or `editor PROJECT`, `viewer PROJECT`."""

    async def CheckToken(self, request: CheckTokenRequest, context: Any) -> CheckTokenResponse:
        answer = CheckTokenResponse()
        kind, _, project = request.secret.partition(" ")
        answer.token.user = kind
        if kind in {"operator", "plane-viewer"}:
            answer.token.plane_role = (
                PlaneRole.PLANE_ROLE_OPERATOR if kind == "operator" else PlaneRole.PLANE_ROLE_VIEWER
            )
        elif kind in {"editor", "viewer"}:
            answer.token.project_roles[project] = Role.ROLE_EDITOR if kind == "editor" else Role.ROLE_VIEWER
        else:
            raise Unauthenticated("TOKEN_INVALID", "the token does not hold")
        return answer

    async def GetProject(self, request: project_pb2.GetProjectRequest, context: Any) -> project_pb2.Project:
        if request.id not in {PROJECT, OTHER_PROJECT}:
            raise NotFound("NOT_FOUND", f"project {request.id} does not exist")
        return project_pb2.Project(id=request.id, machine_quota=self.world.quota)


class Catalogue(
    Peer, PartitionServiceServicer, SizeServiceServicer, ImageServiceServicer, FilesystemLayoutServiceServicer
):
    """One partition, size, image and layout."""

    async def GetPartition(self, request: Any, context: Any) -> partition_pb2.Partition:
        return partition_pb2.Partition(id=_known(request.id, PARTITION, "partition"), dns_servers=["192.0.2.53"])

    async def GetSize(self, request: Any, context: Any) -> size_pb2.Size:
        return size_pb2.Size(id=_known(request.id, SIZE, "size"))

    async def ResolveImage(self, request: Any, context: Any) -> image_pb2.Image:
        if not request.image.startswith("debian-"):
            if "-" not in request.image:
                raise InvalidArgument("INVALID_IMAGE", f"{request.image} has no version", field="image")
            raise NotFound("NOT_FOUND", f"supported, unexpired image for {request.image} does not exist")
        return image_pb2.Image(id=IMAGE, url="http://images/d.tar", sha256="ab" * 32)

    async def GetFilesystemLayout(self, request: Any, context: Any) -> layout_pb2.FilesystemLayout:
        return self._layout(_known(request.id, LAYOUT, "filesystem layout"))

    async def MatchFilesystemLayout(self, request: Any, context: Any) -> layout_pb2.FilesystemLayout:
        if request.size != SIZE:
            raise NotFound("NOT_FOUND", f"filesystem layout for size {request.size} does not exist")
        return self._layout(LAYOUT)

    def _layout(self, id_: str) -> layout_pb2.FilesystemLayout:
        layout = layout_pb2.FilesystemLayout(id=id_)
        layout.disks.add(device=DEVICE).partitions.add(number=1, size_mib=1000)
        return layout


def _known(id_: str, known: str, kind: str) -> str:
    if id_ != known:
        raise NotFound("NOT_FOUND", f"{kind} {id_} does not exist")
    return id_


class Machines(Peer, MachineServiceServicer):
    """Machines with inventory's compare-and-set and its guard of events."""

    async def GetMachine(self, request: Any, context: Any) -> machine_pb2.Machine:
        return self._find(request.id)

    async def BindMachine(self, request: Any, context: Any) -> machine_pb2.Machine:
        machine, state = self._find(request.machine), machine_pb2.MachineState
        if machine.binding.allocation == request.allocation:
            return machine
        tainted = machine.state == state.MACHINE_STATE_TAINTED and not request.allow_tainted
        for reason, holds in (
            ("MACHINE_BOUND_TO_OTHER", bool(machine.binding.allocation)),
            ("MACHINE_LOCKED", machine.state == state.MACHINE_STATE_LOCKED),
            ("MACHINE_TAINTED", tainted),
            ("MACHINE_NOT_WAITING", not machine.waiting),
        ):
            if holds:
                raise FailedPrecondition(reason, f"machine {machine.id}: {reason}", field="machine")
        if any(each.binding.allocation == request.allocation for each in self.world.machines.values()):
            raise FailedPrecondition("ALLOCATION_HAS_MACHINE", "bound to another machine", field="allocation")
        machine.binding.allocation, machine.binding.project = request.allocation, request.project
        machine.waiting = False
        self.world.bound.append((request.allocation, machine.id))
        return self.world.touch(machine)

    async def UnbindMachine(self, request: Any, context: Any) -> machine_pb2.Machine:
        machine = self._find(request.machine)
        if machine.binding.allocation == request.allocation:
            if machine.state == machine_pb2.MachineState.MACHINE_STATE_LOCKED:
                raise FailedPrecondition("MACHINE_LOCKED", f"machine {machine.id} is locked", field="machine")
            machine.ClearField("binding")
            self.world.touch(machine)
        return machine

    async def RecordEvents(self, request: Any, context: Any) -> machine_pb2.RecordEventsResponse:
        machine = self._find(request.machine)
        if request.allocation and machine.binding.allocation != request.allocation:
            return machine_pb2.RecordEventsResponse(outcomes=[machine_pb2.EventOutcome.EVENT_OUTCOME_DROPPED])
        for event in request.events:
            if event.id not in self.world.event_ids:
                self.world.event_ids.add(event.id)
                kind = machine_pb2.ProvisioningEventType.Name(event.type).removeprefix("PROVISIONING_EVENT_TYPE_")
                self.world.story[request.allocation].append(kind)
                machine.lifecycle.state = machine_pb2.LifecycleState.Value(f"LIFECYCLE_STATE_{kind}")
        return machine_pb2.RecordEventsResponse(outcomes=[machine_pb2.EventOutcome.EVENT_OUTCOME_ACCEPTED])

    async def StreamMachines(self, request: Any, context: Any) -> Any:
        fault = self.world.fault("StreamMachines", request)
        if fault is not None:
            raise Unavailable("PEER_DOWN", "the export cannot be had")
        yield machine_pb2.StreamMachinesResponse(machines=list(self.world.machines.values()))

    def _find(self, id_: str) -> machine_pb2.Machine:
        if id_ not in self.world.machines:
            raise NotFound("NOT_FOUND", f"machine {id_} does not exist")
        return self.world.machines[id_]


class Ipam(Peer, NetworkServiceServicer, IpServiceServicer, PoolServiceServicer):
    """One child network. An owner that was released acquires nothing more."""

    async def GetNetwork(self, request: Any, context: Any) -> network_pb2.Network:
        if request.id != NETWORK:
            raise NotFound("NOT_FOUND", f"network {request.id} does not exist")
        return network_pb2.Network(
            id=NETWORK, type=network_pb2.NETWORK_TYPE_CHILD, project=PROJECT, partition=PARTITION, vrf=20,
            prefixes=["10.0.0.0/16"],
        )  # fmt: skip

    async def GetIp(self, request: Any, context: Any) -> ip_pb2.Ip:
        raise NotFound("NOT_FOUND", f"address {request.address} does not exist")

    async def AcquireNumber(self, request: Any, context: Any) -> pool_pb2.PoolNumber:
        self._hold(request.owner.id)
        owned = self.world.numbers
        if request.owner.id not in owned:
            owned[request.owner.id] = 4_210_000_000 + next(n for n in range(1, 10**6) if n not in owned.values())
        return pool_pb2.PoolNumber(pool=request.pool, number=owned[request.owner.id], owner=request.owner)

    async def AcquireIps(self, request: Any, context: Any) -> ip_pb2.AcquireIpsResponse:
        self._hold(request.owner.id)
        ips = self.world.ips
        if request.owner.id not in ips:
            used = set(ips.values())
            ips[request.owner.id] = next(each for n in range(1, 250) if (each := f"10.0.0.{n}") not in used)
        return ip_pb2.AcquireIpsResponse(ips=[ip_pb2.Ip(address=ips[request.owner.id], network=NETWORK)])

    async def ReleaseOwned(self, request: Any, context: Any) -> ip_pb2.ReleaseOwnedResponse:
        self.world.released.add(request.owner.id)
        had = self.world.ips.pop(request.owner.id, None), self.world.numbers.pop(request.owner.id, None)
        return ip_pb2.ReleaseOwnedResponse(
            released_ips=int(had[0] is not None), released_numbers=int(had[1] is not None)
        )

    def _hold(self, owner: str) -> None:
        if owner in self.world.released:
            raise FailedPrecondition("OWNER_RELEASED", f"{owner} has been released")


class Fabric(Peer, SwitchServiceServicer):
    """Two leaves that confirm at once, unless `World.leaves_answer` is off."""

    async def AttachMachine(self, request: Any, context: Any) -> switch_pb2.Attachment:
        world = self.world
        if (request.machine, request.allocation) in world.detached:
            raise FailedPrecondition("ALLOCATION_ENDED", "the allocation has detached the machine for good")
        owner = world.attachments.get(request.machine, "")
        if owner not in {"", request.allocation}:
            raise FailedPrecondition("ATTACHED_TO_OTHER", f"attached for allocation {owner}")
        world.attachments[request.machine] = request.allocation
        return self._attachment(request.machine)

    async def DetachMachine(self, request: Any, context: Any) -> switch_pb2.Attachment:
        world = self.world
        if request.machine in world.uncabled:
            raise NotFound("MACHINE_NOT_CABLED", f"machine {request.machine} hangs on no leaf")
        world.detached.add((request.machine, request.allocation))
        if world.attachments.get(request.machine) == request.allocation and world.leaves_answer:
            del world.attachments[request.machine]
        return self._attachment(request.machine)

    def _attachment(self, machine: str) -> switch_pb2.Attachment:
        world = self.world
        made = switch_pb2.Attachment(
            machine=machine, allocation=world.attachments.get(machine, ""), confirmed=world.leaves_answer
        )
        for number in (1, 2):
            answers = world.leaves_answer or number == 1
            made.leaves.add(
                switch_id=f"leaf{number}", port="Ethernet0", confirmed=answers, connected=answers,
                wanted_generation=2, applied_generation=2 if answers else 1,
            )  # fmt: skip
        return made


class Bmc(Peer, BmcServiceServicer):
    """Carries commands out at once; `World.bmc_fails` are reasons that the next ones fail with."""

    async def CreateCommand(self, request: Any, context: Any) -> bmc_pb2.Command:
        world = self.world
        if request.machine in world.without_bmc:
            raise NotFound("BMC_NOT_FOUND", f"machine {request.machine} has no BMC")
        if request.request_id not in world.requests:
            command = bmc_pb2.Command(
                id=uuid7(), machine=request.machine, action=request.action, allocation=request.allocation,
                state=bmc_pb2.COMMAND_STATE_SUCCEEDED,
            )  # fmt: skip
            if world.bmc_fails:
                command.state = bmc_pb2.COMMAND_STATE_FAILED
                command.reason, command.error = world.bmc_fails.pop(0), "the BMC says no"
            world.requests[request.request_id] = command
            action = bmc_pb2.CommandAction.Name(request.action).removeprefix("COMMAND_ACTION_")
            world.story[request.allocation].append(action)
        return world.requests[request.request_id]

    async def GetCommand(self, request: Any, context: Any) -> bmc_pb2.Command:
        for command in self.world.requests.values():
            if command.id == request.id:
                return command
        raise NotFound("COMMAND_NOT_FOUND", f"command {request.id} does not exist")


@dataclass
class World:
    """What the peers know, what they do wrong, and helpers that speak to allocation."""

    running: RunningService = field(init=False)
    make_stub: Callable[..., Any] = field(init=False)
    start: Callable[..., Awaitable[RunningService]] = field(init=False)
    sql: asyncpg.Pool = field(init=False)
    eventually: Callable[..., Awaitable[None]] = field(init=False)
    settings: dict[str, Any] = field(default_factory=dict)

    quota: int = 0
    machines: dict[str, machine_pb2.Machine] = field(default_factory=dict)
    bound: list[tuple[str, str]] = field(default_factory=list)
    event_ids: set[str] = field(default_factory=set)
    ips: dict[str, str] = field(default_factory=dict)
    numbers: dict[str, int] = field(default_factory=dict)
    released: set[str] = field(default_factory=set)
    attachments: dict[str, str] = field(default_factory=dict)
    detached: set[tuple[str, str]] = field(default_factory=set)
    uncabled: set[str] = field(default_factory=set)
    leaves_answer: bool = True
    requests: dict[str, bmc_pb2.Command] = field(default_factory=dict)
    bmc_fails: list[str] = field(default_factory=list)
    without_bmc: set[str] = field(default_factory=set)
    # What happened to an allocation's machine, in order: events at inventory and commands at bmc.
    story: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    calls: list[tuple[str, Any]] = field(default_factory=list)
    faults: dict[str, list[str | Problem]] = field(default_factory=lambda: defaultdict(list))
    chaos: Callable[[str, Any], str | None] | None = None
    gates: dict[str, Gate] = field(default_factory=dict)
    every_gate: list[Gate] = field(default_factory=list)

    def fault(self, method: str, request: Any) -> str | Problem | None:
        if self.chaos is not None:
            return self.chaos(method, request)
        return self.faults[method].pop(0) if self.faults[method] else None

    def gate(self, method: str, *, before: bool = False) -> Gate:
        """Hold the next call of a method."""
        made = self.gates[method] = Gate(before)
        self.every_gate.append(made)
        return made

    async def steal_lease(self, id_: str) -> None:
        """As if the worker that has the allocation had been taken for dead; it does not know."""
        await self.sql.execute(
            "UPDATE reconcile_queue SET holder = NULL, ready_at = clock_timestamp(), woken_at = NULL WHERE key = $1",
            id_,
        )

    def touch(self, machine: machine_pb2.Machine) -> machine_pb2.Machine:
        machine.etag = str(int(machine.etag or "0") + 1)
        return machine

    async def add_machines(self, count: int, *, racks: int = 1) -> list[str]:
        """Waiting machines that allocation has heard of."""
        made = [f"{len(self.machines) + n + 1:08x}-0051-3510-8052-b4c04f4e3132" for n in range(count)]
        for number, id_ in enumerate(made):
            machine = machine_pb2.Machine(
                id=id_, partition=PARTITION, size=SIZE, rack=f"rack-{number % racks}", waiting=True, disks_clean=True,
                state=machine_pb2.MachineState.MACHINE_STATE_AVAILABLE, etag="1",
            )  # fmt: skip
            machine.lifecycle.liveliness = machine_pb2.Liveliness.LIVELINESS_ALIVE
            machine.links.add(nic_mac="02:00:00:00:00:01", switch_id="leaf1", port="Ethernet0")
            machine.hardware.disks.add(name=DEVICE, serial=f"S{id_[:8]}", size_bytes=960 * 10**9)
            self.machines[id_] = machine
        known = "SELECT count(*) FROM candidate WHERE machine = ANY ($1::uuid[])"

        async def heard_of() -> bool:
            return bool(await self.value(known, made) == count)

        await self.eventually(heard_of)
        return made

    async def value(self, query: str, *args: Any) -> Any:
        return await self.sql.fetchval(query, *args)

    def allocations(self, token: str = f"editor {PROJECT}", *, running: RunningService | None = None) -> Any:
        return self.make_stub(running or self.running, AllocationServiceStub, token=token)

    def boot(self, partition: str = PARTITION) -> Any:
        as_ = identity.partition_agent_id(partition, "boot")
        return self.make_stub(self.running, InstallationServiceStub, as_=as_)

    def request(self, name: str = "web", *, request_id: str = "", project: str = PROJECT, **spec: Any) -> Any:
        known: dict[str, Any] = {
            "name": name, "partition": PARTITION, "size": SIZE, "image": "debian-13", "ssh_keys": [SSH_KEY],
            "role": pb.AllocationRole.ALLOCATION_ROLE_MACHINE, "networks": [pb.AllocationNetwork(network=NETWORK)],
        }  # fmt: skip
        return pb.CreateAllocationRequest(
            request_id=request_id, project=project, spec=pb.AllocationSpec(**(known | spec))
        )

    async def create(self, name: str = "web", *, token: str = f"editor {PROJECT}", **more: Any) -> pb.Allocation:
        made: pb.Allocation = await self.allocations(token).CreateAllocation(self.request(name, **more))
        return made

    async def get(self, id_: str) -> pb.Allocation:
        found: pb.Allocation = await self.allocations("operator").GetAllocation(pb.GetAllocationRequest(id=id_))
        return found

    async def free(self, id_: str, *, token: str = f"editor {PROJECT}") -> pb.Allocation:
        freed: pb.Allocation = await self.allocations(token).FreeAllocation(pb.FreeAllocationRequest(id=id_))
        return freed

    async def hurry(self) -> None:
        """Let no pause be waited for."""
        await self.sql.execute("UPDATE allocation SET command_after = phase_time WHERE command_after IS NOT NULL")
        await self.sql.execute(
            "UPDATE reconcile_queue SET ready_at = clock_timestamp() "
            "WHERE holder IS NULL AND ready_at > clock_timestamp() AND key IN "
            "(SELECT id::text FROM allocation WHERE phase <> 'released')"
        )
        await self.sql.execute(WAKE)

    async def look_at_all(self) -> None:
        """Have released ones looked at, too."""
        await self.sql.execute("UPDATE reconcile_queue SET ready_at = clock_timestamp() WHERE holder IS NULL")
        await self.sql.execute(WAKE)

    async def phase(self, id_: str) -> str:
        return str(await self.value("SELECT phase FROM allocation WHERE id = $1::uuid", UUID(id_)))

    async def reach(self, id_: str, *phases: str, seconds: float = 30) -> None:
        """Wait, without pauses, until the allocation is in one of the phases."""

        async def there() -> bool:
            if await self.phase(id_) in phases:
                return True
            await self.hurry()
            return False

        await self.eventually(there, seconds=seconds, what=f"allocation {id_} in {', '.join(phases)}")

    async def install(self, allocation: pb.Allocation, *, running: RunningService | None = None) -> None:
        """The installer's report of success, until it is taken in."""
        await self.boot().RecordResult(
            installation.RecordResultRequest(
                partition=PARTITION, machine=allocation.status.machine, allocation=allocation.id, succeeded=True,
                boot_info=installation.BootInfo(kernel="/boot/vmlinuz"),
            )
        )  # fmt: skip

    async def fail_install(self, allocation: pb.Allocation, reason: str = "IMAGE_HASH_MISMATCH") -> None:
        await self.boot().RecordResult(
            installation.RecordResultRequest(
                partition=PARTITION, machine=allocation.status.machine, allocation=allocation.id, succeeded=False,
                step="image", reason=reason, message="the archive is damaged",
            )
        )  # fmt: skip

    def phone_home(self, machine: str) -> None:
        self.machines[machine].lifecycle.state = machine_pb2.LifecycleState.LIFECYCLE_STATE_PHONED_HOME
        self.touch(self.machines[machine])

    async def bring_to(self, allocation: pb.Allocation, phase: str) -> None:
        """Take an allocation as far as a phase; it stays there."""
        blocked = {
            "attaching": ("AttachMachine", Unavailable("PEER_DOWN", "held for the test")),
            "boot_order": ("CreateCommand", Unavailable("PEER_DOWN", "held for the test")),
        }
        if phase in blocked:
            method, problem = blocked[phase]
            self.faults[method] = [problem] * 1000
        if phase != "addressing":
            await self.reach(allocation.id, "installing")
        if phase not in {"addressing", "installing"}:
            await self.install(allocation)
        if phase == "running":
            await self.reach(allocation.id, "starting")
            self.phone_home(allocation.status.machine)
        await self.reach(allocation.id, phase)

    async def nothing_is_left(self, id_: str) -> None:
        """Assert that no trace of a released allocation is left anywhere."""
        assert await self.value("SELECT count(*) FROM claim WHERE allocation = $1::uuid", UUID(id_)) == 0
        assert id_ not in self.ips
        assert id_ not in self.numbers
        assert id_ not in self.attachments.values()
        assert [each.id for each in self.machines.values() if each.binding.allocation == id_] == []


@pytest.fixture
async def world(
    start_service: Any, start_peer: Any, stub: Any, new_database: Any, eventually: Any
) -> AsyncIterator[World]:
    """One replica of allocation among its peers; it compares its machines with inventory all the time."""
    made = World()
    tenancy, catalogue, machines = Tenancy(made), Catalogue(made), Machines(made)
    ipam, fabric, bmc = Ipam(made), Fabric(made), Bmc(made)
    inventory = "metalplane.inventory.v1"
    servers: dict[str, Servicers] = {
        "tenancy": [
            (add_TokenServiceServicer_to_server, tenancy, "metalplane.tenancy.v1.TokenService"),
            (add_ProjectServiceServicer_to_server, tenancy, "metalplane.tenancy.v1.ProjectService"),
        ],
        "inventory": [
            (add_PartitionServiceServicer_to_server, catalogue, f"{inventory}.PartitionService"),
            (add_SizeServiceServicer_to_server, catalogue, f"{inventory}.SizeService"),
            (add_ImageServiceServicer_to_server, catalogue, f"{inventory}.ImageService"),
            (add_FilesystemLayoutServiceServicer_to_server, catalogue, f"{inventory}.FilesystemLayoutService"),
            (add_MachineServiceServicer_to_server, machines, f"{inventory}.MachineService"),
        ],
        "ipam": [
            (add_NetworkServiceServicer_to_server, ipam, "metalplane.ipam.v1.NetworkService"),
            (add_IpServiceServicer_to_server, ipam, "metalplane.ipam.v1.IpService"),
            (add_PoolServiceServicer_to_server, ipam, "metalplane.ipam.v1.PoolService"),
        ],
        "fabric": [(add_SwitchServiceServicer_to_server, fabric, "metalplane.fabric.v1.SwitchService")],
        "bmc": [(add_BmcServiceServicer_to_server, bmc, "metalplane.bmc.v1.BmcService")],
    }
    peers = {name: await start_peer(name, *servicers) for name, servicers in servers.items()}
    url = await new_database("allocation", "metal_allocation")
    made.settings = {"peers": peers, "database_url": url, "resync_seconds": 0.2}
    made.start = functools.partial(start_service, SPEC, **made.settings)
    made.make_stub, made.eventually = stub, eventually
    made.sql = await asyncpg.create_pool(url, min_size=1, max_size=3, server_settings={"search_path": "allocation"})
    made.running = await made.start()
    yield made
    for gate in made.every_gate:
        gate.open.set()
    await made.sql.close()


@pytest.fixture
def new_request_id() -> str:
    """A request id."""
    return str(uuid4())
