"""The peers that allocation asks: tenancy, inventory, ipam, fabric, bmc."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING

from metal_kit.client import Peers
from metal_kit.errors import FailedPrecondition
from metalplane.bmc.v1.bmc_pb2_grpc import BmcServiceStub
from metalplane.fabric.v1.switch_pb2_grpc import SwitchServiceStub
from metalplane.inventory.v1.image_pb2_grpc import ImageServiceStub
from metalplane.inventory.v1.layout_pb2_grpc import FilesystemLayoutServiceStub
from metalplane.inventory.v1.machine_pb2_grpc import MachineServiceStub
from metalplane.inventory.v1.partition_pb2_grpc import PartitionServiceStub
from metalplane.inventory.v1.size_pb2_grpc import SizeServiceStub
from metalplane.ipam.v1.ip_pb2_grpc import IpServiceStub
from metalplane.ipam.v1.network_pb2 import ListNetworksRequest, Network, NetworkType
from metalplane.ipam.v1.network_pb2_grpc import NetworkServiceStub
from metalplane.ipam.v1.pool_pb2_grpc import PoolServiceStub
from metalplane.tenancy.v1.project_pb2_grpc import ProjectServiceStub

if TYPE_CHECKING:
    from metalplane.bmc.v1.bmc_pb2_grpc import BmcServiceAsyncStub
    from metalplane.fabric.v1.switch_pb2_grpc import SwitchServiceAsyncStub
    from metalplane.inventory.v1.image_pb2_grpc import ImageServiceAsyncStub
    from metalplane.inventory.v1.layout_pb2_grpc import FilesystemLayoutServiceAsyncStub
    from metalplane.inventory.v1.machine_pb2_grpc import MachineServiceAsyncStub
    from metalplane.inventory.v1.partition_pb2_grpc import PartitionServiceAsyncStub
    from metalplane.inventory.v1.size_pb2_grpc import SizeServiceAsyncStub
    from metalplane.ipam.v1.ip_pb2_grpc import IpServiceAsyncStub
    from metalplane.ipam.v1.network_pb2_grpc import NetworkServiceAsyncStub
    from metalplane.ipam.v1.pool_pb2_grpc import PoolServiceAsyncStub
    from metalplane.tenancy.v1.project_pb2_grpc import ProjectServiceAsyncStub


@dataclass(frozen=True, slots=True)
class Clients:
    """One stub a peer service."""

    projects: ProjectServiceAsyncStub
    machines: MachineServiceAsyncStub
    partitions: PartitionServiceAsyncStub
    sizes: SizeServiceAsyncStub
    images: ImageServiceAsyncStub
    layouts: FilesystemLayoutServiceAsyncStub
    networks: NetworkServiceAsyncStub
    ips: IpServiceAsyncStub
    pools: PoolServiceAsyncStub
    switches: SwitchServiceAsyncStub
    bmcs: BmcServiceAsyncStub

    @classmethod
    def of(cls, peers: Peers) -> Clients:
        """Stubs over the service's channels."""
        return cls(
            projects=peers.stub(ProjectServiceStub, "tenancy"),
            machines=peers.stub(MachineServiceStub, "inventory"),
            partitions=peers.stub(PartitionServiceStub, "inventory"),
            sizes=peers.stub(SizeServiceStub, "inventory"),
            images=peers.stub(ImageServiceStub, "inventory"),
            layouts=peers.stub(FilesystemLayoutServiceStub, "inventory"),
            networks=peers.stub(NetworkServiceStub, "ipam"),
            ips=peers.stub(IpServiceStub, "ipam"),
            pools=peers.stub(PoolServiceStub, "ipam"),
            switches=peers.stub(SwitchServiceStub, "fabric"),
            bmcs=peers.stub(BmcServiceStub, "bmc"),
        )


async def underlay_of(clients: Clients, partition: str) -> Network:
    """The partition's underlay network, in which each firewall gets an address.

    Raises FailedPrecondition unless there is exactly one.
    """
    request = ListNetworksRequest(type=NetworkType.NETWORK_TYPE_UNDERLAY, partition=partition)
    found = (await clients.networks.ListNetworks(request)).networks
    if len(found) != 1:
        raise FailedPrecondition(
            "UNDERLAY", f"partition {partition} has {len(found)} underlay networks; a firewall needs exactly one"
        )
    return found[0]


def derived_request_id(allocation: str, step: str, attempt: int = 0) -> str:
    """Request id of a step's call: the same after a crash, so that a repeated step has one effect."""
    return str(uuid.uuid5(uuid.UUID(allocation), f"{step}/{attempt}"))
