"""Simulated BMCs that answer real RMCP+ (IPMI 2.0, cipher suites 3 and 17) on loopback ports.

    bmc = SimulatedBmc(machine_uuid, user="metal", password="…", on_power=firmware.power_changed)
    host, port = await bmc.start()
    bmc.chassis.take_boot_override()      # the firmware asks at every boot
    bmc.faults.switch_on("hang")
    bmc.serial.write(b"login: ")          # what the machine prints, for the console over SOL

    farm = BmcFarm()                      # or thousands, each on a loopback address of its own
    farm.fill(2000, password="…")
    farm.start()

Any IPMI client can log in; nothing here is special to metalplane's own driver. `python -m metal_sim.bmc` starts a farm
for people to try; its `--help` names the faults.
"""

from metal_sim.bmc.chassis import BootDevice, BootOverride, Chassis, ChassisControl, PowerAction, PowerHook
from metal_sim.bmc.endpoint import SimulatedBmc
from metal_sim.bmc.farm import BmcFarm
from metal_sim.bmc.faults import BmcFault, Faults
from metal_sim.bmc.fru import FruInfo
from metal_sim.bmc.serial import SerialPort

__all__ = [
    "BmcFarm",
    "BmcFault",
    "BootDevice",
    "BootOverride",
    "Chassis",
    "ChassisControl",
    "Faults",
    "FruInfo",
    "PowerAction",
    "PowerHook",
    "SerialPort",
    "SimulatedBmc",
]
