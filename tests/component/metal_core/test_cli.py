"""What people do on a leaf without the plane: no certificate, no partition, nothing but Redis and a directory."""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from metal_core.cli.main import main
from metal_core.cli.parser import parse
from metal_core.cli.wish import is_local
from metal_core.configdb import owned, render
from metal_core.confirm import Trials
from metal_core.desired import Desired, Fec, Port, PortRole, Vrf, to_json
from metal_core.frr.render import render as render_frr
from metal_core.lock import LeafLock
from metal_core.outcome import Failure, Outcome
from metal_core.quarantine import Quarantine

UPLINKS = (Port("Ethernet120", PortRole.UPLINK), Port("Ethernet124", PortRole.UPLINK))
BARE = Desired(
    "leaf01", 5, "five", 4200000011, "10.0.0.11", 4000, (*UPLINKS, Port("Ethernet0", PortRole.UNPROVISIONED))
)
TENANT = replace(
    BARE,
    generation=6,
    digest="six",
    ports=(*UPLINKS, Port("Ethernet0", PortRole.MACHINE, vrf="Vrf2000", allowed_prefixes=("10.1.0.1/32",))),
    vrfs=(Vrf("Vrf2000", 2000, 1001),),
)


@dataclass
class Console:
    """Runs commands on the leaf as its operator does, and keeps what they have said."""

    bench: Any
    directory: Path
    capsys: pytest.CaptureFixture[str]
    out: str = ""
    err: str = ""

    async def run(self, *arguments: str) -> int:
        """Carry out one command; its exit code."""
        self.capsys.readouterr()
        code = await asyncio.to_thread(main, parse([*arguments]))
        self.out, self.err = self.capsys.readouterr()
        return code

    def wish(self, desired: Desired, **changes: Any) -> str:
        """A file with a state, as somebody has edited it."""
        path = self.directory / "wish.json"
        path.write_text(json.dumps(to_json(desired) | changes))
        return str(path)

    async def has(self, desired: Desired) -> bool:
        """Whether CONFIG_DB is as the state wants it."""
        rows, target = owned(await self.bench.sonic.config(), desired), render(desired, "vtep")
        return rows.keys() == target.keys() and all(rows[key].items() >= row.items() for key, row in target.items())


