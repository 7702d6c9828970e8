"""Addresses in use by page, in the order of their places: by prefix, oldest first, and address."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

from metal_kit.db import Connection

from metal_ipam.addresses import ListedIp, Owner
from metal_ipam.store.addresses import NOBODY, TYPES

# Without what the prefix says: of many addresses of one prefix that is the same, and dear to read each time.
_COLUMNS = """
    host(i.addr) AS address, i.prefix_id, i.project_id, i.owner_kind, i.owner_id, i.kind, i.name, i.description,
    i.dns_name, i.labels, i.version, i.created_at
"""
# Less than every address of both families.
_BELOW_ALL = "0.0.0.0/0"

# A prefix's id and an address.
Place = tuple[int, str]


class _Home(NamedTuple):
    """What addresses have from their prefix."""

    network: str
    prefix: str
    namespace: str


async def page(
    connection: Connection,
    *,
    visible_to: Sequence[str] | None,
    project: str,
    network: str,
    owner: Owner,
    after: Place | None,
    limit: int,
) -> list[ListedIp]:
    """The addresses after the place, of those that one of `visible_to` (None: anybody) may see."""
    projects = None if visible_to is None else list(visible_to)
    if project:
        projects = [project] if projects is None or project in projects else []
    own = None
    if network:
        of_network = "SELECT id FROM prefix WHERE network_id = $1 AND kind = 'leaf'"
        own = [row["id"] for row in await connection.fetch(of_network, network)]
    sql, arguments = _statement(own, projects, owner, after, limit)
    rows = await connection.fetch(sql, *arguments)
    prefix_ids = {row["prefix_id"] for row in rows}
    homes = await _homes(connection, prefix_ids)
    if len(homes) < len(prefix_ids):
        # A prefix went with its addresses between the two statements. The next look does not find them.
        return await page(
            connection, visible_to=visible_to, project=project, network=network, owner=owner, after=after, limit=limit
        )
    return [_listed(row, homes[row["prefix_id"]]) for row in rows]


def place_of(ip: ListedIp) -> Place:
    """The place of an address in the order of pages."""
    return ip.prefix_id, ip.address


def _statement(
    prefixes: Sequence[int] | None, projects: Sequence[str] | None, owner: Owner, after: Place | None, limit: int
) -> tuple[str, list[object]]:
    """The statement with its arguments, of these prefixes and projects (None: of all).

    It is put together, because one for all conditions would have a plan that fits none. Each prefix and each project
    has a page of its own, by an index that has its order, and the first of these are the page: with lists of them
    Postgres would read all that they have.
    """
    arguments: list[object] = []
    sources: list[str] = []
    where = ["i.state <> 'quarantine'"]
    order = "i.prefix_id, i.addr"

    def bound(value: object) -> str:
        arguments.append(value)
        return f"${len(arguments)}"

    if prefixes is not None:
        # Where to go on in each. A row that is greater than a row, beside a prefix that is given, is no place in an
        # index for Postgres: it would read the prefix from its beginning.
        place = (0, _BELOW_ALL) if after is None else after
        left = [prefix_id for prefix_id in prefixes if prefix_id >= place[0]]
        beyond = [place[1] if prefix_id == place[0] else _BELOW_ALL for prefix_id in left]
        sources.append(f"unnest({bound(left)}::bigint[], {bound(beyond)}::text[]) AS h (id, beyond)")
    elif after is not None:
        where.append(f"(i.prefix_id, i.addr) > ({bound(after[0])}, {bound(after[1])}::text::inet)")
    if projects is not None:
        sources.append(f"unnest({bound(sorted(set(projects)))}::text[]) AS w (project)")
    match prefixes is not None, projects is not None:
        case True, True:
            # Said so that only the index of projects has the order: by that of prefixes, Postgres would read all of a
            # prefix for a project that has little there.
            where.append("(i.project_id, i.prefix_id, i.addr) > (w.project, h.id, h.beyond::inet)")
            where.append("(i.project_id, i.prefix_id) <= (w.project, h.id)")
            order = "i.project_id, i.prefix_id, i.addr"
        case True, False:
            where.append("i.prefix_id = h.id AND i.addr > h.beyond::inet")
        case False, True:
            where.append("i.project_id = w.project")
    if owner:
        where.append(f"i.owner_kind = {bound(owner.kind)} AND i.owner_id = {bound(owner.id)} AND i.owner_id <> ''")
    most = f"LIMIT {bound(limit)}"
    page = f"FROM ip i WHERE {' AND '.join(where)} ORDER BY {order} {most}"
    if sources:
        joined = " CROSS JOIN ".join([*sources, f"LATERAL (SELECT i.* {page}) AS i"])
        page = f"FROM {joined} ORDER BY i.prefix_id, i.addr {most}"
    return f"SELECT {_COLUMNS} {page}", arguments


def _listed(row: Any, home: _Home) -> ListedIp:
    return ListedIp(
        address=row["address"],
        network=home.network,
        prefix=home.prefix,
        project=row["project_id"],
        type=TYPES[row["kind"]],
        owner=Owner(row["owner_kind"], row["owner_id"]) if row["owner_id"] else NOBODY,
        name=row["name"],
        description=row["description"],
        dns_name=row["dns_name"],
        labels=row["labels"],
        version=row["version"],
        create_time=row["created_at"],
        namespace=home.namespace,
        prefix_id=row["prefix_id"],
    )


async def _homes(connection: Connection, prefix_ids: Collection[int]) -> dict[int, _Home]:
    """What addresses have from their prefixes, by the prefixes' ids."""
    rows = await connection.fetch(
        """SELECT p.id, p.cidr::text AS prefix, coalesce(p.network_id, '') AS network, n.name AS namespace
           FROM prefix p JOIN namespace n ON n.id = p.namespace_id WHERE p.id = ANY ($1::bigint[])""",
        list(prefix_ids),
    )
    return {row["id"]: _Home(row["network"], row["prefix"], row["namespace"]) for row in rows}
