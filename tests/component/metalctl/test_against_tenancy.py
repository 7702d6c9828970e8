"""The program over real gRPC: pages, tokens, names, and planes that cannot be spoken to."""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import asyncpg
from metal_kit.ca import Authority
from metal_kit.identity import client_id, service_id

NOBODY = "0198c1d2-0000-7000-8000-00000000dead"
SECRET = re.compile(r"eyJ[\w.-]{20,}")


async def test_a_list_longer_than_a_page_is_whole(tenancy: Any, new_context: Any, metalctl: Any) -> None:
    connection = await asyncpg.connect(tenancy.url)
    try:
        await connection.execute(
            "INSERT INTO tenancy.tenant (id, name) SELECT gen_random_uuid(), 't' || n FROM generate_series(1, 1203) n"
        )
    finally:
        await connection.close()
    context = new_context(tenancy.running.address, tenancy.secret)
    table, as_json, some, last = await metalctl(
        context,
        ["tenant", "list"],
        ["tenant", "list", "-o", "json"],
        ["tenant", "list", "--limit", "701"],
        ["tenant", "get", "t1203", "-o", "json"],
    )
    names = {f"t{n}" for n in range(1, 1204)}
    assert {line.split()[1] for line in table.out.splitlines()[1:]} == names
    assert {each["name"] for each in as_json.json()} == names
    ids = [line.split()[0] for line in table.out.splitlines()[1:]]
    assert ids == sorted(ids) == [each["id"] for each in as_json.json()]
    assert len(some.out.splitlines()) == 1 + 701
    assert last.json()["name"] == "t1203"


async def test_a_first_hour_with_tenants_projects_and_tokens(tenancy: Any, new_context: Any, metalctl: Any) -> None:
    context = new_context(tenancy.running.address, tenancy.secret)
    made = await metalctl(
        context,
        ["tenant", "create", "initech", "--description", "makes TPS reports"],
        ["project", "create", "demo", "--tenant", "initech", "--quota", "2"],
        ["-o", "json", "project", "get", "demo"],
        ["-o", "json", "token", "create", "--user", "bob", "--project", "demo=viewer", "--hours", "0.5"],
        ["token", "list", "--user", "bob"],
        ["-o", "json", "token", "list"],
    )
    assert [each.code for each in made] == [0] * len(made), made
    project, token = made[2].json(), made[3].json()
    assert (project["name"], project["machine_quota"]) == ("demo", 2)
    assert token["token"]["project_roles"] == {project["id"]: "ROLE_VIEWER"}
    assert made[3].out.count(token["secret"]) == 1, "shown once"
    assert token["token"]["id"] in made[4].out
    for later in made[4:]:
        assert not SECRET.search(later.out + later.err), "and never again"

    mine, foreign, grown, roles = await metalctl(
        context,
        ["whoami", "-o", "json"],
        ["tenant", "create", "mine"],
        ["project", "delete", "demo"],
        ["token", "create", "--project", "demo=owner"],
        token=token["secret"],
    )
    assert (mine.json()["name"], mine.json()["kind"]) == ("bob", "user")
    for refused in (foreign, grown, roles):
        assert (refused.code, refused.out) == (4, "")
        assert re.fullmatch(r"metalctl: [^\n]+ \[\w+\]; what you have: metalctl whoami\n", refused.err)

    ended, _ = await metalctl(
        context, ["token", "revoke", token["token"]["id"]], ["token", "revoke", token["token"]["id"]]
    )
    assert (ended.code, ended.out, ended.err) == (0, "", "")
    [listed] = await metalctl(context, ["token", "list", "--user", "bob"])
    assert listed.out.splitlines()[1].split()[2:4] == ["-", "revoked"]
    deadline = time.monotonic() + 6
    while (late := (await metalctl(context, ["whoami"], token=token["secret"]))[0]).code == 0:
        assert time.monotonic() < deadline, "a revoked token holds for five seconds at most"
    assert late.code == 4
    assert late.err.endswith("[TOKEN_INVALID]; the token is from $METALPLANE_TOKEN\n")


async def test_refusals_name_the_field_and_end_with_their_code(tenancy: Any, new_context: Any, metalctl: Any) -> None:
    context = new_context(tenancy.running.address, tenancy.secret)
    cases = [
        (["tenant", "get", NOBODY], 3, NOBODY),
        (["project", "get", "nobody"], 3, "'nobody'"),
        (["project", "create", "p", "--tenant", "nobody"], 3, "'nobody'"),
        (["tenant", "create", "Not-Lower"], 2, "tenant.name: "),
        (["tenant", "create", ""], 2, "tenant.name: "),
        (["project", "create", "p" * 64, "--tenant", NOBODY], 2, "project.name: "),
        (["token", "create", "--user", "x" * 257], 2, "token.user: "),
        (["token", "revoke", "7"], 2, "id: "),
        (["token", "revoke", NOBODY], 3, NOBODY),
        (["token", "create", "--project", f"{NOBODY}=viewer"], 3, NOBODY),
        (["machine", "list"], 1, f"look at endpoints in {context}"),
    ]
    outcomes = await metalctl(context, *(line for line, _, _ in cases))
    for outcome, (line, code, said) in zip(outcomes, cases, strict=True):
        assert (outcome.code, outcome.out) == (code, ""), line
        assert said in outcome.err
        assert re.fullmatch(r"metalctl: [^\n]+\n", outcome.err), line
    [left] = await metalctl(context, ["tenant", "list", "-o", "json"])
    assert left.json() == [], "nothing was written"


