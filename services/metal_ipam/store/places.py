"""Where addresses belong, which prefixes overlap over namespaces, and what happened to whom."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from metal_kit.db import Connection

from metal_ipam.addresses import Owner
from metal_ipam.cidr import Address, Prefix
from metal_ipam.store.ranges import Range


@dataclass(frozen=True, slots=True)
class Place:
    """Where an address belongs in a namespace: its longest prefix, and how it stands with it there.

    `state` is that of the row of the address, empty when there is none.
    """

    namespace_id: int
    prefix: Prefix
    state: str
    rests_until: datetime | None
    reserved: Range | None


@dataclass(frozen=True, slots=True)
class Entry:
    """Something that happened."""

    seq: int
    time: datetime
    actor: str
    operation: str
    owner: Owner
    project: str


async def of_address(
    connection: Connection, address: Address, namespace_id: int | None, *, after: int, limit: int
) -> list[Place]:
    """The places of an address by namespace, the oldest first; of all namespaces or (given) of one.

    The roots tell which namespaces know of the address; there each length is tried, the longest first.
    """
    rows = await connection.fetch(
        f"""SELECT home.namespace_id, p.cidr, coalesce(i.state, '') AS state, i.release_after, r.lo, r.hi, r.reason,
                   r.created_at
            FROM (SELECT DISTINCT namespace_id FROM prefix
                  WHERE parent_id IS NULL AND cidr >>= $1 AND namespace_id > $2
                        {"AND namespace_id = $4" if namespace_id is not None else ""}
                  ORDER BY namespace_id LIMIT $3) AS home
            CROSS JOIN LATERAL (
                SELECT one.id, one.cidr FROM generate_series(0, width($1)) AS l
                -- The limit keeps this a look-up of each length: among many small namespaces, reading all of one that
                -- happens to be large would look cheaper.
                CROSS JOIN LATERAL (SELECT p.id, p.cidr FROM prefix p WHERE p.namespace_id = home.namespace_id
                                    AND p.cidr = network(set_masklen($1, l)) LIMIT 1) AS one
                ORDER BY l DESC LIMIT 1) AS p
            LEFT JOIN ip i ON i.namespace_id = home.namespace_id AND i.addr = $1
            LEFT JOIN LATERAL (
                SELECT * FROM (SELECT * FROM reserved_range r WHERE r.prefix_id = p.id AND r.hi >= $1
                               ORDER BY r.hi LIMIT 1) AS next WHERE next.lo <= $1) AS r ON true
            ORDER BY home.namespace_id""",
        *(address, after, limit, *([] if namespace_id is None else [namespace_id])),
    )
    return [
        Place(
            namespace_id=row["namespace_id"],
            prefix=row["cidr"],
            state=row["state"],
            rests_until=row["release_after"],
            reserved=None if row["lo"] is None else Range(row["lo"], row["hi"], row["reason"], row["created_at"]),
        )
        for row in rows
    ]


async def overlaps(connection: Connection, *, after: tuple[int, int], limit: int) -> list[Any]:
    """Pairs of root prefixes of different namespaces that overlap, by their ids: rows with `left_id`, `right_id`,
    `left_namespace`, `left_cidr`, `right_namespace`, `right_cidr`. The right one is of the younger namespace."""
    rows: list[Any] = await connection.fetch(
        """SELECT a.id AS left_id, b.id AS right_id, a.cidr AS left_cidr, b.cidr AS right_cidr,
                  (SELECT name FROM namespace WHERE id = a.namespace_id) AS left_namespace,
                  (SELECT name FROM namespace WHERE id = b.namespace_id) AS right_namespace
           FROM prefix a
           CROSS JOIN LATERAL (
               SELECT o.id, o.cidr, o.namespace_id FROM prefix o
               WHERE o.parent_id IS NULL AND o.cidr && a.cidr AND o.namespace_id > a.namespace_id
                 -- Copies of one network are meant to be alike.
                 AND (a.network_id IS NULL OR o.network_id IS DISTINCT FROM a.network_id)
                 AND (a.id > $1 OR o.id > $2)
               ORDER BY o.id LIMIT $3) AS b
           WHERE a.parent_id IS NULL AND a.id >= $1 ORDER BY a.id, b.id LIMIT $3""",
        *(after[0], after[1], limit),
    )
    return rows


async def history(
    connection: Connection,
    namespace_id: int,
    thing: Address | Prefix,
    *,
    as_of: datetime | None,
    before: int | None,
    limit: int,
) -> list[Entry]:
    """What happened to an address or prefix, the newest first: until `as_of`, and before the entry `before`."""
    rows = await connection.fetch(
        f"""SELECT seq, at, actor, operation, owner_kind, owner_id, project_id FROM history
            WHERE namespace_id = $1 AND object = $2 {"AND seq < $4" if before is not None else ""}
                  {f"AND at <= ${4 if before is None else 5}" if as_of is not None else ""}
            ORDER BY namespace_id DESC, object DESC, seq DESC LIMIT $3""",
        *(namespace_id, thing, limit, *([] if before is None else [before]), *([] if as_of is None else [as_of])),
    )
    return [
        Entry(row["seq"], row["at"], row["actor"], row["operation"], Owner(row["owner_kind"], row["owner_id"]),
              row["project_id"])
        for row in rows
    ]  # fmt: skip
