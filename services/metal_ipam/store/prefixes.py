"""Prefixes and their accounts. What changes them are the functions of the migrations; here they are called and read."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from metal_kit.db import Connection
from metal_kit.errors import Aborted, AlreadyExists, FailedPrecondition, InvalidArgument, ResourceExhausted

from metal_ipam.addresses import Leaf
from metal_ipam.cidr import Prefix

DEFAULT_NAMESPACE = 1

_SELECT = """
    SELECT p.id, p.namespace_id, p.network_id, p.cidr, p.kind, p.size, p.used, p.quarantined, p.reserved, p.children,
           p.child_used, q.cidr AS parent_cidr
    FROM prefix p LEFT JOIN prefix q ON q.id = p.parent_id
"""


@dataclass(frozen=True, slots=True)
class PrefixRow:
    """A prefix with its counters, in addresses (`children` in prefixes)."""

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


async def page(connection: Connection, *, network: str, after: tuple[str, str] | None, limit: int) -> list[PrefixRow]:
    """Prefixes by network and CIDR, of one network or (empty) of all."""
    where, arguments = ["true"], list[object]()
    if network:
        arguments.append(network)
        where.append("p.network_id = $1")
    if after is not None:
        where.append(f"(p.network_id, p.cidr) > (${len(arguments) + 1}, ${len(arguments) + 2}::text::cidr)")
        arguments += after
    rows = await connection.fetch(
        f"{_SELECT} WHERE {' AND '.join(where)} ORDER BY p.network_id, p.cidr LIMIT {limit:d}", *arguments
    )
    return [_prefix(row) for row in rows]


async def leaves(connection: Connection, networks: Sequence[str]) -> list[Leaf]:
    """The prefixes of the networks that give addresses, by id."""
    rows = await connection.fetch(
        """SELECT id, network_id, cidr, namespace_id, size - used - reserved AS free, used, size FROM prefix
           WHERE network_id = ANY ($1::text[]) AND kind = 'leaf' ORDER BY id""",
        list(networks),
    )
    return [
        Leaf(
            id=row["id"],
            network=row["network_id"],
            cidr=row["cidr"],
            namespace_id=row["namespace_id"],
            free=int(row["free"]),
            used=row["used"],
            size=int(row["size"]),
        )
        for row in rows
    ]


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
    connection: Connection, network: str, cidr: Prefix, *, container: bool, quarantine: timedelta, actor: str
) -> None:
    """Create a root prefix.

    Raises:
        AlreadyExists: PREFIX_OVERLAPS, naming the prefix in the way.
    """
    row = await _one(
        connection,
        "SELECT * FROM create_root($1, $2, $3, $4, false, $5, $6)",
        *(DEFAULT_NAMESPACE, network, cidr, "container" if container else "leaf", quarantine, actor),
    )
    if row["outcome"] == "overlap":
        raise AlreadyExists(
            "PREFIX_OVERLAPS",
            f"{cidr} overlaps {row['other_cidr']} of network {row['other_network']}",
            field="network.prefixes",
            metadata={"prefix": str(row["other_cidr"]), "network": row["other_network"]},
        )
    _expect_ok(row["outcome"])


async def lock_containers(connection: Connection, network: str) -> list[PrefixRow]:
    """Lock the network's prefixes in the order of their ids and return them."""
    await connection.execute(
        "SELECT FROM prefix WHERE network_id = $1 AND kind = 'container' ORDER BY id FOR NO KEY UPDATE", network
    )
    # A statement of its own: this one sees what was committed while the one before waited.
    rows = await connection.fetch(f"{_SELECT} WHERE p.network_id = $1 AND p.kind = 'container' ORDER BY p.id", network)
    return [_prefix(row) for row in rows]


