"""Calls for addresses: what one says, what is checked before and while it is carried out, and what it gets. The order
of these steps is `acquisition`'s.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from metal_kit.db import Connection
from metal_kit.errors import (
    Aborted,
    AlreadyExists,
    FailedPrecondition,
    PermissionDenied,
)
from metal_kit.identity import missing

from metal_ipam import requests
from metal_ipam.addresses import Ip, IpType, Leaf, Owner, Unit, Wish
from metal_ipam.cidr import Address, contains
from metal_ipam.networks import Network, check_acquire, serves
from metal_ipam.quotas import Amounts
from metal_ipam.quotas import check as check_quota
from metal_ipam.store import addresses, prefixes, quotas
from metal_ipam.store.addresses import Acquired, Entry


@dataclass(frozen=True, slots=True)
class Call:
    """A call for addresses. `plane` tells services and plane operators from projects; `request_hash` tells two requests
    with one id apart; without `keep` it only finds out what would be had; `chosen`: labels chose a network, so
    that a twin of the call may have got more or fewer addresses from another one."""

    project: str
    wishes: Sequence[Wish]
    owner: Owner = field(default_factory=Owner)
    type: IpType = IpType.EPHEMERAL
    name: str = ""
    description: str = ""
    dns_name: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    request_id: str = ""
    request_hash: str = ""
    plane: bool = False
    actor: str = ""
    keep: bool = True
    chosen: bool = False

    def key(self, index: int) -> str | None:
        """Request id of the unit with this index; of the project's, so that no project can ask for another's."""
        return f"{self.project}/{self.request_id}/{index}" if self.request_id else None

    def entry(self, index: int) -> Entry:
        """What is written with the address of the unit."""
        return Entry(
            project=self.project,
            owner=self.owner,
            type=self.type,
            name=self.name,
            description=self.description,
            dns_name=self.dns_name,
            labels=self.labels,
            request_id=self.key(index),
            request_hash=self.request_hash,
            actor=self.actor,
        )


class Outrun(Exception):
    """The plan did not hold: prefixes filled up or went while it was carried out."""


def in_use(ip: Ip) -> FailedPrecondition:
    """The error for an address that somebody uses."""
    return in_the_way(ip.address, ip.owner)


def in_the_way(address: Address, owner: Owner) -> FailedPrecondition:
    """The error for an address that this owner uses."""
    return FailedPrecondition(
        "IP_IN_USE", f"{address} is in use by {owner}", metadata={"owner_kind": owner.kind, "owner": owner.id}
    )


def check_networks(call: Call, known: Mapping[str, Network]) -> None:
    for index, wish in enumerate(call.wishes):
        if wish.prefix is not None:
            continue
        if wish.reserved and not call.plane:
            raise PermissionDenied(
                "RESERVED_NOT_ALLOWED", "reserved addresses of networks are the operators' to give", field="wishes"
            )
        network = known.get(wish.network)
        if network is None or not (call.plane or serves(network, call.project)):
            problem = missing(f"network {wish.network}")
            problem.field = f"wishes[{index}].network"
            raise problem
        check_acquire(network, call.project, plane=call.plane)


async def keep_quota(connection: Connection, call: Call, units: Sequence[Unit]) -> None:
    """The project may have what the call wants, and no other call takes the last of the quota meanwhile.

    Raises:
        ResourceExhausted: QUOTA_EXHAUSTED.
    """
    quota = await quotas.hold(connection, call.project)
    if quota is None:
        return
    # A twin of this call that was faster has taken what both want; it is not wanted twice.
    keys = [call.key(index) for index in range(len(units))]
    known, _ = await addresses.by_requests(connection, [key for key in keys if key])
    families = [unit.family for unit, key in zip(units, keys, strict=True) if key is None or key not in known]
    wanted = Amounts(ipv4_addresses=families.count(4), ipv6_addresses=families.count(6))
    if quota.limits(wanted):
        check_quota(quota, await quotas.held(connection, call.project), wanted)


async def lone_leaves(connection: Connection, call: Call) -> list[Leaf]:
    """The prefixes on their own that the call names: the plane's, and of the project of their namespace."""
    found: dict[int, Leaf] = {}
    for index, wish in enumerate(call.wishes):
        if wish.prefix is None:
            continue
        leaf = await prefixes.lone_leaf(connection, wish)
        if leaf is None or not (call.plane or leaf[1] == call.project):
            problem = missing(wish.source)
            problem.field = f"wishes[{index}].prefix"
            raise problem
        found[leaf[0].id] = leaf[0]
    return list(found.values())


