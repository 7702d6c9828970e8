"""Speed and error correction of ports: proven by what the switch says, and brought back with what was before."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from leaf_states import ONE, TWO, Crash, Crashing
from metal_core import databases
from metal_core.desired import Desired, Fec
from metal_core.known_good import replace_file
from metal_core.outcome import Failure

UPLINK = "PORT|Ethernet120"


def shaped(desired: Desired, speed: int, fec: Fec = Fec.KEEP, port: str = "Ethernet120") -> Desired:
    """The state with a wish for one port, as a generation of its own."""
    ports = tuple(replace(each, speed=speed, fec=fec) if each.name == port else each for each in desired.ports)
    generation = desired.generation + 10
    return replace(desired, ports=ports, generation=generation, digest=f"{desired.digest}-{speed}-{fec.value}")


FAST = shaped(ONE, 40_000, Fec.RS)


async def hardware(bench: Any) -> tuple[str | None, str | None]:
    row = (await bench.sonic.config())[UPLINK]
    return row.get("speed"), row.get("fec")


async def test_without_trials_the_known_good_state_brings_back_what_a_crash_left_half_way(bench: Any) -> None:
    assert (await bench.applier().apply(ONE)).applied
    sonic = Crashing(databases.read(bench.leaf.database_config))
    sonic.arm(5, Crash())
    with pytest.raises(Crash):
        await bench.applier(sonic).apply(replace(shaped(TWO, 40_000, Fec.RS), generation=9))
    await sonic.close()
    assert await hardware(bench) == ("40000", "rs")
    good = await bench.known_good.load()
    assert good is not None
    outcome = await bench.applier().apply(good.desired)
    assert outcome.applied, outcome.error
    assert await hardware(bench) == ("100000", None)
    assert not bench.known_good.path.with_name("fields-before.json").exists()


async def test_the_state_before_the_last_one_brings_back_what_was_before_its_wishes(bench: Any) -> None:
    for desired in (ONE, FAST, shaped(ONE, 50_000)):
        assert (await bench.applier().apply(desired)).applied
    assert await hardware(bench) == ("50000", "rs"), "what is no longer set stays as it was"
    previous = await bench.known_good.previous.load()
    assert previous is not None
    assert (await bench.applier().apply(previous.desired)).applied
    assert await hardware(bench) == ("40000", "rs")
    assert (await bench.applier().apply(ONE)).applied
    assert await hardware(bench) == ("40000", "rs"), "a state that nobody could go back to any more is a new one"


async def test_what_somebody_else_has_set_since_is_theirs(bench: Any) -> None:
    assert (await bench.applier().apply(ONE)).applied
    assert (await bench.applier().apply(FAST)).applied
    await bench.sonic.write({UPLINK: {"speed": "10000"}}, {})
    assert (await bench.applier().apply(ONE)).applied
    assert await hardware(bench) == ("10000", None)


async def test_a_speed_that_the_switch_ignores_is_not_applied_and_taken_back(bench: Any) -> None:
    assert (await bench.applier().apply(ONE)).applied
    bench.leaf.faults.speed_ignored = True
    outcome = await bench.applier(wait_limit=0.3).apply(FAST)
    assert (outcome.applied, outcome.failure) == (False, Failure.FAILED)
    assert "Ethernet120: runs at speed 40000" in outcome.error
    assert await hardware(bench) == ("100000", None)


async def test_what_an_interrupted_run_has_set_is_looked_at_by_the_next_one(bench: Any) -> None:
    assert (await bench.applier().apply(ONE)).applied
    bench.leaf.faults.speed_ignored = True
    sonic = Crashing(databases.read(bench.leaf.database_config))
    sonic.arm(1, Crash())
    with pytest.raises(Crash):
        await bench.applier(sonic).apply(FAST)
    await sonic.close()
    # As if it had come to the row before it ended.
    await bench.sonic.write({UPLINK: {"speed": "40000", "fec": "rs"}}, {})
    outcome = await bench.applier(wait_limit=0.3).apply(FAST)
    assert "Ethernet120: runs at speed 40000" in outcome.error


async def test_a_known_good_state_is_restored_though_a_link_has_come_up_otherwise(bench: Any) -> None:
    assert (await bench.applier().apply(FAST)).applied
    async with bench.sonic.database("CONFIG_DB") as config:
        await config.flushdb()
    await bench.leaf.stop()
    bench.leaf.faults.speed_ignored = True
    await bench.leaf.start()
    good = await bench.known_good.load()
    assert good is not None
    outcome = await bench.applier(wait_limit=1).restore(good)
    assert outcome.applied, outcome.error


async def test_a_port_without_a_link_takes_its_speed_on_trust(bench: Any) -> None:
    assert (await bench.applier().apply(ONE)).applied
    bench.leaf.faults.speed_ignored = True
    outcome = await bench.applier().apply(shaped(ONE, 10_000, port="Ethernet0"))
    assert outcome.applied, outcome.error


@pytest.mark.parametrize(
    ("wish", "complaint"),
    [
        (shaped(ONE, 400_000), "ports['Ethernet120'].speed: the switch says that the port cannot do 400000, only 1000"),
        (shaped(ONE, 25), "ports['Ethernet120'].speed: 25 must be in Mbit/s"),
    ],
)
async def test_a_speed_that_the_port_cannot_have_is_refused_with_the_way_out(
    bench: Any, wish: Desired, complaint: str
) -> None:
    assert (await bench.applier().apply(ONE)).applied
    before = await bench.sonic.config()
    outcome = await bench.applier().apply(wish)
    assert complaint in outcome.error
    assert "metalctl switch set PARTITION --port Ethernet120:speed=" in outcome.error
    assert await bench.sonic.config() == before


async def test_a_memory_of_fields_that_cannot_be_read_counts_as_none(bench: Any) -> None:
    assert (await bench.applier().apply(ONE)).applied
    assert (await bench.applier().apply(FAST)).applied
    replace_file(bench.known_good.path.with_name("fields-before.json"), '{"format": 1, "fields": [{}]}')
    assert (await bench.applier().apply(ONE)).applied
    assert await hardware(bench) == ("40000", "rs")
