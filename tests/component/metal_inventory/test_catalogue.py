"""Partitions, sizes, images and layouts over real gRPC."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import asyncpg
import pytest
from metal_kit.errors import Aborted, AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, PermissionDenied
from metalplane.inventory.v1 import image_pb2, layout_pb2, partition_pb2, size_pb2

M1 = "00000001-0051-3510-8052-b4c04f4e3132"
GIB = 1 << 30
SHA = "0" * 64


def partition(id_: str = "p1", **more: Any) -> partition_pb2.CreatePartitionRequest:
    return partition_pb2.CreatePartitionRequest(partition=partition_pb2.Partition(id=id_, **more))


def size(id_: str, low: int, high: int) -> size_pb2.CreateSizeRequest:
    request = size_pb2.CreateSizeRequest(size=size_pb2.Size(id=id_))
    request.size.constraints.add(type=size_pb2.CONSTRAINT_TYPE_CORES, min=low, max=high)
    request.size.constraints.add(type=size_pb2.CONSTRAINT_TYPE_MEMORY, min=GIB, max=1024 * GIB)
    return request


def image(id_: str, classification: str = "SUPPORTED", **more: Any) -> image_pb2.CreateImageRequest:
    return image_pb2.CreateImageRequest(
        image=image_pb2.Image(
            id=id_,
            url="http://images.example/x.tar.zst",
            sha256=SHA,
            features=[image_pb2.IMAGE_FEATURE_MACHINE],
            classification=image_pb2.ImageClassification.Value(f"IMAGE_CLASSIFICATION_{classification}"),
            **more,
        )
    )


def layout(id_: str = "default", *, versions: str = "*", **more: Any) -> layout_pb2.CreateFilesystemLayoutRequest:
    message = layout_pb2.FilesystemLayout(
        id=id_, size_ids=["c1-medium"], image_constraints={"debian": versions}, **more
    )
    disk = message.disks.add(device="/dev/nvme0n1", wipe_on_reinstall=True)
    disk.partitions.add(number=1, size_mib=500, gpt_type="ef00")
    disk.partitions.add(number=2, size_mib=0, gpt_type="8300")
    message.filesystems.add(path="/", device="/dev/nvme0n1p2", format=layout_pb2.FILESYSTEM_FORMAT_EXT4)
    return layout_pb2.CreateFilesystemLayoutRequest(filesystem_layout=message)


# -- what all kinds have in common


async def test_a_repeated_create_with_one_request_id_has_one_effect_and_one_answer(inventory: Any) -> None:
    request = partition(description="first")
    request.request_id = str(uuid4())
    results = await asyncio.gather(*(inventory.partitions().CreatePartition(request) for _ in range(5)))
    assert all(each == results[0] for each in results)
    request.partition.description = "second"
    with pytest.raises(InvalidArgument, match="REQUEST_ID_REUSED"):
        await inventory.partitions().CreatePartition(request)
    request.request_id = ""
    with pytest.raises(AlreadyExists):
        await inventory.partitions().CreatePartition(request)


async def test_a_list_pages_and_its_token_belongs_to_it(inventory: Any) -> None:
    for number in range(4):
        await inventory.partitions().CreatePartition(partition(f"p{number}"))
    request, seen = partition_pb2.ListPartitionsRequest(page_size=2), []
    while True:
        page = await inventory.partitions().ListPartitions(request)
        seen += [each.id for each in page.partitions]
        if not page.next_page_token:
            break
        request.page_token = page.next_page_token
    assert seen == ["mini", "p0", "p1", "p2", "p3"]
    for call in (
        inventory.sizes().ListSizes(size_pb2.ListSizesRequest(page_token=request.page_token)),
        inventory.partitions().ListPartitions(partition_pb2.ListPartitionsRequest(page_token="nonsense")),
        inventory.partitions().ListPartitions(partition_pb2.ListPartitionsRequest(page_size=-1)),
    ):
        with pytest.raises(InvalidArgument) as refused:
            await call
        assert refused.value.field in ("page_token", "page_size")


async def test_an_update_changes_what_the_mask_names_and_its_result_must_be_valid(inventory: Any) -> None:
    made = await inventory.partitions().CreatePartition(partition(description="old", dns_servers=["10.0.0.1"]))
    request = partition_pb2.UpdatePartitionRequest(
        partition=partition_pb2.Partition(id="p1", description="new", etag=made.etag)
    )
    request.update_mask.paths.extend(["description", "dns_servers"])
    changed = await inventory.partitions().UpdatePartition(request)
    assert (changed.description, list(changed.dns_servers)) == ("new", [])
    with pytest.raises(Aborted, match="ETAG_MISMATCH"):
        await inventory.partitions().UpdatePartition(request)
    request.partition.etag = ""
    request.partition.dns_servers.append("not-an-address")
    with pytest.raises(InvalidArgument) as refused:
        await inventory.partitions().UpdatePartition(request)
    assert refused.value.field == "partition.dns_servers[0]"
    got = await inventory.partitions().GetPartition(partition_pb2.GetPartitionRequest(id="p1"))
    assert got == changed


@pytest.mark.parametrize("id_", ["", "Upper", "with space", "-x", "x" * 64])
async def test_a_wrong_id_is_refused_by_its_field(inventory: Any, id_: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        await inventory.partitions().CreatePartition(partition(id_))
    assert refused.value.field == "partition.id"


async def test_viewers_read_and_only_operators_write(inventory: Any) -> None:
    await inventory.partitions("viewer").ListPartitions(partition_pb2.ListPartitionsRequest())
    with pytest.raises(PermissionDenied):
        await inventory.partitions("viewer").CreatePartition(partition())
    with pytest.raises(NotFound):
        await inventory.partitions().GetPartition(partition_pb2.GetPartitionRequest(id="nowhere"))


# -- partitions


async def test_a_partition_with_machines_is_not_deleted_and_names_them(inventory: Any) -> None:
    """L33."""
    await inventory.report(M1, "PXE_BOOTING")
    request = partition_pb2.DeletePartitionRequest(id="mini")
    with pytest.raises(FailedPrecondition) as refused:
        await inventory.partitions().DeletePartition(request)
    assert (refused.value.reason, refused.value.metadata["machines"]) == ("PARTITION_IN_USE", M1)
    await inventory.silent_for(M1, "6 minutes")
    await inventory.sql("DELETE FROM machine")
    await inventory.partitions().DeletePartition(request)
    with pytest.raises(NotFound):
        await inventory.partitions().DeletePartition(request)


# -- sizes


async def test_of_two_overlapping_sizes_created_at_once_one_is_refused(inventory: Any) -> None:
    results = await asyncio.gather(
        inventory.sizes().CreateSize(size("a", 1, 8)),
        inventory.sizes().CreateSize(size("b", 8, 12)),
        return_exceptions=True,
    )
    [refused] = [each for each in results if isinstance(each, FailedPrecondition)]
    assert refused.reason == "SIZE_OVERLAPS"
    assert refused.metadata["sizes"] in ("a", "b")
    assert len(await inventory.sql("SELECT 1 FROM size WHERE id IN ('a', 'b')")) == 1


async def test_a_size_is_updated_without_overlapping_with_itself(inventory: Any) -> None:
    made = await inventory.sizes().CreateSize(size("a", 1, 8))
    made.constraints[0].max = 9
    assert (await inventory.sizes().UpdateSize(size_pb2.UpdateSizeRequest(size=made))).constraints[0].max == 9


async def test_a_wrong_constraint_is_refused_by_its_field_and_nothing_is_written(inventory: Any) -> None:
    request = size("a", 8, 1)
    with pytest.raises(InvalidArgument) as refused:
        await inventory.sizes().CreateSize(request)
    assert refused.value.field == "size.constraints[0].max"
    assert await inventory.sql("SELECT 1 FROM size WHERE id = 'a'") == []


async def test_a_size_in_use_by_machines_or_layouts_is_not_deleted(inventory: Any) -> None:
    await inventory.register(M1)
    request = size_pb2.DeleteSizeRequest(id="c1-medium")
    with pytest.raises(FailedPrecondition) as refused:
        await inventory.sizes().DeleteSize(request)
    assert refused.value.metadata == {"machines": M1}
    await inventory.sql("DELETE FROM machine")
    await inventory.layouts().CreateFilesystemLayout(layout())
    with pytest.raises(FailedPrecondition) as refused:
        await inventory.sizes().DeleteSize(request)
    assert refused.value.metadata == {"layouts": "default"}


# -- images


async def resolve(inventory: Any, name: str, feature: int = 0) -> str:
    request = image_pb2.ResolveImageRequest(image=name, feature=feature)  # type: ignore[arg-type]
    return str((await inventory.images("member x").ResolveImage(request)).id)


async def test_a_new_image_is_a_preview_that_expires_after_ninety_days(inventory: Any) -> None:
    request = image("debian-12.0.20250101")
    request.image.classification = image_pb2.IMAGE_CLASSIFICATION_UNSPECIFIED
    made = await inventory.images().CreateImage(request)
    assert made.classification == image_pb2.IMAGE_CLASSIFICATION_PREVIEW
    lifetime = made.expire_time.ToDatetime(tzinfo=UTC) - datetime.now(UTC)
    assert timedelta(days=89, hours=23) < lifetime < timedelta(days=90, minutes=1)


async def test_names_resolve_by_classification_and_expiry_and_refusals_say_why(inventory: Any) -> None:
    past = datetime.now(UTC) - timedelta(seconds=1)
    for request in (
        image("debian-12.0.20250101"),
        image("debian-12.0.20250201"),
        image("debian-12.0.20250301", "PREVIEW"),
        image("debian-12.0.20250401", "DEPRECATED"),
        image("debian-12.0.20250501"),
    ):
        if request.image.id.endswith("0501"):
            request.image.expire_time.FromDatetime(past)
        await inventory.images().CreateImage(request)
    assert await resolve(inventory, "debian-12.0") == "debian-12.0.20250201"
    assert await resolve(inventory, "debian-12.0.20250301") == "debian-12.0.20250301"
    for name, reason in (("debian-12.0.20250401", "IMAGE_DEPRECATED"), ("debian-12.0.20250501", "IMAGE_EXPIRED")):
        with pytest.raises(FailedPrecondition, match=reason):
            await resolve(inventory, name)
    with pytest.raises(FailedPrecondition, match="IMAGE_LACKS_FEATURE"):
        await resolve(inventory, "debian-12.0", image_pb2.IMAGE_FEATURE_FIREWALL)
    with pytest.raises(NotFound):
        await resolve(inventory, "ubuntu-24.4")
    with pytest.raises(InvalidArgument) as refused:
        await resolve(inventory, "what is this")
    assert refused.value.field == "image"


async def test_a_reclassified_image_is_resolved_by_what_it_is_now(inventory: Any) -> None:
    made = await inventory.images().CreateImage(image("debian-12.0.20250101", "PREVIEW"))
    with pytest.raises(NotFound):
        await resolve(inventory, "debian-12.0")
    made.classification = image_pb2.IMAGE_CLASSIFICATION_SUPPORTED
    request = image_pb2.UpdateImageRequest(image=made)
    request.update_mask.paths.append("classification")
    await inventory.images().UpdateImage(request)
    assert await resolve(inventory, "debian-12.0") == made.id


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"id": "debian-12.0.20251301"}, "image.id"),
        ({"id": "debian"}, "image.id"),
        ({"sha256": "abc"}, "image.sha256"),
        ({"url": "not a url"}, "image.url"),
    ],
)
async def test_a_wrong_image_is_refused_by_its_field(inventory: Any, change: dict[str, str], field: str) -> None:
    request = image("debian-12.0.20250101")
    for name, value in change.items():
        setattr(request.image, name, value)
    with pytest.raises(InvalidArgument) as refused:
        await inventory.images().CreateImage(request)
    assert refused.value.field == field
    assert await inventory.sql("SELECT 1 FROM image") == []


async def test_an_end_of_an_image_beyond_the_calendar_is_refused_by_its_field(inventory: Any) -> None:
    request = image("debian-12.0.20250101")
    request.image.expire_time.seconds = 1 << 60
    with pytest.raises(InvalidArgument) as refused:
        await inventory.images().CreateImage(request)
    assert refused.value.field == "image.expire_time"


# -- layouts


async def match(inventory: Any, name: str, machine: str = "", *, token: str = "member x") -> str:
    request = layout_pb2.MatchFilesystemLayoutRequest(size="c1-medium", image=name, machine=machine)
    return str((await inventory.layouts(token).MatchFilesystemLayout(request)).id)


async def test_the_layout_for_a_size_and_an_image_is_found(inventory: Any) -> None:
    await inventory.layouts().CreateFilesystemLayout(layout("old", versions="< 12"))
    await inventory.layouts().CreateFilesystemLayout(layout("new", versions=">= 12"))
    assert await match(inventory, "debian-11.7.20250101") == "old"
    assert await match(inventory, "debian-12.0.20250101") == "new"
    with pytest.raises(NotFound):
        await match(inventory, "ubuntu-24.4.20250101")


async def test_a_layout_must_fit_the_disks_of_the_machine_that_is_named(inventory: Any) -> None:
    await inventory.layouts().CreateFilesystemLayout(layout())
    await inventory.register(M1)
    assert await match(inventory, "debian-12.0.20250101", M1, token="viewer") == "default"
    await inventory.register(M1, parts=inventory.hardware("x", disks=0))
    with pytest.raises(FailedPrecondition, match="the machine has no disk /dev/nvme0n1"):
        await match(inventory, "debian-12.0.20250101", M1, token="viewer")
    with pytest.raises(NotFound, match=f"machine {M1} does not exist"):
        await match(inventory, "debian-12.0.20250101", M1, token="member x")


async def test_overlapping_layouts_and_unknown_sizes_are_refused(inventory: Any) -> None:
    await inventory.layouts().CreateFilesystemLayout(layout())
    with pytest.raises(FailedPrecondition, match="LAYOUT_OVERLAPS"):
        await inventory.layouts().CreateFilesystemLayout(layout("other", versions=">= 12"))
    request = layout("third", versions="*")
    request.filesystem_layout.size_ids[:] = ["c1-medium", "nothing"]
    with pytest.raises(InvalidArgument) as refused:
        await inventory.layouts().CreateFilesystemLayout(request)
    assert refused.value.field == "filesystem_layout.size_ids[1]"


async def test_a_layout_for_a_size_that_is_just_being_deleted_waits_and_is_refused(
    inventory: Any, eventually: Any
) -> None:
    deleting = await asyncpg.connect(inventory.database_url, server_settings={"search_path": "inventory"})
    try:
        transaction = deleting.transaction()
        await transaction.start()
        await deleting.execute("DELETE FROM size WHERE id = 'c1-medium'")
        creating = asyncio.create_task(inventory.layouts().CreateFilesystemLayout(layout()))

        async def decided() -> bool:
            return creating.done() or bool(await inventory.sql("SELECT 1 FROM pg_locks WHERE NOT granted"))

        await eventually(decided)
        await transaction.commit()
    finally:
        await deleting.close()
    with pytest.raises(InvalidArgument) as refused:
        await creating
    assert refused.value.field == "filesystem_layout.size_ids[0]"


async def test_a_layout_that_rests_on_nothing_is_refused_by_its_field(inventory: Any) -> None:
    request = layout()
    request.filesystem_layout.filesystems[0].device = "/dev/nvme9n1p1"
    with pytest.raises(InvalidArgument) as refused:
        await inventory.layouts().CreateFilesystemLayout(request)
    assert refused.value.field == "filesystem_layout.filesystems[0].device"
    assert await inventory.sql("SELECT 1 FROM filesystem_layout") == []
