"""Rows of networks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import asyncpg
from metal_kit.db import Connection
from metal_kit.errors import AlreadyExists

from metal_ipam.cidr import place
from metal_ipam.networks import Lengths, Nat, Network, NetworkType
from metal_ipam.store.prefixes import DEFAULT_NAMESPACE

# A child has the destination prefixes of its parent as they are now, not as they were when it was created.
_SELECT = """
    SELECT n.id, n.type, n.name, n.description, n.project_id, n.partition_id, n.parent_id, n.vrf, n.vrf_owned,
           n.nat_type, coalesce(p.destination_prefixes, n.destination_prefixes) AS destination_prefixes,
           n.announcable_cidrs, n.default_child_v4, n.default_child_v6, n.min_child_v4, n.min_child_v6, n.quarantine,
           n.labels, n.version, n.created_at, n.updated_at,
           CASE WHEN n.type = 'super_namespaced' THEN n.copied_prefixes
                ELSE ARRAY(SELECT x.cidr FROM prefix x WHERE x.network_id = n.id ORDER BY x.cidr) END AS prefixes,
           CASE WHEN n.type = 'super_namespaced' THEN ''
                ELSE (SELECT s.name FROM namespace s WHERE s.id = n.namespace_id) END AS namespace
    FROM network n LEFT JOIN network p ON p.id = n.parent_id
"""
_TAKEN = {
    "network_pkey": ("NETWORK_EXISTS", "network.id", "a network {id} exists already"),
    "network_name": ("NAME_TAKEN", "network.name", "the project has a network named {name} already"),
    "network_one_super_per_partition": (
        "SUPER_EXISTS", "network.partition", "partition {partition} has a super network already",
    ),
    "network_one_underlay_per_partition": (
        "UNDERLAY_EXISTS", "network.partition", "partition {partition} has an underlay network already",
    ),
    "network_one_shared_child_per_project": (
        "CHILD_SHARED_EXISTS", "network.project", "project {project} has a child-shared network already",
    ),
}  # fmt: skip


async def get(connection: Connection, network_id: str, *, lock: str = "") -> Network | None:
    """The network, or None. `lock`: `FOR UPDATE` to change or delete it, `FOR KEY SHARE` to keep it from going."""
    if lock:
        assert lock in {"FOR UPDATE", "FOR KEY SHARE"}
        # A statement of its own, since the one that waits for a lock may read other tables as they were before.
        found = await connection.fetchval(f"SELECT 1 FROM network WHERE id = $1 {lock}", network_id)
        if not found:
            return None
    row = await connection.fetchrow(f"{_SELECT} WHERE n.id = $1", network_id)
    return None if row is None else _network(row)


async def get_many(connection: Connection, network_ids: Sequence[str]) -> dict[str, Network]:
    """The networks that exist, by id."""
    rows = await connection.fetch(f"{_SELECT} WHERE n.id = ANY ($1::text[])", list(network_ids))
    return {row["id"]: _network(row) for row in rows}


async def with_labels(connection: Connection, project: str, labels: Mapping[str, str], *, limit: int) -> list[Network]:
    """Networks that have all the labels and give addresses to the project (`networks.serves`), by id."""
    rows = await connection.fetch(
        f"""{_SELECT} WHERE n.labels @> $1
                AND (n.type = 'child_shared' OR (n.type = 'child' AND n.project_id = $2)
                     OR (n.type = 'external' AND n.project_id IN ('', $2)))
            ORDER BY n.id LIMIT $3""",
        *(dict(labels), project, limit),
    )
    return [_network(row) for row in rows]


async def super_of_partition(connection: Connection, partition: str) -> str | None:
    """Id of the partition's super network."""
    found: str | None = await connection.fetchval(
        "SELECT id FROM network WHERE type = 'super' AND partition_id = $1", partition
    )
    return found


async def children(connection: Connection, network_id: str, *, limit: int = 1000) -> list[str]:
    """Ids of the networks that were cut from it."""
    rows = await connection.fetch("SELECT id FROM network WHERE parent_id = $1 ORDER BY id LIMIT $2", network_id, limit)
    return [row["id"] for row in rows]


async def page(
    connection: Connection,
    *,
    visible_to: Sequence[str] | None,
    project: str,
    kind: NetworkType | None,
    partition: str,
    parent: str,
    after: str,
    limit: int,
) -> list[Network]:
    """Networks by id. `visible_to`: projects of the caller, None for one who sees all.

    What a project sees is `networks.serves`, as SQL: its own, shared ones, and super and external ones of nobody.
    """
    arguments: list[object] = [after]
    where = "n.id > $1"
    filters = {
        "project_id": project,
        "type": kind.value if kind else "",
        "partition_id": partition,
        "parent_id": parent,
    }
    for column, value in filters.items():
        if value:
            arguments.append(value)
            where += f" AND n.{column} = ${len(arguments)}"
    chosen = f"(SELECT n.id FROM network n WHERE {where} ORDER BY n.id LIMIT {limit:d})"
    if visible_to is not None:
        arguments.append(sorted(set(visible_to)))
        chosen = _visible(where, f"${len(arguments)}::text[]", limit)
    rows = await connection.fetch(f"{_SELECT} WHERE n.id IN {chosen} ORDER BY n.id", *arguments)
    return [_network(row) for row in rows]


