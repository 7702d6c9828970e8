"""How a leaf that introduces itself is taken in: as the one that is known, as a new one, or in place of another box."""

from __future__ import annotations

from dataclasses import dataclass, replace

from metal_kit.db import Connection
from metal_kit.logs import get_logger

from metal_fabric.replace import successor
from metal_fabric.store import CableStore, GenerationStore, SettingsStore, SwitchStore
from metal_fabric.switch import Switch, SwitchMode, merge

log = get_logger(__name__)


@dataclass(frozen=True)
class Taken:
    """What came of it: `changed` tells whether the switch is another one than before, `foreign` whether the leaf has
    applied a generation that was not made here."""

    changed: bool
    foreign: bool


class Registration:
    """Takes leaves in. Joins the caller's transaction."""

    def __init__(self) -> None:
        self._switches = SwitchStore()
        self._cables = CableStore()
        self._generations = GenerationStore()
        self._settings = SettingsStore()

    async def take_in(self, conn: Connection, reported: Switch, generation: int, digest: str) -> Taken:
        """Store what is new about the switch, which says that it has applied this generation (0 for none). It is locked
        afterwards.

        Raises Refused as `switch.merge` does, and for a box that replaces another one as `replace.successor` does.
        """
        # The second time round it exists: somebody else inserted it after we looked.
        while not await self._switches.lock(conn, [reported.id]):
            if await self._switches.insert(conn, merge(None, reported, connected=())):
                await self._switches.add_ports(conn, reported)
                await self._settings.inherit(conn, reported.id, reported.facts.partition)
                return Taken(changed=True, foreign=generation > 0)
        known = (await self._switches.load(conn, [reported.id]))[reported.id]
        cables = await self._cables.of_switches(conn, [reported.id])
        connected = {cable.port for cable in cables}
        made = generation > 0 and await self._generations.made(conn, reported.id, generation, digest) is not None
        renamed: dict[str, str] = {}
        if known.mode is SwitchMode.REPLACE and not made:
            # A box that has applied something of ours is the old one, which has not been replaced yet.
            merged, renamed = successor(known, reported, connected=connected)
            log.info("leaf.replaced", switch=reported.id, ports=renamed)
        else:
            merged = merge(known, reported, connected=connected)
        if merged != known:
            await self._switches.update(conn, merged)
            await self._switches.add_ports(conn, merged)
            moved = [replace(cable, port=renamed.get(cable.port, cable.port)) for cable in cables]
            if moved != cables:
                await self._cables.put_of_switch(conn, reported.id, moved)
            await self._switches.drop_ports(conn, merged)
        return Taken(changed=merged != known, foreign=generation > 0 and not made)
