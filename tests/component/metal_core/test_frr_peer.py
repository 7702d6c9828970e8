"""FRR's own judgement of what is rendered. FRR comes from Debian's package; `vtysh -C` needs no running daemon."""

from __future__ import annotations

import importlib.util
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from metal_core.frr.delta import converge, detach, retire
from metal_core.frr.model import Configuration
from metal_core.frr.render import render
from metal_core.vtysh import FrrError, NoFrr, Vtysh, find

VTYSH = shutil.which("vtysh") or shutil.which("vtysh", path="/usr/bin:/usr/lib/frr")
REQUIRED = os.environ.get("METALPLANE_REQUIRE_PEERS") == "1"
peer = pytest.mark.skipif(VTYSH is None and not REQUIRED, reason="FRR is not installed (`make peers`)")


def golden_leaves() -> dict[str, Any]:
    """The leaves of the golden files, so that what is compared there is also what FRR accepts."""
    path = Path(__file__).parents[2] / "unit" / "metal_core" / "test_render.py"
    spec = importlib.util.spec_from_file_location("golden_leaves", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return dict(module.LEAVES)


LEAVES = golden_leaves()


@pytest.fixture
def vtysh(tmp_path: Path) -> Vtysh:
    """The real program, working on files that it may read."""
    assert VTYSH is not None, "METALPLANE_REQUIRE_PEERS is set and there is no vtysh"
    return Vtysh((VTYSH,), tmp_path)


@pytest.mark.peer
@peer
@pytest.mark.parametrize("name", LEAVES)
async def test_frr_accepts_every_golden_configuration(vtysh: Vtysh, name: str) -> None:
    await vtysh.check(render(LEAVES[name]).text())


@pytest.mark.peer
@peer
@pytest.mark.parametrize("first", LEAVES)
@pytest.mark.parametrize("second", LEAVES)
async def test_frr_accepts_the_commands_between_any_two_of_them(vtysh: Vtysh, first: str, second: str) -> None:
    before, after = render(LEAVES[first]), render(LEAVES[second])
    ports = {port.name for leaf in LEAVES.values() for port in leaf.ports}
    for commands in (
        converge(Configuration(), after, ports),
        converge(before, after, ports),
        detach(before, ports),
        retire(before, [vrf.name for vrf in LEAVES[first].vrfs]),
    ):
        if commands:
            await vtysh.check(commands)


@pytest.mark.peer
@peer
async def test_frr_refuses_what_is_no_command(vtysh: Vtysh) -> None:
    with pytest.raises(FrrError, match="failed"):
        await vtysh.check("router bgp 0\n bgp rooter-id 1\nexit\n")


async def test_where_frr_is_missing_the_stand_in_says_so(tmp_path: Path) -> None:
    for command in ((), ("no-such-vtysh",)):
        frr = find(command, tmp_path)
        assert isinstance(frr, NoFrr)
        assert not frr.present


def script(tmp_path: Path, body: str) -> Vtysh:
    """A vtysh that does what the test wants."""
    path = tmp_path / "vtysh"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return Vtysh((str(path),), tmp_path)


async def test_what_vtysh_complains_about_is_passed_on(tmp_path: Path) -> None:
    with pytest.raises(FrrError, match=r"failed \(2\): line 3: % Unknown command"):
        await script(tmp_path, "echo 'line 3: % Unknown command' >&2; exit 2").load("x\n")


async def test_a_vtysh_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("metal_core.vtysh.CALL_LIMIT", 0.2)
    with pytest.raises(FrrError, match="did not end within"):
        await script(tmp_path, "exec sleep 60").running()


async def test_the_delta_is_handed_over_as_one_file(tmp_path: Path) -> None:
    frr = script(tmp_path, f'echo "$@" >> {tmp_path}/calls; cp "$2" {tmp_path}/seen')
    await frr.load("vrf Vrf1\n vni 1\nexit-vrf\n")
    assert (tmp_path / "seen").read_text() == "vrf Vrf1\n vni 1\nexit-vrf\n"
    assert (tmp_path / "calls").read_text() == f"-f {tmp_path}/delta.conf\n"
    await frr.load("")
    assert (tmp_path / "calls").read_text().count("\n") == 1


async def test_the_running_configuration_is_what_vtysh_prints(tmp_path: Path) -> None:
    frr = script(tmp_path, "printf 'Building configuration...\\n\\nvrf Vrf1\\n vni 1\\nexit-vrf\\n!\\nend\\n'")
    assert (await frr.running()).block("vrf Vrf1").lines == ("vni 1",)
