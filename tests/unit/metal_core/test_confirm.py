"""Trials: what is written when, how long they last, and what a start after a crash makes of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from metal_core.confirm import GRACE, Trials
from metal_core.desired import Desired, Port, PortRole
from metal_core.known_good import KnownGoodFile

ONE = Desired("leaf01", 1, "one", 4200000011, "10.0.0.11", 4000, (Port("Ethernet120", PortRole.UPLINK),))
TWO, THREE = replace(ONE, generation=2, digest="two"), replace(ONE, generation=3, digest="three")
LIMIT = 120.0


class Disk:
    """A leaf's directory and clock; `start` is what an agent sees that starts on it."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.now = directory, 1000.0

    async def start(self, limit: float = LIMIT) -> Trials:
        trials = Trials(KnownGoodFile(self.directory), limit=limit, clock=lambda: self.now)
        await trials.load()
        return trials

    async def run(self, trials: Trials, desired: Desired) -> None:
        """A run that changes something and ends well."""
        await trials.begin(desired)
        await trials.proven(desired)


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    return Disk(tmp_path)


async def test_the_first_state_is_known_good_at_once_since_there_is_nothing_to_go_back_to(disk: Disk) -> None:
    trials = await disk.start()
    await disk.run(trials, ONE)
    assert (trials.on_trial, trials.left) == (None, None)
    assert (await KnownGoodFile(disk.directory).load()).desired == ONE  # type: ignore[union-attr]


async def test_a_later_state_is_on_trial_until_the_plane_is_heard(disk: Disk) -> None:
    trials = await disk.start()
    await disk.run(trials, ONE)
    await disk.run(trials, TWO)
    disk.now += 50
    assert trials.left == LIMIT - 50
    assert trials.good is not None
    assert trials.good.desired == ONE
    assert await trials.heard()
    assert (trials.on_trial, trials.left, trials.good.desired) == (None, None, TWO)
    assert not await trials.heard()
    assert (await disk.start()).candidate is None
    assert (await KnownGoodFile(disk.directory).load()).desired == TWO  # type: ignore[union-attr]


async def test_the_time_of_a_trial_goes_on_over_a_restart_and_the_way_back_ends_it(disk: Disk) -> None:
    trials = await disk.start()
    await disk.run(trials, ONE)
    await disk.run(trials, TWO)
    disk.now += 30
    trials = await disk.start()
    assert trials.left == LIMIT - 30
    disk.now += LIMIT
    assert trials.left == 0
    await disk.run(trials, ONE)
    assert (trials.on_trial, trials.left) == (None, None)
    assert (await disk.start()).candidate is None


async def test_an_agent_that_was_down_meanwhile_has_time_to_hear_the_plane_but_only_once(disk: Disk) -> None:
    trials = await disk.start()
    await disk.run(trials, ONE)
    await disk.run(trials, TWO)
    disk.now += 10_000
    assert (await disk.start()).left == GRACE
    disk.now += GRACE - 1
    assert (await disk.start()).left == 1
    disk.now += 1
    assert (await disk.start()).left == 0


async def test_a_run_that_was_killed_leaves_an_unproven_candidate_without_a_time(disk: Disk) -> None:
    trials = await disk.start()
    await disk.run(trials, ONE)
    await trials.begin(TWO)
    trials = await disk.start()
    assert trials.candidate is not None
    assert (trials.candidate.desired, trials.on_trial, trials.left) == (TWO, None, None)
    await trials.proven(TWO)
    assert trials.left == LIMIT


async def test_a_run_that_was_taken_back_leaves_what_was_on_trial_before(disk: Disk) -> None:
    trials = await disk.start()
    await disk.run(trials, ONE)
    await trials.begin(TWO)
    await trials.given_up(TWO)
    assert (await disk.start()).candidate is None
    await disk.run(trials, TWO)
    disk.now += 20
    await trials.begin(THREE)
    await trials.given_up(THREE)
    assert trials.left == LIMIT - 20
    trials = await disk.start()
    assert trials.on_trial is not None
    assert trials.on_trial.desired == TWO


async def test_the_same_content_under_another_number_neither_starts_nor_ends_a_trial(disk: Disk) -> None:
    trials = await disk.start()
    await disk.run(trials, ONE)
    await trials.proven(TWO, idle=True)
    assert trials.good is not None
    assert (trials.good.desired, trials.on_trial) == (TWO, None)
    await disk.run(trials, THREE)
    disk.now += 20
    four = replace(THREE, generation=4)
    await trials.proven(four, idle=True)
    assert trials.on_trial is not None
    assert (trials.on_trial.desired, trials.left) == (four, LIMIT - 20)


