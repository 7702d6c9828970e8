"""What becomes of switches: devices beside the leaves, boxes that are replaced, leaves that relieve others, the end."""

from __future__ import annotations

from dataclasses import replace

from metal_kit.db import Connection, Database
from metal_kit.identity import missing

from metal_fabric.cabling import Cable
from metal_fabric.planner import Planner
from metal_fabric.problems import Refused
from metal_fabric.replace import check_migration, translated
from metal_fabric.store import (
    AttachmentStore,
    CableStore,
    FormerPlace,
    GenerationStore,
    PinStore,
    SwitchStore,
    SwitchView,
    SyncStore,
    ViewStore,
)
from metal_fabric.switch import Switch, SwitchKind, SwitchMode
from metal_fabric.vlans import Vlan

_SHOWN_MACHINES = 5


class SwitchLife:
    """The operators' side of a switch's life. Each use case is one transaction: all of it happens or nothing."""

    def __init__(self, db: Database, planner: Planner) -> None:
        self._db = db
        self._planner = planner
        self._switches = SwitchStore()
        self._cables = CableStore()
        self._generations = GenerationStore()
        self._attachments = AttachmentStore()
        self._pins = PinStore()
        self._syncs = SyncStore()
        self._views = ViewStore()

    async def record(self, device: Switch) -> SwitchView:
        """Record a spine or an exit, or what has changed about it. Raises Refused `NAME_OF_A_LEAF`,
        `SWITCH_IN_OTHER_PARTITION`, and `HOST_NAME_TAKEN`."""
        async with self._db.transaction(purpose="record device") as conn:
            while not await self._switches.lock(conn, [device.id]):
                if await self._switches.insert(conn, device):
                    return await self._planner.switch_changed(conn, device.id)
            known = (await self._switches.load(conn, [device.id]))[device.id]
            if known.kind is SwitchKind.LEAF:
                raise Refused("NAME_OF_A_LEAF", f"{device.id} is a leaf, which registers by itself", field="id")
            if known.facts.partition != device.facts.partition:
                raise Refused(
                    "SWITCH_IN_OTHER_PARTITION",
                    f"{device.id} is recorded in partition {known.facts.partition}; delete it there first",
                    field="partition",
                )
            if known == device:
                return await self._planner.view(conn, device.id)
            await self._switches.update(conn, device)
            await self._switches.describe(conn, device.id, device.description)
            return await self._planner.switch_changed(conn, device.id)

    async def replace(self, switch_id: str, *, cancel: bool) -> SwitchView:
        """Let another box take the leaf's place, or no longer. Raises NotFound, Refused `SWITCH_IS_NO_LEAF`."""
        async with self._db.transaction(purpose="replace switch") as conn:
            known = (await self._locked(conn, switch_id))[switch_id]
            if known.kind is not SwitchKind.LEAF:
                raise Refused("SWITCH_IS_NO_LEAF", f"{switch_id} is a device of kind {known.kind.value}", field="id")
            mode = SwitchMode.OPERATIONAL if cancel else SwitchMode.REPLACE
            if known.mode is mode:
                return await self._planner.view(conn, switch_id)
            await self._switches.update(conn, replace(known, mode=mode))
            return await self._planner.switch_changed(conn, switch_id)

    async def migrate(self, old_id: str, new_id: str) -> SwitchView:
        """Have a leaf take over everything of another one; gives the one that took over.

        Raises NotFound, Refused as `replace.check_migration` and `replace.translated` do.
        """
        async with self._db.transaction(purpose="migrate switch") as conn:
            switches = await self._locked(conn, old_id, new_id)
            old, new = switches[old_id], switches[new_id]
            # With both locked nobody recables or attaches a machine of the old leaf. Reports wait: see Machines.
            cables = await self._cables.of_switches(conn, [old_id, new_id])
            involved = {old_id, new_id} | await self._cables.neighbours(conn, old_id)
            involved |= await self._attachments.former_leaves(conn, {cable.machine for cable in cables})
            await self._syncs.hold(conn, involved)
            newest = await self._generations.newest(conn, new_id)
            check_migration(
                old,
                new,
                cables=cables,
                new_vlans=await self._generations.vlans(conn, new_id),
                new_applied=newest.applied if newest else 0,
                pinned=[each for each in (old_id, new_id) if await self._pins.state(conn, each)],
                leaving=await self._attachments.unconfirmed_leavers(conn, old_id),
                held=(await self._attachments.held(conn, [new_id])).get(new_id, ()),
            )
            names = translated(old, new, {cable.port for cable in cables}, field="target")
            await self._take_over(conn, old, new, names, cables)
            await self._planner.switch_changed(conn, old_id)
            return await self._planner.switch_changed(conn, new_id)

    async def forget(self, switch_id: str) -> None:
        """Forget a switch; a leaf that is still there registers again. Nobody waits any more for what it has to let go
        of: whoever deletes it says that it is gone.

        Raises NotFound, Refused `SWITCH_IN_USE` while machines hang on it, `SWITCH_BEHIND` while it is connected and
        has not applied what is wanted of it: only then has everybody left it who ever hung on it.
        """
        async with self._db.transaction(purpose="forget switch") as conn:
            await self._locked(conn, switch_id)
            view = await self._planner.view(conn, switch_id)
            machines = sorted({cable.machine for cable in await self._cables.of_switches(conn, [switch_id])})
            if machines:
                names = ", ".join(machines[:_SHOWN_MACHINES])
                more = f" and {len(machines) - _SHOWN_MACHINES} more" if len(machines) > _SHOWN_MACHINES else ""
                raise Refused("SWITCH_IN_USE", f"machines hang on {switch_id}: {names}{more}; delete them first")
            # One that has never applied anything holds nothing, unless it came back without its state.
            if view.sync.connected and (view.held or 0 < view.sync.applied < view.sync.desired):
                raise Refused(
                    "SWITCH_BEHIND",
                    f"{switch_id} has applied generation {view.sync.applied} of {view.sync.desired}; wait for it, or "
                    "switch it off",
                )
            # Its reports are kept out before the attachments are locked, as everywhere.
            await self._syncs.hold(conn, [switch_id])
            hung = await self._attachments.lock_of_leaf(conn, switch_id)
            version = await self._switches.delete(conn, switch_id)
            for machine in hung:
                await self._planner.announce_attachment(conn, machine)
            await self._generations.wake(conn, switch_id)
            await self._planner.switch_deleted(conn, view, version)

    async def _take_over(
        self, conn: Connection, old: Switch, new: Switch, names: dict[str, str], cables: list[Cable]
    ) -> None:
        hung = [cable for cable in cables if cable.switch_id == old.id]
        await self._cables.put_of_switch(conn, old.id, ())
        await self._cables.put_of_switch(
            conn, new.id, [replace(cable, switch_id=new.id, port=names[cable.port]) for cable in cables]
        )
        for port, name in sorted(names.items()):
            await self._switches.wish(conn, new.id, name, old.ports[port].admin.wish)
            await self._switches.switch_on(conn, old.id, port)
        carried = [Vlan(vlan.vni, vlan.id) for vlan in await self._generations.vlans(conn, old.id) if not vlan.released]
        # Its own from before are confirmed to be gone. First all away: a VNI may have had another number.
        await self._generations.put_vlans(conn, new.id, ())
        await self._generations.put_vlans(conn, new.id, carried)
        planned = await self._planner.plan_all(conn, [old.id, new.id])
        place = FormerPlace(old.id, [(each.machine, each.port) for each in hung], planned[old.id].number)
        lost = await self._attachments.move_leaf(conn, place, new.id, planned[new.id].number)
        await self._planner.retracted(conn, lost, new.id)

    async def _locked(self, conn: Connection, *ids: str) -> dict[str, Switch]:
        found = await self._switches.lock(conn, ids)
        for each in ids:
            if each not in found:
                raise missing(f"switch {each}")
        return await self._switches.load(conn, ids)
