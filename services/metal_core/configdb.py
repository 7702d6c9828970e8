"""Desired state → rows of SONiC's CONFIG_DB, and the rule which rows are the agent's own.

Rows are `{"TABLE|key": {field: value}}`. The tables and fields are those of SONiC's CONFIG_DB schema. Rows that a leaf
gets when it is built (VXLAN_TUNNEL, the PXE VLAN, loopback, DEVICE_METADATA, …) are expected and never written here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from metal_core.desired import FIRST_VLAN, LAST_VLAN, Admin, Desired, Fec, Port, PortRole

Fields = Mapping[str, str]
Rows = Mapping[str, Fields]
# Fields of PORT rows as they were before somebody's wish for them, by row key; None: the row did not have the field.
Former = Mapping[str, Mapping[str, str | None]]
# The fields of a port that are its hardware description's unless somebody wants them otherwise.
HARDWARE = frozenset({"speed", "fec"})

# SONiC's clients cannot store a hash without fields; this placeholder stands for an empty row.
PLACEHOLDER = {"NULL": "NULL"}

# The fields that the agent owns in the rows that it owns. Other fields in them belong to whoever set them. Of a port's
# speed and error correction see `_hardware`.
OWNED_FIELDS: Mapping[str, frozenset[str]] = {
    "PORT": frozenset({"mtu", "admin_status"}),
    "VLAN_MEMBER": frozenset({"tagging_mode"}),
    "INTERFACE": frozenset({"ipv6_use_link_local_only", "vrf_name"}),
    "VRF": frozenset({"vni", "fallback"}),
    "VLAN": frozenset({"vlanid"}),
    "SUPPRESS_VLAN_NEIGH": frozenset({"suppress"}),
    "VLAN_INTERFACE": frozenset({"vrf_name"}),
    "VXLAN_TUNNEL_MAP": frozenset({"vlan", "vni"}),
}

# What the agent reads: what it owns and what its checks look at.
READ_TABLES = frozenset(OWNED_FIELDS) | {"VXLAN_TUNNEL", "LOOPBACK_INTERFACE"}

_VRF_NAME = re.compile(r"Vrf([1-9][0-9]{0,7})")
_VLAN_NAME = re.compile(r"Vlan([1-9][0-9]{0,3})")
_MAP_NAME = re.compile(r"map_[1-9][0-9]{0,7}_Vlan([1-9][0-9]{0,3})")


def table_of(key: str) -> str:
    """The table of a row key: `VLAN` of `VLAN|Vlan1001`."""
    return key.partition("|")[0]


def name_of(key: str) -> str:
    """What follows the table: `Vlan4000|Ethernet0` of `VLAN_MEMBER|Vlan4000|Ethernet0`."""
    return key.partition("|")[2]


def is_tenant_vrf(name: str) -> bool:
    """Whether `name` is one that the plane gives to VRFs."""
    return _VRF_NAME.fullmatch(name) is not None


def is_tenant_vlan(name: str) -> bool:
    """Whether `name` is a VLAN of the plane's range."""
    found = _VLAN_NAME.fullmatch(name)
    return found is not None and FIRST_VLAN <= int(found[1]) <= LAST_VLAN


def the_vtep(rows: Rows) -> str:
    """The name of the leaf's only VXLAN tunnel, empty when there is none or more than one (`checks` reports that)."""
    tunnels = [name_of(key) for key in rows if table_of(key) == "VXLAN_TUNNEL"]
    return tunnels[0] if len(tunnels) == 1 else ""


def render(desired: Desired, vtep: str) -> dict[str, dict[str, str]]:
    """All rows that the agent wants on the leaf whose VXLAN tunnel is called `vtep`, in a fixed order."""
    rows: dict[str, dict[str, str]] = {}
    for vrf in sorted(desired.vrfs, key=lambda vrf: vrf.vni):
        vlan = f"Vlan{vrf.vlan_id}"
        rows[f"VRF|{vrf.name}"] = {"vni": str(vrf.vni), "fallback": "false"}
        rows[f"VLAN|{vlan}"] = {"vlanid": str(vrf.vlan_id)}
        rows[f"VLAN_INTERFACE|{vlan}"] = {"vrf_name": vrf.name}
        rows[f"VXLAN_TUNNEL_MAP|{vtep}|map_{vrf.vni}_{vlan}"] = {"vlan": vlan, "vni": str(vrf.vni)}
        rows[f"SUPPRESS_VLAN_NEIGH|{vlan}"] = {"suppress": "on"}
    for port in desired.with_role(*PortRole):
        fields = _hardware(port)
        if port.effective_mtu:
            fields["mtu"] = str(port.effective_mtu)
        if port.effective_admin is not Admin.KEEP:
            fields["admin_status"] = port.effective_admin.value
        if fields or port.role is not PortRole.ADDITIONAL:
            rows[f"PORT|{port.name}"] = fields
        match port.role:
            case PortRole.UNPROVISIONED:
                rows[f"VLAN_MEMBER|Vlan{desired.pxe_vlan}|{port.name}"] = {"tagging_mode": "untagged"}
            case PortRole.UPLINK | PortRole.FIREWALL:
                rows[f"INTERFACE|{port.name}"] = {"ipv6_use_link_local_only": "enable"}
            case PortRole.MACHINE:
                rows[f"INTERFACE|{port.name}"] = {"ipv6_use_link_local_only": "enable", "vrf_name": port.vrf}
            case PortRole.DOWN | PortRole.ADDITIONAL:
                pass
    return rows


