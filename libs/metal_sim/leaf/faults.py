"""What can be wrong with a simulated leaf. Each can be switched on and off while it runs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class LeafFaults:
    """`orchagent_delay` is in seconds: how long the switch takes to follow a change of CONFIG_DB. With `speed_ignored`
    ports go on at the speed and with the error correction that they have."""

    dead: bool = False
    orchagent_delay: float = 0.01
    lldp_silent: bool = False
    speed_ignored: bool = False
