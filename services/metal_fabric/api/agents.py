"""SwitchAgentService: the stream of each leaf."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from metal_kit.db import Database
from metal_kit.identity import current_caller
from metalplane.fabric.v1.agent_pb2 import ConnectRequest, ConnectResponse
from metalplane.fabric.v1.agent_pb2_grpc import SwitchAgentServiceServicer

from metal_fabric.leaves import Leaves
from metal_fabric.stream import LeafStream


class SwitchAgentApi(SwitchAgentServiceServicer):
    """Implements SwitchAgentService."""

    def __init__(self, db: Database, leaves: Leaves, stopping: asyncio.Event) -> None:
        self._db = db
        self._leaves = leaves
        self._stopping = stopping

    async def Connect(
        self, request_iterator: AsyncIterator[ConnectRequest], context: Any
    ) -> AsyncIterator[ConnectResponse]:
        stream = LeafStream(self._db, self._leaves, current_caller(), self._stopping)
        async with aclosing(stream.run(request_iterator)) as responses:
            async for response in responses:
                yield response