def former(before: Rows, target: Rows) -> dict[str, dict[str, str | None]]:
    """What a run from `before` to `target` changes in fields that an earlier state may say nothing about."""
    found: dict[str, dict[str, str | None]] = {}
    for key, row in target.items():
        if table_of(key) == "PORT":
            there = before.get(key, {})
            changed = {name: there.get(name) for name in HARDWARE & set(row) if there.get(name) != row[name]}
            if changed:
                found[key] = changed
    return found


def with_former(target: Rows, back: Former) -> tuple[dict[str, dict[str, str]], dict[str, frozenset[str]]]:
    """`target` with the former values of fields that it does not mention, and the fields by row that have to go."""
    rows = {key: dict(row) for key, row in target.items()}
    absent: dict[str, frozenset[str]] = {}
    for key, fields in back.items():
        unsaid = {name: value for name, value in fields.items() if name in HARDWARE and name not in target.get(key, {})}
        if values := {name: value for name, value in unsaid.items() if value is not None}:
            rows.setdefault(key, {}).update(values)
        if gone := frozenset(unsaid) - frozenset(values):
            absent[key] = gone
    return rows, absent


def owned(rows: Rows, desired: Desired, back: Former | None = None) -> dict[str, dict[str, str]]:
    """The part of `rows` that is the agent's: rows by table and naming rule, reduced to the fields that it owns.

    Whatever is not in the answer is somebody else's and is never written or deleted. A port's rows are the agent's
    while the port has a role, and also when they still point into a tenant VRF. Of an operator's own bridge port only
    the administrative state is, and that only while there is a wish for it; so it is with any port's speed and error
    correction, unless they are on their way `back`.
    """
    back = back or {}
    ports = desired.own_ports
    wanted = frozenset(vrf.name for vrf in desired.vrfs)
    lent = {f"PORT|{port.name}" for port in desired.with_role(PortRole.ADDITIONAL) if port.admin is not Admin.KEEP}
    hardware = {f"PORT|{port.name}": frozenset(_hardware(port)) for port in desired.ports}
    mine: dict[str, dict[str, str]] = {}
    for key, fields in rows.items():
        returning = HARDWARE & set(back.get(key, ()))
        if key in lent:
            known = frozenset({"admin_status"}) | returning
        elif _is_owned(key, fields, ports, wanted, f"Vlan{desired.pxe_vlan}"):
            known = OWNED_FIELDS[table_of(key)] | hardware.get(key, frozenset()) | returning
        elif returning:
            known = returning
        else:
            continue
        mine[key] = {name: value for name, value in fields.items() if name in known}
    return mine


def _hardware(port: Port) -> dict[str, str]:
    """What is wanted of `HARDWARE`."""
    fields = {}
    if port.speed:
        fields["speed"] = str(port.speed)
    if port.fec is not Fec.KEEP:
        fields["fec"] = port.fec.value
    return fields


def _is_owned(key: str, fields: Fields, ports: frozenset[str], vrfs: frozenset[str], pxe: str) -> bool:
    name = name_of(key)
    match table_of(key):
        case "PORT":
            return name in ports
        case "INTERFACE":
            return name in ports or ("|" not in name and is_tenant_vrf(fields.get("vrf_name", "")))
        case "VLAN_MEMBER":
            # A port has one untagged VLAN at most, and its role says which. Other tagged memberships are an operator's.
            vlan, _, port = name.partition("|")
            return port in ports and (vlan == pxe or fields.get("tagging_mode") == "untagged")
        case "VRF":
            # A VRF that merely looks like ours but has another VNI was made by an operator.
            found = _VRF_NAME.fullmatch(name)
            return name in vrfs or (found is not None and fields.get("vni") == found[1])
        case "VLAN" | "VLAN_INTERFACE" | "SUPPRESS_VLAN_NEIGH":
            return is_tenant_vlan(name)
        case "VXLAN_TUNNEL_MAP":
            found = _MAP_NAME.fullmatch(name.partition("|")[2])
            return found is not None and is_tenant_vlan(f"Vlan{found[1]}")
        case _:
            return False
