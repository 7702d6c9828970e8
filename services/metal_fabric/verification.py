"""Whether the cables still are where the machines' installers saw them, by what the leaves' neighbours announce.

Pure rules. A NIC's MAC address tells who is behind a port; the name that a system gives itself is only a hint, since a
tenant's system can announce any. Nothing is changed by it: a finding asks people to look.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from uuid import UUID

from metal_fabric.cabling import Cable, host_key
from metal_fabric.health import Code, Finding

_MAC = re.compile(r"[0-9a-f]{2}([:-][0-9a-f]{2}){5}", re.ASCII)


@dataclass(frozen=True)
class Announced:
    """What is announced by LLDP on a leaf's `port`."""

    port: str
    chassis_id: str
    port_id: str
    system_name: str

    @property
    def macs(self) -> tuple[str, ...]:
        """MAC addresses that it gives: of its port and of its chassis."""
        given = (each.strip().lower() for each in (self.port_id, self.chassis_id))
        return tuple(each.replace("-", ":") for each in given if _MAC.fullmatch(each))

    @property
    def machine(self) -> str:
        """The UUID that it calls itself by; empty when its name is none."""
        name = self.system_name.strip().lower()
        try:
            return name if str(UUID(name)) == name else ""
        except ValueError:
            return ""


def verify(
    switch_id: str, announced: Iterable[Announced], known: Collection[Cable], switches: Collection[str]
) -> list[Finding]:
    """What is not cabled as it was recorded, one finding a port.

    `known` are the cables of this leaf and those of all NICs and machines that are announced; `switches` the host keys
    of the registered switches that are.
    """
    here = {cable.port: cable for cable in known if cable.switch_id == switch_id}
    by_nic = {cable.nic_mac: cable for cable in known}
    seen: dict[str, Cable] = {}
    found: list[Finding] = []
    for each in announced:
        cables = {by_nic[mac] for mac in each.macs if mac in by_nic}
        if here.get(each.port) in cables:
            continue
        if cables:
            seen[each.port] = min(cables)
        elif finding := _by_name(each, here.get(each.port), known, switches):
            found.append(finding)
    return [*_moved(switch_id, seen, here), *found]


def _moved(switch_id: str, seen: Mapping[str, Cable], here: Mapping[str, Cable]) -> Iterator[Finding]:
    """Ports behind which a NIC is that was recorded elsewhere."""
    told: set[str] = set()
    for port, cable in seen.items():
        recorded = here.get(port)
        if port in told:
            continue
        other = seen.get(cable.port) if cable.switch_id == switch_id else None
        if recorded is not None and other == recorded:
            told.add(cable.port)
            yield Finding(
                Code.CABLES_SWAPPED,
                port,
                f"the cables of ports {port} and {cable.port} are swapped: {port} was recorded for "
                f"{_nic(recorded)} and has {_nic(cable)}, and the other way round",
            )
        elif recorded is not None and recorded.machine == cable.machine:
            yield Finding(
                Code.CABLES_SWAPPED,
                port,
                f"the cables of machine {cable.machine} are swapped: {port} was recorded for its NIC "
                f"{recorded.nic_mac} and has {cable.nic_mac}, which belongs on {cable.port} of {cable.switch_id}",
            )
        else:
            was = f"was recorded for {_nic(recorded)}" if recorded is not None else "was recorded for nobody"
            yield Finding(
                Code.CABLE_MOVED,
                port,
                f"{port} {was} and has {_nic(cable)}, which belongs on {cable.port} of {cable.switch_id}; put the "
                "cable back, or delete the machine and have it register anew",
            )


def _by_name(
    each: Announced, recorded: Cable | None, known: Iterable[Cable], switches: Collection[str]
) -> Finding | None:
    if each.machine and (recorded is None or recorded.machine != each.machine):
        belongs = sorted({f"{cable.port} of {cable.switch_id}" for cable in known if cable.machine == each.machine})
        if belongs:
            was = f"machine {recorded.machine}" if recorded is not None else "nobody"
            return Finding(
                Code.OTHER_MACHINE,
                each.port,
                f"{each.port} was recorded for {was}; what is there calls itself machine {each.machine}, which belongs "
                f"on {' and '.join(belongs)}",
            )
    if recorded is not None and host_key(each.system_name) in switches:
        return Finding(
            Code.SWITCH_ON_MACHINE_PORT,
            each.port,
            f"{each.port} was recorded for {_nic(recorded)} and has the switch {host_key(each.system_name)}",
        )
    return None


def _nic(cable: Cable) -> str:
    return f"NIC {cable.nic_mac} of machine {cable.machine}"
