"""The embedded servers: they start, survive crashes of either side, and leave nothing behind."""

# ruff: noqa: ASYNC220, ASYNC240 (a test blocks nobody)

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from datetime import timedelta
from pathlib import Path

import asyncpg
import nats
import nats.errors
import pytest
from metal_lab.servers import Nats, Postgres, Redis, ServerError
from metal_lab.servers.isolation import nobody
from metal_lab.servers.ports import LOOPBACK, free_port, free_ports, is_free
from metal_lab.servers.process import ServerProcess

Eventually = Callable[..., Awaitable[None]]

KEEPER = """
import asyncio, sys
from pathlib import Path
from metal_lab.servers import {kind}

async def main():
    server = {kind}(Path(sys.argv[1]){arguments})
    await server.start()
    print(server.pid, flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


@pytest.fixture
def directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="mp-") as name:
        Path(name).chmod(0o711)
        yield Path(name) / "server"


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


async def with_keeper(kind: str, arguments: str, directory: Path) -> tuple[subprocess.Popen[str], int]:
    """A separate process that keeps a server, and the server's pid."""
    code = KEEPER.format(kind=kind, arguments=arguments)
    keeper = subprocess.Popen([sys.executable, "-c", code, str(directory)], stdout=subprocess.PIPE, text=True)
    assert keeper.stdout is not None
    line = await asyncio.wait_for(asyncio.to_thread(keeper.stdout.readline), 60)
    return keeper, int(line)


@pytest.mark.parametrize(("kind", "arguments"), [("Postgres", ", durable=False"), ("Nats", ""), ("Redis", "")])
async def test_a_server_dies_with_its_keeper_and_starts_again(kind: str, arguments: str, directory: Path) -> None:
    keeper, pid = await with_keeper(kind, arguments, directory)
    keeper.kill()
    keeper.wait()
    makers: dict[str, Callable[[], Postgres | Nats | Redis]] = {
        "Postgres": lambda: Postgres(directory, durable=False),
        "Nats": lambda: Nats(directory),
        "Redis": lambda: Redis(directory),
    }
    server = makers[kind]()
    await server.start()
    try:
        assert not is_alive(pid)
        assert is_alive(server.pid)
    finally:
        await server.stop()
    assert not list(directory.glob("*.pid"))


async def test_a_server_that_survived_its_keeper_is_stopped_at_the_next_start(directory: Path) -> None:
    directory.mkdir()
    record = directory / "sleeper.pid"
    survivor = subprocess.Popen(["sleep", "300"])
    dead = subprocess.Popen(["true"])
    started = int(Path(f"/proc/{survivor.pid}/stat").read_text().rpartition(")")[2].split()[19])
    dead.wait()
    record.write_text(f'{{"server": [{survivor.pid}, {started}], "keeper": [{dead.pid}, 1]}}')
    await ServerProcess("sleeper", directory, stop_signal=signal.SIGTERM).clear_left_over()
    assert await asyncio.wait_for(asyncio.to_thread(survivor.wait), 5) == -signal.SIGTERM
    assert not record.exists()


async def test_a_pid_that_now_belongs_to_another_program_is_left_alone(directory: Path) -> None:
    directory.mkdir()
    bystander = subprocess.Popen(["sleep", "300"])
    try:
        (directory / "sleeper.pid").write_text(f'{{"server": [{bystander.pid}, 7], "keeper": [{bystander.pid}, 7]}}')
        await ServerProcess("sleeper", directory, stop_signal=signal.SIGTERM).clear_left_over()
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


async def test_a_directory_in_use_by_a_living_keeper_is_refused(directory: Path, eventually: Eventually) -> None:
    keeper, pid = await with_keeper("Redis", "", directory)
    try:
        with pytest.raises(ServerError, match=f"in use by process {keeper.pid}"):
            await Redis(directory).start()
        assert is_alive(pid)
    finally:
        keeper.kill()
        keeper.wait()
    await eventually(lambda: not is_alive(pid))


async def test_a_garbled_record_does_not_stop_the_start(directory: Path) -> None:
    directory.mkdir()
    (directory / "redis.pid").write_text("not json")
    server = Redis(directory)
    await server.start()
    await server.stop()


async def test_a_server_that_ends_at_once_shows_its_log(directory: Path) -> None:
    directory.mkdir()
    process = ServerProcess("broken", directory, stop_signal=signal.SIGTERM)

    async def never() -> bool:
        return False

    with pytest.raises(ServerError, match=r"(?s)ended with status 3.*cannot open the frobnicator"):
        await process.start(
            ["/bin/sh", "-c", "echo cannot open the frobnicator >&2; exit 3"], ready=never, limit=timedelta(seconds=10)
        )
    assert not (directory / "broken.pid").exists()


async def test_a_server_that_is_never_ready_is_ended_and_shows_its_log(directory: Path) -> None:
    directory.mkdir()
    process = ServerProcess("slow", directory, stop_signal=signal.SIGTERM)
    seen: list[int] = []

    async def never() -> bool:
        seen.append(process.pid)
        return False

    with pytest.raises(ServerError, match=r"not ready within 0.2 s"):
        await process.start(["/bin/sleep", "300"], ready=never, limit=timedelta(seconds=0.2))
    assert not is_alive(seen[0])


async def _rows(url: str) -> int:
    connection = await asyncpg.connect(url, timeout=10)
    try:
        return int(await connection.fetchval("SELECT count(*) FROM kept"))
    finally:
        await connection.close()


