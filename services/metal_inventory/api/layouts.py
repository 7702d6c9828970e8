"""FilesystemLayoutService."""

from __future__ import annotations

from google.protobuf.empty_pb2 import Empty
from metal_kit.db import Connection, Database
from metal_kit.errors import FailedPrecondition, InvalidArgument
from metal_kit.identity import missing
from metal_kit.paging import Paging
from metalplane.inventory.v1 import layout_pb2 as pb
from metalplane.inventory.v1.layout_pb2_grpc import FilesystemLayoutServiceServicer
from metalplane.inventory.v1.machine_pb2 import Machine

from metal_inventory import contract, images, layouts
from metal_inventory.api.crud import Crud, refuse
from metal_inventory.api.visibility import require_visible
from metal_inventory.store.catalog import LAYOUTS, SIZES
from metal_inventory.store.machines import MachineStore

SERVICE = "metalplane.inventory.v1.FilesystemLayoutService"
FIELD = "filesystem_layout"
MUTABLE = (
    "description",
    "filesystems",
    "disks",
    "raids",
    "volume_groups",
    "logical_volumes",
    "size_ids",
    "image_constraints",
)


class FilesystemLayoutServicer(FilesystemLayoutServiceServicer):
    """Filesystem layouts. No two of them may suit the same size and image."""

    def __init__(self, db: Database, paging: Paging, machines: MachineStore) -> None:
        self._db = db
        self._machines = machines
        self._crud = Crud(db, paging, LAYOUTS, pb.FilesystemLayout, FIELD, MUTABLE, check=_check, compares=True)

    async def CreateFilesystemLayout(
        self, request: pb.CreateFilesystemLayoutRequest, context: object
    ) -> pb.FilesystemLayout:
        method = f"{SERVICE}/CreateFilesystemLayout"
        return await self._crud.create(method, request.request_id, request, request.filesystem_layout)

    async def GetFilesystemLayout(self, request: pb.GetFilesystemLayoutRequest, context: object) -> pb.FilesystemLayout:
        return await self._crud.get(request.id)

    async def MatchFilesystemLayout(
        self, request: pb.MatchFilesystemLayoutRequest, context: object
    ) -> pb.FilesystemLayout:
        try:
            name = images.parse_name(request.image)
        except ValueError as error:
            raise InvalidArgument("INVALID_IMAGE", str(error), field="image") from error
        async with self._db.connection() as conn:
            messages = {message.id: message for message in await LAYOUTS.everything(conn)}
            row = await self._machines.get(conn, request.machine) if request.machine else None
        found = layouts.pick([contract.layout(message) for message in messages.values()], request.size, name)
        if found is None:
            raise missing(f"filesystem layout for size {request.size} and image {request.image}")
        if request.machine:
            # Whether a layout fits tells of a machine's disks, and that it is there at all.
            _require_fit(found, Machine.FromString(require_visible(row, request.machine)["report"]))
        return messages[found.id]

    async def ListFilesystemLayouts(
        self, request: pb.ListFilesystemLayoutsRequest, context: object
    ) -> pb.ListFilesystemLayoutsResponse:
        page, token = await self._crud.page(request.page_size, request.page_token)
        return pb.ListFilesystemLayoutsResponse(filesystem_layouts=page, next_page_token=token)

    async def UpdateFilesystemLayout(
        self, request: pb.UpdateFilesystemLayoutRequest, context: object
    ) -> pb.FilesystemLayout:
        return await self._crud.update(request.filesystem_layout, request.update_mask)

    async def DeleteFilesystemLayout(self, request: pb.DeleteFilesystemLayoutRequest, context: object) -> Empty:
        await self._crud.delete(request.id, request.etag)
        return Empty()


def _require_fit(layout: layouts.Layout, machine: Machine) -> None:
    misfits = layouts.misfits(layout, contract.hardware(machine.hardware))
    if misfits:
        raise FailedPrecondition(
            "LAYOUT_DOES_NOT_FIT", f"filesystem layout {layout.id} does not fit: {'; '.join(misfits)}", field="machine"
        )


async def _check(conn: Connection, message: pb.FilesystemLayout) -> None:
    layout = contract.layout(message)
    refuse(layouts.validate(layout), field=FIELD)
    # Held, so that none is deleted before this layout can be seen by its deletion.
    known = {id_ for id_ in sorted(layout.sizes) if await SIZES.hold(conn, id_)}
    unknown = [
        (f"size_ids[{at}]", f"there is no size {id_}") for at, id_ in enumerate(layout.sizes) if id_ not in known
    ]
    refuse(unknown, field=FIELD)
    others = [contract.layout(other) for other in await LAYOUTS.everything(conn)]
    overlapping = [other.id for other in layouts.overlapping(layout, others)]
    if overlapping:
        raise FailedPrecondition(
            "LAYOUT_OVERLAPS",
            f"layout {layout.id} suits a size and an image that {', '.join(overlapping)} suits too",
            field=f"{FIELD}.image_constraints",
            metadata={"layouts": ",".join(overlapping)},
        )
