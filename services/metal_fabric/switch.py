"""A leaf switch and what its registration may change.

Pure rules. A registration is a report of facts by the leaf (its system, its ports); what the plane knows about these
ports (cabling, wishes) always survives it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from ipaddress import ip_address

from metal_fabric.ports import AdminState, LinkState, SwitchOs
from metal_fabric.problems import Invalid, Refused
from metal_fabric.vlans import FIRST_VLAN, LAST_VLAN


class SwitchKind(Enum):
    """What a switch is in the fabric. Only leaves follow the plane; of the others it knows that they are there."""

    LEAF = "leaf"
    SPINE = "spine"
    EXIT = "exit"


class SwitchMode(Enum):
    """Whether a leaf's next registration is the known box's (`OPERATIONAL`), or may be another box's (`REPLACE`)."""

    OPERATIONAL = "operational"
    REPLACE = "replace"


@dataclass(frozen=True)
class Port:
    """A port of a leaf: `name` is what the leaf configures (`Ethernet4`), `alias` what is printed beside it."""

    name: str
    alias: str = ""
    uplink: bool = False
    admin: AdminState = field(default_factory=AdminState)

    @property
    def identifier(self) -> str:
        """What stays when ports are renamed: the alias, else the name."""
        return self.alias or self.name


@dataclass(frozen=True)
class SwitchFacts:
    """What a leaf says about itself at registration. `loopback` is its router id and VTEP, `pxe_vlan` where machines
    that nobody holds boot."""

    partition: str
    rack: str
    os: SwitchOs
    os_version: str = ""
    core_version: str = ""
    management_address: str = ""
    loopback: str = ""
    asn: int = 0
    pxe_vlan: int = 0


@dataclass(frozen=True)
class Switch:
    """A switch as the plane knows it; `id` is its host name, `ports` are keyed by name. Of a device that is no leaf the
    plane knows no ports."""

    id: str
    facts: SwitchFacts
    ports: Mapping[str, Port]
    description: str = ""
    kind: SwitchKind = SwitchKind.LEAF
    mode: SwitchMode = SwitchMode.OPERATIONAL


def merge(known: Switch | None, reported: Switch, *, connected: Collection[str]) -> Switch:
    """The switch after `reported` registered; `connected` names the ports that machines hang on.

    Raises Refused: `LOOPBACK_NOT_IPV4`, `PORT_NAME_TWICE`, `PORT_ALIAS_TWICE`, `PXE_VLAN_RESERVED`,
    `NAME_OF_A_DEVICE`, `SWITCH_IN_OTHER_PARTITION`, `CONNECTED_SWITCH_MOVED`, `CONNECTED_PORT_REMOVED`,
    `CONNECTED_PORT_RENAMED`, `CONNECTED_PORT_IS_UPLINK`.
    """
    _check_loopback(reported.facts.loopback)
    if FIRST_VLAN <= reported.facts.pxe_vlan <= LAST_VLAN:
        raise Invalid(
            "PXE_VLAN_RESERVED",
            f"VLANs {FIRST_VLAN} to {LAST_VLAN} belong to tenant VRFs; choose another PXE VLAN",
            field="hello.pxe_vlan",
        )
    _check_ports(reported.ports.values())
    if known is None:
        return reported
    if known.kind is not SwitchKind.LEAF:
        raise Refused(
            "NAME_OF_A_DEVICE",
            f"{reported.id} is recorded as {known.kind.value}; rename the leaf, or delete the record",
            field="hello.switch_id",
        )
    if known.facts.partition != reported.facts.partition:
        raise Refused(
            "SWITCH_IN_OTHER_PARTITION",
            f"{reported.id} is registered in partition {known.facts.partition}; delete it there first",
            field="hello.partition",
        )
    if connected and known.facts.rack != reported.facts.rack:
        raise Refused(
            "CONNECTED_SWITCH_MOVED",
            f"{len(connected)} ports of {reported.id} have machines in rack {known.facts.rack}; "
            f"delete their cabling before the switch moves to rack {reported.facts.rack}",
            field="hello.rack",
        )
    return replace(
        reported,
        ports=merge_ports(known.ports, reported.ports.values(), connected=connected),
        description=known.description,
        mode=known.mode,
    )


def merge_ports(known: Mapping[str, Port], reported: Iterable[Port], *, connected: Collection[str]) -> dict[str, Port]:
    """Ports after a registration, keyed by name, with the wishes and states that are known of them.

    A connected port may neither vanish nor be renamed nor become an uplink: whoever is behind it would lose its network
    without anyone having asked for that. Raises Refused as `merge` does.
    """
    now = {port.name: port for port in reported}
    by_identifier = {port.identifier: port for port in now.values()}
    for name in sorted(connected):
        _check_connected(name, known[name].identifier if name in known else name, now, by_identifier)
    # A port keeps its past by name, and under a new name by its alias.
    before = {port.identifier: port for port in known.values()} | dict(known)
    merged: dict[str, Port] = {}
    for port in now.values():
        old = before.get(port.name) or before.get(port.identifier)
        if old is None:
            merged[port.name] = port
        else:
            # A leaf that has just started may not know its links yet; that is no news about them.
            actual = old.admin.actual if port.admin.actual is LinkState.UNKNOWN else port.admin.actual
            merged[port.name] = replace(port, admin=old.admin.reported(actual))
    return merged


def _check_connected(name: str, identifier: str, now: Mapping[str, Port], by_identifier: Mapping[str, Port]) -> None:
    other = by_identifier.get(identifier)
    if other is not None and other.name != name:
        raise Refused(
            "CONNECTED_PORT_RENAMED",
            f"port {name} has a machine on it and cannot become {other.name}; "
            "keep its name, or delete the machine's cabling first",
            field="hello.ports",
        )
    port = now.get(name)
    if port is None:
        raise Refused(
            "CONNECTED_PORT_REMOVED",
            f"port {name} has a machine on it and is missing from the registration; "
            "report it again, or delete the machine's cabling first",
            field="hello.ports",
        )
    if port.uplink:
        raise Refused(
            "CONNECTED_PORT_IS_UPLINK",
            f"port {name} has a machine on it and cannot be an uplink; delete the machine's cabling first",
            field="hello.ports",
        )


def _check_loopback(loopback: str) -> None:
    # The underlay is IPv4: the loopback is a BGP router id (RFC 4271 section 4.2: four octets) and the address of the
    # VTEP. Accepted here, it would be refused by metal-core with every state that it is sent.
    if loopback and ip_address(loopback).version != 4:
        raise Invalid(
            "LOOPBACK_NOT_IPV4",
            f"{loopback} is no IPv4 address, and the loopback is router id and VTEP of an IPv4 underlay; "
            "give the leaf an IPv4 loopback, or name it in METALPLANE_LOOPBACK",
            field="hello.loopback",
        )


def _check_ports(ports: Iterable[Port]) -> None:
    twice = sorted(alias for alias, count in Counter(port.identifier for port in ports).items() if count > 1)
    if twice:
        raise Invalid(
            "PORT_ALIAS_TWICE",
            f"port {', '.join(twice)} is reported more than once; each port needs an alias of its own",
            field="hello.ports",
        )


def ports_by_name(ports: Iterable[Port]) -> dict[str, Port]:
    """The ports keyed by name. Raises Refused `PORT_NAME_TWICE`."""
    keyed: dict[str, Port] = {}
    for port in ports:
        if port.name in keyed:
            raise Invalid(
                "PORT_NAME_TWICE",
                f"port {port.name} is reported more than once; each port needs a name of its own",
                field="hello.ports",
            )
        keyed[port.name] = port
    return keyed
