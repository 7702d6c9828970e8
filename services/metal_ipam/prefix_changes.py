"""Creating, cutting, growing and deleting prefixes, and setting ranges aside, each in the caller's one transaction.

Prefixes of networks are the networks' own: they come and go with `network_changes`. Here they only grow, have ranges
set aside, and get what people write on them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from metal_kit.db import Connection
from metal_kit.errors import (
    Aborted,
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    OutOfRange,
)
from metal_kit.identity import missing

from metal_ipam import network_changes, requests
from metal_ipam.cidr import Address, Prefix
from metal_ipam.networks import Network, NetworkType
from metal_ipam.store import children, namespaces, networks, prefixes, ranges
from metal_ipam.store.children import Wanted
from metal_ipam.store.prefixes import PrefixRow
from metal_ipam.store.ranges import Range

# How many parents that have the wanted labels are tried.
_MOST_PARENTS = 100
# The outcome that tells most first: who asked for what exists, learns so although other parents are too small.
_TELLING = (
    "request_reused",
    "request_spent",
    "copied",
    "taken",
    "full",
    "not_active",
    "outside",
    "wrong_kind",
    "length",
)


async def create(connection: Connection, draft: PrefixRow, *, actor: str) -> tuple[PrefixRow, Network | None]:
    """Create a root prefix; with a network one of it, and the network as it is then.

    Raises:
        NotFound: namespace or network.
        AlreadyExists: PREFIX_OVERLAPS.
        InvalidArgument, FailedPrecondition: a network that cannot have it.
    """
    namespace = await namespaces.get(connection, draft.namespace, field="prefix.namespace")
    namespaces.check_open(namespace)
    changed: Network | None = None
    if draft.network:
        before = await networks.get(connection, draft.network)
        if before is None or namespace.id != prefixes.DEFAULT_NAMESPACE:
            problem = missing(f"network {draft.network} in namespace {namespace.name!r}")
            problem.field = "prefix.network"
            raise problem
        if before.type is NetworkType.SUPER_NAMESPACED:
            raise _copied(before.id)
        if draft.cidr in before.prefixes:
            raise AlreadyExists("PREFIX_OVERLAPS", f"network {before.id} has {draft.cidr} already", field="prefix.cidr")
        after = replace(before, prefixes=(*before.prefixes, draft.cidr))
        changed = await network_changes.update(connection, before, after, actor=actor)
    else:
        await prefixes.create_root(
            connection,
            "",
            draft.cidr,
            container=draft.kind == "container",
            quarantine=draft.quarantine,
            actor=actor,
            namespace_id=namespace.id,
            all_usable=draft.all_usable,
            field="prefix.cidr",
        )
    row = await prefixes.get(connection, namespace.id, draft.cidr)
    assert row is not None  # Written in this very transaction.
    return await _describe(connection, row, draft), changed


async def find(connection: Connection, namespace: str, cidr: Prefix, *, lock: bool = False) -> PrefixRow:
    """The prefix of this CIDR.

    Raises:
        NotFound: there is no such namespace, or no such prefix in it.
    """
    home = await namespaces.get(connection, namespace)
    row = await prefixes.get(connection, home.id, cidr, lock=lock)
    if row is None:
        raise missing(f"prefix {cidr} in namespace {home.name!r}")
    return row


async def find_parents(
    connection: Connection, namespace: str, selector: dict[str, str], family: int
) -> list[PrefixRow]:
    """The containers that have all the labels, the oldest first.

    Raises:
        NotFound: no such namespace, or none has them.
    """
    home = await namespaces.get(connection, namespace)
    found = await prefixes.labelled(connection, home.id, selector, family, limit=_MOST_PARENTS)
    if not found:
        labels = ", ".join(f"{key}={value}" for key, value in sorted(selector.items()))
        problem = missing(f"IPv{family} container with {labels} in namespace {home.name!r}")
        problem.field = "selector"
        raise problem
    return found


async def acquire_child(connection: Connection, parents: Sequence[PrefixRow], wanted: Wanted) -> PrefixRow:
    """Cut a child out of the first of the parents that can give it; they are tried in the order of their ids.

    Raises:
        InvalidArgument: LENGTH_NOT_ALLOWED, REQUEST_ID_REUSED. OutOfRange: PREFIX_OUTSIDE.
        AlreadyExists: PREFIX_TAKEN, naming by what. ResourceExhausted: PREFIX_FULL.
        FailedPrecondition: PREFIX_IS_LEAF, PREFIX_NOT_ACTIVE, PREFIX_IS_COPY, REQUEST_SPENT.
        Aborted: CONCURRENT_CHANGE.
    """
    outcomes: dict[str, PrefixRow] = {}
    for parent in sorted(parents, key=lambda each: each.id):
        [cut] = await children.acquire(connection, parent, [wanted])
        if cut.child is not None:
            return cut.child
        if cut.outcome == "known" and (row := await earlier_child(connection, wanted)) is not None:
            return row  # A twin of the request was faster while this one waited for the parent.
        outcomes.setdefault(cut.outcome, parent)
    for outcome in _TELLING:
        if (at := outcomes.get(outcome)) is not None:
            raise await _refusal(connection, outcome, at, parents, wanted)
    raise Aborted("CONCURRENT_CHANGE", "the parent is gone, or a twin of the request was faster; try again")


async def earlier_child(connection: Connection, wanted: Wanted) -> PrefixRow | None:
    """The child that this request got before, as it is now; None when the request is new.

    Raises:
        InvalidArgument: REQUEST_ID_REUSED. FailedPrecondition: REQUEST_SPENT, the child was deleted since.
    """
    if not wanted.request_id:
        return None
    found = await prefixes.by_request(connection, wanted.request_id)
    if found is None:
        if await children.spent(connection, wanted.request_id):
            raise requests.spent()
        return None
    row, request_hash = found
    if request_hash != wanted.request_hash:
        raise requests.reused()
    return row


async def grow(connection: Connection, row: PrefixRow, length: int, *, actor: str) -> tuple[PrefixRow, Network | None]:
    """Make the prefix larger, and of a network the network's version too: its prefixes are others now.

    Raises:
        InvalidArgument: LENGTH_NOT_ALLOWED. AlreadyExists: PREFIX_OVERLAPS, naming what is in the way.
        FailedPrecondition: ADDRESS_IN_USE where network or broadcast address would be, PREFIX_IS_COPY.
    """
    if row.copied:
        raise _copied(row.network)
    network: Network | None = None
    if row.network:  # Before the locks of prefixes, as everywhere.
        network = await networks.get(connection, row.network, lock="FOR UPDATE")
    done = await connection.fetchrow("SELECT * FROM grow_prefix($1, $2, $3)", row.id, length, actor)
    assert done is not None
    match done["outcome"]:
        case "ok":
            pass
        case "length":
            raise InvalidArgument(
                "LENGTH_NOT_ALLOWED", f"must be less than {row.cidr.prefixlen}: prefixes do not shrink", field="length"
            )
        case "parent":
            raise InvalidArgument(
                "LENGTH_NOT_ALLOWED", f"{row.cidr} must stay smaller than its parent {row.parent}", field="length"
            )
        case "taken":
            raise AlreadyExists(
                "PREFIX_OVERLAPS",
                f"{row.cidr} cannot grow to /{length}: {done['in_the_way']} is not free",
                metadata={"prefix": str(done["in_the_way"])},
            )
        case "held":
            raise FailedPrecondition(
                "ADDRESS_IN_USE",
                f"{row.cidr} cannot grow to /{length}: {done['in_the_way']} is held or reserved, and its network or "
                "broadcast address would be there",
                metadata={"address": str(done["in_the_way"])},
            )
        case other:
            raise Aborted("CONCURRENT_CHANGE", f"{row.cidr} changed meanwhile ({other}); read it again")
    if network is not None and not await networks.update(connection, network, seen=network.version):
        raise Aborted("CONCURRENT_CHANGE", f"network {row.network} changed meanwhile; try again")
    grown = await prefixes.get(connection, row.namespace_id, row.cidr.supernet(new_prefix=length))
    assert grown is not None
    return grown, None if network is None else await networks.get(connection, network.id)


async def delete(connection: Connection, row: PrefixRow, *, actor: str) -> None:
    """Delete it; a child's block goes back to its parent.

    Raises:
        FailedPrecondition: PREFIX_OF_NETWORK, or PREFIX_IN_USE naming some of its children or addresses.
    """
    if row.network:
        raise FailedPrecondition(
            "PREFIX_OF_NETWORK",
            f"{row.cidr} belongs to network {row.network}; change or delete that",
            metadata={"network": row.network},
        )
    [outcome] = await children.delete(connection, [row.id], actor=actor)
    if outcome in {"has_children", "has_addresses"}:
        what = "child prefixes" if outcome == "has_children" else "addresses in use"
        some = await ranges.in_the_way(connection, row.id, children=outcome == "has_children")
        raise FailedPrecondition(
            "PREFIX_IN_USE",
            f"{row.cidr} has {what}: {some}",
            metadata={"prefix": str(row.cidr), "in_the_way": some},
        )
    if outcome != "ok":
        raise Aborted("CONCURRENT_CHANGE", f"{row.cidr} changed meanwhile ({outcome}); read it again")


async def reserve(
    connection: Connection, row: PrefixRow, first: Address, last: Address, label: str, *, actor: str
) -> Range:
    """Set free addresses aside; without effect when they are so already, under the same label.

    Raises:
        OutOfRange: RANGE_OUTSIDE. FailedPrecondition: PREFIX_IS_CONTAINER, RANGE_IN_USE naming what is there.
    """
    outcome = await ranges.reserve(connection, row.id, first, last, label, actor=actor)
    match outcome:
        case "ok":
            pass
        case "outside":
            raise OutOfRange("RANGE_OUTSIDE", f"{first} to {last} is no range within {row.cidr}", field="first")
        case "wrong_kind":
            raise FailedPrecondition("PREFIX_IS_CONTAINER", f"{row.cidr} is cut into prefixes and has no addresses")
        case "in_use":
            known = await ranges.get(connection, row.id, first, last)
            if known is not None and known.label == label:
                return known
            some = await ranges.overlapping(connection, row.id, first, last)
            raise FailedPrecondition(
                "RANGE_IN_USE",
                f"not all of {first} to {last} is free: {some}",
                field="first",
                metadata={"in_the_way": some},
            )
        case other:
            raise Aborted("CONCURRENT_CHANGE", f"{row.cidr} changed meanwhile ({other}); read it again")
    made = await ranges.get(connection, row.id, first, last)
    assert made is not None  # Written in this very transaction.
    return made


async def unreserve(connection: Connection, row: PrefixRow, first: Address, last: Address, *, actor: str) -> None:
    """Take a reservation back.

    Raises:
        NotFound: nothing is reserved with these ends. FailedPrecondition: RANGE_STAYS, RANGE_IN_USE.
    """
    known = await ranges.get(connection, row.id, first, last)
    if known is not None and known.by_rule:
        raise FailedPrecondition("RANGE_STAYS", f"{first} is the {known.label} of {row.cidr} and stays reserved")
    outcome = await ranges.unreserve(connection, row.id, first, last, actor=actor)
    if outcome == "in_use":
        some = await ranges.overlapping(connection, row.id, first, last, held_only=True)
        raise FailedPrecondition("RANGE_IN_USE", f"addresses of it are in use: {some}", metadata={"in_the_way": some})
    if outcome != "ok":
        raise missing(f"reserved range {first} to {last} of {row.cidr}")


def _copied(network: str) -> FailedPrecondition:
    """The error for a change of one copy of a namespaced super network's prefixes, or of only some of them."""
    return FailedPrecondition(
        "PREFIX_IS_COPY",
        f"the prefixes of network {network} are the same in the namespace of each project; add and remove them by "
        "UpdateNetwork, and cut children by CreateNetwork",
        metadata={"network": network},
    )


