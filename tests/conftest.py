"""Servers that all tests share: one Postgres and one NATS a session, as many Redis as asked for.

Databases are cheap here (a clone of an empty or a migrated template), so that no test sees another's rows. A test that
stops or kills a server starts its own instead of these.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import hypothesis
import nats
import pytest
from metal_kit import logs
from metal_kit.migrations import migrate
from metal_lab.servers import Nats, Postgres, Redis
from together import Together

# How long one example takes says something about the machine and who else is on it, not about the code.
hypothesis.settings.register_profile("house", deadline=None)
hypothesis.settings.load_profile("house")

NewDatabase = Callable[..., Awaitable[str]]
_MEMORY = Path("/dev/shm")
_MEMORY_NEEDED = 2 << 30
_PREFIX = "metalplane-test-"

Eventually = Callable[..., Awaitable[None]]
NewRedis = Callable[[], Awaitable[Redis]]
Metalctl = Callable[..., Awaitable[list["Outcome"]]]


@pytest.fixture(autouse=True, scope="session")
def _first_logs() -> None:
    """Also servers that are made for a whole session, before its first test, write as they do in production: what they
    have bound by then stays as it is, and would be written into the output of other tests."""
    logs.configure()


@pytest.fixture(autouse=True)
def _logs() -> None:
    """Lines of every test go the same way, whatever the tests before it configured."""
    logs.configure()


@pytest.fixture(scope="session")
def server_directory() -> Iterator[Path]:
    """A short path, as Unix sockets need, that the server's user can enter when the tests run as root.

    In memory where there is room: creating a database means hundreds of small files, ten times as fast there.
    """
    parent = Path(tempfile.gettempdir())
    with suppress(OSError):
        if shutil.disk_usage(_MEMORY).free >= _MEMORY_NEEDED and os.access(_MEMORY, os.W_OK):
            parent = _MEMORY
    _remove_left_overs(parent)
    directory = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-", dir=parent))
    directory.chmod(0o711)
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="session")
async def postgres(server_directory: Path) -> AsyncIterator[Postgres]:
    """The session's Postgres; throw-away durability."""
    server = Postgres(server_directory / "postgres", durable=False)
    await server.start()
    yield server
    await server.stop()


@pytest.fixture(scope="session")
async def nats_server(server_directory: Path) -> AsyncIterator[Nats]:
    """The session's NATS with JetStream."""
    server = Nats(server_directory / "nats")
    await server.start()
    yield server
    await server.stop()


@pytest.fixture
async def nats_url(nats_server: Nats) -> str:
    """URL of the session's NATS, without any stream: the events and consumers of earlier tests are gone."""
    client = await nats.connect(nats_server.url)
    try:
        manager = client.jetstream()
        for stream in await manager.streams_info():
            await manager.delete_stream(str(stream.config.name))
    finally:
        await client.close()
    return nats_server.url


@pytest.fixture
async def redis_server(server_directory: Path) -> AsyncIterator[NewRedis]:
    """Starts a Redis of its own at each call, as a switch has one."""
    async with AsyncExitStack() as stack:

        async def start() -> Redis:
            directory = server_directory / f"redis-{uuid4().hex[:8]}"
            server = Redis(directory)
            stack.callback(shutil.rmtree, directory, ignore_errors=True)
            stack.push_async_callback(server.stop)
            await server.start()
            return server

        yield start


@pytest.fixture(scope="session")
def templates() -> dict[tuple[str, str], str]:
    """Names of the migrated databases that tests get clones of, by schema and package."""
    return {}


