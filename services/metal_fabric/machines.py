"""Machines on their leaves: cabling, and in and out of a tenant's network.

Each use case is one transaction over both leaves, whose rows are locked in the order of their ids. None waits for a
leaf: what the leaves have applied is asked by `attachment`, and published when it is complete.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

from metal_kit.db import Connection, Database
from metal_kit.errors import Aborted, NotFound

from metal_fabric import attachment as rules
from metal_fabric.attachment import Attachment
from metal_fabric.cabling import Cable, Cabling, Neighbour, survey
from metal_fabric.filters import Wish
from metal_fabric.planner import Planner
from metal_fabric.problems import Refused
from metal_fabric.store import AttachmentStore, CableStore, FormerLeaf, SettingsStore, SwitchStore, SyncStore, VniStore

# Nobody says whose the VNIs are.
NOT_SAID: Mapping[int, str] = MappingProxyType({})


class Machines:
    """What inventory and allocation ask of fabric."""

    def __init__(self, db: Database, planner: Planner) -> None:
        self._db = db
        self._planner = planner
        self._switches = SwitchStore()
        self._cables = CableStore()
        self._attachments = AttachmentStore()
        self._settings = SettingsStore()
        self._syncs = SyncStore()
        self._vnis = VniStore()

    async def connect(self, machine: str, partition: str, neighbours: Sequence[Neighbour]) -> Cabling:
        """Record how a registering machine hangs on its leaves. Raises Refused as `cabling.survey` does."""
        names = {neighbour.system_name for neighbour in neighbours}
        async with self._db.transaction(purpose="connect machine") as conn:
            involved = {cable.switch_id for cable in await self._cables.of_machine(conn, machine)}
            involved |= set(await self._switches.by_host(conn, names))
            await self._switches.lock(conn, involved)
            switches = await self._switches.load(conn, involved)
            before = await self._cables.of_machine(conn, machine)
            if not {cable.switch_id for cable in before} <= involved:
                raise _recabled(machine)
            cabling = survey(
                machine,
                partition,
                neighbours,
                leaves=switches.values(),
                before=before,
                additional=(await self._settings.get(conn, partition)).settings.additional_bridge_ports,
                racks={switch.id: switch.facts.rack for switch in switches.values()},
                taken={
                    (cable.switch_id, cable.port): cable.machine
                    for cable in await self._cables.of_switches(conn, involved)
                },
            )
            if list(cabling.cables) != before:
                await self._cables.put(conn, machine, cabling.cables)
                freed = {(each.switch_id, each.port) for each in before} - {
                    (each.switch_id, each.port) for each in cabling.cables
                }
                await self._switch_on(conn, freed)
                await self._replan(conn, machine, involved, before)
        return cabling

    async def disconnect(self, machine: str) -> None:
        """Forget how a machine hangs on its leaves; nothing to do when it hangs on none.

        Raises Refused `MACHINE_ATTACHED`.
        """
        async with self._db.transaction(purpose="disconnect machine") as conn:
            involved = await self._lock(conn, machine)
            attachment = await self._attachments.get(conn, machine, lock=True)
            if attachment.held_by:
                raise Refused(
                    "MACHINE_ATTACHED",
                    f"machine {machine} is attached for allocation {attachment.held_by}; detach it first",
                )
            ports = {(cable.switch_id, cable.port) for cable in await self._cables.of_machine(conn, machine)}
            await self._switch_on(conn, ports)
            await self._cables.put(conn, machine, ())
            await self._attachments.delete(conn, machine)
            await self._planner.plan_all(conn, involved)

    async def attach(
        self, machine: str, allocation: str, wish: Wish, networks: Mapping[int, str] = NOT_SAID
    ) -> Attachment:
        """Want the machine's ports as `wish` says, for this allocation; `networks` says whose the VNIs in it are.

        Raises Refused as `attachment.attach` and `VniStore.claim` do.
        """
        async with self._db.transaction(purpose="attach machine") as conn:
            involved = await self._lock(conn, machine)
            before = await self._attachments.get(conn, machine, lock=True)
            ended = [allocation] if await self._attachments.ended(conn, machine, allocation) else []
            after = rules.attach(before, allocation, wish, ended=ended)
            # Also of what is attached already: that may have been before anybody said whose the numbers are.
            await self._vnis.claim(conn, networks, machine)
            if after is not before:
                await self._syncs.forget_sightings(conn, machine)
                await self._move(conn, after, involved)
            return await self._attachments.get(conn, machine)

    async def detach(self, machine: str, allocation: str, *, will_return: bool) -> Attachment:
        """Want the machine's ports back in the PXE VLAN, if this allocation holds it.

        Without `will_return` the allocation can never attach the machine again. Raises NotFound.
        """
        async with self._db.transaction(purpose="detach machine") as conn:
            involved = await self._lock(conn, machine)
            before = await self._attachments.get(conn, machine, lock=True)
            if not will_return:
                await self._attachments.end(conn, machine, allocation)
            after = rules.detach(before, allocation)
            if after is not before:
                await self._move(conn, after, involved)
            left = await self._attachments.get(conn, machine)
        # Outside: that the allocation is over stays true for a machine that hangs on no leaf just now.
        return _hanging(left)

    async def attachment(self, machine: str) -> Attachment:
        """What the machine's ports are wanted to be, and how far its leaves are. Raises NotFound."""
        async with self._db.connection() as conn:
            return _hanging(await self._attachments.get(conn, machine))

    async def cables(self, *, after: tuple[str, str], switch_id: str, machine: str | None, limit: int) -> list[Cable]:
        """Cables after a (switch id, port), of one switch and one machine if given."""
        async with self._db.connection() as conn:
            return await self._cables.page(conn, after=after, switch_id=switch_id, machine=machine, limit=limit)

    async def _lock(self, conn: Connection, machine: str) -> set[str]:
        """Lock the switches that the machine hangs on; gives their ids."""
        involved = {cable.switch_id for cable in await self._cables.of_machine(conn, machine)}
        await self._switches.lock(conn, involved)
        if {cable.switch_id for cable in await self._cables.of_machine(conn, machine)} != involved:
            raise _recabled(machine)
        # Otherwise a report that is on its way and this change could each miss that the other completes it.
        await self._hold(conn, machine, involved)
        return involved

    async def _hold(self, conn: Connection, machine: str, involved: Collection[str]) -> None:
        await self._syncs.hold(conn, {*involved, *await self._attachments.former_leaves(conn, [machine])})

    async def _replan(
        self, conn: Connection, machine: str, involved: Collection[str], before: Collection[Cable]
    ) -> None:
        """Carry the machine's attachment, if it has one, over to its new cables. A leaf that it hung on and that may
        have it in a tenant's network still has to let go."""
        await self._hold(conn, machine, involved)
        current = await self._attachments.get(conn, machine, lock=True)
        if current.owner:
            if current.leaving:
                # Of those that have confirmed that it left nobody waits for more.
                waiting = await self._attachments.unconfirmed_leaves(conn, machine)
                before = [cable for cable in before if cable.switch_id in waiting]
            await self._move(conn, replace(current, announced=False), involved, before)
            if current.announced:
                await self._planner.moved(conn, machine)
            return
        await self._planner.plan_all(conn, involved)

    async def _move(
        self, conn: Connection, after: Attachment, involved: Collection[str], before: Collection[Cable] = ()
    ) -> None:
        await self._attachments.put(conn, after)
        planned = await self._planner.plan_all(conn, involved)
        wanted = {leaf.switch_id: planned[leaf.switch_id].containing(leaf.ports) for leaf in after.present}
        ports: dict[str, list[str]] = {}
        for cable in before:
            if cable.switch_id not in wanted:
                ports.setdefault(cable.switch_id, []).append(cable.port)
        left = [FormerLeaf(each, ports[each], planned[each].number) for each in sorted(ports)]
        await self._attachments.put_leaves(conn, after.machine, wanted, left=left)
        # The leaves may have applied it already, when it makes no difference to them.
        await self._planner.announce_attachment(conn, after.machine)

    async def _switch_on(self, conn: Connection, ports: Collection[tuple[str, str]]) -> None:
        # It was switched off because of the machine that has left, and would keep the next one out. To want nothing of
        # it is not enough: a leaf then leaves the port as it is, which is off.
        for switch_id, port in sorted(ports):
            await self._switches.switch_on(conn, switch_id, port)


def _recabled(machine: str) -> Aborted:
    return Aborted("CONCURRENT_CHANGE", f"machine {machine} was recabled at the same moment; try again")


def _hanging(attachment: Attachment) -> Attachment:
    if not attachment.present:
        raise NotFound("MACHINE_NOT_CABLED", f"machine {attachment.machine} hangs on no leaf")
    return attachment