async def earlier_of(connection: Connection, call: Call, count: int) -> list[Ip]:
    """What this request got before; empty when it is new."""
    keys = [key for index in range(count) if (key := call.key(index))]
    found, spent = await addresses.by_requests(connection, keys)
    if any(request_hash != call.request_hash for _, request_hash in found.values()):
        raise requests.reused()
    if spent or (found and len(found) < count):
        raise requests.spent()
    return [found[key][0] for key in keys] if found else []


async def earlier_of_any(connection: Connection, call: Call) -> list[Ip]:
    """As `earlier_of`, while it is not known how many addresses the networks come to. All were got at once, so what is
    there is all, unless some were released since."""
    most = sum(wish.most for wish in call.wishes)
    keys = [key for index in range(most) if (key := call.key(index))]
    found, spent = await addresses.by_requests(connection, keys)
    if any(request_hash != call.request_hash for _, request_hash in found.values()):
        raise requests.reused()
    if spent:
        raise requests.spent()
    return [found[key][0] for key in keys if key in found]


def check(call: Call, unit: Unit, result: Acquired) -> None:
    match result.outcome:
        case "ok":
            return
        case "request_reused":
            raise requests.reused()
        case "request_spent":
            raise requests.spent()
        case "taken":
            # Who has it is for those to know who may see it.
            tell = call.plane or result.holder_project == call.project
            holder = result.holder if tell else Owner()
            raise AlreadyExists(
                "ADDRESS_TAKEN",
                f"{unit.address} of network {unit.network} is taken" + (f" by {holder}" if holder else ""),
                metadata={"address": str(unit.address), "owner_kind": holder.kind, "owner": holder.id},
            )
        case "reserved":
            raise FailedPrecondition("ADDRESS_RESERVED", f"{unit.address} is reserved in network {unit.network}")
        case "quarantine":
            raise FailedPrecondition("ADDRESS_RESTS", f"{unit.address} was released a short while ago and rests still")
        case _:
            raise Outrun


def ip_in(call: Call, unit: Unit, result: Acquired, leaves: Sequence[Leaf]) -> Ip:
    return ip_of(call, home_of(unit, result, leaves), result)


def ip_of(call: Call, home: Leaf, result: Acquired) -> Ip:
    address: Address | None = result.address
    assert address is not None
    return Ip(
        address=address,
        namespace_id=home.namespace_id,
        namespace=home.namespace,
        prefix_id=home.id,
        network=home.network if " " not in home.network else "",
        prefix=home.cidr,
        project=call.project,
        type=call.type,
        owner=call.owner,
        name=call.name,
        description=call.description,
        dns_name=call.dns_name,
        labels=call.labels,
        create_time=result.time,
    )


def home_of(unit: Unit, result: Acquired, leaves: Sequence[Leaf]) -> Leaf:
    """The prefix of an address that was got.

    Raises:
        Aborted: CONCURRENT_CHANGE; a twin of the request was faster, for which another network was chosen.
    """
    address: Address | None = result.address
    assert address is not None
    for leaf in leaves:
        if leaf.network == unit.network and contains(leaf.cidr, address):
            return leaf
    raise Aborted("CONCURRENT_CHANGE", "the same request is being served with another network; try again")
