"""From what the plane knows to generations of desired state, and from applied generations to confirmed attachments.

Both happen in the caller's transaction. The planner decides nothing by itself: the state is the pure function of
`desired`, and what is new about it is whether its hash differs from the newest generation's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

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
    PinStore,
    SettingsStore,
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
        self._switches = SwitchStore()
        self._generations = GenerationStore()
        self._attachments = AttachmentStore()
        self._pins = PinStore()
        self._settings = SettingsStore()
        self._views = ViewStore()

    async def plan(self, conn: Connection, switch_id: str, *, beyond: int = 0) -> Planned:
        """Bring the desired state of a switch up to date. The switch must be locked, and be a leaf.

        A new generation is made only when the state differs from the newest one, or when that is not above `beyond`:
        a leaf ignores what is older than what it has.

        Raises Exhausted when the leaf has no VLAN left.
        """
        newest = await self._generations.newest(conn, switch_id)
        if newest is None:
            raise RuntimeError(f"switch {switch_id} vanished under its lock")
        number = max(newest.number, beyond) + 1
        draft = await self.draft(conn, switch_id, number=number, applied=newest.applied)
        message = desired_message(draft.state)
        digest = digest_of(message)
        if digest == newest.hash and newest.number > beyond:
            number = newest.number
        else:
            message.generation, message.hash = number, digest
            await self._generations.put_vlans(conn, switch_id, draft.vlans.values())
            await self._generations.add(
                conn, switch_id, number, digest, message.SerializeToString(), pinned_to=draft.pinned_to
            )
        planned = Planned(number, lacking(draft.state, draft.live))
        if planned.lacking:
            await self._attachments.postpone(conn, switch_id, planned.lacking, number + 1)
        return planned

    async def draft(
        self, conn: Connection, switch_id: str, *, number: int, applied: int, pin: tuple[int, bytes] | None = None
    ) -> Draft:
        """What the switch shall have, as things are, in a generation with this number; `applied` is the one that its
        leaf has. `pin` is a generation and content to hold it at instead of the pin that it has. Writes nothing.

        Raises Exhausted when the leaf has no VLAN left.
        """
        switch = (await self._switches.load(conn, [switch_id]))[switch_id]
        wishes = await self._attachments.wishes(conn, switch_id)
        pin = pin or await self._pins.state(conn, switch_id)
        old = desired_of(DesiredState.FromString(pin[1])) if pin else None
        known = await self._generations.vlans(conn, switch_id)
        needed = vnis_needed(wishes)
        assigned = vlans.assign(known, needed, generation=number, applied=applied)
        numbers = vlans.in_use(assigned)
        settings = await self._settings.of_switch(conn, switch_id)
        live = desired_state(switch, wishes, numbers, occupied=wishes, settings=settings)
        state = held(old, live, numbers) if old else live
        return Draft(state, live, assigned, pin[0] if pin else 0)

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
        return list(lost)

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
