"""Who gets which machine: one short transaction that chooses a machine and claims it, and the way back.

The claim is made under the lock of the machine's class, so that the counts it goes by are true; no call goes out while
the transaction is open. What inventory says to the claim is `creation`'s business.
"""

from __future__ import annotations

import random
from collections.abc import Collection
from dataclasses import dataclass, field

from metal_kit.db import Connection
from metal_kit.errors import FailedPrecondition, Problem, ResourceExhausted

from metal_allocation.lookup import Resolved
from metal_allocation.placement import choose
from metal_allocation.record import Record
from metal_allocation.store import PlacementStore
from metal_allocation.telemetry import NO_MACHINE

# Between two looks a machine may be taken or fall silent; each time another one is chosen.
TRIES = 10


@dataclass(slots=True)
class Claims:
    """Chooses and claims machines in the caller's transaction."""

    placements: PlacementStore = field(default_factory=PlacementStore)
    rng: random.Random = field(default_factory=random.SystemRandom)

    async def take(self, conn: Connection, record: Record, *, but: Collection[str] = ()) -> None:
        """Claim the machine that the request names, or one of those that fit it, without those in `but`.

        Sets the record's machine and rack. Raises FailedPrecondition when the named machine is taken,
        ResourceExhausted, with counts, when no machine is free.
        """
        await self.placements.lock_class(conn, record.partition, record.size)
        if record.spec.machine:
            if not await self.placements.claim(conn, record):
                raise FailedPrecondition(
                    "MACHINE_TAKEN", f"machine {record.machine} has an allocation", field="spec.machine"
                )
            return
        excluded = set(but)
        for _ in range(TRIES):
            chosen = await self._choose(conn, record, excluded)
            if chosen is None:
                break
            record.machine, record.rack = chosen
            if await self.placements.claim(conn, record):
                return
            excluded.add(record.machine)  # claimed by its UUID a moment ago, in another class
        raise await self._none_left(conn, record, refused=len(but))

    async def take_another(self, conn: Connection, record: Record, *, but: Collection[str]) -> None:
        """Give the claim up for another machine. Raises as `take` does; the claim is given up then, too."""
        await self.placements.lock_class(conn, record.partition, record.size)
        await self.placements.unclaim(conn, record.id)
        await self.take(conn, record, but=but)

    async def give_up(self, conn: Connection, record: Record) -> None:
        """Give the claim up."""
        await self.placements.unclaim(conn, record.id)

    async def check_quota(self, conn: Connection, resolved: Resolved) -> None:
        """Raise ResourceExhausted when the project holds as many machines as it may; firewalls are machines, too.

        Nobody else claims for the project until the transaction ends.
        """
        quota = resolved.project.machine_quota
        if not quota:
            return
        held = await self.placements.lock_project(conn, resolved.project.id)
        if held >= quota:
            raise ResourceExhausted(
                "QUOTA",
                f"the project's quota of {quota} machines is used up; free one, or have it raised",
                metadata={"quota": str(quota), "held": str(held)},
            )

    async def _choose(self, conn: Connection, record: Record, but: Collection[str]) -> tuple[str, str] | None:
        where = (record.partition, record.size)
        held = await self.placements.held(conn, record.project, *where, record.role)
        for _ in range(TRIES):
            free = await self.placements.free(conn, *where, but=but)
            choice = choose(free, held, record.placement_labels, self.rng)
            if choice is None:
                return None
            chosen = await self.placements.pick(conn, *where, choice, but=but)
            if chosen is not None:
                return chosen
        return None

    async def _none_left(self, conn: Connection, record: Record, *, refused: int) -> Problem:
        NO_MACHINE.labels(record.partition, record.size).inc()
        counts = dict(await self.placements.counts(conn, record.partition, record.size))
        total = counts.pop("machines", 0)
        ruled_out = {name: count for name, count in counts.items() if count}
        if refused:
            ruled_out["refused_by_inventory"] = refused
        why = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in ruled_out.items())
        return ResourceExhausted(
            "NO_MACHINE",
            f"no machine of size {record.size} is free in partition {record.partition}: {total} in all"
            + (f", of these {why}" if why else ""),
            metadata={name: str(count) for name, count in {"machines": total, **counts, "refused": refused}.items()},
        )
