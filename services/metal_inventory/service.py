"""Composition of inventory: settings, stores, servicers, consumer, background work."""

from __future__ import annotations

from datetime import timedelta
from functools import partial

from metal_kit.runtime import Background, Parts, Runtime, Servicer, ServiceSpec
from metal_kit.settings import ServiceSettings
from metalplane.fabric.v1.cabling_pb2_grpc import CablingServiceStub
from metalplane.inventory.v1.image_pb2_grpc import add_ImageServiceServicer_to_server
from metalplane.inventory.v1.layout_pb2_grpc import add_FilesystemLayoutServiceServicer_to_server
from metalplane.inventory.v1.machine_pb2_grpc import add_MachineServiceServicer_to_server
from metalplane.inventory.v1.partition_pb2_grpc import add_PartitionServiceServicer_to_server
from metalplane.inventory.v1.size_pb2_grpc import add_SizeServiceServicer_to_server
from pydantic import Field

from metal_inventory.api import images, layouts, partitions, sizes
from metal_inventory.api.images import ImageServicer
from metal_inventory.api.layouts import FilesystemLayoutServicer
from metal_inventory.api.machines import MachineServicer
from metal_inventory.api.partitions import PartitionServicer
from metal_inventory.api.sizes import SizeServicer
from metal_inventory.api.tools import Tools
from metal_inventory.consumers import phone_home
from metal_inventory.store.sweeps import SweepStore
from metal_inventory.upkeep import Upkeep

MACHINE_SERVICE = "metalplane.inventory.v1.MachineService"


class Settings(ServiceSettings):
    """Settings of inventory."""

    liveliness_seconds: float = Field(10.0, gt=0, le=300, description="time between two looks for silent machines")
    lease_seconds: float = Field(1.0, gt=0, le=60, description="time between two looks for expired waiting leases")


async def compose(rt: Runtime) -> Parts:
    """Put the service together."""
    settings = rt.settings
    assert isinstance(settings, Settings)
    db = rt.require_db()
    tools = Tools.of(db, rt.paging, rt.stopping, rt.peers.stub(CablingServiceStub, "fabric"))
    upkeep = Upkeep(db, rt.stopping, SweepStore(tools.machines), tools.events)
    return Parts(
        servicers=[
            Servicer(add_PartitionServiceServicer_to_server, PartitionServicer(db, rt.paging), partitions.SERVICE),
            Servicer(add_SizeServiceServicer_to_server, SizeServicer(db, rt.paging), sizes.SERVICE),
            Servicer(add_ImageServiceServicer_to_server, ImageServicer(db, rt.paging), images.SERVICE),
            Servicer(
                add_FilesystemLayoutServiceServicer_to_server,
                FilesystemLayoutServicer(db, rt.paging, tools.machines),
                layouts.SERVICE,
            ),
            Servicer(add_MachineServiceServicer_to_server, MachineServicer(tools), MACHINE_SERVICE),
        ],
        consumers=[phone_home(tools.machines, tools.events)],
        background=[
            Background("liveliness", partial(upkeep.liveliness, timedelta(seconds=settings.liveliness_seconds))),
            Background("waiting leases", partial(upkeep.leases, timedelta(seconds=settings.lease_seconds))),
            Background("received ids", partial(upkeep.received_ids, timedelta(minutes=10))),
        ],
    )


SPEC = ServiceSpec("inventory", Settings, "metal_inventory", compose)