async def test_one_name_in_two_tenants_is_ambiguous_and_deletes_neither(
    tenancy: Any, new_context: Any, metalctl: Any
) -> None:
    context = new_context(tenancy.running.address, tenancy.secret)
    *_, refused, listed = await metalctl(
        context,
        ["tenant", "create", "a"], ["tenant", "create", "b"],
        ["project", "create", "web", "--tenant", "a"], ["project", "create", "web", "--tenant", "b"],
        ["project", "delete", "web"], ["project", "list", "-o", "json"],
    )  # fmt: skip
    projects = listed.json()
    assert len(projects) == 2
    assert (refused.code, refused.out) == (1, "")
    for project in projects:
        assert project["id"] in refused.err
    [outcome] = await metalctl(context, ["project", "delete", projects[0]["id"]])
    assert outcome.code == 0


async def test_tokens_that_do_not_hold_are_told_apart_from_planes_that_do_not_answer(
    tenancy: Any, new_context: Any, metalctl: Any, authority: Authority, tmp_path: Path
) -> None:
    good = new_context(tenancy.running.address, tenancy.secret)
    cut = tenancy.secret[:-6] + "AAAAAA"
    for token in ("nonsense", cut):
        [outcome] = await metalctl(good, ["whoami"], token=token)
        assert (outcome.code, outcome.out) == (4, "")
        assert "[TOKEN_INVALID]" in outcome.err
        assert token not in outcome.err

    ended = authority.issue("ended", client_id("ended"), ttl=timedelta(seconds=-5))
    cert, key = ended.save(tmp_path, "ended")
    expired = new_context(tenancy.running.address, tenancy.secret, cert=str(cert), key=str(key))
    [outcome] = await metalctl(expired, ["whoami"])
    assert outcome.code == 5
    assert re.fullmatch(
        rf"metalctl: the certificate {cert} ended at [-\d]+ [:\d]+Z; get a new one \[\w+\]\n", outcome.err
    )

    (tmp_path / "foreign").mkdir()
    Authority.create("another").save(tmp_path / "foreign")
    foreign = new_context(tenancy.running.address, tenancy.secret, ca=str(tmp_path / "foreign" / "ca.crt"))
    cert, key = Authority.create("another").issue("x", client_id("x")).save(tmp_path, "x")
    unknown = new_context(tenancy.running.address, tenancy.secret, cert=str(cert), key=str(key))
    for context in (foreign, unknown):
        [outcome] = await metalctl(context, ["whoami"])
        assert outcome.code == 5
        assert "answers, but not to this context" in outcome.err
        assert outcome.err.count("\n") == 1

    server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()
    began = time.monotonic()
    [outcome] = await metalctl(new_context(f"127.0.0.1:{port}", tenancy.secret), ["whoami"])
    assert (outcome.code, outcome.out) == (5, "")
    assert f"tenancy at 127.0.0.1:{port} cannot be reached; is the plane of context test (" in outcome.err
    assert time.monotonic() - began < 8


@asynccontextmanager
async def relay(address: str, *, delay: float) -> AsyncIterator[int]:
    """A port on which the address is reached over a long line; with an infinite delay nothing comes through."""
    tasks: set[asyncio.Task[None]] = set()
    writers: list[asyncio.StreamWriter] = []

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            await asyncio.sleep(delay)  # the line's length, which is what is under test
            writer.write(data)
        writer.close()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, port = address.rsplit(":", 1)
        there, back = await asyncio.open_connection(host, int(port))
        writers.extend((writer, back))
        tasks.update(asyncio.create_task(carry(*pair)) for pair in ((reader, back), (there, writer)))

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for writer in writers:
            writer.close()


async def test_a_server_that_never_answers_is_given_up_in_time(tenancy: Any, new_context: Any, metalctl: Any) -> None:
    async with relay(tenancy.running.address, delay=float("inf")) as port:
        began = time.monotonic()
        [outcome] = await metalctl(new_context(f"127.0.0.1:{port}"), ["whoami"])
        assert (outcome.code, outcome.out) == (5, "")
        assert re.fullmatch(rf"metalctl: tenancy at 127\.0\.0\.1:{port} [^\n]+ \[TRANSPORT_\w+\]\n", outcome.err)
        assert time.monotonic() - began < 15


async def test_a_plane_on_another_continent_is_reached(tenancy: Any, new_context: Any, metalctl: Any) -> None:
    """A handshake takes two round trips: here a second."""
    async with relay(tenancy.running.address, delay=0.25) as port:
        [outcome] = await metalctl(new_context(f"127.0.0.1:{port}", tenancy.secret), ["whoami"])
    assert (outcome.code, outcome.err) == (0, "")


