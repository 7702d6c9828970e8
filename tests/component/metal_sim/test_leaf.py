"""The simulated leaf is strict: what a real switch would not survive, it notices; what is plugged in, it shows."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from metal_lab.servers import Redis
from metal_sim.leaf import LeafSpec, SimLeaf
from redis.asyncio import Redis as Client

SPEC = LeafSpec("leaf01", ("Ethernet0", "Ethernet4", "Ethernet120"), ("Ethernet120",), 4200000011, "10.0.0.11")
TENANT = {
    "VRF|Vrf2000": {"vni": "2000"},
    "VLAN|Vlan1001": {"vlanid": "1001"},
    "VLAN_INTERFACE|Vlan1001": {"vrf_name": "Vrf2000"},
    "VXLAN_TUNNEL_MAP|vtep|map_2000_Vlan1001": {"vlan": "Vlan1001", "vni": "2000"},
    "INTERFACE|Ethernet0": {"vrf_name": "Vrf2000"},
}
Eventually = Callable[..., Awaitable[None]]


class Switch:
    """A leaf and a client that writes its databases by hand."""

    def __init__(self, leaf: SimLeaf, socket: Path, offset: int = 0) -> None:
        self.leaf = leaf
        self.config, self.state, self.appl, self.counters = (
            Client(unix_socket_path=str(socket), db=number + offset, decode_responses=True) for number in (4, 6, 0, 2)
        )

    async def write(self, rows: Mapping[str, Mapping[str, str]]) -> None:
        for key, row in rows.items():
            await self.config.hset(key, mapping=dict(row))  # type: ignore[arg-type]

    async def close(self) -> None:
        for client in (self.config, self.state, self.appl, self.counters):
            await client.aclose()


@pytest.fixture
async def switch(redis_server: Callable[[], Awaitable[Redis]], tmp_path: Path) -> AsyncIterator[Switch]:
    server = await redis_server()
    async with SimLeaf(SPEC, server.socket, tmp_path) as leaf:
        switch = Switch(leaf, server.socket)
        yield switch
        await switch.close()


async def test_objects_follow_config_db(switch: Switch, eventually: Eventually) -> None:
    await switch.write(TENANT)
    await eventually(lambda: switch.state.exists("VRF_OBJECT_TABLE|Vrf2000", "VLAN_TABLE|Vlan1001"))
    for key in reversed(TENANT):
        await switch.config.delete(key)
    await eventually(lambda: _none(switch.state, "VRF_OBJECT_TABLE|Vrf2000", "VLAN_TABLE|Vlan1001"))


@pytest.mark.parametrize(
    ("change", "violation"),
    [
        ({"VLAN|Vlan1001": None}, "VLAN|Vlan1001 was deleted while it was in use"),
        ({"VRF|Vrf2000": None}, "VRF|Vrf2000 was deleted while interfaces were in it"),
        ({"INTERFACE|Ethernet0": {"vrf_name": "Vrf2001"}}, "INTERFACE|Ethernet0 changed its VRF"),
        ({"VLAN_MEMBER|Vlan4000|Ethernet0": {"tagging_mode": "untagged"}}, "though the port is a router interface"),
    ],
)
async def test_a_wrong_order_is_noticed(switch: Switch, eventually: Eventually, change: Any, violation: str) -> None:
    await switch.write(TENANT)

    async def in_use() -> bool:
        # Only what has its router interface makes the order wrong; the VRF is there before.
        return all(await switch.counters.hmget("COUNTERS_RIF_NAME_MAP", ["Vlan1001", "Ethernet0"]))

    await eventually(in_use)
    for key, row in change.items():
        await (switch.config.delete(key) if row is None else switch.write({key: row}))
    await eventually(lambda: any(violation in found for found in switch.leaf.violations))


async def test_links_and_neighbours_come_and_go(switch: Switch) -> None:
    leaf = switch.leaf
    assert await leaf.is_up("Ethernet120")
    assert not await leaf.is_up("Ethernet0")
    await leaf.link_up("Ethernet0")
    await leaf.lldp("Ethernet0", chassis="00:11", system_name="m", description="d", management="10.0.0.2")
    assert await leaf.is_up("Ethernet0")
    row = await switch.appl.hgetall("LLDP_ENTRY_TABLE:Ethernet0")
    assert (row["lldp_rem_sys_name"], row["lldp_rem_man_addr"]) == ("m", "10.0.0.2")
    assert 0 < await switch.appl.ttl("LLDP_ENTRY_TABLE:Ethernet0") <= 120
    await leaf.link_down("Ethernet0")
    assert not await leaf.is_up("Ethernet0")
    assert await _none(switch.appl, "LLDP_ENTRY_TABLE:Ethernet0")


async def test_faults_silence_lldp_and_links(switch: Switch) -> None:
    leaf = switch.leaf
    leaf.faults.lldp_silent = True
    await leaf.lldp("Ethernet0", chassis="00:11", system_name="m", description="d")
    assert await _none(switch.appl, "LLDP_ENTRY_TABLE:Ethernet0")
    leaf.faults.lldp_silent = False
    await leaf.lldp("Ethernet0", chassis="00:11", system_name="m", description="d")
    await leaf.die()
    assert await _none(switch.appl, "LLDP_ENTRY_TABLE:Ethernet0")
    await leaf.link_up("Ethernet0")
    assert not await leaf.is_up("Ethernet120")
    assert not await leaf.is_up("Ethernet0")
    await leaf.revive()
    assert await leaf.is_up("Ethernet120")


async def test_it_answers_where_a_port_is_from_config_db(switch: Switch) -> None:
    leaf = switch.leaf
    assert (await leaf.vrf_of("Ethernet0"), await leaf.vlan_of("Ethernet0"), await leaf.vni_of("Ethernet0")) == (
        "",
        None,
        None,
    )
    await switch.write(TENANT | {"VLAN_MEMBER|Vlan4000|Ethernet4": {"tagging_mode": "untagged"}})
    assert (await leaf.vrf_of("Ethernet0"), await leaf.vni_of("Ethernet0")) == ("Vrf2000", 2000)
    assert await leaf.vlan_of("Ethernet4") == 4000
    await switch.write({"INTERFACE|Ethernet120": {"ipv6_use_link_local_only": "enable"}})
    assert await leaf.vrf_of("Ethernet120") == "default"
    with pytest.raises(ValueError, match="Ethernet999"):
        await leaf.vrf_of("Ethernet999")


async def test_two_leaves_share_a_redis_without_seeing_each_other(
    redis_server: Callable[[], Awaitable[Redis]], tmp_path: Path
) -> None:
    server = await redis_server()
    async with (
        SimLeaf(SPEC, server.socket, tmp_path / "a") as first,
        SimLeaf(SPEC, server.socket, tmp_path / "b", slot=1) as second,
    ):
        switch = Switch(second, server.socket, 16)
        await switch.write(TENANT)
        assert await first.vrf_of("Ethernet0") == ""
        assert await second.vrf_of("Ethernet0") == "Vrf2000"
        await switch.close()


async def _none(client: Any, *keys: str) -> bool:
    return bool(await client.exists(*keys) == 0)