@pytest.fixture
async def new_database(postgres: Postgres, templates: dict[tuple[str, str], str]) -> AsyncIterator[NewDatabase]:
    """`await new_database()` creates an empty database, `await new_database("ipam", "metal_ipam")` one that has the
    schema `ipam` with that package's migrations; both give the URL. They are dropped after the test."""
    names: list[str] = []

    async def create(schema: str = "", package: str = "") -> str:
        template = "template0"
        if schema:
            if (schema, package) not in templates:
                made = f"template_{uuid4().hex}"
                await _on_server(postgres, _create(made, "template0"))
                await migrate(postgres.database_url(made), schema, package)
                templates[schema, package] = made
            template = templates[schema, package]
        name = f"test_{uuid4().hex}"
        await _on_server(postgres, _create(name, template))
        names.append(name)
        return postgres.database_url(name)

    yield create
    for name in names:
        await _on_server(postgres, f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')


@pytest.fixture
async def database_url(new_database: NewDatabase) -> str:
    """URL of a fresh, empty database."""
    return await new_database()


@pytest.fixture(scope="session")
def eventually() -> Eventually:
    """`await eventually(lambda: ..., seconds=20)` waits until the function (plain or async) gives a true value."""

    async def wait(holds: Callable[[], object], *, seconds: float = 20, what: str = "") -> None:
        loop = asyncio.get_running_loop()
        limit = loop.time() + seconds
        while True:
            value = holds()
            if inspect.isawaitable(value):
                value = await value
            if value:
                return
            if loop.time() > limit:
                pytest.fail(f"still not so after {seconds:g} s: {what or inspect.getsource(holds).strip()}")
            await asyncio.sleep(0.02)

    return wait


@dataclass(frozen=True)
class Outcome:
    """How a run of metalctl ended."""

    code: int
    out: str
    err: str

    def json(self) -> Any:
        """What it printed, of a run with `-o json` that went well."""
        assert self.code == 0, self.err
        return json.loads(self.out)


# One process runs many command lines, one after the other: each alone would load Python and the contracts first.
_METALCTL = """
import contextlib, io, json, sys
from metalctl.__main__ import main
answers = []
for arguments in json.load(sys.stdin):
    sys.argv = ["metalctl", *arguments]
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as ended:
            code = ended.code or 0
    answers.append([code, out.getvalue(), err.getvalue()])
json.dump(answers, sys.stdout)
"""


@pytest.fixture(scope="session")
def metalctl() -> Metalctl:
    """`await metalctl(context, ["machine", "list"], …)` runs the program's main with each of the command lines."""

    async def run(context: Path, *lines: Sequence[str], token: str = "") -> list[Outcome]:
        environment = {name: value for name, value in os.environ.items() if name != "METALPLANE_TOKEN"}
        environment |= {"METALPLANE_CONTEXT": str(context), **({"METALPLANE_TOKEN": token} if token else {})}
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", _METALCTL, env=environment,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        async with asyncio.timeout(60):
            out, err = await process.communicate(json.dumps([list(line) for line in lines]).encode())
        assert process.returncode == 0, err.decode()
        assert err == b"", "nothing may go past Python's standard error"
        return [Outcome(*each) for each in json.loads(out)]

    return run


def _create(name: str, template: str) -> str:
    # Copying the files beats writing them to the log, where both are in memory.
    return f'CREATE DATABASE "{name}" TEMPLATE "{template}" STRATEGY file_copy'


def _remove_left_overs(parent: Path) -> None:
    """Directories of test runs that were killed; in memory they would stay until the next boot."""
    if not Path("/proc/self").exists():
        return
    for directory in parent.glob(f"{_PREFIX}*-*"):
        owner = directory.name.removeprefix(_PREFIX).partition("-")[0]
        if owner.isdigit() and not Path(f"/proc/{owner}").exists():
            shutil.rmtree(directory, ignore_errors=True)


async def _on_server(server: Postgres, statement: str) -> None:
    connection = await asyncpg.connect(server.url, timeout=10)
    try:
        await connection.execute(statement, timeout=30)
    finally:
        await connection.close()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The whole labs first: each is one long piece of work, which at the end only one worker could do."""
    items.sort(key=lambda item: not item.nodeid.startswith("tests/e2e/"))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Together:
    return Together(config, log)
