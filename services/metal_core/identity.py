"""Who this leaf is: from settings where they say so, else from what SONiC itself knows.

SONiC: DEVICE_METADATA|localhost (hostname, bgp_asn, mac), LOOPBACK_INTERFACE|Loopback0|<address>, PORT, and
build_version in /etc/sonic/sonic_version.yml.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from ipaddress import IPv4Address, IPv4Interface, ip_interface
from pathlib import Path

from metal_core.configdb import Rows, name_of, table_of
from metal_core.desired import natural

TABLES = frozenset({"DEVICE_METADATA", "LOOPBACK_INTERFACE", "PORT"})
VERSION_FILE = Path("/etc/sonic/sonic_version.yml")
_BUILD = re.compile(r"^build_version:\s*['\"]?([^'\"\n]+)", re.MULTILINE)


class IdentityError(Exception):
    """The leaf cannot say who it is; the message names what is missing and where to set it."""


@dataclass(frozen=True, slots=True)
class LeafIdentity:
    """What a leaf says of itself when it connects. `ports` maps names to aliases, in natural order."""

    switch_id: str
    partition: str
    rack: str
    asn: int
    loopback: str
    pxe_vlan: int
    uplinks: frozenset[str]
    ports: Mapping[str, str]
    management_address: str = ""
    os_version: str = ""
    core_version: str = ""
    # The base MAC address, which tells two boxes of one name apart; empty where SONiC does not say.
    chassis: str = ""


@dataclass(frozen=True, slots=True)
class Told:
    """What settings say; empty or 0 where SONiC shall be asked."""

    partition: str
    rack: str
    uplinks: tuple[str, ...]
    switch_id: str = ""
    asn: int = 0
    loopback: str = ""
    pxe_vlan: int = 4000
    management_address: str = ""


def identify(told: Told, rows: Rows, *, os_version: str = "") -> LeafIdentity:
    """The identity from settings and rows of CONFIG_DB (`TABLES`). Raises IdentityError for what neither says."""
    device = rows.get("DEVICE_METADATA|localhost", {})
    ports = {name_of(key): row.get("alias", "") for key, row in rows.items() if table_of(key) == "PORT"}
    switch_id = told.switch_id or device.get("hostname", "")
    if not switch_id:
        raise IdentityError("neither METALPLANE_SWITCH_ID nor DEVICE_METADATA|localhost hostname says who this leaf is")
    asn = str(told.asn) if told.asn else device.get("bgp_asn", "")
    if not (asn.isascii() and asn.isdigit() and int(asn)):
        raise IdentityError(f"neither METALPLANE_ASN nor DEVICE_METADATA|localhost bgp_asn ({asn!r}) is an ASN")
    missing = sorted(set(told.uplinks) - set(ports))
    if missing or not told.uplinks:
        raise IdentityError(
            f"METALPLANE_UPLINKS must name ports of this leaf; not in CONFIG_DB: {missing or 'none set'}"
        )
    return LeafIdentity(
        switch_id=switch_id,
        partition=told.partition,
        rack=told.rack,
        asn=int(asn),
        loopback=told.loopback or _loopback(rows),
        pxe_vlan=told.pxe_vlan,
        uplinks=frozenset(told.uplinks),
        ports={name: ports[name] for name in sorted(ports, key=natural) if name},
        management_address=told.management_address,
        os_version=os_version,
        core_version=core_version(),
        chassis=device.get("mac", "").strip().lower(),
    )


def sonic_version(path: Path = VERSION_FILE) -> str:
    """SONiC's build version; empty where the file is missing. Blocking."""
    try:
        found = _BUILD.search(path.read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return ""
    return found[1].strip()[:128] if found else ""


def core_version() -> str:
    """The version of this agent."""
    try:
        return metadata.version("metalplane")
    except metadata.PackageNotFoundError:
        return ""


def _loopback(rows: Rows) -> str:
    prefix = "LOOPBACK_INTERFACE|Loopback0|"
    found: list[IPv4Address] = []
    for key in rows:
        if key.startswith(prefix):
            try:
                interface = ip_interface(key.removeprefix(prefix))
            except ValueError:
                continue
            if isinstance(interface, IPv4Interface):
                found.append(interface.ip)
    if not found:
        raise IdentityError(
            "neither METALPLANE_LOOPBACK nor LOOPBACK_INTERFACE|Loopback0 gives an IPv4 loopback address"
        )
    return str(min(found))
