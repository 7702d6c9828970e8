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
from metal_core.vtysh import FrrError, FrrUnavailable, NoFrr, Vtysh, find

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
        after.text() + converge(before, after, ports) + detach(before, ports),
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


async def test_a_leaf_without_a_command_for_vtysh_has_no_frr(tmp_path: Path) -> None:
    frr = find((), tmp_path)
    assert isinstance(frr, NoFrr)
    assert not frr.present


async def test_a_vtysh_that_is_missing_is_a_failure_until_it_is_there(tmp_path: Path) -> None:
    frr = find((str(tmp_path / "vtysh"),), tmp_path)
    assert frr.present
    with pytest.raises(FrrUnavailable, match=r"vtysh: No such file"):
        await frr.running()
    script(tmp_path, answer("vrf Vrf1"))
    assert (await frr.running()).headers("vrf ") == ("vrf Vrf1",)


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        ("echo ' zebra'; echo 'frr version 8.4.4'", "bgpd not running"),
        ("echo 'Exiting: failed to connect to any daemons.' >&2; exit 1", "failed to connect"),
        ("echo 'container bgp is not running' >&2; exit 1", "is not running"),
        ("echo 'cannot find container' >&2; exit 125", "cannot find container"),
        ("kill -9 $$", r"failed \(-9\)"),
    ],
)
async def test_a_daemon_that_is_away_is_no_empty_configuration(tmp_path: Path, body: str, complaint: str) -> None:
    """vtysh itself answers with success while bgpd is down, and everything of BGP would seem to be gone."""
    with pytest.raises(FrrUnavailable, match=complaint):
        await script(tmp_path, body).running()


async def test_commands_that_a_daemon_could_not_take_are_not_refused_commands(tmp_path: Path) -> None:
    body = "echo 'line 2: Failure to communicate[13] to bgpd, line:  neighbor X' >&2; exit 2"
    with pytest.raises(FrrUnavailable):
        await script(tmp_path, body).load("router bgp 1\n")


async def test_a_text_that_frr_has_accepted_is_not_checked_again(tmp_path: Path) -> None:
    frr = script(tmp_path, f'echo "$@" >> {tmp_path}/calls; grep -q rooter "$3" && exit 2; exit 0')
    for text in ("one\n", "one\n", "two\n", "one\n"):
        await frr.check(text)
    for _ in range(2):
        with pytest.raises(FrrError):
            await frr.check("rooter\n")
    assert (tmp_path / "calls").read_text().count("\n") == 4


async def test_only_what_is_new_in_a_text_is_checked(tmp_path: Path) -> None:
    frr = script(tmp_path, f'cat "$3" >> {tmp_path}/asked')
    asked = tmp_path / "asked"
    one = "ip prefix-list a seq 5 permit 10.0.0.0/8\n!\nvrf Vrf1\n vni 1\nexit-vrf\n!\nend\n"
    await frr.check(one)
    assert asked.read_text() == "ip prefix-list a seq 5 permit 10.0.0.0/8\nvrf Vrf1\n vni 1\nexit-vrf\n"
    asked.unlink()
    await frr.check("vrf Vrf1\n vni 1\nip prefix-list a seq 5 permit 10.0.0.0/8\n")
    assert not asked.exists(), "all of it was there, in another order"
    router = "router bgp 1\n neighbor A peer-group\n address-family ipv4 unicast\n  neighbor A activate\n"
    closed = " exit-address-family\nexit\n"
    await frr.check(one.replace("end\n", router + closed))
    assert asked.read_text() == router + closed
    # The same line in another context, and the same context with another line, are something else.
    others = ("neighbor A activate\n", "router bgp 1\n neighbor A activate\n", "vrf Vrf1\n vmi 1\nexit-vrf\n")
    for text in (*others, "ip prefix-list a seq 5 permit 10.0.0.0/8 le 32\n", "ip prefix-list a seq 5 permit 10/8\n"):
        asked.unlink()
        await frr.check(one + text)
        assert asked.read_text() == text


async def test_one_more_tenant_is_nothing_new(tmp_path: Path) -> None:
    frr = script(tmp_path, f'cat "$3" >> {tmp_path}/asked')
    tenant = "ipv6 prefix-list Vrf{0} seq {0} permit 2001:db8:{0}::/48\nvrf Vrf{0}\n vni {0}\nexit-vrf\n"
    await frr.check(tenant.format(1))
    asked = (tmp_path / "asked").read_text()
    await frr.check(tenant.format(2001))
    assert (tmp_path / "asked").read_text() == asked


async def test_a_long_delta_may_take_longer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("metal_core.vtysh.CALL_LIMIT", 0.2)
    monkeypatch.setattr("metal_core.vtysh.LINE_LIMIT", 0.2)
    frr = script(tmp_path, "sleep 1")
    with pytest.raises(FrrUnavailable, match=r"did not end within 0.4 s"):
        await frr.load("vrf Vrf1\n")
    await frr.load("vrf Vrf1\n" * 100)


async def test_sessions_are_those_of_any_family_that_are_established(tmp_path: Path) -> None:
    peers = '{"Ethernet120": {"state": "Established"}, "Ethernet124": {"state": "Idle"}}'
    text = (
        f'{{"ipv4Unicast": {{"peers": {{"10.0.0.1": {{"state": "Established"}}}}}}, "l2VpnEvpn": {{"peers": {peers}}}}}'
    )
    assert await script(tmp_path, answer(text)).established() == {"Ethernet120", "10.0.0.1"}
    assert await script(tmp_path, answer("{}")).established() == frozenset()
    assert await script(tmp_path, answer("% BGP instance not found")).established() == frozenset()


def answer(text: str) -> str:
    """The body of a vtysh that talks to all daemons and answers `text`."""
    return f"cat <<'END'\n zebra bgpd staticd\n{text}\nEND"


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
    with pytest.raises(FrrError, match="did not answer within"):
        await script(tmp_path, "exec sleep 60").running()


async def test_the_delta_is_handed_over_as_one_file(tmp_path: Path) -> None:
    frr = script(tmp_path, f'echo "$@" >> {tmp_path}/calls; cp "$2" {tmp_path}/seen')
    await frr.load("vrf Vrf1\n vni 1\nexit-vrf\n")
    assert (tmp_path / "seen").read_text() == "vrf Vrf1\n vni 1\nexit-vrf\n"
    assert (tmp_path / "calls").read_text() == f"-f {tmp_path}/delta.conf\n"
    await frr.load("")
    assert (tmp_path / "calls").read_text().count("\n") == 1


async def test_the_running_configuration_is_what_vtysh_prints(tmp_path: Path) -> None:
    frr = script(tmp_path, answer("Building configuration...\n\nvrf Vrf1\n vni 1\nexit-vrf\n!\nend"))
    running = await frr.running()
    assert running.block("vrf Vrf1").lines == ("vni 1",)
    assert await frr.running() is running
