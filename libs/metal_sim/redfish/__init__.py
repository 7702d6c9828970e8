"""Simulated BMCs that answer Redfish over HTTPS on loopback addresses, any number in one process.

    bmc = SimulatedRedfish(machine_uuid, user="metal", password="…", personality=STRICT)
    host, port = await bmc.start()
    bmc.faults.switch_on("busy", 2)

Any Redfish client can log in; nothing here is special to metalplane's own driver.
"""

from metal_sim.redfish.endpoint import SimulatedRedfish
from metal_sim.redfish.farm import RedfishFarm
from metal_sim.redfish.faults import RedfishFault, RedfishFaults
from metal_sim.redfish.personality import PERSONALITIES, Etags, Personality

__all__ = ["PERSONALITIES", "Etags", "Personality", "RedfishFarm", "RedfishFault", "RedfishFaults", "SimulatedRedfish"]
