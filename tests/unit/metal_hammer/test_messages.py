"""What the installer sends is valid whatever the hardware says, and what it receives is understood or refused."""

from __future__ import annotations

import protovalidate
import pytest
from hypothesis import given
from hypothesis import strategies as st
from metal_hammer import messages, work
from metal_hammer.disk.layout import Format
from metal_hammer.hardware import facts
from metalplane.allocation.v1 import allocation_pb2, installation_pb2
from metalplane.boot.v1 import boot_pb2
from metalplane.inventory.v1 import layout_pb2

TEXT = st.text(max_size=300)
NUMBER = st.integers(-5, 2**40)
MACHINE = "4c4c4544-0051-3510-8052-b4c04f4e3132"
MACS = st.sampled_from(["02:00:00:00:00:01", "02:00:00:00:00:02", "", "80:00:02:08:fe:80:00:00:00:00", "xx"])
FACTS = st.builds(
    facts.Facts,
    uuid=st.just(MACHINE),
    memory_bytes=st.integers(0, 2**50),
    cpus=st.lists(st.builds(facts.Cpu, TEXT, TEXT, NUMBER, NUMBER), max_size=3).map(tuple),
    gpus=st.lists(st.builds(facts.Gpu, TEXT, TEXT), max_size=2).map(tuple),
    nics=st.lists(st.builds(facts.Nic, st.text(max_size=70), MACS, TEXT, TEXT, NUMBER), max_size=4).map(tuple),
    disks=st.lists(
        st.builds(
            facts.Disk,
            st.just("/dev/sda"),
            st.text(max_size=128) | st.just("S1"),
            st.just("hdd"),
            st.integers(0, 2**60),
            TEXT,
            TEXT,
        ),
        max_size=3,
    ).map(tuple),
    firmware=st.builds(facts.Firmware, TEXT, TEXT, TEXT),
    bmc=st.none() | st.builds(facts.Bmc, TEXT, MACS, TEXT),
    board=st.builds(facts.Board, TEXT, TEXT, TEXT, TEXT, TEXT, TEXT, TEXT),
)
NEIGHBOURS = st.lists(st.builds(facts.Neighbour, TEXT, TEXT, TEXT, TEXT, TEXT), max_size=20)


@given(FACTS, NEIGHBOURS)
def test_no_hardware_makes_a_registration_invalid(found: facts.Facts, heard: list[facts.Neighbour]) -> None:
    neighbours = {nic.name: heard for nic in found.nics}
    request = boot_pb2.RegisterRequest(
        machine=MACHINE,
        session=MACHINE,
        hardware=messages.hardware(found, neighbours),
        bios=messages.bios(found),
        bmc=messages.bmc(found),
        installer_version="1",
    )
    protovalidate.validate(request)
    # Inventory refuses parts that it cannot tell apart, and a machine whose registration is refused reboots for ever.
    assert [disk.serial for disk in request.hardware.disks] == list(
        dict.fromkeys(disk.serial for disk in found.disks if disk.serial)
    )
    macs = [nic.mac for nic in request.hardware.nics]
    assert len(macs) == len(set(macs))


@given(st.floats(-1e9, 1e9), st.booleans())
def test_a_grant_ends_soon_whatever_the_clocks_say(offset: float, dated: bool) -> None:
    message = boot_pb2.DiskGrant(machine=MACHINE, generation=1, disk_serials=["A", "A", "B"])
    wall = 1_800_000_000.0
    if dated:
        message.expire_time.FromNanoseconds(int((wall + offset) * 1e9))
    grant = messages.grant(message, monotonic=50.0, wall=wall)
    assert grant.deadline <= 50.0 + messages.MAX_GRANT_SECONDS
    if not dated or offset <= 0:
        assert grant.deadline <= 50.0
    assert grant.serials == {"A", "B"}


def test_a_verdict_that_is_not_known_means_hold() -> None:
    assert messages.registration(boot_pb2.RegisterResponse(verdict=99)).verdict is work.Verdict.HOLD  # type: ignore[arg-type]


def test_an_item_that_is_not_known_is_skipped() -> None:
    assert messages.item(boot_pb2.WorkResponse(), monotonic=0, wall=0) is None


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (boot_pb2.WorkResponse(wait=boot_pb2.Wait(reason="r")), work.Wait("r")),
        (boot_pb2.WorkResponse(boot_existing=boot_pb2.BootExisting(reason="r")), work.BootExisting("r")),
        (boot_pb2.WorkResponse(reboot=boot_pb2.Reboot(reason="r")), work.Reboot("r")),
    ],
)
def test_simple_items_are_understood(answer: boot_pb2.WorkResponse, expected: work.Item) -> None:
    assert messages.item(answer, monotonic=0, wall=0) == expected


def test_the_install_spec_is_taken_over_whole() -> None:
    network = allocation_pb2.MachineNetwork(asn=4200000001) if hasattr(allocation_pb2.MachineNetwork, "asn") else None
    message = installation_pb2.InstallSpec(
        allocation="a1",
        role=allocation_pb2.ALLOCATION_ROLE_FIREWALL,
        hostname="fw-1",
        image="i",
        image_url="http://x/",
        image_sha256="0" * 64,
        image_size_bytes=7,
        networks=[network] if network else [],
        asn=4200000001,
        ssh_keys=["k"],
        userdata=b"\x00",
        dns_servers=["192.0.2.1"],
        ntp_servers=["n"],
        disk_serials=["A", "B"],
        filesystem_layout=layout_pb2.FilesystemLayout(
            disks=[
                layout_pb2.Disk(
                    device="/dev/sda",
                    partitions=[layout_pb2.DiskPartition(number=1, label="l", size_mib=5, gpt_type="ef00")],
                    wipe_on_reinstall=True,
                )
            ],
            filesystems=[
                layout_pb2.Filesystem(
                    path="/", device="/dev/sda1", format=layout_pb2.FILESYSTEM_FORMAT_XFS, mount_options=["ro"]
                )
            ],
            raids=[layout_pb2.Raid(name="/dev/md0", devices=["a"], level=layout_pb2.RAID_LEVEL_STRIPED)],
            volume_groups=[layout_pb2.VolumeGroup(name="g", devices=["b"], tags=["t"])],
            logical_volumes=[layout_pb2.LogicalVolume(name="v", volume_group="g", type=layout_pb2.VOLUME_TYPE_STRIPED)],
        ),
    )
    spec = messages.spec(message)
    assert (spec.allocation_id, spec.role, spec.hostname, spec.asn) == ("a1", "firewall", "fw-1", 4200000001)
    assert (spec.source.url, spec.source.sha256, spec.source.size_bytes) == ("http://x/", "0" * 64, 7)
    assert spec.disk_serials == {"A", "B"}
    assert spec.layout.disks[0].partitions[0].gpt_type == "ef00"
    assert spec.layout.disks[0].wipe_on_reinstall
    assert spec.layout.filesystems[0].format is Format.XFS
    assert spec.layout.raids[0].level == 0
    assert (spec.layout.logical_volumes[0].kind, spec.layout.volume_groups[0].tags) == ("striped", ("t",))


def test_every_format_of_the_contract_is_known() -> None:
    names = set(layout_pb2.FilesystemFormat.keys()) - {"FILESYSTEM_FORMAT_UNSPECIFIED"}
    for name in names:
        layout = layout_pb2.FilesystemLayout(
            filesystems=[layout_pb2.Filesystem(device="d", format=layout_pb2.FilesystemFormat.Value(name))]
        )
        found = messages.layout(layout).filesystems[0].format
        assert found.value == name.removeprefix("FILESYSTEM_FORMAT_").lower()
