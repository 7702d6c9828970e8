"""Addresses and the ASN, all owned by the allocation's id."""

from __future__ import annotations

from datetime import timedelta

from metal_kit.clock import Clock
from metal_kit.controller import Failed, Go, Outcome
from metal_kit.errors import FailedPrecondition, NotFound, ResourceExhausted
from metalplane.allocation.v1.allocation_pb2 import AllocationNetwork, MachineNetwork
from metalplane.ipam.v1.ip_pb2 import AcquireIpsRequest, AttachIpRequest, IpType, IpWish, Owner, OwnerKind
from metalplane.ipam.v1.network_pb2 import GetNetworkRequest, NatType, Network
from metalplane.ipam.v1.pool_pb2 import AcquireNumberRequest

from metal_allocation.clients import Clients, derived_request_id, underlay_of
from metal_allocation.networks import PRIVATE, TYPE_NAMES
from metal_allocation.phase import Phase
from metal_allocation.record import Record

ACQUIRED = "AddressesAcquired"
ASN_POOL = "asn"
# Full prefixes are emptied by people, not by retrying: look again now and then, and stay visible meanwhile.
EXHAUSTED_RETRY = timedelta(seconds=30)


async def address(record: Record, clients: Clients, clock: Clock) -> Outcome:
    """Acquire what the machine's networks need, in one call for all of the next-free addresses: all or none."""
    owner = Owner(kind=OwnerKind.OWNER_KIND_ALLOCATION, id=record.id)
    try:
        wanted = await _networks(record, clients)
        parents = [await _parent(network, clients) for network, _ in wanted]
        number = await clients.pools.AcquireNumber(AcquireNumberRequest(pool=ASN_POOL, owner=owner))
        given = await _attach_given(record, clients, owner)
        acquired = await _acquire_free(record, clients, owner, wanted)
    except (ResourceExhausted, FailedPrecondition, NotFound) as problem:
        record.set_condition(ACQUIRED, False, problem.reason, problem.message, clock.now())
        return Failed(problem.reason, problem.message, EXHAUSTED_RETRY)
    record.asn = number.number
    record.networks = [
        machine_network(
            network, ips=given.get(network.id) or acquired.get(network.id, []), asn=number.number, parent=parent
        )
        for (network, _), parent in zip(wanted, parents, strict=True)
    ]
    record.set_condition(ACQUIRED, True, "ACQUIRED", "", clock.now())
    return Go(Phase.INSTALLING, "ADDRESSES_ACQUIRED", ", ".join(ip for each in record.networks for ip in each.ips))


async def _networks(record: Record, clients: Clients) -> list[tuple[Network, AllocationNetwork]]:
    """The networks that were asked for, and for a firewall the underlay."""
    wanted = [
        (await clients.networks.GetNetwork(GetNetworkRequest(id=wish.network)), wish) for wish in record.spec.networks
    ]
    if record.firewall:
        underlay = await underlay_of(clients, record.partition)
        wanted.append((underlay, AllocationNetwork(network=underlay.id)))
    return wanted


async def _attach_given(record: Record, clients: Clients, owner: Owner) -> dict[str, list[str]]:
    """Take over the static addresses that the request names."""
    given: dict[str, list[str]] = {}
    for wish in record.spec.networks:
        for each in wish.ips:
            request = AttachIpRequest(address=each, network=wish.network, project=record.project, owner=owner)
            given.setdefault(wish.network, []).append((await clients.ips.AttachIp(request)).address)
    return given


async def _acquire_free(
    record: Record, clients: Clients, owner: Owner, wanted: list[tuple[Network, AllocationNetwork]]
) -> dict[str, list[str]]:
    """Acquire an address in each family of each network that got none."""
    wishes = [IpWish(network=network.id) for network, wish in wanted if not wish.ips]
    if not wishes:
        return {}
    answer = await clients.ips.AcquireIps(
        AcquireIpsRequest(
            request_id=derived_request_id(record.id, "addresses"),
            project=record.project,
            owner=owner,
            wishes=wishes,
            type=IpType.IP_TYPE_EPHEMERAL,
            name=record.name,
        )
    )
    acquired: dict[str, list[str]] = {}
    for ip in answer.ips:
        acquired.setdefault(ip.network, []).append(ip.address)
    return acquired


async def _parent(network: Network, clients: Clients) -> Network:
    """The super network of a child; an empty one for other networks."""
    if network.type not in PRIVATE or not network.parent:
        return Network()
    parent: Network = await clients.networks.GetNetwork(GetNetworkRequest(id=network.parent))
    return parent


async def say_owners(record: Record, clients: Clients) -> bool:
    """Note which networks the VRFs of an allocation belong to that was made before that was kept; False when it was."""
    unsaid = [each for each in record.networks if each.vrf and not each.vrf_network]
    for each in unsaid:
        network = await clients.networks.GetNetwork(GetNetworkRequest(id=each.network))
        each.vrf_network = owner_of(network, await _parent(network, clients))
    return bool(unsaid)


def owner_of(network: Network, parent: Network) -> str:
    """Id of the network that a network's VRF belongs to: its own, or its super network's, which shares it. Empty for
    one without VRF."""
    if not network.vrf:
        return ""
    return parent.id if network.vrf == parent.vrf else network.id


def machine_network(network: Network, *, ips: list[str], asn: int, parent: Network) -> MachineNetwork:
    """The network as the machine gets it. `parent` is its super network, whose machines may announce more than their
    prefixes; empty for none."""
    return MachineNetwork(
        network=network.id,
        type=TYPE_NAMES[network.type],
        ips=ips,
        prefixes=network.prefixes,
        destination_prefixes=network.destination_prefixes,
        vrf=network.vrf,
        asn=asn,
        private=network.type in PRIVATE,
        nat=network.nat == NatType.NAT_TYPE_IPV4_MASQUERADE,
        additional_announcable_prefixes=parent.additional_announcable_prefixes,
        vrf_network=owner_of(network, parent),
    )
