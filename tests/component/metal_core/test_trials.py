"""The whole agent where a generation does not work out: set aside, cut off from the plane, killed in between."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from leaf_rack import Rack, applied, state
from metal_core.quarantine import Quarantine
from metalplane.fabric.v1.settings_pb2 import PortFec

Eventually = Callable[..., Awaitable[None]]


def has_vni(rack: Rack, vni: int | None) -> Callable[[], Awaitable[bool]]:
    """Whether Ethernet0 forwards in the VRF of `vni`, with None in the PXE VLAN."""

    async def check() -> bool:
        leaf = rack.bench.leaf
        vlan = None if vni else 4000
        return bool((await leaf.vni_of("Ethernet0"), await leaf.vlan_of("Ethernet0")) == (vni, vlan))

    return check


def set_aside(rack: Rack, generation: int) -> Callable[[], Any]:
    """Whether the newest report says that the generation is not tried again."""
    return lambda: (
        rack.fabric.reports
        and (rack.fabric.reports[-1].generation == generation and rack.fabric.reports[-1].quarantine)
    )


async def cut_off(rack: Rack, eventually: Eventually) -> None:
    """Generation 2 arrives and is applied, and from then on the plane is silent for the leaf."""
    rack.fabric.want(state(1))
    rack.start_agent(confirm_seconds=1)
    await eventually(applied(rack, 1))
    rack.fabric.acknowledge = False
    rack.fabric.want(state(2, 2001))
    await eventually(applied(rack, 2))
    await rack.fabric_down()
    rack.fabric.acknowledge = True


async def test_a_generation_that_cuts_the_leaf_off_is_taken_back_and_stays_so(
    rack: Rack, eventually: Eventually
) -> None:
    await cut_off(rack, eventually)
    # Written when the way back has ended; rows are there before.
    await eventually(rack.bench.known_good.path.with_name("quarantine.json").exists)
    assert await has_vni(rack, None)()
    await rack.fabric_up()
    await eventually(set_aside(rack, 2), seconds=30)
    report = rack.fabric.reports[-1]
    assert (report.phase, report.standing_generation, report.standing_hash) == ("confirm", 1, "hash1")
    assert "the plane was not heard for 1 s" in report.quarantine
    assert rack.fabric.hellos[-1].applied_generation == 1
    assert rack.bench.leaf.violations == []
    rack.fabric.want(state(3, 2001))
    await eventually(applied(rack, 3))
    assert await rack.bench.leaf.vni_of("Ethernet0") == 2001
    assert rack.fabric.reports[-1].standing_generation == 3


async def test_the_way_back_does_not_need_the_agent_that_began_the_trial(rack: Rack, eventually: Eventually) -> None:
    await cut_off(rack, eventually)
    await rack.stop_agent()
    assert await has_vni(rack, 2001)()
    assert (await rack.bench.known_good.load()).desired.generation == 1
    rack.start_agent(confirm_seconds=1)
    await eventually(rack.bench.known_good.path.with_name("quarantine.json").exists)
    assert await has_vni(rack, None)()
    await rack.stop_agent()
    rack.start_agent(confirm_seconds=1)
    await rack.fabric_up()
    await eventually(set_aside(rack, 2), seconds=30)
    assert rack.fabric.reports[-1].standing_generation == 1
    assert await has_vni(rack, None)()


async def test_a_confirmed_generation_outlives_any_silence(rack: Rack, eventually: Eventually) -> None:
    rack.fabric.want(state(1))
    rack.start_agent(confirm_seconds=1, compare_seconds=0.2)
    await eventually(applied(rack, 1))
    rack.fabric.want(state(2, 2001))
    await eventually(applied(rack, 2))

    async def confirmed() -> bool:
        return bool((await rack.bench.known_good.load()).desired.generation == 2)

    await eventually(confirmed)
    await rack.fabric_down()
    candidate = rack.bench.known_good.path.with_name("candidate.json")
    assert not candidate.exists()
    await rack.stop_agent()
    rack.start_agent(confirm_seconds=1)
    await rack.fabric_up()
    await eventually(lambda: len(rack.fabric.hellos) > 1, seconds=30)
    assert rack.fabric.hellos[-1].applied_generation == 2


async def test_a_generation_that_the_switch_does_not_follow_is_set_aside_over_restarts(
    rack: Rack, eventually: Eventually
) -> None:
    rack.fabric.want(state(1))
    rack.start_agent(wait_seconds=0.1)
    await eventually(applied(rack, 1))
    before = await rack.bench.sonic.config()
    rack.bench.leaf.faults.dead = True
    rack.fabric.want(state(2, 2000))
    await eventually(set_aside(rack, 2), seconds=30)
    report = rack.fabric.reports[-1]
    assert report.quarantine.startswith("3 attempts failed, the last one in phase apply: the switch did not follow")
    assert report.standing_generation == 1
    assert ("VRF", "Vrf2000", "vni=2000") in {
        (row.table, row.key, row.wanted.split(", ")[-1]) for row in report.differences.rows
    }
    assert await rack.bench.sonic.config() == before
    await rack.stop_agent()
    rack.bench.leaf.faults.dead = False
    told = len(rack.fabric.reports)
    rack.start_agent()
    await eventually(lambda: len(rack.fabric.reports) > told, seconds=30)
    assert set_aside(rack, 2)()
    assert await rack.bench.sonic.config() == before
    # What `metal-core retry` does beside an agent that next looks at the leaf in an hour.
    assert await Quarantine(rack.bench.known_good.path.parent).end() is not None
    await eventually(applied(rack, 2))
    rack.fabric.want(state(3, 2000))
    await eventually(applied(rack, 3))


async def test_an_agent_whose_vtysh_is_missing_applies_nothing_and_says_why(rack: Rack, eventually: Eventually) -> None:
    rack.fabric.want(state(1, 2000))
    before = await rack.bench.sonic.config()
    rack.start_agent(vtysh=str(rack.directory / "vtysh"))
    await eventually(lambda: rack.fabric.reports)
    report = rack.fabric.reports[-1]
    assert (report.applied, report.phase, report.quarantine) == (False, "prepare", "")
    assert "vtysh: No such file or directory" in report.error
    assert await rack.bench.sonic.config() == before


async def test_a_first_speed_and_error_correction_that_cut_the_leaf_off_are_taken_back(
    rack: Rack, eventually: Eventually
) -> None:
    async def port() -> dict[str, str]:
        return dict((await rack.bench.sonic.config())["PORT|Ethernet120"])

    rack.fabric.want(state(1))
    rack.start_agent(confirm_seconds=1)
    await eventually(applied(rack, 1))
    before = await port()
    rack.fabric.acknowledge = False
    wanted = state(2)
    wanted.ports[0].speed, wanted.ports[0].fec = 40_000, PortFec.PORT_FEC_RS
    rack.fabric.want(wanted)
    await eventually(applied(rack, 2))
    assert await port() == {**before, "speed": "40000", "fec": "rs"} != before
    await rack.fabric_down()
    # The way back is the next agent's, which knows of it from the disk alone.
    await rack.stop_agent()
    rack.start_agent(confirm_seconds=1)
    await eventually(rack.bench.known_good.path.with_name("quarantine.json").exists)
    assert await port() == before
    assert rack.bench.leaf.violations == []
