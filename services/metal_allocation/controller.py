"""The reconciler of allocations: load, act without a transaction, save all in one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta

from metal_kit.clock import Clock
from metal_kit.controller import Done, Failed, Go, Outcome, Wait
from metal_kit.db import Connection

from metal_allocation.changes import publish
from metal_allocation.clients import Clients
from metal_allocation.phase import DEADLINES, SETTLED, InstallationState, Phase
from metal_allocation.record import OVERDUE, READY, Record
from metal_allocation.steps import STEPS
from metal_allocation.store import AllocationStore, PlacementStore, changing
from metal_allocation.telemetry import PHASE_SECONDS

KIND = "allocation"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """An allocation and how it was when it was loaded; a step may change the record."""

    record: Record
    phase: Phase
    version: int
    wanted: InstallationState
    stored: tuple[object, ...]

    @classmethod
    def of(cls, record: Record) -> Snapshot:
        """The snapshot of a record that was just read."""
        return cls(record, record.phase, record.version, record.installation, changing(record))


@dataclass(slots=True)
class AllocationReconciler:
    """Takes each allocation one phase further, until it runs or has been released."""

    clients: Clients
    clock: Clock
    allocations: AllocationStore = field(default_factory=AllocationStore)
    placements: PlacementStore = field(default_factory=PlacementStore)
    kind: str = KIND
    deadlines: Mapping[str, timedelta] = field(default_factory=lambda: DEADLINES)

    async def load(self, conn: Connection, key: str) -> Snapshot | None:
        """The allocation, or None when it is gone."""
        record = await self.allocations.get(conn, key)
        return Snapshot.of(record) if record else None

    async def act(self, snapshot: Snapshot) -> Outcome:
        """Do what the phase asks for."""
        step = STEPS.get(snapshot.record.phase)
        return Done() if step is None else await step(snapshot.record, self.clients, self.clock)

    async def save(self, conn: Connection, snapshot: Snapshot, outcome: Outcome, *, overdue: bool) -> None:
        """Write the new phase or the reason for staying, and the events. StaleSnapshot when the allocation changed.

        A look that found nothing new writes nothing: waiting allocations are looked at every few seconds.
        """
        if snapshot.phase is Phase.RELEASED:
            return
        record = snapshot.record
        now = self.clock.now()
        match outcome:
            case Go(phase=phase, reason=reason, message=message):
                PHASE_SECONDS.labels(snapshot.phase).observe((now - record.phase_time).total_seconds())
                record.enter(Phase(phase), now, reason, message)
            case Wait() | Failed() if record.phase is Phase.RUNNING:
                # It stays ready: its system runs. What its network lacks is a condition of its own, and a peer that
                # could not be asked says nothing about it.
                pass
            case Wait(reason=reason, message=message):
                record.set_condition(READY, False, reason, message, now)
            case Failed(reason=reason, message=message):
                if record.set_condition(READY, False, reason, message, now):
                    record.note(reason, message)
            case Done():
                pass
        if overdue and record.phase not in SETTLED:
            late = f"{record.phase} has taken longer than {DEADLINES[record.phase]}"
            if record.set_condition(OVERDUE, True, "PHASE_OVERDUE", late, now):
                record.note("PHASE_OVERDUE", late)
        if not record.new_lines and changing(record) == snapshot.stored:
            return
        if record.phase is Phase.RELEASED:
            await self.placements.unclaim(conn, record.id)
        await self.allocations.update(conn, record)
        await publish(conn, record, installation_changed=snapshot.wanted is not record.installation)

    async def sweep(self, conn: Connection) -> Iterable[str]:
        """Allocations that have something left to do, should one have fallen out of the queue."""
        return await self.allocations.unsettled(conn)
