"""How a registering machine hangs on its leaves.

Pure rules, after metal-stack's: exactly two leaves of one rack in one partition, as many cables to each, on mirrored
ports. What the machine's installer saw by LLDP is untrusted text; neighbours that are no registered leaf (management
switches, other machines) are passed over.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from metal_fabric.ports import counterparts
from metal_fabric.problems import Refused
from metal_fabric.switch import Port, Switch

LEAVES_PER_MACHINE = 2
_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", re.ASCII)
_SHOWN_NAMES = 8
_SHOWN_LENGTH = 64


@dataclass(frozen=True)
class Neighbour:
    """What the installer saw on the NIC with address `nic_mac`: the neighbour's system name and port id."""

    nic_mac: str
    system_name: str
    port_id: str


@dataclass(frozen=True, order=True)
class Cable:
    """A cable between a leaf's port and a machine's NIC."""

    switch_id: str
    port: str
    machine: str
    nic_mac: str


@dataclass(frozen=True)
class Cabling:
    """A machine's cables, by switch and port, and the rack that they put it in."""

    rack: str
    cables: tuple[Cable, ...]


def host_key(system_name: str) -> str:
    """What two spellings of a host name share: the first label in lower case (RFC 4343); LLDP may carry a domain.

    Empty for what is no host name (RFC 1123 section 2.1).
    """
    label = system_name.strip().partition(".")[0].lower()
    return label if _LABEL.fullmatch(label) else ""


def survey(
    machine: str,
    partition: str,
    neighbours: Iterable[Neighbour],
    *,
    leaves: Collection[Switch],
    before: Collection[Cable],
    racks: Mapping[str, str],
    taken: Mapping[tuple[str, str], str],
    additional: Collection[str] = (),
) -> Cabling:
    """The cabling of `machine`, which registers in `partition` and saw `neighbours`.

    `leaves` are the registered switches that the neighbours may name; `before` are the machine's cables so far and
    `racks` the racks of the switches in them; `taken` gives the machine by (switch id, port) of every cable there is;
    `additional` names ports of every leaf that are the operator's own.

    Raises Refused: `NO_NEIGHBOURS`, `LEAF_PORT_UNKNOWN`, `LEAF_PORT_IS_UPLINK`, `LEAF_PORT_TWICE`, `NIC_ON_TWO_PORTS`,
    `NOT_TWO_LEAVES`, `LEAF_IN_OTHER_PARTITION`, `LEAVES_IN_TWO_RACKS`, `UNEQUAL_CABLES`, `PORTS_NOT_MIRRORED`,
    `MACHINE_MOVED`, `PORT_TAKEN`, `LEAF_PORT_IS_ADDITIONAL`.
    """
    seen = list(neighbours)
    if not seen:
        raise Refused("NO_NEIGHBOURS", "the installer saw no LLDP neighbour; check the cables and LLDP on the leaves")
    by_host = {host_key(leaf.id): leaf for leaf in leaves}
    cables = _cables(machine, seen, by_host)
    pair = [by_host[host_key(each)] for each in sorted({cable.switch_id for cable in cables})]
    if len(pair) != LEAVES_PER_MACHINE:
        raise Refused(
            "NOT_TWO_LEAVES",
            f"a machine hangs on exactly two registered leaves; this one's LLDP neighbours are {_names(seen)}, "
            f"of which {_listed(leaf.id for leaf in pair) or 'none'} registered",
        )
    rack = _check_place(pair, partition)
    _check_mirrored(pair, cables)
    _check_moved(machine, rack, before, racks)
    for cable in cables:
        if cable.port in additional and cable not in before:
            raise Refused(
                "LEAF_PORT_IS_ADDITIONAL",
                f"port {cable.port} of {cable.switch_id} is the operator's own by the partition's settings; "
                "use another port, or take it out of the settings",
            )
        other = taken.get((cable.switch_id, cable.port), machine)
        if other != machine:
            raise Refused(
                "PORT_TAKEN",
                f"port {cable.port} of {cable.switch_id} belongs to machine {other}; "
                "delete that machine first if it is gone",
            )
    return Cabling(rack=rack, cables=cables)


