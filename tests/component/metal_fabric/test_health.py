"""What becomes of what leaves tell about themselves: what they really have, how they are, and why."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import asyncpg
import pytest
from metal_fabric.store import SwitchStore
from metal_fabric.watch import Watch
from metal_kit.errors import FailedPrecondition
from metalplane.fabric.v1 import agent_pb2, observation_pb2, switch_pb2
from metalplane.fabric.v1.events_pb2 import AttachmentRetracted
from metalplane.fabric.v1.observation_pb2 import BgpState, DriftState
from metalplane.fabric.v1.switch_pb2 import GetAttachmentRequest, GetSwitchRequest, ListSwitchesRequest
from metalplane.plane.v1.issue_pb2 import ListPlaneIssuesRequest, PlaneIssueSeverity
from prometheus_client import REGISTRY

ALLOCATION = "0198c1d2-0000-7000-8000-000000000001"
HEALTHY = switch_pb2.SWITCH_HEALTH_HEALTHY
DEGRADED = switch_pb2.SWITCH_HEALTH_DEGRADED
RETRACTED = "metalplane.fabric.attachment.retracted"
UNHEALTHY = switch_pb2.SWITCH_HEALTH_UNHEALTHY


async def sync(fabric: Any, switch: str = "leaf01") -> switch_pb2.SyncStatus:
    return (await fabric.switches().GetSwitch(GetSwitchRequest(id=switch))).sync


async def tell(leaf: Any, eventually: Any, *, report: Any = None, observations: Any = None) -> None:
    """Send a report and wait until it is acknowledged."""
    message = report or observations
    message.id = str(uuid4())
    await leaf.send(**({"apply_report": report} if report else {"observations": observations}))
    await eventually(lambda: message.id in leaf.acks, what="the acknowledgement")


def codes(status: switch_pb2.SyncStatus) -> list[str]:
    return [reason.code for reason in status.health_reasons]


async def attached(fabric: Any, pair: Any, eventually: Any) -> str:
    """A machine that both leaves have attached."""
    machine: str = await fabric.machine()
    await fabric.switches().AttachMachine(fabric.attaching(machine, ALLOCATION))
    for leaf in pair:
        await eventually(lambda leaf=leaf: leaf.generation == 2)
        report = await leaf.apply()
        await eventually(lambda leaf=leaf, report=report: report in leaf.acks)
    return machine


async def test_a_leaf_that_goes_back_takes_its_confirmation_with_it(
    fabric: Any, pair: Any, events: Any, eventually: Any
) -> None:
    """A port counts as attached only while both leaves have it, and it is published anew when they have it again."""
    machine = await attached(fabric, pair, eventually)
    subject = "metalplane.fabric.attachment.confirmed"
    assert (await fabric.switches().GetAttachment(GetAttachmentRequest(machine=machine))).confirmed
    await eventually(lambda: len(events.of(subject, machine)) == 1)
    leaf = pair[0]
    first, second = leaf.states[0], leaf.states[-1]
    report = agent_pb2.ApplyReport(generation=2, hash=second.hash, error="the plane was not reached again in time")
    report.phase, report.quarantine = "commit", "it cut the leaf off from the plane"
    report.standing_generation, report.standing_hash = first.generation, first.hash
    await tell(leaf, eventually, report=report)
    attachment = await fabric.switches().GetAttachment(GetAttachmentRequest(machine=machine))
    assert not attachment.confirmed
    assert {each.switch_id: each.confirmed for each in attachment.leaves} == {"leaf01": False, "leaf02": True}
    await eventually(lambda: events.of(RETRACTED, machine))
    (event,) = events.of(RETRACTED, machine)
    told = AttachmentRetracted()
    assert event.payload.Unpack(told)
    assert (told.allocation, told.switch_id, told.attachment.confirmed) == (ALLOCATION, "leaf01", False)
    assert event.entity_version > events.of(subject, machine)[0].entity_version
    status = await sync(fabric)
    assert (status.applied_generation, status.applied_hash, status.desired_generation) == (1, first.hash, 2)
    assert (status.phase, status.quarantine) == ("commit", "it cut the leaf off from the plane")
    assert status.health == UNHEALTHY
    assert codes(status) == ["QUARANTINED"]
    again = await leaf.apply()
    await eventually(lambda: again in leaf.acks)
    assert (await fabric.switches().GetAttachment(GetAttachmentRequest(machine=machine))).confirmed
    await eventually(lambda: len(events.of(subject, machine)) == 2)
    status = await sync(fabric)
    assert (status.health, codes(status), status.quarantine) == (HEALTHY, [], "")
    assert len(events.of(RETRACTED, machine)) == 1


async def test_a_leaf_that_comes_back_without_its_state_takes_its_confirmations_with_it(
    fabric: Any, pair: Any, events: Any, eventually: Any
) -> None:
    machine = await attached(fabric, pair, eventually)
    leaf = pair[0]
    await leaf.close()
    leaf.hello.applied_generation, leaf.hello.applied_hash = 0, ""
    await leaf.open()
    await eventually(lambda: len(events.of(RETRACTED, machine)) == 1)
    assert not (await fabric.switches().GetAttachment(GetAttachmentRequest(machine=machine))).confirmed
    await leaf.close()
    leaf.states.clear()
    await leaf.open()
    await eventually(lambda: leaf.states)
    report = await leaf.apply()
    await eventually(lambda: report in leaf.acks)
    await eventually(lambda: len(events.of("metalplane.fabric.attachment.confirmed", machine)) == 2)
    assert len(events.of(RETRACTED, machine)) == 1, "what is not confirmed cannot be taken back"


async def test_a_leaf_that_failed_at_the_next_generation_still_confirms_the_one_it_has(
    fabric: Any, pair: Any, eventually: Any
) -> None:
    """The report of a success may have been replaced by that of the failure after it before anybody read it."""
    machine = await fabric.machine()
    await fabric.switches().AttachMachine(fabric.attaching(machine, ALLOCATION))
    leaf = pair[0]
    await eventually(lambda: leaf.generation == 2)
    second = leaf.states[-1]
    report = agent_pb2.ApplyReport(generation=1, hash=leaf.states[0].hash, error="no")
    report.standing_generation, report.standing_hash = 2, second.hash
    await tell(leaf, eventually, report=report)
    assert (await sync(fabric)).applied_generation == 2
    unknown = agent_pb2.ApplyReport(generation=2, hash=second.hash, error="no")
    unknown.standing_generation, unknown.standing_hash = 2, "0" * 64
    await tell(leaf, eventually, report=unknown)
    assert (await sync(fabric)).applied_generation == 0, "what nobody here has made confirms nothing"


async def test_phases_and_differences_of_a_failed_attempt_are_shown(fabric: Any, pair: Any, eventually: Any) -> None:
    leaf = pair[0]
    report = agent_pb2.ApplyReport(generation=1, hash=leaf.states[0].hash, error="FRR differs", phase="verify")
    for phase, nanoseconds in (("prepare", 90_000_000), ("verify", 400_000_000)):
        report.durations[phase].FromNanoseconds(nanoseconds)
    report.differences.rows.add(table="VRF", key="Vrf20", field="vni", wanted="20", found="2\x000")
    report.differences.frr_lines.append("+ vni 20")
    report.differences.row_count = report.differences.frr_line_count = 1
    await tell(leaf, eventually, report=report)
    status = await sync(fabric)
    assert {phase: lasted.ToNanoseconds() for phase, lasted in status.durations.items()} == {
        "prepare": 90_000_000,
        "verify": 400_000_000,
    }
    assert (status.phase, status.error, status.health) == ("verify", "FRR differs", UNHEALTHY)
    assert status.differences == report.differences
    listed = await fabric.switches(token="viewer").ListSwitches(ListSwitchesRequest())
    shown = {switch.id: switch.sync for switch in listed.switches}
    assert (shown["leaf01"].health, codes(shown["leaf01"])) == (UNHEALTHY, ["APPLY_FAILED"])
    assert not shown["leaf01"].HasField("differences"), "lists carry no details"
    assert shown["leaf02"].health == HEALTHY


def session(port: str, state: Any = BgpState.BGP_STATE_ESTABLISHED, **more: Any) -> observation_pb2.BgpSession:
    more.setdefault("vrf", "default")
    more.setdefault("peer_group", "FABRIC")
    return observation_pb2.BgpSession(port=port, state=state, **more)


async def test_sessions_are_shown_and_those_to_spines_make_the_health(fabric: Any, pair: Any, eventually: Any) -> None:
    leaf = pair[0]
    sessions = observation_pb2.BgpSessions(
        sessions=[
            session("Ethernet192", ipv4=observation_pb2.BgpFamily(accepted=95, sent=59)),
            session("Ethernet196", BgpState.BGP_STATE_ACTIVE, last_reset="Waiting for peer OPEN"),
            session("Ethernet0", BgpState.BGP_STATE_IDLE, vrf="Vrf20\0", peer_group="MACHINE"),
        ]
    )
    sessions.sessions[2].ipv4.accepted, sessions.sessions[2].ipv4.prefix_limit = 23_000, 24_000
    await tell(leaf, eventually, observations=agent_pb2.Observations(bgp=sessions))
    status = await sync(fabric)
    assert status.bgp == sessions
    assert (status.health, codes(status)) == (DEGRADED, ["PREFIX_LIMIT_NEAR", "UPLINK_SESSION_DOWN"])
    assert "Ethernet196 is active, not established, last lost: Waiting" in status.health_reasons[1].message
    since = status.health_reasons[1].since_time.ToNanoseconds()
    sessions.sessions[2].ipv4.accepted = 1
    await tell(leaf, eventually, observations=agent_pb2.Observations(bgp=sessions))
    status = await sync(fabric)
    assert (codes(status), status.health_reasons[0].since_time.ToNanoseconds()) == (["UPLINK_SESSION_DOWN"], since)
    sessions.sessions[0].state = BgpState.BGP_STATE_CONNECT
    await tell(leaf, eventually, observations=agent_pb2.Observations(bgp=sessions))
    status = await sync(fabric)
    assert (status.health, codes(status)) == (UNHEALTHY, ["NO_UPLINK_SESSION"])
    for each in sessions.sessions[:2]:
        each.state = BgpState.BGP_STATE_ESTABLISHED
    await tell(leaf, eventually, observations=agent_pb2.Observations(bgp=sessions))
    assert (await sync(fabric)).health == HEALTHY
    await leaf.observe(down=["Ethernet192"])
    report = await leaf.observe(down=["Ethernet196"])
    await eventually(lambda: report in leaf.acks)
    status = await sync(fabric)
    assert (status.health, codes(status)) == (UNHEALTHY, ["NO_UPLINK"])


async def test_drift_is_shown_with_what_differs_until_it_is_gone(fabric: Any, pair: Any, eventually: Any) -> None:
    leaf = pair[0]
    drift = observation_pb2.Drift(state=DriftState.DRIFT_STATE_REPORTED, generation=1)
    drift.differences.rows.add(table="VLAN_MEMBER", key="Vlan4000|Ethernet0", wanted="tagging_mode=untagged")
    drift.differences.row_count = 1
    await tell(leaf, eventually, observations=agent_pb2.Observations(drift=drift))
    status = await sync(fabric)
    assert status.drift == drift
    listed = await fabric.issues(token="viewer").ListPlaneIssues(ListPlaneIssuesRequest())
    (issue,) = [issue for issue in listed.issues if issue.id.startswith("switch/")]
    assert (issue.id, issue.subject) == ("switch/leaf01/DRIFT", "switch leaf01")
    assert (issue.severity, issue.details) == (
        PlaneIssueSeverity.PLANE_ISSUE_SEVERITY_MINOR,
        status.health_reasons[0].message,
    )
    await Watch(fabric.replicas[0].runtime.db).look()
    assert REGISTRY.get_sample_value("metalplane_fabric_switches", {"health": "degraded"}) == 1
    assert REGISTRY.get_sample_value("metalplane_fabric_switches", {"health": "healthy"}) == 1
    assert REGISTRY.get_sample_value("metalplane_fabric_switch_reasons", {"code": "DRIFT"}) == 1
    assert (status.health, codes(status)) == (DEGRADED, ["DRIFT"])
    assert "VLAN_MEMBER|Vlan4000|Ethernet0" in status.health_reasons[0].message
    drift.state = DriftState.DRIFT_STATE_CORRECTED
    await tell(leaf, eventually, observations=agent_pb2.Observations(drift=drift))
    status = await sync(fabric)
    assert (status.health, status.drift) == (HEALTHY, drift)
    gone = observation_pb2.Drift(state=DriftState.DRIFT_STATE_NONE)
    await tell(leaf, eventually, observations=agent_pb2.Observations(drift=gone))
    assert (await sync(fabric)).drift == drift, "what it was stays to be seen"


async def test_a_cable_that_was_moved_is_found(fabric: Any, pair: Any, eventually: Any) -> None:
    machine, other = await fabric.machine("Ethernet0"), await fabric.machine("Ethernet4")
    rows = await fabric.rows("SELECT * FROM cable WHERE switch_id = 'leaf01'")
    nics = {row["port"]: row["nic_mac"] for row in rows}
    neighbours = observation_pb2.LldpNeighbours()
    for port, nic in (("Ethernet0", nics["Ethernet0"]), ("Ethernet4", nics["Ethernet4"])):
        neighbours.neighbours.add(port=port, port_id=nic)
    neighbours.neighbours.add(port="Ethernet192", system_name="spine01", port_id="Ethernet8")
    await tell(pair[0], eventually, observations=agent_pb2.Observations(lldp=neighbours))
    status = await sync(fabric)
    assert (status.health, status.lldp) == (HEALTHY, neighbours)
    neighbours.neighbours[0].port_id, neighbours.neighbours[1].port_id = nics["Ethernet4"], nics["Ethernet0"]
    await tell(pair[0], eventually, observations=agent_pb2.Observations(lldp=neighbours))
    status = await sync(fabric)
    assert (status.health, codes(status)) == (DEGRADED, ["CABLES_SWAPPED"])
    assert machine in status.health_reasons[0].message
    assert other in status.health_reasons[0].message
    await tell(pair[0], eventually, observations=agent_pb2.Observations(lldp=observation_pb2.LldpNeighbours()))
    assert (await sync(fabric)).health == HEALTHY


async def test_of_two_boxes_with_one_name_the_one_that_works_goes_on_and_it_is_said(
    fabric: Any, eventually: Any
) -> None:
    leaf = await fabric.leaf("leaf01", chassis_id="52:54:00:00:00:01").open()
    await eventually(lambda: leaf.states)
    report = await leaf.apply()
    await eventually(lambda: report in leaf.acks)
    rival = fabric.leaf("leaf01", rack="r2", chassis_id="52:54:00:00:00:02")

    async def refused() -> bool:
        await rival.open()
        await eventually(lambda: rival.ended)
        return isinstance(rival.failure, FailedPrecondition)

    await eventually(refused)
    assert rival.failure.reason == "SWITCH_NAME_TAKEN"
    report = await leaf.apply()
    await eventually(lambda: report in leaf.acks, what="the first one is still served")
    status = await sync(fabric)
    assert (status.error, status.health, codes(status)) == ("", DEGRADED, ["NAME_TAKEN"])
    assert "52:54:00:00:00:02" in status.health_reasons[0].message
    await leaf.close()

    async def served() -> bool:
        if rival.ended:
            await rival.open()
        return bool(rival.states)

    await eventually(served, what="the other box, once the first one is gone")


@pytest.mark.parametrize("boxes", [("", ""), ("52:54:00:00:00:01", ""), ("", "52:54:00:00:00:02")])
async def test_boxes_that_cannot_be_told_apart_do_not_take_each_others_stream(
    fabric: Any, eventually: Any, boxes: tuple[str, str]
) -> None:
    leaf = await fabric.leaf("leaf01", chassis_id=boxes[0]).open()
    await eventually(lambda: leaf.states)
    rival = fabric.leaf("leaf01", chassis_id=boxes[1])

    async def refused() -> bool:
        await rival.open()
        await eventually(lambda: rival.ended)
        return isinstance(rival.failure, FailedPrecondition)

    await eventually(refused)
    assert (rival.failure.reason, rival.failure.field) == ("SWITCH_NAME_TAKEN", "hello.switch_id")
    assert "without a base MAC address" in rival.failure.message
    report = await leaf.apply()
    await eventually(lambda: report in leaf.acks, what="the first one is still served")
    assert codes(await sync(fabric)) == [], "it may be the same box, whose stream broke"
    # It has been at it for longer than a broken stream counts as open.
    await fabric.rows("UPDATE finding SET since_time = since_time - interval '30 s'")
    await eventually(refused)
    status = await sync(fabric)
    assert (status.health, codes(status)) == (DEGRADED, ["NAME_TAKEN"])
    await leaf.close()

    async def served() -> bool:
        if rival.ended:
            await rival.open()
        return bool(rival.states)

    await eventually(served, what="the other one, once the first is gone")
    assert codes(await sync(fabric)) == [], "the one that was refused is served now, and nobody else wants the name"


async def test_a_report_does_not_wait_for_whoever_changes_the_switch(fabric: Any, pair: Any, eventually: Any) -> None:
    """It holds the leaf, and a change that holds the switch waits for the leaf: one of them would have to give up."""
    connection = await asyncpg.connect(fabric.settings["database_url"], server_settings={"search_path": "fabric"})
    try:
        async with connection.transaction():
            assert await SwitchStore().lock(connection, ["leaf01", "leaf02"])
            down = [session("Ethernet192", BgpState.BGP_STATE_ACTIVE), session("Ethernet196")]
            sessions = observation_pb2.BgpSessions(sessions=down)
            await tell(pair[0], eventually, observations=agent_pb2.Observations(bgp=sessions))
    finally:
        await connection.close()
