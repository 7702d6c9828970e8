"""PrefixService."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from metal_kit.db import Database
from metal_kit.paging import Paging
from metalplane.ipam.v1 import prefix_pb2 as pb
from metalplane.ipam.v1.prefix_pb2_grpc import PrefixServiceServicer

from metal_ipam.api.messages import prefix_message
from metal_ipam.store import numbers, prefixes

_BATCH = 100


@dataclass(slots=True)
class PrefixApi(PrefixServiceServicer):
    """Prefixes and the proof of their accounts."""

    db: Database
    paging: Paging

    async def ListPrefixes(self, request: pb.ListPrefixesRequest, context: Any) -> pb.ListPrefixesResponse:
        filter_key = f"prefixes:{request.network}"
        page = self.paging.page(request.page_size, request.page_token, filter_key=filter_key)
        async with self.db.connection() as connection:
            rows = await prefixes.page(
                connection,
                network=request.network,
                after=None if page.after is None else (str(page.after[0]), str(page.after[1])),
                limit=page.limit,
            )
        shown, token = page.cut(rows, lambda row: (row.network, str(row.cidr)))
        return pb.ListPrefixesResponse(prefixes=[prefix_message(row) for row in shown], next_page_token=token)

    async def VerifyPrefixes(self, request: pb.VerifyPrefixesRequest, context: Any) -> pb.VerifyPrefixesResponse:
        findings: list[str] = []
        last = 0
        while True:
            async with self.db.connection() as connection:
                batch = await prefixes.ids(connection, request.network, after=last, limit=_BATCH)
                for prefix_id, cidr in batch:
                    # Each in a transaction of its own: nobody waits for more than one prefix being counted.
                    findings += [f"{cidr}: {text}" for text in await prefixes.verify(connection, prefix_id)]
            if len(batch) < _BATCH:
                break
            last = batch[-1][0]
        if not request.network:
            async with self.db.connection() as connection:
                findings += await numbers.verify(connection)
        return pb.VerifyPrefixesResponse(findings=findings)
