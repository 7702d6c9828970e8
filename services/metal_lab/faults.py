"""Faults of the simulated rack, switched on and off by name while the lab runs."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from metal_lab.fault_catalogue import FAULTS, UnknownFault
from metal_lab.rack.leaf import LabLeaf
from metal_lab.rack.machine import LabMachine


async def switch(
    machines: Mapping[str, LabMachine], leaves: Mapping[str, LabLeaf], name: str, target: str, *, on: bool
) -> str:
    """Switch a fault on or off; answers what is the case now. Raises UnknownFault."""
    fault = next((each for each in FAULTS if each.name == name), None)
    if fault is None:
        raise UnknownFault(f"no fault {name!r}; there are: {', '.join(each.name for each in FAULTS)}")
    known: Mapping[str, object] = leaves if fault.target == "leaf" else machines
    if target not in known:
        raise UnknownFault(f"no {fault.target} {target!r}; there are: {', '.join(sorted(known))}")
    if fault.target == "leaf":
        await leaves[target].set_dead(on)
        if not on:
            for machine in machines.values():
                await machine.link_returns(target)
    else:
        await _MACHINE_FAULTS[name](machines[target], on)
    return f"{target}: {fault.text}" if on else f"{target}: no longer {name}"


def of_machine(machine: LabMachine) -> list[str]:
    """The faults that a machine has now."""
    bmc, hardware = machine.bmc.faults.active(), machine.hardware.faults
    has = {
        "bmc-hangs": "hang" in bmc,
        "bmc-does-nothing": "does-nothing" in bmc,
        "wipe-fails": bool(hardware.wipe_fails),
        "crash-during-install": bool(hardware.crash_at),
        "no-lldp": machine.no_lldp,
    }
    return [name for name, on in has.items() if on]


def of_leaf(leaf: LabLeaf) -> list[str]:
    """The faults that a leaf has now."""
    return ["leaf-dead"] if leaf.switch.faults.dead else []


async def _bmc_hangs(machine: LabMachine, on: bool) -> None:
    _switch_bmc(machine, "hang", on)


async def _bmc_does_nothing(machine: LabMachine, on: bool) -> None:
    _switch_bmc(machine, "does-nothing", on)


def _switch_bmc(machine: LabMachine, name: str, on: bool) -> None:
    faults = machine.bmc.faults
    (faults.switch_on if on else faults.switch_off)(name)


async def _wipe_fails(machine: LabMachine, on: bool) -> None:
    machine.hardware.faults.wipe_fails = {disk.serial for disk in machine.placed.facts.disks} if on else set()


async def _crash(machine: LabMachine, on: bool) -> None:
    machine.hardware.faults.crash_at = "unpack" if on else ""


async def _no_lldp(machine: LabMachine, on: bool) -> None:
    machine.no_lldp = on
    machine.hardware.faults.no_lldp = {nic.mac for nic in machine.placed.facts.nics} if on else set()


_MACHINE_FAULTS: Mapping[str, Callable[[LabMachine, bool], Awaitable[None]]] = {
    "bmc-hangs": _bmc_hangs,
    "bmc-does-nothing": _bmc_does_nothing,
    "wipe-fails": _wipe_fails,
    "crash-during-install": _crash,
    "no-lldp": _no_lldp,
}
