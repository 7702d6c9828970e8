"""SizeService."""

from __future__ import annotations

from google.protobuf.empty_pb2 import Empty
from metal_kit.db import Connection, Database
from metal_kit.errors import FailedPrecondition
from metal_kit.paging import Paging
from metalplane.inventory.v1 import size_pb2 as pb
from metalplane.inventory.v1.size_pb2_grpc import SizeServiceServicer

from metal_inventory import contract, sizes
from metal_inventory.api.crud import Crud, refuse
from metal_inventory.store.catalog import LAYOUTS, SIZES, machines_of

SERVICE = "metalplane.inventory.v1.SizeService"
MUTABLE = ("description", "constraints", "labels")


class SizeServicer(SizeServiceServicer):
    """Sizes. No two of them may match the same hardware."""

    def __init__(self, db: Database, paging: Paging) -> None:
        self._crud = Crud(db, paging, SIZES, pb.Size, "size", MUTABLE, check=_check, in_use=_in_use, compares=True)

    async def CreateSize(self, request: pb.CreateSizeRequest, context: object) -> pb.Size:
        return await self._crud.create(f"{SERVICE}/CreateSize", request.request_id, request, request.size)

    async def GetSize(self, request: pb.GetSizeRequest, context: object) -> pb.Size:
        return await self._crud.get(request.id)

    async def ListSizes(self, request: pb.ListSizesRequest, context: object) -> pb.ListSizesResponse:
        page, token = await self._crud.page(request.page_size, request.page_token)
        return pb.ListSizesResponse(sizes=page, next_page_token=token)

    async def UpdateSize(self, request: pb.UpdateSizeRequest, context: object) -> pb.Size:
        return await self._crud.update(request.size, request.update_mask)

    async def DeleteSize(self, request: pb.DeleteSizeRequest, context: object) -> Empty:
        await self._crud.delete(request.id, request.etag)
        return Empty()


async def _check(conn: Connection, message: pb.Size) -> None:
    size = contract.size(message)
    refuse(sizes.validate(size.constraints), field="size")
    others = [contract.size(other) for other in await SIZES.everything(conn)]
    overlapping = [other.id for other in sizes.overlapping(size, others)]
    if overlapping:
        raise FailedPrecondition(
            "SIZE_OVERLAPS",
            f"size {size.id} could match the same machines as {', '.join(overlapping)}: narrow its constraints",
            field="size.constraints",
            metadata={"sizes": ",".join(overlapping)},
        )


async def _in_use(conn: Connection, size: pb.Size) -> None:
    machines = await machines_of(conn, "size", size.id)
    if machines:
        raise FailedPrecondition(
            "SIZE_IN_USE",
            f"size {size.id} is the size of {', '.join(machines)}",
            field="id",
            metadata={"machines": ",".join(machines)},
        )
    layouts = [layout.id for layout in await LAYOUTS.everything(conn) if size.id in layout.size_ids]
    if layouts:
        raise FailedPrecondition(
            "SIZE_IN_USE",
            f"size {size.id} is named by the filesystem layouts {', '.join(layouts)}: change them first",
            field="id",
            metadata={"layouts": ",".join(layouts)},
        )
