"""Following an allocation until it is where it should be, over broken streams and restarts of the plane."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from time import monotonic

from metal_kit.client import Peers
from metal_kit.errors import DeadlineExceeded, OutOfRange, ResourceExhausted, Unavailable
from metalplane.allocation.v1 import allocation_pb2 as pb
from metalplane.allocation.v1.allocation_pb2_grpc import AllocationServiceStub
from metalplane.common.v1.condition_pb2 import TimelineEntry

from metalctl.output import Format, as_dict, as_json, note, write
from metalctl.table import plain
from metalctl.values import enum_word, instant

RUNNING = pb.AllocationPhase.ALLOCATION_PHASE_RUNNING
RELEASED = pb.AllocationPhase.ALLOCATION_PHASE_RELEASED
# A stream is renewed after this; until then the plane sends a sign of life now and then.
STREAM_SECONDS = 3600.0
PAUSE = 0.5
# The condition that says what an allocation waits for.
READY = "Ready"
# How long the plane may be gone before its absence is the result. A restart takes seconds.
PATIENCE = 60.0

Tell = Callable[[TimelineEntry], None]


@dataclass(slots=True)
class Timeline:
    """Tells each entry of a growing timeline once; the plane cuts it at its beginning when it gets long."""

    tell: Tell
    told: set[bytes] = field(default_factory=set)
    obstacle: str = ""

    def skip(self, entries: Iterable[TimelineEntry]) -> None:
        """Take entries as told."""
        self.told |= {_key(entry) for entry in entries}

    def grow(self, status: pb.AllocationStatus) -> None:
        """Tell what is new, and what it waits for when that is not the last thing that happened."""
        for entry in status.timeline:
            if _key(entry) not in self.told:
                self.tell(entry)
        self.skip(status.timeline)
        obstacle = next((each.message for each in status.conditions if each.type == READY and not each.status), "")
        if obstacle not in {"", self.obstacle, *(entry.message for entry in status.timeline[-1:])}:
            note(f"{'':15}… {obstacle}")
        self.obstacle = obstacle


async def follow(
    peers: Peers,
    allocation: str,
    ended: Callable[[pb.Allocation], bool],
    timeline: Timeline,
    *,
    patience: float = PATIENCE,
) -> pb.Allocation:
    """The allocation when it has ended; on the way, its timeline is told.

    Raises Unavailable when the plane cannot be reached at first, or was gone for longer than `patience` seconds later.
    """
    stub = peers.stub(AllocationServiceStub, "allocation")
    position = ""
    reached = False
    lost_since: float | None = None
    while True:
        told = 0.0
        try:
            request = pb.WatchAllocationsRequest(allocation=allocation, position=position)
            async for batch in stub.WatchAllocations(request, timeout=STREAM_SECONDS):
                position, reached, lost_since = batch.position, True, None
                for change in batch.changes:
                    timeline.grow(change.allocation.status)
                    if ended(change.allocation):
                        return change.allocation
        except (Unavailable, DeadlineExceeded, ResourceExhausted) as problem:
            if isinstance(problem, ResourceExhausted) and problem.retry_after is None:
                raise
            told = problem.retry_after.total_seconds() if problem.retry_after is not None else 0.0
            now = monotonic()
            if not reached or (lost_since is not None and now - lost_since > patience):
                raise
            if lost_since is None:
                lost_since = now
                note(f"metalctl: interrupted: {problem.message}; going on when it is back")
        except OutOfRange:
            if not position:
                raise
            position = ""  # what happened meanwhile is in the present timeline
        await asyncio.sleep(max(PAUSE, told))


def settled(allocation: pb.Allocation) -> bool:
    """Whether nothing more happens by itself."""
    return allocation.status.phase in {RUNNING, RELEASED}


def released(allocation: pb.Allocation) -> bool:
    """Whether it is gone."""
    return allocation.status.phase == RELEASED


def phase(allocation: pb.Allocation) -> str:
    """The phase in a word."""
    return enum_word(pb.AllocationPhase.DESCRIPTOR, allocation.status.phase)


def line(entry: TimelineEntry) -> str:
    """A timeline entry for people."""
    return f"{instant(entry.time)[11:]}  {entry.phase:<11}  {plain(entry.message)}".rstrip()


def to_stdout(how: Format) -> Tell:
    """The timeline as the result: lines, or one JSON document a line."""
    if how is Format.JSON:
        return lambda entry: write(as_json(as_dict(entry), indent=None))
    return lambda entry: write(line(entry))


def to_stderr(entry: TimelineEntry) -> None:
    """The timeline as progress towards another result."""
    note(line(entry))


def _key(entry: TimelineEntry) -> bytes:
    return entry.SerializeToString(deterministic=True)
