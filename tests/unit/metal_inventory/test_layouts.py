from __future__ import annotations

from dataclasses import replace

import pytest
from metal_inventory.hardware import Disk, Hardware
from metal_inventory.images import parse_name
from metal_inventory.layouts import (
    Filesystem,
    Format,
    GptType,
    ImageConstraint,
    Layout,
    LayoutDisk,
    LogicalVolume,
    Partition,
    Raid,
    VolumeGroup,
    VolumeType,
    misfits,
    overlapping,
    partition_device,
    pick,
    validate,
)

EFI = Partition(1, 500, GptType.EFI)
REST = Partition(2, 0, GptType.LINUX)
PLAIN = Layout(
    "default",
    disks=(LayoutDisk("/dev/sda", (EFI, REST), wipe_on_reinstall=True),),
    filesystems=(
        Filesystem("/dev/sda1", Format.VFAT, "/boot/efi"),
        Filesystem("/dev/sda2", Format.EXT4, "/"),
        Filesystem("tmpfs", Format.TMPFS, "/tmp", mount_options=("size=512M",)),
    ),
    sizes=("c1-medium", "c1-large"),
    images=(ImageConstraint("debian", ">= 12.0"), ImageConstraint("ubuntu", "*")),
)
STACKED = Layout(
    "stacked",
    disks=(
        LayoutDisk("/dev/sda", (Partition(1, 1000, GptType.RAID), Partition(2, 0, GptType.LVM))),
        LayoutDisk("/dev/nvme0n1", (Partition(1, 1000, GptType.RAID), Partition(2, 0, GptType.LVM))),
    ),
    raids=(Raid("/dev/md0", ("/dev/sda1", "/dev/nvme0n1p1"), 1),),
    volume_groups=(VolumeGroup("vg", ("/dev/sda2", "/dev/nvme0n1p2")),),
    logical_volumes=(LogicalVolume("root", "vg", 1000, VolumeType.RAID1), LogicalVolume("var", "vg", 0)),
    filesystems=(
        Filesystem("/dev/md0", Format.VFAT, "/boot/efi"),
        Filesystem("/dev/vg/root", Format.EXT4, "/"),
        Filesystem("/dev/vg/var", Format.XFS, "/var"),
    ),
)


@pytest.mark.parametrize("layout", [PLAIN, STACKED], ids=lambda layout: layout.id)
def test_a_layout_whose_layers_rest_on_each_other_is_valid(layout: Layout) -> None:
    assert validate(layout) == []


def test_names_that_end_in_a_digit_get_a_p_before_the_partition_number() -> None:
    assert partition_device("/dev/sda", 1) == "/dev/sda1"
    assert partition_device("/dev/nvme0n1", 1) == "/dev/nvme0n1p1"


def _disk(*partitions: Partition) -> Layout:
    return Layout("x", disks=(LayoutDisk("/dev/sda", partitions),))


OPTION = "filesystems[0].create_options[0]"


def _ext4(device: str, path: str = "/") -> Filesystem:
    return Filesystem(device, Format.EXT4, path)


def _volumes(*volumes: LogicalVolume) -> Layout:
    return replace(STACKED, logical_volumes=volumes)


