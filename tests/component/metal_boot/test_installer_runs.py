from __future__ import annotations

import asyncio
import os
import stat
import time
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from metal_hammer.contact import Rules
from metal_sim.machine import Disk, KernelStarted, PowerLost, Rebooted
from metalplane.allocation.v1 import installation_pb2
from metalplane.audit.v1.audit_pb2 import AuditPhase
from metalplane.inventory.v1 import machine_pb2

from .conftest import FAST, MIB, Machine, NewMachine, World

START = installation_pb2.INSTALLATION_STATE_START
SECRET = b"an old tenant's data"


async def waiting(machine: Machine, eventually: Any) -> asyncio.Task[Any]:
    """Power the machine on and wait until it waits."""
    running = machine.power_on()
    inventory, before = machine.world.inventory, machine.record.generation
    await eventually(
        lambda: (
            running.done()
            or (
                machine.uuid in inventory.leases
                and machine.record.generation > before
                and machine.events[-1] == "WAITING"
            )
        )
    )
    assert not running.done(), running
    return running


async def test_a_machine_is_registered_wiped_waits_and_is_installed_and_started(
    world: World, new_machine: NewMachine, eventually: Any
) -> None:
    machine = new_machine()
    await machine.hardware.write_at("/dev/sda", 16 * MIB - len(SECRET), SECRET)
    running = await waiting(machine, eventually)

    assert machine.events == ["PXE_BOOTING", "PREPARING", "REGISTERING", "WAITING"]
    methods = {result.serial: result.method for result in machine.record.wipe_results}
    assert methods == {"NVME1": "nvme-format-crypto", "HDD1": "overwrite"}
    assert machine.record.disks_clean
    assert not any(await machine.hardware.read_at("/dev/sda", 0, 16 * MIB))
    neighbours = [(nic.name, nic.neighbours[0].system_name) for nic in machine.record.hardware.nics]
    assert neighbours == [("eth0", "leaf01"), ("eth1", "leaf02")]

    world.allocate(machine.uuid)
    await eventually(lambda: world.allocation.results)
    result = world.allocation.results[0]
    assert result.succeeded, result
    assert [disk.serial for disk in result.touched_disks] == ["NVME1"]
    assert result.boot_info.kernel == "/boot/vmlinuz-6.12.0-sim"
    await eventually(lambda: machine.uuid not in world.inventory.leases)
    world.want(machine.uuid, START)
    stopped = await running
    assert isinstance(stopped, KernelStarted)
    assert stopped.command_line.startswith("root=LABEL=root")
    assert machine.events[-2:] == ["INSTALLING", "BOOTING_NEW_KERNEL"]

    system = machine.hardware.installed_system()
    assert system is not None
    assert (system.hostname, system.install["asn"]) == ("web-1", 4200000001)

    # Boot has no database; inventory keeps what its calls leave.
    left = [each for each in world.inventory.audit if each.method == "boot.v1.BootService/Register"]
    assert [(AuditPhase.Name(each.phase), each.code) for each in left] == [
        ("AUDIT_PHASE_BEGUN", ""), ("AUDIT_PHASE_ENDED", "OK")
    ]  # fmt: skip
    assert {(each.service, each.partition, each.caller, each.object) for each in left} == {
        ("boot", "mini", f"machine:{machine.uuid}", machine.uuid)
    }
    install = system.root / "etc/metal/install.yaml"
    assert stat.S_IMODE(install.stat().st_mode) == 0o600
    assert yaml.safe_load(install.read_text())["machineuuid"] == machine.uuid
    assert "UUID=" in (system.root / "etc/fstab").read_text()
    assert not (system.root / "install.sh").exists()
    assert not [name for name in os.listdir(system.root) if name.startswith(".metal")]
    steps = [step for step, _, message in world.allocation.progress if not message]
    assert steps == ["plan", "partition", "fetch", "unpack", "configure", "bootloader"]


@pytest.mark.parametrize("hours", [2, -2, 24 * 365])
async def test_a_machine_whose_clock_is_off_is_wiped_and_waits_like_any_other(
    world: World, new_machine: NewMachine, eventually: Any, monkeypatch: pytest.MonkeyPatch, hours: int
) -> None:
    clock = SimpleNamespace(time=lambda: time.time() + hours * 3600, monotonic=time.monotonic)
    for module in ("client", "enrol"):
        monkeypatch.setattr(f"metal_hammer.{module}.time", clock, raising=False)
    machine = new_machine()
    await waiting(machine, eventually)
    assert machine.record.disks_clean
    assert "CRASHED" not in machine.events
    await machine.power_off()


