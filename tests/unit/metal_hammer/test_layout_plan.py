"""Golden command plans, and the rules that keep a plan inside of what was asked for."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from metal_hammer.disk.layout import (
    Filesystem,
    Format,
    Layout,
    LayoutDisk,
    LayoutError,
    LogicalVolume,
    Partition,
    Raid,
    VolumeGroup,
    partition_device,
    validate,
)
from metal_hammer.disk.plan import Plan, fstab, plan
from metal_hammer.hardware.facts import Disk

GIB = 1024**3
GOLDEN = Path(__file__).parent / "golden"

SDA = Disk("/dev/sda", "SER-A", "ssd", 100 * GIB)
SDB = Disk("/dev/sdb", "SER-B", "ssd", 100 * GIB)
NVME = Disk("/dev/nvme0n1", "SER-N", "nvme", 100 * GIB)

PLAIN = Layout(
    disks=(
        LayoutDisk(
            "/dev/nvme0n1",
            (Partition(1, 512, "efi", "ef00"), Partition(2, 5000, "root"), Partition(3, 0, "varlib")),
            wipe_on_reinstall=True,
        ),
    ),
    filesystems=(
        Filesystem("/dev/nvme0n1p3", Format.XFS, "/var/lib", "varlib", ("noatime", "nodev")),
        Filesystem("/dev/nvme0n1p2", Format.EXT4, "/", "root"),
        Filesystem("/dev/nvme0n1p1", Format.VFAT, "/boot/efi", "efi", (), ("-n", "EFI")),
        Filesystem("", Format.TMPFS, "/tmp", mount_options=("size=512M",)),
    ),
)
MIRROR = Layout(
    disks=tuple(
        LayoutDisk(
            device,
            (Partition(1, 512, "efi", "fd00"), Partition(2, 0, "root", "fd00")),
            wipe_on_reinstall=True,
        )
        for device in ("/dev/sda", "/dev/sdb")
    ),
    raids=(
        Raid("/dev/md0", ("/dev/sda1", "/dev/sdb1"), 1, ("--metadata=1.0",)),
        Raid("/dev/md1", ("/dev/sda2", "/dev/sdb2"), 1),
    ),
    filesystems=(
        Filesystem("/dev/md0", Format.VFAT, "/boot/efi", "efi"),
        Filesystem("/dev/md1", Format.EXT4, "/", "root"),
    ),
)
STRIPED = Layout(
    disks=(
        LayoutDisk("/dev/nvme0n1", (Partition(1, 512, "efi", "ef00"), Partition(2, 0, "root")), wipe_on_reinstall=True),
        LayoutDisk("/dev/sda", ()),
        LayoutDisk("/dev/sdb", ()),
    ),
    volume_groups=(VolumeGroup("data", ("/dev/sda", "/dev/sdb"), ("metal", "tenant")),),
    logical_volumes=(
        LogicalVolume("swap", "data", 4096),
        LogicalVolume("safe", "data", 8192, "raid1"),
        LogicalVolume("scratch", "data", 0, "striped"),
    ),
    filesystems=(
        Filesystem("/dev/nvme0n1p1", Format.VFAT, "/boot/efi", "efi"),
        Filesystem("/dev/nvme0n1p2", Format.EXT4, "/", "root"),
        Filesystem("/dev/data/swap", Format.SWAP, label="swap"),
        Filesystem("/dev/data/safe", Format.EXT3, "/srv/safe"),
        Filesystem("/dev/data/scratch", Format.XFS, "/srv/scratch space"),
    ),
)
DISKS = (SDA, SDB, NVME)


def render(made: Plan) -> str:
    lines = [f"disks: {' '.join(sorted(made.serials))}"]
    lines += [f"{'~' if command.may_fail else '$'} {' '.join(command.argv)}" for command in made.commands]
    lines += [
        f"mount {each.device} {each.path} {each.format} {','.join(each.options)}".rstrip() for each in made.mounts
    ]
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("reinstall", [False, True])
@pytest.mark.parametrize(("name", "layout"), [("plain", PLAIN), ("mirror", MIRROR), ("striped", STRIPED)])
def test_the_plan_is_the_golden_one(name: str, layout: Layout, reinstall: bool, request: pytest.FixtureRequest) -> None:
    golden = GOLDEN / f"{name}{'-reinstall' if reinstall else ''}.plan"
    made = render(plan(layout, DISKS, reinstall=reinstall))
    assert made == golden.read_text()


def test_the_file_system_table_is_the_golden_one() -> None:
    uuids = {entry.device: f"uuid-of-{entry.device[5:].replace('/', '-')}" for entry in STRIPED.filesystems}
    assert fstab(STRIPED, uuids) == (
        "UUID=uuid-of-data-swap none swap defaults 0 0\n"
        "UUID=uuid-of-nvme0n1p2 / ext4 defaults 0 1\n"
        "UUID=uuid-of-nvme0n1p1 /boot/efi vfat defaults 0 2\n"
        "UUID=uuid-of-data-safe /srv/safe ext3 defaults 0 2\n"
        "UUID=uuid-of-data-scratch /srv/scratch\\040space xfs defaults 0 2\n"
    )
    assert fstab(PLAIN, {f"/dev/nvme0n1p{number}": str(number) for number in (1, 2, 3)}).splitlines()[1:] == [
        "tmpfs /tmp tmpfs size=512M 0 0",
        "UUID=1 /boot/efi vfat defaults 0 2",
        "UUID=3 /var/lib xfs noatime,nodev 0 2",
    ]


def change(layout: Layout, **changes: object) -> Layout:
    return dataclasses.replace(layout, **changes)  # type: ignore[arg-type]


def part(number: int, size: int, gpt: str = "8300") -> Partition:
    return Partition(number, size, "", gpt)


ROOT = Filesystem("/dev/sda1", Format.EXT4, "/")
BAD: dict[str, Layout] = {
    "partition numbers": Layout((ROOT,), (LayoutDisk("/dev/sda", (part(2, 10), part(1, 10))),)),
    "takes the rest": Layout((ROOT,), (LayoutDisk("/dev/sda", (part(1, 0), part(2, 10))),)),
    "must be 1..128": Layout((ROOT,), (LayoutDisk("/dev/sda", (part(1, 10), part(129, 10))),)),
    "GPT type": Layout((ROOT,), (LayoutDisk("/dev/sda", (part(1, 10, "0700"),)),)),
    "disk device": Layout((ROOT,), (LayoutDisk("/dev/../etc/passwd", (part(1, 10),)),)),
    "nothing provides '/dev/sda1'": Layout((ROOT,), (LayoutDisk("/dev/sdb", (part(1, 10),)),)),
    "repeated device": Layout((ROOT,), (LayoutDisk("/dev/sda", (part(1, 10),)), LayoutDisk("/dev/sda", (part(1, 9),)))),
    "repeated use": change(PLAIN, filesystems=(*PLAIN.filesystems, Filesystem("/dev/nvme0n1p2", Format.EXT4, "/x"))),
    "repeated mount point": change(
        PLAIN, filesystems=(*PLAIN.filesystems, Filesystem("", Format.TMPFS, "/var/lib"))
    ),
    "exactly one": change(PLAIN, filesystems=PLAIN.filesystems[:1]),
    "cannot be swap": change(PLAIN, filesystems=(Filesystem("/dev/nvme0n1p2", Format.SWAP, "/"),)),
    "mount point '/a/../b'": change(
        PLAIN, filesystems=(*PLAIN.filesystems[1:], Filesystem("/dev/nvme0n1p3", Format.EXT4, "/a/../b"))
    ),
    "tmpfs needs": change(PLAIN, filesystems=(*PLAIN.filesystems, Filesystem("", Format.TMPFS))),
    "white space": change(
        PLAIN, filesystems=(Filesystem("/dev/nvme0n1p2", Format.EXT4, "/", create_options=("-O a",)),)
    ),
    "level must be": change(MIRROR, raids=(dataclasses.replace(MIRROR.raids[0], level=5), MIRROR.raids[1])),
    "two active devices": change(MIRROR, raids=(dataclasses.replace(MIRROR.raids[0], spares=1), MIRROR.raids[1])),
    "no volume group": change(STRIPED, volume_groups=()),
    "only the last volume": change(STRIPED, logical_volumes=tuple(reversed(STRIPED.logical_volumes))),
    "at least two devices": change(STRIPED, volume_groups=(VolumeGroup("data", ("/dev/sda",)),)),
    "volume group name": change(STRIPED, volume_groups=(VolumeGroup("-rf", ("/dev/sda",)),)),
}  # fmt: skip


@pytest.mark.parametrize("said", sorted(BAD))
def test_a_layout_that_contradicts_itself_is_refused_with_the_rule(said: str) -> None:
    with pytest.raises(LayoutError) as refused:
        validate(BAD[said])
    assert said in str(refused.value)


def test_a_layout_for_a_disk_that_is_not_there_is_refused() -> None:
    with pytest.raises(LayoutError, match="no disk /dev/nvme0n1"):
        plan(PLAIN, [SDA, SDB], reinstall=False)


def test_a_layout_larger_than_the_disk_is_refused() -> None:
    small = Disk("/dev/nvme0n1", "S", "nvme", 5514 * 1024**2)
    with pytest.raises(LayoutError, match="has 5514 MiB, the layout needs 5515 MiB"):
        plan(PLAIN, [small], reinstall=False)
    plan(PLAIN, [dataclasses.replace(small, size_bytes=5515 * 1024**2)], reinstall=False)


def test_a_read_only_disk_is_refused() -> None:
    with pytest.raises(LayoutError, match="read-only"):
        plan(PLAIN, [dataclasses.replace(NVME, read_only=True)], reinstall=False)


def test_a_reinstall_that_would_keep_the_root_is_refused() -> None:
    kept = change(PLAIN, disks=(dataclasses.replace(PLAIN.disks[0], wipe_on_reinstall=False),))
    with pytest.raises(LayoutError, match="holds /"):
        plan(kept, DISKS, reinstall=True)


def test_a_reinstall_does_not_tear_an_array_apart() -> None:
    torn = change(MIRROR, disks=(MIRROR.disks[0], dataclasses.replace(MIRROR.disks[1], wipe_on_reinstall=False)))
    with pytest.raises(LayoutError, match="/dev/md0"):
        plan(torn, DISKS, reinstall=True)


@st.composite
def layouts(draw: st.DrawFn) -> Layout:
    """Sound layouts of plain partitions over some of three disks."""
    disks: list[LayoutDisk] = []
    filesystems: list[Filesystem] = []
    for name in draw(st.lists(st.sampled_from(["sda", "sdb", "nvme0n1"]), min_size=1, unique=True)):
        device = f"/dev/{name}"
        sizes = draw(st.lists(st.integers(1, 20_000), min_size=1, max_size=4))
        parts = tuple(Partition(number, size, f"p{number}") for number, size in enumerate(sizes, 1))
        disks.append(LayoutDisk(device, parts, wipe_on_reinstall=draw(st.booleans()) or not disks))
        for each in parts:
            path = "/" if not filesystems else draw(st.sampled_from(["", f"/{name}/{each.number}"]))
            format_ = draw(st.sampled_from([Format.EXT4, Format.XFS, Format.EXT3]))
            filesystems.append(Filesystem(partition_device(device, each.number), format_, path))
    return Layout(tuple(filesystems), tuple(disks))


@given(layouts(), st.booleans())
def test_a_plan_names_no_device_of_a_disk_that_it_does_not_declare(layout: Layout, reinstall: bool) -> None:
    made = plan(layout, DISKS, reinstall=reinstall)
    by_serial = {disk.serial: disk.device for disk in DISKS}
    declared = {by_serial[serial] for serial in made.serials}
    for command in made.commands:
        for word in command.argv:
            if word.startswith("/dev/"):
                assert any(word == device or word.startswith(device) for device in declared), command


@given(layouts())
def test_a_reinstall_writes_to_exactly_the_disks_that_are_marked(layout: Layout) -> None:
    marked = {disk.device for disk in layout.disks if disk.wipe_on_reinstall}
    made = plan(layout, DISKS, reinstall=True)
    assert made.serials == {disk.serial for disk in DISKS if disk.device in marked}
    assert plan(layout, DISKS, reinstall=False).serials == {
        disk.serial for disk in DISKS if disk.device in {each.device for each in layout.disks}
    }


@given(layouts(), st.booleans())
def test_parents_are_mounted_before_their_children(layout: Layout, reinstall: bool) -> None:
    paths = [mount.path for mount in plan(layout, DISKS, reinstall=reinstall).mounts]
    assert paths[0] == "/"
    for number, path in enumerate(paths):
        assert not any(later != path and path.startswith(later.rstrip("/") + "/") for later in paths[number + 1 :])
