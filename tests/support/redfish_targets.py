"""How to log in to simulated Redfish BMCs."""

from __future__ import annotations

from typing import Any

from metal_bmc.drivers.interface import DriverKind, Target
from metal_sim.redfish import SimulatedRedfish


def redfish_target(bmc: SimulatedRedfish, **more: Any) -> Target:
    """The login that holds, with the BMC's certificate pinned, unless `more` says otherwise."""
    login = {"user": bmc.user, "password": bmc.password, "driver": DriverKind.REDFISH, "fingerprint": bmc.fingerprint}
    return Target(*bmc.address, **{**login, **more})
