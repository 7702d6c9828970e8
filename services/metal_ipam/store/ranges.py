"""Ranges of a leaf that are set aside, and what is in the way of a change."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from metal_kit.db import Connection

from metal_ipam.cidr import Address, Prefix

# What `lay_out` keeps back by itself.
BY_RULE = frozenset({"network address", "broadcast address", "subnet-router anycast"})
_NAMED = 3
_MOST_FINDINGS = 100


@dataclass(frozen=True, slots=True)
class Range:
    """Addresses from first to last that are set aside."""

    first: Address
    last: Address
    label: str
    create_time: datetime

    @property
    def by_rule(self) -> bool:
        """Whether the kind of the prefix demands it, so that nobody can take it back."""
        return self.first == self.last and self.label in BY_RULE


async def reserve(
    connection: Connection, prefix_id: int, first: Address, last: Address, label: str, *, actor: str
) -> str:
    """Set a range aside; the outcome as the SQL function names it."""
    outcome: str = await connection.fetchval("SELECT reserve($1, $2, $3, $4, $5)", prefix_id, first, last, label, actor)
    return outcome


async def unreserve(connection: Connection, prefix_id: int, first: Address, last: Address, *, actor: str) -> str:
    """Take a reservation back; the outcome as the SQL function names it."""
    outcome: str = await connection.fetchval("SELECT unreserve($1, $2, $3, $4)", prefix_id, first, last, actor)
    return outcome


async def get(connection: Connection, prefix_id: int, first: Address, last: Address) -> Range | None:
    """The reservation with exactly these ends."""
    row = await connection.fetchrow(
        "SELECT * FROM reserved_range WHERE prefix_id = $1 AND hi = $3 AND lo = $2", prefix_id, first, last
    )
    return None if row is None else _range(row)


async def page(connection: Connection, prefix_id: int, *, after: str, limit: int) -> list[Range]:
    """Reservations of a prefix by address; `after` is the last address of one."""
    rows = await connection.fetch(
        """SELECT * FROM reserved_range WHERE prefix_id = $1 AND ($2 = '' OR hi > nullif($2, '')::inet)
           ORDER BY hi LIMIT $3""",
        *(prefix_id, after, limit),
    )
    return [_range(row) for row in rows]


async def in_the_way(connection: Connection, prefix_id: int, *, children: bool) -> str:
    """Some children or addresses of a prefix, for an error."""
    sql = (
        "SELECT cidr::text AS what FROM prefix WHERE parent_id = $1 ORDER BY cidr LIMIT $2"
        if children
        else """SELECT host(addr) || CASE owner_id WHEN '' THEN '' ELSE ' (' || owner_kind || ' ' || owner_id || ')' END
                    AS what
                FROM ip WHERE prefix_id = $1 AND state <> 'quarantine' ORDER BY addr LIMIT $2"""
    )
    return _some(await connection.fetch(sql, prefix_id, _NAMED + 1))


async def overlapping(
    connection: Connection, prefix_id: int, first: Address, last: Address, *, held_only: bool = False
) -> str:
    """Some addresses in use (resting ones too), and reservations unless `held_only`, between the two; for an error."""
    rows = await connection.fetch(
        """(SELECT host(addr) || ' is in state ' || state AS what FROM ip
            WHERE prefix_id = $1 AND addr BETWEEN $2 AND $3 ORDER BY addr LIMIT $4)
           UNION ALL
           (SELECT host(lo) || ' to ' || host(hi) || ' is reserved as ' || reason FROM reserved_range
            WHERE prefix_id = $1 AND hi >= $2 AND lo <= $3 AND NOT $5 ORDER BY hi LIMIT $4)
           LIMIT $4""",
        *(prefix_id, first, last, _NAMED + 1, held_only),
    )
    return _some(rows)


async def children_overlapping(connection: Connection, prefix_id: int, cidr: Prefix) -> str:
    """Some children of a prefix that overlap the CIDR, for an error."""
    rows = await connection.fetch(
        """SELECT cidr::text AS what FROM prefix
           WHERE parent_id = $1 AND cidr && $2 ORDER BY cidr LIMIT $3""",
        *(prefix_id, cidr, _NAMED + 1),
    )
    return _some(rows)


async def verify(connection: Connection) -> list[str]:
    """Addresses, free and reserved space that belong to no prefix; empty when all is right."""
    rows = await connection.fetch(
        """SELECT format('%s %s belongs to no prefix', s.what, s.where_) AS finding
           FROM (SELECT 'free range' AS what, host(lo) || '-' || host(hi) AS where_, prefix_id FROM free_range
                 UNION ALL SELECT 'free block', cidr::text, prefix_id FROM free_block
                 UNION ALL SELECT 'reserved range', host(lo) || '-' || host(hi), prefix_id FROM reserved_range
                 UNION ALL SELECT 'address', host(addr), prefix_id FROM ip) AS s
           WHERE NOT EXISTS (SELECT FROM prefix p WHERE p.id = s.prefix_id) LIMIT $1""",
        _MOST_FINDINGS,
    )
    return [row["finding"] for row in rows]


def _some(rows: list[Any]) -> str:
    return ", ".join(row["what"] for row in rows[:_NAMED]) + (", …" if len(rows) > _NAMED else "")


def _range(row: Any) -> Range:
    return Range(row["lo"], row["hi"], row["reason"], row["created_at"])
