"""What phases do to an allocation, and what clients and installers get to see of it."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest
from metal_allocation.messages import to_installation, to_message
from metal_allocation.phase import DEADLINES, Phase
from metal_allocation.record import MAX_TEXT, OVERDUE, READY, Record, TimelineLine
from metalplane.allocation.v1 import installation_pb2
from metalplane.allocation.v1.allocation_pb2 import AllocationPhase


def condition(record: Record, kind: str) -> Any:
    return next(each for each in record.conditions if each.type == kind)


def test_a_phase_starts_its_clock_and_forgets_the_last_ones_command(make_record: Any, now: datetime) -> None:
    record = make_record(Phase.FENCING, command="x", command_attempts=3, command_after=now, command_error="A: b")
    later = now + timedelta(minutes=1)
    record.enter(Phase.RECLAIMING, later, "FENCED", "by both")
    assert (record.phase, record.phase_time) == (Phase.RECLAIMING, later)
    assert record.phase_deadline == later + DEADLINES[Phase.RECLAIMING]
    assert (record.command, record.command_attempts, record.command_after, record.command_error) == (None, 0, None, "")
    assert record.new_lines == [(Phase.RECLAIMING, "FENCED", "by both")]


def test_a_line_belongs_to_the_phase_in_which_it_was_written(make_record: Any, now: datetime) -> None:
    record = make_record(Phase.UNBINDING)
    record.note("MACHINE_GONE", "it is gone")
    record.enter(Phase.RELEASED, now)
    assert [line[0] for line in record.new_lines] == [Phase.UNBINDING, Phase.RELEASED]


def test_ready_says_whether_it_runs_and_running_keeps_its_first_time(make_record: Any, now: datetime) -> None:
    record = make_record(Phase.STARTING)
    record.enter(Phase.RUNNING, now, "PHONED_HOME", "it announced itself")
    assert condition(record, READY).status
    assert record.running_time == now
    record.enter(Phase.FENCING, now + timedelta(days=1), "FREE_REQUESTED", "")
    assert not condition(record, READY).status
    assert record.running_time == now


def test_the_next_phase_is_in_time_again(make_record: Any, now: datetime) -> None:
    record = make_record(Phase.FENCING)
    record.set_condition(OVERDUE, True, "PHASE_OVERDUE", "late", now)
    record.enter(Phase.RECLAIMING, now)
    assert not condition(record, OVERDUE).status


def test_a_conditions_time_moves_with_its_status_only(make_record: Any, now: datetime) -> None:
    record, later = make_record(), now + timedelta(minutes=5)
    assert record.set_condition("X", False, "A", "one", now)
    assert not record.set_condition("X", False, "A", "two", later)
    assert record.set_condition("X", False, "B", "three", later)
    assert condition(record, "X").transition_time.ToDatetime(tzinfo=now.tzinfo) == now
    assert record.set_condition("X", True, "B", "four", later)
    assert condition(record, "X").transition_time.ToDatetime(tzinfo=now.tzinfo) == later
    assert condition(record, "X").message == "four"
    assert len(record.conditions) == 1


def test_what_others_write_has_an_end(make_record: Any, now: datetime) -> None:
    record = make_record()
    record.note("A", "x" * 5000)
    record.set_condition("X", False, "A", "y" * 5000, now)
    assert len(record.new_lines[0][2]) == len(condition(record, "X").message) == MAX_TEXT


def test_nothing_that_clients_see_holds_user_data(make_record: Any) -> None:
    record = make_record(Phase.RUNNING)
    record.spec.userdata = record.userdata  # even if it should get there
    message = to_message(record, [TimelineLine(record.phase_time, Phase.RUNNING, "A", "b")])
    assert b"hunter2" not in message.SerializeToString()
    assert message.status.phase == AllocationPhase.ALLOCATION_PHASE_RUNNING
    assert (message.spec.description, dict(message.spec.labels)) == ("a web server", {"app": "web"})
    assert dict(message.spec.placement_labels) == {"a": "b"}


@pytest.mark.parametrize("phase", list(Phase))
@pytest.mark.parametrize("installed", [False, True])
def test_the_install_spec_goes_along_only_when_it_is_to_be_used(
    make_record: Any, phase: Phase, installed: bool
) -> None:
    record = make_record(phase, installed=installed, disk_serials=["A"])
    record.boot_info.kernel = "/boot/vmlinuz"
    message = to_installation(record)
    state = installation_pb2.InstallationState
    used = message.state in {state.INSTALLATION_STATE_INSTALL, state.INSTALLATION_STATE_START}
    assert message.HasField("spec") is used
    assert (b"hunter2" in message.SerializeToString()) is used
    assert message.machine == record.machine
    assert message.allocation == ("" if phase is Phase.RELEASED else record.id)
    assert message.HasField("boot_info") is (installed and phase is not Phase.RELEASED)
    if used:
        assert list(message.spec.disk_serials) == ["A"]
        assert message.spec.hostname == "web"
        assert message.spec.image_sha256 == "ab" * 32
