"""Quotas and what is held of them."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from metal_kit.db import Connection

from metal_ipam.quotas import Amounts, Quota

_SELECT = "SELECT project_id, ipv4_addresses, ipv6_addresses, prefixes, version FROM quota"


async def get(connection: Connection, project: str) -> Quota:
    """The quota of the project; without limits when it has none."""
    row = await connection.fetchrow(f"{_SELECT} WHERE project_id = $1", project)
    return Quota(project) if row is None else _quota(row)


async def hold(connection: Connection, project: str) -> Quota | None:
    """The quota of the project, None when nothing limits it. Until the transaction ends no other one gets past here for
    the project. After the owner, before every other lock."""
    row = await connection.fetchrow(f"{_SELECT} WHERE project_id = $1 FOR NO KEY UPDATE", project)
    return None if row is None else _quota(row)


async def limited(connection: Connection, projects: Collection[str]) -> frozenset[str]:
    """Those of the projects whose addresses have a limit."""
    rows = await connection.fetch(
        """SELECT project_id FROM quota
           WHERE project_id = ANY ($1::text[]) AND (ipv4_addresses IS NOT NULL OR ipv6_addresses IS NOT NULL)""",
        list(projects),
    )
    return frozenset(row["project_id"] for row in rows)


async def held(connection: Connection, project: str) -> Amounts:
    """What the project holds; resting addresses are nobody's. Costs as much as it holds, which its quota bounds."""
    row = await connection.fetchrow(
        """SELECT count(*) FILTER (WHERE family(addr) = 4) AS ipv4_addresses,
                  count(*) FILTER (WHERE family(addr) = 6) AS ipv6_addresses,
                  (SELECT count(*) FROM network n JOIN prefix p ON p.network_id = n.id
                   WHERE n.project_id = $1 AND n.type IN ('child', 'child_shared')) AS prefixes
           FROM ip WHERE project_id = $1 AND state <> 'quarantine'""",
        project,
    )
    assert row is not None
    return Amounts(**dict(row))


async def page(connection: Connection, *, after: str, limit: int) -> list[Quota]:
    """Quotas that limit something, by project."""
    rows = await connection.fetch(
        f"""{_SELECT} WHERE project_id > $1 AND num_nonnulls(ipv4_addresses, ipv6_addresses, prefixes) > 0
            ORDER BY project_id LIMIT $2""",
        *(after, limit),
    )
    return [_quota(row) for row in rows]


async def ensure(connection: Connection, project: str) -> None:
    """Make a row that can be locked, if there is none; it limits nothing."""
    await connection.execute(
        "INSERT INTO quota (project_id, version) VALUES ($1, 0) ON CONFLICT (project_id) DO NOTHING", project
    )


async def put(connection: Connection, quota: Quota) -> Quota:
    """Write the limits; the quota with its new version."""
    row = await connection.fetchrow(
        """UPDATE quota SET ipv4_addresses = $2, ipv6_addresses = $3, prefixes = $4, version = version + 1,
               updated_at = now()
           WHERE project_id = $1 RETURNING project_id, ipv4_addresses, ipv6_addresses, prefixes, version""",
        *(quota.project, quota.ipv4_addresses, quota.ipv6_addresses, quota.prefixes),
    )
    return _quota(row)


def _quota(row: Any) -> Quota:
    return Quota(
        row["project_id"], row["ipv4_addresses"], row["ipv6_addresses"], row["prefixes"], version=row["version"]
    )
