"""Simulated machines: disks that are files, programs that are acted out, firmware that asks for something to boot.

hardware = SimulatedHardware(facts, directory, powered=lambda: bmc.powered, wiring=cables.neighbours)
stopped = await run_until_stopped(agent.run())     # KernelStarted, Rebooted or PowerLost
system = hardware.installed_system()               # what a boot from the local disks finds
"""

from metal_sim.machine.facts import Bmc, Board, Cpu, Disk, Firmware, Gpu, MachineFacts, Neighbour, Nic
from metal_sim.machine.faults import (
    KernelStarted,
    MachineFaults,
    MachineStopped,
    PowerLost,
    Rebooted,
    SimulatedCrash,
)
from metal_sim.machine.hardware import InstalledSystem, SimulatedHardware, run_until_stopped
from metal_sim.machine.os_image import OsImage, build

__all__ = [
    "Bmc",
    "Board",
    "Cpu",
    "Disk",
    "Firmware",
    "Gpu",
    "InstalledSystem",
    "KernelStarted",
    "MachineFacts",
    "MachineFaults",
    "MachineStopped",
    "Neighbour",
    "Nic",
    "OsImage",
    "PowerLost",
    "Rebooted",
    "SimulatedCrash",
    "SimulatedHardware",
    "build",
    "run_until_stopped",
]
