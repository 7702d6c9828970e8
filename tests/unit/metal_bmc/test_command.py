from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from metal_bmc.command import (
    PLANS,
    Action,
    Advance,
    Again,
    Command,
    Finish,
    Patience,
    State,
    Step,
    announce_within,
    desired_after,
    done,
    expired,
    judge_error,
    judge_power,
    judge_setting,
    reboots,
)
from metal_bmc.drivers.errors import (
    BmcAuthFailed,
    BmcBadAnswer,
    BmcError,
    BmcRefused,
    BmcSessionsFull,
    BmcTimeout,
    BmcUnsupported,
    DriverBusy,
    DriverCrashed,
    LoginBlocked,
    NoCredentials,
)

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
PATIENCE = Patience()
ERRORS: list[BmcError] = [
    BmcTimeout("x"),
    BmcAuthFailed("x"),
    BmcSessionsFull("x"),
    BmcUnsupported("x"),
    BmcRefused("x", 0xC0),
    BmcBadAnswer("x"),
    DriverBusy("x"),
    DriverCrashed("x"),
    LoginBlocked("x"),
    NoCredentials("x"),
]


def command(action: Action = Action.CYCLE, step: Step | None = None, **changes: object) -> Command:
    plain = Command(
        id="c",
        machine="m",
        partition="p",
        action=action,
        state=State.RUNNING,
        step=PLANS[action].index(step) if step else 0,
        tries=0,
        step_at=NOW,
        sent_at=None,
        reason="",
        error="",
        allocation="",
        requester="service:allocation",
        deadline=NOW + timedelta(minutes=1),
        created_at=NOW,
        started_at=NOW,
        ended_at=None,
        version=1,
    )
    return replace(plain, **changes)  # type: ignore[arg-type]


def test_every_action_has_a_plan_that_ends_in_proof() -> None:
    assert set(PLANS) == set(Action)
    proof = {Step.CONFIRM_ON, Step.CONFIRM_OFF, Step.SET_BOOT, Step.SET_IDENTIFY, Step.RESET}
    for action, plan in PLANS.items():
        assert plan[-1] in proof, action


@pytest.mark.parametrize("action", Action)
def test_steps_that_are_done_lead_to_success(action: Action) -> None:
    for number in range(len(PLANS[action]) - 1):
        assert done(replace(command(action), step=number)) == Advance()
    assert done(replace(command(action), step=len(PLANS[action]) - 1)) == Finish(State.SUCCEEDED)


def test_power_that_shows_is_done_and_power_that_does_not_is_waited_for() -> None:
    off = command(Action.POWER_OFF, Step.CONFIRM_OFF)
    assert judge_power(off, False, NOW, PATIENCE) == Finish(State.SUCCEEDED)
    waiting = judge_power(off, True, NOW + timedelta(seconds=29), PATIENCE)
    assert isinstance(waiting, Again)
    assert not waiting.failed
    end = judge_power(off, True, NOW + timedelta(seconds=30), PATIENCE)
    assert end == Finish(State.FAILED, "NOT_REACHED", "the BMC accepted power off, and the machine reads on after 30 s")


def test_a_cycle_does_not_go_on_before_the_machine_was_seen_off() -> None:
    cycle = command(Action.CYCLE, Step.CONFIRM_OFF)
    assert judge_power(cycle, False, NOW, PATIENCE) == Advance()
    assert isinstance(judge_power(cycle, True, NOW, PATIENCE), Again)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.reason)
def test_a_sent_reset_is_never_tried_again(error: BmcError) -> None:
    verdict = judge_error(command(Action.RESET, Step.RESET, sent_at=NOW), error, NOW, PATIENCE)
    assert isinstance(verdict, Finish)
    assert verdict.state is State.FAILED
    assert verdict.reason == ("OUTCOME_UNKNOWN" if error.outcome_unknown else error.reason)


def test_a_reset_that_was_not_sent_is_tried_again() -> None:
    assert isinstance(judge_error(command(Action.RESET, Step.RESET), BmcTimeout("x"), NOW, PATIENCE), Again)


