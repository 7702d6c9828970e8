"""The whole agent on a simulated leaf, against a scripted fabric over real gRPC with mutual TLS and validation."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest
from leaf_rack import Rack, applied, state
from metal_lab.servers.ports import free_ports
from metalplane.fabric.v1.agent_pb2 import (
    DesiredState,
)
from metalplane.fabric.v1.observation_pb2 import DriftState
from metalplane.fabric.v1.settings_pb2 import DriftPolicy
from metalplane.fabric.v1.switch_pb2 import PortRole, PortState

MACHINE = "4c4c4544-0042-4b10-8031-b9c04f4b3533"
Eventually = Callable[..., Awaitable[None]]


async def test_a_leaf_says_who_it_is_and_applies_what_it_is_told(rack: Rack, eventually: Eventually) -> None:
    rack.start_agent()
    await eventually(lambda: rack.fabric.hellos)
    (hello,) = rack.fabric.hellos
    assert rack.fabric.callers == ["leaf:mini:leaf01"]
    assert (hello.switch_id, hello.partition, hello.rack) == ("leaf01", "mini", "rack1")
    assert (hello.asn, hello.loopback, hello.pxe_vlan, hello.applied_generation) == (4200000011, "10.0.0.11", 4000, 0)
    assert [port.name for port in hello.ports if port.uplink] == ["Ethernet120", "Ethernet124"]
    rack.fabric.want(state(1, 2000))
    await eventually(applied(rack, 1))
    report = rack.fabric.reports[-1]
    assert (report.hash, report.error, list(report.notes)) == ("hash1", "", ["frr: not present"])
    assert {"prepare", "apply", "verify", "commit"} <= set(report.durations)
    assert await rack.bench.leaf.vni_of("Ethernet0") == 2000
    assert await rack.bench.leaf.vlan_of("Ethernet4") == 4000
    rack.fabric.want(state(2))
    await eventually(applied(rack, 2))
    assert await rack.bench.leaf.vrf_of("Ethernet0") == ""
    assert await rack.bench.leaf.vlan_of("Ethernet0") == 4000
    assert rack.bench.leaf.violations == []


async def test_ports_and_phoned_home_systems_are_reported(rack: Rack, eventually: Eventually) -> None:
    leaf = rack.bench.leaf
    rack.start_agent()
    await eventually(lambda: rack.fabric.states.get("Ethernet120") == PortState.PORT_STATE_UP)
    assert rack.fabric.states["Ethernet0"] == PortState.PORT_STATE_DOWN
    await leaf.link_up("Ethernet0")
    await leaf.lldp("Ethernet0", chassis="00:11", system_name=MACHINE, description="metal-hammer, installing")
    await eventually(lambda: rack.fabric.states["Ethernet0"] == PortState.PORT_STATE_UP)
    assert rack.fabric.phone_homes == []
    await leaf.lldp("Ethernet0", chassis="00:11", system_name=MACHINE, description="provisioned since 12:00")
    await eventually(lambda: rack.fabric.phone_homes)
    home = rack.fabric.phone_homes[0]
    assert (home.port, home.machine, home.message) == ("Ethernet0", MACHINE, "provisioned since 12:00")
    await leaf.link_down("Ethernet0")
    await eventually(lambda: rack.fabric.states["Ethernet0"] == PortState.PORT_STATE_DOWN)


async def test_on_a_new_stream_every_port_is_reported_after_the_hello(rack: Rack, eventually: Eventually) -> None:
    """The Hello reads the ports between two looks, and a port that flaps then has not changed for the next look."""
    rack.start_agent()
    await eventually(lambda: len(rack.fabric.states) == 6)
    await rack.fabric_down()
    rack.fabric.states.clear()
    await rack.fabric_up()
    await eventually(lambda: len(rack.fabric.states) == 6)


async def test_a_report_that_nobody_acknowledged_is_sent_again_on_the_next_stream(
    rack: Rack, eventually: Eventually
) -> None:
    rack.fabric.acknowledge = False
    rack.fabric.wanted = state(1)
    rack.start_agent()
    await eventually(lambda: rack.fabric.reports and rack.fabric.observation_ids)
    first, seen = rack.fabric.reports[0].id, rack.fabric.observation_ids[0]
    await rack.fabric_down()
    rack.fabric.wanted, rack.fabric.acknowledge = None, True
    await rack.fabric_up()
    await eventually(lambda: rack.fabric.reports[-1].id == first and len(rack.fabric.reports) > 1)
    await eventually(lambda: rack.fabric.observation_ids.count(seen) > 1)


async def test_cut_off_from_the_plane_a_leaf_keeps_what_it_has_and_comes_back(
    rack: Rack, eventually: Eventually
) -> None:
    rack.fabric.want(state(1, 2000))
    rack.start_agent()
    await eventually(applied(rack, 1))
    before = await rack.bench.sonic.config()
    await rack.fabric_down()
    await rack.stop_agent()
    assert await rack.bench.sonic.config() == before
    rack.start_agent()
    await rack.fabric_up()
    await eventually(lambda: len(rack.fabric.hellos) > 1)
    assert (rack.fabric.hellos[-1].applied_generation, rack.fabric.hellos[-1].applied_hash) == (1, "hash1")
    assert await rack.bench.sonic.config() == before


async def test_after_a_reboot_without_the_plane_the_tenants_network_is_back(rack: Rack, eventually: Eventually) -> None:
    rack.fabric.want(state(1, 2000))
    rack.start_agent()
    await eventually(applied(rack, 1))
    await rack.stop_agent()
    await rack.fabric_down()
    async with rack.bench.sonic.database("CONFIG_DB") as config:
        await config.flushdb()
    await rack.bench.leaf.stop()
    await rack.bench.leaf.start()
    assert await rack.bench.leaf.vrf_of("Ethernet0") == ""
    rack.start_agent()

    async def restored() -> bool:
        return bool(await rack.bench.leaf.vni_of("Ethernet0") == 2000)

    await eventually(restored)


async def test_an_older_generation_does_not_take_the_leaf_back(rack: Rack, eventually: Eventually) -> None:
    rack.fabric.want(state(5, 2000))
    rack.start_agent()
    await eventually(applied(rack, 5))
    rack.fabric.want(state(4))
    rack.fabric.want(state(6, 2001))
    await eventually(applied(rack, 6))
    assert 4 not in {report.generation for report in rack.fabric.reports}
    assert await rack.bench.leaf.vni_of("Ethernet0") == 2001


async def test_a_plane_that_has_forgotten_the_switch_is_followed_from_its_first_generation_on(
    rack: Rack, eventually: Eventually
) -> None:
    """The leaf has applied nothing, so nothing in its Hello tells the plane to begin above what failed."""
    bad = state(5, 2001)
    bad.ports.add(name="Ethernet999", role=PortRole.PORT_ROLE_UNPROVISIONED)
    rack.fabric.want(bad)
    rack.start_agent()
    await eventually(lambda: rack.fabric.reports and rack.fabric.reports[-1].error)
    await rack.fabric_down()
    rack.fabric.wanted = state(1, 2000)
    await rack.fabric_up()
    await eventually(applied(rack, 1))
    assert await rack.bench.leaf.vni_of("Ethernet0") == 2000


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (lambda bad: bad.ClearField("ports"), "none has the role uplink"),
        (lambda bad: bad.ClearField("vrfs"), "'Vrf2001' is not among the VRFs"),
        (lambda bad: bad.ports.add(name="Ethernet999", role=PortRole.PORT_ROLE_UNPROVISIONED), "PORT|Ethernet999"),
        (lambda bad: bad.ports.add(name="Ethernet999"), "is not known here"),
        (lambda bad: setattr(bad, "switch_id", "leaf02"), "'leaf02'"),
        (lambda bad: bad.Clear() or setattr(bad, "generation", 2), "switch_id"),
    ],
)
async def test_a_wrong_state_from_the_plane_changes_nothing_and_is_answered_with_the_reason(
    rack: Rack, eventually: Eventually, spoil: Callable[[DesiredState], Any], complaint: str
) -> None:
    rack.fabric.want(state(1, 2000))
    rack.start_agent()
    await eventually(applied(rack, 1))
    before = await rack.bench.sonic.config()
    bad = state(2, 2001)
    spoil(bad)
    rack.fabric.want(bad)
    await eventually(lambda: rack.fabric.reports[-1].generation == 2)
    assert not rack.fabric.reports[-1].applied
    assert complaint in rack.fabric.reports[-1].error
    assert await rack.bench.sonic.config() == before
    rack.fabric.want(state(3, 2001))
    await eventually(applied(rack, 3))


async def test_what_somebody_changed_by_hand_is_corrected_and_said(rack: Rack, eventually: Eventually) -> None:
    rack.fabric.want(state(1, 2000))
    rack.start_agent(compare_seconds=0.2)
    await eventually(applied(rack, 1))
    await rack.bench.sonic.delete(["INTERFACE|Ethernet0"])
    await eventually(lambda: any("drift" in note for note in rack.fabric.reports[-1].notes))
    assert await rack.bench.leaf.vni_of("Ethernet0") == 2000


async def test_a_change_by_hand_is_seen_when_it_happens(rack: Rack, eventually: Eventually) -> None:
    """By the announcements of Redis: the comparison from time to time is an hour away."""
    rack.fabric.want(state(1, 2000))
    rack.start_agent()
    await eventually(applied(rack, 1))
    await rack.bench.sonic.delete(["INTERFACE|Ethernet0"])
    await eventually(lambda: rack.fabric.drifts)
    drift = rack.fabric.drifts[0]
    assert (drift.state, drift.generation) == (DriftState.DRIFT_STATE_CORRECTED, 1)
    assert [(row.table, row.key) for row in drift.differences.rows] == [("INTERFACE", "Ethernet0")]
    assert await rack.bench.leaf.vni_of("Ethernet0") == 2000


async def test_by_policy_a_change_by_hand_is_only_reported(rack: Rack, eventually: Eventually) -> None:
    wanted = state(1, 2000)
    wanted.drift_policy = DriftPolicy.DRIFT_POLICY_REPORT
    rack.fabric.want(wanted)
    rack.start_agent()
    await eventually(applied(rack, 1))
    before = await rack.bench.sonic.config()
    await rack.bench.sonic.write({"PORT|Ethernet0": {"mtu": "1500"}}, {})
    await eventually(lambda: rack.fabric.drifts)
    (drift,) = rack.fabric.drifts
    assert drift.state == DriftState.DRIFT_STATE_REPORTED
    assert [(row.key, row.field, row.wanted, row.found) for row in drift.differences.rows] == [
        ("Ethernet0", "mtu", "9000", "1500")
    ]
    assert (await rack.bench.sonic.config())["PORT|Ethernet0"]["mtu"] == "1500"
    await rack.bench.sonic.write({"PORT|Ethernet0": {"mtu": before["PORT|Ethernet0"]["mtu"]}}, {})
    await eventually(lambda: rack.fabric.drifts[-1].state == DriftState.DRIFT_STATE_NONE)
    wanted = state(2, 2000)
    await rack.bench.sonic.write({"PORT|Ethernet0": {"mtu": "1500"}}, {})
    rack.fabric.want(wanted)
    await eventually(applied(rack, 2))
    assert (await rack.bench.sonic.config())["PORT|Ethernet0"]["mtu"] == "9000"


async def test_neighbours_are_reported_as_they_come_and_go(rack: Rack, eventually: Eventually) -> None:
    rack.start_agent()
    await eventually(lambda: rack.fabric.neighbours)
    assert not rack.fabric.neighbours[-1].neighbours
    await rack.bench.leaf.lldp("Ethernet0", chassis="aa:bb:cc:00:00:01", system_name=MACHINE, description="hammer")
    await eventually(lambda: rack.fabric.neighbours[-1].neighbours)
    (neighbour,) = rack.fabric.neighbours[-1].neighbours
    assert (neighbour.port, neighbour.port_id) == ("Ethernet0", "aa:bb:cc:00:00:01")
    assert (neighbour.chassis_id, neighbour.system_name) == ("aa:bb:cc:00:00:01", MACHINE)
    await rack.bench.leaf.lldp_gone("Ethernet0")
    await eventually(lambda: not rack.fabric.neighbours[-1].neighbours)


async def test_monitoring_reads_a_page_of_the_agent(rack: Rack, eventually: Eventually) -> None:
    (free_port,) = free_ports(1)
    rack.start_agent(metrics_listen=f"127.0.0.1:{free_port}")
    rack.fabric.want(state(1))
    await eventually(applied(rack, 1))

    async def read(path: str) -> tuple[int, str]:
        def get() -> tuple[int, str]:
            try:
                with urlopen(f"http://127.0.0.1:{free_port}{path}", timeout=5) as answer:
                    return answer.status, answer.read().decode()
            except HTTPError as error:
                return error.code, error.read().decode()

        return await asyncio.to_thread(get)

    async def well() -> bool:
        return await read("/health") == (200, '{"healthy": true, "problems": []}\n')

    await eventually(well)
    status, text = await read("/metrics")
    assert status == 200
    assert 'metalplane_core_generation{what="applied"} 1.0' in text
    assert 'metalplane_core_uplinks{state="up"} 2.0' in text
    await rack.bench.leaf.link_down("Ethernet120")

    async def unwell() -> bool:
        return await read("/health") == (
            503,
            '{"healthy": false, "problems": ["uplinks that are down: Ethernet120"]}\n',
        )

    await eventually(unwell)


async def test_a_switch_that_does_not_follow_is_reported_and_tried_again(rack: Rack, eventually: Eventually) -> None:
    rack.bench.leaf.faults.orchagent_delay = 60.0
    rack.fabric.want(state(1, 2000))
    rack.start_agent(wait_seconds=0.2)
    await eventually(lambda: rack.fabric.reports)
    assert "did not follow within 0.2 s" in rack.fabric.reports[0].error
    rack.bench.leaf.faults.orchagent_delay = 0.01
    await rack.bench.leaf.stop()
    await rack.bench.leaf.start()
    await eventually(applied(rack, 1), seconds=60)


async def test_a_redis_that_dies_is_reported_and_the_leaf_gets_its_state_again(
    rack: Rack, eventually: Eventually
) -> None:
    rack.fabric.want(state(1, 2000))
    rack.start_agent(compare_seconds=0.2)
    await eventually(applied(rack, 1))
    await rack.bench.leaf.stop()
    await rack.bench.server.kill()
    await eventually(lambda: rack.fabric.reports[-1].error.startswith("APPL_DB: "))
    await rack.bench.server.start()
    await rack.bench.leaf.start()
    await eventually(applied(rack, 1), seconds=60)
    assert await rack.bench.leaf.vni_of("Ethernet0") == 2000


async def test_the_agent_stops_at_once_when_there_is_no_plane(rack: Rack, eventually: Eventually) -> None:
    await rack.fabric_down()
    rack.start_agent()
    await eventually(lambda: rack.agent is not None and not rack.agent.done())
    async with asyncio.timeout(5):
        await rack.stop_agent()
