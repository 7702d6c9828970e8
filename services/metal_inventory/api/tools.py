"""What the parts of MachineService share."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

from metal_kit.db import Database
from metal_kit.paging import Paging

from metal_inventory.store.bindings import BindingStore
from metal_inventory.store.bmcs import BmcStore
from metal_inventory.store.events import EventStore
from metal_inventory.store.leases import LeaseStore
from metal_inventory.store.machines import MachineStore
from metal_inventory.store.queries import QueryStore
from metal_inventory.store.registration import RegistrationStore

if TYPE_CHECKING:
    from metalplane.fabric.v1.cabling_pb2_grpc import CablingServiceAsyncStub


@dataclass(frozen=True)
class Tools:
    """Database, stores and peers of the machine API."""

    db: Database
    paging: Paging
    stopping: asyncio.Event
    cabling: CablingServiceAsyncStub
    machines: MachineStore
    events: EventStore
    registrations: RegistrationStore
    leases: LeaseStore
    bindings: BindingStore
    bmcs: BmcStore
    queries: QueryStore

    @classmethod
    def of(cls, db: Database, paging: Paging, stopping: asyncio.Event, cabling: CablingServiceAsyncStub) -> Tools:
        """The stores over one database."""
        machines = MachineStore()
        events = EventStore(machines)
        return cls(
            db=db,
            paging=paging,
            stopping=stopping,
            cabling=cabling,
            machines=machines,
            events=events,
            registrations=RegistrationStore(machines, events),
            leases=LeaseStore(machines, events),
            bindings=BindingStore(machines),
            bmcs=BmcStore(machines),
            queries=QueryStore(),
        )
