"""As much of SONiC's orchagent as an agent waits for: objects that follow CONFIG_DB, late and in a certain order.

It keeps VRF_OBJECT_TABLE and VLAN_TABLE of STATE_DB, and router interfaces and bridge ports of ASIC_DB with their names
in COUNTERS_DB. Speed and error correction of ports get into APPL_DB as they are wanted, and into STATE_DB as they are.
Where the real one crashes or wedges on a wrong order of changes, this one records a violation, so that
a test can demand that there was none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import count

from redis.asyncio import Redis

from metal_sim.leaf.faults import LeafFaults
from metal_sim.leaf.hardware import Hardware, NoHardware
from metal_sim.leaf.rows import FECS, SPEEDS, Rows

_RIF = "ASIC_STATE:SAI_OBJECT_TYPE_ROUTER_INTERFACE"
_BRIDGE_PORT = "ASIC_STATE:SAI_OBJECT_TYPE_BRIDGE_PORT"


@dataclass(slots=True)
class _Objects:
    """What exists in the hardware: VRF by router interface, VLAN by bridged port, and the oids of both.

    `vnis` has VLAN and VNI by tunnel map, `ports` MTU and whether it is up by port, `wanted` their speed and error
    correction.
    """

    vrfs: set[str] = field(default_factory=set)
    vlans: set[str] = field(default_factory=set)
    vnis: dict[str, tuple[str, int]] = field(default_factory=dict)
    ports: dict[str, tuple[int, bool]] = field(default_factory=dict)
    wanted: dict[str, tuple[str, str]] = field(default_factory=dict)
    rifs: dict[str, str] = field(default_factory=dict)
    members: dict[str, str] = field(default_factory=dict)
    oids: dict[str, str] = field(default_factory=dict)


class Orchagent:
    """Follows CONFIG_DB by whole passes; `violations` lists what the real one would not have survived.

    What it says to exist has been made in `hardware` before.
    """

    def __init__(
        self,
        databases: Mapping[str, Redis],
        ports: Mapping[str, str],
        faults: LeafFaults,
        hardware: Hardware | None = None,
    ) -> None:
        self._asic, self._counters, self._state = databases["ASIC_DB"], databases["COUNTERS_DB"], databases["STATE_DB"]
        self._appl = databases["APPL_DB"]
        self._ports, self._faults = ports, faults
        self._hardware: Hardware = hardware or NoHardware()
        self._there = _Objects()
        self._numbers = count(1)
        self.violations: list[str] = []

    async def cold_start(self) -> None:
        """Empty the databases that are derived, as after a reboot, and name the ports."""
        for database in (self._asic, self._counters, self._state):
            await database.flushdb()
        self._there = _Objects()
        for name, oid in self._ports.items():
            await self._counters.hset("COUNTERS_PORT_NAME_MAP", name, oid)
            able = {"supported_speeds": ",".join(SPEEDS), "supported_fecs": ",".join(FECS)}
            await _replace(self._state, f"PORT_TABLE|{name}", able)

    async def follow(self, rows: Rows) -> None:
        """One pass: let go of what CONFIG_DB does not have any more, then create what it has."""
        self._judge(rows)
        await self._let_go(rows)
        await self._set_ports(rows)
        await self._create(rows)

    def _judge(self, rows: Rows) -> None:
        there = self._there
        for name, vrf in there.rifs.items():
            row = rows.get(_interface_row(name))
            if row is not None and row.get("vrf_name", "") != vrf:
                self._violation(f"{_interface_row(name)} changed its VRF while its router interface existed")
        mapped = {row.get("vlan", "") for key, row in rows.items() if key.startswith("VXLAN_TUNNEL_MAP|")}
        for vlan in there.vlans:
            if f"VLAN|{vlan}" not in rows and (vlan in mapped or vlan in there.rifs or vlan in there.members.values()):
                self._violation(f"VLAN|{vlan} was deleted while it was in use")
        for vrf in there.vrfs:
            if f"VRF|{vrf}" not in rows and vrf in there.rifs.values():
                self._violation(f"VRF|{vrf} was deleted while interfaces were in it")
        for key in rows:
            if key.startswith("VLAN_MEMBER|") and f"INTERFACE|{key.split('|')[2]}" in rows:
                self._violation(f"{key} though the port is a router interface")

    def _violation(self, what: str) -> None:
        if what not in self.violations:
            self.violations.append(what)

    async def _let_go(self, rows: Rows) -> None:
        there = self._there
        for key in [key for key, mapped in there.vnis.items() if _mapping(rows.get(key, {})) != mapped]:
            await self._hardware.remove_vni(*there.vnis.pop(key))
        for name in [name for name, vrf in there.rifs.items() if _vrf_wanted(rows, name) != vrf]:
            await self._hardware.unroute(name, there.rifs[name])
            await self._asic.delete(f"{_RIF}:{there.oids.pop(name)}")
            await self._counters.hdel("COUNTERS_RIF_NAME_MAP", name)
            del there.rifs[name]
        for port in [port for port, vlan in there.members.items() if f"VLAN_MEMBER|{vlan}|{port}" not in rows]:
            await self._hardware.unbridge(port)
            await self._asic.delete(f"{_BRIDGE_PORT}:{there.oids.pop(port)}")
            del there.members[port]
        for vlan in [vlan for vlan in there.vlans if f"VLAN|{vlan}" not in rows]:
            await self._hardware.remove_vlan(vlan)
            await self._state.delete(f"VLAN_TABLE|{vlan}")
            there.vlans.discard(vlan)
        for vrf in [vrf for vrf in there.vrfs if f"VRF|{vrf}" not in rows and vrf not in there.rifs.values()]:
            await self._hardware.remove_vrf(vrf)
            await self._state.delete(f"VRF_OBJECT_TABLE|{vrf}")
            there.vrfs.discard(vrf)

    async def _create(self, rows: Rows) -> None:
        there = self._there
        # VRFs and VLANs first: the other objects refer to them.
        for key in sorted(rows, key=_rank):
            match key.split("|"):
                case ["VRF", vrf] if vrf not in there.vrfs:
                    await self._hardware.add_vrf(vrf)
                    await self._state.hset(f"VRF_OBJECT_TABLE|{vrf}", "state", "ok")
                    there.vrfs.add(vrf)
                case ["VLAN", vlan] if vlan not in there.vlans:
                    await self._hardware.add_vlan(vlan)
                    await self._state.hset(f"VLAN_TABLE|{vlan}", "state", "ok")
                    there.vlans.add(vlan)
                case ["INTERFACE" | "VLAN_INTERFACE", name] if name not in there.rifs:
                    await self._create_rif(name, rows[key].get("vrf_name", ""))
                case ["VLAN_MEMBER", vlan, port] if port not in there.members:
                    await self._create_member(vlan, port)
                case ["VXLAN_TUNNEL_MAP", *_] if key not in there.vnis:
                    await self._create_vni(key, rows[key])
                case _:
                    pass

    async def _create_rif(self, name: str, vrf: str) -> None:
        there = self._there
        missing_vlan = name.startswith("Vlan") and name not in there.vlans
        if name in there.members or missing_vlan or (vrf and vrf not in there.vrfs):
            return
        await self._hardware.route(name, vrf)
        oid = f"oid:0x6{next(self._numbers):012x}"
        await self._asic.hset(f"{_RIF}:{oid}", "SAI_ROUTER_INTERFACE_ATTR_PORT_ID", self._ports.get(name, ""))
        await self._counters.hset("COUNTERS_RIF_NAME_MAP", name, oid)
        there.rifs[name], there.oids[name] = vrf, oid

    async def _create_member(self, vlan: str, port: str) -> None:
        there = self._there
        if port in there.rifs or vlan not in there.vlans or port not in self._ports:
            return
        await self._hardware.bridge(port, vlan)
        oid = f"oid:0x3a{next(self._numbers):011x}"
        await self._asic.hset(f"{_BRIDGE_PORT}:{oid}", "SAI_BRIDGE_PORT_ATTR_PORT_ID", self._ports[port])
        there.members[port], there.oids[port] = vlan, oid

    async def _create_vni(self, key: str, row: Mapping[str, str]) -> None:
        vlan, vni = mapped = _mapping(row)
        # Without a router interface for its VLAN a layer 3 VNI has nowhere to go yet.
        if vni and vlan in self._there.rifs:
            await self._hardware.add_vni(vlan, vni)
            self._there.vnis[key] = mapped

    async def _set_ports(self, rows: Rows) -> None:
        for name in self._ports:
            row = rows.get(f"PORT|{name}", {})
            wanted = int(row.get("mtu", "0")), row.get("admin_status") == "up"
            if self._there.ports.get(name) != wanted:
                await self._hardware.set_port(name, *wanted)
                self._there.ports[name] = wanted
            await self._set_speed(name, row)

    async def _set_speed(self, name: str, row: Mapping[str, str]) -> None:
        speed, fec = wanted = row.get("speed", ""), row.get("fec", "")
        if self._there.wanted.get(name) == wanted:
            return
        self._there.wanted[name] = wanted
        await _replace(self._appl, f"PORT_TABLE:{name}", {"speed": speed, "fec": fec})
        # Without a wish for one a port of this switch has no error correction. What it cannot do is passed over.
        real = {"fec": fec or "none", "speed": speed}
        real = {each: value for each, value in real.items() if value in (*SPEEDS, *FECS)}
        if not self._faults.speed_ignored:
            await _replace(self._state, f"PORT_TABLE|{name}", real)


async def _replace(database: Redis, key: str, fields: Mapping[str, str]) -> None:
    """Set fields of a row; those that are empty are not in it."""
    async with database.pipeline(transaction=True) as batch:
        for name, value in fields.items():
            if value:
                batch.hset(key, name, value)
            else:
                batch.hdel(key, name)
        await batch.execute()


def _rank(key: str) -> int:
    """What other objects refer to comes before them. Ports are last, since nothing says when a tunnel map is there."""
    table = key.partition("|")[0]
    return {"VRF": 0, "VLAN": 0, "VLAN_INTERFACE": 1, "VXLAN_TUNNEL_MAP": 2}.get(table, 3)


def _mapping(row: Mapping[str, str]) -> tuple[str, int]:
    return row.get("vlan", ""), int(row.get("vni", "0"))


def _interface_row(name: str) -> str:
    return f"VLAN_INTERFACE|{name}" if name.startswith("Vlan") else f"INTERFACE|{name}"


def _vrf_wanted(rows: Rows, name: str) -> str | None:
    row = rows.get(_interface_row(name))
    return None if row is None else row.get("vrf_name", "")
