"""The reconciler of allocations: load, act without a transaction, save all in one."""

from __future__ import annotations

from collections.abc import Mapping
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
from metal_allocation.store import AllocationStore, PlacementStore

KIND = "allocation"


@dataclass(slots=True)
class Snapshot:
    """An allocation as loaded, and what it wanted of the installer then."""

    record: Record
    before: InstallationState

    @property
    def phase(self) -> str:
        """Phase that the controller's deadlines and history go by."""
        return self.record.phase

    @property
    def version(self) -> int:
        """Version that the save must still find."""
        return self.record.version


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
        return Snapshot(record, record.installation) if record else None

    async def act(self, snapshot: Snapshot) -> Outcome:
        """Do what the phase asks for."""
        step = STEPS.get(snapshot.record.phase)
        return Done() if step is None else await step(snapshot.record, self.clients, self.clock)

    async def save(self, conn: Connection, snapshot: Snapshot, outcome: Outcome, *, overdue: bool) -> None:
        """Write the new phase or the reason for staying, and the events. StaleSnapshot when the allocation changed."""
        record = snapshot.record
        now = self.clock.now()
        match outcome:
            case Go(phase=phase, reason=reason, message=message):
                record.enter(Phase(phase), now, reason, message)
            case Wait(reason=reason, message=message) | Failed(reason=reason, message=message):
                if record.set_condition(READY, False, reason, message, now) and isinstance(outcome, Failed):
                    record.note(reason, message)
            case Done():
                if record.phase in SETTLED and not record.new_lines:
                    return
        if overdue and record.phase not in SETTLED:
            late = f"{record.phase} has taken longer than {DEADLINES[record.phase]}"
            if record.set_condition(OVERDUE, True, "PHASE_OVERDUE", late, now):
                record.note("PHASE_OVERDUE", late)
        if record.phase is Phase.RELEASED:
            await self.placements.unclaim(conn, record.id)
        await self.allocations.update(conn, record)
        await publish(conn, record, installation_changed=snapshot.before is not record.installation)
