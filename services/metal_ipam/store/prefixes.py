"""Prefixes and their accounts. What changes them are the functions of the migrations; here they are called and read."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from metal_kit.db import Connection
from metal_kit.errors import AlreadyExists, FailedPrecondition, ResourceExhausted
from metal_kit.identity import missing

from metal_ipam.addresses import Leaf, Wish
from metal_ipam.cidr import Prefix
from metal_ipam.store.namespaces import DEFAULT

DEFAULT_NAMESPACE = 1

_SELECT = """
    SELECT p.id, p.namespace_id, p.network_id, p.cidr, p.kind, p.size, p.used, p.quarantined, p.reserved, p.children,
           p.child_used, p.status, p.labels, p.description, p.all_usable, p.quarantine, p.version, p.created_at,
           p.request_hash,
           (SELECT q.cidr FROM prefix q WHERE q.id = p.parent_id) AS parent_cidr,
           (SELECT n.name FROM namespace n WHERE n.id = p.namespace_id) AS namespace,
           p.parent_id IS NULL AND (SELECT n.for_networks FROM namespace n WHERE n.id = p.namespace_id) AS copied
    FROM prefix p
"""
_LEAF = """
    SELECT p.id, p.network_id, p.cidr, p.namespace_id, p.used, p.size, p.kind, n.name AS namespace,
           n.project_id AS home_project,
           CASE p.status WHEN 'active' THEN p.size - p.used - p.reserved ELSE 0 END AS free
    FROM prefix p JOIN namespace n ON n.id = p.namespace_id
