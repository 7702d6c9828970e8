"""The loops that look at the leaf: at its ports and neighbours, at its BGP sessions, at changes of CONFIG_DB."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from datetime import timedelta

from metal_kit import logs
from metal_kit.backoff import pause

from metal_core.changes import ConfigChanges
from metal_core.condition import Condition
from metal_core.identity import IdentityError, LeafIdentity
from metal_core.observe import Observer
from metal_core.reports import Reports
from metal_core.sonic import Sonic, SonicUnavailable
from metal_core.vtysh import Frr, FrrError

_log = logs.get_logger("metal_core.watching")


class Watching:
    """What one leaf sees, told to `reports` and kept in `condition`. `changed` is called when it should be compared.

    `ports_every` and `sessions_every` are seconds between two looks.
    """

    def __init__(
        self,
        sonic: Sonic,
        frr: Frr,
        reports: Reports,
        condition: Condition,
        changed: Callable[[], None],
        *,
        ports_every: float,
        sessions_every: float,
    ) -> None:
        self._sonic, self._frr, self._reports, self._condition = sonic, frr, reports, condition
        self._changed = changed
        self._ports_every, self._sessions_every = timedelta(seconds=ports_every), timedelta(seconds=sessions_every)
        self._observer = Observer()

    def forget(self) -> None:
        """Have everything reported anew, for a new stream."""
        self._observer.forget()

    async def ports(self, identify: Callable[[], Awaitable[LeafIdentity]], stopping: asyncio.Event) -> None:
        """Look at ports and neighbours until `stopping` is set."""
        reachable = True
        while not stopping.is_set():
            try:
                leaf = await identify()
                states = await self._sonic.oper_states(leaf.ports)
                rows = await self._sonic.lldp_neighbours(leaf.ports)
            except (SonicUnavailable, IdentityError) as error:
                if reachable:
                    _log.warning("observe.failed", error=str(error))
                reachable = False
            else:
                reachable = True
                self._condition.ports(leaf.uplinks, states, neighbours=len(rows))
                self._reports.seen(self._observer.look(states, rows, time.time()))
            await pause(stopping, self._ports_every)

    async def sessions(self, stopping: asyncio.Event) -> None:
        """Look at the BGP sessions until `stopping` is set; on a leaf without FRR there is nothing to look at."""
        there = True
        while self._frr.present and not stopping.is_set():
            try:
                sessions = await self._frr.sessions()
            except FrrError as error:
                if there:
                    _log.warning("sessions.unknown", error=str(error))
                there = False
                self._condition.sessions(None)
            else:
                if not there:
                    # FRR is back, perhaps with what it had on its disk, perhaps with nothing.
                    self._changed()
                there = True
                self._condition.sessions(sessions)
                self._reports.seen(self._observer.look_at_sessions(sessions, time.time()))
            await pause(stopping, self._sessions_every)

    async def changes(self, stopping: asyncio.Event) -> None:
        """Listen for changes of CONFIG_DB until `stopping` is set."""
        await ConfigChanges(self._sonic, self._changed).run(stopping)
