"""What forwards behind a simulated leaf, as its orchagent tells it what to make."""

from __future__ import annotations

from typing import Protocol


class Hardware(Protocol):
    """Makes and removes objects. Each call returns when it is done, and raises when it could not be done.

    `vrf` is empty for the default VRF; VLANs are called `Vlan<id>` as in CONFIG_DB.
    """

    async def add_vrf(self, vrf: str) -> None:
        """Make a VRF without interfaces."""
        ...

    async def remove_vrf(self, vrf: str) -> None:
        """Remove a VRF that has no interfaces any more."""
        ...

    async def add_vlan(self, vlan: str) -> None:
        """Make a VLAN without members."""
        ...

    async def remove_vlan(self, vlan: str) -> None:
        """Remove a VLAN that is not routed and has no members any more."""
        ...

    async def route(self, name: str, vrf: str) -> None:
        """Make a router interface in `vrf` of a port or a VLAN."""
        ...

    async def unroute(self, name: str, vrf: str) -> None:
        """Take a port or a VLAN out of `vrf`."""
        ...

    async def bridge(self, port: str, vlan: str) -> None:
        """Make a port an untagged member of a VLAN."""
        ...

    async def unbridge(self, port: str) -> None:
        """Take a port out of its VLAN."""
        ...

    async def add_vni(self, vlan: str, vni: int) -> None:
        """Carry a VLAN that is routed over VXLAN."""
        ...

    async def remove_vni(self, vlan: str, vni: int) -> None:
        """End that."""
        ...

    async def set_port(self, port: str, mtu: int, up: bool) -> None:
        """Set MTU (octets; 0: as it is) and administrative state of a port, wherever it is."""
        ...


class NoHardware:
    """Nothing forwards."""

    async def add_vrf(self, vrf: str) -> None:
        """Nothing."""

    async def remove_vrf(self, vrf: str) -> None:
        """Nothing."""

    async def add_vlan(self, vlan: str) -> None:
        """Nothing."""

    async def remove_vlan(self, vlan: str) -> None:
        """Nothing."""

    async def route(self, name: str, vrf: str) -> None:
        """Nothing."""

    async def unroute(self, name: str, vrf: str) -> None:
        """Nothing."""

    async def bridge(self, port: str, vlan: str) -> None:
        """Nothing."""

    async def unbridge(self, port: str) -> None:
        """Nothing."""

    async def add_vni(self, vlan: str, vni: int) -> None:
        """Nothing."""

    async def remove_vni(self, vlan: str, vni: int) -> None:
        """Nothing."""

    async def set_port(self, port: str, mtu: int, up: bool) -> None:
        """Nothing."""