@pytest.fixture
def console(bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Console:
    """A shell on a leaf without FRR whose agent does not run."""
    monkeypatch.setenv("METALPLANE_STATE_DIRECTORY", str(bench.known_good.path.parent))
    monkeypatch.setenv("METALPLANE_FRR_CONF", str(bench.frr_conf))
    monkeypatch.setenv("METALPLANE_DATABASE_CONFIG", str(bench.leaf.database_config))
    monkeypatch.setenv("METALPLANE_VTYSH", "")
    return Console(bench, tmp_path, capsys)


def use_frr(console: Console, monkeypatch: pytest.MonkeyPatch, running: str) -> None:
    """Give the leaf an FRR that runs `running`, and takes every text as long as there is no file `refusing`."""
    (console.directory / "running").write_text(running)
    vtysh = console.directory / "vtysh"
    vtysh.write_text(
        f"""#!/bin/sh
cd {console.directory}
case "$1" in
-c) echo " zebra bgpd staticd"; cat running ;;
-C) ! test -e refusing || {{ echo "line 1: % Unknown command"; exit 2; }} ;;
-f) cp "$2" loaded ;;
esac
"""
    )
    vtysh.chmod(0o755)
    monkeypatch.setenv("METALPLANE_VTYSH", str(vtysh))


async def test_a_state_goes_from_a_file_to_the_leaf_and_back(console: Console) -> None:
    assert await console.run("status") == 3
    assert "known good:  nothing yet" in console.out
    assert await console.run("apply", "--wish", console.wish(BARE)) == 0, console.err
    assert await console.has(BARE)
    assert await console.run("plan", "--wish", console.wish(TENANT)) == 0
    assert "CONFIG_DB: delete\n     VLAN_MEMBER|Vlan4000|Ethernet0\n" in console.out
    assert "wait until Ethernet0: bridge port gone" in console.out
    assert await console.run("apply", "--dry-run", "--wish", console.wish(TENANT), "-o", "json") == 0
    assert {"step": "delete", "rows": ["VLAN_MEMBER|Vlan4000|Ethernet0"]} in json.loads(console.out)["steps"]
    assert await console.has(BARE), "a dry run changes nothing"
    assert await console.run("diff", "--wish", console.wish(TENANT)) == 1
    assert "VRF|Vrf2000: wanted 'fallback=false, vni=2000', found none\n" in console.out
    assert await console.run("apply", "--wish", console.wish(TENANT)) == 0
    assert await console.has(TENANT)
    assert await console.run("diff") == 0
    assert await console.run("status") == 0
    assert "differs:     in nothing" in console.out
    assert await console.run("rollback", "--previous", "--dry-run") == 0
    assert "VRF|Vrf2000" in console.out
    assert await console.has(TENANT)
    assert await console.run("rollback", "--previous") == 0
    assert await console.has(BARE)
    assert await console.run("rollback", "--previous") == 0
    assert await console.has(TENANT), "the way back has a way back"
    assert console.bench.leaf.violations == []


async def test_what_somebody_changed_is_shown_and_rolled_back(console: Console) -> None:
    assert (await console.bench.applier().apply(TENANT)).applied
    await console.bench.sonic.write({"PORT|Ethernet0": {"mtu": "1500"}}, {})
    assert await console.run("status") == 1
    assert "differs:     1 fields or rows, 0 lines of FRR" in console.out
    assert await console.run("diff") == 1
    assert console.out == "PORT|Ethernet0 mtu: wanted '9000', found '1500'\n"
    assert await console.run("rollback") == 0
    assert "1 rows changed" in console.out
    assert await console.run("diff", "-o", "json") == 0
    assert json.loads(console.out) == {"rows": [], "frr": []}
    assert await console.run("plan") == 0
    assert console.out == f"Nothing to do: the leaf has the last known good state ({_when(console.out)}).\n"


def _when(said: str) -> str:
    return said.partition("(")[2].rpartition(")")[0]


async def test_what_a_port_was_before_is_shown_on_its_way_back(console: Console) -> None:
    uplinks = (replace(UPLINKS[0], speed=40_000, fec=Fec.RS), *BARE.ports[1:])
    slower = replace(BARE, generation=6, digest="slower", ports=uplinks)
    for desired in (BARE, slower):
        assert (await console.bench.applier().apply(desired)).applied
    assert await console.run("diff") == 0, console.out
    assert await console.run("rollback", "--previous", "--dry-run") == 0
    assert "PORT|Ethernet120" in console.out
    assert await console.run("diff", "--wish", console.wish(BARE)) == 0, "what a new state does not set stays as it is"
    assert await console.run("rollback", "--previous") == 0
    row = (await console.bench.sonic.config())["PORT|Ethernet120"]
    assert (row["speed"], row.get("fec")) == ("100000", None)
    assert await console.run("diff") == 0, console.out


async def test_what_is_on_trial_and_what_was_set_aside_is_shown_and_the_way_back_is_the_known_good_one(
    console: Console,
) -> None:
    assert (await console.bench.applier().apply(BARE)).applied
    trials = Trials(console.bench.known_good, limit=60)
    await trials.begin(TENANT)
    assert await console.run("apply", "--dry-run", "--wish", console.wish(TENANT)) == 0
    assert await console.run("status") == 0
    assert "on trial:    generation 6, not proven yet\n" in console.out
    await trials.proven(TENANT)
    quarantine = Quarantine(console.bench.known_good.path.parent)
    await quarantine.cut_off(replace(TENANT, generation=7), "it cut the leaf off")
    assert await console.run("status") == 1, "the leaf does not have what is on trial"
    assert "on trial:    generation 6, until the plane is heard\n" in console.out
    assert "failed:      generation 7, it cut the leaf off\n" in console.out
    assert await console.run("status", "-o", "json") == 1
    assert json.loads(console.out)["on_trial"]["generation"] == 6
    assert await console.run("rollback") == 0
    assert await console.run("status") == 0
    assert "on trial" not in console.out
    assert await console.has(BARE)


async def test_what_is_printed_can_be_edited_and_used(console: Console) -> None:
    assert (await console.bench.applier().apply(TENANT)).applied
    assert await console.run("render", "-o", "json") == 0
    printed = json.loads(console.out)
    assert printed["configdb"] == render(TENANT, "vtep")
    assert printed["frr"] == render_frr(TENANT).text()
    edited = console.directory / "edited.json"
    edited.write_text(console.out.replace('"mtu": 0', '"mtu": 9100'))
    assert await console.run("apply", "--wish", str(edited), "-o", "json") == 0
    assert json.loads(console.out)["rows"] == 3
    assert (await console.bench.sonic.config())["PORT|Ethernet0"]["mtu"] == "9100"
    assert await console.run("status") == 0
    assert "known good:  generation 6, changed by hand of " in console.out
    assert await console.run("render", "--only", "frr") == 0
    assert console.out == render_frr(TENANT).text()
    assert await console.run("render", "--only", "configdb") == 0
    assert json.loads(console.out)["VRF"] == {"Vrf2000": {"vni": "2000", "fallback": "false"}}


async def test_a_state_of_ones_own_never_passes_for_the_planes(console: Console) -> None:
    assert (await console.bench.applier().apply(TENANT)).applied
    assert await console.run("apply", "--wish", console.wish(TENANT, ports=to_json(BARE)["ports"], vrfs=[])) == 0
    good = await console.bench.known_good.load()
    assert good.desired.generation == 6
    assert is_local(good.desired)
    assert await console.run("apply", "--wish", console.wish(good.desired)) == 0
    assert (await console.bench.known_good.load()).desired == good.desired, "the same content stays the same state"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "wish.json: not JSON: "),
        ("[]", "wish.json: the state: must be an object with named fields"),
        (json.dumps(to_json(TENANT) | {"asn": "x"}), "wish.json: asn: 'x' must be a whole number"),
        (json.dumps(to_json(TENANT) | {"vlan": 7}), "wish.json: vlan: there is no such field"),
        (json.dumps(to_json(TENANT) | {"vrfs": []}), "wish.json: ports['Ethernet0'].vrf: 'Vrf2000' is not among"),
    ],
)
async def test_a_file_with_a_mistake_is_refused_with_its_place(console: Console, content: str, message: str) -> None:
    path = console.directory / "wish.json"
    path.write_text(content)
    for command in ("render", "diff", "plan", "apply"):
        assert await console.run(command, "--wish", str(path)) == 2
        assert message in console.err
        assert console.err.startswith("metal-core: ")
        assert console.err.count("\n") == 1
        assert console.out == ""


