"""Composition of the allocation service."""

from __future__ import annotations

from datetime import timedelta

from metal_kit.controller import Controller
from metal_kit.runtime import Background, Parts, Runtime, Servicer, ServiceSpec
from metal_kit.settings import ServiceSettings
from metalplane.allocation.v1.allocation_pb2_grpc import add_AllocationServiceServicer_to_server
from metalplane.allocation.v1.installation_pb2_grpc import add_InstallationServiceServicer_to_server
from pydantic import Field

from metal_allocation.api.allocations import AllocationApi
from metal_allocation.api.installations import InstallationApi
from metal_allocation.clients import Clients
from metal_allocation.consumers import consumers
from metal_allocation.controller import AllocationReconciler
from metal_allocation.creation import Creation
from metal_allocation.resync import Resync
from metal_allocation.store import AllocationStore


class Settings(ServiceSettings):
    """Settings of allocation beyond the common ones."""

    resync_seconds: float = Field(60.0, gt=0, description="seconds between comparisons with inventory")
    keep_released_days: float = Field(14.0, gt=0, description="days that a released allocation stays readable")
    workers: int = Field(16, ge=1, le=256, description="allocations that are worked on at once")


async def compose(rt: Runtime) -> Parts:
    """Wire stores, servicers, the controller, consumers and the resync."""
    settings = rt.settings
    if not isinstance(settings, Settings):
        raise TypeError("allocation needs its own settings")
    db = rt.require_db()
    clients = Clients.of(rt.peers)
    store = AllocationStore()
    creation = Creation(db, clients, rt.clock)
    api = AllocationApi(db, clients, creation, rt.paging, rt.clock, rt.stopping, store)
    installations = InstallationApi(db, rt.clock, store)
    resync = Resync(
        db, clients, rt.stopping,
        interval=timedelta(seconds=settings.resync_seconds),
        keep_released=timedelta(days=settings.keep_released_days),
    )  # fmt: skip
    return Parts(
        servicers=[
            Servicer(add_AllocationServiceServicer_to_server, api, "metalplane.allocation.v1.AllocationService"),
            Servicer(
                add_InstallationServiceServicer_to_server,
                installations,
                "metalplane.allocation.v1.InstallationService",
            ),
        ],
        controllers=[Controller(AllocationReconciler(clients, rt.clock), db, workers=settings.workers)],
        consumers=consumers(),
        background=[Background("resync", resync.run)],
    )


SPEC = ServiceSpec(name="allocation", settings=Settings, package="metal_allocation", compose=compose)
