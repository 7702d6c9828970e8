"""What a leaf has before anything configures it: the rows that a switch is built with, as pure values.

Tables and fields are those of SONiC's CONFIG_DB and APPL_DB schemas. What the control plane's agent is to write is not
here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

# SONiC's database numbers and separators, as in its database_config.json.
DATABASES: Mapping[str, tuple[int, str]] = {
    "APPL_DB": (0, ":"),
    "ASIC_DB": (1, ":"),
    "COUNTERS_DB": (2, ":"),
    "CONFIG_DB": (4, "|"),
    "STATE_DB": (6, "|"),
}
# Each leaf on a shared server gets its own block of numbers.
DATABASES_PER_LEAF = 16
# What each port can do, in Mbit/s and as SONiC names error corrections.
SPEEDS = ("1000", "10000", "25000", "40000", "50000", "100000")
FECS = ("none", "rs", "fc", "auto")
VTEP = "vtep"
Rows = dict[str, dict[str, str]]


@dataclass(frozen=True, slots=True)
class LeafSpec:
    """A leaf as it is built. `asn` and `loopback` are its BGP identity; `uplinks` are among `ports`."""

    name: str
    ports: tuple[str, ...]
    uplinks: tuple[str, ...]
    asn: int
    loopback: str
    pxe_vlan: int = 4000

    def __post_init__(self) -> None:
        missing = set(self.uplinks) - set(self.ports)
        if missing:
            raise ValueError(f"{self.name}: uplinks that are no ports: {', '.join(sorted(missing))}")
        if len(set(self.ports)) != len(self.ports):
            raise ValueError(f"{self.name}: a port is named twice")


def base_mac(name: str) -> str:
    """The base MAC address of the box that was built under this name: locally administered, always the same."""
    octets = hashlib.sha256(name.encode()).digest()[:5]
    return ":".join(("02", *(f"{octet:02x}" for octet in octets)))


def config_db(spec: LeafSpec) -> Rows:
    """CONFIG_DB of a leaf that has just been installed."""
    rows: Rows = {
        "DEVICE_METADATA|localhost": {
            "hostname": spec.name,
            "mac": base_mac(spec.name),
            "bgp_asn": str(spec.asn),
            "docker_routing_config_mode": "split-unified",
            "type": "LeafRouter",
        },
        "LOOPBACK_INTERFACE|Loopback0": {"NULL": "NULL"},
        f"LOOPBACK_INTERFACE|Loopback0|{spec.loopback}/32": {"NULL": "NULL"},
        f"VXLAN_TUNNEL|{VTEP}": {"src_ip": spec.loopback},
        "VXLAN_EVPN_NVO|nvo": {"source_vtep": VTEP},
        f"VLAN|Vlan{spec.pxe_vlan}": {"vlanid": str(spec.pxe_vlan)},
        f"VLAN_INTERFACE|Vlan{spec.pxe_vlan}": {"NULL": "NULL"},
    }
    for position, port in enumerate(spec.ports):
        rows[f"PORT|{port}"] = {
            "admin_status": "up",
            "alias": f"Eth{position + 1}",
            "index": str(position + 1),
            "lanes": str(position + 1),
            "mtu": "9100",
            "speed": "100000" if port in spec.uplinks else "25000",
        }
    return rows


def appl_db(spec: LeafSpec) -> Rows:
    """APPL_DB of a leaf whose ports have been created; uplinks are up, the others have nothing behind them yet."""
    rows: Rows = {"PORT_TABLE:PortInitDone": {"lanes": "0"}}
    for port in spec.ports:
        rows[f"PORT_TABLE:{port}"] = {"admin_status": "up", "oper_status": "up" if port in spec.uplinks else "down"}
    return rows


def port_oids(spec: LeafSpec) -> dict[str, str]:
    """SAI object id by port."""
    return {port: f"oid:0x1000000{position + 1:06x}" for position, port in enumerate(spec.ports)}