async def test_a_durable_postgres_keeps_what_was_committed_over_a_crash(directory: Path) -> None:
    server = Postgres(directory, durable=True, password="correct horse/battery")
    await server.start()
    try:
        connection = await asyncpg.connect(server.url, timeout=10)
        assert await connection.fetchval("SHOW fsync") == "on"
        await connection.execute("CREATE TABLE kept (n int); INSERT INTO kept VALUES (1)")
        await server.kill()
        await connection.close(timeout=1) if not connection.is_closed() else None
        await server.start()
        assert await _rows(server.url) == 1
        with pytest.raises(asyncpg.InvalidPasswordError):
            await asyncpg.connect(server.url.replace("correct", "wrong"), timeout=10)
    finally:
        await server.stop()


async def test_a_cluster_that_was_cut_off_half_way_is_made_anew(directory: Path) -> None:
    (directory / "data.new").mkdir(parents=True)
    (directory / "data.new" / "PG_VERSION").write_text("18\n")
    server = Postgres(directory, durable=False)
    await server.start()
    await server.stop()
    assert not (directory / "data.new").exists()


async def test_a_lock_file_whose_pid_is_another_program_is_removed(directory: Path) -> None:
    server = Postgres(directory, durable=False)
    await server.start()
    lock = directory / "data" / "postmaster.pid"
    text = lock.read_text()
    await server.kill()
    lock.write_text("\n".join([str(os.getppid()), *text.splitlines()[1:]]) + "\n")
    await server.start()
    await server.stop()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has to become somebody else")
async def test_postgres_runs_as_nobody_where_there_are_no_user_namespaces(directory: Path) -> None:
    server = Postgres(directory, durable=False, isolation=nobody())
    await server.start()
    try:
        assert Path(f"/proc/{server.pid}").stat().st_uid == nobody().uid
    finally:
        await server.stop()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has to become somebody else")
async def test_a_directory_that_nobody_cannot_reach_is_refused_and_not_opened_up(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    with pytest.raises(ServerError, match="cannot get through"):
        await Postgres(closed / "postgres", durable=False, isolation=nobody()).start()
    assert closed.stat().st_mode & 0o777 == 0o700


async def test_a_nats_that_crashed_keeps_its_port_and_its_stream(directory: Path, eventually: Eventually) -> None:
    import nats

    server = Nats(directory)
    await server.start()
    port = server.port
    client = await nats.connect(server.url, max_reconnect_attempts=-1, reconnect_time_wait=0.05)
    try:
        await client.jetstream().add_stream(name="KEPT", subjects=["kept.>"])
        await client.jetstream().publish("kept.one", b"1")
        await server.kill()
        await server.start()
        assert server.port == port
        await eventually(lambda: client.is_connected)
        assert (await client.jetstream().stream_info("KEPT")).state.messages == 1
    finally:
        await client.close()
        await server.stop()


async def test_a_redis_has_the_databases_and_notifications_of_a_switch(directory: Path) -> None:
    from redis.asyncio import Redis as Client

    server = Redis(directory)
    await server.start()
    client = Client(unix_socket_path=str(server.socket), db=31, decode_responses=True)
    try:
        await client.set("PORT|Ethernet0", "up")
        assert await client.get("PORT|Ethernet0") == "up"
        flags = (await client.config_get("notify-keyspace-events"))["notify-keyspace-events"]
        assert flags is not None
        assert set("AKE") <= set(flags)
        assert (await client.config_get("save"))["save"] == ""
    finally:
        await client.aclose()
        await server.stop()
    assert not server.socket.exists()


async def test_a_socket_path_that_is_too_long_is_refused_with_the_limit(tmp_path: Path) -> None:
    with pytest.raises(ServerError, match="107 bytes"):
        await Redis(tmp_path / ("x" * 120)).start()


@pytest.mark.parametrize(
    ("variable", "maker"),
    [
        ("METALPLANE_TEST_POSTGRES_BIN", lambda directory: Postgres(directory, durable=False)),
        ("METALPLANE_TEST_NATS_BIN", Nats),
        ("METALPLANE_TEST_REDIS_BIN", Redis),
    ],
)
async def test_a_wrong_override_is_named(
    variable: str,
    maker: Callable[[Path], Postgres | Nats | Redis],
    directory: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(variable, "/nowhere/at/all")
    start: Callable[[], Awaitable[None]] = maker(directory).start
    with pytest.raises(ServerError, match=f"{variable}=/nowhere/at/all"):
        await start()


def test_a_free_port_can_be_bound() -> None:
    assert is_free(free_port())


def test_ports_differ_and_stay_out_of_the_way_of_outgoing_connections() -> None:
    ports = free_ports(50)
    assert len(set(ports)) == 50
    begin, end = (int(part) for part in Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    assert not set(ports) & set(range(begin, end + 1))


async def test_nats_with_a_password_lets_nobody_else_in(directory: Path) -> None:
    server = Nats(directory / "nats", password="s3cret")
    await server.start()
    try:
        client = await nats.connect(server.url, allow_reconnect=False)
        await client.publish("a", b"b")
        await client.flush()
        await client.close()

        async def ignore(error: Exception) -> None:
            """nats-py prints what is not taken from it."""

        for url in (f"nats://{LOOPBACK}:{server.port}", f"nats://metalplane:other@{LOOPBACK}:{server.port}"):
            with pytest.raises(nats.errors.Error):
                await nats.connect(url, allow_reconnect=False, error_cb=ignore)
        assert (server.directory / "nats.conf").stat().st_mode & 0o077 == 0
    finally:
        await server.stop()
