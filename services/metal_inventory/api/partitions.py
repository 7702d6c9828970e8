"""PartitionService."""

from __future__ import annotations

from google.protobuf.empty_pb2 import Empty
from metal_kit.db import Connection, Database
from metal_kit.errors import FailedPrecondition
from metal_kit.paging import Paging
from metalplane.inventory.v1 import partition_pb2 as pb
from metalplane.inventory.v1.partition_pb2_grpc import PartitionServiceServicer

from metal_inventory.api.crud import Crud
from metal_inventory.store.catalog import PARTITIONS, machines_of

SERVICE = "metalplane.inventory.v1.PartitionService"
MUTABLE = ("description", "labels", "boot", "dns_servers", "ntp_servers")


class PartitionServicer(PartitionServiceServicer):
    """Partitions."""

    def __init__(self, db: Database, paging: Paging) -> None:
        self._crud = Crud(db, paging, PARTITIONS, pb.Partition, "partition", MUTABLE, in_use=_in_use)

    async def CreatePartition(self, request: pb.CreatePartitionRequest, context: object) -> pb.Partition:
        return await self._crud.create(f"{SERVICE}/CreatePartition", request.request_id, request, request.partition)

    async def GetPartition(self, request: pb.GetPartitionRequest, context: object) -> pb.Partition:
        return await self._crud.get(request.id)

    async def ListPartitions(self, request: pb.ListPartitionsRequest, context: object) -> pb.ListPartitionsResponse:
        page, token = await self._crud.page(request.page_size, request.page_token)
        return pb.ListPartitionsResponse(partitions=page, next_page_token=token)

    async def UpdatePartition(self, request: pb.UpdatePartitionRequest, context: object) -> pb.Partition:
        return await self._crud.update(request.partition, request.update_mask)

    async def DeletePartition(self, request: pb.DeletePartitionRequest, context: object) -> Empty:
        await self._crud.delete(request.id, request.etag)
        return Empty()


async def _in_use(conn: Connection, partition: pb.Partition) -> None:
    users = await machines_of(conn, "partition", partition.id)
    if users:
        raise FailedPrecondition(
            "PARTITION_IN_USE",
            f"partition {partition.id} has machines: {', '.join(users)}; delete them first",
            field="id",
            metadata={"machines": ",".join(users)},
        )
