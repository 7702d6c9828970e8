"""Between the contract's messages and the domain's dataclasses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache

from metal_kit.errors import InvalidArgument
from metal_kit.timestamps import to_timestamp, write_timestamp
from metalplane.common.v1.condition_pb2 import AddressFamily
from metalplane.ipam.v1 import ip_pb2, network_pb2, pool_pb2

from metal_ipam.addresses import Ip, IpType, ListedIp, Owner, Wish
from metal_ipam.cidr import Prefix, parse_address, parse_prefix, parse_prefixes
from metal_ipam.networks import FAMILIES, WIDTH, Lengths, Nat, Network, NetworkType
from metal_ipam.store.copies import Account
from metal_ipam.store.namespaces import DEFAULT
from metal_ipam.store.numbers import PoolRow
from metal_ipam.store.prefixes import PrefixRow

INT64_MAX = 2**63 - 1

_TYPES = {
    network_pb2.NETWORK_TYPE_SUPER: NetworkType.SUPER,
    network_pb2.NETWORK_TYPE_SUPER_NAMESPACED: NetworkType.SUPER_NAMESPACED,
    network_pb2.NETWORK_TYPE_CHILD: NetworkType.CHILD,
    network_pb2.NETWORK_TYPE_CHILD_SHARED: NetworkType.CHILD_SHARED,
    network_pb2.NETWORK_TYPE_EXTERNAL: NetworkType.EXTERNAL,
    network_pb2.NETWORK_TYPE_UNDERLAY: NetworkType.UNDERLAY,
}
_TYPE_NUMBERS = {kind: number for number, kind in _TYPES.items()}
_OWNER_KINDS = {
    ip_pb2.OWNER_KIND_ALLOCATION: "allocation",
    ip_pb2.OWNER_KIND_NETWORK: "network",
    ip_pb2.OWNER_KIND_OTHER: "other",
}
_OWNER_NUMBERS = {kind: number for number, kind in _OWNER_KINDS.items()}
_FAMILIES = {AddressFamily.ADDRESS_FAMILY_IPV4: 4, AddressFamily.ADDRESS_FAMILY_IPV6: 6}


def network_type(number: network_pb2.NetworkType.ValueType) -> NetworkType | None:
    """The type, None for unspecified."""
    return _TYPES.get(number)


def network_of(message: network_pb2.Network) -> Network:
    """The network that a message describes, without what is output only.

    Raises:
        InvalidArgument: a prefix is not canonical, or the type is missing.
    """
    kind = _TYPES.get(message.type)
    if kind is None:
        raise InvalidArgument("NETWORK_TYPE_MISSING", "is required", field="network.type")
    masquerade = message.nat == network_pb2.NAT_TYPE_IPV4_MASQUERADE
    return Network(
        id=message.id,
        type=kind,
        project=message.project,
        partition=message.partition,
        parent=message.parent,
        prefixes=parse_prefixes(message.prefixes, field="network.prefixes"),
        destination_prefixes=parse_prefixes(message.destination_prefixes, field="network.destination_prefixes"),
        additional_announcable_prefixes=parse_prefixes(
            message.additional_announcable_prefixes, field="network.additional_announcable_prefixes"
        ),
        default_child=lengths_of(message.default_child_prefix_length),
        min_child=lengths_of(message.min_child_prefix_length),
        vrf=message.vrf,
        nat=Nat.IPV4_MASQUERADE if masquerade else Nat.NONE,
        name=message.name,
        description=message.description,
        labels=dict(message.labels),
    )


def lengths_of(message: network_pb2.PrefixLengths) -> Lengths:
    """Prefix lengths per family."""
    return Lengths(message.ipv4, message.ipv6)


def network_message(
    network: Network,
    prefixes: Sequence[PrefixRow] = (),
    free_blocks: Mapping[tuple[str, int], Mapping[int, int]] | None = None,
    copies: Mapping[tuple[str, int], Account] | None = None,
) -> network_pb2.Network:
    """The message of a network; with its prefixes, or the account of their copies, also how full it is."""
    message = network_pb2.Network(
        id=network.id,
        type=_TYPE_NUMBERS[network.type],
        project=network.project,
        partition=network.partition,
        parent=network.parent,
        prefixes=[str(cidr) for cidr in network.prefixes],
        destination_prefixes=[str(cidr) for cidr in network.destination_prefixes],
        vrf=network.vrf,
        nat=network_pb2.NAT_TYPE_IPV4_MASQUERADE if network.nat is Nat.IPV4_MASQUERADE else network_pb2.NAT_TYPE_NONE,
        additional_announcable_prefixes=[str(cidr) for cidr in network.additional_announcable_prefixes],
        name=network.name,
        description=network.description,
        labels=dict(network.labels),
        etag=str(network.version),
        create_time=to_timestamp(network.create_time),
        update_time=to_timestamp(network.update_time),
        namespace=network.namespace,
    )
    if network.default_child:
        message.default_child_prefix_length.CopyFrom(_lengths_message(network.default_child))
    if network.min_child:
        message.min_child_prefix_length.CopyFrom(_lengths_message(network.min_child))
    for family in FAMILIES:
        rows = [row for row in prefixes if row.cidr.version == family]
        target = message.ipv4 if family == 4 else message.ipv6
        if (account := (copies or {}).get((network.id, family))) is not None:
            target.used_prefixes = _saturated(account.children)
            target.free_prefixes = _saturated(account.fewest_free)
            target.SetInParent()  # Also when both are 0.
        if rows:
            blocks = (free_blocks or {}).get((network.id, family), {})
            target.CopyFrom(_consumption(rows, blocks, network.default_child.of(family), WIDTH[family]))
    return message


@lru_cache(maxsize=4096)
def _text(prefix: Prefix | str) -> str:
    """Many addresses have the same prefix, and to write one takes longer than all else of a message."""
    return str(prefix)


def ip_message(ip: Ip | ListedIp) -> ip_pb2.Ip:
    """The message of an address."""
    message = ip_pb2.Ip(
        address=str(ip.address),
        network=ip.network,
        prefix=_text(ip.prefix),
        project=ip.project,
        type=ip_pb2.IP_TYPE_STATIC if ip.type is IpType.STATIC else ip_pb2.IP_TYPE_EPHEMERAL,
        etag=str(ip.version),
        namespace=ip.namespace,
    )
    # Most addresses have none of these, and a map is dear even when nothing is put into it.
    if ip.name or ip.description or ip.dns_name:
        message.name, message.description, message.dns_name = ip.name, ip.description, ip.dns_name
    if ip.labels:
        message.labels.update(ip.labels)
    if ip.create_time is not None:
        write_timestamp(message.create_time, ip.create_time)
    if ip.owner:
        message.owner.CopyFrom(owner_message(ip.owner))
    return message


def ip_type_of(number: ip_pb2.IpType.ValueType) -> IpType:
    """Ephemeral unless the request says static."""
    return IpType.STATIC if number == ip_pb2.IP_TYPE_STATIC else IpType.EPHEMERAL


def family_of(number: AddressFamily.ValueType) -> int:
    """4, 6, or 0 for unspecified."""
    return _FAMILIES.get(number, 0)


def owner_of(message: ip_pb2.Owner, *, field: str, required: bool = False) -> Owner:
    """The owner; kind and id come together or not at all.

    Raises:
        InvalidArgument: OWNER_INCOMPLETE.
    """
    kind = _OWNER_KINDS.get(message.kind, "")
    if bool(kind) != bool(message.id) or (required and not kind):
        raise InvalidArgument("OWNER_INCOMPLETE", "needs both a kind and an id", field=field)
    return Owner(kind, message.id)


def owner_message(owner: Owner) -> ip_pb2.Owner:
    """The message of an owner."""
    return ip_pb2.Owner(kind=_OWNER_NUMBERS[owner.kind], id=owner.id)


def wish_of(message: ip_pb2.IpWish, index: int) -> Wish:
    """What one entry of AcquireIps wishes for."""
    where = f"wishes[{index}]"
    address = parse_address(message.address, field=f"{where}.address") if message.address else None
    prefix = parse_prefix(message.prefix, field=f"{where}.prefix") if message.prefix else None
    if [bool(message.network), bool(prefix), bool(message.network_labels)].count(True) != 1:
        raise InvalidArgument(
            "NETWORK_OR_PREFIX",
            "say either the network, or labels to choose it by, or the prefix",
            field=f"{where}.network",
        )
    if message.namespace and not prefix:
        raise InvalidArgument("NAMESPACE_WITHOUT_PREFIX", "goes with a prefix only", field=f"{where}.namespace")
    if message.from_reserved and not address:
        raise InvalidArgument("WISH_CONTRADICTS_ITSELF", "needs a specific address", field=f"{where}.from_reserved")
    return Wish(
        network=message.network,
        address=address,
        family=_FAMILIES.get(message.family, 0),
        count=message.count or 1,
        prefix=prefix,
        namespace=message.namespace or DEFAULT if prefix else "",
        reserved=message.from_reserved,
        labels=dict(message.network_labels),
    )


def pool_message(row: PoolRow) -> pool_pb2.Pool:
    """The message of a pool."""
    return pool_pb2.Pool(id=row.name, min=row.min, max=row.max, used=row.used, free=row.size - row.used)


def number_message(pool: str, number: int, owner: Owner) -> pool_pb2.PoolNumber:
    """The message of a number in use."""
    return pool_pb2.PoolNumber(pool=pool, number=number, owner=owner_message(owner))


def _consumption(
    rows: Sequence[PrefixRow], blocks: Mapping[int, int], child_length: int, width: int
) -> network_pb2.Consumption:
    leaves = [row for row in rows if row.kind == "leaf"]
    # A free block of length l holds 2 ** (length - l) children of the default length; a smaller block holds none.
    fitting = sum(
        count << (child_length - length) for length, count in blocks.items() if length <= child_length <= width
    )
    return network_pb2.Consumption(
        total_ips=_saturated(sum(row.size - row.reserved for row in leaves)),
        used_ips=_saturated(sum(row.used for row in leaves)),
        free_ips=_saturated(sum(row.free for row in leaves)),
        used_prefixes=_saturated(sum(row.children for row in rows)),
        free_prefixes=_saturated(fitting),
    )


def _lengths_message(lengths: Lengths) -> network_pb2.PrefixLengths:
    return network_pb2.PrefixLengths(ipv4=lengths.ipv4, ipv6=lengths.ipv6)


def _saturated(value: int) -> int:
    return min(value, INT64_MAX)
