"""What a request names, fetched from its owners and checked against each other."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from metal_kit.errors import FailedPrecondition, InvalidArgument, NotFound, Problem, ResourceExhausted
from metal_kit.ids import parse_uuid
from metalplane.allocation.v1.allocation_pb2 import AllocationRole, AllocationSpec, CreateAllocationRequest
from metalplane.inventory.v1.image_pb2 import Image, ImageFeature, ResolveImageRequest
from metalplane.inventory.v1.layout_pb2 import (
    FilesystemLayout,
    GetFilesystemLayoutRequest,
    MatchFilesystemLayoutRequest,
)
from metalplane.inventory.v1.machine_pb2 import GetMachineRequest, Machine, MachineState
from metalplane.inventory.v1.partition_pb2 import GetPartitionRequest, Partition
from metalplane.inventory.v1.size_pb2 import GetSizeRequest
from metalplane.ipam.v1.ip_pb2 import GetIpRequest
from metalplane.ipam.v1.network_pb2 import GetNetworkRequest, Network
from metalplane.tenancy.v1.project_pb2 import GetProjectRequest, Project

from metal_allocation import networks
from metal_allocation.clients import Clients, underlay_of
from metal_allocation.fit import disk_serials

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Resolved:
    """The objects that a request names. `machine` is set when it names one by its UUID."""

    project: Project
    partition: Partition
    size: str
    image: Image
    layout: FilesystemLayout
    networks: Sequence[Network]
    machine: Machine | None


async def resolve(request: CreateAllocationRequest, clients: Clients) -> Resolved:
    """Fetch and check what the request names. Raises a Problem that names the field at fault.

    What several fields get wrong is told for the first of them, whichever answer comes first.
    """
    spec = request.spec
    machine = await _machine(spec, clients) if spec.machine else None
    partition = machine.partition if machine else spec.partition
    wanted = ResolveImageRequest(image=spec.image, feature=_feature(spec))
    project, where, size, image, *found = await _all(
        _field("project", clients.projects.GetProject(GetProjectRequest(id=request.project))),
        _field("spec.partition", clients.partitions.GetPartition(GetPartitionRequest(id=partition))),
        _size(spec, clients, machine),
        _field("spec.image", clients.images.ResolveImage(wanted)),
        *(
            _field(f"spec.networks[{index}].network", clients.networks.GetNetwork(GetNetworkRequest(id=wish.network)))
            for index, wish in enumerate(spec.networks)
        ),
    )
    firewall = spec.role == AllocationRole.ALLOCATION_ROLE_FIREWALL
    networks.check(found, project=project.id, partition=where.id, firewall=firewall)
    layout = await _layout(spec, clients, size=size, image=image.id)
    if machine:
        disk_serials(layout, machine.hardware)
    await _check_addresses(spec, found, clients, project=project.id)
    if firewall:
        _check_room(await underlay_of(clients, where.id), field="spec.partition")
    return Resolved(project, where, size, image, layout, found, machine)


def _feature(spec: AllocationSpec) -> ImageFeature.ValueType:
    if spec.role == AllocationRole.ALLOCATION_ROLE_FIREWALL:
        return ImageFeature.IMAGE_FEATURE_FIREWALL
    return ImageFeature.IMAGE_FEATURE_MACHINE


async def _machine(spec: AllocationSpec, clients: Clients) -> Machine:
    """The machine that is named by its UUID. The binding asks all this again; here, nothing has been written yet."""
    field = "spec.machine"
    wanted = GetMachineRequest(id=parse_uuid(spec.machine, field=field))
    machine = await _field(field, clients.machines.GetMachine(wanted))
    refusals = (
        ("MACHINE_TAKEN", "has an allocation", bool(machine.binding.allocation)),
        ("MACHINE_LOCKED", "is locked by an operator", machine.state == MachineState.MACHINE_STATE_LOCKED),
        ("MACHINE_NOT_WAITING", "does not wait for an allocation", not machine.waiting),
    )
    for reason, text, holds in refusals:
        if holds:
            raise FailedPrecondition(reason, f"machine {machine.id} {text}", field=field)
    return machine


async def _size(spec: AllocationSpec, clients: Clients, machine: Machine | None) -> str:
    """The wanted size, which exists; or that of a named machine, which may match none."""
    if machine:
        return machine.size
    return (await _field("spec.size", clients.sizes.GetSize(GetSizeRequest(id=spec.size)))).id


async def _layout(spec: AllocationSpec, clients: Clients, *, size: str, image: str) -> FilesystemLayout:
    field = "spec.filesystem_layout"
    if spec.filesystem_layout:
        wanted = GetFilesystemLayoutRequest(id=spec.filesystem_layout)
        return await _field(field, clients.layouts.GetFilesystemLayout(wanted))
    if not size:
        raise FailedPrecondition(
            "NO_LAYOUT", "the machine matches no size, and so no filesystem layout; name one", field=field
        )
    try:
        return await clients.layouts.MatchFilesystemLayout(MatchFilesystemLayoutRequest(size=size, image=image))
    except NotFound:
        raise InvalidArgument(
            "NO_LAYOUT", f"no filesystem layout matches size {size} and image {image}; name one", field=field
        ) from None


async def _check_addresses(spec: AllocationSpec, found: Sequence[Network], clients: Clients, *, project: str) -> None:
    """Refuse before a machine is claimed what could not be given addresses; the acquisition itself decides."""
    for index, (wish, network) in enumerate(zip(spec.networks, found, strict=True)):
        if not wish.ips:
            _check_room(network, field=f"spec.networks[{index}].network")
        for number, address in enumerate(wish.ips):
            field = f"spec.networks[{index}].ips[{number}]"
            known = await _field(field, clients.ips.GetIp(GetIpRequest(address=address, network=network.id)))
            if known.project != project:
                raise NotFound("NOT_FOUND", f"address {address} does not exist in the project", field=field)
            if known.owner.id:
                raise FailedPrecondition(
                    "ADDRESS_IN_USE", f"address {address} is used by {known.owner.id}", field=field
                )


def _check_room(network: Network, *, field: str) -> None:
    for family, account in (("IPv4", network.ipv4), ("IPv6", network.ipv6)):
        if account.total_ips and not account.free_ips:
            raise ResourceExhausted(
                "NETWORK_FULL",
                f"network {network.id} has no free {family} address: all {account.total_ips} are used",
                field=field,
            )


async def _all(*calls: Awaitable[Any]) -> list[Any]:
    """The answers of calls that run side by side; raises the failure of the first of them, in the order given."""
    answers = await asyncio.gather(*calls, return_exceptions=True)
    for answer in answers:
        if isinstance(answer, BaseException):
            raise answer
    return answers


async def _field(field: str, call: Awaitable[T]) -> T:
    """Await a look-up; an unknown object, or one that is refused, is the fault of the field that names it."""
    try:
        return await call
    except (NotFound, FailedPrecondition, InvalidArgument) as problem:
        raise _named(problem, field) from None


def _named(problem: Problem, field: str) -> Problem:
    return type(problem)(problem.reason, problem.message, field=field, metadata=problem.metadata)
