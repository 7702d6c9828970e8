"""Simulated machines behave like the real thing where an installer could tell the difference."""

from __future__ import annotations

from pathlib import Path

import pytest
from metal_sim.machine import (
    Disk,
    KernelStarted,
    MachineFacts,
    Neighbour,
    Nic,
    PowerLost,
    Rebooted,
    SimulatedHardware,
    build,
    run_until_stopped,
)
from metal_sim.machine.disk import MIB

DISK = Disk("/dev/nvme0n1", "S1", "nvme", 64 * MIB)
SATA = Disk("/dev/sda", "S2", "ssd", 64 * MIB)


def machine(directory: Path, *disks: Disk, **more: object) -> SimulatedHardware:
    facts = MachineFacts("uuid", (Nic("eth0", "02:00:00:00:00:01"),), disks or (DISK,))
    return SimulatedHardware(facts, directory, **more)  # type: ignore[arg-type]


async def ok(hardware: SimulatedHardware, line: str) -> bytes:
    done = await hardware.run(line.split(), deadline=10)
    assert done.returncode == 0, (line, done.stderr)
    return done.stdout


async def code(hardware: SimulatedHardware, line: str) -> int:
    return (await hardware.run(line.split(), deadline=10)).returncode


async def install(hardware: SimulatedHardware) -> None:
    """What an installer does, in short."""
    await ok(hardware, "sgdisk --new=1:0:+8M --typecode=1:ef00 --new=2:0:0 /dev/nvme0n1")
    await ok(hardware, "mkfs.ext4 -F -q -L root /dev/nvme0n1p2")
    await ok(hardware, f"mount -t ext4 /dev/nvme0n1p2 {hardware.target}")
    for name, text in (("boot/vmlinuz", "k"), ("install.sh", "#!"), ("etc/metal/install.yaml", "hostname: h\n")):
        path = hardware.target / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    await ok(hardware, f"chroot {hardware.target} /install.sh")


async def test_an_installed_system_is_found_after_a_reset_and_after_a_restart(tmp_path: Path) -> None:
    hardware = machine(tmp_path)
    assert hardware.installed_system() is None
    await install(hardware)
    hardware.reset()
    again = machine(tmp_path)
    for each in (hardware, again):
        system = each.installed_system()
        assert system is not None
        assert (system.kernel, system.hostname) == ("/boot/vmlinuz", "h")


@pytest.mark.parametrize(
    "line",
    [
        "nvme format /dev/nvme0n1 --ses=1 --force",
        "blkdiscard --zeroout --force /dev/nvme0n1",
        "mkfs.ext4 /dev/nvme0n1p2",
    ],
)
async def test_what_takes_the_bytes_takes_the_files(tmp_path: Path, line: str) -> None:
    hardware = machine(tmp_path)
    await install(hardware)
    hardware.reset()
    await ok(hardware, line)
    assert hardware.installed_system() is None
    assert not hardware.disks["S1"].has_files


async def test_overwriting_the_bytes_by_hand_takes_the_files_too(tmp_path: Path) -> None:
    hardware = machine(tmp_path)
    await install(hardware)
    for offset in range(0, DISK.size_bytes, 4 * MIB):
        await hardware.write_at(DISK.device, offset, bytes(4 * MIB))
    assert not hardware.disks["S1"].has_files
    assert hardware.installed_system() is None


async def test_a_huge_disk_costs_its_host_nothing_when_it_is_overwritten(tmp_path: Path) -> None:
    huge = Disk("/dev/sda", "S", "hdd", 2 * 10**12)
    hardware = machine(tmp_path, huge)
    await hardware.write_at("/dev/sda", 10**12, b"data")
    for offset in range(10**12 - 8 * MIB, 10**12 + 8 * MIB, 4 * MIB):
        await hardware.write_at("/dev/sda", offset, bytes(4 * MIB))
    assert await hardware.read_at("/dev/sda", 10**12, 4) == bytes(4)
    assert hardware.disks["S"].raw.stat().st_blocks * 512 < MIB


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("mount -t ext4 /dev/nvme0n1p2 TARGET", 2),
        ("mkfs.ext4 /dev/nvme0n1p9", 2),
        ("mkfs.ext4 --no-such-option /dev/nvme0n1", 2),
        ("sgdisk --new=1:0:+64M /dev/nvme0n1", 2),
        ("nvme format /dev/sda --ses=1", 1),
        ("hdparm -I /dev/nvme0n1", 25),
        ("umount TARGET", 32),
        ("chroot TARGET /install.sh", 127),
        ("rm -rf /", 127),
    ],
)
async def test_programs_fail_where_the_real_ones_fail(tmp_path: Path, line: str, expected: int) -> None:
    hardware = machine(tmp_path, DISK, SATA)
    assert await code(hardware, line.replace("TARGET", str(hardware.target))) == expected


