"""The applier against a real Redis with a simulated orchagent: convergence, ownership, rollback, memory."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest
from leaf_states import ALL, EMPTY, FOREIGN, ONE, STATES, TWO, Crash, Crashing, Frr, RecordingFrr, is_at
from metal_core.apply import NO_FRR
from metal_core.desired import Admin, Desired, Port, PortRole
from metal_core.facts import unmet
from metal_core.frr.managed import differences
from metal_core.frr.parse import parse
from metal_core.frr.render import render as render_frr
from metal_core.known_good import KnownGood
from metal_core.plan import Condition, Fact
from metal_core.sonic import Sonic, SonicUnavailable
from metal_sim.leaf.frr import FrrRefused, SimFrr


async def test_a_new_leaf_takes_each_state_after_the_other(bench: Any) -> None:
    applier = bench.applier()
    for desired in (*STATES, *reversed(STATES), ONE):
        outcome = await applier.apply(desired)
        assert (outcome.applied, outcome.error) == (True, "")
        assert outcome.notes == (NO_FRR,)
        assert await is_at(bench, desired)
    assert bench.leaf.violations == []
    assert await bench.leaf.vrf_of("Ethernet0") == "Vrf2000"
    assert await bench.leaf.vni_of("Ethernet0") == 2000
    assert await bench.leaf.vlan_of("Ethernet4") == 4000
    assert await bench.leaf.vrf_of("Ethernet8") == "default"
    assert await bench.leaf.vlan_of("Ethernet0") is None


async def test_applying_the_same_state_again_writes_nothing(bench: Any) -> None:
    assert (await bench.applier().apply(ONE)).changed > 0
    good = bench.known_good.path.stat().st_mtime_ns
    outcome = await bench.applier().apply(ONE)
    assert outcome.applied
    assert outcome.changed == 0
    assert bench.known_good.path.stat().st_mtime_ns == good


@pytest.mark.parametrize("start", [EMPTY, ONE, TWO], ids=["from-empty", "from-one", "from-two"])
async def test_a_crash_before_any_step_is_made_good_by_the_next_run(bench: Any, start: Desired) -> None:
    goal = ONE if start is not ONE else TWO
    crashing = Crashing(_locations(bench))
    for step in range(40):
        assert (await bench.applier().apply(start)).applied
        crashing.arm(step, Crash())
        try:
            await bench.applier(crashing).apply(goal)
        except Crash:
            outcome = await bench.applier().apply(goal)
            assert outcome.applied, f"step {step}: {outcome.error}"
            assert await is_at(bench, goal)
        else:
            break
    await crashing.close()
    assert 5 < step < 40
    assert bench.leaf.violations == []


async def test_a_failure_at_any_step_takes_everything_back(bench: Any) -> None:
    crashing = Crashing(_locations(bench))
    assert (await bench.applier().apply(ONE)).applied
    before = await bench.sonic.config(ALL)
    for step in range(40):
        crashing.arm(step, SonicUnavailable("connection lost"))
        outcome = await bench.applier(crashing).apply(TWO)
        if outcome.applied:
            break
        assert outcome.error == "connection lost; taken back"
        assert await bench.sonic.config(ALL) == before
        good = await bench.known_good.load()
        assert good is not None
        assert good.desired == ONE
    await crashing.close()
    assert 5 < step < 40
    assert bench.leaf.violations == []


async def test_rows_and_fields_of_others_survive_every_change(bench: Any) -> None:
    await bench.sonic.write(FOREIGN, {})
    await bench.sonic.write({"PORT|Ethernet0": {"fec": "rs"}}, {})
    foreign = {key: row for key, row in (await bench.sonic.config(ALL)).items() if key in FOREIGN}
    others = await bench.sonic.config({"DEVICE_METADATA", "LOOPBACK_INTERFACE", "VXLAN_EVPN_NVO", "VXLAN_TUNNEL"})
    states = [replace(state, ports=tuple(p for p in state.ports if p.name != "Ethernet12")) for state in STATES]
    for desired in (*states, states[0]):
        assert (await bench.applier().apply(desired)).applied
        rows = await bench.sonic.config(ALL)
        assert rows.items() >= foreign.items()
        assert rows.items() >= others.items()
        assert rows["PORT|Ethernet0"]["fec"] == "rs"
        assert rows["PORT|Ethernet0"]["alias"] == "Eth1"


@pytest.mark.parametrize("admin", [Admin.KEEP, Admin.DOWN, Admin.UP])
async def test_breakouts_and_the_vlans_of_an_operators_own_port_survive_every_change(bench: Any, admin: Admin) -> None:
    """The plane takes no part in either: of such a port it has the administrative state only, and of breakouts the
    names of the ports that they make."""
    theirs = {
        "BREAKOUT_CFG|Ethernet0": {"brkout_mode": "4x25G[10G]"},
        "VLAN|Vlan500": {"vlanid": "500"},
        "VLAN|Vlan501": {"vlanid": "501"},
        "VLAN_MEMBER|Vlan500|Ethernet12": {"tagging_mode": "tagged"},
        "VLAN_MEMBER|Vlan501|Ethernet12": {"tagging_mode": "untagged"},
    }
    tables = ALL | {"BREAKOUT_CFG"}
    await bench.sonic.write(theirs, {})
    own = Port("Ethernet12", PortRole.ADDITIONAL, admin=admin)
    mtu = (await bench.sonic.config({"PORT"}))["PORT|Ethernet12"].get("mtu")
    for state in (*STATES, STATES[0]):
        ports = tuple(own if port.name == own.name else port for port in state.ports)
        assert own in ports
        assert (await bench.applier().apply(replace(state, ports=ports))).applied
        rows = await bench.sonic.config(tables)
        assert rows.items() >= theirs.items()
        assert rows["PORT|Ethernet12"].get("mtu") == mtu
        if admin is not Admin.KEEP:
            assert rows["PORT|Ethernet12"]["admin_status"] == admin.value


async def test_a_foreign_row_in_the_way_refuses_the_state_and_nothing_is_touched(bench: Any) -> None:
    assert (await bench.applier().apply(EMPTY)).applied
    await bench.sonic.write({"VLAN_MEMBER|Vlan100|Ethernet0": {"tagging_mode": "tagged"}}, {})
    before = await bench.sonic.config(ALL)
    outcome = await bench.applier().apply(ONE)
    assert not outcome.applied
    assert "VLAN_MEMBER|Vlan100|Ethernet0" in outcome.error
    assert await bench.sonic.config(ALL) == before


async def test_a_switch_that_does_not_follow_fails_the_run_with_the_reason_and_is_taken_back(bench: Any) -> None:
    assert (await bench.applier().apply(EMPTY)).applied
    before = await bench.sonic.config(ALL)
    bench.leaf.faults.orchagent_delay = 60.0
    outcome = await bench.applier(wait_limit=0.2).apply(ONE)
    assert not outcome.applied
    assert outcome.error.startswith("the switch did not follow within 0.2 s: Ethernet0: bridge port gone")
    # The bridge port never went, so the rows could be put back without waiting for anything.
    assert await bench.sonic.config(ALL) == before


async def test_runs_that_a_stuck_switch_cuts_off_never_get_ahead_of_it(bench: Any) -> None:
    """Each run deletes a row before it waits in vain; the next one must not go on as if the switch had followed."""
    assert (await bench.applier().apply(ONE)).applied
    bench.leaf.faults.dead = True
    for _ in range(6):
        assert not (await bench.applier(wait_limit=0.05).apply(EMPTY)).applied
    bench.leaf.faults.dead = False
    assert (await bench.applier().apply(EMPTY)).applied
    assert bench.leaf.violations == []


async def test_ports_that_do_not_exist_yet_refuse_the_state(bench: Any) -> None:
    async with bench.sonic.database("APPL_DB") as appl:
        await appl.delete("PORT_TABLE:PortInitDone")
    outcome = await bench.applier().apply(ONE)
    assert "PortInitDone" in outcome.error
    assert not bench.known_good.path.exists()


async def test_garbage_in_redis_is_read_past(bench: Any) -> None:
    async with bench.sonic.database("CONFIG_DB") as config:
        await config.set("VLAN|Vlan77", "a string")
        await config.hset(b"VRF|\xff\xfe", b"\xff", b"\xfe")
        await config.hset("PORT", "no", "key")
        await config.rpush("PORT|Ethernet999", "a list")
    async with bench.sonic.database("APPL_DB") as appl:
        await appl.set("LLDP_ENTRY_TABLE:Ethernet0", "a string")
    assert (await bench.applier().apply(ONE)).applied
    assert await bench.sonic.lldp_neighbours(["Ethernet0", "Ethernet4"]) == {}


async def test_what_redis_refuses_to_tell_does_not_count_as_gone(bench: Any) -> None:
    assert (await bench.applier().apply(ONE)).applied
    await bench.leaf.stop()
    there = [Condition(Fact.VRF_GONE, "Vrf2000"), Condition(Fact.RIF_GONE, "Ethernet0")]
    assert await unmet(bench.sonic, there) == there
    async with bench.sonic.database("CONFIG_DB") as config:
        await config.execute_command("ACL", "SETUSER", "default", "-hgetall")
    with pytest.raises(SonicUnavailable):
        await unmet(bench.sonic, there)
    with pytest.raises(SonicUnavailable):
        await bench.sonic.config()


async def test_without_redis_the_outcome_says_so(bench: Any, tmp_path: Any) -> None:
    from metal_core import databases

    nowhere = Sonic(databases.defaults(str(tmp_path / "no.sock")))
    outcome = await bench.applier(nowhere).apply(ONE)
    assert not outcome.applied
    assert outcome.error.startswith("APPL_DB: ")


async def test_frr_follows_from_state_to_state_without_touching_other_sessions(bench: Any) -> None:
    frr = Frr()
    for desired in (*STATES, *reversed(STATES), ONE):
        outcome = await bench.applier(frr=frr).apply(desired)
        assert (outcome.applied, outcome.error, outcome.notes) == (True, "", ())
        assert differences(await frr.running(), render_frr(desired), {port.name for port in desired.ports}) == []
    assert not any("no neighbor Ethernet120" in delta for delta in frr.deltas)
    assert frr.sim.sessions() == [
        ("Ethernet0", "router bgp 4200000011 vrf Vrf2000"),
        ("Ethernet120", "router bgp 4200000011"),
        ("Ethernet124", "router bgp 4200000011"),
        ("Ethernet8", "router bgp 4200000011"),
    ]
    assert "Vrf2001" not in frr.sim.running(), "what nothing uses is forgotten"
    frr.deltas.clear()
    assert (await bench.applier(frr=frr).apply(ONE)).frr_commands == 0
    assert frr.deltas == []


async def test_what_somebody_changed_in_frr_is_corrected(bench: Any) -> None:
    frr = Frr()
    await bench.applier(frr=frr).apply(ONE)
    frr.sim.load("router bgp 4200000011 vrf Vrf2000\n no neighbor Ethernet0 interface peer-group MACHINE\nexit\n")
    frr.sim.load("ip prefix-list fw-Ethernet8-in-prefixes seq 10 permit 0.0.0.0/0\n")
    outcome = await bench.applier(frr=frr).apply(ONE)
    assert outcome.applied
    assert outcome.changed == 0
    assert outcome.frr_commands > 0
    assert differences(await frr.running(), render_frr(ONE), {port.name for port in ONE.ports}) == []


async def test_a_refused_delta_takes_rows_and_frr_back(bench: Any) -> None:
    frr = Frr()
    assert (await bench.applier(frr=frr).apply(ONE)).applied
    before, configuration = await bench.sonic.config(ALL), await frr.running()
    _refuse_once(frr.sim, "Vrf2002")
    outcome = await bench.applier(frr=frr).apply(TWO)
    assert outcome.error == "not today: Vrf2002; taken back"
    assert await bench.sonic.config(ALL) == before
    ports = {port.name for port in ONE.ports}
    assert differences(await frr.running(), configuration, ports) == []
    assert bench.leaf.violations == []


async def test_an_empty_frr_is_filled_while_the_switch_takes_its_rows(
    bench: Any, eventually: Callable[..., Awaitable[None]]
) -> None:
    """After a boot neither can hurt the other, and the tenants wait for both."""
    frr = Frr()
    bench.leaf.faults.dead = True
    run = asyncio.create_task(bench.applier(frr=frr).apply(ONE))
    await eventually(lambda: len(frr.deltas) == 1)
    assert "INTERFACE|Ethernet0" not in await bench.sonic.config()
    bench.leaf.faults.dead = False
    assert (await run).applied
    assert len(frr.deltas) == 1
    assert differences(await frr.running(), render_frr(ONE), {port.name for port in ONE.ports}) == []
    assert await is_at(bench, ONE)
    assert bench.leaf.violations == []


@pytest.mark.parametrize("part", ["switch", "FRR"])
async def test_when_one_half_of_a_boot_fails_the_other_is_taken_back_as_well(bench: Any, part: str) -> None:
    frr = Frr()
    bench.leaf.faults.dead = part == "switch"
    if part == "FRR":
        _refuse_once(frr.sim, "Vrf2000")
    outcome = await bench.applier(frr=frr, wait_limit=0.3).apply(ONE)
    assert not outcome.applied
    assert ("did not follow" if part == "switch" else "not today: Vrf2000; taken back") in outcome.error
    assert frr.sim.sessions() == []
    assert "INTERFACE|Ethernet0" not in await bench.sonic.config()
    bench.leaf.faults.dead = False
    assert (await bench.applier(frr=frr).apply(ONE)).applied
    assert bench.leaf.violations == []


async def test_frr_lets_go_of_neighbours_before_ports_move_and_takes_them_afterwards(bench: Any) -> None:
    frr = RecordingFrr(bench.sonic)
    assert (await bench.applier().apply(ONE)).applied
    frr.configuration = parse(bench.frr_conf.read_text())
    outcome = await bench.applier(frr=frr).apply(TWO)
    assert not outcome.applied, "an FRR that does not change must not be reported as applied"
    assert "FRR differs in" in outcome.error
    detached, retired, converged, *_ = frr.loaded
    assert "no neighbor Ethernet0 interface" in detached
    assert "INTERFACE|Ethernet0" in frr.rows_at_load[0]
    assert "no vni 2000" in retired
    assert "VRF|Vrf2000" in frr.rows_at_load[1]
    assert "neighbor Ethernet0 interface peer-group MACHINE" in converged
    assert "INTERFACE|Ethernet4" in frr.rows_at_load[2]
    assert await is_at(bench, ONE), "the rows follow FRR back"
    assert bench.leaf.violations == []


async def test_a_configuration_that_frr_refuses_touches_nothing(bench: Any) -> None:
    frr = RecordingFrr(bench.sonic)
    frr.refuse = "Vrf2001"
    assert (await bench.applier().apply(ONE)).applied
    before, text = await bench.sonic.config(ALL), bench.frr_conf.read_text()
    outcome = await bench.applier(frr=frr).apply(TWO)
    assert outcome.error == "line 1: Unknown command"
    assert frr.loaded == []
    assert await bench.sonic.config(ALL) == before
    assert bench.frr_conf.read_text() == text


async def test_a_rebooted_leaf_gets_its_last_known_good_state_without_the_plane(bench: Any) -> None:
    assert (await bench.applier().apply(ONE)).applied
    async with bench.sonic.database("CONFIG_DB") as config:
        await config.flushdb()
    await bench.leaf.stop()
    await bench.leaf.start()
    good = await bench.known_good.load()
    assert good is not None
    outcome = await bench.applier().restore(good)
    assert outcome.applied, outcome.error
    assert await is_at(bench, ONE)


async def test_a_stale_memory_never_takes_a_port_out_of_a_tenants_vrf(bench: Any) -> None:
    assert (await bench.applier().apply(ONE)).applied
    before = await bench.sonic.config(ALL)
    outcome = await bench.applier().restore(KnownGood(EMPTY, 0.0))
    assert not outcome.applied
    assert "stale" in outcome.error
    assert "INTERFACE|Ethernet0" in outcome.error
    assert await bench.sonic.config(ALL) == before


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 2}', '{"format": 1, "applied_at": 1, "desired": {}}'])
async def test_a_broken_memory_counts_as_none(bench: Any, text: str) -> None:
    bench.known_good.path.parent.mkdir(parents=True)
    bench.known_good.path.write_text(text)
    assert await bench.known_good.load() is None
    assert (await bench.applier().apply(ONE)).applied
    assert (await bench.known_good.load()).desired == ONE


async def test_a_memory_that_cannot_be_written_is_a_failure_and_taken_back(bench: Any) -> None:
    assert (await bench.applier().apply(EMPTY)).applied
    before, text = await bench.sonic.config(ALL), bench.frr_conf.read_text()
    bench.known_good.path.with_name("last-known-good.json.tmp").mkdir()
    outcome = await bench.applier().apply(ONE)
    assert not outcome.applied
    assert outcome.error.endswith("taken back")
    assert await bench.sonic.config(ALL) == before
    assert bench.frr_conf.read_text() == text, "FRR would boot with what was taken back"


def _refuse_once(sim: SimFrr, word: str) -> None:
    """Have `sim` carry out half of the first delta that contains `word`, and refuse the rest."""
    load = sim.load

    def half(text: str) -> None:
        if word not in text:
            load(text)
            return
        sim.load = load  # type: ignore[method-assign]
        load(text[: text.index("router bgp")] + "exit\n")
        raise FrrRefused(f"not today: {word}")

    sim.load = half  # type: ignore[method-assign]


def _locations(bench: Any) -> Any:
    from metal_core import databases

    return databases.read(bench.leaf.database_config)
