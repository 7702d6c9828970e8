"""Partitions' settings: shown, changed by operators, and carried to the leaves."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from metal_kit.db import Database
from metal_kit.errors import Problem
from metal_kit.logs import get_logger

from metal_fabric.planner import Planner
from metal_fabric.problems import Refused
from metal_fabric.rollout import next_leaf
from metal_fabric.settings import Settings, check
from metal_fabric.store import PartitionSettings, SettingsStore, SwitchStore

log = get_logger(__name__)

LOOK_SECONDS = 1.0


class CommonSettings:
    """Settings of partitions, and their way to the leaves."""

    def __init__(self, db: Database, planner: Planner) -> None:
        self._db = db
        self._planner = planner
        self._settings = SettingsStore()
        self._switches = SwitchStore()

    async def get(self, partition: str) -> PartitionSettings:
        """The newest settings of a partition."""
        async with self._db.connection() as conn:
            return await self._settings.get(conn, partition)

    async def change(self, partition: str, edit: Callable[[PartitionSettings], Settings]) -> PartitionSettings:
        """Make the settings of a partition what `edit` makes of them. They reach the leaves by and by.

        Raises Refused `ADDITIONAL_PORT_IN_USE`, Invalid as `settings.check` does, and what `edit` raises.
        """
        async with self._db.transaction(purpose="change settings") as conn:
            known = await self._settings.get(conn, partition, lock=True)
            wanted = edit(known)
            check(wanted)
            if wanted == known.settings:
                return known
            taken = await self._settings.cabled(conn, partition, wanted.additional_bridge_ports)
            if taken is not None:
                raise Refused(
                    "ADDITIONAL_PORT_IN_USE",
                    f"a machine hangs on port {taken[1]} of {taken[0]}; choose another port, or delete the machine",
                    field="settings.additional_bridge_ports",
                )
            return await self._settings.put(conn, partition, wanted)

    async def run(self, stopping: asyncio.Event) -> None:
        """Carry settings to leaves until the service stops. Every replica does; the locks of leaves keep them apart."""
        while not stopping.is_set():
            try:
                await self.advance()
            except Problem as problem:
                log.warning("settings.rollout_failed", reason=problem.reason)
            try:
                async with asyncio.timeout(LOOK_SECONDS):
                    await stopping.wait()
            except TimeoutError:
                continue

    async def advance(self) -> None:
        """Let settings reach the next leaf of each rack whose turn it is."""
        async with self._db.connection() as conn:
            partitions = await self._settings.rolling(conn)
        for partition in partitions:
            async with self._db.connection() as conn:
                newest = await self._settings.get(conn, partition)
                racks = await self._settings.progress(conn, partition)
            for rack, leaves in racks.items():
                if next_leaf(leaves, newest.version) is not None:
                    await self._give(partition, rack)
            async with self._db.transaction(purpose="settings done") as conn:
                await self._settings.done(conn, partition, newest.version)

    async def _give(self, partition: str, rack: str) -> None:
        try:
            async with self._db.transaction(purpose="give settings") as conn:
                leaves = (await self._settings.progress(conn, partition, rack)).get(rack, [])
                await self._switches.lock(conn, [leaf.switch_id for leaf in leaves])
                # Once more behind the locks: another replica may have been faster.
                leaves = (await self._settings.progress(conn, partition, rack)).get(rack, [])
                newest = await self._settings.get(conn, partition)
                chosen = next_leaf(leaves, newest.version)
                if chosen is None:
                    return
                await self._settings.give(conn, chosen, newest)
                planned = await self._planner.plan(conn, chosen)
                await self._planner.switch_changed(conn, chosen)
        except Refused as refused:
            log.warning("settings.not_given", partition=partition, rack=rack, reason=refused.reason)
        else:
            log.info("settings.given", switch=chosen, version=newest.version, desired=planned.number)
