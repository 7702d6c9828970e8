"""What a run costs where nothing is to do, what it demands of FRR, and what its failures say about the state."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from leaf_states import ALL, EMPTY, ONE, TWO, Frr, RecordingFrr, is_at
from metal_core import databases
from metal_core.compare import RowDifference
from metal_core.configdb import render
from metal_core.outcome import Failure
from metal_core.sonic import Sonic


async def test_where_nothing_is_to_do_frr_is_asked_once_and_nothing_is_written(bench: Any) -> None:
    frr = Frr()
    applier = bench.applier(frr=frr)
    assert (await applier.apply(ONE)).applied
    frr.asked.clear()
    frr.deltas.clear()
    before, good, boot = await bench.sonic.config(ALL), bench.known_good.path.stat(), bench.frr_conf.stat()
    outcome = await applier.apply(ONE)
    assert (outcome.applied, outcome.touched) == (True, False)
    assert set(outcome.durations) == {"prepare", "commit"}
    assert (frr.asked, frr.deltas) == (["running"], [])
    assert await bench.sonic.config(ALL) == before
    assert (bench.known_good.path.stat(), bench.frr_conf.stat()) == (good, boot)


async def test_a_boot_configuration_that_somebody_changed_is_written_again_though_nothing_else_is_to_do(
    bench: Any,
) -> None:
    applier = bench.applier(frr=Frr())
    assert (await applier.apply(ONE)).applied
    text = bench.frr_conf.read_text()
    bench.frr_conf.write_text("! mine\n")
    assert (await applier.apply(ONE)).applied
    assert bench.frr_conf.read_text() == text


async def test_rows_that_an_interrupted_run_wrote_are_waited_for_though_none_is_to_be_written(bench: Any) -> None:
    bench.leaf.faults.dead = True
    await bench.sonic.write(render(EMPTY, "vtep"), {})
    outcome = await bench.applier(wait_limit=0.05).apply(EMPTY)
    assert not outcome.applied
    assert "the switch did not follow" in outcome.error


async def test_uplinks_that_do_not_come_back_fail_the_run_and_it_is_taken_back(bench: Any) -> None:
    frr = Frr()
    applier = bench.applier(frr=frr)
    assert (await applier.apply(ONE)).applied
    _drop_uplink_at(frr, "Vrf2002")
    outcome = await applier.apply(TWO)
    assert (outcome.failure, outcome.phase, outcome.taken_back) == (Failure.FAILED, "verify", True)
    assert outcome.error == (
        "1 uplinks have BGP sessions, 2 had before; not back within 0.5 s: Ethernet124; taken back"
    )
    assert await is_at(bench, ONE)


async def test_an_uplink_that_was_down_before_is_not_waited_for(bench: Any) -> None:
    frr = Frr()
    frr.up = frozenset({"Ethernet120"})
    applier = bench.applier(frr=frr)
    assert (await applier.apply(ONE)).applied
    assert (await applier.apply(TWO)).applied


async def test_a_run_tells_what_it_found_before_it_corrected_it(bench: Any) -> None:
    frr = Frr()
    applier = bench.applier(frr=frr)
    assert (await applier.apply(ONE)).applied
    assert not (await applier.apply(ONE)).found
    await bench.sonic.delete(["INTERFACE|Ethernet0"])
    frr.sim.load("router bgp 4200000011 vrf Vrf2000\n no neighbor Ethernet0 interface peer-group MACHINE\nexit\n")
    found = (await applier.apply(ONE)).found
    assert [(row.table, row.key, row.found) for row in found.rows] == [("INTERFACE", "Ethernet0", None)]
    assert "+ router bgp 4200000011 vrf Vrf2000 / neighbor Ethernet0 interface peer-group MACHINE" in found.lines


async def test_an_frr_that_is_away_is_an_outage_and_nothing_is_touched(bench: Any) -> None:
    frr = Frr()
    applier = bench.applier(frr=frr)
    assert (await applier.apply(ONE)).applied
    before = await bench.sonic.config(ALL)
    frr.away = "FRR: bgpd not running"
    outcome = await applier.apply(TWO)
    assert (outcome.applied, outcome.failure, outcome.phase) == (False, Failure.OUTAGE, "prepare")
    assert outcome.error == "FRR: bgpd not running"
    assert outcome.notes == ()
    assert await bench.sonic.config(ALL) == before
    frr.away = ""
    assert (await applier.apply(TWO)).applied


async def test_what_a_failure_says_about_the_state(bench: Any) -> None:
    frr = RecordingFrr(bench.sonic)
    frr.refuse = "Vrf2001"
    contradictory = replace(ONE, vrfs=())
    assert (await bench.applier().apply(contradictory)).failure is Failure.INVALID
    assert (await bench.applier(frr=frr).apply(TWO)).failure is Failure.INVALID
    async with bench.sonic.database("CONFIG_DB") as config:
        await config.delete("PORT|Ethernet12")
    assert (await bench.applier().apply(ONE)).failure is Failure.OBSTACLE
    async with bench.sonic.database("APPL_DB") as appl:
        await appl.delete("PORT_TABLE:PortInitDone")
    assert (await bench.applier().apply(ONE)).failure is Failure.OUTAGE
    nowhere = Sonic(databases.defaults(str(bench.frr_conf.with_name("no.sock"))))
    assert (await bench.applier(nowhere).apply(ONE)).failure is Failure.OUTAGE


async def test_a_failed_run_tells_what_differed_when_it_was_given_up(bench: Any) -> None:
    frr = Frr()
    applier = bench.applier(frr=frr)
    assert (await applier.apply(EMPTY)).applied
    bench.leaf.faults.dead = True
    outcome = await bench.applier(frr=frr, wait_limit=0.05).apply(ONE)
    assert (outcome.failure, outcome.phase) == (Failure.FAILED, "apply")
    assert RowDifference("VRF", "Vrf2000", "", "fallback=false, vni=2000", None) in outcome.differences.rows
    assert "+ router bgp 4200000011 vrf Vrf2000" in outcome.differences.lines


@pytest.mark.parametrize("kept", [True, False])
async def test_a_vrf_that_frr_will_not_forget_does_not_keep_the_leaf_busy(bench: Any, kept: bool) -> None:
    frr = Frr()
    frr.keeps = {"Vrf2001"} if kept else set()
    applier = bench.applier(frr=frr)
    for state in (TWO, ONE, ONE):
        assert (await applier.apply(state)).applied
    frr.asked.clear()
    assert not (await applier.apply(ONE)).touched
    assert frr.asked == ["running"]
    assert ("vrf Vrf2001" in frr.sim.running()) is kept


def _drop_uplink_at(frr: Frr, word: str) -> None:
    """Have an uplink's session die when FRR is given commands with `word` in them."""
    load = frr.sim.load

    def losing(text: str) -> None:
        load(text)
        if word in text:
            frr.up -= {"Ethernet124"}

    frr.sim.load = losing  # type: ignore[method-assign]