def _visible(where: str, projects: str, limit: int) -> str:
    """Ids of the first networks that the projects see: of a page of each project's own, of the shared ones, and of
    those of nobody. One condition for the three has no index."""
    tail = f"ORDER BY n.id LIMIT {limit:d}"
    return f"""(
        SELECT own.id FROM unnest({projects}) AS seen (project)
        CROSS JOIN LATERAL (
            SELECT n.id FROM network n WHERE n.project_id = seen.project AND {where} {tail}
        ) AS own
        UNION (SELECT n.id FROM network n WHERE n.type = 'child_shared' AND {where} {tail})
        UNION (SELECT n.id FROM network n
               WHERE n.type IN ('super', 'super_namespaced', 'external') AND n.project_id = '' AND {where} {tail})
        ORDER BY id LIMIT {limit:d}
    )"""


async def insert(connection: Connection, network: Network) -> None:
    """Write a new network; its prefixes are the prefix store's.

    Raises:
        AlreadyExists: the id, the name in the project, or the one place of its type is taken.
    """
    try:
        await connection.execute(
            """INSERT INTO network (id, namespace_id, type, project_id, partition_id, parent_id, vrf, vrf_owned,
                   nat_type, quarantine, name, description, labels, destination_prefixes, announcable_cidrs,
                   default_child_v4, default_child_v6, min_child_v4, min_child_v6, copied_prefixes)
               VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20)""",
            *(network.id, DEFAULT_NAMESPACE, network.type.value, network.project, network.partition),
            *(network.parent or None, network.vrf or None, network.vrf_owned, network.nat.value, network.quarantine),
            *_mutable(network),
        )
    except asyncpg.UniqueViolationError as error:
        raise _taken(network, error) from error


async def set_vrf(connection: Connection, network_id: str, number: int) -> None:
    """Note the VRF number that was taken for a new network."""
    await connection.execute("UPDATE network SET vrf = $2, vrf_owned = true WHERE id = $1", network_id, number)


async def set_namespace(connection: Connection, network_id: str, namespace_id: int) -> None:
    """Note the namespace that the prefixes of a new network will be in."""
    await connection.execute("UPDATE network SET namespace_id = $2 WHERE id = $1", network_id, namespace_id)


async def update(connection: Connection, network: Network, *, seen: int) -> bool:
    """Write what may change and raise the version; False when the version is not `seen` any more.

    Raises:
        AlreadyExists: the name is taken.
    """
    try:
        done = await connection.fetchval(
            """UPDATE network SET name = $3, description = $4, labels = $5, destination_prefixes = $6,
                   announcable_cidrs = $7, default_child_v4 = $8, default_child_v6 = $9, min_child_v4 = $10,
                   min_child_v6 = $11, copied_prefixes = $12, version = version + 1, updated_at = now()
               WHERE id = $1 AND version = $2 RETURNING 1""",
            *(network.id, seen),
            *_mutable(network),
        )
    except asyncpg.UniqueViolationError as error:
        raise _taken(network, error) from error
    return done is not None


async def delete(connection: Connection, network_id: str) -> None:
    """Delete the row; its prefixes must be gone."""
    await connection.execute("DELETE FROM network WHERE id = $1", network_id)


def _mutable(network: Network) -> tuple[object, ...]:
    # What a child inherits is read from the parent, so its own columns stay empty.
    own = () if network.parent else network.destination_prefixes
    return (
        network.name,
        network.description,
        dict(network.labels),
        list(own),
        list(network.additional_announcable_prefixes),
        network.default_child.ipv4 or None,
        network.default_child.ipv6 or None,
        network.min_child.ipv4 or None,
        network.min_child.ipv6 or None,
        sorted(network.prefixes, key=place) if network.type is NetworkType.SUPER_NAMESPACED else [],
    )


def _taken(network: Network, error: asyncpg.UniqueViolationError) -> AlreadyExists:
    constraint = str(getattr(error, "constraint_name", ""))
    reason, field, text = _TAKEN.get(constraint, ("NETWORK_EXISTS", "network", "network {id} collides with another"))
    values = {"id": network.id, "name": network.name, "partition": network.partition, "project": network.project}
    return AlreadyExists(reason, text.format_map(values), field=field)


def _network(row: Any) -> Network:
    return Network(
        id=row["id"],
        type=NetworkType(row["type"]),
        project=row["project_id"],
        partition=row["partition_id"],
        parent=row["parent_id"] or "",
        prefixes=tuple(row["prefixes"]),
        destination_prefixes=tuple(row["destination_prefixes"]),
        additional_announcable_prefixes=tuple(row["announcable_cidrs"]),
        default_child=Lengths(row["default_child_v4"] or 0, row["default_child_v6"] or 0),
        min_child=Lengths(row["min_child_v4"] or 0, row["min_child_v6"] or 0),
        vrf=row["vrf"] or 0,
        vrf_owned=row["vrf_owned"],
        nat=Nat(row["nat_type"]),
        quarantine=row["quarantine"],
        name=row["name"],
        description=row["description"],
        labels=row["labels"],
        version=row["version"],
        create_time=row["created_at"],
        update_time=row["updated_at"],
        namespace=row["namespace"],
    )
