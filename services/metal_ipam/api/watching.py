"""Following changes of networks and addresses, filtered by what the caller asked for and may see.

Networks have events, and are told as they were at each change. Addresses have none, since a call may take thousands: a
watch of them reads their history instead, and tells how each one is now. It looks every second or so; to be woken,
every acquire would have to notify, and notifications are committed one after the other.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import timedelta

from metal_kit import watch
from metal_kit.backoff import pause
from metal_kit.db import Database
from metal_kit.errors import OutOfRange
from metal_kit.identity import Caller
from metalplane.common.v1.access_pb2 import PlaneRole, Role
from metalplane.common.v1.condition_pb2 import ChangeType
from metalplane.ipam.v1 import ip_pb2, network_pb2
from metalplane.ipam.v1.events_pb2 import NetworkChanged

from metal_ipam.addresses import Ip, ListedIp, Owner
from metal_ipam.api.messages import ip_message
from metal_ipam.store import address_changes, address_pages
from metal_ipam.store.address_changes import AddressChange

BATCH = 500
POLL_SECONDS = 1.0
# How often a watcher who is told nothing gets a new position. Not with each change of others: that is their business.
POSITION_EVERY = 10.0


@dataclass(frozen=True, slots=True)
class IpInterest:
    """Whose addresses are told to whom; empty means all that the caller may see."""

    caller: Caller
    project: str
    network: str

    @property
    def visible_to(self) -> list[str] | None:
        """Projects whose addresses the caller sees, None for all of them."""
        return None if self.caller.may_plane(PlaneRole.PLANE_ROLE_VIEWER) else sorted(self.caller.projects)

    def covers(self, change: AddressChange) -> bool:
        """Whether this change is told. One whose network is gone with the address is told to whom the project is."""
        return (
            self.project in {"", change.project}
            and (not self.network or change.network in {"", self.network})
            and self.caller.may_project(change.project, Role.ROLE_VIEWER)
        )


async def present_ips(db: Database, interest: IpInterest) -> AsyncIterator[list[ip_pb2.WatchedIp]]:
    """The addresses that are there, in batches."""
    place: tuple[int, str] | None = None
    while True:
        async with db.connection() as connection:
            rows = await address_pages.page(
                connection,
                visible_to=interest.visible_to,
                project=interest.project,
                network=interest.network,
                owner=Owner(),
                after=place,
                limit=BATCH,
            )
        if rows:
            yield [_upserted(ip) for ip in rows]
        if len(rows) < BATCH:
            return
        place = address_pages.place_of(rows[-1])


async def follow_ips(
    db: Database, stopping: asyncio.Event, interest: IpInterest, *, position: str
) -> AsyncIterator[ip_pb2.WatchIpsResponse]:
    """Batches of changes after `position` until `stopping` is set.

    Raises:
        InvalidArgument: INVALID_WATCH_POSITION, not a position.
        OutOfRange: WATCH_POSITION_EXPIRED, the position is of another database.
    """
    loop = asyncio.get_running_loop()
    told, place = loop.time(), watch.parse_position(position)
    while not stopping.is_set():
        async with db.connection() as connection:
            batch = await address_changes.after(connection, place, limit=BATCH)
        if place[0] > batch.horizon:
            raise OutOfRange("WATCH_POSITION_EXPIRED", "changes after this position are gone; watch anew")
        place = batch.place
        changes = [_ip_change(change) for change in batch.changes if interest.covers(change)]
        if changes or loop.time() - told >= POSITION_EVERY:
            told = loop.time()
            yield ip_pb2.WatchIpsResponse(changes=changes, position=f"{place[0]}:{place[1]}")
        if not batch.full:
            await pause(stopping, timedelta(seconds=POLL_SECONDS * random.uniform(0.8, 1.2)))


async def follow_networks(
    db: Database, stopping: asyncio.Event, told: Callable[[network_pb2.Network], bool], *, position: str
) -> AsyncIterator[network_pb2.WatchNetworksResponse]:
    """Batches of changes after `position` of the networks that are `told` of, until `stopping` is set.

    Raises: as `watch.follow`.
    """
    loop = asyncio.get_running_loop()
    last = loop.time()
    async for batch in watch.follow(db, stopping, entity="network", position=position):
        changes = []
        for change in batch:
            # Both events have the network in the same place.
            network = NetworkChanged.FromString(change.payload).network
            if told(network):
                changes.append(network_change(network, deleted=change.deleted))
        if changes or loop.time() - last >= POSITION_EVERY:
            last = loop.time()
            yield network_pb2.WatchNetworksResponse(changes=changes, position=batch[-1].position)


def network_change(network: network_pb2.Network, *, deleted: bool = False) -> network_pb2.NetworkChange:
    """The change that a network is there as it is, or gone."""
    kind = ChangeType.CHANGE_TYPE_DELETED if deleted else ChangeType.CHANGE_TYPE_UPSERTED
    return network_pb2.NetworkChange(type=kind, network=network)


def _upserted(ip: Ip | ListedIp) -> ip_pb2.WatchedIp:
    return ip_pb2.WatchedIp(type=ChangeType.CHANGE_TYPE_UPSERTED, ip=ip_message(ip))


def _ip_change(change: AddressChange) -> ip_pb2.WatchedIp:
    if change.ip is not None:
        return _upserted(change.ip)
    gone = ip_pb2.Ip(
        address=str(change.address), network=change.network, project=change.project, namespace=change.namespace
    )
    return ip_pb2.WatchedIp(type=ChangeType.CHANGE_TYPE_DELETED, ip=gone)
