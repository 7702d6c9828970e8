"""Lists of machines: which ones, in pages by id, each filter with an index of its own."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import asyncpg
from metal_kit.db import Connection

from metal_inventory.lifecycle import State
from metal_inventory.state import AdminState
from metal_inventory.store.machines import SELECT

FIRST = "00000000-0000-0000-0000-000000000000"
"""Before every machine; the nil UUID itself is no machine's."""

_SHARED = """
SELECT address, array_agg(machine::text ORDER BY machine) AS machines FROM bmc
WHERE address = ANY ($1) AND address <> '' GROUP BY address HAVING count(*) > 1
"""


@dataclass(frozen=True, slots=True)
class Visible:
    """What the caller may see: everything, or the machines of these projects or of this partition."""

    everything: bool = False
    projects: Collection[str] = ()
    partition: str = ""


@dataclass(frozen=True, slots=True)
class Filter:
    """Which machines; what is None or empty does not matter."""

    partition: str = ""
    rack: str = ""
    size: str = ""
    project: str = ""
    state: AdminState | None = None
    lifecycle: State | None = None
    allocated: bool | None = None
    waiting: bool | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    mac: str = ""


def statement(wanted: Filter, visible: Visible, *, after: str, limit: int) -> tuple[str, list[object]]:
    """The SELECT of one page, and its arguments."""
    arguments: list[object] = [after, limit]
    conditions = ["m.id > $1"]

    def add(condition: str, value: object) -> None:
        arguments.append(value)
        conditions.append(condition.replace("$", f"${len(arguments)}"))

    for name in ("partition", "rack", "size"):
        if value := getattr(wanted, name):
            add(f"m.{name} = $", value)
    if wanted.project:
        add("m.project_id = $::uuid", wanted.project)
    if wanted.state is AdminState.AVAILABLE:
        conditions.append("m.state = 'AVAILABLE'")
    elif wanted.state is not None:
        # Both, so that the partial index is seen to apply.
        conditions.append("m.state <> 'AVAILABLE'")
        add("m.state = $", wanted.state.name)
    if wanted.lifecycle is not None:
        add("l.state = $", wanted.lifecycle.name)
    if wanted.allocated is not None:
        conditions.append(f"m.project_id IS {'NOT ' if wanted.allocated else ''}NULL")
    if wanted.waiting is not None:
        conditions.append("m.waiting" if wanted.waiting else "NOT m.waiting")
    if wanted.labels:
        add("m.labels @> $::jsonb", dict(wanted.labels))
    if wanted.mac:
        add("m.id IN (SELECT machine FROM machine_part WHERE kind = 'nic_mac' AND value = $)", wanted.mac)
    if visible.partition:
        add("m.partition = $", visible.partition)
    elif not visible.everything:
        add("m.project_id = ANY ($::uuid[])", list(visible.projects))
    return f"{SELECT} WHERE {' AND '.join(conditions)} ORDER BY m.id LIMIT $2", arguments


class QueryStore:
    """Pages of machines, and what is compared over all of them."""

    async def page(
        self, conn: Connection, wanted: Filter, visible: Visible, *, after: str = FIRST, limit: int
    ) -> list[asyncpg.Record]:
        """The next machines by id."""
        sql, arguments = statement(wanted, visible, after=after, limit=limit)
        return await conn.fetch(sql, *arguments)

    async def shared_bmc_addresses(self, conn: Connection, addresses: Collection[str]) -> Mapping[str, list[str]]:
        """Those of the addresses that several machines have, with all machines of the plane that have them."""
        rows = await conn.fetch(_SHARED, sorted(set(addresses)))
        return {row["address"]: row["machines"] for row in rows}