async def cut_child(
    connection: Connection,
    parents: Sequence[PrefixRow],
    length: int,
    network: str,
    *,
    quarantine: timedelta,
    actor: str,
) -> Prefix:
    """Cut a leaf of the length out of the first of `parents`, which are locked and of one family, that has room.

    Raises:
        ResourceExhausted: PREFIX_FULL, naming the parents, their fill and the largest free blocks.
    """
    for parent in parents:
        if length <= parent.cidr.prefixlen:
            continue
        row = await _one(
            connection,
            "SELECT * FROM acquire_child($1, $2, NULL, $3, 'leaf', false, $4, $5)",
            *(parent.id, length, network, quarantine, actor),
        )
        if row["outcome"] == "ok":
            cidr: Prefix = row["cidr"]
            return cidr
        if row["outcome"] != "full":
            _expect_ok(row["outcome"])
    fill = ", ".join(f"{p.cidr} with {p.children} children" for p in parents)
    largest = await connection.fetchval(
        """SELECT string_agg(cidr::text, ', ') FROM (
               SELECT cidr FROM free_block WHERE prefix_id = ANY ($1::bigint[]) ORDER BY len, cidr LIMIT 3) AS b""",
        [p.id for p in parents],
    )
    raise ResourceExhausted(
        "PREFIX_FULL",
        f"no /{length} is free in network {parents[0].network}: {fill}; largest free: {largest or 'none'}",
        metadata={
            "network": parents[0].network,
            "prefixes": ",".join(str(p.cidr) for p in parents),
            "length": str(length),
            "largest_free": largest or "",
        },
    )


async def delete_all(connection: Connection, network: str, only: Sequence[Prefix] | None = None, *, actor: str) -> None:
    """Delete the network's prefixes, or those of `only`; children give their block back to the parent.

    Raises:
        FailedPrecondition: PREFIX_IN_USE, naming the prefix.
    """
    await connection.execute(
        """SELECT FROM prefix WHERE id IN (SELECT parent_id FROM prefix WHERE network_id = $1)
           ORDER BY id FOR NO KEY UPDATE""",
        network,
    )
    rows = await connection.fetch(
        "SELECT id, cidr FROM prefix WHERE network_id = $1 AND ($2::cidr[] IS NULL OR cidr = ANY ($2)) ORDER BY id",
        network,
        None if only is None else list(only),
    )
    for row in rows:
        outcome = await connection.fetchval("SELECT delete_prefix($1, $2)", row["id"], actor)
        if outcome in {"has_children", "has_addresses"}:
            what = "child prefixes" if outcome == "has_children" else "addresses in use"
            raise FailedPrecondition(
                "PREFIX_IN_USE", f"{row['cidr']} of network {network} has {what}", metadata={"prefix": str(row["cidr"])}
            )
        _expect_ok(outcome)


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


async def ids(connection: Connection, network: str, *, after: int, limit: int) -> list[tuple[int, Prefix]]:
    """Ids and CIDRs by id, of one network or (empty) of all."""
    arguments: list[object] = [after, *([network] if network else [])]
    of_network = "AND network_id = $2" if network else ""
    rows = await connection.fetch(
        f"SELECT id, cidr FROM prefix WHERE id > $1 {of_network} ORDER BY id LIMIT {limit:d}", *arguments
    )
    return [(row["id"], row["cidr"]) for row in rows]


async def _one(connection: Connection, sql: str, *args: object) -> Any:
    row = await connection.fetchrow(sql, *args)
    assert row is not None  # The functions return exactly one row.
    return row


def _expect_ok(outcome: str) -> None:
    """What is left when the named outcomes are handled: something vanished between two statements."""
    if outcome == "length":
        raise InvalidArgument("LENGTH_NOT_ALLOWED", "a child prefix must be longer than its parent", field="length")
    if outcome != "ok":
        raise Aborted("CONCURRENT_CHANGE", f"the prefix changed meanwhile ({outcome}); try again")


def _prefix(row: Any) -> PrefixRow:
    return PrefixRow(
        id=row["id"],
        namespace_id=row["namespace_id"],
        network=row["network_id"],
        cidr=row["cidr"],
        parent=row["parent_cidr"],
        kind=row["kind"],
        size=int(row["size"]),
        used=row["used"],
        quarantined=row["quarantined"],
        reserved=int(row["reserved"]),
        children=row["children"],
        child_used=int(row["child_used"]),
    )