async def test_a_crash_between_confirming_and_forgetting_does_not_try_again(disk: Disk) -> None:
    trials = await disk.start()
    await disk.run(trials, ONE)
    await disk.run(trials, TWO)
    candidate = (disk.directory / "candidate.json").read_text()
    await trials.heard()
    (disk.directory / "candidate.json").write_text(candidate)
    trials = await disk.start()
    assert (trials.candidate, trials.left) == (None, None)
    assert not (disk.directory / "candidate.json").exists()


async def test_a_state_may_say_itself_how_long_its_trial_is(disk: Disk) -> None:
    trials = await disk.start()
    await disk.run(trials, ONE)
    await disk.run(trials, replace(TWO, confirm_seconds=7))
    assert trials.left == 7


async def test_a_clock_that_is_set_makes_no_trial_longer_than_a_whole_one(disk: Disk) -> None:
    trials = await disk.start()
    await disk.run(trials, ONE)
    await disk.run(trials, TWO)
    disk.now -= 10_000
    assert trials.left == LIMIT


MACHINE = Port("Ethernet0", PortRole.MACHINE, vrf="Vrf2000", allowed_prefixes=("10.1.0.1/32",))
FIREWALL = Port("Ethernet4", PortRole.FIREWALL, allowed_prefixes=("10.0.9.1/32",), vnis=(2000, 2001))


@pytest.mark.parametrize(
    ("port", "tried"),
    [
        (replace(MACHINE, allowed_prefixes=("10.1.0.1/32", "10.1.0.2/32")), True),
        (replace(MACHINE, mtu=1500), True),
        (replace(MACHINE, vrf="Vrf2001"), False),
        (replace(MACHINE, allowed_prefixes=("10.1.0.2/32",)), False),
        (Port("Ethernet0", PortRole.UNPROVISIONED), False),
        (replace(FIREWALL, vnis=(2000, 2001, 2002)), True),
        (replace(FIREWALL, vnis=(2001,)), False),
        (Port("Ethernet4", PortRole.MACHINE, vrf="Vrf2000"), False),
    ],
)
async def test_who_was_taken_off_a_tenants_network_is_never_brought_back(disk: Disk, port: Port, tried: bool) -> None:
    trials = await disk.start()
    before = replace(ONE, ports=(*ONE.ports, MACHINE, FIREWALL))
    after = replace(TWO, ports=tuple(port if each.name == port.name else each for each in before.ports))
    await disk.run(trials, before)
    await disk.run(trials, after)
    assert (trials.on_trial is not None) is tried
    assert trials.good is not None
    assert trials.good.desired == (before if tried else after)


async def test_who_leaves_while_another_state_is_on_trial_ends_that_as_well(disk: Disk) -> None:
    trials = await disk.start()
    await disk.run(trials, replace(ONE, ports=(*ONE.ports, MACHINE)))
    await disk.run(trials, replace(TWO, ports=(*ONE.ports, MACHINE, FIREWALL)))
    assert trials.on_trial is not None
    await disk.run(trials, replace(THREE, ports=(*ONE.ports, FIREWALL)))
    assert (trials.on_trial, trials.left) == (None, None)
    trials = await disk.start()
    assert trials.good is not None
    assert (trials.good.desired.generation, trials.candidate) == (3, None)


async def test_without_a_limit_nothing_is_on_trial(disk: Disk) -> None:
    trials = await disk.start(limit=0)
    await disk.run(trials, ONE)
    await disk.run(trials, replace(TWO, confirm_seconds=7))
    assert (trials.on_trial, trials.left) == (None, None)
    assert (await KnownGoodFile(disk.directory).load()).desired == replace(TWO, confirm_seconds=7)  # type: ignore[union-attr]


@pytest.mark.parametrize("text", ["", "[]", '{"format": 9}', '{"format": 1, "proven_at": 1, "desired": {}}'])
async def test_a_broken_candidate_counts_as_none(disk: Disk, text: str) -> None:
    await disk.run(await disk.start(), ONE)
    (disk.directory / "candidate.json").write_text(text)
    trials = await disk.start()
    assert trials.candidate is None
    assert trials.good is not None
