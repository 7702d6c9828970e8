"""Which addresses changed after a position, as they are now; from the history."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from metal_kit.db import Connection

from metal_ipam.addresses import Ip
from metal_ipam.cidr import Address
from metal_ipam.store import addresses

# What happens to addresses; prefixes have a history too.
_OPERATIONS = "('acquire', 'release', 'attach', 'detach', 'update')"

# The horizon and the rows of one snapshot; without rows there is one line of nulls.
_READ = f"""
    WITH edge AS (SELECT pg_snapshot_xmin(pg_current_snapshot()) AS xmin)
    SELECT edge.xmin, h.xid, h.seq, h.namespace_id, h.object, h.project_id
    FROM edge LEFT JOIN LATERAL (
        SELECT xid, seq, namespace_id, object, project_id FROM history
        WHERE object IS NOT NULL AND (xid, seq) > ($1::xid8, $2::bigint) AND xid < edge.xmin
          AND operation IN {_OPERATIONS}
        ORDER BY xid, seq LIMIT $3
    ) AS h ON true
    ORDER BY h.xid, h.seq
"""


@dataclass(frozen=True, slots=True)
class AddressChange:
    """Something happened to an address while `project` had it. `ip` is the address if that project has it now. Network
    and namespace are empty when they are gone, too."""

    address: Address
    network: str
    project: str
    ip: Ip | None
    namespace: str = ""


@dataclass(frozen=True, slots=True)
class Changes:
    """A batch of changes: `place` is the position after it, `full` tells that there may be more at once, `horizon` is
    the oldest transaction that still runs."""

    changes: Sequence[AddressChange]
    place: tuple[int, int]
    full: bool
    horizon: int


async def after(connection: Connection, place: tuple[int, int], *, limit: int) -> Changes:
    """Changes after the place, oldest first, each address of a project once."""
    rows = await connection.fetch(_READ, *place, limit)
    horizon = rows[0]["xmin"]
    found = [row for row in rows if row["seq"] is not None]
    full = len(found) == limit
    end = (found[-1]["xid"], found[-1]["seq"]) if full else max(place, (horizon, 0))
    last = {(row["namespace_id"], row["object"], row["project_id"]): row for row in found}
    latest = sorted(last.values(), key=lambda row: (row["xid"], row["seq"]))
    return Changes(await _as_they_are(connection, latest), end, full, horizon)


async def _as_they_are(connection: Connection, rows: Sequence[Any]) -> list[AddressChange]:
    if not rows:
        return []
    places = [(row["namespace_id"], row["object"]) for row in rows]
    now = await addresses.by_places(connection, places)
    gone = [place for place in places if place not in now]
    homes = await _homes(connection, gone) if gone else {}
    changes = []
    for row, place in zip(rows, places, strict=True):
        ip = now.get(place)
        network, namespace = (ip.network, ip.namespace) if ip else homes.get(place, ("", ""))
        mine = ip if ip and ip.project == row["project_id"] else None
        changes.append(AddressChange(row["object"], network, row["project_id"], mine, namespace))
    return changes


async def _homes(
    connection: Connection, places: Sequence[tuple[int, Address]]
) -> dict[tuple[int, Address], tuple[str, str]]:
    """Network and namespace of addresses that nobody has; those whose prefix is gone too are left out."""
    rows = await connection.fetch(
        """SELECT a.namespace_id, a.addr, coalesce(p.network_id, '') AS network,
                  (SELECT n.name FROM namespace n WHERE n.id = a.namespace_id) AS namespace
           FROM unnest($1::int[], $2::inet[]) AS a (namespace_id, addr)
           CROSS JOIN LATERAL generate_series(0, width(a.addr)) AS l
           -- The limit keeps this a look-up of each length.
           CROSS JOIN LATERAL (SELECT * FROM prefix o WHERE o.namespace_id = a.namespace_id
                               AND o.cidr = network(set_masklen(a.addr, l)) LIMIT 1) AS p
           WHERE p.kind = 'leaf'""",
        *([place[0] for place in places], [place[1] for place in places]),
    )
    return {(row["namespace_id"], row["addr"]): (row["network"], row["namespace"]) for row in rows}
