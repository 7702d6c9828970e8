from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from metal_bmc.command import (
    Advance,
    Again,
    Command,
    Finish,
    Patience,
    State,
    announce_within,
    done,
    expired,
    judge_error,
    judge_power,
    judge_setting,
    judge_soft_off,
)
from metal_bmc.drivers.errors import (
    BmcAuthFailed,
    BmcBadAnswer,
    BmcBusy,
    BmcError,
    BmcRefused,
    BmcSessionsFull,
    BmcTimeout,
    BmcUnsupported,
    BmcUntrusted,
    DriverBusy,
    DriverCrashed,
    LoginBlocked,
    NoCredentials,
)
from metal_bmc.drivers.interface import BootMode, BootSetting, BootTarget, BootWish, Capability
from metal_bmc.drivers.quirks import PLAIN, Quirks
from metal_bmc.order import Order
from metal_bmc.plan import PLANS, Action, Step, desired_after, desired_at_end, holds, needs, reboots
from metal_kit.errors import InvalidArgument

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
PATIENCE = Patience()
ERRORS: list[BmcError] = [
    BmcTimeout("x"),
    BmcAuthFailed("x"),
    BmcSessionsFull("x"),
    BmcBusy("x", 7),
    BmcBusy("x"),
    BmcUntrusted("x"),
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
    proof = {Step.CONFIRM_ON, Step.CONFIRM_OFF, Step.SET_BOOT, Step.SET_IDENTIFY, Step.RESET, Step.INTERRUPT}
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
        takes_power = [step in (Step.TURN_OFF, Step.RESET, Step.INTERRUPT, Step.ASK_OFF) for step in plan]
        announced = [number for number, step in enumerate(plan) if step is Step.ANNOUNCE]
        assert len(announced) == (1 if any(takes_power) else 0), action
        assert all(number < takes_power.index(True) for number in announced), action


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


def test_a_busy_bmc_gets_the_time_that_it_asks_for() -> None:
    verdict = judge_error(command(tries=9), BmcBusy("x", 7), NOW, PATIENCE)
    assert isinstance(verdict, Again)
    assert verdict.after == timedelta(seconds=7)
    late = judge_error(command(), BmcBusy("x", 3600), NOW, PATIENCE)
    assert isinstance(late, Finish)
    assert late.reason == "BUSY"


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


def test_a_wish_follows_a_soft_off_only_once_the_machine_is_off() -> None:
    assert desired_after(Action.SOFT_OFF, True) is True
    assert [desired_at_end(Action.SOFT_OFF, wish) for wish in (True, False, None)] == [False, False, None]
    assert [desired_at_end(Action.POWER_OFF, wish) for wish in (True, False, None)] == [True, False, None]


def test_a_soft_off_ends_when_the_machine_is_off_and_goes_the_hard_way_only_when_it_may() -> None:
    later = NOW + timedelta(seconds=20)
    hard = command(Action.SOFT_OFF, Step.AWAIT_OFF, hard_after=timedelta(seconds=20))
    never = command(Action.SOFT_OFF, Step.AWAIT_OFF)
    assert judge_soft_off(hard, False, NOW) == judge_soft_off(never, False, later) == Finish(State.SUCCEEDED)
    assert isinstance(judge_soft_off(hard, True, NOW), Again)
    assert judge_soft_off(hard, True, later) == Advance()
    end = judge_soft_off(never, True, NOW + timedelta(seconds=58))
    assert isinstance(end, Finish)
    assert (end.state, end.reason) == (State.FAILED, "NOT_REACHED")


@given(st.timedeltas(timedelta(0), timedelta(seconds=59)), st.none() | st.timedeltas(timedelta(seconds=1)))
def test_a_soft_off_is_looked_after_in_time(waited: timedelta, hard_after: timedelta | None) -> None:
    soft = command(Action.SOFT_OFF, Step.AWAIT_OFF, hard_after=hard_after)
    verdict = judge_soft_off(soft, True, NOW + waited)
    if isinstance(verdict, Again):
        assert timedelta(0) < verdict.after
        assert waited + verdict.after <= (soft.deadline - NOW if hard_after is None else hard_after)
    elif isinstance(verdict, Advance):
        assert hard_after is not None
        assert waited >= hard_after
    else:
        assert hard_after is None


@pytest.mark.parametrize(
    ("wish", "setting", "kept"),
    [
        (BootWish(BootTarget.PXE), BootSetting(BootTarget.PXE, True, BootMode.UEFI), True),
        (BootWish(BootTarget.PXE), BootSetting(BootTarget.PXE, True, BootMode.BIOS), True),
        (BootWish(BootTarget.PXE), BootSetting(BootTarget.PXE, False, BootMode.UEFI), False),
        (BootWish(BootTarget.PXE), BootSetting(BootTarget.DISK, True, BootMode.UEFI), False),
        (BootWish(BootTarget.PXE), BootSetting(None, True, BootMode.UEFI), False),
        (BootWish(BootTarget.PXE, False), BootSetting(BootTarget.PXE, True, BootMode.UEFI), False),
        (BootWish(BootTarget.PXE, True, BootMode.BIOS), BootSetting(BootTarget.PXE, True, BootMode.UEFI), False),
        (BootWish(BootTarget.PXE, True, BootMode.UEFI), BootSetting(BootTarget.PXE, True, BootMode.UEFI), True),
    ],
)
def test_what_reads_back_is_held_against_what_was_asked_for(wish: BootWish, setting: BootSetting, kept: bool) -> None:
    assert holds(wish, setting, PLAIN) == kept


def test_a_board_that_calls_once_persistent_is_believed() -> None:
    wish, setting = BootWish(BootTarget.PXE, False), BootSetting(BootTarget.PXE, True, BootMode.UEFI)
    assert holds(wish, setting, Quirks(once_reads_persistent=True))


@pytest.mark.parametrize("action", Action)
def test_every_action_needs_something_of_the_bmc(action: Action) -> None:
    assert needs(action)
    by_default = Capability.BOOT_ONCE if action is Action.BOOT_BIOS else Capability.BOOT_PERSISTENT
    assert (by_default in needs(action)) == (Step.SET_BOOT in PLANS[action])


def test_boot_options_are_needs_of_their_own() -> None:
    assert needs(Action.BOOT_PXE, False, BootMode.BIOS) == (Capability.BOOT_ONCE, Capability.BOOT_BIOS)
    assert needs(Action.BOOT_BIOS) == (Capability.BOOT_ONCE, Capability.BOOT_UEFI)


@pytest.mark.parametrize(
    ("order", "by_hand", "field"),
    [
        (Order("m", Action.CYCLE, boot_persistent=False), False, "boot_lasting"),
        (Order("m", Action.POWER_ON, boot_mode=BootMode.BIOS), False, "boot_mode"),
        (Order("m", Action.POWER_OFF, hard_after=timedelta(seconds=1)), False, "hard_after"),
        (
            Order("m", Action.SOFT_OFF, hard_after=timedelta(minutes=1), timeout=timedelta(minutes=1)),
            False,
            "hard_after",
        ),
        (Order("m", Action.CYCLE, timeout=timedelta(minutes=61)), False, "timeout"),
        (Order("m", Action.CYCLE, timeout=timedelta(hours=25)), True, "timeout"),
    ],
)
def test_options_that_make_no_sense_are_refused_by_name(order: Order, by_hand: bool, field: str) -> None:
    def give() -> None:
        order.check()
        order.time(by_hand=by_hand)

    with pytest.raises(InvalidArgument) as caught:
        give()
    assert caught.value.field == field


def test_an_order_gets_the_time_that_its_action_needs() -> None:
    soft = Order("m", Action.SOFT_OFF)
    assert Order("m", Action.CYCLE).time(by_hand=False) == timedelta(minutes=1)
    assert Order("m", Action.CYCLE).time(by_hand=True) == timedelta(hours=24)
    assert soft.time(by_hand=False) == timedelta(minutes=10)
    assert replace(soft, hard_after=timedelta(minutes=5)).time(by_hand=False) == timedelta(minutes=6)
    assert Order("m", Action.CYCLE, timeout=timedelta(hours=20)).time(by_hand=True) == timedelta(hours=20)
