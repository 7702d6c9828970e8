"""The peers of allocation: real servers that keep the real ones' rules, and fail when they are told to.

Each answers by the contract: inventory binds by compare-and-set and drops late events of other allocations, ipam gives
nothing to an owner that was released, fabric takes nobody back who has left, bmc gives the same command to the same
request id.
"""

from __future__ import annotations

import asyncio
import base64
import functools
import inspect
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from metal_kit.errors import (
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    Problem,
    Unauthenticated,
    Unavailable,
    Unimplemented,
)
from metal_kit.ids import uuid7
from metalplane.bmc.v1 import bmc_pb2
from metalplane.bmc.v1.bmc_pb2_grpc import BmcServiceServicer
from metalplane.common.v1.access_pb2 import PlaneRole, Role
from metalplane.fabric.v1 import switch_pb2
from metalplane.fabric.v1.switch_pb2_grpc import SwitchServiceServicer
from metalplane.inventory.v1 import image_pb2, layout_pb2, machine_pb2, partition_pb2, size_pb2
from metalplane.inventory.v1.image_pb2_grpc import ImageServiceServicer
from metalplane.inventory.v1.layout_pb2_grpc import (
    FilesystemLayoutServiceServicer,
)
from metalplane.inventory.v1.machine_pb2_grpc import MachineServiceServicer
from metalplane.inventory.v1.partition_pb2_grpc import PartitionServiceServicer
from metalplane.inventory.v1.size_pb2_grpc import SizeServiceServicer
from metalplane.ipam.v1 import ip_pb2, network_pb2, pool_pb2
from metalplane.ipam.v1.ip_pb2_grpc import IpServiceServicer
from metalplane.ipam.v1.network_pb2_grpc import NetworkServiceServicer
from metalplane.ipam.v1.pool_pb2_grpc import PoolServiceServicer
from metalplane.tenancy.v1 import project_pb2
from metalplane.tenancy.v1.project_pb2_grpc import ProjectServiceServicer
from metalplane.tenancy.v1.token_pb2 import CheckTokenRequest, CheckTokenResponse
from metalplane.tenancy.v1.token_pb2_grpc import TokenServiceServicer

PARTITION, SIZE, IMAGE, LAYOUT = "mini", "c1-medium", "debian-13.0.1", "plain"
PROJECT = "01980000-0000-7000-8000-000000000001"
OTHER_PROJECT = "01980000-0000-7000-8000-000000000002"
NETWORK = "01980000-0000-7000-8000-0000000000a1"
# The other project's, with the same prefix: both are children of a namespaced super network.
TWIN = "01980000-0000-7000-8000-0000000000a2"
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

    def __init__(self, world: Any) -> None:
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
    """Tokens are their own meaning: `operator`, `plane-viewer`, or `editor PROJECT …`, `viewer PROJECT …`.

    Role and first project name the user; the other projects are what he has been given besides.
    """

    async def CheckToken(self, request: CheckTokenRequest, context: Any) -> CheckTokenResponse:
        answer = CheckTokenResponse()
        kind, *projects = request.secret.split(" ")
        answer.token.user = " ".join([kind, *projects[:1]])
        if kind in {"operator", "plane-viewer"}:
            answer.token.plane_role = (
                PlaneRole.PLANE_ROLE_OPERATOR if kind == "operator" else PlaneRole.PLANE_ROLE_VIEWER
            )
        elif kind in {"editor", "viewer"}:
            for project in projects:
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
    """A child network of each project. An owner that was released acquires nothing more."""

    async def GetNetwork(self, request: Any, context: Any) -> network_pb2.Network:
        if request.id not in {NETWORK, TWIN}:
            raise NotFound("NOT_FOUND", f"network {request.id} does not exist")
        project, partition, vrf = (PROJECT, PARTITION, 20) if request.id == NETWORK else (OTHER_PROJECT, "", 21)
        return network_pb2.Network(
            id=request.id, type=network_pb2.NETWORK_TYPE_CHILD, project=project, partition=partition, vrf=vrf,
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
        [wish] = request.wishes
        if request.owner.id not in ips:
            used = {address for network, address in ips.values() if network == wish.network}
            ips[request.owner.id] = (
                wish.network,
                next(each for n in range(1, 250) if (each := f"10.0.0.{n}") not in used),
            )
        network, address = ips[request.owner.id]
        return ip_pb2.AcquireIpsResponse(ips=[ip_pb2.Ip(address=address, network=network)])

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

    async def GetAttachment(self, request: Any, context: Any) -> switch_pb2.Attachment:
        if request.machine in self.world.uncabled:
            raise NotFound("MACHINE_NOT_CABLED", f"machine {request.machine} hangs on no leaf")
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
        if request.machine in world.without_boot_device and request.action == bmc_pb2.COMMAND_ACTION_BOOT_DISK:
            raise Unimplemented("BMC_CANNOT", "the machine's BMC cannot do that", field="action")
        if request.request_id not in world.requests:
            assert not request.HasField("timeout"), "only bmc knows whether a person needs a day for it"
            command = bmc_pb2.Command(
                id=uuid7(), machine=request.machine, action=request.action, allocation=request.allocation,
                state=bmc_pb2.COMMAND_STATE_SUCCEEDED,
            )  # fmt: skip
            if request.machine in world.by_hand:
                command.state = bmc_pb2.COMMAND_STATE_RUNNING
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
