"""How FRR spells interfaces of VRFs, which depends on what its VRFs are.

SONiC's FRR has VRF devices of the kernel and prints `interface X`. Where zebra runs with `-n`, VRFs are network
namespaces; the same name may then be in several of them, and FRR prints and needs `interface X vrf V`. Without the VRF
it would take a name that is not there yet for one of the default VRF, and the lines would never have an effect.
"""

from __future__ import annotations

from dataclasses import replace
from enum import StrEnum

from metal_core.frr.bgp import is_session, neighbour
from metal_core.frr.model import Configuration


class VrfBackend(StrEnum):
    """What a VRF is on the leaf."""

    LITE = "vrf-lite"
    NETNS = "netns"


def spelled(configuration: Configuration, backend: VrfBackend) -> Configuration:
    """`configuration` with its interfaces named as FRR with `backend` names them; a port is in its session's VRF."""
    if backend is VrfBackend.LITE:
        return configuration
    vrfs: dict[str, str] = {}
    for block in configuration.blocks:
        instance, _, vrf = block.header.partition(" vrf ")
        if vrf and instance.startswith("router bgp "):
            vrfs |= {neighbour(line): vrf for line in block.lines if is_session(line)}
    return replace(
        configuration,
        blocks=tuple(
            replace(block, header=f"{block.header} vrf {vrfs[name]}")
            if block.header.startswith("interface ") and (name := block.header.split()[1]) in vrfs
            else block
            for block in configuration.blocks
        ),
    )
