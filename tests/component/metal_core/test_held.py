"""The vtysh that stays says what a vtysh for one question says, and where it cannot be used it says nothing at all."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from metal_core import bgp_state, held
from metal_core.held import HeldVtysh
from metal_core.vtysh import FrrUnavailable, Vtysh
from scratch_frr import ScratchFrr, peer

LIMIT = 20.0
Eventually = Callable[..., Awaitable[None]]
# Repeats what it is told behind a prompt as vtysh does, has all daemons, and answers the number of its process.
_TALKS = """\
while read -r line; do
  echo "leaf01# $line"
  case "$line" in '!'*) ;; 'show daemons') echo ' zebra bgpd' ;; *) echo "process $$" ;; esac
done
"""


@pytest.fixture
async def frr() -> AsyncIterator[ScratchFrr]:
    """A zebra and a bgpd with a little configured."""
    frr = ScratchFrr()
    try:
        await frr.start()
        await frr.ask("configure terminal\nvrf Vrf7\nvni 7\nexit-vrf\nrouter bgp 65000\nneighbor FABRIC peer-group")
        yield frr
    finally:
        await frr.stop()


@pytest.mark.peer
@peer
async def test_it_says_what_a_vtysh_for_one_question_says(frr: ScratchFrr) -> None:
    one = HeldVtysh(frr.vtysh)
    for question in ("show running-config", "show bgp summary json", bgp_state.COMMAND, "show nonsense"):
        answer = await one.ask(question, LIMIT)
        assert answer is not None
        assert answer.daemons == {"zebra", "bgpd"}
        if "nonsense" in question:
            assert answer.text.startswith("% Unknown command")
        else:
            assert answer.text == await frr.ask(question)
    await one.close()


@pytest.mark.peer
@peer
async def test_a_daemon_that_ends_and_comes_back_is_noticed_at_once(
    frr: ScratchFrr, tmp_path: Path, eventually: Eventually
) -> None:
    vtysh = Vtysh(frr.vtysh, tmp_path)
    assert "router bgp 65000" in (await vtysh.running()).text()
    await frr.kill("bgpd")
    with pytest.raises(FrrUnavailable, match="bgpd not running"):
        await vtysh.running()
    await frr.start("bgpd")
    running = (await vtysh.running()).text()
    assert "vrf Vrf7" in running
    assert "router bgp 65000" not in running, "bgpd has nothing configured after its start"
    await vtysh.close()


def script(tmp_path: Path, body: str) -> HeldVtysh:
    """A held vtysh that does what the test wants."""
    path = tmp_path / "vtysh"
    path.write_text(f"#!/bin/sh\necho start >> {tmp_path}/starts\n{body}\n")
    path.chmod(0o755)
    return HeldVtysh((str(path),))


def starts(tmp_path: Path) -> int:
    return (tmp_path / "starts").read_text().count("start")


async def test_many_questions_at_once_are_one_process_until_it_has_had_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(held, "_QUESTIONS", 10)
    one = script(tmp_path, _TALKS)
    answers = await asyncio.gather(*(one.ask(f"show {number}", LIMIT) for number in range(10)))
    assert len({answer.text for answer in answers if answer is not None}) == 1
    assert None not in answers
    assert await one.ask("show 11", LIMIT) not in answers
    assert starts(tmp_path) == 2
    await one.close()


@pytest.mark.parametrize("body", ["exit 1", "echo ' zebra bgpd'", "cat", "kill -9 $$"])
async def test_what_cannot_be_talked_to_gives_no_answer_and_is_not_started_for_each_question(
    tmp_path: Path, body: str
) -> None:
    one = script(tmp_path, body)
    assert [await one.ask("show version", LIMIT) for _ in range(3)] == [None, None, None]
    assert starts(tmp_path) < 3
    await one.close()


async def test_one_that_hangs_is_ended_and_its_late_answer_is_nobodys(tmp_path: Path) -> None:
    first = f"if [ ! -e {tmp_path}/later ]; then touch {tmp_path}/later; exec sleep 60; fi\n"
    one = script(tmp_path, first + _TALKS)
    with pytest.raises(TimeoutError):
        await one.ask("show first", 0.2)
    answer = await one.ask("show second", LIMIT)
    assert answer is not None
    assert answer.text.startswith("process ")
    await one.close()