@asynccontextmanager
async def process(context: Path, command: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """A shell that runs a command line, in which `metalctl` is the program."""
    environment = dict(os.environ) | {"METALPLANE_CONTEXT": str(context), "METALPLANE_TOKEN": ""}
    line = command.replace("metalctl", f"{sys.executable} -m metalctl")
    started = await asyncio.create_subprocess_exec(
        "bash", "-c", line, env=environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    try:
        yield started
    finally:
        if started.returncode is None:
            started.kill()
            await started.wait()


async def test_a_reader_that_has_enough_ends_the_program_without_a_word(tenancy: Any, new_context: Any) -> None:
    connection = await asyncpg.connect(tenancy.url)
    try:
        # More than the kernel keeps for a reader that does not come.
        await connection.execute(
            "INSERT INTO tenancy.tenant (id, name) SELECT gen_random_uuid(), 't' || n FROM generate_series(1, 3000) n"
        )
    finally:
        await connection.close()
    context = new_context(tenancy.running.address, tenancy.secret)
    async with (
        process(context, 'metalctl tenant list | head -1; echo "${PIPESTATUS[0]}"') as shell,
        asyncio.timeout(60),
    ):
        out, err = await shell.communicate()
    header, code = out.decode().splitlines()
    assert header.split() == ["ID", "NAME", "AGE"]
    assert code == "141"
    assert err == b""


async def test_text_that_the_terminal_cannot_show_is_no_traceback(tenancy: Any, new_context: Any) -> None:
    context = new_context(tenancy.running.address, tenancy.secret)
    line = (
        "metalctl tenant create t --description 'Zürich 東京' >&2; export PYTHONIOENCODING=ascii; "
        "metalctl tenant list -o json; metalctl tenant get t | grep description"
    )
    async with process(context, line) as shell, asyncio.timeout(60):
        out, _ = await shell.communicate()
    as_json, _, pairs = out.decode("ascii").rpartition("]\n")
    assert json.loads(as_json + "]")[0]["description"] == "Zürich 東京"
    assert pairs.split() == ["description", r"Z\xfcrich", r"\u6771\u4eac"]


async def test_members_are_set_listed_and_removed(tenancy: Any, new_context: Any, metalctl: Any) -> None:
    context = new_context(tenancy.running.address, tenancy.secret)
    made = await metalctl(
        context,
        ["tenant", "create", "hooli"],
        ["project", "create", "box", "--tenant", "hooli"],
        ["tenant", "set-member", "hooli", "gavin", "owner"],
        ["project", "set-member", "box", "richard", "viewer"],
        ["project", "set-member", "box", "richard", "editor"],
        ["tenant", "members", "hooli"],
        ["project", "members", "box", "-o", "json"],
        ["project", "remove-member", "box", "richard"],
        ["project", "remove-member", "box", "richard"],
        ["project", "members", "box"],
    )
    assert [each.code for each in made] == [0] * len(made), made
    assert made[5].out.splitlines()[1].split() == ["gavin", "owner"]
    assert made[6].json() == [{"user": "richard", "role": "ROLE_EDITOR"}]
    assert len(made[9].out.splitlines()) == 1
    missing, mistyped = await metalctl(
        context, ["project", "set-member", NOBODY, "richard", "viewer"], ["tenant", "set-member", "hooli", "x", "king"]
    )
    assert (missing.code, missing.out) == (3, "")
    assert mistyped.code == 2
    assert "'viewer', 'editor', 'owner'" in mistyped.err


async def test_a_service_tells_what_is_wrong_with_it_to_those_who_may_see_the_plane(
    tenancy: Any, new_context: Any, metalctl: Any, authority: Authority
) -> None:
    files = tenancy.running.runtime.identity
    ending = authority.issue("tenancy", service_id("tenancy"), ["tenancy.metalplane"], ttl=timedelta(seconds=50))
    ending.save(files.cert.parent, files.cert.stem)
    connection = await asyncpg.connect(tenancy.url)
    try:
        await connection.execute(
            "INSERT INTO tenancy.outbox (msg_id, subject, envelope, created_at) "
            "VALUES ('m', 's', '', now() - interval '2 hours')"
        )
    finally:
        await connection.close()
    context = new_context(tenancy.running.address, tenancy.secret)
    listed, table, made = await metalctl(
        context, ["issues", "-o", "json"], ["issues"], ["token", "create", "--user", "otto", "-o", "json"]
    )
    found = {each["id"]: each for each in listed.json()}
    assert set(found) == {"certificate/own", "events/waiting"}
    assert found["events/waiting"]["severity"] == "PLANE_ISSUE_SEVERITY_CRITICAL"
    assert table.code == 0
    assert "tls" not in table.out.splitlines()[0]
    assert "certificate of the service" in table.out
    (refused,) = await metalctl(context, ["issues"], token=made.json()["secret"])
    assert (refused.code, refused.out) == (4, "")
    assert "plane role viewer" in refused.err
