"""Every golden configuration and every way between two of them, carried out by real FRR daemons.

What they print afterwards has to be what was rendered, or each comparison would find differences for ever and each
correction would touch sessions for nothing. `vtysh -C` alone says nothing about that.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from metal_core.checks import check_running
from metal_core.frr.delta import converge
from metal_core.frr.managed import PROFILE, differences, managed
from metal_core.frr.parse import parse
from metal_core.frr.render import render
from metal_core.vtysh import FrrError, Vtysh
from scratch_frr import missing, scratch_frr

MISSING = missing()
pytestmark = [
    pytest.mark.peer,
    pytest.mark.skipif(bool(MISSING) and os.environ.get("METALPLANE_REQUIRE_PEERS") != "1", reason=MISSING or "-"),
]


def golden_leaves() -> dict[str, Any]:
    """The leaves of the golden files."""
    path = Path(__file__).parents[2] / "unit" / "metal_core" / "test_render.py"
    spec = importlib.util.spec_from_file_location("golden_leaves", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return dict(module.LEAVES)


LEAVES = golden_leaves()
PORTS = frozenset().union(*(leaf.own_ports for leaf in LEAVES.values()))


@pytest.fixture
async def frr(tmp_path: Path) -> AsyncIterator[Vtysh]:
    """Daemons as they are after their first start: another profile, and no configuration."""
    assert not MISSING, MISSING
    async with scratch_frr("10.0.0.11") as command:
        vtysh = Vtysh(command, tmp_path)
        yield vtysh
        await vtysh.close()


@pytest.mark.parametrize("name", LEAVES)
async def test_what_frr_boots_with_is_what_it_prints(frr: Vtysh, name: str) -> None:
    wanted = render(LEAVES[name])
    await frr.load(wanted.text())
    running = await frr.running()
    assert differences(running, wanted, PORTS) == []
    assert converge(running, wanted, PORTS) == ""
    assert check_running(LEAVES[name], running) == []
    printed, rendered = managed(running, PORTS), managed(wanted, PORTS)
    # Also line by line: within a block FRR prints in the order in which it is rendered, but for the lists' place.
    assert sorted(printed.lines) == sorted(rendered.lines)
    assert {block.header for block in printed.blocks} == {block.header for block in rendered.blocks}


async def test_frr_goes_from_each_golden_configuration_to_each_other_by_one_delta(frr: Vtysh) -> None:
    assert f"{PROFILE}traditional" in (await frr.running()).lines
    way = [name for first in LEAVES for second in LEAVES for name in (first, second)]
    for name in way:
        wanted = render(LEAVES[name])
        delta = converge(await frr.running(), wanted, PORTS)
        await frr.check(delta or "!\n")
        await frr.load(delta)
        running = await frr.running()
        assert differences(running, wanted, PORTS) == [], name
        assert converge(running, wanted, PORTS) == "", name
    assert f"{PROFILE}datacenter" in (await frr.running()).lines


async def test_what_an_operator_has_in_frr_outlives_every_delta(frr: Vtysh) -> None:
    theirs = (
        "ip route 0.0.0.0/0 192.0.2.7 nexthop-vrf mgmt\n"
        "ip route 198.51.100.0/24 192.0.2.2 tag 7 nexthop-vrf mgmt\n"
        "ip prefix-list blue seq 5 permit 10.0.0.0/8 le 32\n"
        "route-map blue permit 10\n match ip address prefix-list blue\nexit\n"
        "vrf blue\n vni 77\nexit-vrf\n"
        "router bgp 65000 vrf blue\n neighbor 192.0.2.9 remote-as 65001\nexit\n"
    )
    await frr.load(f"{PROFILE}datacenter\n" + theirs)
    for name in (*LEAVES, "no-tenants"):
        await frr.load(converge(await frr.running(), render(LEAVES[name]), PORTS))
    running = (await frr.running()).text()
    for line in theirs.splitlines():
        assert line in running or line.startswith("exit"), line


async def test_an_instance_of_another_profile_is_seen_and_its_policy_taken_out(frr: Vtysh) -> None:
    leaf = LEAVES["no-tenants"]
    await frr.load(f"router bgp {leaf.asn}\n neighbor FABRIC peer-group\nexit\n")
    (found,) = check_running(leaf, await frr.running())
    assert "the profile traditional" in found
    # As somebody does who follows the advice by halves: the instance keeps what it was made with.
    await frr.load(f"{PROFILE}datacenter\n")
    assert check_running(leaf, await frr.running()) == []
    assert any("ebgp-requires-policy" in line for line in differences(await frr.running(), render(leaf), PORTS))
    await frr.load(converge(await frr.running(), render(leaf), PORTS))
    assert differences(await frr.running(), render(leaf), PORTS) == []


async def test_frr_itself_refuses_what_the_checks_refuse(frr: Vtysh) -> None:
    """The reasons for our checks: each of these passes `vtysh -C`, and is no good."""
    leaf = LEAVES["one-tenant"]
    await frr.load(render(leaf).text())
    for text in ("vrf blue\n vni 104001\nexit-vrf\n", "vni 104001\n"):
        await frr.check(text)
        with pytest.raises(FrrError, match="VNI 104001 is already configured as L3-VNI"):
            await frr.load(text)
        (found,) = check_running(leaf, parse(text))
        assert "so Vrf104001 cannot have it" in found
    (found,) = check_running(replace(leaf, asn=65000), await frr.running())
    assert "asn: FRR runs `router bgp 4200000011`" in found
