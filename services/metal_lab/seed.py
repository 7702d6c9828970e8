"""What an operator tells the plane about a new rack: partition, sizes, images, layouts, networks, BMCs.

Everything goes through the plane's own API with an operator's token. Running it again changes nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metal_kit.client import Peers
from metal_kit.errors import AlreadyExists, InvalidArgument
from metal_kit.process import StartError
from metal_sim.machine import build
from metalplane.bmc.v1.bmc_pb2 import Bmc, RegisterBmcRequest
from metalplane.bmc.v1.bmc_pb2_grpc import BmcServiceStub
from metalplane.inventory.v1 import image_pb2, layout_pb2, partition_pb2, size_pb2
from metalplane.inventory.v1.image_pb2_grpc import ImageServiceStub
from metalplane.inventory.v1.layout_pb2_grpc import FilesystemLayoutServiceStub
from metalplane.inventory.v1.partition_pb2_grpc import PartitionServiceStub
from metalplane.inventory.v1.size_pb2_grpc import SizeServiceStub
from metalplane.ipam.v1 import network_pb2
from metalplane.ipam.v1.network_pb2_grpc import NetworkServiceStub

from metal_lab.rack.machine import BMC_USER
from metal_lab.rack.model import Image, Layout, Network, RackFile
from metal_lab.rack.wiring import PlacedMachine, size_constraints

MIB = 1024 * 1024
GPT_TYPES = {"vfat": "ef00", "ext4": "8300", "swap": "8300"}


@dataclass(frozen=True, slots=True)
class Seed:
    """What to tell, and through which peers. `images_url` is where the lab serves the archives in `images`."""

    file: RackFile
    peers: Peers
    images: Path
    images_url: str

    async def catalogue(self) -> None:
        """Partition, sizes, images, layouts, networks."""
        file = self.file
        partitions = self.peers.stub(PartitionServiceStub, "inventory")
        await _once(
            partitions.CreatePartition(
                partition_pb2.CreatePartitionRequest(
                    partition=partition_pb2.Partition(
                        id=file.partition,
                        description=f"simulated by the lab from {file.name}",
                        dns_servers=file.dns_servers,
                        ntp_servers=file.ntp_servers,
                        boot=partition_pb2.BootConfig(
                            kernel_url=f"{self.images_url}/installer/vmlinuz",
                            initrd_url=f"{self.images_url}/installer/initrd.img",
                        ),
                    )
                )
            ),
            f"the partition {file.partition}",
        )
        sizes = self.peers.stub(SizeServiceStub, "inventory")
        for size in file.sizes:
            await _once(sizes.CreateSize(size_pb2.CreateSizeRequest(size=_size(file, size.id))), f"the size {size.id}")
        images = self.peers.stub(ImageServiceStub, "inventory")
        for image in file.images:
            await _once(
                images.CreateImage(image_pb2.CreateImageRequest(image=await self._image(image))),
                f"the image {image.id}",
            )
        layouts = self.peers.stub(FilesystemLayoutServiceStub, "inventory")
        for layout in file.layouts:
            wanted = layout_pb2.CreateFilesystemLayoutRequest(filesystem_layout=_layout(layout))
            await _once(layouts.CreateFilesystemLayout(wanted), f"the layout {layout.id}")
        networks = self.peers.stub(NetworkServiceStub, "ipam")
        for network in file.networks:
            request = network_pb2.CreateNetworkRequest(network=_network(network, file.partition))
            await _once(networks.CreateNetwork(request), f"the network {network.id}")

    async def bmcs(self, machines: Mapping[str, PlacedMachine], addresses: Mapping[str, str], password: str) -> None:
        """Register each machine's BMC, or tell its new address."""
        stub = self.peers.stub(BmcServiceStub, "bmc")
        for uuid, machine in machines.items():
            bmc = machine.facts.bmc
            await stub.RegisterBmc(
                RegisterBmcRequest(
                    bmc=Bmc(
                        machine=uuid,
                        partition=self.file.partition,
                        address=addresses[uuid],
                        mac=bmc.mac if bmc else "",
                        user=BMC_USER,
                        password=password,
                    )
                )
            )

    async def _image(self, image: Image) -> image_pb2.Image:
        path = self.images / f"{image.id}.tar.gz"
        built = await asyncio.to_thread(build, path, name=image.id, padding=int(image.size_mib * MIB))
        return image_pb2.Image(
            id=image.id,
            url=f"{self.images_url}/{path.name}",
            sha256=built.sha256,
            size_bytes=built.size_bytes,
            features=[image_pb2.ImageFeature.Value(f"IMAGE_FEATURE_{name.upper()}") for name in image.features],
            classification=image_pb2.ImageClassification.IMAGE_CLASSIFICATION_SUPPORTED,
        )


async def _once(call: Awaitable[Any], what: str) -> None:
    """Create something that may be there from an earlier start of the lab. Raises StartError that names it."""
    try:
        await call
    except AlreadyExists:
        return
    except InvalidArgument as problem:
        raise StartError(f"the plane refuses {what} of the rack file: {problem}") from problem


def _size(file: RackFile, size_id: str) -> size_pb2.Size:
    size = next(each for each in file.sizes if each.id == size_id)
    return size_pb2.Size(
        id=size.id,
        description=size.description,
        constraints=[
            size_pb2.Constraint(
                type=size_pb2.ConstraintType.Value(f"CONSTRAINT_TYPE_{kind}"), min=value, max=value, identifier=glob
            )
            for kind, value, glob in size_constraints(file.hardware[size.hardware])
        ],
    )


def _layout(layout: Layout) -> layout_pb2.FilesystemLayout:
    separator = "p" if layout.device[-1].isdigit() else ""
    disk = layout_pb2.Disk(device=layout.device, wipe_on_reinstall=True)
    filesystems = []
    for number, partition in enumerate(layout.partitions, start=1):
        disk.partitions.add(
            number=number, label=partition.label, size_mib=partition.size_mib, gpt_type=GPT_TYPES[partition.format]
        )
        filesystems.append(
            layout_pb2.Filesystem(
                path=partition.mount,
                device=f"{layout.device}{separator}{number}",
                format=layout_pb2.FilesystemFormat.Value(f"FILESYSTEM_FORMAT_{partition.format.upper()}"),
                label=partition.label,
            )
        )
    return layout_pb2.FilesystemLayout(
        id=layout.id,
        filesystems=filesystems,
        disks=[disk],
        size_ids=layout.sizes,
        image_constraints=layout.images,
    )


def _network(network: Network, partition: str) -> network_pb2.Network:
    nat = network_pb2.NatType.NAT_TYPE_IPV4_MASQUERADE if network.nat else network_pb2.NatType.NAT_TYPE_NONE
    return network_pb2.Network(
        id=network.id,
        type=network_pb2.NetworkType.Value(f"NETWORK_TYPE_{network.type.upper()}"),
        partition=partition if network.in_partition else "",
        prefixes=network.prefixes,
        destination_prefixes=network.destination_prefixes,
        default_child_prefix_length=network_pb2.PrefixLengths(**network.default_child_prefix_length)
        if network.default_child_prefix_length
        else None,
        vrf=network.vrf,
        nat=nat,
    )
