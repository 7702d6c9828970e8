"""Everything that the desired states of switches are computed from, in three statements however many switches."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import asyncpg
from metal_kit.db import Connection

from metal_fabric.filters import UNPROVISIONED, PortRole, Wish
from metal_fabric.ports import AdminState, LinkState
from metal_fabric.settings import NOTHING_SET, Settings, of_stored
from metal_fabric.store.switches import switch_of
from metal_fabric.switch import Port, Switch
from metal_fabric.vlans import Vlan

# Settings that are empty, as most are, are not sent to be parsed.
_SWITCHES = """
    SELECT s.id, s.partition, s.rack, s.os, s.os_version, s.core_version, s.management_address, s.loopback, s.asn,
           s.pxe_vlan, s.kind, s.mode, s.description, nullif(s.settings, '{}') AS settings, s.desired_generation,
           g.hash, coalesce(y.applied_generation, 0) AS applied_generation, p.generation AS pin, p.state AS pinned
    FROM switch s
    LEFT JOIN switch_generation g ON g.switch_id = s.id AND g.generation = s.desired_generation
    LEFT JOIN leaf_sync y ON y.switch_id = s.id
    LEFT JOIN switch_pin p ON p.switch_id = s.id
    WHERE s.id = ANY ($1)
"""
_PORTS = """
    SELECT p.switch_id, p.name, p.alias, p.uplink, p.wish, p.reported, c.port IS NOT NULL, a.role, a.vrf,
           a.allowed_prefixes, a.vnis
    FROM port p
    LEFT JOIN cable c ON c.switch_id = p.switch_id AND c.port = p.name
    LEFT JOIN attachment a ON a.machine = c.machine
    WHERE p.switch_id = ANY ($1)
"""
_VLANS = "SELECT switch_id, vni, vlan, released FROM vlan WHERE switch_id = ANY ($1)"

# A partition has tens of thousands of ports, and few different values of these.
_ADMIN = {
    (wish and wish.value, actual.value): AdminState(wish, actual)
    for wish in (None, LinkState.UP, LinkState.DOWN)
    for actual in LinkState
}
_ROLES = {role.value: role for role in PortRole}


@dataclass
class Source:
    """What a switch's desired state is computed from, and what is there of it.

    `desired` is the newest generation and `digest` its hash (0 and empty before the first), `applied` the one that the
    leaf has, `pin` the generation and content that it is held at. `wishes` are by port, for those that a machine hangs
    on.
    """

    switch: Switch
    desired: int
    digest: str
    applied: int
    pin: tuple[int, bytes] | None = None
    settings: Settings = NOTHING_SET
    wishes: dict[str, Wish] = field(default_factory=dict)
    vlans: list[Vlan] = field(default_factory=list)


class SourceStore:
    """Reads only. The switches must be locked where something is written that follows from it."""

    async def of(self, conn: Connection, switch_ids: Collection[str]) -> dict[str, Source]:
        """What these switches are computed from, by id; those that do not exist are left out."""
        ids = list(switch_ids)
        ports: dict[str, dict[str, Port]] = {each: {} for each in ids}
        wishes: dict[str, dict[str, Wish]] = {each: {} for each in ids}
        _take(await conn.fetch(_PORTS, ids), ports, wishes)
        vlans: dict[str, list[Vlan]] = {each: [] for each in ids}
        for switch_id, vni, number, released in await conn.fetch(_VLANS, ids):
            vlans[switch_id].append(Vlan(vni, number, released))
        return {
            row["id"]: Source(
                switch=switch_of(row, ports[row["id"]]),
                desired=row["desired_generation"],
                digest=row["hash"] or "",
                applied=row["applied_generation"],
                pin=(row["pin"], row["pinned"]) if row["pinned"] is not None else None,
                settings=NOTHING_SET if row["settings"] is None else of_stored(row["settings"]),
                wishes=wishes[row["id"]],
                vlans=vlans[row["id"]],
            )
            for row in await conn.fetch(_SWITCHES, ids)
        }


def _take(
    rows: Sequence[asyncpg.Record], ports: dict[str, dict[str, Port]], wishes: dict[str, dict[str, Wish]]
) -> None:
    for switch_id, name, alias, uplink, wish, reported, occupied, role, vrf, prefixes, vnis in rows:
        ports[switch_id][name] = Port(name, alias, uplink, _ADMIN[wish, reported])
        if role is not None:
            wishes[switch_id][name] = Wish(_ROLES[role], vrf, tuple(prefixes), tuple(vnis))
        elif occupied:
            wishes[switch_id][name] = UNPROVISIONED
