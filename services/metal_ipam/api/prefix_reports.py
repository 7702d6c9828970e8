"""What PrefixService tells beyond single prefixes: places of addresses, overlaps, history, proofs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from metal_kit.db import Database
from metal_kit.paging import Paging
from metal_kit.timestamps import parse_timestamp, to_timestamp
from metalplane.ipam.v1 import prefix_pb2 as pb

from metal_ipam import prefix_changes
from metal_ipam.api.messages import ip_message, owner_message
from metal_ipam.api.prefix_messages import prefix_message, range_message
from metal_ipam.cidr import Address, Prefix, parse_address, parse_prefix
from metal_ipam.family import Family
from metal_ipam.known import KnownNetworks
from metal_ipam.store import addresses, copies, namespaces, numbers, places, prefixes, ranges

_BATCH = 100


@dataclass(slots=True)
class PrefixReports:
    """The part of PrefixService that only reads."""

    db: Database
    paging: Paging
    known: KnownNetworks
    family: Family

    async def ListReservedRanges(
        self, request: pb.ListReservedRangesRequest, context: Any
    ) -> pb.ListReservedRangesResponse:
        cidr = parse_prefix(request.cidr, field="cidr")
        filter_key = f"ranges:{(request.namespace, request.cidr)}"
        page = self.paging.page(request.page_size, request.page_token, filter_key=filter_key)
        async with self.db.connection() as connection:
            prefix = await prefix_changes.find(connection, request.namespace, cidr)
            rows = await ranges.page(connection, prefix.id, after=page.after_text(), limit=page.limit)
        shown, token = page.cut(rows, lambda row: (str(row.last),))
        return pb.ListReservedRangesResponse(ranges=[range_message(row) for row in shown], next_page_token=token)

    async def ListAddressPlaces(
        self, request: pb.ListAddressPlacesRequest, context: Any
    ) -> pb.ListAddressPlacesResponse:
        address = parse_address(request.address, field="address")
        filter_key = f"places:{(str(address), request.namespace)}"
        page = self.paging.page(request.page_size, request.page_token, filter_key=filter_key)
        async with self.db.connection() as connection:
            only = (await namespaces.get(connection, request.namespace)).id if request.namespace else None
            after = int(str(page.after[0])) if page.after else 0
            rows = await places.of_address(connection, address, only, after=after, limit=page.limit)
            shown, token = page.cut(rows, lambda row: (row.namespace_id,))
            # Whole prefixes and addresses: two statements however many places.
            homes = await prefixes.at(connection, [(row.namespace_id, row.prefix) for row in shown])
            holders = {ip.namespace_id: ip for ip in await addresses.find(connection, address, "", limit=None)}
        answer = pb.ListAddressPlacesResponse(next_page_token=token)
        for row in shown:
            home = homes.get(row.namespace_id)
            if home is None:  # Deleted between the statements.
                continue
            place = answer.places.add(namespace=home.namespace, prefix=prefix_message(home))
            if (ip := holders.get(row.namespace_id)) is not None:
                place.ip.CopyFrom(ip_message(ip))
            if row.reserved is not None:
                place.reserved.CopyFrom(range_message(row.reserved))
            if (until := to_timestamp(row.rests_until)) is not None:
                place.rests_until.CopyFrom(until)
        return answer

    async def ListPrefixOverlaps(
        self, request: pb.ListPrefixOverlapsRequest, context: Any
    ) -> pb.ListPrefixOverlapsResponse:
        page = self.paging.page(request.page_size, request.page_token, filter_key="overlaps")
        after = (int(str(page.after[0])), int(str(page.after[1]))) if page.after else (0, 0)
        async with self.db.connection() as connection:
            rows = await places.overlaps(connection, after=after, limit=page.limit)
        shown, token = page.cut(rows, lambda row: (row["left_id"], row["right_id"]))
        found = [
            pb.PrefixOverlap(
                left=pb.PrefixPlace(namespace=row["left_namespace"], cidr=str(row["left_cidr"])),
                right=pb.PrefixPlace(namespace=row["right_namespace"], cidr=str(row["right_cidr"])),
            )
            for row in shown
        ]
        return pb.ListPrefixOverlapsResponse(overlaps=found, next_page_token=token)

    async def ListHistory(self, request: pb.ListHistoryRequest, context: Any) -> pb.ListHistoryResponse:
        thing: Address | Prefix
        if "/" in request.object:
            thing = parse_prefix(request.object, field="object")
        else:
            thing = parse_address(request.object, field="object")
        as_of = parse_timestamp(request.as_of, field="as_of") if request.HasField("as_of") else None
        filter_key = f"history:{(request.namespace, str(thing), str(as_of))}"
        page = self.paging.page(request.page_size, request.page_token, filter_key=filter_key)
        async with self.db.connection() as connection:
            home = await namespaces.get(connection, request.namespace)
            rows = await places.history(
                connection,
                home.id,
                thing,
                as_of=as_of,
                before=int(str(page.after[0])) if page.after else None,
                limit=page.limit,
            )
        shown, token = page.cut(rows, lambda row: (row.seq,))
        answer = pb.ListHistoryResponse(next_page_token=token)
        for row in shown:
            entry = answer.entries.add(
                time=to_timestamp(row.time), actor=row.actor, operation=row.operation, project=row.project
            )
            if row.owner:
                entry.owner.CopyFrom(owner_message(row.owner))
        return answer

    async def VerifyPrefixes(self, request: pb.VerifyPrefixesRequest, context: Any) -> pb.VerifyPrefixesResponse:
        findings: list[str] = []
        last = 0
        while True:
            async with self.db.connection() as connection:
                batch = await prefixes.ids(connection, request.network, after=last, limit=_BATCH)
                for prefix_id, name in batch:
                    # Each in a transaction of its own: nobody waits for more than one prefix being counted.
                    findings += [f"{name}: {text}" for text in await prefixes.verify(connection, prefix_id)]
            if len(batch) < _BATCH:
                break
            last = batch[-1][0]
        if not request.network:
            async with self.db.connection() as connection:
                for rule in (ranges.verify, copies.verify, numbers.verify):
                    findings += await rule(connection)
        return pb.VerifyPrefixesResponse(findings=findings)
