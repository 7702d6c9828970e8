"""NetworkService."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

from google.protobuf.empty_pb2 import Empty
from metal_kit import idempotency, watch
from metal_kit.db import Connection, Database
from metal_kit.errors import PermissionDenied
from metal_kit.etag import check_etag
from metal_kit.fieldmask import apply_update
from metal_kit.identity import Caller, current_caller, missing
from metal_kit.ids import uuid7
from metal_kit.outbox import emit
from metal_kit.paging import Paging
from metal_kit.validation import check
from metalplane.common.v1.access_pb2 import PlaneRole, Role
from metalplane.ipam.v1 import events_pb2
from metalplane.ipam.v1 import network_pb2 as pb
from metalplane.ipam.v1.network_pb2_grpc import NetworkServiceServicer

from metal_ipam import network_changes
from metal_ipam.api import watching
from metal_ipam.api.messages import lengths_of, network_message, network_of, network_type
from metal_ipam.networks import Network, NetworkType
from metal_ipam.store import copies, networks, prefixes

CREATE = "/metalplane.ipam.v1.NetworkService/CreateNetwork"
MUTABLE = (
    "name", "description", "labels", "prefixes", "destination_prefixes", "default_child_prefix_length",
    "min_child_prefix_length", "additional_announcable_prefixes",
)  # fmt: skip


@dataclass(slots=True)
class NetworkApi(NetworkServiceServicer):
    """Networks."""

    db: Database
    paging: Paging
    stopping: asyncio.Event
    # How long released addresses of new networks rest; children take it from their parent.
    rest: timedelta = timedelta(0)

    async def CreateNetwork(self, request: pb.CreateNetworkRequest, context: Any) -> pb.Network:
        caller = current_caller()
        draft = replace(network_of(request.network), quarantine=self.rest)
        if not draft.type.is_child:
            _require_operator(caller, "creating this type of network")
        call = {"caller": caller.label, "method": CREATE, "request_id": request.request_id}
        async with self.db.transaction(purpose="create a network") as connection:
            known = await idempotency.remembered(connection, **call, request=request, response_type=pb.Network)
            if known is not None:
                return known
            network = await network_changes.create(
                connection, draft, lengths_of(request.length), new_id=uuid7(), actor=caller.label
            )
            [message] = await network_messages(connection, [network])
            await tell_changed(connection, message, network)
            await idempotency.remember(connection, **call, request=request, response=message)
        return message

    async def GetNetwork(self, request: pb.GetNetworkRequest, context: Any) -> pb.Network:
        async with self.db.connection() as connection:
            network = _visible(await networks.get(connection, request.id), request.id)
            [message] = await network_messages(connection, [network])
        return message

    async def ListNetworks(self, request: pb.ListNetworksRequest, context: Any) -> pb.ListNetworksResponse:
        caller = current_caller()
        visible_to = _visible_to(caller)
        kind = network_type(request.type)
        filters = (request.project, kind or "", request.partition, request.parent)
        filter_key = f"networks:{filters}:{'' if visible_to is None else caller.label}"
        page = self.paging.page(request.page_size, request.page_token, filter_key=filter_key)
        async with self.db.connection() as connection:
            rows = await networks.page(
                connection,
                visible_to=visible_to,
                project=request.project,
                kind=kind,
                partition=request.partition,
                parent=request.parent,
                after=page.after_text(),
                limit=page.limit,
            )
            shown, token = page.cut(rows, lambda row: (row.id,))
            messages = await network_messages(connection, shown)
        return pb.ListNetworksResponse(networks=messages, next_page_token=token)

    async def WatchNetworks(
        self, request: pb.WatchNetworksRequest, context: Any
    ) -> AsyncIterator[pb.WatchNetworksResponse]:
        caller = current_caller()

        def told(message: pb.Network) -> bool:
            return (
                request.project in {"", message.project}
                and request.network in {"", message.id}
                and (may_see(caller, network_of(message)))
            )

        position = request.position
        if not position:
            async with self.db.connection() as connection:
                position = await watch.current_position(connection)
            async for page in self._present(caller):
                changes = [watching.network_change(message) for message in page if told(message)]
                yield pb.WatchNetworksResponse(changes=changes)
            # Read after the position was taken: nothing falls between the two.
            yield pb.WatchNetworksResponse(position=position)
        async for response in watching.follow_networks(self.db, self.stopping, told, position=position):
            yield response

    async def _present(self, caller: Caller) -> AsyncIterator[list[pb.Network]]:
        after = ""
        while True:
            async with self.db.connection() as connection:
                rows = await networks.page(
                    connection, visible_to=_visible_to(caller), project="", kind=None, partition="", parent="",
                    after=after, limit=watching.BATCH,
                )  # fmt: skip
                messages = await network_messages(connection, rows)
            if rows:
                yield messages
            if len(rows) < watching.BATCH:
                return
            after = rows[-1].id

    async def UpdateNetwork(self, request: pb.UpdateNetworkRequest, context: Any) -> pb.Network:
        caller = current_caller()
        wanted = request.network
        async with self.db.transaction(purpose="update a network") as connection:
            before = _visible(await networks.get(connection, wanted.id), wanted.id)
            _require_editor(caller, before)
            check_etag(wanted.etag, before.version, what=f"network {before.id}")
            target = network_message(before)
            apply_update(target, wanted, request.update_mask, mutable=MUTABLE)
            check(target, field="network")
            after = replace(network_of(target), vrf_owned=before.vrf_owned, quarantine=before.quarantine)
            network = await network_changes.update(connection, before, after, actor=caller.label, force=request.force)
            [message] = await network_messages(connection, [network])
            await tell_changed(connection, message, network)
        return message

    async def DeleteNetwork(self, request: pb.DeleteNetworkRequest, context: Any) -> Empty:
        caller = current_caller()
        async with self.db.transaction(purpose="delete a network") as connection:
            network = _visible(await networks.get(connection, request.id), request.id)
            _require_editor(caller, network)
            last = await network_changes.delete(connection, network.id, request.etag, actor=caller.label)
            await emit(
                connection,
                subject="metalplane.ipam.network.deleted",
                entity="network",
                entity_id=last.id,
                version=last.version + 1,
                payload=events_pb2.NetworkDeleted(network=network_message(last)),
                partition=last.partition,
                scope=last.project,
                deleted=True,
            )
        return Empty()


def may_see(caller: Caller, network: Network) -> bool:
    """Whether the caller may know of the network: the plane of all, a user of what one of his projects may use."""
    if caller.may_plane(PlaneRole.PLANE_ROLE_VIEWER):
        return True
    if network.type is NetworkType.CHILD_SHARED:
        return caller.authenticated
    if network.project:
        return caller.may_project(network.project, Role.ROLE_VIEWER)
    return caller.authenticated and (network.type.is_super or network.type is NetworkType.EXTERNAL)


def _visible_to(caller: Caller) -> list[str] | None:
    """Projects whose networks the caller sees, None for all of them."""
    return None if caller.may_plane(PlaneRole.PLANE_ROLE_VIEWER) else sorted(caller.projects)


def _visible(network: Network | None, network_id: str) -> Network:
    if network is None or not may_see(current_caller(), network):
        raise missing(f"network {network_id}")
    return network


def _require_editor(caller: Caller, network: Network) -> None:
    """Children are their project's to change; everything else is the operators'."""
    if network.type.is_child:
        if not caller.may_project(network.project, Role.ROLE_EDITOR):
            raise PermissionDenied(
                "ROLE_TOO_SMALL", f"this needs the role editor in the project of network {network.id}"
            )
    else:
        _require_operator(caller, "changing this type of network")


def _require_operator(caller: Caller, what: str) -> None:
    if not caller.may_plane(PlaneRole.PLANE_ROLE_OPERATOR):
        raise PermissionDenied("OPERATOR_NEEDED", f"{what} is for operators of the plane")


async def network_messages(connection: Connection, rows: Sequence[Network]) -> list[pb.Network]:
    """Messages with how full each network is: at most three statements however many networks."""
    copied = [row for row in rows if row.type is NetworkType.SUPER_NAMESPACED]
    of_network = await prefixes.of_networks(
        connection, [row.id for row in rows if row.type is not NetworkType.SUPER_NAMESPACED]
    )
    supers = [row.id for row in rows if row.type is NetworkType.SUPER]
    blocks = await prefixes.free_blocks(connection, supers) if supers else {}
    accounts = await copies.accounts(connection, copied) if copied else {}
    return [network_message(row, of_network.get(row.id, ()), blocks, accounts) for row in rows]


async def tell_changed(connection: Connection, message: pb.Network, network: Network) -> None:
    """Emit the event of a change, in its transaction."""
    await emit(
        connection,
        subject="metalplane.ipam.network.changed",
        entity="network",
        entity_id=network.id,
        version=network.version,
        payload=events_pb2.NetworkChanged(network=message),
        partition=network.partition,
        scope=network.project,
    )
