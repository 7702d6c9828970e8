"""What can be known to be wrong before anything is touched.

`vtysh -C` and SONiC's YANG models accept all of these: duplicate VNIs, maps and lists that do not exist, two ASNs, a
`le` below the prefix length, references to rows that are not there. Each check returns findings for people; an empty
list means that the state may be applied. Names are checked because they become part of commands.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Hashable, Iterable
from ipaddress import AddressValueError, IPv4Address, IPv4Network, ip_network

from metal_core.configdb import Rows, is_tenant_vlan, is_tenant_vrf, name_of, owned, table_of
from metal_core.desired import FIRST_VLAN, LAST_VLAN, Desired, Port, PortRole, Vrf
from metal_core.frr.filters import SET_SOURCE
from metal_core.frr.managed import PROFILE, PROTOCOL_MAP, profile_of
from metal_core.frr.model import Configuration

LAST_VNI = (1 << 24) - 1
LAST_SPEED = 1_600_000  # Mbit/s, as SONiC's sonic-port.yang has it
# The way out of a setting that a port cannot have.
_CHANGED_BY = "set another with `metalctl switch set PARTITION --port {}:{}={}`, or none"
_PORT_NAME = re.compile(r"[A-Za-z][A-Za-z0-9/_.-]{0,14}")  # IFNAMSIZ of Linux leaves 15 characters
_PREFIX_LIST = re.compile(
    r"(?:ip|ipv6) prefix-list (\S+) seq \d+ (?:permit|deny) (\S+?)/(\d+)(?: ge (\d+))?(?: le (\d+))?"
)
_ROUTER = re.compile(r"router bgp (\d+)(?: vrf (\S+))?")


def check_desired(desired: Desired) -> list[str]:
    """Contradictions inside a desired state."""
    found = [
        *_duplicates("ports", (port.name for port in desired.ports)),
        *_duplicates("vrfs.vni", (vrf.vni for vrf in desired.vrfs)),
        *_duplicates("vrfs.vlan", (vrf.vlan_id for vrf in desired.vrfs)),
    ]
    if not desired.with_role(PortRole.UPLINK):
        found.append("ports: none has the role uplink; a leaf without one would be cut off from the fabric")
    if not 1 <= desired.asn <= (1 << 32) - 1:
        found.append(f"asn: {desired.asn} must be from 1 to 4294967295")
    if not _is_ipv4(desired.loopback):
        found.append(f"loopback: {desired.loopback!r} must be an IPv4 address")
    if not 1 <= desired.pxe_vlan <= 4094 or FIRST_VLAN <= desired.pxe_vlan <= LAST_VLAN:
        found.append(f"pxe_vlan: {desired.pxe_vlan} must be from 1 to 4094 and outside {FIRST_VLAN} to {LAST_VLAN}")
    vrfs = frozenset(vrf.name for vrf in desired.vrfs)
    for vrf in desired.vrfs:
        found += _check_vrf(vrf)
    for port in desired.ports:
        found += _check_port(port, vrfs)
    return found + _check_settings(desired)


def check_leaf(desired: Desired, rows: Rows) -> list[str]:
    """What the leaf lacks for `desired`, and rows of others that stand in its way; `rows` is all of CONFIG_DB read."""
    found = [
        f"ports: CONFIG_DB has no row PORT|{port.name}; the port does not exist on this leaf"
        for port in desired.ports
        if f"PORT|{port.name}" not in rows
    ]
    tunnels = [key for key in rows if table_of(key) == "VXLAN_TUNNEL"]
    if desired.vrfs and len(tunnels) != 1:
        found.append(f"vrfs: CONFIG_DB needs exactly one VXLAN_TUNNEL row, it has {len(tunnels)}")
    if desired.with_role(PortRole.UNPROVISIONED) and f"VLAN|Vlan{desired.pxe_vlan}" not in rows:
        found.append(f"pxe_vlan: CONFIG_DB has no row VLAN|Vlan{desired.pxe_vlan}")
    addresses = (name_of(key).partition("|")[2] for key in rows if table_of(key) == "LOOPBACK_INTERFACE")
    if desired.source_loopback and desired.loopback not in {address.partition("/")[0] for address in addresses}:
        # FRR would take it, and the kernel then refuse every route with this source.
        found.append(f"source_loopback: CONFIG_DB has no row LOOPBACK_INTERFACE|...|{desired.loopback}/32")
    return found + _check_taken(desired, rows) + _check_obstacles(desired, rows)


def check_abilities(desired: Desired, abilities: Rows) -> list[str]:
    """Speeds and error corrections that the switch says a port cannot have; `abilities` are rows of STATE_DB's
    PORT_TABLE by port. A release that does not say can do everything."""
    found = []
    for port in desired.ports:
        row = abilities.get(port.name, {})
        for name, value, known in (
            ("speed", str(port.speed or ""), row.get("supported_speeds", "")),
            ("fec", port.fec.value, row.get("supported_fecs", "")),
        ):
            able = [each.strip() for each in known.split(",")]
            if value and known not in {"", "N/A"} and value not in able:
                found.append(
                    f"ports[{port.name!r}].{name}: the switch says that the port cannot do {value}, only "
                    f"{', '.join(able)}; {_CHANGED_BY.format(port.name, name, able[0])}"
                )
    return found


def check_running(desired: Desired, running: Configuration) -> list[str]:
    """What FRR runs that the agent must not change by itself, and VNIs that others have there."""
    default = [match[1] for block in running.blocks if (match := _ROUTER.fullmatch(block.header)) and not match[2]]
    found = [
        f"asn: FRR runs `router bgp {asn}`, the state says {desired.asn}; to change it ends all sessions, those of the "
        f"uplinks too. If that is wanted, enter `no router bgp {asn}` in vtysh"
        for asn in default
        if int(asn) != desired.asn
    ]
    profile = profile_of(running)
    if profile not in {"", "datacenter"} and any(block.header.startswith("router bgp ") for block in running.blocks):
        found.append(
            f"{PROFILE.strip()}: FRR runs with the profile {profile}, under which BGP exchanges nothing without "
            "policies; start it with frr.conf as `metal-core render --only frr` prints it"
        )
    if desired.source_loopback:
        found += [
            f"source_loopback: FRR has `{line}`, and there can be only one; to take it out enter `no {line}` in vtysh"
            for line in running.lines
            if line.startswith(PROTOCOL_MAP) and line.removeprefix(PROTOCOL_MAP) != SET_SOURCE
        ]
    wanted = {f"vni {vrf.vni}": vrf for vrf in desired.vrfs}
    others = [("the default VRF", line) for line in running.lines]
    for block in running.blocks:
        name = block.header.removeprefix("vrf ")
        if name != block.header and not is_tenant_vrf(name):
            others += [(f"VRF {name}", line) for line in block.lines]
    return found + [
        f"vrfs.vni: FRR has `{line}` in {where}, so {wanted[line].name} cannot have it"
        for where, line in others
        if line in wanted
    ]


def check_frr(configuration: Configuration) -> list[str]:
    """References that lead nowhere and values that FRR would accept or misread; for rendered configurations."""
    lists = {entry[1] for line in configuration.lines if (entry := _PREFIX_LIST.fullmatch(line))}
    maps = {header.split()[1] for header in configuration.headers("route-map ")}
    found: list[str] = []
    for line in configuration.lines:
        if entry := _PREFIX_LIST.fullmatch(line):
            found += _check_lengths(line, entry)
        elif line.startswith(PROTOCOL_MAP) and line.removeprefix(PROTOCOL_MAP) not in maps:
            found.append(f"{line}: the route-map is not defined")
    for block in configuration.blocks:
        groups = {words[1] for line in block.lines if (words := line.split())[2:] == ["peer-group"]}
        for line in (*block.lines, *(line for child in block.children for line in child.lines)):
            words = line.split()
            if "prefix-list" in words and words[-1] not in lists:
                found.append(f"{block.header}: prefix-list {words[-1]} is not defined")
            if "route-map" in words and words[words.index("route-map") + 1] not in maps:
                found.append(f"{block.header}: route-map {words[words.index('route-map') + 1]} is not defined")
            if "interface" in words and "peer-group" in words and words[-1] not in groups:
                found.append(f"{block.header}: peer-group {words[-1]} is not defined")
    asns = {match[1] for block in configuration.blocks if (match := _ROUTER.fullmatch(block.header))}
    if len(asns) > 1:
        found.append(f"router bgp: more than one ASN: {', '.join(sorted(asns))}")
    vnis = (line for block in configuration.blocks if block.header.startswith("vrf ") for line in block.lines)
    return found + _duplicates("frr vrf", vnis)


def _check_vrf(vrf: Vrf) -> list[str]:
    found = []
    if not 1 <= vrf.vni <= LAST_VNI:
        found.append(f"vrfs.vni: {vrf.vni} must be from 1 to {LAST_VNI}")
    if vrf.name != f"Vrf{vrf.vni}":
        found.append(f"vrfs.name: {vrf.name!r} must be Vrf{vrf.vni}, after its VNI")
    if not FIRST_VLAN <= vrf.vlan_id <= LAST_VLAN:
        found.append(f"vrfs.vlan: {vrf.vlan_id} of {vrf.name} must be from {FIRST_VLAN} to {LAST_VLAN}")
    return found


def _check_settings(desired: Desired) -> list[str]:
    """What comes from the partition's settings. Timers are limited as in BGP (RFC 4271, 4.2 and 4.4)."""
    found = []
    gateway, routes = desired.management_gateway, desired.management_routes
    if gateway and not _is_ipv4(gateway):
        found.append(f"management_gateway: {gateway!r} must be an IPv4 address")
    if routes and not gateway:
        found.append("management_routes: they need a management_gateway as their next hop")
    for prefix in routes:
        try:
            IPv4Network(prefix)
        except ValueError as error:
            found.append(f"management_routes: {error}; must be an IPv4 prefix")
    found += _duplicates("management_routes", routes)
    keepalive, hold = desired.bgp_keepalive, desired.bgp_hold
    if (keepalive or hold) and not (3 <= hold <= 65535 and 1 <= keepalive <= hold // 3):
        found.append(
            f"bgp_hold: {hold} must be 0 or from 3 to 65535, and bgp_keepalive, {keepalive}, from 1 to a third of it"
        )
    return found


def _is_ipv4(text: str) -> bool:
    try:
        IPv4Address(text)
    except AddressValueError:
        return False
    return True


def _check_port(port: Port, vrfs: frozenset[str]) -> list[str]:
    where = f"ports[{port.name!r}]"
    found = []
    if not _PORT_NAME.fullmatch(port.name):
        found.append(f"{where}.name: must be the name of an interface, at most 15 characters")
    if port.mtu and not 1280 <= port.mtu <= 9216:
        found.append(f"{where}.mtu: {port.mtu} must be 0 or from 1280 (RFC 8200) to 9216")
    if port.role is PortRole.MACHINE and port.vrf not in vrfs:
        found.append(f"{where}.vrf: {port.vrf!r} is not among the VRFs of this state")
    if port.role is not PortRole.MACHINE and port.vrf:
        found.append(f"{where}.vrf: only machine ports are in a VRF, this one is {port.role.value}")
    if port.vnis and port.role is not PortRole.FIREWALL:
        found.append(f"{where}.vnis: only firewalls exchange EVPN routes, this port is {port.role.value}")
    found += [f"{where}.vnis: {vni} must be from 1 to {LAST_VNI}" for vni in port.vnis if not 1 <= vni <= LAST_VNI]
    if not 0 <= port.speed <= LAST_SPEED or (port.speed % 1000 and port.speed not in {10, 100}):
        found.append(
            f"{where}.speed: {port.speed} must be in Mbit/s: 0, 10, 100 or a multiple of 1000 up to {LAST_SPEED}; "
            f"{_CHANGED_BY.format(port.name, 'speed', 25000)}"
        )
    if port.role is PortRole.ADDITIONAL:
        wanted = {"mtu": port.mtu, "speed": port.speed, "fec": port.fec}
        found += [
            f"{where}.{name}: only the administrative state of an operator's own port is the plane's"
            for name, value in wanted.items()
            if value
        ]
    for prefix in port.allowed_prefixes:
        try:
            ip_network(prefix)
        except ValueError as error:
            found.append(f"{where}.allowed_prefixes: {error}")
    return found


def _check_taken(desired: Desired, rows: Rows) -> list[str]:
    """VNIs and VLANs of the state in rows that are not the agent's."""
    names = {str(vrf.vni): vrf.name for vrf in desired.vrfs}
    vlans = {f"Vlan{vrf.vlan_id}": vrf.name for vrf in desired.vrfs}
    mine = owned(rows, desired)
    found = []
    for key, fields in rows.items():
        if key in mine or table_of(key) not in {"VRF", "VXLAN_TUNNEL_MAP"}:
            continue
        vni, vlan = fields.get("vni", ""), fields.get("vlan", "")
        if vni in names:
            found.append(f"vrfs.vni: row {key} has VNI {vni}, so {names[vni]} cannot have it")
        elif vlan in vlans:
            found.append(f"vrfs.vlan: row {key} maps {vlan}, so {vlans[vlan]} cannot have it")
    return found


def _check_obstacles(desired: Desired, rows: Rows) -> list[str]:
    """Rows that are not the agent's but refer to something that it would have to take away."""
    found = []
    routed = {port.name for port in desired.with_role(PortRole.UPLINK, PortRole.FIREWALL, PortRole.MACHINE)}
    ports = {port.name: port for port in desired.ports}
    kept = {f"Vlan{vrf.vlan_id}" for vrf in desired.vrfs}
    for key, fields in rows.items():
        parent, _, rest = name_of(key).partition("|")
        going = is_tenant_vlan(parent) and parent not in kept
        match table_of(key):
            case "VLAN_MEMBER":
                tagged = fields.get("tagging_mode") == "tagged" and parent != f"Vlan{desired.pxe_vlan}"
                if tagged and rest in routed:
                    found.append(f"ports[{rest!r}]: row {key} keeps the port in a VLAN, so it cannot be routed")
                if going and (tagged or rest not in desired.own_ports):
                    found.append(f"vrfs: row {key} keeps {parent} in use")
            case "VLAN_INTERFACE" if rest and going:
                found.append(f"vrfs: row {key} keeps {parent} in use")
            case "INTERFACE" if parent in ports and parent not in routed and (rest or parent not in desired.own_ports):
                role = ports[parent].role.value
                found.append(f"ports[{parent!r}]: row {key} keeps the port routed, so it cannot be {role}")
    return found


def _check_lengths(line: str, entry: re.Match[str]) -> list[str]:
    length, ge, le = int(entry[3]), entry[4], entry[5]
    if le is not None and int(le) < length:
        return [f"{line}: le {le} is below the prefix length {length}"]
    if ge is not None and int(ge) < length:
        return [f"{line}: ge {ge} is below the prefix length {length}"]
    return []


def _duplicates(where: str, values: Iterable[Hashable]) -> list[str]:
    return [f"{where}: {value} is there {count} times" for value, count in Counter(values).items() if count > 1]
