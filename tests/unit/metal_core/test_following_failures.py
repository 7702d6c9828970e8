"""What the loop does about failures: who is blamed, what the leaf is kept at, and the way back when nobody is heard."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from fake_applier import FakeApplier, report
from metal_core.compare import Differences
from metal_core.confirm import Trials
from metal_core.desired import Desired, Port, PortRole
from metal_core.following import Following
from metal_core.known_good import KnownGood, KnownGoodFile
from metal_core.outcome import Failure, Outcome, Standing
from metal_core.quarantine import BLAME, Quarantine
from metal_core.reports import Reports
from metal_kit.backoff import Backoff

ONE = Desired("leaf01", 1, "one", 4200000011, "10.0.0.11", 4000, (Port("Ethernet120", PortRole.UPLINK),))
TWO, THREE = replace(ONE, generation=2, digest="two"), replace(ONE, generation=3, digest="three")
LINES = Differences((), ("+ router bgp 1",))
FAILED = Outcome(False, "FRR differs", phase="verify", differences=LINES, failure=Failure.FAILED)
ASTRAY = replace(FAILED, taken_back=False)
OUTAGE = Outcome(False, "Redis is away", failure=Failure.OUTAGE)
Eventually = Callable[..., Awaitable[None]]


class Memory(FakeApplier):
    """An applier that keeps trials as the real one does."""

    def __init__(self, trials: Trials) -> None:
        super().__init__()
        self.trials = trials
        self.bad: dict[int, list[Outcome]] = {}

    async def apply(self, desired: Desired) -> Outcome:
        self.calls.append(("apply", desired.generation))
        self.called.set()
        script = self.bad.get(desired.generation, [])
        if script:
            return script.pop(0)
        await self.trials.begin(desired)
        await self.trials.proven(desired)
        return Outcome(True)


class Leaf:
    """The loop on a disk, with a clock of its own for trials and quarantine."""

    def __init__(self, directory: Path, compare_every: float = 0.002) -> None:
        self.directory, self.now = directory, 1000.0
        self.reports = Reports()
        self.trials = Trials(KnownGoodFile(directory), limit=120, clock=lambda: self.now)
        self.applier = Memory(self.trials)
        self.quarantine = Quarantine(directory, clock=lambda: self.now)
        self.following = Following(
            self.applier,  # type: ignore[arg-type]
            self.reports,
            switch_id="leaf01",
            compare_every=compare_every,
            retry=Backoff(timedelta(milliseconds=1), timedelta(milliseconds=2), least=timedelta(milliseconds=1)),
            trials=self.trials,
            quarantine=self.quarantine,
        )

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        stopping = asyncio.Event()
        loop = asyncio.create_task(self.following.run(stopping))
        try:
            yield
        finally:
            stopping.set()
            await loop

    @property
    def told(self) -> Any:
        """The newest report."""
        return report(self.reports)

    def has_told(self, generation: int, *, applied: bool, quarantined: bool = False) -> Callable[[], bool]:
        """Whether the newest report says so."""

        def told() -> bool:
            newest = report(self.reports)
            return newest is not None and (newest.generation, newest.applied, bool(newest.quarantine)) == (
                generation,
                applied,
                quarantined,
            )

        return told


@pytest.fixture
async def leaf(tmp_path: Path) -> Leaf:
    """A leaf that has the first generation confirmed, and of whose plane nothing is heard."""
    return await confirmed(Leaf(tmp_path))


async def confirmed(leaf: Leaf) -> Leaf:
    await leaf.trials.proven(ONE)
    leaf.following.resume(KnownGood(ONE, 0.0), Outcome(True))
    return leaf


async def test_a_generation_that_failed_often_enough_is_set_aside_and_the_leaf_kept_at_what_it_has(
    leaf: Leaf, eventually: Eventually
) -> None:
    leaf.applier.bad[2] = [FAILED] * 99
    leaf.following.want(TWO)
    async with leaf.running():
        await eventually(leaf.has_told(2, applied=False, quarantined=True))
        assert leaf.told.quarantine == "3 attempts failed, the last one in phase verify: FRR differs"
        assert (leaf.told.standing_generation, leaf.told.standing_hash) == (1, "one")
        assert (leaf.told.phase, list(leaf.told.differences.frr_lines)) == ("verify", ["+ router bgp 1"])
        kept = leaf.applier.calls.count(("apply", 1))
        await eventually(lambda: leaf.applier.calls.count(("apply", 1)) > kept + 2)
    assert leaf.applier.calls.count(("apply", 2)) == 3
    assert leaf.following.applied == ONE


async def test_a_plane_that_asks_again_is_told_again_but_only_a_new_generation_is_tried(
    leaf: Leaf, eventually: Eventually
) -> None:
    leaf.applier.bad[2] = [replace(FAILED, failure=Failure.INVALID)]
    leaf.following.want(TWO)
    async with leaf.running():
        await eventually(leaf.has_told(2, applied=False, quarantined=True))
        leaf.reports.acknowledged(leaf.told.id)
        assert leaf.told is None
        leaf.following.want(replace(TWO))
        await eventually(leaf.has_told(2, applied=False, quarantined=True))
        assert leaf.applier.calls.count(("apply", 2)) == 1
        leaf.following.want(THREE)
        await eventually(leaf.has_told(3, applied=True))
    assert leaf.quarantine.entry is None


async def test_an_outage_is_waited_out_however_long_it_takes(leaf: Leaf, eventually: Eventually) -> None:
    leaf.applier.bad[2] = [OUTAGE] * 20
    leaf.following.want(TWO)
    async with leaf.running():
        await eventually(leaf.has_told(2, applied=True))
    assert leaf.applier.calls.count(("apply", 2)) >= 21


@pytest.mark.parametrize("compare_every", [0.002, 3600])
async def test_a_person_who_ends_the_quarantine_has_the_generation_tried_again_soon(
    tmp_path: Path, eventually: Eventually, compare_every: float
) -> None:
    leaf = await confirmed(Leaf(tmp_path, compare_every))
    leaf.applier.bad[2] = [FAILED] * 3
    leaf.following.want(TWO)
    async with leaf.running():
        await eventually(leaf.has_told(2, applied=False, quarantined=True))
        assert await Quarantine(leaf.directory).end() is not None
        await eventually(leaf.has_told(2, applied=True))


async def test_an_outage_after_the_attempts_gives_one_more(leaf: Leaf, eventually: Eventually) -> None:
    leaf.applier.bad[2] = [FAILED] * 99
    leaf.following.want(TWO)
    async with leaf.running():
        await eventually(leaf.has_told(2, applied=False, quarantined=True))
        kept = leaf.applier.calls.count(("apply", 1))
        await eventually(lambda: leaf.applier.calls.count(("apply", 1)) > kept + 2)
        leaf.applier.bad[1] = [OUTAGE, OUTAGE]
        await eventually(lambda: leaf.applier.calls.count(("apply", 2)) == 4)
        await eventually(leaf.has_told(2, applied=False, quarantined=True))
        kept = len(leaf.applier.calls)
        await eventually(lambda: len(leaf.applier.calls) > kept + 5)
    assert leaf.applier.calls.count(("apply", 2)) == 4


async def test_an_outage_that_came_with_the_last_attempt_is_its_own(leaf: Leaf, eventually: Eventually) -> None:
    """A generation that crashes bgpd leaves an outage behind; it must not earn another attempt by it."""
    leaf.applier.bad[2], leaf.applier.bad[1] = [FAILED] * 99, [OUTAGE] * 3
    leaf.following.want(TWO)
    async with leaf.running():
        await eventually(leaf.has_told(2, applied=False, quarantined=True))
        await eventually(lambda: leaf.applier.calls.count(("apply", 1)) > 8)
    assert leaf.applier.calls.count(("apply", 2)) == 3


async def test_a_leaf_that_could_not_be_taken_back_does_not_say_what_it_has_until_it_has_it(
    leaf: Leaf, eventually: Eventually
) -> None:
    leaf.applier.bad[2], leaf.applier.bad[1] = [ASTRAY, FAILED, FAILED], [OUTAGE] * 2
    standing = []
    leaf.following.want(TWO)
    seen = leaf.reports.ended

    def ended(generation: int, digest: str, outcome: Outcome) -> None:
        standing.append(outcome.is_at)
        seen(generation, digest, outcome)

    leaf.reports.ended = ended  # type: ignore[method-assign]
    async with leaf.running():
        await eventually(leaf.has_told(2, applied=False, quarantined=True))
        await eventually(lambda: standing[-1] == Standing(1, "one"))
    assert standing[0] is None


async def test_what_the_leaf_has_had_already_is_never_set_aside(leaf: Leaf, eventually: Eventually) -> None:
    leaf.following.want(TWO)
    async with leaf.running():
        await eventually(leaf.has_told(2, applied=True))
        leaf.applier.bad[2] = [FAILED] * 10
        await eventually(lambda: not leaf.applier.bad[2])
        await eventually(leaf.has_told(2, applied=True))
    assert leaf.quarantine.entry is None


async def test_a_plane_that_is_not_heard_after_a_change_has_the_leaf_go_back_and_say_so(
    leaf: Leaf, eventually: Eventually
) -> None:
    leaf.following.want(TWO)
    async with leaf.running():
        await eventually(leaf.has_told(2, applied=True))
        leaf.following.heard()
        leaf.following.heard(1)
        leaf.now += 120
        await eventually(leaf.has_told(2, applied=False, quarantined=True))
        told = leaf.told
        assert told.quarantine == (
            "the plane was not heard for 120 s after it was applied, so the leaf went back to generation 1"
        )
        assert (told.phase, told.standing_generation, told.standing_hash) == ("confirm", 1, "one")
        assert leaf.following.introduce() == ONE
        tried = leaf.applier.calls.count(("apply", 2))
        leaf.following.heard()
        await eventually(lambda: not leaf.quarantine.awaits_plane)
        leaf.following.want(replace(TWO))
        kept = len(leaf.applier.calls)
        await eventually(lambda: len(leaf.applier.calls) > kept + 3)
        assert leaf.applier.calls.count(("apply", 2)) == tried, "heard at once: the generation was to blame"


async def test_a_plane_that_stays_away_after_the_way_back_was_away_by_itself(
    leaf: Leaf, eventually: Eventually
) -> None:
    leaf.following.want(TWO)
    async with leaf.running():
        await eventually(leaf.has_told(2, applied=True))
        leaf.now += 120
        await eventually(leaf.has_told(2, applied=False, quarantined=True))
        leaf.now += BLAME + 1
        leaf.following.heard()
        await eventually(leaf.has_told(2, applied=True))
        leaf.following.heard(2)
        await eventually(lambda: leaf.trials.on_trial is None)
    assert leaf.trials.good is not None
    assert leaf.trials.good.desired == TWO


async def test_an_acknowledged_report_confirms_and_an_older_ones_does_not(leaf: Leaf, eventually: Eventually) -> None:
    leaf.following.want(TWO)
    async with leaf.running():
        await eventually(leaf.has_told(2, applied=True))
        leaf.following.heard(leaf.reports.acknowledged(leaf.told.id))
        await eventually(lambda: leaf.trials.on_trial is None)
        leaf.now += 1000
        leaf.following.want(THREE)
        await eventually(leaf.has_told(3, applied=True))
        leaf.following.heard(2)
        assert leaf.trials.on_trial is not None


async def test_a_way_back_that_fails_is_tried_again(leaf: Leaf, eventually: Eventually) -> None:
    leaf.following.want(TWO)
    async with leaf.running():
        await eventually(leaf.has_told(2, applied=True))
        leaf.applier.bad[1] = [OUTAGE, FAILED, OUTAGE]
        leaf.now += 120
        await eventually(leaf.has_told(2, applied=False, quarantined=True))
    assert leaf.following.applied == ONE