"""


@dataclass(frozen=True, slots=True)
class PrefixRow:
    """A prefix with its counters, in addresses (`children` in prefixes). `copied`: of a namespaced super network."""

    id: int
    namespace_id: int
    network: str
    cidr: Prefix
    parent: Prefix | None
    kind: str
    size: int
    used: int
    quarantined: int
    reserved: int
    children: int
    child_used: int
    namespace: str = ""
    status: str = "active"
    labels: Mapping[str, str] = field(default_factory=dict)
    description: str = ""
    all_usable: bool = False
    quarantine: timedelta = timedelta(0)
    version: int = 1
    create_time: datetime | None = None
    copied: bool = False

    @property
    def free(self) -> int:
        """Addresses that can be handed out or cut now."""
        return self.size - self.used - self.reserved - self.child_used


async def of_networks(connection: Connection, networks: Sequence[str]) -> dict[str, list[PrefixRow]]:
    """The prefixes of each network, IPv4 before IPv6, then by CIDR; one statement however many networks."""
    rows = await connection.fetch(
        f"{_SELECT} WHERE p.network_id = ANY ($1::text[]) ORDER BY p.network_id, p.cidr", list(networks)
    )
    result: dict[str, list[PrefixRow]] = defaultdict(list)
    for row in rows:
        result[row["network_id"]].append(_prefix(row))
    return result


async def page(
    connection: Connection,
    *,
    network: str = "",
    namespace_id: int | None = None,
    parent_id: int | None = None,
    after: tuple[int, str] | None,
    limit: int,
) -> list[PrefixRow]:
    """Prefixes by namespace and CIDR: of one network, one parent, one namespace, or (none of these) of all.

    A parent is in one namespace, and so are its children; each filter has an index in this order.
    """
    arguments: list[object] = []
    where: list[str] = []

    def bound(value: object) -> str:
        arguments.append(value)
        return f"${len(arguments)}"

    order = "p.namespace_id, p.cidr"
    if network:
        where.append(f"p.network_id = {bound(network)}")
    if parent_id is not None:
        where.append(f"p.parent_id = {bound(parent_id)}")
        order = "p.cidr"
    if namespace_id is not None:
        where.append(f"p.namespace_id = {bound(namespace_id)}")
    if after is not None and order == "p.cidr":
        where.append(f"p.cidr > {bound(after[1])}::text::cidr")
    elif after is not None:
        where.append(f"(p.namespace_id, p.cidr) > ({bound(after[0])}::integer, {bound(after[1])}::text::cidr)")
    rows = await connection.fetch(
        f"{_SELECT} WHERE {' AND '.join(where) or 'true'} ORDER BY {order} LIMIT {limit:d}", *arguments
    )
    return [_prefix(row) for row in rows]


async def get(connection: Connection, namespace_id: int, cidr: Prefix, *, lock: bool = False) -> PrefixRow | None:
    """The prefix, locked against every change of it when `lock` is set."""
    if lock:
        await connection.execute(
            "SELECT FROM prefix WHERE namespace_id = $1 AND cidr = $2 FOR NO KEY UPDATE", namespace_id, cidr
        )
    # A statement of its own: this one sees what was committed while the one before waited.
    row = await connection.fetchrow(f"{_SELECT} WHERE p.namespace_id = $1 AND p.cidr = $2", namespace_id, cidr)
    return None if row is None else _prefix(row)


async def at(connection: Connection, places: Sequence[tuple[int, Prefix]]) -> dict[int, PrefixRow]:
    """The prefixes with these namespaces and CIDRs, by namespace; one statement however many."""
    rows = await connection.fetch(
        f"""{_SELECT} JOIN unnest($1::integer[], $2::cidr[]) AS w (namespace_id, cidr)
            ON p.namespace_id = w.namespace_id AND p.cidr = w.cidr""",
        *([each for each, _ in places], [each for _, each in places]),
    )
    return {row["namespace_id"]: _prefix(row) for row in rows}


async def by_request(connection: Connection, request_id: str) -> tuple[PrefixRow, str] | None:
    """The prefix that this request got, and the hash of the request."""
    row = await connection.fetchrow(f"{_SELECT} WHERE p.request_id = $1", request_id)
    return None if row is None else (_prefix(row), row["request_hash"])


async def labelled(
    connection: Connection, namespace_id: int, selector: Mapping[str, str], family: int, *, limit: int
) -> list[PrefixRow]:
    """Containers of the namespace and family that have all the labels, the oldest first."""
    rows = await connection.fetch(
        f"""{_SELECT} WHERE p.kind = 'container' AND p.labels @> $1 AND p.namespace_id = $2 AND family(p.cidr) = $3
            ORDER BY p.id LIMIT $4""",
        *(dict(selector), namespace_id, family, limit),
    )
    return [_prefix(row) for row in rows]


async def update(connection: Connection, row: PrefixRow) -> None:
    """Write what people change of a prefix, and raise its version."""
    await connection.execute(
        """UPDATE prefix SET labels = $2, description = $3, status = $4, quarantine = $5, version = version + 1
           WHERE id = $1""",
        *(row.id, dict(row.labels), row.description, row.status, row.quarantine),
    )


async def leaves(connection: Connection, networks: Sequence[str]) -> list[Leaf]:
    """The prefixes of the networks that give addresses, by id. What is not active has no address free."""
    rows = await connection.fetch(
        f"{_LEAF} WHERE p.network_id = ANY ($1::text[]) AND p.kind = 'leaf' ORDER BY p.id", list(networks)
    )
    return [_leaf(row, row["network_id"]) for row in rows]


async def lone_leaf(connection: Connection, wish: Wish) -> tuple[Leaf, str] | None:
    """The prefix that the wish names, and the project of its namespace; None when there is none.

    Raises:
        FailedPrecondition: PREFIX_OF_NETWORK, PREFIX_IS_CONTAINER.
    """
    row = await connection.fetchrow(
        f"{_LEAF} WHERE p.namespace_id = (SELECT id FROM namespace WHERE name = $1) AND p.cidr = $2",
        *(wish.namespace, wish.prefix),
    )
    if row is None:
        return None
    if row["network_id"] is not None:
        raise FailedPrecondition(
            "PREFIX_OF_NETWORK",
            f"{row['cidr']} belongs to network {row['network_id']}; name that",
            metadata={"network": row["network_id"]},
        )
    if row["kind"] != "leaf":
        raise FailedPrecondition("PREFIX_IS_CONTAINER", f"{row['cidr']} is cut into prefixes and gives no addresses")
    return _leaf(row, wish.source), row["home_project"]


async def free_blocks(connection: Connection, networks: Sequence[str]) -> dict[tuple[str, int], dict[int, int]]:
    """How many free blocks of each length the containers of each (network, family) have."""
    rows = await connection.fetch(
        """SELECT p.network_id, family(p.cidr) AS family, b.len, count(*) AS blocks
           FROM prefix p JOIN free_block b ON b.prefix_id = p.id
           WHERE p.network_id = ANY ($1::text[]) AND p.kind = 'container' GROUP BY 1, 2, 3""",
        list(networks),
    )
    result: dict[tuple[str, int], dict[int, int]] = defaultdict(dict)
    for row in rows:
        result[row["network_id"], row["family"]][row["len"]] = row["blocks"]
    return result


async def create_root(
    connection: Connection,
    network: str,
    cidr: Prefix,
    *,
    container: bool,
    quarantine: timedelta,
    actor: str,
    namespace_id: int = DEFAULT_NAMESPACE,
    all_usable: bool = False,
    field: str = "network.prefixes",
) -> None:
    """Create a root prefix, of a network or (empty) of none. `field` is the request's, for errors.

    Raises:
        AlreadyExists: PREFIX_OVERLAPS, naming the prefix in the way.
        NotFound: the namespace went meanwhile.
    """
    row = await connection.fetchrow(
        "SELECT * FROM create_root($1, $2, $3, $4, $5, $6, $7)",
        *(namespace_id, network or None, cidr, "container" if container else "leaf", all_usable, quarantine, actor),
    )
    assert row is not None  # The function returns exactly one row.
    if row["outcome"] == "overlap":
        raise AlreadyExists(
            "PREFIX_OVERLAPS",
            f"{cidr} overlaps {row['other_cidr']}"
            + (f" of network {other}" if (other := row["other_network"]) else ""),
            field=field,
            metadata={"prefix": str(row["other_cidr"]), "network": row["other_network"]},
        )
    if row["outcome"] == "unknown_namespace":
        raise missing("the namespace")
    assert row["outcome"] == "ok"


async def lock_containers(connection: Connection, network: str, namespace_id: int) -> list[PrefixRow]:
    """Lock the network's prefixes in the namespace, in the order of their ids, and return them."""
    which = "p.network_id = $1 AND p.namespace_id = $2 AND p.kind = 'container' ORDER BY p.id"
    await connection.execute(f"SELECT FROM prefix p WHERE {which} FOR NO KEY UPDATE", network, namespace_id)
    # A statement of its own: this one sees what was committed while the one before waited.
    rows = await connection.fetch(f"{_SELECT} WHERE {which}", network, namespace_id)
    return [_prefix(row) for row in rows]


