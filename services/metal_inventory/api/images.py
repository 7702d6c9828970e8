"""ImageService."""

from __future__ import annotations

from google.protobuf.empty_pb2 import Empty
from metal_kit.clock import now
from metal_kit.db import Connection, Database
from metal_kit.errors import FailedPrecondition, InvalidArgument
from metal_kit.identity import missing
from metal_kit.paging import Paging
from metal_kit.timestamps import parse_timestamp
from metalplane.inventory.v1 import image_pb2 as pb
from metalplane.inventory.v1.image_pb2_grpc import ImageServiceServicer

from metal_inventory import images
from metal_inventory.api.crud import Crud, refuse
from metal_inventory.store.catalog import IMAGES

SERVICE = "metalplane.inventory.v1.ImageService"
MUTABLE = ("description", "classification", "expire_time", "features", "labels")
_WHY = {
    images.Unusable.EXPIRED: "has expired: choose a newer one, or prolong its expire_time",
    images.Unusable.DEPRECATED: "is deprecated: choose a supported one",
}


class ImageServicer(ImageServiceServicer):
    """Images."""

    def __init__(self, db: Database, paging: Paging) -> None:
        self._db = db
        self._crud = Crud(db, paging, IMAGES, pb.Image, "image", MUTABLE, check=_check)

    async def CreateImage(self, request: pb.CreateImageRequest, context: object) -> pb.Image:
        return await self._crud.create(f"{SERVICE}/CreateImage", request.request_id, request, request.image)

    async def GetImage(self, request: pb.GetImageRequest, context: object) -> pb.Image:
        return await self._crud.get(request.id)

    async def ResolveImage(self, request: pb.ResolveImageRequest, context: object) -> pb.Image:
        time = now()
        try:
            name = images.parse_name(request.image)
        except ValueError as error:
            raise InvalidArgument("INVALID_IMAGE", str(error), field="image") from error
        async with self._db.connection() as conn:
            found = images.resolve(request.image, await IMAGES.of_os(conn, name.os), now=time)
            image = None if found is None else await IMAGES.get(conn, found.id)
        if found is None or image is None:
            kind = "image" if name.exact else "supported, unexpired image for"
            raise missing(f"{kind} {request.image}")
        unusable = images.unusable(found, now=time)
        if unusable is not None:
            raise FailedPrecondition(unusable.value, f"image {image.id} {_WHY[unusable]}", field="image")
        if request.feature and request.feature not in image.features:
            wanted = pb.ImageFeature.Name(request.feature).removeprefix("IMAGE_FEATURE_").lower()
            raise FailedPrecondition("IMAGE_LACKS_FEATURE", f"image {image.id} cannot be a {wanted}", field="image")
        return image

    async def ListImages(self, request: pb.ListImagesRequest, context: object) -> pb.ListImagesResponse:
        page, token = await self._crud.page(request.page_size, request.page_token)
        return pb.ListImagesResponse(images=page, next_page_token=token)

    async def UpdateImage(self, request: pb.UpdateImageRequest, context: object) -> pb.Image:
        return await self._crud.update(request.image, request.update_mask)

    async def DeleteImage(self, request: pb.DeleteImageRequest, context: object) -> Empty:
        await self._crud.delete(request.id, request.etag)
        return Empty()


async def _check(conn: Connection, image: pb.Image) -> None:
    try:
        images.parse_id(image.id)
    except ValueError as error:
        refuse([("id", str(error))], field="image")
    if not image.classification:
        image.classification = pb.IMAGE_CLASSIFICATION_PREVIEW
    if not image.HasField("expire_time"):
        image.expire_time.FromDatetime(now() + images.DEFAULT_LIFETIME)
    parse_timestamp(image.expire_time, field="image.expire_time")
