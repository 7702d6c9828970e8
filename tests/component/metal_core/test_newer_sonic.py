"""CONFIG_DB of a SONiC that is newer than the agent: tables, fields and keys that it does not know stay as they are."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from leaf_states import EMPTY, ONE
from metal_core.desired import Port, PortRole

TABLES = {
    "PORT_QOS_MAP|Ethernet0": {"dscp_to_tc_map": "AZURE"},
    "BGP_DEVICE_GLOBAL|STATE": {"tsa_enabled": "false"},
    "VRF_OF_2030|Vrf2000": {"vni": "2000"},
    "TELEMETRY|gnmi": {"port": "8080"},
    "VXLAN_EVPN_MH|default": {"startup_delay": "300"},
}
KEYS = {
    "VRF|mgmt|extra|parts": {"of": "a newer schema"},
    "VLAN|Vlan1001x": {"vlanid": "1"},
    "VXLAN_TUNNEL_MAP|vtep|map_2000_Vlan1001|more": {"of": "a newer schema"},
    "PORT|Ethernet0|lane0": {"polarity": "1"},
    "SUPPRESS_VLAN_NEIGH|Vlan100": {"suppress": "on"},
}
FIELDS = {
    "PORT|Ethernet0": {"fec": "rs", "dhcp_rate_limit": "300", "subport": "0"},
    "PORT|Ethernet120": {"link_training": "on"},
    "INTERFACE|Ethernet120": {"mpls": "enable", "nat_zone": "1"},
    "VRF|Vrf2000": {"src_mac": "00:11:22:33:44:55"},
    "VLAN|Vlan1001": {"mac": "00:11:22:33:44:66", "autostate": "disable"},
    "VLAN_INTERFACE|Vlan1001": {"grat_arp": "enabled"},
}


async def everything(bench: Any) -> dict[str, dict[str, str]]:
    """All of CONFIG_DB, whatever the tables are called."""
    async with bench.sonic.database("CONFIG_DB") as config:
        return {key: await config.hgetall(key) for key in await config.keys("*")}


async def put(bench: Any, rows: dict[str, dict[str, str]]) -> None:
    """Write rows as the newer SONiC does."""
    async with bench.sonic.database("CONFIG_DB") as config:
        for key, row in rows.items():
            await config.hset(key, mapping=row)


async def test_tables_and_keys_that_are_not_known_survive_every_change_as_they_are(bench: Any) -> None:
    await put(bench, TABLES | KEYS)
    for desired in (EMPTY, ONE, EMPTY, ONE):
        outcome = await bench.applier().apply(desired)
        assert outcome.applied, outcome.error
        assert (await everything(bench)).items() >= (TABLES | KEYS).items()
    assert bench.leaf.violations == []


async def test_fields_that_are_not_known_survive_in_the_agents_own_rows(bench: Any) -> None:
    assert (await bench.applier().apply(ONE)).applied
    await put(bench, FIELDS)
    outcome = await bench.applier().apply(ONE)
    assert (outcome.applied, outcome.changed) == (True, 0), "they are no difference"
    # Something happens to each row: another tenant's port, another MTU, a changed value of the agent's beside theirs.
    ports = tuple(replace(port, mtu=9100) if port.role is PortRole.UPLINK else port for port in ONE.ports)
    moved = replace(ONE, generation=3, ports=(*ports[:-1], Port("Ethernet12", PortRole.MACHINE, vrf="Vrf2000")))
    await put(bench, {"VRF|Vrf2000": {"fallback": "true"}, "VLAN|Vlan1001": {"vlanid": "7"}})
    outcome = await bench.applier().apply(moved)
    assert outcome.applied, outcome.error
    rows = await everything(bench)
    for key, fields in FIELDS.items():
        assert rows[key].items() >= fields.items(), key
    assert rows["VRF|Vrf2000"]["fallback"] == "false"
    assert rows["VLAN|Vlan1001"]["vlanid"] == "1001"
    assert rows["PORT|Ethernet120"]["mtu"] == "9100"


async def test_a_failed_change_gives_them_back_as_well(bench: Any) -> None:
    assert (await bench.applier().apply(ONE)).applied
    await put(bench, TABLES | KEYS | FIELDS)
    before = await everything(bench)
    bench.leaf.faults.orchagent_delay = 60.0
    outcome = await bench.applier(wait_limit=0.2).apply(
        replace(ONE, generation=3, ports=(*ONE.ports[:-1], Port("Ethernet12", PortRole.MACHINE, vrf="Vrf2000")))
    )
    assert not outcome.applied
    assert await everything(bench) == before