async def full(connection: Connection, parents: Sequence[PrefixRow], length: int) -> ResourceExhausted:
    """The error for containers without a free block of the length: their fill, and the largest free blocks."""
    fill = ", ".join(f"{p.cidr} with {p.children} children and {p.free} addresses free" for p in parents)
    largest = await connection.fetchval(
        """SELECT string_agg(cidr::text, ', ') FROM (
               SELECT cidr FROM free_block WHERE prefix_id = ANY ($1::bigint[]) ORDER BY len, cidr LIMIT 3) AS b""",
        [p.id for p in parents],
    )
    network = parents[0].network
    return ResourceExhausted(
        "PREFIX_FULL",
        f"no /{length} is free in " + (f"network {network}: " if network else "") + f"{fill}; "
        f"largest free: {largest or 'none'}",
        metadata={
            "network": network,
            "prefixes": ",".join(str(p.cidr) for p in parents),
            "length": str(length),
            "largest_free": largest or "",
        },
    )


async def addresses_in_use(connection: Connection, network: str) -> int:
    """How many addresses of the network somebody holds; resting ones are nobody's."""
    count: int = await connection.fetchval(
        """SELECT coalesce(sum(p.used - p.quarantined), 0)::bigint
                  + (SELECT count(*) FROM ip i JOIN prefix o ON o.id = i.prefix_id
                     WHERE o.network_id = $1 AND i.state = 'reserved')
           FROM prefix p WHERE p.network_id = $1""",
        network,
    )
    return count


async def verify(connection: Connection, prefix_id: int) -> list[str]:
    """What is wrong in the accounts of a prefix; empty when all is right."""
    rows = await connection.fetch("SELECT * FROM verify_prefix($1)", prefix_id)
    return [row[0] for row in rows]


async def ids(connection: Connection, network: str, *, after: int, limit: int) -> list[tuple[int, str]]:
    """Ids and names for people by id, of one network or (empty) of all."""
    arguments: list[object] = [after, *([network] if network else [])]
    of_network = "AND network_id = $2" if network else ""
    rows = await connection.fetch(
        f"""SELECT id, cidr, (SELECT name FROM namespace n WHERE n.id = namespace_id) AS namespace
            FROM prefix WHERE id > $1 {of_network} ORDER BY id LIMIT {limit:d}""",
        *arguments,
    )
    return [
        (row["id"], str(row["cidr"]) + (f" in namespace {row['namespace']!r}" if row["namespace"] != DEFAULT else ""))
        for row in rows
    ]


def _leaf(row: Any, source: str) -> Leaf:
    return Leaf(
        id=row["id"],
        network=source,
        cidr=row["cidr"],
        namespace_id=row["namespace_id"],
        free=int(row["free"]),
        used=row["used"],
        size=int(row["size"]),
        namespace=row["namespace"],
    )


def _prefix(row: Any) -> PrefixRow:
    return PrefixRow(
        id=row["id"],
        namespace_id=row["namespace_id"],
        network=row["network_id"] or "",
        cidr=row["cidr"],
        parent=row["parent_cidr"],
        kind=row["kind"],
        size=int(row["size"]),
        used=row["used"],
        quarantined=row["quarantined"],
        reserved=int(row["reserved"]),
        children=row["children"],
        child_used=int(row["child_used"]),
        namespace=row["namespace"],
        status=row["status"],
        labels=row["labels"],
        description=row["description"],
        all_usable=row["all_usable"],
        quarantine=row["quarantine"],
        version=row["version"],
        create_time=row["created_at"],
        copied=row["copied"],
    )
