"""SQL of this service: one class an aggregate, each method on the caller's connection."""

from metal_bmc.store.commands import CommandStore
from metal_bmc.store.consoles import Claim, ConsoleStore
from metal_bmc.store.endpoints import EndpointStore
from metal_bmc.store.expected import ExpectedStore, Unexpected
from metal_bmc.store.owners import OwnerStore
from metal_bmc.store.racks import RackStore
from metal_bmc.store.schedule import ScheduleStore, Unchanged
from metal_bmc.store.sightings import Sighting, SightingStore
from metal_bmc.store.tasks import TaskStore

__all__ = [
    "Claim",
    "CommandStore",
    "ConsoleStore",
    "EndpointStore",
    "ExpectedStore",
    "OwnerStore",
    "RackStore",
    "ScheduleStore",
    "Sighting",
    "SightingStore",
    "TaskStore",
    "Unchanged",
    "Unexpected",
]