def _cables(machine: str, seen: Iterable[Neighbour], by_host: Mapping[str, Switch]) -> tuple[Cable, ...]:
    by_nic: dict[str, Cable] = {}
    by_port: dict[tuple[str, str], Cable] = {}
    for neighbour in seen:
        leaf = by_host.get(host_key(neighbour.system_name))
        if leaf is None:
            continue
        port = _port(leaf, neighbour.port_id)
        cable = Cable(leaf.id, port.name, machine, neighbour.nic_mac)
        if by_nic.setdefault(cable.nic_mac, cable) != cable:
            other = by_nic[cable.nic_mac]
            raise Refused(
                "NIC_ON_TWO_PORTS",
                f"NIC {cable.nic_mac} sees {other.switch_id} {other.port} and {cable.switch_id} {cable.port}; "
                "something between them floods LLDP",
            )
        if by_port.setdefault((cable.switch_id, cable.port), cable) != cable:
            raise Refused(
                "LEAF_PORT_TWICE",
                f"port {cable.port} of {cable.switch_id} is seen by the NICs {cable.nic_mac} and "
                f"{by_port[cable.switch_id, cable.port].nic_mac}; a port has one cable",
            )
    return tuple(sorted(by_port.values()))


def _port(leaf: Switch, port_id: str) -> Port:
    wanted = port_id.strip()
    port = leaf.ports.get(wanted) or next((each for each in leaf.ports.values() if each.alias == wanted), None)
    if port is None or not wanted:
        raise Refused(
            "LEAF_PORT_UNKNOWN",
            f"{leaf.id} has no port {_shown(wanted)}; have the leaf announce its port's name or alias by LLDP",
        )
    if port.uplink:
        raise Refused("LEAF_PORT_IS_UPLINK", f"port {port.name} of {leaf.id} is an uplink; machines cannot use it")
    return port


def _check_place(pair: list[Switch], partition: str) -> str:
    for leaf in pair:
        if leaf.facts.partition != partition:
            raise Refused(
                "LEAF_IN_OTHER_PARTITION",
                f"{leaf.id} is in partition {leaf.facts.partition}, the machine registers in {_shown(partition)}",
            )
    first, second = pair
    if first.facts.rack != second.facts.rack:
        raise Refused(
            "LEAVES_IN_TWO_RACKS",
            f"{first.id} is in rack {first.facts.rack} and {second.id} in rack {second.facts.rack}; "
            "a machine hangs on the two leaves of one rack",
        )
    return first.facts.rack


def _check_mirrored(pair: list[Switch], cables: Iterable[Cable]) -> None:
    first, second = ({cable.port for cable in cables if cable.switch_id == leaf.id} for leaf in pair)
    if len(first) != len(second):
        raise Refused(
            "UNEQUAL_CABLES",
            f"{pair[0].id} has {len(first)} cables of the machine and {pair[1].id} has {len(second)}; "
            "both leaves need the same number",
        )
    # Ethernet4 of a SONiC leaf mirrors swp2 of a Cumulus leaf.
    one, other = pair
    names = counterparts(one.ports, one.facts.os, other.ports, other.facts.os)
    if {names.get(port, port) for port in first} != second:
        raise Refused(
            "PORTS_NOT_MIRRORED",
            f"the machine is on {_listed(first)} of {pair[0].id} and on {_listed(second)} of {pair[1].id}; "
            "use the same ports on both leaves",
        )


def _check_moved(machine: str, rack: str, before: Iterable[Cable], racks: Mapping[str, str]) -> None:
    orphans = sorted({cable.switch_id for cable in before if racks.get(cable.switch_id, rack) != rack})
    if orphans:
        raise Refused(
            "MACHINE_MOVED",
            f"machine {machine} is registered on {_listed(orphans)} of rack {racks[orphans[0]]} and now hangs in rack "
            f"{rack}; delete the machine before it moves",
        )


def _names(seen: Iterable[Neighbour]) -> str:
    return _listed(_shown(name) for name in {neighbour.system_name for neighbour in seen})


def _listed(names: Iterable[str]) -> str:
    every = sorted(names)
    more = len(every) - _SHOWN_NAMES
    return ", ".join(every[:_SHOWN_NAMES]) + (f" and {more} more" if more > 0 else "")


def _shown(text: str) -> str:
    # What comes from LLDP may hold anything; messages and logs get it quoted and cut.
    return ascii(text[:_SHOWN_LENGTH])
