"""Creating, changing and deleting networks, each in the caller's one transaction.

Row, prefixes, VRF number and event come and go together: there is no moment at which one of them exists without the
others, so nothing has to be cleaned up after a crash.
"""

from __future__ import annotations

from dataclasses import replace

from metal_kit.db import Connection
from metal_kit.errors import Aborted, FailedPrecondition
from metal_kit.etag import check_etag
from metal_kit.identity import missing

from metal_ipam.addresses import Owner
from metal_ipam.cidr import Prefix
from metal_ipam.network_fields import check_new, check_updated
from metal_ipam.networks import (
    Lengths,
    Network,
    NetworkType,
    check_announcable_update,
    check_deletable,
    child_lengths,
    inherited,
)
from metal_ipam.quotas import Amounts
from metal_ipam.quotas import check as check_quota
from metal_ipam.store import children, copies, namespaces, networks, numbers, prefixes, quotas

NETWORK_OWNER = "network"


async def create(connection: Connection, draft: Network, length: Lengths, *, new_id: str, actor: str) -> Network:
    """Create the network; `new_id` is the id of a child.

    Raises:
        InvalidArgument, FailedPrecondition: the rules of `networks`.
        NotFound: the parent does not exist, or the partition has no super network.
        AlreadyExists: id, name, place, VRF or prefix is taken, in the namespace of a child's project too.
        ResourceExhausted: no child prefix or no VRF number is free, or the project's quota of prefixes is used up.
    """
    check_new(draft, length)
    if draft.type.is_child:
        return await _create_child(connection, replace(draft, id=new_id), length, actor=actor)
    await networks.insert(connection, replace(draft, vrf=0))
    if draft.vrf:
        await _take_vrf(connection, draft, actor=actor)
    # A namespaced super network has no prefixes but the copies that projects get with their first child.
    if draft.type is not NetworkType.SUPER_NAMESPACED:
        for cidr in draft.prefixes:
            await _add_prefix(connection, draft, cidr, actor=actor)
    return await _read(connection, draft.id)


async def update(
    connection: Connection, before: Network, after: Network, *, actor: str, force: bool = False
) -> Network:
    """Write what differs between the two; `before` is what the caller saw, `force` is for `check_announcable_update`.

    Raises:
        InvalidArgument, FailedPrecondition: the rules of `networks`, a removed prefix that is in use.
        AlreadyExists: name or prefix is taken.
        Aborted: the network has changed since `before` was read.
    """
    check_updated(before, after)
    current = await networks.get(connection, before.id, lock="FOR UPDATE")
    if current is None:
        raise missing(f"network {before.id}")
    check_etag(str(before.version), current.version, what=f"network {before.id}")
    has_children = bool(await networks.children(connection, before.id, limit=1))
    check_announcable_update(current, after, has_children=has_children, force=force)
    removed = [cidr for cidr in current.prefixes if cidr not in after.prefixes]
    added = [cidr for cidr in after.prefixes if cidr not in current.prefixes]
    # Nobody makes a copy meanwhile, or takes one away: who does holds the network's row.
    copied = after.type is NetworkType.SUPER_NAMESPACED
    homes = await copies.hold(connection, before.id) if copied and (removed or added) else []
    if removed:
        await children.delete_of(connection, before.id, removed, actor=actor)
    if copied:
        await copies.add(connection, after, homes, added, actor=actor)
    else:
        for cidr in added:
            await _add_prefix(connection, after, cidr, actor=actor)
    if not await networks.update(connection, after, seen=current.version):
        raise Aborted("CONCURRENT_CHANGE", f"network {before.id} changed meanwhile; read it again")
    return await _read(connection, before.id)


