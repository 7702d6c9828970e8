"""Copies of the prefixes of namespaced super networks: one for each project that has children of one, as containers in
the project's namespace. Copies come with the first child and go with the last one, and the namespace with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from metal_kit.db import Connection
from metal_kit.errors import Aborted, AlreadyExists

from metal_ipam.cidr import Prefix
from metal_ipam.networks import FAMILIES, Network
from metal_ipam.store import children, namespaces


@dataclass(frozen=True, slots=True)
class Account:
    """A namespaced super network in one family: children of all projects, and how many more of the default length the
    project with the fewest left can have."""

    children: int
    fewest_free: int


async def provide(connection: Connection, network: Network, project: str, *, actor: str) -> int:
    """The id of the project's namespace, locked, in which the network has a copy. The network's row is locked against
    changes, so that no prefix of it is missed.

    Raises:
        AlreadyExists: PREFIX_OVERLAPS, the project has children of another network with the same addresses.
        FailedPrecondition: NAMESPACE_TAKEN.
    """
    home = await namespaces.hold_of_project(connection, project)
    has = await connection.fetchval(
        "SELECT EXISTS (SELECT FROM prefix WHERE network_id = $1 AND namespace_id = $2 AND kind = 'container')",
        *(network.id, home),
    )
    if not has:
        await add(connection, network, [home], network.prefixes, actor=actor, field="network.parent")
    return home


async def hold(connection: Connection, network: str) -> list[int]:
    """The namespaces that have a copy of the network, locked in the order of their ids."""
    rows = await connection.fetch(
        """SELECT id FROM namespace WHERE id IN (SELECT namespace_id FROM prefix WHERE network_id = $1)
           ORDER BY id FOR NO KEY UPDATE""",
        network,
    )
    return [row["id"] for row in rows]


async def add(
    connection: Connection,
    network: Network,
    homes: Sequence[int],
    cidrs: Sequence[Prefix],
    *,
    actor: str,
    field: str = "network.prefixes",
) -> None:
    """Add the prefixes to the copies in these namespaces, which are locked. `field` is the request's, for errors.

    Raises:
        AlreadyExists: PREFIX_OVERLAPS, naming what is in the way, and in which namespace.
    """
    row = await connection.fetchrow(
        """WITH made AS MATERIALIZED (
               SELECT n.name, w.cidr, r.outcome, r.other_cidr, r.other_network
               FROM unnest($1::integer[]) WITH ORDINALITY AS h (id, ord)
               JOIN namespace n ON n.id = h.id
               CROSS JOIN unnest($2::cidr[]) AS w (cidr)
               CROSS JOIN LATERAL create_root(h.id, $3, w.cidr, 'container', false, $4, $5) AS r)
           SELECT * FROM made WHERE outcome <> 'ok' LIMIT 1""",
        *(list(homes), list(cidrs), network.id, network.quarantine, actor),
    )
    if row is None:
        return
    if row["outcome"] != "overlap":
        raise Aborted("CONCURRENT_CHANGE", f"namespace {row['name']!r} changed meanwhile; try again")
    raise AlreadyExists(
        "PREFIX_OVERLAPS",
        f"{row['cidr']} of network {network.id} overlaps {row['other_cidr']} of network {row['other_network']} in "
        f"namespace {row['name']!r}, which has children of both",
        field=field,
        metadata={"prefix": str(row["other_cidr"]), "network": row["other_network"], "namespace": row["name"]},
    )


async def drop_unused(connection: Connection, network: str, home: int, *, actor: str) -> None:
    """Delete the copy in the namespace, which is locked, unless children are cut from it; and the namespace when that
    was all it had."""
    rows = await connection.fetch(
        """SELECT id, children FROM prefix WHERE network_id = $1 AND namespace_id = $2 AND kind = 'container'
           ORDER BY id""",
        *(network, home),
    )
    if any(row["children"] for row in rows):
        return
    outcomes = await children.delete(connection, [row["id"] for row in rows], actor=actor)
    if set(outcomes) - {"ok"}:
        raise Aborted("CONCURRENT_CHANGE", f"the copy of network {network} changed meanwhile; try again")
    await connection.execute(
        """DELETE FROM namespace
           WHERE id = $1 AND for_networks AND NOT EXISTS (SELECT FROM prefix WHERE namespace_id = $1)""",
        home,
    )


async def accounts(connection: Connection, networks: Sequence[Network]) -> Mapping[tuple[str, int], Account]:
    """How full the networks are, by id and family; those without any copy are as one copy would be."""
    result = {
        (network.id, family): Account(0, _untouched(network, family))
        for network in networks
        for family in FAMILIES
        if family in network.families
    }
    rows = await connection.fetch(
        """SELECT network_id, family, sum(children)::bigint AS children, min(fitting) AS fewest_free
           FROM (SELECT p.network_id, p.namespace_id, family(p.cidr) AS family, sum(p.children) AS children,
                        sum((SELECT coalesce(sum(power(2::numeric, l.length - b.len)), 0) FROM free_block b
                             WHERE b.prefix_id = p.id AND b.len <= l.length)) AS fitting
                 FROM unnest($1::text[], $2::integer[], $3::integer[]) AS l (network, family, length)
                 JOIN prefix p ON p.network_id = l.network AND family(p.cidr) = l.family
                 WHERE p.kind = 'container' GROUP BY 1, 2, 3) AS copy
           GROUP BY 1, 2""",
        *([network for network, _ in result], [family for _, family in result]),
        [network.default_child.of(family) for network in networks for family in FAMILIES if family in network.families],
    )
    return result | {
        (row["network_id"], row["family"]): Account(row["children"], int(row["fewest_free"])) for row in rows
    }


async def verify(connection: Connection) -> list[str]:
    """What is wrong with the copies as a whole; empty when all is right."""
    rows = await connection.fetch(
        """SELECT format('network %s: its copy in namespace %s has %s instead of %s', n.id, s.name,
                         array_to_string(c.has, ', '), array_to_string(c.should, ', ')) AS what
           FROM network n
           CROSS JOIN LATERAL (SELECT p.namespace_id, array_agg(p.cidr ORDER BY p.cidr) AS has,
                                      ARRAY(SELECT unnest(n.copied_prefixes) ORDER BY 1) AS should
                               FROM prefix p WHERE p.network_id = n.id GROUP BY 1) AS c
           JOIN namespace s ON s.id = c.namespace_id
           WHERE n.type = 'super_namespaced' AND (c.has <> c.should OR NOT s.for_networks)
           UNION ALL
           SELECT format('namespace %s: has no prefix any more', s.name) FROM namespace s
           WHERE s.for_networks AND NOT EXISTS (SELECT FROM prefix p WHERE p.namespace_id = s.id)
           UNION ALL
           SELECT format('network %s: its prefix %s is not in the namespace of its project', n.id, p.cidr)
           FROM network u JOIN network n ON n.parent_id = u.id
           JOIN prefix p ON p.network_id = n.id JOIN namespace s ON s.id = p.namespace_id
           WHERE u.type = 'super_namespaced'
             AND (n.namespace_id <> s.id OR NOT s.for_networks OR s.project_id <> n.project_id)"""
    )
    return [row["what"] for row in rows]


def _untouched(network: Network, family: int) -> int:
    length = network.default_child.of(family)
    return sum(1 << (length - cidr.prefixlen) for cidr in network.prefixes if cidr.version == family)
