"""Children of prefixes, many at a time. What cuts and deletes them are the functions of migration 0021."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from metal_kit.db import Connection
from metal_kit.errors import Aborted, FailedPrecondition

from metal_ipam.cidr import Prefix
from metal_ipam.store import prefixes, ranges
from metal_ipam.store.namespaces import DEFAULT
from metal_ipam.store.prefixes import PrefixRow


@dataclass(frozen=True, slots=True)
class Wanted:
    """A child that is wanted: of `length` bits or this very `cidr`, what it is for, and what is written with it.

    `quarantine`: None for the parent's. `request_id` is unique over all prefixes; empty: none. `actor` is who asks, for
    the history.
    """

    length: int = 0
    cidr: Prefix | None = None
    container: bool = False
    all_usable: bool = False
    network: str = ""
    quarantine: timedelta | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    description: str = ""
    request_id: str = ""
    request_hash: str = ""
    actor: str = ""

    @property
    def bits(self) -> int:
        """The length of the child, however it is asked for."""
        return self.cidr.prefixlen if self.cidr is not None else self.length

    def as_json(self) -> dict[str, object]:
        """The form that `acquire_children` reads, without what is not set."""
        entry: dict[str, object] = {"actor": self.actor}
        if self.cidr is not None:
            entry["cidr"] = str(self.cidr)
        else:
            entry["length"] = self.length
        if self.container:
            entry["kind"] = "container"
        if self.all_usable:
            entry["all_usable"] = True
        if self.network:
            entry["network"] = self.network
        if self.quarantine is not None:
            entry["quarantine"] = f"{self.quarantine / timedelta(microseconds=1):.0f} microseconds"
        if self.labels:
            entry["labels"] = dict(self.labels)
        if self.description:
            entry["description"] = self.description
        if self.request_id:
            entry |= {"request_id": self.request_id, "request_hash": self.request_hash}
        return entry


@dataclass(frozen=True, slots=True)
class Cut:
    """What became of one: `outcome` as `acquire_children` names it, with the child when that is `ok`."""

    outcome: str
    child: PrefixRow | None = None


_ACQUIRE = "SELECT * FROM acquire_children({}, {})"
_AT = "(SELECT p.id FROM prefix p JOIN namespace n ON n.id = p.namespace_id WHERE n.name = $1 AND p.cidr = $2)"
_DELETE = "SELECT * FROM delete_prefixes({}, {}, {})"
_ALL_AT = """ARRAY(
    SELECT (SELECT p.id FROM prefix p WHERE p.namespace_id = (SELECT n.id FROM namespace n WHERE n.name = $1)
                                        AND p.cidr = w.cidr OFFSET 0)
    FROM unnest($2::cidr[]) WITH ORDINALITY AS w (cidr, ord) ORDER BY w.ord)"""


async def acquire_at(connection: Connection, namespace: str, parent: Prefix, wanted: Sequence[Wanted]) -> list[Cut]:
    """Cut children out of the prefix of this name, in one statement, which commits when no transaction is open.

    Raises:
        Aborted: somebody holds the parent for longer than a batch should wait.
    """
    rows = await connection.fetch(_ACQUIRE.format(_AT, "$3"), namespace, parent, [each.as_json() for each in wanted])
    return _cuts(rows, namespace, wanted)


async def acquire(connection: Connection, parent: PrefixRow, wanted: Sequence[Wanted]) -> list[Cut]:
    """Cut children out of the prefix, for whose lock others may be waited for, within a transaction."""
    await connection.execute("SELECT FROM prefix WHERE id = $1 FOR NO KEY UPDATE", parent.id)
    rows = await connection.fetch(_ACQUIRE.format("$1", "$2"), parent.id, [each.as_json() for each in wanted])
    return _cuts(rows, parent.namespace, wanted)


async def delete_at(
    connection: Connection, namespace: str, cidrs: Sequence[Prefix], actors: Sequence[str]
) -> list[str]:
    """Delete prefixes that belong to no network; outcomes as `delete_prefixes` names them, one for each. One statement,
    which commits when no transaction is open. Raises as `acquire_at`."""
    rows = await connection.fetch(_DELETE.format(_ALL_AT, "$3", "false"), namespace, list(cidrs), list(actors))
    return _outcomes(rows, len(cidrs))


async def delete(connection: Connection, ids: Sequence[int], *, actor: str) -> list[str]:
    """Delete prefixes by their ids, those of networks too, within a transaction; outcomes one for each."""
    await connection.execute(
        """SELECT FROM prefix WHERE id = ANY ($1::bigint[])
                                 OR id = ANY (ARRAY(SELECT parent_id FROM prefix WHERE id = ANY ($1::bigint[])))
           ORDER BY id FOR NO KEY UPDATE""",
        list(ids),
    )
    rows = await connection.fetch(_DELETE.format("$1", "$2", "true"), list(ids), [actor] * len(ids))
    return _outcomes(rows, len(ids))


async def cut_for(
    connection: Connection,
    network: str,
    parents: Sequence[PrefixRow],
    length: int,
    *,
    quarantine: timedelta,
    actor: str,
) -> Prefix:
    """Cut a leaf of the length for a network out of the first of `parents`, which are locked and of one family, that
    has room.

    Raises:
        ResourceExhausted: PREFIX_FULL, naming the parents, their fill and the largest free blocks.
        Aborted: CONCURRENT_CHANGE.
    """
    wanted = Wanted(length=length, network=network, quarantine=quarantine, actor=actor)
    for parent in parents:
        if length <= parent.cidr.prefixlen:
            continue
        [cut] = await acquire(connection, parent, [wanted])
        if cut.child is not None:
            return cut.child.cidr
        if cut.outcome not in {"full", "not_active"}:
            raise _changed(cut.outcome)
    raise await prefixes.full(connection, parents, length)


async def delete_of(connection: Connection, network: str, only: Sequence[Prefix] | None = None, *, actor: str) -> None:
    """Delete the network's prefixes, or those of `only`; children give their block back to the parent.

    Raises:
        FailedPrecondition: PREFIX_IN_USE, naming the prefix.
        Aborted: CONCURRENT_CHANGE.
    """
    rows = await connection.fetch(
        """SELECT id, cidr, (SELECT name FROM namespace n WHERE n.id = namespace_id) AS namespace
           FROM prefix WHERE network_id = $1 AND ($2::cidr[] IS NULL OR cidr = ANY ($2)) ORDER BY id""",
        network,
        None if only is None else list(only),
    )
    outcomes = await delete(connection, [row["id"] for row in rows], actor=actor)
    for row, outcome in zip(rows, outcomes, strict=True):
        if outcome in {"has_children", "has_addresses"}:
            what = "child prefixes" if outcome == "has_children" else "addresses in use"
            some = await ranges.in_the_way(connection, row["id"], children=outcome == "has_children")
            where = f" in namespace {row['namespace']!r}" if row["namespace"] != DEFAULT else ""
            raise FailedPrecondition(
                "PREFIX_IN_USE",
                f"{row['cidr']} of network {network}{where} has {what}: {some}",
                metadata={"prefix": str(row["cidr"]), "namespace": row["namespace"], "in_the_way": some},
            )
        if outcome != "ok":
            raise _changed(outcome)


async def spent(connection: Connection, request_id: str) -> bool:
    """Whether what the request got was given back since."""
    found: bool = await connection.fetchval(
        "SELECT EXISTS (SELECT FROM spent_request WHERE request_id = $1)", request_id
    )
    return found


def _changed(outcome: str) -> Aborted:
    """What is left when the other outcomes are handled: something vanished between two statements."""
    return Aborted("CONCURRENT_CHANGE", f"the prefix changed meanwhile ({outcome}); try again")


def _cuts(rows: Sequence[Any], namespace: str, wanted: Sequence[Wanted]) -> list[Cut]:
    result = [Cut("unknown_prefix")] * len(wanted)
    for ord_, outcome, id_, namespace_id, parent, cidr, reserved, quarantine, time in rows:
        child = None
        if outcome == "ok":
            one = wanted[ord_ - 1]
            child = PrefixRow(
                id=id_,
                namespace_id=namespace_id,
                network=one.network,
                cidr=cidr,
                parent=parent,
                kind="container" if one.container else "leaf",
                size=cidr.num_addresses,
                used=0,
                quarantined=0,
                reserved=reserved,
                children=0,
                child_used=0,
                namespace=namespace,
                labels=one.labels,
                description=one.description,
                all_usable=one.all_usable,
                quarantine=quarantine,
                create_time=time,
            )
        result[ord_ - 1] = Cut(outcome, child)
    return result


def _outcomes(rows: Sequence[Any], count: int) -> list[str]:
    result = ["unknown_prefix"] * count
    for ord_, outcome in rows:
        result[ord_ - 1] = outcome
    return result
