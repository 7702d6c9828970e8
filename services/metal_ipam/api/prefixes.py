"""PrefixService: what changes prefixes, and single ones. What it reports is in `prefix_reports`."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import asyncpg
from google.protobuf.empty_pb2 import Empty
from metal_kit import idempotency
from metal_kit.db import Connection
from metal_kit.errors import Aborted, InvalidArgument
from metal_kit.etag import check_etag
from metal_kit.fieldmask import apply_update
from metal_kit.identity import current_caller
from metal_kit.validation import check
from metalplane.common.v1.condition_pb2 import AddressFamily
from metalplane.ipam.v1 import prefix_pb2 as pb
from metalplane.ipam.v1.prefix_pb2_grpc import PrefixServiceServicer

from metal_ipam import prefix_changes
from metal_ipam.api.networks import network_messages, tell_changed
from metal_ipam.api.prefix_messages import STATUSES, kind_of, prefix_message, prefix_of, range_message
from metal_ipam.api.prefix_reports import PrefixReports
from metal_ipam.cidr import Address, Prefix, parse_address, parse_prefix
from metal_ipam.networks import Network
from metal_ipam.requests import content_hash
from metal_ipam.store import namespaces, prefixes
from metal_ipam.store.children import Wanted
from metal_ipam.store.namespaces import DEFAULT
from metal_ipam.store.prefixes import PrefixRow

CREATE = "/metalplane.ipam.v1.PrefixService/CreatePrefix"
MUTABLE = ("labels", "description", "status", "quarantine")
_FAMILIES = {AddressFamily.ADDRESS_FAMILY_IPV4: 4, AddressFamily.ADDRESS_FAMILY_IPV6: 6}
# How often a request may be outrun by a twin of it.
ATTEMPTS = 5


class PrefixApi(PrefixReports, PrefixServiceServicer):
    """Prefixes."""

    async def CreatePrefix(self, request: pb.CreatePrefixRequest, context: Any) -> pb.Prefix:
        caller = current_caller()
        draft = prefix_of(request.prefix)
        call = {"caller": caller.label, "method": CREATE, "request_id": request.request_id}
        async with self.db.transaction(purpose="create a prefix") as connection:
            known = await idempotency.remembered(connection, **call, request=request, response_type=pb.Prefix)
            if known is not None:
                return known
            row, network = await prefix_changes.create(connection, draft, actor=caller.label)
            await _tell(connection, network)
            message = prefix_message(row)
            await idempotency.remember(connection, **call, request=request, response=message)
        return message

    async def GetPrefix(self, request: pb.GetPrefixRequest, context: Any) -> pb.Prefix:
        cidr = parse_prefix(request.cidr, field="cidr")
        async with self.db.connection() as connection:
            return prefix_message(await prefix_changes.find(connection, request.namespace, cidr))

    async def ListPrefixes(self, request: pb.ListPrefixesRequest, context: Any) -> pb.ListPrefixesResponse:
        parent = parse_prefix(request.parent, field="parent") if request.parent else None
        filter_key = f"prefixes:{(request.network, request.namespace, request.parent)}"
        page = self.paging.page(request.page_size, request.page_token, filter_key=filter_key)
        async with self.db.connection() as connection:
            namespace_id = parent_id = None
            if parent is not None:
                parent_id = (await prefix_changes.find(connection, request.namespace, parent)).id
            elif request.namespace:
                namespace_id = (await namespaces.get(connection, request.namespace)).id
            rows = await prefixes.page(
                connection,
                network=request.network,
                namespace_id=namespace_id,
                parent_id=parent_id,
                after=None if page.after is None else (int(str(page.after[0])), str(page.after[1])),
                limit=page.limit,
            )
        shown, token = page.cut(rows, lambda row: (row.namespace_id, str(row.cidr)))
        return pb.ListPrefixesResponse(prefixes=[prefix_message(row) for row in shown], next_page_token=token)

    async def UpdatePrefix(self, request: pb.UpdatePrefixRequest, context: Any) -> pb.Prefix:
        wanted = request.prefix
        cidr = parse_prefix(wanted.cidr, field="prefix.cidr")
        async with self.db.transaction(purpose="update a prefix") as connection:
            before = await prefix_changes.find(connection, wanted.namespace, cidr, lock=True)
            check_etag(wanted.etag, before.version, what=f"prefix {cidr}")
            target = prefix_message(before)
            wanted.namespace = before.namespace  # Empty is a way to say `default`, and no change.
            apply_update(target, wanted, request.update_mask, mutable=MUTABLE)
            check(target, field="prefix")
            after = replace(
                before,
                labels=dict(target.labels),
                description=target.description,
                status=STATUSES[target.status],
                quarantine=timedelta(milliseconds=target.quarantine.ToMilliseconds()),
            )
            await prefixes.update(connection, after)
        return prefix_message(replace(after, version=before.version + 1))

    async def DeletePrefix(self, request: pb.DeletePrefixRequest, context: Any) -> Empty:
        cidr = parse_prefix(request.cidr, field="cidr")
        actor = current_caller().label
        if await self.family.delete(request.namespace or DEFAULT, cidr, actor=actor):
            return Empty()
        async with self.db.transaction(purpose="delete a prefix") as connection:
            row = await prefix_changes.find(connection, request.namespace, cidr)
            await prefix_changes.delete(connection, row, actor=actor)
        return Empty()

    async def AcquireChildPrefix(self, request: pb.AcquireChildPrefixRequest, context: Any) -> pb.Prefix:
        caller = current_caller()
        wanted = Wanted(
            length=request.length,
            cidr=parse_prefix(request.cidr, field="cidr") if request.cidr else None,
            container=kind_of(request.kind) == "container",
            all_usable=request.all_usable,
            labels=dict(request.labels),
            description=request.description,
            # Ids of addresses' requests begin with a project, which has no space in it.
            request_id=f"child of {caller.label}/{request.request_id}" if request.request_id else "",
            request_hash=content_hash(request) if request.request_id else "",
            actor=caller.label,
        )
        if bool(wanted.length) == bool(wanted.cidr):
            raise InvalidArgument("LENGTH_OR_CIDR", "say either the length of the child or its CIDR", field="length")
        if bool(request.parent) == bool(request.selector):
            raise InvalidArgument("PARENT_OR_SELECTOR", "say either the parent or labels that it has", field="parent")
        if request.parent:
            parent = parse_prefix(request.parent, field="parent")
            child = await self.family.acquire(request.namespace or DEFAULT, parent, wanted)
            if child is not None:
                return prefix_message(child)
        return prefix_message(await self._acquire_child(request, wanted))

    async def _acquire_child(self, request: pb.AcquireChildPrefixRequest, wanted: Wanted) -> PrefixRow:
        """The long way: it can choose the parent, and tell what is wrong."""
        for _ in range(ATTEMPTS):
            try:
                async with self.db.transaction(purpose="acquire a child prefix") as connection:
                    earlier = await prefix_changes.earlier_child(connection, wanted)
                    if earlier is not None:
                        return earlier
                    parents = await _parents(connection, request, wanted.cidr)
                    return await prefix_changes.acquire_child(connection, parents, wanted)
            except asyncpg.UniqueViolationError:  # A twin of this request is just faster.
                continue
        raise Aborted("CONCURRENT_CHANGE", "other calls were faster each time; try again")

    async def GrowPrefix(self, request: pb.GrowPrefixRequest, context: Any) -> pb.Prefix:
        cidr = parse_prefix(request.cidr, field="cidr")
        async with self.db.transaction(purpose="grow a prefix") as connection:
            row = await _grown_already(connection, request.namespace, cidr, request.length)
            if row is None:
                row = await prefix_changes.find(connection, request.namespace, cidr)
                row, network = await prefix_changes.grow(connection, row, request.length, actor=current_caller().label)
                await _tell(connection, network)
        self.known.forget(row.network)  # Other processes tell its former size until they read it anew.
        return prefix_message(row)

    async def ReserveRange(self, request: pb.ReserveRangeRequest, context: Any) -> pb.ReservedRange:
        cidr, first, last = _ends(request)
        async with self.db.transaction(purpose="reserve a range") as connection:
            row = await prefix_changes.find(connection, request.namespace, cidr)
            made = await prefix_changes.reserve(
                connection, row, first, last, request.label, actor=current_caller().label
            )
        return range_message(made)

    async def UnreserveRange(self, request: pb.UnreserveRangeRequest, context: Any) -> Empty:
        cidr, first, last = _ends(request)
        async with self.db.transaction(purpose="give a reserved range back") as connection:
            row = await prefix_changes.find(connection, request.namespace, cidr)
            await prefix_changes.unreserve(connection, row, first, last, actor=current_caller().label)
        return Empty()


async def _parents(
    connection: Connection, request: pb.AcquireChildPrefixRequest, child: Prefix | None
) -> list[PrefixRow]:
    if request.parent:
        parent = parse_prefix(request.parent, field="parent")
        return [await prefix_changes.find(connection, request.namespace, parent)]
    family = child.version if child else _FAMILIES.get(request.family, 0)
    if not family:
        raise InvalidArgument("FAMILY_MISSING", "say in which family, or the CIDR of the child", field="family")
    return await prefix_changes.find_parents(connection, request.namespace, dict(request.selector), family)


async def _grown_already(connection: Connection, namespace: str, cidr: Prefix, length: int) -> PrefixRow | None:
    """What an earlier call of the same request left: the CIDR it names does not exist any more, the grown one does."""
    if length > cidr.prefixlen:
        return None
    home = await namespaces.get(connection, namespace)
    if await prefixes.get(connection, home.id, cidr) is not None and length < cidr.prefixlen:
        return None
    return await prefixes.get(connection, home.id, cidr.supernet(new_prefix=length))


def _ends(request: pb.ReserveRangeRequest | pb.UnreserveRangeRequest) -> tuple[Prefix, Address, Address]:
    cidr = parse_prefix(request.cidr, field="cidr")
    first = parse_address(request.first, field="first")
    last = parse_address(request.last, field="last") if request.last else first
    if first.version != last.version or int(last) < int(first):
        raise InvalidArgument("RANGE_INVALID", f"{last} does not come after {first}", field="last")
    return cidr, first, last


async def _tell(connection: Connection, network: Network | None) -> None:
    """The event of a network whose prefixes have changed."""
    if network is not None:
        [message] = await network_messages(connection, [network])
        await tell_changed(connection, message, network)
