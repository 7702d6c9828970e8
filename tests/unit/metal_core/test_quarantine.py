"""Which failures set a generation aside, what is kept about it, and what gives it another chance."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from metal_core.compare import Differences, RowDifference
from metal_core.desired import Desired, Port, PortRole
from metal_core.outcome import Failure, Outcome
from metal_core.quarantine import ATTEMPTS, BLAME, Quarantine

STATE = Desired("leaf01", 5, "five", 4200000011, "10.0.0.11", 4000, (Port("Ethernet120", PortRole.UPLINK),))
DIFFERENCES = Differences((RowDifference("VRF", "Vrf2000", "", "vni=2000", None),), ("+ router bgp 1 vrf Vrf2000",))
FAILED = Outcome(False, "FRR differs", phase="verify", differences=DIFFERENCES, failure=Failure.FAILED)


class Clock:
    """A clock that stands still."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


async def restarted(quarantine: Quarantine, clock: Clock | None = None) -> Quarantine:
    """What an agent that starts finds on the disk."""
    assert quarantine.path is not None
    again = Quarantine(quarantine.path.parent, clock=clock or Clock())
    await again.load()
    return again


async def test_attempts_are_counted_over_restarts_and_the_last_one_sets_the_generation_aside(tmp_path: Path) -> None:
    quarantine = Quarantine(tmp_path, clock=Clock())
    for _ in range(ATTEMPTS - 1):
        assert await quarantine.failed(STATE, FAILED) == ""
        assert quarantine.reason(STATE) == ""
        quarantine = await restarted(quarantine)
    reason = await quarantine.failed(STATE, FAILED)
    assert reason == "3 attempts failed, the last one in phase verify: FRR differs"
    quarantine = await restarted(quarantine)
    assert quarantine.reason(STATE) == reason
    assert quarantine.entry is not None
    assert quarantine.entry.differences == DIFFERENCES


async def test_a_state_that_can_never_work_is_set_aside_at_once() -> None:
    quarantine = Quarantine()
    outcome = Outcome(False, "two ASNs", failure=Failure.INVALID)
    assert await quarantine.failed(STATE, outcome) == "it can never be applied here: two ASNs"


@pytest.mark.parametrize("failure", [Failure.NONE, Failure.OUTAGE, Failure.OBSTACLE])
async def test_what_is_not_the_states_fault_never_counts(failure: Failure) -> None:
    quarantine = Quarantine()
    for _ in range(10 * ATTEMPTS):
        assert await quarantine.failed(STATE, Outcome(False, "Redis is away", failure=failure)) == ""
    assert quarantine.entry is None


async def test_another_generation_is_always_tried_and_its_success_forgets_the_failures(tmp_path: Path) -> None:
    quarantine = Quarantine(tmp_path)
    for _ in range(ATTEMPTS):
        await quarantine.failed(STATE, FAILED)
    newer = replace(STATE, generation=6, digest="six")
    assert quarantine.reason(newer) == ""
    assert await quarantine.failed(newer, FAILED) == ""
    await quarantine.passed(STATE)
    assert quarantine.entry is not None, "an older one says nothing about it: the leaf goes back to that"
    await quarantine.passed(newer)
    assert (quarantine.entry, (tmp_path / "quarantine.json").exists()) == (None, False)


async def test_a_person_ends_it_by_removing_the_file(tmp_path: Path) -> None:
    quarantine = Quarantine(tmp_path)
    for _ in range(ATTEMPTS):
        await quarantine.failed(STATE, FAILED)
    assert not await quarantine.ended_by_a_person()
    (tmp_path / "quarantine.json").unlink()
    assert await quarantine.ended_by_a_person()
    assert quarantine.reason(STATE) == ""
    assert not await quarantine.ended_by_a_person()


async def test_an_outage_afterwards_gives_one_more_attempt(tmp_path: Path) -> None:
    quarantine = Quarantine(tmp_path)
    for _ in range(ATTEMPTS):
        await quarantine.failed(STATE, FAILED)
    await quarantine.relent()
    assert quarantine.reason(STATE) == ""
    assert await quarantine.failed(STATE, FAILED) != ""


@pytest.mark.parametrize(("after", "blamed"), [(0, True), (BLAME, True), (BLAME + 1, False), (-100, False)])
async def test_who_is_to_blame_shows_when_the_plane_is_heard_again(tmp_path: Path, after: float, blamed: bool) -> None:
    clock = Clock()
    quarantine = Quarantine(tmp_path, clock=clock)
    await quarantine.cut_off(STATE, "the plane was not heard")
    quarantine = await restarted(quarantine, clock)
    assert quarantine.awaits_plane
    clock.now += after
    assert await quarantine.heard() is not blamed
    assert (quarantine.reason(STATE) == "the plane was not heard") is blamed
    assert not quarantine.awaits_plane
    assert not await quarantine.heard()
    await quarantine.relent()
    assert (quarantine.reason(STATE) != "") is blamed, "an outage of Redis says nothing about the plane"


@pytest.mark.parametrize("text", ["", "[]", '{"format": 9}', '{"format": 1, "generation": 5}'])
async def test_a_file_that_cannot_be_read_counts_as_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "quarantine.json").write_text(text)
    quarantine = Quarantine(tmp_path)
    await quarantine.load()
    assert quarantine.reason(STATE) == ""


async def test_a_disk_that_refuses_does_not_end_the_quarantine(tmp_path: Path) -> None:
    quarantine = Quarantine(tmp_path)
    (tmp_path / "quarantine.json.tmp").mkdir()
    for _ in range(ATTEMPTS):
        await quarantine.failed(STATE, FAILED)
    assert quarantine.reason(STATE) != ""
    assert not await quarantine.ended_by_a_person(), "there never was a file that somebody could have removed"
