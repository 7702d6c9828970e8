"""What all leaves of a partition have in common, by an operator's choice.

Pure rules. The settings are an input of each leaf's desired state; in which order they reach the leaves is `rollout`'s
matter. What is not set is as every leaf has it by itself, and takes no part in the desired state.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass
from enum import Enum
from ipaddress import IPv4Network, ip_network
from typing import Any

from metal_fabric.ports import Fec
from metal_fabric.problems import Invalid
from metal_fabric.vlans import FIRST_VLAN, LAST_VLAN

# RFC 4271 section 4.2: a hold time of 1 or 2 s must be refused. Section 4.4: a third of it between two keepalives.
LEAST_HOLD = 3
KEEPALIVES_PER_HOLD = 3
# Mbit/s, as the contract and metal-core have it.
LAST_SPEED = 1_600_000
_PORTS = "settings.ports"


class DriftPolicy(Enum):
    """What a leaf does about changes that others made to what metal-core owns: correct them, or only tell."""

    DEFAULT = ""
    REPAIR = "repair"
    REPORT = "report"


@dataclass(frozen=True)
class PortSettings:
    """What is set about the port `name`: `speed` in Mbit/s, 0 to leave it alone, and forward error correction."""

    name: str
    speed: int = 0
    fec: Fec = Fec.UNSET


@dataclass(frozen=True)
class Settings:
    """Settings of a partition's fabric; times in seconds. Empty and 0 stand for what each leaf has by itself.

    `management_gateway` is the next hop of the management's default route and of `management_routes`.
    `additional_bridge_ports` are the operator's own: left alone but for their administrative state. `ports` are sorted
    by name.
    """

    pxe_vlan: int = 0
    management_gateway: str = ""
    management_routes: tuple[str, ...] = ()
    additional_bridge_ports: tuple[str, ...] = ()
    source_loopback: bool = False
    bgp_keepalive: int = 0
    bgp_hold: int = 0
    drift_policy: DriftPolicy = DriftPolicy.DEFAULT
    confirm_seconds: int = 0
    ports: tuple[PortSettings, ...] = ()


# Of a partition that nobody has set anything for.
NOTHING_SET = Settings()


def check(settings: Settings) -> None:
    """Raise Invalid for settings that contradict themselves: `PXE_VLAN_RESERVED`, `GATEWAY_MISSING`,
    `BGP_TIMERS_INVALID`, `PORT_NAMED_TWICE`, `PORT_IS_ADDITIONAL`,
    `PORT_SPEED_UNKNOWN`."""
    if FIRST_VLAN <= settings.pxe_vlan <= LAST_VLAN:
        raise Invalid(
            "PXE_VLAN_RESERVED",
            f"VLANs {FIRST_VLAN} to {LAST_VLAN} belong to tenant VRFs; choose another PXE VLAN",
            field="settings.pxe_vlan",
        )
    if settings.management_routes and not settings.management_gateway:
        raise Invalid(
            "GATEWAY_MISSING",
            "further management routes need the gateway that they lead to",
            field="settings.management_gateway",
        )
    keepalive, hold = settings.bgp_keepalive, settings.bgp_hold
    if (keepalive or hold) and not (keepalive and hold >= max(LEAST_HOLD, KEEPALIVES_PER_HOLD * keepalive)):
        raise Invalid(
            "BGP_TIMERS_INVALID",
            f"set both, with a hold time of at least {LEAST_HOLD} s and {KEEPALIVES_PER_HOLD} keepalives; or neither",
            field="settings.bgp_hold",
        )
    _check_ports(settings)


def _check_ports(settings: Settings) -> None:
    for name, count in Counter(port.name for port in settings.ports).items():
        if count > 1:
            raise Invalid("PORT_NAMED_TWICE", f"port {name} is there {count} times; name it once", field=_PORTS)
        if name in settings.additional_bridge_ports:
            raise Invalid(
                "PORT_IS_ADDITIONAL",
                f"port {name} is the operator's own, of which leaves change the administrative state only; "
                "take it out of the one or the other",
                field=_PORTS,
            )
    for port in settings.ports:
        if not is_speed(port.speed):
            raise Invalid("PORT_SPEED_UNKNOWN", _unknown_speed(port), field=_PORTS)


def is_speed(speed: int) -> bool:
    """Whether ports can have this speed, in Mbit/s; 0 leaves a port its own. metal-core refuses a whole state for one
    that they cannot have."""
    return 0 <= speed <= LAST_SPEED and (speed % 1000 == 0 or speed in {10, 100})


def ignored(port: PortSettings, additional: Collection[str], partition: str) -> str:
    """Why leaves are not told what is set about a port, and the way out; empty when they are. `additional` names the
    operator's own ports.

    What is stored may be older than the rule that would refuse it by now, and must not keep a leaf from all else.
    """
    if port.name in additional:
        what = f"port {port.name} is the operator's own, so its speed and error correction are left alone"
    elif not is_speed(port.speed):
        what = f"{_unknown_speed(port)}; it is left alone"
    else:
        return ""
    return f"{what}. Set the ports of partition {partition} anew: `metalctl switch set {partition} --port ...`"


def _unknown_speed(port: PortSettings) -> str:
    return (
        f"speed {port.speed} of port {port.name} must be in Mbit/s: 10, 100 or a multiple of 1000, "
        "such as 25000 for 25 Gbit/s"
    )


def canonical_ports(ports: Iterable[PortSettings]) -> tuple[PortSettings, ...]:
    """Those about which something is set, by name."""
    said = (port for port in ports if port.speed or port.fec is not Fec.UNSET)
    return tuple(sorted(said, key=lambda port: port.name))


def canonical_routes(prefixes: Iterable[str], *, field: str = "settings.management_routes") -> tuple[str, ...]:
    """IPv4 prefixes in ascending order, each once. Raises Invalid `PREFIX_INVALID`, `ROUTE_IS_DEFAULT`."""
    routes: set[IPv4Network] = set()
    for index, text in enumerate(prefixes):
        try:
            network = ip_network(text, strict=True)
        except ValueError:
            network = None
        if not isinstance(network, IPv4Network):
            raise Invalid(
                "PREFIX_INVALID", "not an IPv4 prefix without host bits, such as 10.0.0.0/24", field=f"{field}[{index}]"
            )
        if not network.prefixlen:
            raise Invalid(
                "ROUTE_IS_DEFAULT", "the default route comes with the gateway; leave it out", field=f"{field}[{index}]"
            )
        routes.add(network)
    return tuple(map(str, sorted(routes)))


def stored(settings: Settings) -> dict[str, Any]:
    """The settings as they are stored, as JSON: only what is set."""
    ports = [{"name": port.name, "speed": port.speed, "fec": port.fec.value} for port in settings.ports]
    values = asdict(settings) | {"drift_policy": settings.drift_policy.value, "ports": ports}
    return {name: value for name, value in values.items() if value}


def of_stored(values: Mapping[str, Any]) -> Settings:
    """The inverse of `stored`."""
    lists = {name: tuple(values.get(name, ())) for name in ("management_routes", "additional_bridge_ports")}
    ports = tuple(PortSettings(each["name"], each["speed"], Fec(each["fec"])) for each in values.get("ports", ()))
    policy = DriftPolicy(values.get("drift_policy", ""))
    return Settings(**{**values, **lists, "drift_policy": policy, "ports": ports})
