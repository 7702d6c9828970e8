"""IpService."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from google.protobuf.empty_pb2 import Empty
from metal_kit import watch
from metal_kit.db import Connection, Database
from metal_kit.errors import Aborted, FailedPrecondition, InvalidArgument, PermissionDenied
from metal_kit.etag import check_etag
from metal_kit.fieldmask import apply_update
from metal_kit.identity import current_caller, missing, require_project
from metal_kit.paging import Paging
from metal_kit.timestamps import parse_timestamp
from metal_kit.validation import check
from metalplane.common.v1.access_pb2 import (
    PLANE_ROLE_OPERATOR,
    PLANE_ROLE_VIEWER,
    ROLE_EDITOR,
    ROLE_VIEWER,
    Role,
)
from metalplane.ipam.v1 import ip_pb2 as pb
from metalplane.ipam.v1.ip_pb2_grpc import IpServiceServicer

from metal_ipam.acquisition import Acquisition
from metal_ipam.addresses import Ip, IpType
from metal_ipam.api import watching
from metal_ipam.api.exchange import Exchange
from metal_ipam.api.messages import ip_message, ip_type_of, owner_of, wish_of
from metal_ipam.call import Call, in_use
from metal_ipam.cidr import parse_address
from metal_ipam.requests import content_hash
from metal_ipam.store import address_pages, addresses, owners
from metal_ipam.store.addresses import Release

MUTABLE = ("name", "description", "dns_name", "labels", "type")
# A release that names more projects is dearer than a look at the address.
MOST_PROJECTS = 16


@dataclass(slots=True)
class IpApi(IpServiceServicer):
    """Addresses."""

    db: Database
    paging: Paging
    acquisition: Acquisition
    stopping: asyncio.Event

    async def AcquireIps(self, request: pb.AcquireIpsRequest, context: Any) -> pb.AcquireIpsResponse:
        caller = current_caller()
        owner = owner_of(request.owner, field="owner")
        if owner and not caller.is_service:
            raise PermissionDenied("OWNER_NOT_ALLOWED", "only services acquire for an owner; leave it out")
        call = Call(
            project=request.project,
            wishes=[wish_of(wish, index) for index, wish in enumerate(request.wishes)],
            owner=owner,
            type=ip_type_of(request.type),
            name=request.name,
            description=request.description,
            dns_name=request.dns_name,
            labels=dict(request.labels),
            request_id="" if request.validate_only else request.request_id,
            request_hash=content_hash(request) if request.request_id else "",
            keep=not request.validate_only,
            plane=caller.may_plane(PLANE_ROLE_OPERATOR),
            actor=caller.label,
        )
        if (alike := await self.acquisition.acquire_alike(call)) is not None:
            return _alike(*alike)
        return pb.AcquireIpsResponse(ips=[ip_message(ip) for ip in await self.acquisition.acquire(call)])

    async def ExchangeIps(
        self, requests: AsyncIterator[pb.ExchangeIpsRequest], context: Any
    ) -> AsyncIterator[pb.ExchangeIpsResponse]:
        first = await anext(requests)
        if not first.project:
            raise InvalidArgument("PROJECT_MISSING", "the first message names the project", field="project")
        exchange = Exchange(self.acquisition, current_caller(), first.project, self.stopping)
        async with aclosing(exchange.answers(_after(first, requests))) as responses:
            async for response in responses:
                yield response

    async def GetIp(self, request: pb.GetIpRequest, context: Any) -> pb.Ip:
        async with self.db.connection() as connection:
            ip = await _find(connection, request.address, request.network, ROLE_VIEWER, request.namespace)
        return ip_message(ip)

    async def ListIps(self, request: pb.ListIpsRequest, context: Any) -> pb.ListIpsResponse:
        caller = current_caller()
        visible_to = None if caller.may_plane(PLANE_ROLE_VIEWER) else sorted(caller.projects)
        owner = owner_of(request.owner, field="owner")
        filters = (request.project, request.network, owner.kind, owner.id)
        filter_key = f"ips:{filters}:{'' if visible_to is None else caller.label}"
        page = self.paging.page(request.page_size, request.page_token, filter_key=filter_key)
        async with self.db.connection() as connection:
            rows = await address_pages.page(
                connection,
                visible_to=visible_to,
                project=request.project,
                network=request.network,
                owner=owner,
                after=None if page.after is None else (int(str(page.after[0])), str(page.after[1])),
                limit=page.limit,
            )
        shown, token = page.cut(rows, address_pages.place_of)
        return pb.ListIpsResponse(ips=[ip_message(ip) for ip in shown], next_page_token=token)

    async def WatchIps(self, request: pb.WatchIpsRequest, context: Any) -> AsyncIterator[pb.WatchIpsResponse]:
        interest = watching.IpInterest(current_caller(), request.project, request.network)
        position = request.position
        if not position:
            async with self.db.connection() as connection:
                position = await watch.current_position(connection)
            async for page in watching.present_ips(self.db, interest):
                yield pb.WatchIpsResponse(changes=page)
            # Read after the position was taken: nothing falls between the two.
            yield pb.WatchIpsResponse(position=position)
        async for response in watching.follow_ips(self.db, self.stopping, interest, position=position):
            yield response

    async def UpdateIp(self, request: pb.UpdateIpRequest, context: Any) -> pb.Ip:
        wanted = request.ip
        async with self.db.transaction(purpose="update an address") as connection:
            before = await _find(connection, wanted.address, wanted.network, ROLE_EDITOR, wanted.namespace)
            check_etag(wanted.etag, before.version, what=f"address {before.address}")
            target = ip_message(before)
            # The address as the caller spells it chooses it, and is no change.
            wanted.address, wanted.network, wanted.namespace = target.address, target.network, target.namespace
            apply_update(target, wanted, request.update_mask, mutable=MUTABLE)
            check(target, field="ip")
            after = replace(
                before,
                name=target.name,
                description=target.description,
                dns_name=target.dns_name,
                labels=dict(target.labels),
                type=ip_type_of(target.type),
            )
            if before.type is IpType.STATIC and after.type is not IpType.STATIC:
                raise FailedPrecondition("IP_IS_STATIC", f"{before.address} is static and stays so; release it instead")
            written = await addresses.update(connection, after, seen=before.version, actor=current_caller().label)
            if written is None:
                raise Aborted("CONCURRENT_CHANGE", f"{before.address} changed meanwhile; read it again")
        return ip_message(written)

    async def ReleaseIp(self, request: pb.ReleaseIpRequest, context: Any) -> Empty:
        seen = parse_timestamp(request.create_time, field="create_time") if request.HasField("create_time") else None
        if request.network and not request.namespace and await self._release_at_once(request, seen):
            return Empty()
        async with self.db.connection() as connection:
            ip = await _find(connection, request.address, request.network, ROLE_EDITOR, request.namespace)
        if seen not in {None, ip.create_time}:
            raise missing(f"address {ip.address} acquired at {seen}")
        await self.acquisition.release(ip, actor=current_caller().label)
        return Empty()

    async def _release_at_once(self, request: pb.ReleaseIpRequest, seen: datetime | None) -> bool:
        """Release in one statement what the caller may; False when the address must be looked at to tell."""
        caller = current_caller()
        projects = None if caller.may_plane(PLANE_ROLE_OPERATOR) else caller.projects_with(ROLE_EDITOR)
        if projects is not None and not 0 < len(projects) <= MOST_PROJECTS:
            return False
        release = Release(parse_address(request.address, field="address"), projects, seen=seen, actor=caller.label)
        released = await self.acquisition.release_at_once(request.network, release)
        if released.outcome != "ok":
            return False
        require_project(released.project, ROLE_EDITOR, what=f"address {request.address}")
        return True

    async def AttachIp(self, request: pb.AttachIpRequest, context: Any) -> pb.Ip:
        owner = owner_of(request.owner, field="owner", required=True)
        async with self.db.transaction(purpose="attach an address") as connection:
            await owners.hold(connection, owner)
            ip = await _find(connection, request.address, request.network, ROLE_EDITOR)
            if ip.project != request.project:
                raise missing(f"address {request.address} of project {request.project}")
            if ip.owner == owner:
                return ip_message(ip)
            if ip.owner:
                raise in_use(ip)
            if not await addresses.attach(connection, ip, owner, actor=current_caller().label):
                raise Aborted("CONCURRENT_CHANGE", f"{ip.address} changed meanwhile; read it again")
        return ip_message(replace(ip, owner=owner, version=ip.version + 1))

    async def ReleaseOwned(self, request: pb.ReleaseOwnedRequest, context: Any) -> pb.ReleaseOwnedResponse:
        owner = owner_of(request.owner, field="owner", required=True)
        released, detached, numbers = await self.acquisition.release_owned(owner, actor=current_caller().label)
        return pb.ReleaseOwnedResponse(released_ips=released, detached_ips=detached, released_numbers=numbers)


def _alike(ip: Ip, texts: Sequence[str]) -> pb.AcquireIpsResponse:
    """The answer with addresses that differ in nothing else."""
    response, first = pb.AcquireIpsResponse(), ip_message(ip)
    add = response.ips.append
    for first.address in texts:
        add(first)  # Which copies it.
    return response


async def _after(
    first: pb.ExchangeIpsRequest, rest: AsyncIterator[pb.ExchangeIpsRequest]
) -> AsyncIterator[pb.ExchangeIpsRequest]:
    yield first
    async for request in rest:
        yield request


async def _find(connection: Connection, address: str, network: str, role: Role.ValueType, namespace: str = "") -> Ip:
    """The one address in use that is meant, if the caller may see it and has the role."""
    what = f"address {address}" + (f" in network {network}" if network else "")
    what += f" in namespace {namespace!r}" if namespace else ""
    caller, wanted = current_caller(), parse_address(address, field="address")
    seen = None if caller.may_plane(PLANE_ROLE_VIEWER) else sorted(caller.projects)
    found = await addresses.find(connection, wanted, network, namespace, projects=seen)
    if not found and seen is not None:  # It may be another project's, which is told nothing, but noted.
        found = await addresses.find(connection, wanted, network, namespace, limit=1)
    if not found:
        raise missing(what)
    for ip in found:
        require_project(ip.project, ROLE_VIEWER, what=what)
    if len(found) > 1:
        raise FailedPrecondition("ADDRESS_AMBIGUOUS", f"{address} exists more than once; name its network or namespace")
    require_project(found[0].project, role, what=what)
    return found[0]