async def test_a_file_system_is_mounted_as_what_it_is_and_below_its_root(tmp_path: Path) -> None:
    hardware = machine(tmp_path)
    await ok(hardware, "sgdisk --new=1:0:+8M --new=2:0:0 /dev/nvme0n1")
    await ok(hardware, "mkfs.vfat -F 32 /dev/nvme0n1p1")
    await ok(hardware, "mkfs.xfs -f /dev/nvme0n1p2")
    target = hardware.target
    assert await code(hardware, f"mount -t ext4 /dev/nvme0n1p2 {target}") == 32
    assert await code(hardware, f"mount -t vfat /dev/nvme0n1p1 {target}/boot") == 32
    await ok(hardware, f"mount -t xfs /dev/nvme0n1p2 {target}")
    await ok(hardware, f"mount -t vfat /dev/nvme0n1p1 {target}/boot")
    assert await code(hardware, f"umount {target}") == 32
    await ok(hardware, f"umount {target}/boot")
    await ok(hardware, f"umount {target}")


async def test_arrays_and_volumes_can_be_formatted_and_named(tmp_path: Path) -> None:
    hardware = machine(tmp_path, DISK, SATA)
    for device in ("/dev/nvme0n1", "/dev/sda"):
        await ok(hardware, f"sgdisk --new=1:0:0 --typecode=1:fd00 {device}")
    await ok(hardware, "mdadm --create /dev/md0 --run --level=1 --raid-devices=2 /dev/nvme0n1p1 /dev/sda1")
    await ok(hardware, "lvm vgcreate --yes data /dev/md0")
    await ok(hardware, "lvm lvcreate --yes --name a --size 10m data")
    await ok(hardware, "lvm lvcreate --yes --name b --extents 100%FREE data")
    uuids = set()
    for device in ("/dev/data/a", "/dev/data/b"):
        await ok(hardware, f"mkfs.ext4 {device}")
        uuids.add(await ok(hardware, f"blkid -o value -s UUID {device}"))
    assert len(uuids) == 2


async def test_without_power_nothing_runs(tmp_path: Path) -> None:
    powered = True
    hardware = machine(tmp_path, powered=lambda: powered)
    powered = False
    for call in (
        hardware.facts(),
        hardware.run(("true",), deadline=1),
        hardware.read_at(DISK.device, 0, 1),
        hardware.write_at(DISK.device, 0, b"x"),
        hardware.neighbours(within=1, enough=1),
        hardware.reboot(),
    ):
        assert isinstance(await run_until_stopped(call), PowerLost)


async def test_a_kernel_starts_only_after_it_was_loaded(tmp_path: Path) -> None:
    hardware = machine(tmp_path)
    with pytest.raises(OSError, match="Nothing has been loaded"):
        await hardware.kexec()
    with pytest.raises(FileNotFoundError):
        await hardware.kexec_load(tmp_path / "none", None, "")
    await install(hardware)
    await hardware.kexec_load(hardware.target / "boot/vmlinuz", None, "ro")
    await ok(hardware, f"umount {hardware.target}")
    stopped = await run_until_stopped(hardware.kexec())
    assert isinstance(stopped, KernelStarted)
    assert stopped.command_line == "ro"
    hardware.reset()
    with pytest.raises(OSError, match="Nothing has been loaded"):
        await hardware.kexec()
    assert isinstance(await run_until_stopped(hardware.reboot()), Rebooted)


async def test_an_installer_that_returns_is_a_mistake() -> None:
    async def returns() -> None:
        return

    with pytest.raises(RuntimeError, match="a processor cannot"):
        await run_until_stopped(returns())


async def test_neighbours_are_heard_as_soon_as_enough_cables_are_in(tmp_path: Path) -> None:
    cables: dict[str, list[Neighbour]] = {}
    hardware = machine(tmp_path, wiring=lambda mac: cables.get(mac, []))
    assert await hardware.neighbours(within=0.05, enough=1) == {"eth0": []}
    cables["02:00:00:00:00:01"] = [Neighbour("02:00:00:aa:00:01", "Ethernet0")]
    heard = await hardware.neighbours(within=10, enough=1)
    assert heard["eth0"][0].port_id == "Ethernet0"
    hardware.faults.no_lldp.add("02:00:00:00:00:01")
    assert await hardware.neighbours(within=0.05, enough=1) == {"eth0": []}


def test_the_same_image_has_the_same_bytes(tmp_path: Path) -> None:
    first, second = build(tmp_path / "a", padding=1000), build(tmp_path / "b", padding=1000)
    assert first.sha256 == second.sha256
    assert first.size_bytes >= 1000
    assert build(tmp_path / "c", name="other-1.0").sha256 != first.sha256