async def delete(connection: Connection, network_id: str, etag: str, *, actor: str) -> Network:
    """Delete the network and give its prefixes and its own VRF number back; its last state.

    Raises:
        NotFound: there is none.
        Aborted: it is not the version that `etag` names.
        FailedPrecondition: NETWORK_IN_USE, naming what is in the way.
    """
    network = await networks.get(connection, network_id, lock="FOR UPDATE")
    if network is None:
        raise missing(f"network {network_id}")
    check_etag(etag, network.version, what=f"network {network_id}")
    below = await networks.children(connection, network_id)
    in_use = await prefixes.addresses_in_use(connection, network_id)
    check_deletable(network, children=below, addresses=in_use)
    copied = network.type.is_child and network.namespace != namespaces.DEFAULT
    if copied:  # Its parent keeps its prefixes while the copy of them may go.
        await networks.get(connection, network.parent, lock="FOR KEY SHARE")
    if network.vrf_owned:  # An inherited number stays with the parent, which other children share.
        await numbers.release(connection, _owner(network_id), pool=numbers.VRF_POOL, actor=actor)
    home = await namespaces.hold_of_project(connection, network.project) if copied else 0
    await children.delete_of(connection, network_id, actor=actor)
    await networks.delete(connection, network_id)
    if copied:
        await copies.drop_unused(connection, network.parent, home, actor=actor)
    return network


async def _create_child(connection: Connection, draft: Network, length: Lengths, *, actor: str) -> Network:
    quota = await quotas.hold(connection, draft.project)
    parent = await _parent(connection, draft)
    child = inherited(draft, parent)
    wanted = child_lengths(parent, length)
    if quota and quota.prefixes is not None:
        check_quota(quota, await quotas.held(connection, draft.project), Amounts(prefixes=len(wanted)))
    await networks.insert(connection, replace(child, vrf=parent.vrf))
    if not parent.vrf:
        await _take_vrf(connection, child, actor=actor)
    home = prefixes.DEFAULT_NAMESPACE
    if parent.type is NetworkType.SUPER_NAMESPACED:
        home = await copies.provide(connection, parent, child.project, actor=actor)
        await networks.set_namespace(connection, child.id, home)
    containers = await prefixes.lock_containers(connection, parent.id, home)
    for family, prefix_length in wanted.items():
        of_family = [p for p in containers if p.cidr.version == family]
        if not of_family:  # Taken out of the parent since it was read.
            raise Aborted("CONCURRENT_CHANGE", f"network {parent.id} changed meanwhile; try again")
        await children.cut_for(connection, child.id, of_family, prefix_length, quarantine=child.quarantine, actor=actor)
    return await _read(connection, child.id)


async def _parent(connection: Connection, draft: Network) -> Network:
    parent_id: str | None = draft.parent
    if not parent_id:
        parent_id = await networks.super_of_partition(connection, draft.partition)
        if parent_id is None:
            raise FailedPrecondition("NO_SUPER_NETWORK", f"partition {draft.partition} has no super network")
    # Locked against deletion, lest the child's row refers to nothing.
    parent = await networks.get(connection, parent_id, lock="FOR KEY SHARE")
    if parent is None:
        problem = missing(f"network {parent_id}")
        problem.field = "network.parent"
        raise problem
    return parent


async def _take_vrf(connection: Connection, network: Network, *, actor: str) -> None:
    number = await numbers.acquire(
        connection,
        numbers.VRF_POOL,
        _owner(network.id),
        number=network.vrf,
        project=network.project,
        actor=actor,
        field="network.vrf",
    )
    await networks.set_vrf(connection, network.id, number)


async def _add_prefix(connection: Connection, network: Network, cidr: Prefix, *, actor: str) -> None:
    container = network.type is NetworkType.SUPER
    await prefixes.create_root(
        connection, network.id, cidr, container=container, quarantine=network.quarantine, actor=actor
    )


async def _read(connection: Connection, network_id: str) -> Network:
    network = await networks.get(connection, network_id)
    assert network is not None  # Written in this very transaction.
    return network


def _owner(network_id: str) -> Owner:
    return Owner(NETWORK_OWNER, network_id)