async def test_a_file_that_is_not_there_and_a_memory_that_is_not_have_codes_of_their_own(console: Console) -> None:
    assert await console.run("plan", "--wish", str(console.directory / "nowhere.json")) == 2
    assert "nowhere.json: No such file or directory" in console.err
    for words in ("diff", "apply", "rollback", "rollback --previous", "render"):
        assert await console.run(*words.split()) == 3
        assert "known-good.json: there is no" in console.err


async def test_the_state_of_another_leaf_is_refused_and_nothing_is_touched(console: Console) -> None:
    before = await console.bench.sonic.config()
    assert await console.run("apply", "--wish", console.wish(replace(TENANT, switch_id="leaf02"))) == 1
    assert "refused: switch_id: the state is for 'leaf02', this is 'leaf01'" in console.err
    assert await console.bench.sonic.config() == before


async def test_while_the_agent_holds_the_leaf_people_may_only_look(console: Console) -> None:
    assert (await console.bench.applier().apply(BARE)).applied
    wish = console.wish(TENANT)
    with LeafLock(console.bench.known_good.path.parent).held("the agent"):
        for change in (("apply", "--wish", wish), ("rollback",)):
            assert await console.run(*change) == 4
            assert "the agent, process " in console.err
        for command, code in (
            (("plan", "--wish", wish), 0),
            (("apply", "--wish", wish, "--dry-run"), 0),
            (("diff",), 0),
        ):
            assert await console.run(*command) == code
        assert await console.run("status") == 0
        assert "held by:     the agent, process " in console.out
    assert await console.has(BARE)


async def test_what_was_set_aside_is_tried_again_when_a_person_says_so(console: Console) -> None:
    directory = console.bench.known_good.path.parent
    quarantine = Quarantine(directory)
    assert await console.run("retry") == 0
    assert console.out == "Nothing is set aside here: whatever the plane wants is tried.\n"
    await quarantine.failed(TENANT, Outcome(False, "no", failure=Failure.FAILED))
    assert await console.run("retry") == 0
    assert "generation 6 failed, attempt 1, and is tried again by itself" in console.out
    await quarantine.cut_off(TENANT, "it cut the leaf off")
    with LeafLock(directory).held("the agent"):
        assert await console.run("retry") == 0
    assert "Generation 6 is tried again by the agent, process " in console.out
    assert console.out.endswith("It was set aside: it cut the leaf off\n")
    assert await quarantine.ended_by_a_person()
    await quarantine.cut_off(TENANT, "once more")
    assert await console.run("retry", "-o", "json") == 0
    assert json.loads(console.out) == {"tried_again": {"generation": 6, "reason": "once more"}, "held_by": ""}
    assert await console.run("retry", "-o", "json") == 0
    assert json.loads(console.out) == {"tried_again": None, "held_by": ""}