async def test_the_mark_that_disks_are_touched_is_set_before_the_first_destructive_command(
    world: World, new_machine: NewMachine, eventually: Any
) -> None:
    machine = new_machine()
    seen: list[list[tuple[str, int, str]]] = []
    running = await waiting(machine, eventually)
    run = machine.hardware.run

    async def watched(argv: Any, **more: Any) -> Any:
        if not seen:
            seen.append(list(world.allocation.progress))
        return await run(argv, **more)

    machine.hardware.run = watched  # type: ignore[method-assign]
    world.allocate(machine.uuid)
    await eventually(lambda: world.allocation.results)
    assert ("partition", 5, "disk_touched: NVME1") in seen[0]
    await machine.power_off()
    assert running.done()


STEPS = ("register", "wipe", "plan", "partition", "fetch", "unpack", "configure", "bootloader", "report", "kexec")


@pytest.mark.parametrize("step", STEPS)
async def test_power_that_is_cut_at_any_step_leaves_a_machine_that_can_begin_again(
    world: World, new_machine: NewMachine, eventually: Any, step: str
) -> None:
    machine = new_machine()
    reached = asyncio.Event()
    checkpoint = machine.hardware.checkpoint

    def cut(at: str = "") -> None:
        if at == step and not reached.is_set():
            machine.powered = False
            reached.set()
        checkpoint(at)

    machine.hardware.checkpoint = cut  # type: ignore[method-assign,assignment]
    running = machine.power_on()
    if step not in ("register", "wipe"):
        await eventually(lambda: machine.events and machine.events[-1] == "WAITING")
        world.allocate(machine.uuid)
        if step == "kexec":
            await eventually(lambda: world.allocation.results)
            world.want(machine.uuid, START)
    assert isinstance(await running, PowerLost)
    assert "CRASHED" not in machine.events, "a machine without power reports nothing"
    await eventually(lambda: machine.uuid not in world.inventory.leases)

    again = machine.power_on()
    if step in ("register", "wipe"):
        await eventually(lambda: machine.events[-1] == "WAITING" and machine.uuid in world.inventory.leases)
        assert machine.record.disks_clean
        world.allocate(machine.uuid)
    if step != "kexec":
        await eventually(lambda: world.allocation.results)
        assert world.allocation.results[-1].succeeded
        world.want(machine.uuid, START)
        assert isinstance(await again, KernelStarted)
    else:
        # Installed and to be started: boot answers with the local disk, so the firmware never starts the installer.
        with pytest.raises(AssertionError):
            await again
    system = machine.hardware.installed_system()
    assert system is not None
    assert system.hostname == "web-1"


@pytest.mark.parametrize("step", ["inspect", "wipe", "fetch", "configure"])
async def test_a_crash_is_reported_with_its_step_before_the_reboot(
    world: World, new_machine: NewMachine, eventually: Any, step: str
) -> None:
    machine = new_machine()
    machine.hardware.faults.crash_at = step
    running = machine.power_on()
    if step in ("fetch", "configure"):
        await eventually(lambda: machine.events and machine.events[-1] == "WAITING")
        world.allocate(machine.uuid)
    assert isinstance(await running, Rebooted)
    assert machine.events[-1] == "CRASHED"
    assert world.inventory.messages[machine.uuid][-1].startswith(f"{step}: UNEXPECTED")
    if step in ("fetch", "configure"):
        result = world.allocation.results[-1]
        assert (result.succeeded, result.step, result.reason) == (False, step, "UNEXPECTED")
        assert [disk.serial for disk in result.touched_disks] == ["NVME1"]


FAILURES: dict[str, tuple[dict[str, Any], str, str, bool]] = {
    "another hash": ({"image_sha256": "0" * 64}, "fetch", "IMAGE_HASH_MISMATCH", True),
    "larger than it should be": ({"image_size_bytes": 10}, "fetch", "IMAGE_TOO_LARGE", True),
    "no such image": ({"image_url": "http://127.0.0.1:1/none"}, "fetch", "IMAGE_UNREACHABLE", True),
    "no disks granted": ({"disk_serials": []}, "partition", "GRANT_REFUSED", False),
    "other disks granted": ({"disk_serials": ["HDD1"]}, "partition", "GRANT_REFUSED", False),
    "disks of another machine": ({"disk_serials": ["NVME99"]}, "partition", "GRANT_REFUSED", False),
}


@pytest.mark.parametrize("name", sorted(FAILURES))
async def test_an_installation_that_cannot_be_done_fails_loudly(
    world: World, new_machine: NewMachine, eventually: Any, name: str
) -> None:
    changes, step, reason, touched = FAILURES[name]
    machine = new_machine()
    running = await waiting(machine, eventually)
    machine.hardware.history.clear()
    world.allocate(machine.uuid, **changes)
    assert isinstance(await running, Rebooted)
    result = world.allocation.results[-1]
    assert (result.succeeded, result.step, result.reason) == (False, step, reason), result
    assert bool(result.touched_disks) == touched
    assert machine.events[-1] == "CRASHED"
    if not touched:
        assert machine.hardware.history == [], "a refused grant must not run a single program"
    assert machine.hardware.installed_system() is None


