from __future__ import annotations

from typing import Any

from metal_sim.machine import KernelStarted
from metalplane.allocation.v1 import installation_pb2

from .conftest import NewMachine, World  # type: ignore[import-untyped]


async def test_a_machine_is_registered_wiped_waits_and_is_installed_and_started(
    world: World, new_machine: NewMachine, eventually: Any
) -> None:
    machine = new_machine()
    await machine.hardware.write_at("/dev/sda", 16 * 1024 * 1024 - 512, b"old tenant's data".ljust(512, b"x"))
    running = machine.power_on()

    await eventually(lambda: machine.uuid in world.inventory.leases and "WAITING" in machine.events)
    assert machine.events[:4] == ["PXE_BOOTING", "PREPARING", "REGISTERING", "WAITING"]
    methods = {result.serial: result.method for result in machine.record.wipe_results}
    assert methods == {"NVME1": "nvme-format-crypto", "HDD1": "overwrite"}
    assert machine.record.disks_clean
    assert not any(await machine.hardware.read_at("/dev/sda", 0, 16 * 1024 * 1024))

    world.allocate(machine.uuid)
    await eventually(lambda: world.allocation.results)
    assert world.allocation.results[0].succeeded, world.allocation.results[0]
    await eventually(lambda: machine.uuid not in world.inventory.leases)
    world.want(machine.uuid, installation_pb2.INSTALLATION_STATE_START)
    stopped = await running
    assert isinstance(stopped, KernelStarted)
    system = machine.hardware.installed_system()
    assert system is not None
    assert system.hostname == "web-1"
