"""metalctl against a whole plane: every resource, and a machine to a tenant and back by hand."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.e2e.conftest import World

pytestmark = pytest.mark.timeout(240)
NOBODY = "0198c1d2-0000-7000-8000-00000000dead"
RESOURCES = (
    "tenant", "project", "token", "partition", "machine", "size", "image", "layout", "network", "prefix", "ip", "pool",
    "allocation", "switch", "cable", "bmc", "command",
)  # fmt: skip
WITHOUT_GET = frozenset({"token", "prefix", "pool", "cable"})
KEYS = {"ip": "address", "bmc": "machine"}


@pytest.fixture
def context(world: World) -> Path:
    """The context that the lab has written for its operator."""
    return world.lab.state.path("context.json")


@asynccontextmanager
async def started(context: Path, *arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """The program as a process of its own."""
    environment = dict(os.environ) | {"METALPLANE_CONTEXT": str(context), "METALPLANE_TOKEN": ""}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "metalctl", *arguments, env=environment,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        async with asyncio.timeout(90):
            yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_a_machine_goes_to_a_tenant_and_back_by_hand(world: World, context: Path, metalctl: Any) -> None:
    await world.until_all_waiting()
    made = await metalctl(
        context, ["network", "create", "--project", "e2e", "--partition", "mini", "--name", "by-hand"]
    )
    assert made[0].code == 0, made[0].err
    before = (await metalctl(context, ["machine", "list", "--waiting", "-o", "json"]))[0].json()

    line = ["allocation", "create", "web-1", "--project", "e2e", "--partition", "mini", "--size", "n1-mini",
            "--image", "debian-13", "--network", "by-hand"]  # fmt: skip
    [made] = await metalctl(context, [*line, "-o", "json"])
    allocation = made.json()["id"]
    async with started(context, "allocation", "watch", "web-1") as watching:
        out, err = await watching.communicate()
    assert watching.returncode == 0, err
    phases = [told.split()[1] for told in out.decode().splitlines()]
    assert phases[0] == "binding"
    assert phases[-1] == "running"
    assert "attaching" in phases

    got, row, mine = await metalctl(
        context,
        ["allocation", "get", "web-1", "-o", "json"],
        ["allocation", "list", "--project", "e2e"],
        ["machine", "list", "--project", "e2e", "-o", "json"],
    )
    status = got.json()["status"]
    machine, vrf = status["machine"], status["networks"][0]["vrf"]
    assert [each["id"] for each in mine.json()] == [machine]
    assert machine in {each["id"] for each in before}
    assert [line.split()[:2] for line in row.out.splitlines()[1:]] == [[allocation, "web-1"]]
    ports, reset, missing = await metalctl(
        context, ["switch", "ports", "leaf1"], ["machine", "power", machine, "reset", "-o", "json"],
        ["machine", "power", NOBODY, "on"],
    )  # fmt: skip
    [port] = [each for each in ports.out.splitlines() if machine in each]
    assert port.split()[1:3] == ["machine", f"Vrf{vrf}"]
    assert (reset.json()["state"], reset.json()["machine"]) == ("COMMAND_STATE_SUCCEEDED", machine)
    assert (missing.code, missing.out) == (3, "")

    async with started(context, "allocation", "free", "web-1", "--wait") as freeing:
        out, err = await freeing.communicate()
    assert freeing.returncode == 0
    told = err.decode().splitlines()
    assert told[0] == f"allocation {allocation}"
    assert told[1].split()[1] == "fencing", "not the whole story from the beginning"
    assert out.decode().splitlines()[1].split()[:4] == [allocation, "web-1", world.project, "released"]
    gone, listed, removed = await metalctl(
        context, ["allocation", "get", "web-1"], ["allocation", "list", "--all", "-o", "json"],
        ["network", "delete", "by-hand"],
    )  # fmt: skip
    assert gone.code == 3, "its name is free again"
    assert allocation in {each["id"] for each in listed.json()}
    assert (removed.code, removed.out) == (0, "")
    await world.until_waiting(machine)


async def test_every_resource_is_listed_and_got_as_table_and_as_json(
    world: World, context: Path, metalctl: Any
) -> None:
    await world.until_all_waiting()
    made = await world.allocate()
    await world.until_phase(made.id, "RUNNING")
    lines = [[resource, "list", "-o", how] for resource in RESOURCES for how in ("table", "json")]
    outcomes = await metalctl(context, *lines)
    gets: list[list[str]] = []
    for resource, table, as_json in zip(RESOURCES, outcomes[::2], outcomes[1::2], strict=True):
        found = as_json.json()
        assert (table.code, table.err, as_json.err) == (0, "", "")
        assert found, f"the lab has some of each: {resource}"
        assert len(table.out.splitlines()) == 1 + len(found)
        if resource not in WITHOUT_GET:
            gets += [[resource, "get", found[0][KEYS.get(resource, "id")], "-o", how] for how in ("json", "table")]
    answers = await metalctl(context, *gets)
    for line, answer in zip(gets, answers, strict=True):
        assert (answer.code, answer.err) == (0, ""), line
        assert line[2] in answer.out
        if line[-1] == "json":
            assert isinstance(json.loads(answer.out), dict)

    secret = str((world.lab.state.context() or {})["token"])
    bmc_password = world.lab.state.secrets()["bmc_password"]
    for answer in [*outcomes, *answers]:
        assert secret not in answer.out + answer.err
        assert bmc_password not in answer.out + answer.err
    await world.free(made.id)
    await world.until_phase(made.id, "RELEASED")
    await world.until_waiting((await world.allocation(made.id)).status.machine)


async def test_ids_that_nothing_has_and_texts_that_are_none_are_told_apart(
    world: World, context: Path, metalctl: Any
) -> None:
    resources = [resource for resource in RESOURCES if resource not in WITHOUT_GET]
    missing = {"ip": "192.0.2.199"}
    lines = [[resource, "get", missing.get(resource, NOBODY)] for resource in resources]
    for line, outcome in zip(lines, await metalctl(context, *lines), strict=True):
        assert (outcome.code, outcome.out) == (3, ""), line
        assert line[2] in outcome.err
        assert outcome.err.count("\n") == 1
    wrong = [["machine", "get", "7"], ["bmc", "get", "7"], ["command", "get", "7"], ["machine", "events", "7"],
             ["ip", "get", "10.0.0.256"], ["machine", "list", "--mac", "nonsense"],
             ["machine", "power", "7", "on"]]  # fmt: skip
    for line, outcome in zip(wrong, await metalctl(context, *wrong), strict=True):
        assert (outcome.code, outcome.out) == (2, ""), line
        assert ": " in outcome.err.removeprefix("metalctl: "), "the field is named"


async def test_a_tenants_token_sees_its_own_and_is_refused_the_rest(world: World, context: Path, metalctl: Any) -> None:
    [made] = await metalctl(context, ["token", "create", "--user", "carol", "--project", "e2e=viewer", "-o", "json"])
    uuid = next(iter(world.lab.machines.values())).placed.uuid
    projects, machines, stranger, power, create = await metalctl(
        context,
        ["project", "list", "-o", "json"],
        ["machine", "list", "-o", "json"],
        ["machine", "get", uuid],
        ["machine", "power", uuid, "off"],
        ["allocation", "create", "mine", "--project", "e2e", "--partition", "mini", "--size", "n1-mini",
         "--image", "debian-13", "--network", world.network.id],
        token=made.json()["secret"],
    )  # fmt: skip
    assert [each["name"] for each in projects.json()] == ["e2e"]
    assert machines.json() == []
    assert (stranger.code, stranger.out) == (3, "")
    assert power.code in {3, 4}
    assert (create.code, create.out) == (4, "")
    [revoked] = await metalctl(context, ["token", "revoke", made.json()["token"]["id"]])
    assert revoked.code == 0


async def test_ctrl_c_ends_a_watch_and_not_what_it_watched(world: World, context: Path) -> None:
    await world.until_all_waiting()
    machine = world.machine_named("rack-1-m2")
    made = await world.allocate(machine=machine.placed.uuid)
    await world.lab.fault("no-lldp", "rack-1-m2", True)  # so that it cannot end by itself
    async with started(context, "allocation", "watch", made.id) as watching:
        assert watching.stdout is not None
        assert watching.stderr is not None
        async with asyncio.timeout(60):
            while b"starting" not in await watching.stdout.readline():
                pass
            while b"the installed system is awaited" not in await watching.stderr.readline():
                pass
        watching.send_signal(signal.SIGINT)
        out, err = await watching.communicate()
    assert (watching.returncode, out) == (130, b"")
    said = err.decode().splitlines()
    assert said[-1] == "metalctl: interrupted; the plane goes on without you: `metalctl allocation watch` shows it"
    assert "Traceback" not in err.decode()
    await world.lab.fault("no-lldp", "rack-1-m2", False)
    await world.until_phase(made.id, "RUNNING")
    await world.free(made.id)
    await world.until_phase(made.id, "RELEASED")
    await world.until_waiting(machine.placed.uuid)
