"""Following an allocation: what is told, when it ends, and what a plane that goes away does to it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from metal_kit.errors import DeadlineExceeded, NotFound, OutOfRange, Unavailable
from metalctl import following
from metalplane.allocation.v1 import allocation_pb2 as pb

UUID = "0198c1d2-0000-7000-8000-000000000001"
GONE = Unavailable("TRANSPORT_UNAVAILABLE", "cannot be reached", metadata={"peer": "allocation"})


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "PAUSE", 0.0)


def state(phase: str, *entries: int, free: int = 0) -> pb.Allocation:
    made = pb.Allocation(id=UUID, status={"phase": pb.AllocationPhase.Value(f"ALLOCATION_PHASE_{phase}")})
    for second in entries:
        made.status.timeline.add(time={"seconds": second}, phase="p", message=f"m{second}")
    if free:
        made.status.free_time.seconds = free
    return made


def batch(position: str, *allocations: pb.Allocation) -> pb.WatchAllocationsResponse:
    return pb.WatchAllocationsResponse(position=position, changes=[{"allocation": each} for each in allocations])


def told(text: str) -> list[str]:
    return [word for word in text.split() if word.startswith("m") and word[1:].isdigit()]


def test_every_entry_is_told_once_until_it_runs(call: Any, plane: Any) -> None:
    plane.answers["WatchAllocations"] = [
        [batch("1", state("BINDING", 1)), batch("2"),
         batch("3", state("INSTALLING", 1, 2, 3), state("RUNNING", 1, 2, 3, 4)),
         batch("4", state("FENCING", 5))],
    ]  # fmt: skip
    outcome = call("allocation", "watch", UUID)
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.splitlines() == [f"00:00:0{n}.000Z  p            m{n}" for n in (1, 2, 3, 4)]


def test_a_timeline_that_was_cut_at_its_beginning_is_told_on(call: Any, plane: Any) -> None:
    plane.answers["WatchAllocations"] = [
        [batch("1", state("INSTALLING", *range(1, 6))), batch("2", state("RUNNING", *range(4, 9)))]
    ]
    assert told(call("allocation", "watch", UUID).out) == [f"m{n}" for n in range(1, 9)]


def test_as_json_each_entry_is_a_document_on_its_line(call: Any, plane: Any) -> None:
    plane.answers["WatchAllocations"] = [[batch("1", state("RUNNING", 1, 2))]]
    lines = call("allocation", "watch", UUID, "-o", "json").out.splitlines()
    assert [json.loads(line)["message"] for line in lines] == ["m1", "m2"]


def test_a_broken_stream_is_resumed_where_it_was_and_told_of_once(call: Any, plane: Any) -> None:
    plane.answers["WatchAllocations"] = [
        [batch("7", state("BINDING", 1)), GONE], [GONE], [GONE], [batch("8"), DeadlineExceeded("X", "an hour is over")],
        [batch("9", state("RUNNING", 1, 2))],
    ]  # fmt: skip
    outcome = call("allocation", "watch", UUID)
    assert (outcome.code, told(outcome.out)) == (0, ["m1", "m2"])
    assert [request.position for request in plane.requests("WatchAllocations")] == ["", "7", "7", "7", "8"]
    assert outcome.err.splitlines() == [
        "metalctl: interrupted: cannot be reached; going on when it is back",
        "metalctl: interrupted: an hour is over; going on when it is back",
    ]


def test_a_plane_that_ends_the_stream_in_order_is_asked_again(call: Any, plane: Any) -> None:
    plane.answers["WatchAllocations"] = [[batch("7", state("BINDING", 1))], [], [batch("8", state("RUNNING", 1, 2))]]
    outcome = call("allocation", "watch", UUID)
    assert (outcome.code, told(outcome.out), outcome.err) == (0, ["m1", "m2"], "")


def test_a_plane_that_was_never_there_is_told_at_once(call: Any, plane: Any) -> None:
    plane.answers["WatchAllocations"] = [[GONE]]
    outcome = call("allocation", "watch", UUID)
    assert (outcome.code, outcome.out) == (5, "")
    assert "allocation at 127.0.0.1:1 cannot be reached" in outcome.err


def test_a_plane_that_stays_away_ends_the_watch(call: Any, plane: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 1000, 25))
    monkeypatch.setattr(following, "monotonic", lambda: float(next(clock)))
    plane.answers["WatchAllocations"] = [[batch("1", state("BINDING", 1)), GONE], [GONE], [GONE], [GONE], [GONE]]
    outcome = call("allocation", "watch", UUID)
    assert (outcome.code, len(plane.asked)) == (5, 4), "at 0, 25, 50 and, beyond a minute, 75 s"
    assert outcome.err.count("cannot be reached") == 2


def test_a_position_that_is_too_old_begins_anew(call: Any, plane: Any) -> None:
    plane.answers["WatchAllocations"] = [
        [batch("7", state("BINDING", 1)), OutOfRange("WATCH_POSITION_EXPIRED", "old")],
        [batch("9", state("RUNNING", 1, 2))],
    ]  # fmt: skip
    outcome = call("allocation", "watch", UUID)
    assert (outcome.code, told(outcome.out)) == (0, ["m1", "m2"])
    assert [request.position for request in plane.requests("WatchAllocations")] == ["", ""]
    plane.answers["WatchAllocations"] = [[OutOfRange("WATCH_POSITION_EXPIRED", "old")]]
    assert call("allocation", "watch", UUID).code == 1, "an empty position cannot be too old: no endless loop"


def test_an_allocation_that_does_not_exist_is_not_waited_for(call: Any, plane: Any) -> None:
    plane.answers["WatchAllocations"] = [[NotFound("NOT_FOUND", "it does not exist")]]
    assert call("allocation", "watch", UUID).code == 3


def test_create_waits_with_its_progress_beside_the_result(call: Any, plane: Any) -> None:
    plane.answers["CreateAllocation"] = state("BINDING", 1)
    plane.answers["WatchAllocations"] = [[batch("1", state("BINDING", 1), state("RUNNING", 1, 2))]]
    arguments = ["allocation", "create", "w", "--project", UUID, "--image", "i", "--network", UUID, "--wait"]
    outcome = call(*arguments, "-o", "json")
    assert outcome.code == 0
    assert json.loads(outcome.out)["status"]["phase"] == "ALLOCATION_PHASE_RUNNING"
    assert outcome.err.splitlines()[0] == f"allocation {UUID}", "known from the start, whatever comes"
    assert told(outcome.err) == ["m1", "m2"]


def test_create_that_was_freed_meanwhile_has_failed(call: Any, plane: Any) -> None:
    plane.answers["CreateAllocation"] = state("BINDING", 1)
    plane.answers["WatchAllocations"] = [[batch("1", state("RELEASED", 1, 2))]]
    outcome = call("allocation", "create", "w", "--project", UUID, "--image", "i", "--network", UUID, "--wait")
    assert outcome.code == 1
    assert outcome.err.splitlines()[-1] == f"metalctl: allocation {UUID} was freed before it ran"


def test_free_waits_until_it_is_gone_and_tells_what_came_since(call: Any, plane: Any) -> None:
    plane.answers["FreeAllocation"] = state("FENCING", 1, 2, 10, free=10)
    plane.answers["WatchAllocations"] = [
        [
            batch(
                "1",
                state("RUNNING", 1, 2),
                state("FENCING", 1, 2, 10, free=10),
                state("RELEASED", 1, 2, 10, 11, free=10),
            )
        ]
    ]
    outcome = call("allocation", "free", UUID, "--wait")
    assert outcome.code == 0
    assert told(outcome.err) == ["m10", "m11"]
    assert outcome.out.splitlines()[1].split()[3] == "released"


def test_what_stands_in_the_way_is_told_once_unless_it_is_the_last_line_already(call: Any, plane: Any) -> None:
    def waiting(obstacle: str, *entries: int) -> pb.Allocation:
        made = state("ATTACHING", *entries)
        made.status.conditions.add(type="Ready", status=False, message=obstacle)
        made.status.conditions.add(type="Attached", status=False, message="of another condition")
        return made

    plane.answers["WatchAllocations"] = [
        [batch("1", waiting("m1", 1), waiting("leaf1 is \x1b away", 1), waiting("leaf1 is \x1b away", 1, 2)),
         batch("2", state("RUNNING", 1, 2, 3))],
    ]  # fmt: skip
    outcome = call("allocation", "watch", UUID)
    assert told(outcome.out) == ["m1", "m2", "m3"]
    assert outcome.err.splitlines() == [" " * 15 + "… leaf1 is \\x1b away"]


def test_ctrl_c_is_told_in_a_line(call: Any, plane: Any) -> None:
    plane.answers["WatchAllocations"] = [[batch("1", state("BINDING", 1)), KeyboardInterrupt()]]
    outcome = call("allocation", "watch", UUID)
    assert outcome.code == 130
    assert outcome.err == (
        "metalctl: interrupted; the plane goes on without you: `metalctl allocation watch` shows it\n"
    )