async def test_an_image_that_is_cut_off_is_not_unpacked(world: World, new_machine: NewMachine, eventually: Any) -> None:
    machine = new_machine()
    running = await waiting(machine, eventually)
    whole = world.image.path.read_bytes()
    world.image.path.write_bytes(whole[: len(whole) // 2])
    world.allocate(machine.uuid, image_size_bytes=0)
    assert isinstance(await running, Rebooted)
    assert world.allocation.results[-1].reason == "IMAGE_HASH_MISMATCH"
    assert not any(
        name != ".metal-image" for name in os.listdir(machine.hardware.disks["NVME1"].root) if name != "boot"
    )


async def test_a_disk_that_cannot_be_wiped_keeps_the_machine_in_quarantine(
    world: World, new_machine: NewMachine, eventually: Any
) -> None:
    machine = new_machine()
    machine.hardware.faults.wipe_fails.add("HDD1")
    running = machine.power_on()
    await eventually(lambda: len(machine.record.wipe_results) == 2)
    await eventually(lambda: machine.uuid in world.inventory.events and "REGISTERING" in machine.events)
    errors = {result.serial: bool(result.error) for result in machine.record.wipe_results}
    assert errors == {"NVME1": False, "HDD1": True}
    assert not machine.record.disks_clean
    looked = world.inventory.renewals
    await asyncio.sleep(0.5)  # a few polls of the work stream: nothing may follow from them
    assert not running.done()
    assert "WAITING" not in machine.events
    assert machine.uuid not in world.inventory.leases
    assert world.inventory.renewals == looked

    machine.hardware.faults.wipe_fails.clear()
    await machine.power_off()
    await waiting(machine, eventually)
    assert machine.record.disks_clean
    await machine.power_off()


async def test_the_disks_of_a_running_machine_survive_a_lost_boot_override(
    world: World, new_machine: NewMachine, eventually: Any
) -> None:
    """The installer starts by accident, with a script that was asked for before the machine was given away."""
    machine = new_machine(rules=Rules(**{**vars_of(FAST), "crash_pause": 0.01}))
    stale = await world.script(machine.uuid)
    running = await waiting(machine, eventually)
    world.allocate(machine.uuid)
    await eventually(lambda: world.allocation.results)
    world.want(machine.uuid, START)
    assert isinstance(await running, KernelStarted)
    world.want(machine.uuid, installation_pb2.INSTALLATION_STATE_RUNNING)
    before = {serial: disk.raw.read_bytes() for serial, disk in machine.hardware.disks.items()}
    machine.hardware.history.clear()

    stopped = await machine.run_script(stale)
    assert isinstance(stopped, Rebooted)
    assert machine.events[-1] == "PLANNED_REBOOT"
    assert machine.hardware.history == []
    assert {serial: disk.raw.read_bytes() for serial, disk in machine.hardware.disks.items()} == before
    system = machine.hardware.installed_system()
    assert system is not None


def vars_of(rules: Rules) -> dict[str, Any]:
    return {name: getattr(rules, name) for name in rules.__dataclass_fields__}


async def test_a_machine_with_a_disk_that_has_no_serial_is_not_offered(
    world: World, new_machine: NewMachine, eventually: Any
) -> None:
    disks = (Disk("/dev/nvme0n1", "NVME1", "nvme", 8 * MIB), Disk("/dev/sda", "", "ssd", 8 * MIB))
    machine = new_machine(disks=disks)
    machine.power_on()
    await eventually(lambda: len(machine.record.wipe_results) == 2)
    unnamed = next(result for result in machine.record.wipe_results if result.serial.startswith("unknown:"))
    assert unnamed.error
    assert not machine.record.disks_clean
    await machine.power_off()


async def test_a_machine_without_neighbours_is_registered_all_the_same(
    world: World, new_machine: NewMachine, eventually: Any
) -> None:
    machine = new_machine()
    machine.hardware.faults.no_lldp |= {nic.mac for nic in machine.hardware.machine.nics}
    await waiting(machine, eventually)
    assert not any(nic.neighbours for nic in machine.record.hardware.nics)
    await machine.power_off()


async def test_an_allocation_of_a_locked_machine_touches_nothing(
    world: World, new_machine: NewMachine, eventually: Any
) -> None:
    machine = new_machine()
    await waiting(machine, eventually)
    machine.record.state = machine_pb2.MACHINE_STATE_LOCKED
    await eventually(lambda: machine.uuid not in world.inventory.leases)
    machine.hardware.history.clear()
    world.allocate(machine.uuid)
    await asyncio.sleep(0.5)  # a few polls of the work stream: nothing may follow from them
    assert machine.hardware.history == []
    assert world.allocation.results == []
    await machine.power_off()