async def _describe(connection: Connection, row: PrefixRow, draft: PrefixRow) -> PrefixRow:
    """Write what people say of a new prefix."""
    quarantine = row.quarantine if row.network else draft.quarantine
    described = replace(
        row, labels=draft.labels, description=draft.description, status=draft.status, quarantine=quarantine
    )
    if described == row:
        return row
    await prefixes.update(connection, described)
    return replace(described, version=row.version + 1)


async def _refusal(
    connection: Connection, outcome: str, parent: PrefixRow, parents: Sequence[PrefixRow], wanted: Wanted
) -> Exception:
    match outcome:
        case "request_reused":
            return requests.reused()
        case "request_spent":
            return requests.spent()
        case "copied":
            return _copied(parent.network)
        case "taken":
            assert wanted.cidr is not None
            some = await ranges.children_overlapping(connection, parent.id, wanted.cidr)
            return AlreadyExists(
                "PREFIX_TAKEN",
                f"{wanted.cidr} is not wholly free in {parent.cidr}: {some} is there",
                field="cidr",
                metadata={"prefix": some, "parent": str(parent.cidr)},
            )
        case "full":
            return await prefixes.full(connection, parents, wanted.bits)
        case "not_active":
            return FailedPrecondition(
                "PREFIX_NOT_ACTIVE",
                f"{parent.cidr} is {parent.status}: its children are had only by their own CIDR",
                metadata={"prefix": str(parent.cidr), "status": parent.status},
            )
        case "outside":
            return OutOfRange("PREFIX_OUTSIDE", f"{wanted.cidr} does not lie in {parent.cidr}", field="cidr")
        case "wrong_kind":
            return FailedPrecondition(
                "PREFIX_IS_LEAF", f"{parent.cidr} gives addresses and has no children", metadata={"kind": parent.kind}
            )
    return InvalidArgument(
        "LENGTH_NOT_ALLOWED",
        f"a child of {parent.cidr} has a length from {parent.cidr.prefixlen + 1} to {parent.cidr.max_prefixlen}",
        field="cidr" if wanted.cidr else "length",
    )
