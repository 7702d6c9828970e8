"""What operators do with switches: look, describe, want ports up or down."""

from __future__ import annotations

from collections.abc import Callable

from metal_kit.db import Database
from metal_kit.identity import missing

from metal_fabric.planner import Planner
from metal_fabric.ports import LinkState
from metal_fabric.problems import Invalid, Refused
from metal_fabric.store import SwitchStore, SwitchView, ViewStore


class Administration:
    """The operators' side of fabric."""

    def __init__(self, db: Database, planner: Planner) -> None:
        self._db = db
        self._planner = planner
        self._switches = SwitchStore()
        self._views = ViewStore()

    async def get(self, switch_id: str) -> SwitchView:
        """One switch. Raises NotFound."""
        async with self._db.connection() as conn:
            return _found(await self._views.describe(conn, switch_id), switch_id)

    async def page(self, *, after: str, partition: str, rack: str, limit: int) -> list[SwitchView]:
        """Switches after an id, by id, of one partition and rack if given."""
        async with self._db.connection() as conn:
            views = await self._views.page(conn, after=after, partition=partition, rack=rack, limit=limit)
            return await self._views.with_health(conn, views)

    async def describe(self, switch_id: str, edit: Callable[[SwitchView], str]) -> SwitchView:
        """Give a switch the description that `edit` makes of what it is now. Raises NotFound and what `edit` does."""
        async with self._db.transaction(purpose="describe switch") as conn:
            await self._switches.lock(conn, [switch_id])
            view = _found(await self._views.get(conn, switch_id), switch_id)
            description = edit(view)
            if description == view.description:
                return view
            await self._switches.describe(conn, switch_id, description)
            return await self._planner.switch_changed(conn, switch_id)

    async def want_port(self, switch_id: str, port: str, state: LinkState) -> SwitchView:
        """Want a port up or down. One that is wanted down while no machine hangs on it is out of use.

        Raises NotFound, Invalid `PORT_UNKNOWN`, Refused `PORT_IS_UPLINK`.
        """
        async with self._db.transaction(purpose="want port") as conn:
            await self._switches.lock(conn, [switch_id])
            view = _found(await self._views.get(conn, switch_id), switch_id)
            use = next((each for each in view.ports if each.port.name == port), None)
            if use is None:
                raise Invalid("PORT_UNKNOWN", f"{switch_id} has no port of this name", field="port")
            if use.port.uplink:
                raise Refused(
                    "PORT_IS_UPLINK",
                    f"port {port} of {switch_id} is an uplink; without it the plane might not reach the leaf any more",
                    field="port",
                )
            admin = use.port.admin.wanted(state)
            if admin == use.port.admin:
                return view
            await self._switches.wish(conn, switch_id, port, admin.wish)
            await self._planner.plan(conn, switch_id)
            return await self._planner.switch_changed(conn, switch_id)


def _found(view: SwitchView | None, switch_id: str) -> SwitchView:
    if view is None:
        raise missing(f"switch {switch_id}")
    return view
