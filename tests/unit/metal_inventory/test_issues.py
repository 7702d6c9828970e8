from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from metal_inventory.issues import RULES, Facts, Severity, evaluate, unknown_ids
from metal_inventory.lifecycle import Event, EventType, State
from metal_inventory.liveliness import Liveliness

NOW = datetime(2026, 3, 1, tzinfo=UTC)
LONG_AGO = NOW - timedelta(days=8)
HEALTHY = Facts(
    machine_id="m",
    now=NOW,
    partition="p1",
    state=State.WAITING,
    liveliness=Liveliness.ALIVE,
    last_event_time=NOW,
    bmc_mac="00:00:00:00:00:01",
    bmc_address="10.0.0.1:623",
    bmc_updated=NOW,
)
CRASH = Event(EventType.CRASHED, NOW, "out of memory")


def ids(facts: Facts, **query: object) -> list[str]:
    return [issue.rule.id for issue in evaluate(facts, **query)]  # type: ignore[arg-type]


def test_a_healthy_machine_has_no_issue() -> None:
    assert ids(HEALTHY) == []


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        (replace(HEALTHY, partition=""), ["no-partition"]),
        (replace(HEALTHY, liveliness=Liveliness.DEAD), ["liveliness-dead"]),
        (replace(HEALTHY, liveliness=Liveliness.UNKNOWN, allocated=True), ["liveliness-unknown"]),
        (replace(HEALTHY, liveliness=Liveliness.NOT_AVAILABLE), ["liveliness-not-available"]),
        (replace(HEALTHY, failed_machine_reclaim=True), ["failed-machine-reclaim"]),
        (replace(HEALTHY, state=State.PHONED_HOME), ["failed-machine-reclaim"]),
        (replace(HEALTHY, state=State.PHONED_HOME, allocated=True), []),
        (replace(HEALTHY, crash_loop=True, state=State.PREPARING), ["crashloop"]),
        (replace(HEALTHY, crash_loop=True), []),
        (replace(HEALTHY, crash_loop=True, state=State.CRASHING, last_error=CRASH), ["crashloop", "last-event-error"]),
        (replace(HEALTHY, crash_loop=True, state=State.PREPARING, last_error=replace(CRASH, time=LONG_AGO)), []),
        (replace(HEALTHY, last_error=CRASH), ["last-event-error"]),
        (replace(HEALTHY, last_error=CRASH, last_error_threshold=timedelta(0), now=NOW + timedelta(seconds=1)), []),
        (replace(HEALTHY, bmc_mac=""), ["bmc-without-mac"]),
        (replace(HEALTHY, bmc_address=""), ["bmc-without-ip"]),
        (replace(HEALTHY, bmc_fault="UNREACHABLE, no answer"), ["bmc-fault"]),
        (replace(HEALTHY, bmc_updated=None), ["bmc-info-outdated"]),
        (replace(HEALTHY, bmc_updated=NOW - timedelta(minutes=20)), []),
        (replace(HEALTHY, bmc_updated=NOW - timedelta(minutes=20, seconds=1)), ["bmc-info-outdated"]),
        (replace(HEALTHY, bmc_address_shared_with=("n",)), ["bmc-no-distinct-ip"]),
        (replace(HEALTHY, quarantined_disks=("S1",)), ["quarantined-disks"]),
        (replace(HEALTHY, cabling_problem="one leaf only"), ["no-cabling"]),
        (replace(HEALTHY, matching_sizes=("a",)), []),
        (replace(HEALTHY, matching_sizes=("a", "b")), ["size-not-distinct"]),
    ],
)  # fmt: skip
def test_each_rule_sees_its_defect_and_no_other(facts: Facts, expected: list[str]) -> None:
    assert ids(facts) == expected


def test_details_name_what_an_operator_needs() -> None:
    [issue] = evaluate(replace(HEALTHY, matching_sizes=("a", "b")))
    assert issue.details == "matches a, b"
    [issue] = evaluate(replace(HEALTHY, bmc_address_shared_with=("n", "o")))
    assert issue.details == "10.0.0.1:623 is also the BMC address of n, o"


def test_a_machine_that_never_sent_an_event_has_that_one_issue_only() -> None:
    assert ids(Facts(machine_id="m", now=NOW)) == ["no-event-container"]


def test_the_query_selects_by_rule_and_severity_and_omit_wins() -> None:
    bad = replace(HEALTHY, last_error=CRASH, quarantined_disks=("S1",), partition="")
    assert ids(bad) == ["no-partition", "last-event-error", "quarantined-disks"]
    assert ids(bad, severity=Severity.MAJOR) == ["no-partition", "quarantined-disks"]
    assert ids(bad, only=["no-partition", "last-event-error"]) == ["no-partition", "last-event-error"]
    assert ids(bad, only=["no-partition"], omit=["no-partition"]) == []


def test_rules_have_distinct_ids_and_unknown_ones_are_named() -> None:
    assert len({rule.id for rule in RULES}) == len(RULES) == 16
    assert unknown_ids(["crashloop", "nonsense"]) == ["nonsense"]


@given(
    st.builds(
        Facts,
        machine_id=st.just("m"),
        now=st.just(NOW),
        state=st.sampled_from(State),
        liveliness=st.sampled_from(Liveliness),
        allocated=st.booleans(),
        last_event_time=st.just(NOW),
        last_error=st.sampled_from([None, CRASH]),
        crash_loop=st.booleans(),
        failed_machine_reclaim=st.booleans(),
        matching_sizes=st.sampled_from([(), ("a",), ("a", "b")]),
    ),
    st.sampled_from(Severity),
)
def test_a_higher_least_severity_only_takes_issues_away(facts: Facts, severity: Severity) -> None:
    everything = evaluate(facts)
    assert evaluate(facts, severity=severity) == [i for i in everything if i.rule.severity >= severity]
    # Exactly one of the liveliness rules speaks, unless the machine is alive.
    spoken = [i for i in everything if i.rule.id.startswith("liveliness-")]
    assert len(spoken) == (facts.liveliness is not Liveliness.ALIVE)
