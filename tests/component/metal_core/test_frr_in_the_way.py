"""An FRR in which somebody has entered something, or whose vtysh does not answer."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from leaf_rack import state
from metal_core import vtysh, wire
from metal_core.execute import Execution
from metal_core.frr.model import Configuration
from metal_core.frr.parse import parse
from metal_core.frr.render import render
from metal_core.held import HeldVtysh
from metal_core.outcome import Failure
from metal_core.plan import FrrConverge
from metal_core.prepare import Preparation, Refused
from metal_core.vtysh import FrrError, FrrUnavailable, NoFrr, Vtysh

BY_HAND = "no advertise ipv4 unicast route-map X"


class Picky(NoFrr):
    """An FRR that runs `running` and refuses one line."""

    present = True

    def __init__(self, running: Configuration, refused: str) -> None:
        self._running, self._refused = running, refused

    async def running(self) -> Configuration:
        return self._running

    async def check(self, text: str) -> None:
        if self._refused in text:
            raise FrrError(f"refused: {self._refused}")


async def test_what_an_operator_has_entered_is_in_the_way_but_does_not_make_the_state_invalid(bench: Any) -> None:
    desired = wire.desired_of(state(1, 2001))
    own = "  advertise ipv4 unicast\n"
    text = render(desired).text()
    assert own in text
    running = parse(text.replace(own, f"{own.rstrip()} route-map X\n"))
    with pytest.raises(Refused) as by_hand:
        await Preparation(bench.sonic, Picky(running, BY_HAND)).prepare(desired)
    assert by_hand.value.failure is Failure.OBSTACLE
    with pytest.raises(Refused) as own_text:
        await Preparation(bench.sonic, Picky(running, own.strip())).prepare(desired)
    assert own_text.value.failure is Failure.INVALID


def hanging(directory: Path) -> tuple[str, ...]:
    program = directory / "vtysh"
    program.write_text(f"#!/bin/sh\necho >>{directory}/starts\nexec sleep 600\n")
    program.chmod(0o755)
    return (str(program),)


async def test_a_vtysh_that_hangs_is_not_asked_to_forget_one_vrf_after_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vtysh, "CALL_LIMIT", 0.5)
    await Vtysh(hanging(tmp_path), tmp_path).forget_vrfs([f"Vrf{vni}" for vni in range(1, 6)])
    assert len((tmp_path / "starts").read_text().splitlines()) == 1


async def test_a_question_waits_for_its_turn_no_longer_than_its_limit(tmp_path: Path) -> None:
    held = HeldVtysh(hanging(tmp_path))
    first = asyncio.create_task(held.ask("show running-config", 60))
    await asyncio.sleep(0)
    async with asyncio.timeout(5):
        assert await held.ask("show version", 0.1) is None
    assert not first.done()
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    await held.close()


async def test_a_question_behind_one_that_hangs_takes_no_longer_than_its_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vtysh, "CALL_LIMIT", 2.0)
    frr = Vtysh(hanging(tmp_path), tmp_path)
    async with asyncio.timeout(3.5):
        both = await asyncio.gather(frr.running(), frr.sessions(), return_exceptions=True)
    assert [type(each) for each in both] == [FrrUnavailable, FrrUnavailable]
    await frr.close()


async def test_a_vtysh_that_hangs_is_ended_at_once_when_the_agent_ends(tmp_path: Path) -> None:
    frr = Vtysh(hanging(tmp_path), tmp_path)
    asking = [asyncio.create_task(frr.running()) for _ in range(2)]
    while not (tmp_path / "starts").exists():  # noqa: ASYNC110 - a program says that it runs by a file
        await asyncio.sleep(0.01)
    async with asyncio.timeout(5):
        await frr.close()
        both = await asyncio.gather(*asking, return_exceptions=True)
    assert [type(each) for each in both] == [FrrUnavailable, FrrUnavailable]
    assert len((tmp_path / "starts").read_text().splitlines()) == 1


async def test_what_one_version_of_frr_has_accepted_is_asked_of_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frr, version, checks = Vtysh(("vtysh",), tmp_path), "frr version 10.3", []

    async def ask(_: str) -> str:
        return f"{version}\nhostname leaf01\n"

    async def run(*arguments: str) -> str:
        checks.append(arguments)
        return ""

    monkeypatch.setattr(frr, "_ask", ask)
    monkeypatch.setattr(frr, "_run", run)
    for now, asked in (("10.3", 1), ("10.3", 1), ("10.4", 2)):
        version = f"frr version {now}"
        await frr.running()
        await frr.check("hostname leaf02\n")
        assert len(checks) == asked


async def test_what_the_leaf_was_brought_to_is_not_checked_again_by_the_next_agent(tmp_path: Path) -> None:
    program = tmp_path / "vtysh"
    program.write_text(
        f"#!/bin/sh\ncase $1 in -C) echo x >>{tmp_path}/checks;; "
        f"*) echo ' zebra bgpd'; echo frr version $(cat {tmp_path}/version);; esac\n"
    )
    program.chmod(0o755)

    async def agent(text: str, version: str = "10.3") -> int:
        """The checks of one agent's life."""
        (tmp_path / "version").write_text(version)
        (tmp_path / "checks").write_text("")
        frr = Vtysh((str(program),), tmp_path)
        await frr.running()
        await frr.check(text)
        # A part of what has been accepted.
        await frr.check("vrf Vrf1\n vni 1\nexit-vrf\n")
        await frr.keep(text)
        await frr.close()
        return len((tmp_path / "checks").read_text().splitlines())

    text = "vrf Vrf1\n vni 1\nexit-vrf\nvrf Vrf2\n vni 2\nexit-vrf\n"
    assert [await agent(text) for _ in range(3)] == [1, 0, 0]
    assert await agent(f"{text}hostname leaf01\n") == 1, "something else was never accepted"
    assert await agent(text) == 1, "what the leaf had last is what counts"
    assert await agent(text, version="10.4") == 1
    (tmp_path / "accepted-by-frr").write_bytes(b"\xff\x00 garbage")
    assert await agent(text, version="10.4") == 1


async def test_what_was_read_before_a_slow_check_is_not_taken_for_what_frr_runs_now(bench: Any) -> None:
    class Slow(Picky):
        reads = 0

        async def running(self) -> Configuration:
            self.reads += 1
            return await super().running()

    frr = Slow(Configuration(), "nothing")
    running = Configuration()
    execution = Execution(bench.sonic, frr, running, (), 1.0)
    prepared = await Preparation(bench.sonic, frr).prepare(wire.desired_of(state(1)))
    execution.knows(running, "", prepared.read_at)
    await execution.run([FrrConverge()])
    assert frr.reads == 1
    execution.knows(running, "", prepared.read_at - 1.0)
    await execution.run([FrrConverge()])
    assert frr.reads == 2