@pytest.mark.parametrize(
    ("layout", "field"),
    [
        (_disk(REST, Partition(3, 5, GptType.LINUX)), "disks[0].partitions[0].size_mib"),
        (_disk(Partition(0, 5, GptType.LINUX)), "disks[0].partitions[0].number"),
        (_disk(EFI, EFI), "disks[0].partitions[0].number"),
        (_disk(Partition(1, -1, GptType.LINUX)), "disks[0].partitions[0].size_mib"),
        (Layout("x", disks=(LayoutDisk("sda"),)), "disks[0].device"),
        (replace(PLAIN, disks=()), "filesystems[0].device"),
        (replace(PLAIN, filesystems=(*PLAIN.filesystems, _ext4("/dev/sda2", "/x"))), "filesystems[3].device"),
        (replace(PLAIN, filesystems=(_ext4("/dev/sda"),)), "filesystems[0].device"),
        (replace(PLAIN, filesystems=(_ext4("/dev/sda1"), _ext4("/dev/sda2"))), "filesystems[0].path"),
        (replace(PLAIN, filesystems=(replace(_ext4("/dev/sda1"), create_options=("-L x",)),)), OPTION),
        (_disk(Partition(2, 5, GptType.LINUX), Partition(1, 0, GptType.LINUX)), "disks[0].partitions[1].number"),
        (replace(PLAIN, filesystems=(_ext4("/dev/sda1", "/var"),)), "filesystems"),
        (replace(PLAIN, filesystems=()), "filesystems"),
        (replace(PLAIN, filesystems=(_ext4("/dev/sda1"), _ext4("/dev/sda2", "/../x"))), "filesystems[1].path"),
        (replace(PLAIN, filesystems=(_ext4("/dev/sda1"), _ext4("/dev/sda2", "var"))), "filesystems[1].path"),
        (replace(PLAIN, filesystems=(Filesystem("", Format.TMPFS),)), "filesystems[0].path"),
        (replace(PLAIN, filesystems=(Filesystem("/dev/sda1", Format.SWAP, "/"),)), "filesystems[0].format"),
        (replace(PLAIN, filesystems=(replace(_ext4("/dev/sda1"), label="-L"),)), "filesystems[0].label"),
        (replace(STACKED, raids=(Raid("/dev/md0", ("/dev/sda1", "/dev/nvme0n1p1"), 5),)), "raids[0].level"),
        (replace(STACKED, raids=(Raid("/dev/md0", ("/dev/sda1", "/dev/nvme0n1p1"), 1, spares=1),)), "raids[0].devices"),
        (replace(STACKED, raids=(Raid("/dev/md0", ("/dev/sda1", "/dev/sdz1"), 1),)), "raids[0].devices[1]"),
        (replace(STACKED, volume_groups=(VolumeGroup("vg", ("/dev/sda2",)),)), "logical_volumes[0].type"),
        (_volumes(*STACKED.logical_volumes, LogicalVolume("x", "vg", 1)), "logical_volumes[1].size_mib"),
        (_volumes(*STACKED.logical_volumes, LogicalVolume("x", "other", 0)), "logical_volumes[2].volume_group"),
        (replace(PLAIN, sizes=("c1-*",)), "size_ids[0]"),
        (replace(PLAIN, sizes=("a", "a")), "size_ids[0]"),
        (replace(PLAIN, sizes=()), "size_ids"),
        (replace(PLAIN, images=()), "image_constraints"),
        (replace(PLAIN, images=(ImageConstraint("*", "*"),)), "image_constraints.*"),
        (replace(PLAIN, images=(ImageConstraint("debian", ">=12"),)), "image_constraints.debian"),
    ],
)  # fmt: skip
def test_a_wrong_layout_is_refused_by_its_field(layout: Layout, field: str) -> None:
    assert field in [where for where, _ in validate(layout)]


def test_the_layout_for_a_size_and_an_image_is_picked() -> None:
    other = replace(PLAIN, id="old", images=(ImageConstraint("debian", "< 12"),))
    layouts = [STACKED, other, PLAIN]
    assert pick(layouts, "c1-medium", parse_name("debian-12.0.20250101")) is PLAIN
    assert pick(layouts, "c1-medium", parse_name("debian-11.4.20250101")) is other
    assert pick(layouts, "c1-medium", parse_name("centos-9.0.20250101")) is None
    assert pick(layouts, "unknown", parse_name("debian-12.0.20250101")) is None


@pytest.mark.parametrize(
    ("images", "sizes", "overlaps"),
    [
        ((ImageConstraint("debian", "< 12"),), ("c1-medium",), False),
        ((ImageConstraint("debian", "<= 12"),), ("c1-medium",), True),
        ((ImageConstraint("debian", "<= 12"),), ("other",), False),
        ((ImageConstraint("centos", "*"),), ("c1-medium",), False),
        ((), (), False),
    ],
)
def test_two_layouts_may_not_both_suit_a_size_and_an_image(
    images: tuple[ImageConstraint, ...], sizes: tuple[str, ...], overlaps: bool
) -> None:
    other = replace(PLAIN, id="other", images=images, sizes=sizes)
    assert overlapping(other, [PLAIN, STACKED]) == ([PLAIN] if overlaps else [])


def test_an_update_of_a_layout_does_not_overlap_with_itself() -> None:
    assert overlapping(PLAIN, [PLAIN]) == []


def test_a_layout_fits_disks_that_are_there_and_large_enough() -> None:
    # 500 MiB, one at least for the rest, and two for the partition table.
    mib = 1 << 20
    assert misfits(PLAIN, Hardware(disks=(Disk("/dev/sda", 503 * mib),))) == []
    assert misfits(PLAIN, Hardware(disks=(Disk("sda", 503 * mib),))) == []
    assert "502 MiB" in misfits(PLAIN, Hardware(disks=(Disk("/dev/sda", 503 * mib - 1),)))[0]
    assert misfits(PLAIN, Hardware(disks=(Disk("/dev/sdb", 503 * mib),))) == ["the machine has no disk /dev/sda"]
