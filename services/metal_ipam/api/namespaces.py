"""NamespaceService."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from google.protobuf.empty_pb2 import Empty
from metal_kit import idempotency
from metal_kit.db import Database
from metal_kit.errors import InvalidArgument
from metal_kit.identity import current_caller
from metal_kit.paging import Paging
from metalplane.ipam.v1 import namespace_pb2 as pb
from metalplane.ipam.v1.namespace_pb2_grpc import NamespaceServiceServicer

from metal_ipam import dumps
from metal_ipam.api.prefix_messages import namespace_message
from metal_ipam.store import namespaces

CREATE = "/metalplane.ipam.v1.NamespaceService/CreateNamespace"


@dataclass(slots=True)
class NamespaceApi(NamespaceServiceServicer):
    """Namespaces."""

    db: Database
    paging: Paging

    async def CreateNamespace(self, request: pb.CreateNamespaceRequest, context: Any) -> pb.Namespace:
        wanted = request.namespace
        call = {"caller": current_caller().label, "method": CREATE, "request_id": request.request_id}
        async with self.db.transaction(purpose="create a namespace") as connection:
            known = await idempotency.remembered(connection, **call, request=request, response_type=pb.Namespace)
            if known is not None:
                return known
            made = await namespaces.insert(
                connection, wanted.id, project=wanted.project, description=wanted.description
            )
            message = namespace_message(made)
            await idempotency.remember(connection, **call, request=request, response=message)
        return message

    async def GetNamespace(self, request: pb.GetNamespaceRequest, context: Any) -> pb.Namespace:
        async with self.db.connection() as connection:
            return namespace_message(await namespaces.get(connection, request.id, field="id"))

    async def ListNamespaces(self, request: pb.ListNamespacesRequest, context: Any) -> pb.ListNamespacesResponse:
        page = self.paging.page(request.page_size, request.page_token, filter_key="namespaces")
        async with self.db.connection() as connection:
            rows = await namespaces.page(connection, after=page.after_text(), limit=page.limit)
        shown, token = page.cut(rows, lambda row: (row.name,))
        return pb.ListNamespacesResponse(namespaces=[namespace_message(row) for row in shown], next_page_token=token)

    async def DeleteNamespace(self, request: pb.DeleteNamespaceRequest, context: Any) -> Empty:
        async with self.db.transaction(purpose="delete a namespace") as connection:
            await namespaces.delete(connection, request.id)
        return Empty()

    async def DumpNamespace(
        self, request: pb.DumpNamespaceRequest, context: Any
    ) -> AsyncIterator[pb.DumpNamespaceResponse]:
        async with self.db.connection() as connection:
            lines = await dumps.dump(connection, request.id)
        for part in dumps.parts(lines):
            yield pb.DumpNamespaceResponse(lines=part)

    async def LoadNamespace(
        self, requests: AsyncIterator[pb.LoadNamespaceRequest], context: Any
    ) -> pb.LoadNamespaceResponse:
        reading = dumps.Reading()
        wrong: InvalidArgument | None = None
        async for request in requests:
            # To the end, whatever is wrong: a part that is still on its way when the answer comes makes grpc fail the
            # call at the client without saying what the answer was.
            try:
                if wrong is None:
                    reading.add(request.id, request.lines)
            except InvalidArgument as error:
                wrong = error
        if wrong is not None:
            raise wrong
        content = reading.done()
        async with self.db.transaction(purpose="load a namespace") as connection:
            await dumps.load(connection, reading.namespace, content, actor=current_caller().label)
        return pb.LoadNamespaceResponse(prefixes=len(content.prefixes), ips=len(content.ips))
