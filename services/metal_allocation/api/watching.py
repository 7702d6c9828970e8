"""Following changes of allocations, filtered by what the caller asked for and may see."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from metal_kit import watch
from metal_kit.db import Database
from metal_kit.identity import Caller
from metalplane.allocation.v1 import allocation_pb2 as pb
from metalplane.allocation.v1.events_pb2 import AllocationChanged
from metalplane.common.v1.access_pb2 import Role
from metalplane.common.v1.condition_pb2 import ChangeType

# How often a watcher who is told nothing gets a new position. Not with each change of others: that is their business.
POSITION_EVERY = 10.0


@dataclass(frozen=True, slots=True)
class Interest:
    """Whose changes are told to whom; empty means all that the caller may see."""

    caller: Caller
    allocation: str
    project: str

    def covers(self, change: watch.Change) -> bool:
        """Whether this change is told."""
        return (
            (not self.allocation or change.entity_id == self.allocation)
            and (not self.project or change.scope == self.project)
            and self.caller.may_project(change.scope, Role.ROLE_VIEWER)
        )


async def follow(
    db: Database, stopping: asyncio.Event, interest: Interest, *, position: str
) -> AsyncIterator[pb.WatchAllocationsResponse]:
    """Batches of changes after `position` until `stopping` is set."""
    loop = asyncio.get_running_loop()
    told = loop.time()
    async for batch in watch.follow(db, stopping, entity="allocation", position=position):
        changes = [upserted(_allocation(change)) for change in batch if interest.covers(change)]
        if changes or loop.time() - told >= POSITION_EVERY:
            told = loop.time()
            yield pb.WatchAllocationsResponse(changes=changes, position=batch[-1].position)


def upserted(allocation: pb.Allocation) -> pb.AllocationChange:
    """The change that an allocation is there as it is. Allocations never vanish while they are told of: the last change
    is that they were released."""
    return pb.AllocationChange(type=ChangeType.CHANGE_TYPE_UPSERTED, allocation=allocation)


def first(allocations: Sequence[pb.Allocation], position: str) -> pb.WatchAllocationsResponse:
    """What a watch without a position begins with."""
    return pb.WatchAllocationsResponse(changes=[upserted(each) for each in allocations], position=position)


def _allocation(change: watch.Change) -> pb.Allocation:
    return AllocationChanged.FromString(change.payload).allocation
