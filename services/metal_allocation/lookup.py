"""What a request names, fetched from its owners and checked against each other."""

from __future__ import annotations

from collections.abc import Awaitable
from dataclasses import dataclass
from typing import TypeVar

from metal_kit.errors import FailedPrecondition, InvalidArgument, NotFound, ResourceExhausted
from metalplane.allocation.v1.allocation_pb2 import AllocationRole, CreateAllocationRequest
from metalplane.inventory.v1.image_pb2 import Image, ImageFeature, ResolveImageRequest
from metalplane.inventory.v1.layout_pb2 import (
    FilesystemLayout,
    GetFilesystemLayoutRequest,
    MatchFilesystemLayoutRequest,
)
from metalplane.inventory.v1.partition_pb2 import GetPartitionRequest, Partition
from metalplane.ipam.v1.network_pb2 import GetNetworkRequest
from metalplane.tenancy.v1.project_pb2 import GetProjectRequest, Project

from metal_allocation import networks
from metal_allocation.clients import Clients

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Resolved:
    """The objects that a request names."""

    project: Project
    partition: Partition
    size: str
    image: Image
    layout: FilesystemLayout
    wishes: list[networks.Wish]


async def resolve(request: CreateAllocationRequest, clients: Clients, *, partition: str, size: str) -> Resolved:
    """Fetch and check what the request names. Raises a Problem that names the field at fault."""
    spec = request.spec
    firewall = spec.role == AllocationRole.ALLOCATION_ROLE_FIREWALL
    feature = ImageFeature.IMAGE_FEATURE_FIREWALL if firewall else ImageFeature.IMAGE_FEATURE_MACHINE
    project = await clients.projects.GetProject(GetProjectRequest(id=request.project))
    where = await _field("spec.partition", clients.partitions.GetPartition(GetPartitionRequest(id=partition)))
    image = await _field(
        "spec.image", clients.images.ResolveImage(ResolveImageRequest(image=spec.image, feature=feature))
    )
    layout = await _layout(request, clients, size=size, image=image.id)
    wishes = []
    for index, wanted in enumerate(spec.networks):
        call = clients.networks.GetNetwork(GetNetworkRequest(id=wanted.network))
        wishes.append(networks.Wish(await _field(f"spec.networks[{index}].network", call), list(wanted.ips)))
    networks.check(wishes, project=request.project, partition=where.id, firewall=firewall)
    _check_room(wishes)
    return Resolved(project, where, size, image, layout, wishes)


async def _layout(request: CreateAllocationRequest, clients: Clients, *, size: str, image: str) -> FilesystemLayout:
    field = "spec.filesystem_layout"
    if request.spec.filesystem_layout:
        wanted = GetFilesystemLayoutRequest(id=request.spec.filesystem_layout)
        return await _field(field, clients.layouts.GetFilesystemLayout(wanted))
    try:
        return await clients.layouts.MatchFilesystemLayout(MatchFilesystemLayoutRequest(size=size, image=image))
    except NotFound:
        raise InvalidArgument(
            "NO_LAYOUT", f"no filesystem layout matches size {size} and image {image}; name one", field=field
        ) from None


def _check_room(wishes: list[networks.Wish]) -> None:
    """Refuse before a machine is claimed what could not be given addresses; the acquisition itself decides."""
    for index, wish in enumerate(wishes):
        if wish.ips:
            continue
        for family, account in (("IPv4", wish.network.ipv4), ("IPv6", wish.network.ipv6)):
            if account.total_ips and not account.free_ips:
                raise ResourceExhausted(
                    "NETWORK_FULL",
                    f"network {wish.network.id} has no free {family} address: all {account.total_ips} are used",
                    field=f"spec.networks[{index}].network",
                )


async def _field(field: str, call: Awaitable[T]) -> T:
    """Await a look-up; an unknown object, or one that is refused, is the fault of the field that names it."""
    try:
        return await call
    except (NotFound, FailedPrecondition) as problem:
        raise type(problem)(problem.reason, problem.message, field=field, metadata=problem.metadata) from None
