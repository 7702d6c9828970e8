"""What others changed on a leaf, what FRR says of its sessions, and what of it is reported and shown."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from metal_core.bgp_state import Family, Session, parse
from metal_core.compare import LeafFacts, compare
from metal_core.condition import Condition, Progress
from metal_core.configdb import render
from metal_core.desired import Desired, DriftPolicy, Port, PortRole
from metal_core.drift import LEFT, Drift, DriftState, LookingAfter
from metal_core.known_good import KnownGood
from metal_core.observe import REFRESH, Observer, Seen
from metal_core.outcome import Outcome
from metal_core.page import Page
from metal_core.reports import Reports
from metal_core.sonic import SonicUnavailable
from metal_kit import validation
from metalplane.fabric.v1.agent_pb2 import Observations
from metalplane.fabric.v1.observation_pb2 import BgpState
from metalplane.fabric.v1.observation_pb2 import DriftState as WireState

GOLDEN = Path(__file__).parent / "golden" / "bgp-neighbors.json"
PORTS = (Port("Ethernet0", PortRole.UNPROVISIONED), Port("Ethernet120", PortRole.UPLINK))
REPAIR = Desired("leaf01", 5, "five", 4200000011, "10.0.0.11", 4000, PORTS)
REPORT = replace(REPAIR, drift_policy=DriftPolicy.REPORT)
SPINE = Session("default", "Ethernet120", "Established", since=1, peer_group="FABRIC")


class LeafModel:
    """A leaf that has whatever was applied last, until somebody takes a row away."""

    def __init__(self) -> None:
        self.rows: dict[str, Any] = {}
        self.calls = self.looks = 0
        self.next: Outcome | None = None
        self.away = False

    async def apply(self, desired: Desired) -> Outcome:
        self.calls += 1
        if self.next is not None:
            outcome, self.next = self.next, None
            return outcome
        found = compare(desired, LeafFacts(self.rows, None))
        target = {"VXLAN_TUNNEL|vtep": {"src_ip": "10.0.0.11"}, **render(desired, "vtep")}
        changed = sum(self.rows.get(key) != row for key, row in target.items())
        self.rows = {key: dict(row) for key, row in target.items()}
        return Outcome(True, changed=changed, found=found)

    async def restore(self, good: KnownGood) -> Outcome:
        return await self.apply(good.desired)

    async def look(self) -> LeafFacts:
        self.looks += 1
        if self.away:
            raise SonicUnavailable("CONFIG_DB: away")
        return LeafFacts({key: dict(row) for key, row in self.rows.items()}, None)


class Told:
    """A leaf that is looked after, and what was told about it."""

    def __init__(self) -> None:
        self.leaf = LeafModel()
        self.drifts: list[Drift] = []
        self.ran: list[Outcome] = []
        self.applier = LookingAfter(self.leaf, self.drifts.append, self.ran.append, clock=lambda: 7.0)

    def states(self) -> list[DriftState]:
        return [drift.state for drift in self.drifts]


async def test_bringing_a_leaf_to_a_state_is_no_drift() -> None:
    told = Told()
    for desired in (REPAIR, replace(REPAIR, generation=6, ports=PORTS[:1]), REPAIR):
        assert (await told.applier.apply(desired)).applied
    assert told.drifts == []
    assert len(told.ran) == 3


async def test_what_others_changed_is_corrected_and_told_with_what_it_was() -> None:
    told = Told()
    await told.applier.apply(REPAIR)
    del told.leaf.rows["VLAN_MEMBER|Vlan4000|Ethernet0"]
    outcome = await told.applier.apply(REPAIR)
    assert (outcome.applied, outcome.changed) == (True, 1)
    (drift,) = told.drifts
    assert (drift.state, drift.generation, drift.time) == (DriftState.CORRECTED, 5, 7.0)
    (row,) = drift.differences.rows
    assert (row.table, row.key, row.found) == ("VLAN_MEMBER", "Vlan4000|Ethernet0", None)
    await told.applier.apply(REPAIR)
    assert len(told.drifts) == 1, "it is gone, and was said to be"
    assert told.leaf.looks == 0, "the runs have told what they found"
    assert told.applier.drifted == 0


async def test_by_policy_it_is_left_and_told_once_until_it_is_gone_or_another() -> None:
    told = Told()
    await told.applier.apply(REPORT)
    del told.leaf.rows["VLAN_MEMBER|Vlan4000|Ethernet0"]
    for _ in range(3):
        outcome = await told.applier.apply(REPORT)
        assert (outcome.applied, outcome.notes, outcome.changed) == (True, (LEFT,), 0)
    assert told.leaf.calls == 1, "nothing was touched"
    assert told.states() == [DriftState.REPORTED]
    assert told.applier.drifted == 1
    told.leaf.rows["PORT|Ethernet0"] = {"mtu": "1500"}
    await told.applier.apply(REPORT)
    assert told.states() == [DriftState.REPORTED] * 2
    await told.applier.apply(replace(REPORT, generation=6, drift_policy=DriftPolicy.REPAIR))
    assert told.states() == [DriftState.REPORTED, DriftState.REPORTED, DriftState.NONE]
    assert told.applier.drifted == 0


async def test_what_cannot_be_corrected_is_told_once() -> None:
    told = Told()
    await told.applier.apply(REPAIR)
    del told.leaf.rows["VLAN_MEMBER|Vlan4000|Ethernet0"]
    for _ in range(2):
        told.leaf.next = Outcome(False, "the switch does not follow")
        assert not (await told.applier.apply(REPAIR)).applied
    assert told.states() == [DriftState.FAILED]
    assert (await told.applier.apply(REPAIR)).applied
    assert told.states() == [DriftState.FAILED]
    told.leaf.next = Outcome(False, "half of it", taken_back=False)
    await told.applier.apply(replace(REPAIR, generation=6))
    told.leaf.rows = {}
    assert (await told.applier.apply(REPAIR)).applied
    assert told.states() == [DriftState.FAILED], "what a run has left half done is nobody else's doing"


async def test_a_leaf_that_cannot_be_looked_at_is_applied_to_as_before() -> None:
    told = Told()
    await told.applier.apply(REPORT)
    told.leaf.away, told.leaf.next = True, Outcome(False, "CONFIG_DB: away")
    assert (await told.applier.apply(REPORT)).error == "CONFIG_DB: away"
    assert told.drifts == []


def test_sessions_are_read_as_frr_tells_them() -> None:
    """The answer of FRR 8.4.4 with an established and an idle neighbour."""
    established, idle = parse(GOLDEN.read_text())
    assert established == Session(
        "default",
        "Ethernet0",
        "Established",
        since=1795307392,
        peer_group="FABRIC",
        hostname="spine01",
        last_reset="No AFI/SAFI activated for peer",
        families=(("evpn", Family()), ("ipv4", Family(1, 2, 24000)), ("ipv6", Family())),
    )
    assert (idle.port, idle.state, idle.since, idle.established) == ("Ethernet4", "Idle", 0, False)
    assert idle.last_reset == "Waiting for Peer IPv6 LLA"


def test_all_sessions_of_a_full_leaf_are_read() -> None:
    """Nineteen neighbours in four VRFs, of which FRR spells the families of one as older releases did."""
    sessions = parse(GOLDEN.with_name("bgp-neighbors-of-a-rack.json").read_text())
    assert len({(each.vrf, each.port) for each in sessions}) == 19
    assert Counter(each.peer_group for each in sessions) == {"FABRIC": 2, "FIREWALL": 1, "MACHINE": 16}
    known = {each.port: each for each in sessions}
    assert known["Ethernet120"].families == (("ipv4", Family(95, 59)), ("ipv6", Family(14, 12)))
    assert (known["Ethernet120"].hostname, known["Ethernet120"].drops) == ("spine01", 1)
    assert dict(known["Ethernet0"].families)["ipv4"] == Family(1, 60)
    (down,) = (each for each in sessions if not each.established)
    assert (down.vrf, down.state, down.hostname, down.since) == ("Vrf104010", "Idle", "", 0)
    assert dict(down.families) == {"ipv4": Family(1, 13, 24000)}


@pytest.mark.parametrize("text", ["{}", "[]", "7", '{"default": {"vrfId": 0}}', '{"default": {"Ethernet0": {}}}'])
def test_an_answer_without_neighbours_has_no_sessions(text: str) -> None:
    assert parse(text) == ()


def test_an_answer_in_words_is_none() -> None:
    with pytest.raises(ValueError, match="Expecting value"):
        parse("% BGP instance not found\n")


def test_what_another_version_calls_otherwise_is_left_empty() -> None:
    data = {
        "Vrf20": {
            "Ethernet8": {
                "bgpState": "Clearing",
                "connectionsDropped": -1,
                "hostname": 7,
                "addressFamilyInfo": {"IPv4 Unicast": {"acceptedPrefixCounter": True}, "vpnv4": {}, "l2VpnEvpn": []},
            }
        }
    }
    assert parse(json.dumps(data)) == (Session("Vrf20", "Ethernet8", "Clearing", families=(("ipv4", Family()),)),)


def observations(reports: Reports) -> Observations:
    (request,) = reports.due()
    validation.check(request, field="request")
    reports.acknowledged(request.observations.id)
    return request.observations


def test_sessions_and_neighbours_are_reported_when_they_change_and_now_and_then() -> None:
    reports, observer = Reports(), Observer()
    odd = Session("V" * 200, "x" * 200, "Clearing", drops=3, hostname="h" * 999, last_reset="r" * 999)
    reports.seen(observer.look_at_sessions((SPINE, odd), 1000.0))
    sent = observations(reports).bgp
    assert [session.state for session in sent.sessions] == [
        BgpState.BGP_STATE_ESTABLISHED,
        BgpState.BGP_STATE_UNSPECIFIED,
    ]
    assert (sent.time.seconds, sent.sessions[0].establish_time.seconds, sent.sessions[1].drops) == (1000, 1, 3)
    counted = replace(SPINE, families=(("ipv4", Family(5, 6)),))
    reports.seen(observer.look_at_sessions((counted, odd), 1001.0))
    assert reports.due() == [], "counters alone wait"
    reports.seen(observer.look_at_sessions((counted, odd), 1000.0 + REFRESH))
    sent = observations(reports).bgp
    assert (sent.sessions[0].ipv4.accepted, sent.sessions[0].HasField("evpn")) == (5, False)
    reports.seen(observer.look_at_sessions((replace(counted, state="Idle"), odd), 1001.0 + REFRESH))
    reports.seen(observer.look({}, {"Ethernet0": {"lldp_rem_port_id": "aa:bb", "lldp_rem_sys_name": "n" * 999}}, 9.0))
    both = observations(reports)
    assert both.bgp.sessions[0].state == BgpState.BGP_STATE_IDLE
    assert (both.lldp.neighbours[0].port, both.lldp.neighbours[0].port_id) == ("Ethernet0", "aa:bb")
    reports.seen(observer.look({}, {}, 10.0))
    assert observations(reports).HasField("lldp"), "that nobody is there any more is news as well"
    observer.forget()
    reports.seen(observer.look_at_sessions((), 10.0))
    assert observations(reports).HasField("bgp")


async def test_of_sessions_and_drifts_that_wait_only_the_newest_is_kept() -> None:
    reports = Reports()
    reports.seen(Seen({"Ethernet0": "up"}, ()))
    (first,) = reports.due()
    for state in (DriftState.REPORTED, DriftState.CORRECTED):
        reports.drifted(Drift(state, 5, 7.0))
    for second in range(3):
        reports.seen(Seen({}, (), sessions=(SPINE,), time=float(second)))
    assert reports.due() == []
    reports.acknowledged(first.observations.id)
    batch = observations(reports)
    assert batch.drift.state == WireState.DRIFT_STATE_CORRECTED
    assert (len(batch.bgp.sessions), batch.bgp.time.seconds) == (1, 2)
    assert reports.due() == []
    assert reports.waiting == 0


def test_the_leaf_is_in_order_when_it_has_what_is_wanted_and_its_uplinks_work() -> None:
    condition = Condition(clock=lambda: 50.0)
    assert condition.problems() == ["no desired state is known yet"]
    condition.progress = lambda: Progress(5, 5)
    page, outcome = Page(condition), Outcome(True, changed=3, durations={"apply": 0.2, "invented": 1.0})
    condition.ran(outcome)
    page.ran(outcome)
    condition.ports(frozenset({"Ethernet120"}), {"Ethernet120": "up", "Ethernet0": "down"}, neighbours=1)
    condition.sessions((SPINE, Session("Vrf20", "Ethernet0", "Idle", peer_group="MACHINE")))
    assert condition.problems() == []
    values = {
        (sample.name, *sample.labels.values()): sample.value
        for metric in page.registry.collect()
        for sample in metric.samples
    }
    assert values["metalplane_core_generation", "applied"] == 5
    assert values["metalplane_core_bgp_sessions", "MACHINE", "down"] == 1
    assert values["metalplane_core_bgp_sessions", "FABRIC", "established"] == 1
    assert values["metalplane_core_last_success_timestamp_seconds",] == 50
    assert values["metalplane_core_phase_seconds_count", "other"] == 1
    condition.progress = lambda: Progress(6, 5, drifted=2)
    condition.ports(frozenset({"Ethernet120"}), {}, neighbours=0)
    condition.sessions((replace(SPINE, state="Active"),))
    condition.ran(Outcome(False, "no"))
    assert condition.problems() == [
        "generation 6 is wanted, 5 is applied",
        "the last run failed: no",
        "2 differences made by others",
        "uplinks that are down: Ethernet120",
        "uplinks without a BGP session: Ethernet120",
    ]
    condition.sessions(None)
    assert "FRR does not answer" in condition.problems()
