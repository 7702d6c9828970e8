"""PoolService."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from metal_kit.db import Database
from metal_kit.errors import InvalidArgument, NotFound
from metal_kit.identity import current_caller
from metal_kit.paging import Paging
from metalplane.ipam.v1 import pool_pb2 as pb
from metalplane.ipam.v1.pool_pb2_grpc import PoolServiceServicer

from metal_ipam.api.messages import number_message, owner_of, pool_message
from metal_ipam.store import numbers, owners


@dataclass(slots=True)
class PoolApi(PoolServiceServicer):
    """Pools of numbers."""

    db: Database
    paging: Paging

    async def ListPools(self, request: pb.ListPoolsRequest, context: Any) -> pb.ListPoolsResponse:
        page = self.paging.page(request.page_size, request.page_token, filter_key="pools")
        async with self.db.connection() as connection:
            rows = await numbers.pools(connection, after=page.after_text(), limit=page.limit)
        shown, token = page.cut(rows, lambda row: (row.name,))
        return pb.ListPoolsResponse(pools=[pool_message(row) for row in shown], next_page_token=token)

    async def GrowPool(self, request: pb.GrowPoolRequest, context: Any) -> pb.Pool:
        if request.last < request.first:
            raise InvalidArgument("RANGE_INVALID", "must not be less than first", field="last")
        async with self.db.transaction(purpose="grow a pool") as connection:
            row = await numbers.grow(
                connection,
                request.id,
                request.first,
                request.last,
                on_request=request.on_request,
                actor=current_caller().label,
            )
        return pool_message(row)

    async def AcquireNumber(self, request: pb.AcquireNumberRequest, context: Any) -> pb.PoolNumber:
        owner = owner_of(request.owner, field="owner", required=True)
        async with self.db.transaction(purpose="acquire a number") as connection:
            await owners.hold(connection, owner)
            number = await numbers.acquire(
                connection, request.pool, owner, number=request.number, actor=current_caller().label, field="number"
            )
        return number_message(request.pool, number, owner)

    async def ListPoolNumbers(self, request: pb.ListPoolNumbersRequest, context: Any) -> pb.ListPoolNumbersResponse:
        filter_key = f"pool numbers:{request.pool}"
        page = self.paging.page(request.page_size, request.page_token, filter_key=filter_key)
        async with self.db.connection() as connection:
            rows = await numbers.numbers(connection, request.pool, after=int(page.after_text("-1")), limit=page.limit)
        if rows is None:
            raise NotFound("POOL_NOT_FOUND", f"there is no pool {request.pool}", field="pool")
        shown, token = page.cut(rows, lambda row: (row[0],))
        found = [number_message(request.pool, number, owner) for number, owner in shown]
        return pb.ListPoolNumbersResponse(numbers=found, next_page_token=token)
