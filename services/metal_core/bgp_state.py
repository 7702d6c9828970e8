"""BGP sessions as FRR tells of them: `show bgp vrf all neighbors json`, by VRF and neighbour.

The neighbours of unnumbered sessions are called by their ports. What FRR leaves out, or a version of it calls
otherwise, is empty or 0: a session that is only half understood is better than none.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

COMMAND = "show bgp vrf all neighbors json"
ESTABLISHED = "Established"
# By the names that FRR 8 and later give the families; older ones spell them with spaces.
_FAMILIES = {
    "ipv4Unicast": "ipv4",
    "IPv4 Unicast": "ipv4",
    "ipv6Unicast": "ipv6",
    "IPv6 Unicast": "ipv6",
    "l2VpnEvpn": "evpn",
    "L2VPN EVPN": "evpn",
}


@dataclass(frozen=True, slots=True)
class Family:
    """Prefixes that a session exchanges in one address family; `limit` 0 for none."""

    accepted: int = 0
    sent: int = 0
    limit: int = 0


@dataclass(frozen=True, slots=True)
class Session:
    """One session. `state` is FRR's word, `since` when it was established (seconds since the epoch, 0 when it is not).

    `families` are keyed `ipv4`, `ipv6` and `evpn`; `drops` counts how often it was lost since FRR has started.
    """

    vrf: str
    port: str
    state: str
    since: int = 0
    drops: int = 0
    peer_group: str = ""
    hostname: str = ""
    last_reset: str = ""
    families: tuple[tuple[str, Family], ...] = ()

    @property
    def established(self) -> bool:
        """Whether it exchanges routes."""
        return self.state == ESTABLISHED

    @property
    def outline(self) -> tuple[object, ...]:
        """What is worth a report at once when it changes; counters change all the time."""
        return (self.vrf, self.port, self.state, self.since, self.drops, self.peer_group, self.hostname)


def parse(text: str) -> tuple[Session, ...]:
    """The sessions in FRR's answer, by VRF and port. Raises ValueError for what is no JSON."""
    return tuple(sorted(_sessions(json.loads(text)), key=lambda session: (session.vrf, session.port)))


def _sessions(data: object) -> Iterator[Session]:
    for vrf, neighbours in data.items() if isinstance(data, dict) else ():
        if isinstance(neighbours, dict):
            # Beside its neighbours a VRF has its own name and number.
            for port, neighbour in neighbours.items():
                if isinstance(neighbour, dict) and "bgpState" in neighbour:
                    yield _session(vrf, port, neighbour)


def _session(vrf: str, port: str, data: Mapping[str, Any]) -> Session:
    state = _text(data.get("bgpState"))
    families = data.get("addressFamilyInfo")
    found = {
        _FAMILIES[name]: Family(
            _count(family.get("acceptedPrefixCounter")),
            _count(family.get("sentPrefixCounter")),
            _count(family.get("prefixAllowedMax")),
        )
        for name, family in (families.items() if isinstance(families, dict) else ())
        if name in _FAMILIES and isinstance(family, dict)
    }
    return Session(
        vrf=vrf,
        port=port,
        state=state,
        since=_count(data.get("bgpTimerUpEstablishedEpoch")) if state == ESTABLISHED else 0,
        drops=_count(data.get("connectionsDropped")),
        peer_group=_text(data.get("peerGroup")),
        hostname=_text(data.get("hostname")),
        last_reset=_text(data.get("lastResetDueTo")),
        families=tuple(sorted(found.items())),
    )


def _count(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 32 else 0


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""
