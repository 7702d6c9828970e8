"""Lists of machines: which ones, in pages by id, each filter with an index of its own."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import asyncpg
from metal_kit.db import Connection

from metal_inventory.lifecycle import State
from metal_inventory.state import AdminState
from metal_inventory.store.machines import COLUMNS, DETAILS

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
    """The SELECT of one page, and its arguments.

    First the page, then what belongs to its machines: joined before, the other tables are read from their beginning up
    to where the page lies. The limit is in the text: for one that it does not know Postgres supposes a tenth of all.
    """
    arguments: list[object] = [after]
    conditions, joined = ["m.id > $1"], ""

    def add(condition: str, value: object) -> None:
        arguments.append(value)
        conditions.append(condition.replace("$", f"${len(arguments)}"))

    for name in ("partition", "rack", "size"):
        if value := getattr(wanted, name):
            add(f"m.{name} = $", value)
    if wanted.project:
        add("m.project_id = $::uuid", wanted.project)
    if wanted.state is not None:
        # A constant: only of one does Postgres see that the partial index applies, and how many rows there are.
        conditions.append(f"m.state = '{AdminState(wanted.state).name}'")
    if wanted.lifecycle is not None:
        joined = "JOIN lifecycle l ON l.machine = m.id AND l.machine > $1"
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
    by_project = not (visible.partition or visible.everything)
    if by_project:
        conditions.append("m.project_id = seen.project")
    page = f"SELECT m.* FROM machine m {joined} WHERE {' AND '.join(conditions)} ORDER BY m.id LIMIT {limit:d}"
    if by_project:
        # A page of each project, and of these the first: for a set of projects no index has the order of the ids.
        arguments.append(sorted(set(visible.projects)))
        each = f"unnest(${len(arguments)}::uuid[]) AS seen (project) CROSS JOIN LATERAL ({page}) AS m"
        page = f"SELECT m.* FROM {each} ORDER BY m.id LIMIT {limit:d}"
    return f"{COLUMNS} FROM ({page}) AS m {DETAILS} ORDER BY m.id", arguments


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
