"""From what the plane knows to generations of desired state, and from applied generations to confirmed attachments.

Both happen in the caller's transaction. The planner decides nothing by itself: the state is the pure function of
`desired`, and what is new about it is whether its hash differs from the newest generation's.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace

from metal_kit.db import Connection
from metal_kit.outbox import emit
from metalplane.fabric.v1.agent_pb2 import DesiredState, PhoneHome
from metalplane.fabric.v1.events_pb2 import (
    AttachmentConfirmed,
    AttachmentRetracted,
    MachineSeen,
    SwitchChanged,
    SwitchDeleted,
)

from metal_fabric import vlans
from metal_fabric.desired import DesiredState as DomainState
from metal_fabric.desired import desired_state, vnis_needed
from metal_fabric.messages import attachment_message, desired_message, desired_of, digest_of, switch_message
from metal_fabric.pinning import held, lacking
from metal_fabric.store import (
    AttachmentStore,
    GenerationStore,
    Made,
    Source,
    SourceStore,
    SwitchStore,
    SwitchView,
    ViewStore,
)
from metal_fabric.vlans import Vlan


@dataclass(frozen=True)
class Planned:
    """The newest generation of a switch, and the ports whose part in tenants' networks it withholds: the switch is held
    at an older content."""

    number: int
    lacking: frozenset[str] = frozenset()

    def containing(self, ports: Iterable[str]) -> int:
        """Generation that contains what is wanted of these ports: the newest, or the one that follows the pin."""
        return self.number if self.lacking.isdisjoint(ports) else self.number + 1


@dataclass(frozen=True)
class Draft:
    """What a switch shall have (`state`) and would if it followed the plane (`live`), the VLANs that go with it, and
    the generation whose content it is held at, 0 for none."""

    state: DomainState
    live: DomainState
    vlans: Mapping[int, Vlan]
    pinned_to: int


class Planner:
    """Makes generations, and tells of what has become true."""

    def __init__(self) -> None:
        self._sources = SourceStore()
        self._switches = SwitchStore()
        self._generations = GenerationStore()
        self._attachments = AttachmentStore()
        self._views = ViewStore()

    async def plan(self, conn: Connection, switch_id: str, *, beyond: int = 0) -> Planned:
        """As `plan_all`, for one switch."""
        return (await self.plan_all(conn, [switch_id], beyond=beyond))[switch_id]

    async def plan_all(self, conn: Connection, switch_ids: Collection[str], *, beyond: int = 0) -> dict[str, Planned]:
        """Bring the desired states of switches up to date, by id. They must be locked, and be leaves.

        A new generation is made only when the state differs from the newest one, or when that is not above `beyond`:
        a leaf ignores what is older than what it has.

        Raises Exhausted when a leaf has no VLAN left.
        """
        sources = await self._sources.of(conn, switch_ids)
        planned: dict[str, Planned] = {}
        made: list[Made] = []
        for switch_id in sorted(switch_ids):
            source = sources.get(switch_id)
            if source is None:
                raise RuntimeError(f"switch {switch_id} vanished under its lock")
            number = max(source.desired, beyond) + 1
            found = draft(source, number=number)
            message = desired_message(found.state)
            digest = digest_of(message)
            if digest == source.digest and source.desired > beyond:
                number = source.desired
            else:
                message.generation, message.hash = number, digest
                made.append(_made(source, found, number, digest, message.SerializeToString()))
            planned[switch_id] = Planned(number, lacking(found.state, found.live) if found.pinned_to else frozenset())
        if made:
            await self._generations.add(conn, made)
        for switch_id, each in planned.items():
            if each.lacking:
                lost = await self._attachments.postpone(conn, switch_id, each.lacking, each.number + 1)
                await self.retracted(conn, lost, switch_id)
        return planned

    async def draft(
        self, conn: Connection, switch_id: str, *, number: int, pin: tuple[int, bytes] | None = None
    ) -> Draft:
        """What the switch shall have, as things are, in a generation with this number. `pin` is a generation and
        content to hold it at instead of the pin that it has. Writes nothing.

        Raises Exhausted when the leaf has no VLAN left.
        """
        source = (await self._sources.of(conn, [switch_id]))[switch_id]
        return draft(replace(source, pin=pin or source.pin), number=number)

    async def announce(self, conn: Connection, switch_id: str, applied: int) -> list[str]:
        """Publish the attachments that are confirmed now that a switch has applied a generation; gives the machines."""
        machines = await self._attachments.lock_unannounced(conn, switch_id, applied)
        return [machine for machine in machines if await self.announce_attachment(conn, machine)]

    async def announce_attachment(self, conn: Connection, machine: str) -> bool:
        """Publish the machine's attachment if it is confirmed and that is news. The attachment must be locked."""
        attachment = await self._attachments.get(conn, machine)
        if attachment.announced or not attachment.confirmed:
            return False
        version = await self._attachments.mark_announced(conn, machine)
        await emit(
            conn,
            subject="metalplane.fabric.attachment.confirmed",
            entity="attachment",
            entity_id=machine,
            version=version,
            payload=AttachmentConfirmed(attachment=attachment_message(attachment), allocation=attachment.owner),
        )
        return True

    async def retract(self, conn: Connection, switch_id: str, applied: int) -> list[str]:
        """Publish the attachments that are confirmed no more now that a switch has gone back to a generation; gives the
        machines."""
        lost = await self._attachments.retract(conn, switch_id, applied)
        await self.retracted(conn, lost, switch_id)
        return list(lost)

    async def moved(self, conn: Connection, machine: str) -> None:
        """Publish that an attachment that was confirmed is not, if so: its machine hangs on other ports now."""
        attachment = await self._attachments.get(conn, machine)
        if not attachment.confirmed:
            version = await self._attachments.version(conn, machine)
            await self.retracted(conn, {machine: version}, attachment.outstanding[0].switch_id)

    async def retracted(self, conn: Connection, lost: Mapping[str, int], switch_id: str) -> None:
        """Publish attachments that are confirmed no more because of this leaf, by machine with their versions."""
        for machine, version in lost.items():
            attachment = await self._attachments.get(conn, machine)
            await emit(
                conn,
                subject="metalplane.fabric.attachment.retracted",
                entity="attachment",
                entity_id=machine,
                version=version,
                payload=AttachmentRetracted(
                    attachment=attachment_message(attachment), allocation=attachment.owner, switch_id=switch_id
                ),
            )

    async def switch_changed(self, conn: Connection, switch_id: str) -> SwitchView:
        """Publish a switch that has changed; gives it as it is now."""
        await self._switches.touch(conn, switch_id)
        view = await self.view(conn, switch_id)
        await emit(
            conn,
            subject="metalplane.fabric.switch.changed",
            entity="switch",
            entity_id=switch_id,
            version=view.version,
            partition=view.facts.partition,
            payload=SwitchChanged(switch=switch_message(view)),
        )
        return view

    async def view(self, conn: Connection, switch_id: str) -> SwitchView:
        """The switch as it is now. It must be locked."""
        view = await self._views.get(conn, switch_id)
        if view is None:
            raise RuntimeError(f"switch {switch_id} vanished under its lock")
        return view

    async def switch_deleted(self, conn: Connection, view: SwitchView, version: int) -> None:
        """Publish that a switch is gone."""
        await emit(
            conn,
            subject="metalplane.fabric.switch.deleted",
            entity="switch",
            entity_id=view.id,
            version=version,
            partition=view.facts.partition,
            payload=SwitchDeleted(switch=switch_message(view)),
            deleted=True,
        )

    async def machine_seen(
        self, conn: Connection, switch_id: str, partition: str, phone_home: PhoneHome, version: int
    ) -> None:
        """Publish that an installed system announced itself."""
        await emit(
            conn,
            subject="metalplane.fabric.machine.seen",
            entity="sighting",
            entity_id=phone_home.machine,
            version=version,
            partition=partition,
            payload=MachineSeen(switch_id=switch_id, partition=partition, phone_home=phone_home),
        )


def draft(source: Source, *, number: int) -> Draft:
    """What a switch shall have in a generation with this number. Pure. Raises Exhausted when it has no VLAN left."""
    wishes = source.wishes
    assigned = vlans.assign(source.vlans, vnis_needed(wishes), generation=number, applied=source.applied)
    numbers = vlans.in_use(assigned)
    live = desired_state(source.switch, wishes, numbers, occupied=wishes, settings=source.settings)
    if source.pin is None:
        return Draft(live, live, assigned, 0)
    generation, content = source.pin
    return Draft(held(desired_of(DesiredState.FromString(content)), live, numbers), live, assigned, generation)


def _made(source: Source, found: Draft, number: int, digest: str, state: bytes) -> Made:
    known = {vlan.vni: vlan for vlan in source.vlans}
    return Made(
        switch_id=source.switch.id,
        number=number,
        hash=digest,
        state=state,
        pinned_to=found.pinned_to,
        carried=tuple(vlan for vni, vlan in found.vlans.items() if known.get(vni) != vlan),
        dropped=tuple(sorted(known.keys() - found.vlans.keys())),
    )
