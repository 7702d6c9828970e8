"""SQL of dumps and loads. A row is a JSON object; the same names are written and read."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from metal_kit.db import Connection

_BATCH = 200
_TIME = "to_char({} AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"+00:00\"')"
_CREATED = _TIME.format("{}.created_at")

_LINES = f"""
    SELECT line FROM (
        SELECT 1 AS part, p.cidr::inet AS place, json_build_object(
                   'kind', 'prefix', 'cidr', p.cidr::text, 'parent', q.cidr::text,
                   'network', coalesce(p.network_id, ''), 'type', p.kind, 'all_usable', p.all_usable,
                   'quarantine', extract(epoch FROM p.quarantine),
                   'status', p.status, 'labels', p.labels, 'description', p.description,
                   'created_at', {_CREATED.format("p")})::text AS line
        FROM prefix p LEFT JOIN prefix q ON q.id = p.parent_id WHERE p.namespace_id = $1
        UNION ALL
        SELECT 2, r.lo, json_build_object(
                   'kind', 'range', 'prefix', p.cidr::text, 'first', host(r.lo), 'last', host(r.hi), 'label', r.reason,
                   'created_at', {_CREATED.format("r")})::text
        FROM prefix p JOIN reserved_range r ON r.prefix_id = p.id WHERE p.namespace_id = $1
        UNION ALL
        SELECT 3, i.addr, json_build_object(
                   'kind', 'ip', 'prefix', p.cidr::text, 'address', host(i.addr), 'state', i.state,
                   'project', i.project_id, 'owner_kind', i.owner_kind, 'owner_id', i.owner_id, 'type', i.kind,
                   'name', i.name, 'description', i.description, 'dns_name', i.dns_name, 'labels', i.labels,
                   'release_after', {_TIME.format("i.release_after")}, 'created_at', {_CREATED.format("i")})::text
        FROM ip i JOIN prefix p ON p.id = i.prefix_id WHERE i.namespace_id = $1
    ) AS told ORDER BY part, place LIMIT $2
"""


async def lines(connection: Connection, namespace_id: int, *, limit: int) -> list[str]:
    """What the namespace holds, in one statement and so as of one moment."""
    return [row["line"] for row in await connection.fetch(_LINES, namespace_id, limit)]


async def has_prefixes(connection: Connection, namespace_id: int) -> bool:
    """Whether the namespace holds anything."""
    found: bool = await connection.fetchval("SELECT EXISTS (SELECT FROM prefix WHERE namespace_id = $1)", namespace_id)
    return found


async def insert_prefixes(connection: Connection, namespace_id: int, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write prefixes whose parents are there; their free space and counters are `rebuild`'s."""
    await connection.execute(
        """INSERT INTO prefix (namespace_id, parent_id, cidr, kind, all_usable, quarantine, status, labels, description,
                               created_at)
           SELECT $1, q.id, r.cidr, r.type, r.all_usable, make_interval(secs => r.quarantine), r.status, r.labels,
                  r.description, r.created_at
           FROM jsonb_to_recordset($2) AS r (cidr cidr, parent cidr, type text, all_usable boolean,
                quarantine double precision, status text, labels jsonb, description text, created_at timestamptz)
           LEFT JOIN prefix q ON q.namespace_id = $1 AND q.cidr = r.parent""",
        *(namespace_id, list(rows)),
    )


async def insert_ranges(connection: Connection, namespace_id: int, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write reserved ranges of prefixes that are there."""
    await connection.execute(
        """INSERT INTO reserved_range (prefix_id, lo, hi, reason, created_at)
           SELECT p.id, r.first, r.last, r.label, r.created_at
           FROM jsonb_to_recordset($2) AS r (prefix cidr, first inet, last inet, label text, created_at timestamptz)
           JOIN prefix p ON p.namespace_id = $1 AND p.cidr = r.prefix""",
        *(namespace_id, list(rows)),
    )


async def insert_ips(connection: Connection, namespace_id: int, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write addresses of prefixes that are there."""
    await connection.execute(
        """INSERT INTO ip (namespace_id, addr, prefix_id, state, project_id, owner_kind, owner_id, kind, name,
                           description, dns_name, labels, release_after, created_at)
           SELECT $1, r.address, p.id, r.state, r.project, r.owner_kind, r.owner_id, r.type, r.name, r.description,
                  r.dns_name, r.labels, r.release_after, r.created_at
           FROM jsonb_to_recordset($2) AS r (prefix cidr, address inet, state text, project text, owner_kind text,
                owner_id text, type text, name text, description text, dns_name text, labels jsonb,
                release_after timestamptz, created_at timestamptz)
           JOIN prefix p ON p.namespace_id = $1 AND p.cidr = r.prefix""",
        *(namespace_id, list(rows)),
    )


async def rebuild(connection: Connection, namespace_id: int) -> AsyncIterator[str]:
    """Make free space and counters of all prefixes anew; what cannot be right all the same."""
    async for ids in _batches(connection, namespace_id):
        await connection.execute("SELECT repair_prefix(id) FROM unnest($1::bigint[]) AS id", ids)
    async for ids in _batches(connection, namespace_id):
        sql = "SELECT p.cidr || ': ' || v AS what FROM prefix p, verify_prefix(p.id) AS v WHERE p.id = ANY ($1)"
        for row in await connection.fetch(sql, ids):
            yield row["what"]


async def _batches(connection: Connection, namespace_id: int) -> AsyncIterator[list[int]]:
    last = 0
    while True:
        rows = await connection.fetch(
            "SELECT id FROM prefix WHERE namespace_id = $1 AND id > $2 ORDER BY id LIMIT $3",
            *(namespace_id, last, _BATCH),
        )
        if not rows:
            return
        yield (ids := [row["id"] for row in rows])
        last = ids[-1]


async def remember(connection: Connection, namespace_id: int, *, actor: str) -> None:
    """Leave a line in the history of each prefix and address that was loaded."""
    await connection.execute(
        """INSERT INTO history (actor, operation, namespace_id, object, owner_kind, owner_id, project_id)
           SELECT $2, 'load', $1, p.cidr, '', '', '' FROM prefix p WHERE p.namespace_id = $1
           UNION ALL
           SELECT $2, 'load', $1, i.addr, i.owner_kind, i.owner_id, i.project_id FROM ip i WHERE i.namespace_id = $1""",
        *(namespace_id, actor),
    )
