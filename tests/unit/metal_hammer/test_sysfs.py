from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from metal_hammer.hardware import sysfs
from metal_hammer.hardware.linux import read_bmc

UUID = "4C4C4544-0051-3510-8052-B4C04F4E3132"


def put(root: Path, files: dict[str, str | bytes]) -> None:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else f"{content}\n".encode())


def disk(name: str, **files: Any) -> dict[str, str | bytes]:
    defaults: dict[str, str | bytes] = {"size": "1000215216", "removable": "0", "ro": "0", "queue/rotational": "0"}
    return {f"sys/block/{name}/{key.replace('__', '/')}": value for key, value in (defaults | files).items()}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    put(
        tmp_path,
        {
            "sys/class/dmi/id/product_uuid": UUID,
            "sys/class/dmi/id/bios_vendor": "AMI",
            "sys/class/dmi/id/bios_version": "1.4 ",
            "sys/class/dmi/id/chassis_serial": "CH1",
            "proc/meminfo": "MemTotal:       65536 kB\nMemFree: 1 kB",
        },
    )
    return tmp_path


def test_the_uuid_is_lower_case_and_strings_are_trimmed(root: Path) -> None:
    found = sysfs.inspect(root)
    assert found.uuid == UUID.lower()
    assert (found.firmware.vendor, found.firmware.version, found.board.chassis_serial) == ("AMI", "1.4", "CH1")


@pytest.mark.parametrize(
    "uuid", ["", "00000000-0000-0000-0000-000000000000", "FFFFFFFF-FFFF-FFFF-FFFF-FFFFFFFFFFFF", "Not Settable"]
)
def test_a_machine_without_a_usable_uuid_is_not_inspected(root: Path, uuid: str) -> None:
    put(root, {"sys/class/dmi/id/product_uuid": uuid})
    with pytest.raises(OSError, match="no usable UUID"):
        sysfs.inspect(root)


def test_memory_counts_whole_blocks_and_falls_back_to_meminfo(root: Path) -> None:
    assert sysfs.memory(root) == 65536 * 1024
    put(
        root,
        {
            "sys/devices/system/memory/block_size_bytes": "8000000",
            "sys/devices/system/memory/memory0/state": "online",
            "sys/devices/system/memory/memory1/state": "online",
            "sys/devices/system/memory/memory2/state": "offline",
        },
    )
    assert sysfs.memory(root) == 2 * 0x8000000


def test_processors_are_counted_by_socket() -> None:
    text = "\n\n".join(
        f"processor\t: {number}\nvendor_id\t: GenuineIntel\nmodel name\t: Xeon\nphysical id\t: {number % 2}\n"
        "siblings\t: 16\ncpu cores\t: 8"
        for number in range(32)
    )
    found = sysfs.cpus(text)
    assert [(cpu.cores, cpu.threads, cpu.model) for cpu in found] == [(8, 16, "Xeon")] * 2


def test_every_kind_of_disk_is_found_with_its_serial(root: Path) -> None:
    page = b"\x00\x80\x00\x0c  SCSI-123\x00\x00"
    put(
        root,
        {
            **disk("nvme0n1", device__serial="NVME-1  ", device__model="Fast", wwid="eui.1"),
            **disk("sda", device__vpd_pg80=page, device__wwid="naa.5"),
            **disk("sdb", queue__rotational="1", device__wwid="naa.6"),
            **disk("vda", serial="virt-1", ro="1"),
        },
    )
    found = {each.device: each for each in sysfs.disks(root)}
    assert {device: (each.serial, each.kind) for device, each in found.items()} == {
        "/dev/nvme0n1": ("NVME-1", "nvme"),
        "/dev/sda": ("SCSI-123", "ssd"),
        "/dev/sdb": ("naa.6", "hdd"),
        "/dev/vda": ("virt-1", "ssd"),
    }
    assert found["/dev/vda"].read_only
    assert found["/dev/sda"].size_bytes == 1000215216 * 512


def test_what_cannot_hold_a_tenants_data_is_left_out(root: Path) -> None:
    names = ("loop0", "ram0", "zram0", "dm-0", "md127", "sr0", "fd0", "nbd1", "nvme0c0n1", "mmcblk0boot0")
    put(root, {key: value for name in names for key, value in disk(name).items()})
    put(root, {**disk("sdx", removable="1"), **disk("sdy", size="0"), **disk("sdz", hidden="1"), **disk("mmcblk0")})
    assert [each.device for each in sysfs.disks(root)] == ["/dev/mmcblk0"]


@pytest.mark.parametrize("page", [b"", b"\x00\x83\x00\x04abcd", b"\x00\x80", b"\x00\x80\x00\xffshort"])
def test_a_damaged_serial_page_does_not_stop_the_inspection(root: Path, page: bytes) -> None:
    put(root, disk("sda", device__vpd_pg80=page))
    assert sysfs.disks(root)[0].serial in ("", "short")


def test_interfaces_without_hardware_are_left_out(root: Path) -> None:
    driver = root / "drivers/i40e"
    pci = root / "devices/0000:65:00.0"
    driver.mkdir(parents=True)
    pci.mkdir(parents=True)
    (pci / "driver").symlink_to(driver)
    net = "sys/class/net"
    put(root, {f"{net}/eth0/address": "02:AA:00:00:00:01", f"{net}/eth0/type": "1", f"{net}/eth0/speed": "-1"})
    put(root, {f"{net}/lo/type": "772", f"{net}/bond0/type": "1", f"{net}/ib0/type": "32"})
    (root / net / "eth0/device").symlink_to(pci)
    (root / net / "ib0/device").symlink_to(pci)
    (nic,) = sysfs.nics(root)
    assert (nic.name, nic.mac, nic.driver, nic.pci_address, nic.speed_mbps) == (
        "eth0",
        "02:aa:00:00:00:01",
        "i40e",
        "0000:65:00.0",
        0,
    )


def test_a_bmcs_graphics_chip_is_no_gpu(root: Path) -> None:
    put(
        root,
        {
            "sys/bus/pci/devices/a/vendor": "0x1a03",
            "sys/bus/pci/devices/a/class": "0x030000",
            "sys/bus/pci/devices/b/vendor": "0x10de",
            "sys/bus/pci/devices/b/class": "0x030200",
            "sys/bus/pci/devices/b/device": "0x20b5",
            "sys/bus/pci/devices/c/vendor": "0x10de",
            "sys/bus/pci/devices/c/class": "0x040300",
        },
    )
    assert [(gpu.vendor, gpu.model) for gpu in sysfs.gpus(root)] == [("NVIDIA", "0x20b5")]


LAN = """Set in Progress         : Set Complete
IP Address Source       : Static Address
IP Address              : 198.51.100.7
Subnet Mask             : 255.255.255.0
MAC Address             : AC:1F:6B:00:00:01
"""


def test_the_bmc_is_read_from_what_ipmitool_prints() -> None:
    found = read_bmc(LAN, "Device ID : 32\nFirmware Revision         : 1.74\n")
    assert found is not None
    assert (found.address, found.mac, found.version) == ("198.51.100.7:623", "ac:1f:6b:00:00:01", "1.74")
    assert read_bmc("", "") is None
    assert read_bmc(LAN.replace("198.51.100.7", "0.0.0.0"), "") is None