def test_power_is_never_taken_before_the_reboot_is_announced() -> None:
    for action, plan in PLANS.items():
        takes_power = [number for number, step in enumerate(plan) if step in (Step.TURN_OFF, Step.RESET)]
        announced = [number for number, step in enumerate(plan) if step is Step.ANNOUNCE]
        assert len(announced) == len(takes_power) <= 1, action
        assert all(before < after for before, after in zip(announced, takes_power, strict=True)), action


@pytest.mark.parametrize("action", [action for action, plan in PLANS.items() if Step.ANNOUNCE in plan])
def test_a_machine_that_is_off_reboots_only_if_the_action_ends_with_power(action: Action) -> None:
    assert reboots(action, powered=True)
    assert reboots(action, powered=False) == (Step.TURN_ON in PLANS[action])


@given(st.timedeltas(timedelta(0), timedelta(hours=1)))
def test_an_announcement_leaves_most_of_the_time_to_the_bmc(left: timedelta) -> None:
    within = announce_within(command(deadline=NOW + left), NOW, PATIENCE)
    assert timedelta(0) <= within <= PATIENCE.announce
    assert within <= left / 4


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.reason)
def test_what_cannot_get_better_is_not_tried_again(error: BmcError) -> None:
    assert isinstance(judge_error(command(), error, NOW, PATIENCE), Again if error.retryable else Finish)


def test_a_refused_login_is_tried_once_more() -> None:
    assert isinstance(judge_error(command(), BmcAuthFailed("x"), NOW, PATIENCE), Again)
    assert judge_error(command(tries=1), BmcAuthFailed("x"), NOW, PATIENCE) == Finish(State.FAILED, "AUTH_FAILED", "x")


@given(
    st.sampled_from(ERRORS),
    st.sampled_from(Action),
    st.integers(0, 20),
    st.timedeltas(timedelta(seconds=-5), timedelta(seconds=90)),
)
def test_a_failing_command_comes_to_an_end_before_its_deadline(
    error: BmcError, action: Action, tries: int, left: timedelta
) -> None:
    verdict = judge_error(command(action, tries=tries, deadline=NOW + left), error, NOW, PATIENCE)
    if isinstance(verdict, Again):
        assert verdict.failed
        assert timedelta(0) < verdict.after < left
    else:
        assert isinstance(verdict, Finish)
        assert verdict.state is State.FAILED
        assert verdict.reason == error.reason


def test_a_setting_that_reads_back_differently_fails_after_its_tries() -> None:
    boot = command(Action.BOOT_PXE)
    assert judge_setting(boot, "boot device", True, PATIENCE) == Finish(State.SUCCEEDED)
    assert isinstance(judge_setting(boot, "boot device", False, PATIENCE), Again)
    assert judge_setting(replace(boot, tries=2), "boot device", False, PATIENCE) == Finish(
        State.FAILED, "NOT_REACHED", "the BMC accepted the boot device, and it reads back differently"
    )


def test_the_deadline_says_how_far_the_command_came() -> None:
    assert expired(command(), NOW + timedelta(seconds=59)) is None
    late = NOW + timedelta(seconds=60)
    assert expired(command(state=State.PENDING), late) == Finish(
        State.EXPIRED, "DEADLINE", "the deadline passed before it was begun"
    )
    assert expired(command(Action.CYCLE, Step.REST), late) == Finish(
        State.EXPIRED, "DEADLINE", "the deadline passed during REST"
    )


@pytest.mark.parametrize("action", Action)
@pytest.mark.parametrize("desired", [None, True, False])
def test_a_wish_follows_power_commands_and_is_never_made_up(action: Action, desired: bool | None) -> None:
    after = desired_after(action, desired)
    if desired is None:
        assert after is None
    elif action is Action.POWER_OFF:
        assert after is False
    elif action in (Action.POWER_ON, Action.CYCLE, Action.PXE_CYCLE):
        assert after is True
    else:
        assert after is desired