async def test_a_quarantine_that_cannot_be_ended_is_an_error(console: Console) -> None:
    path = console.bench.known_good.path.with_name("quarantine.json")
    path.mkdir(parents=True)
    assert await console.run("retry") == 1
    assert f"{path}: " in console.err


async def test_without_redis_the_error_says_so(console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (await console.bench.applier().apply(TENANT)).applied
    broken = console.directory / "database_config.json"
    broken.write_text(console.bench.leaf.database_config.read_text().replace(".sock", ".gone"))
    monkeypatch.setenv("METALPLANE_DATABASE_CONFIG", str(broken))
    for command in ("diff", "plan", "status", "apply", "render"):
        assert await console.run(command) == 5
        assert "metal-core: Redis: " in console.err
    assert await console.run("render", "--vtep", "vtep") == 0, "what needs no Redis works without"
    assert "VXLAN_TUNNEL_MAP|vtep|map_2000_Vlan1001 vlan=Vlan1001 vni=2000\n" in console.out


async def test_frr_is_compared_asked_and_told(console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (await console.bench.applier().apply(TENANT)).applied
    missing = "neighbor Ethernet0 interface peer-group MACHINE"
    use_frr(console, monkeypatch, render_frr(TENANT).text().replace(f" {missing}\n", ""))
    assert await console.run("diff") == 1
    assert console.out == f"+ router bgp 4200000011 vrf Vrf2000 / {missing}\n"
    assert await console.run("plan") == 0
    assert (
        f"  1. FRR: the rest, in one batch\n     | router bgp 4200000011 vrf Vrf2000\n     |  {missing}\n"
        in console.out
    )
    assert await console.run("apply") == 1, "this FRR does not change, and that is noticed"
    assert "FRR differs in 1 lines" in console.err
    assert missing in (console.directory / "loaded").read_text()
    (console.directory / "refusing").touch()
    assert await console.run("plan") == 1
    assert "refused: FRR would not take it: vtysh -C failed (2): line 1: % Unknown command" in console.err
    use_frr(console, monkeypatch, render_frr(TENANT).text().replace("4200000011", "65000"))
    for command in ("plan", "apply"):
        assert await console.run(command) == 1
        assert "refused: asn: FRR runs `router bgp 65000`, the state says 4200000011" in console.err


async def test_an_frr_that_fails_is_unreachable_and_leaves_nothing_behind(
    console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (await console.bench.applier().apply(BARE)).applied
    vtysh = console.directory / "vtysh"
    vtysh.write_text("#!/bin/sh\necho Exiting: failed to connect to any daemons.\nexit 1\n")
    vtysh.chmod(0o755)
    monkeypatch.setenv("METALPLANE_VTYSH", str(vtysh))
    assert await console.run("diff") == 5
    assert "failed to connect to any daemons" in console.err
    left = {path.name for path in console.bench.known_good.path.parent.iterdir()}
    assert left == {"last-known-good.json"}


async def test_wrong_settings_name_the_setting(console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METALPLANE_WAIT_SECONDS", "soon")
    assert await console.run("status") == 2
    assert console.err.startswith("metal-core: METALPLANE_WAIT_SECONDS: ")


@pytest.mark.parametrize("arguments", [("plan", "--wish"), ("explode",), ("rollback", "--wish", "x"), ("--status",)])
def test_wrong_usage_is_code_2(arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        parse([*arguments])
    assert stopped.value.code == 2
    assert "usage: metal-core" in capsys.readouterr().err


async def test_a_command_is_a_process_of_its_own_without_the_agent(console: Console) -> None:
    """`python -m metal_core`, as on a leaf; help names all commands and all exit codes."""
    program = (
        "import sys; sys.argv = ['metal-core', *sys.argv[1:]]; from metal_core.__main__ import main\n"
        "try: main()\n"
        "finally: assert 'metal_core.service' not in sys.modules, 'the agent was loaded'\n"
    )
    for arguments, code, text in (
        (("--help",), 0, "    rollback  bring the leaf back to its last known good state"),
        (("--help",), 0, "Exit codes: 0 done, 1 differs"),
        (("rollback", "--help"), 0, "--previous"),
        (("status",), 3, "nobody, the agent does not run"),
    ):
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", program, *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
        out, err = await asyncio.wait_for(process.communicate(), 60)
        assert process.returncode == code, err.decode()
        assert text in out.decode()
