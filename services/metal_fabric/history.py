"""What operators do with generations of a leaf's desired state: look back, compare, return, follow again,
and insist on what a leaf has given up."""

from __future__ import annotations

from dataclasses import dataclass

from metal_kit.db import Connection, Database
from metal_kit.errors import NotFound
from metal_kit.identity import missing
from metalplane.fabric.v1.agent_pb2 import DesiredState

from metal_fabric.differences import Difference, differences
from metal_fabric.messages import desired_of
from metal_fabric.pinning import check_return, check_turn
from metal_fabric.planner import Draft, Planner
from metal_fabric.store import (
    FindingStore,
    Generation,
    GenerationStore,
    Kept,
    PinStore,
    SwitchStore,
    SwitchView,
    SyncStore,
)


@dataclass(frozen=True)
class Comparison:
    """What differs between two generations; `before` is 0 when there is nothing to compare with."""

    before: int
    after: int
    found: list[Difference]


class History:
    """Generations of switches."""

    def __init__(self, db: Database, planner: Planner) -> None:
        self._db = db
        self._planner = planner
        self._switches = SwitchStore()
        self._generations = GenerationStore()
        self._pins = PinStore()
        self._syncs = SyncStore()
        self._findings = FindingStore()

    async def page(self, switch_id: str, *, before: int, limit: int) -> list[Kept]:
        """Generations below a number, the newest first. Raises NotFound when there is no such switch."""
        async with self._db.connection() as conn:
            await self._newest(conn, switch_id)
            return await self._generations.page(conn, switch_id, before=before, limit=limit)

    async def state(self, switch_id: str, generation: int) -> DesiredState:
        """The desired state of a generation, of the newest for 0. Raises NotFound."""
        async with self._db.connection() as conn:
            newest = await self._newest(conn, switch_id)
            return await self._state(conn, switch_id, generation or newest.number)

    async def compare(self, switch_id: str, before: int, after: int) -> Comparison:
        """What differs between two generations: from the applied one for 0, to the newest one for 0.

        Raises NotFound for one that is not kept; only when it is the applied one that is not, everything is new.
        """
        async with self._db.connection() as conn:
            newest = await self._newest(conn, switch_id)
            chosen = after or newest.number
            target = desired_of(await self._state(conn, switch_id, chosen))
            if before:
                source = desired_of(await self._state(conn, switch_id, before))
                return Comparison(before, chosen, differences(source, target))
            has = await self._applied(conn, switch_id, newest)
            return Comparison(newest.applied if has else 0, chosen, differences(has and desired_of(has), target))

    async def plan(self, switch_id: str, rollback_to: int) -> tuple[Generation, Comparison]:
        """What a leaf would have to change to have a generation's content, or for 0 to follow the plane; the newest
        generation beside it. Writes nothing. Raises NotFound and Refused, as `rollback` does."""
        async with self._db.connection() as conn:
            newest = await self._newest(conn, switch_id)
            draft = await self._draft(conn, switch_id, newest, rollback_to)
            has = await self._applied(conn, switch_id, newest)
        target = draft.state if rollback_to else draft.live
        found = differences(has and desired_of(has), target)
        return newest, Comparison(newest.applied if has else 0, newest.number, found)

    async def rollback(self, switch_id: str, generation: int, reason: str) -> SwitchView:
        """Hold a switch at the content of a generation from now on. Raises NotFound, Refused as
        `pinning.check_return` and `pinning.check_turn` do."""
        async with self._db.transaction(purpose="roll back switch") as conn:
            newest = await self._locked(conn, switch_id)
            check_turn(switch_id, await self._pins.returning(conn, switch_id))
            await self._draft(conn, switch_id, newest, generation)
            content = await self._state(conn, switch_id, generation)
            await self._pins.put(conn, switch_id, generation, content.SerializeToString(), reason)
            await self._planner.plan(conn, switch_id)
            return await self._planner.switch_changed(conn, switch_id)

    async def unpin(self, switch_id: str) -> SwitchView:
        """Have a switch follow the plane again. Raises NotFound, Refused as `pinning.check_turn` does."""
        async with self._db.transaction(purpose="unpin switch") as conn:
            await self._locked(conn, switch_id)
            if not await self._pins.holds(conn, switch_id):
                return await self._planner.view(conn, switch_id)
            check_turn(switch_id, await self._pins.returning(conn, switch_id))
            await self._pins.delete(conn, switch_id)
            await self._planner.plan(conn, switch_id)
            return await self._planner.switch_changed(conn, switch_id)

    async def retry(self, switch_id: str) -> tuple[SwitchView, int]:
        """Have a leaf try again what it has set aside, as a new generation; the number of what it had set aside, 0 for
        nothing. Raises NotFound."""
        async with self._db.transaction(purpose="retry switch") as conn:
            newest = await self._locked(conn, switch_id)
            facts = (await self._findings.facts(conn, [switch_id])).get(switch_id)
            if facts is None or not facts.quarantine:
                return await self._planner.view(conn, switch_id), 0
            await self._planner.plan(conn, switch_id, beyond=newest.number)
            return await self._planner.switch_changed(conn, switch_id), newest.number

    async def _draft(self, conn: Connection, switch_id: str, newest: Generation, rollback_to: int) -> Draft:
        """What the switch would have, held at a generation's content unless that is 0."""
        pin = None
        if rollback_to:
            old = await self._state(conn, switch_id, rollback_to)
            pin = (rollback_to, old.SerializeToString())
        draft = await self._planner.draft(conn, switch_id, number=newest.number + 1, pin=pin)
        if rollback_to:
            numbers = {vni: vlan.id for vni, vlan in draft.vlans.items()}
            check_return(desired_of(old), draft.live, numbers)
        return draft

    async def _locked(self, conn: Connection, switch_id: str) -> Generation:
        # The rack's other leaves too, or two that are asked at once would not see each other.
        await self._switches.lock(conn, await self._pins.rack_of(conn, switch_id) | {switch_id})
        newest = await self._newest(conn, switch_id)
        await self._syncs.hold(conn, [switch_id])
        return newest

    async def _newest(self, conn: Connection, switch_id: str) -> Generation:
        newest = await self._generations.newest(conn, switch_id)
        if newest is None:
            raise missing(f"switch {switch_id}")
        return newest

    async def _state(self, conn: Connection, switch_id: str, generation: int) -> DesiredState:
        content = await self._generations.state(conn, switch_id, generation)
        if content is None:
            raise NotFound(
                "GENERATION_NOT_KEPT",
                f"generation {generation} of {switch_id} was never made, or is too old to be kept",
                field="generation",
            )
        return DesiredState.FromString(content)

    async def _applied(self, conn: Connection, switch_id: str, newest: Generation) -> DesiredState | None:
        """What the leaf has; None for nothing that is known of."""
        content = await self._generations.state(conn, switch_id, newest.applied) if newest.applied else None
        return DesiredState.FromString(content) if content is not None else None
