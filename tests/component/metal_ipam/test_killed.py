"""Processes of the service that are killed (SIGKILL) before and during a commit, and in the middle of a crowd: a retry
with the same request id has the same result, and nothing leaks."""

from __future__ import annotations

import asyncio
import os
import random
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import asyncpg
import pytest
from metal_kit.client import Peers
from metal_kit.errors import Aborted, DeadlineExceeded, Unavailable
from metal_kit.identity import service_id
from metalplane.common.v1.condition_pb2 import AddressFamily
from metalplane.ipam.v1 import ip_pb2
from metalplane.ipam.v1.ip_pb2 import IpWish
from metalplane.ipam.v1.ip_pb2_grpc import IpServiceStub

PROJECT = "0198c1d2-0000-7000-8000-00000000000a"
V4, V6 = AddressFamily.ADDRESS_FAMILY_IPV4, AddressFamily.ADDRESS_FAMILY_IPV6
LOST = (Unavailable, Aborted, DeadlineExceeded)
_LOCK = 4711
_HOLD_COMMITS = f"""
    CREATE FUNCTION ipam.hold_commit() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN PERFORM pg_advisory_xact_lock({_LOCK}); RETURN NULL; END $$;
    CREATE CONSTRAINT TRIGGER hold_commit AFTER INSERT OR UPDATE OR DELETE ON ipam.ip
        DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION ipam.hold_commit()
"""


@dataclass
class Replica:
    """The service in a process of its own, called as allocation."""

    environment: dict[str, str]
    address: str
    stub: Any
    process: Any = None

    async def start(self) -> None:
        self.process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "metal_ipam", env=self.environment,
            stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        async with asyncio.timeout(60):
            while True:
                try:
                    await self.stub.ListIps(ip_pb2.ListIpsRequest(page_size=1), timeout=5)
                except LOST:
                    assert self.process.returncode is None
                    await asyncio.sleep(0.05)
                else:
                    return

    async def kill(self) -> None:
        if self.process is not None and self.process.returncode is None:
            self.process.kill()
            await self.process.wait()


StartReplica = Callable[[Any], Awaitable[Replica]]


@pytest.fixture
async def start_replica(new_identity: Any) -> AsyncIterator[StartReplica]:
    """`await start_replica(ipam)`: one more replica on its database."""
    async with AsyncExitStack() as stack:

        async def begin(ipam: Any) -> Replica:
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                address = f"127.0.0.1:{probe.getsockname()[1]}"
            mine = new_identity(service_id("ipam"), dns=["ipam.metalplane"])
            settings = {
                "LISTEN": address, "DATABASE_URL": ipam.database_url, "PEERS": f"tenancy={address}",
                "LOG_LEVEL": "error", "TLS_CA": str(mine.ca), "TLS_CERT": str(mine.cert), "TLS_KEY": str(mine.key),
            }  # fmt: skip
            environment = os.environ | {f"METALPLANE_{name}": value for name, value in settings.items()}
            peers = Peers({"ipam": address}, new_identity(service_id("allocation")))
            stack.push_async_callback(peers.close)
            replica = Replica(environment, address, peers.stub(IpServiceStub, "ipam"))
            stack.push_async_callback(replica.kill)
            await replica.start()
            return replica

        yield begin


@pytest.fixture
async def admin(ipam: Any) -> AsyncIterator[asyncpg.Connection]:
    """A connection to the service's database that is not the service's."""
    connection = await asyncpg.connect(ipam.database_url)
    yield connection
    await connection.close()


async def one_waits(admin: asyncpg.Connection) -> bool:
    waiting = "SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    return bool(await admin.fetch(waiting))


def request(wish: IpWish, request_id: str = "", owner: str = "") -> ip_pb2.AcquireIpsRequest:
    owned = ip_pb2.Owner(kind=ip_pb2.OWNER_KIND_ALLOCATION, id=owner) if owner else None
    return ip_pb2.AcquireIpsRequest(project=PROJECT, wishes=[wish], request_id=request_id or str(uuid4()), owner=owned)


# The first goes with others to the database, the second by itself.
WISHES = [IpWish(network="net", family=V4), IpWish(network="net")]


@pytest.mark.parametrize("wish", WISHES, ids=["one", "dual stack"])
async def test_killed_before_the_commit_a_call_has_kept_nothing(
    ipam: Any, start_replica: StartReplica, admin: asyncpg.Connection, eventually: Any, wish: IpWish
) -> None:
    await ipam.external("net", "198.51.100.0/24", "2001:db8::/64")
    replica = await start_replica(ipam)
    transaction = admin.transaction()
    await transaction.start()
    await admin.execute("SELECT FROM ipam.prefix WHERE family(cidr) = 4 FOR UPDATE")
    asked = request(wish)
    call = asyncio.create_task(replica.stub.AcquireIps(asked, timeout=30))
    watcher = await asyncpg.connect(ipam.database_url)
    await eventually(lambda: one_waits(watcher), what="the call to wait for the prefix")
    await replica.kill()
    with pytest.raises(LOST):
        await call
    await transaction.rollback()
    await watcher.close()
    answer = await ipam.ips_as_allocation().AcquireIps(asked)
    assert answer.ips[0].address == "198.51.100.1"
    assert len(await ipam.list_ips()) == len(answer.ips)


@pytest.mark.parametrize("wish", WISHES, ids=["one", "dual stack"])
async def test_killed_while_it_commits_a_call_is_found_by_its_retry(
    ipam: Any, start_replica: StartReplica, admin: asyncpg.Connection, eventually: Any, wish: IpWish
) -> None:
    await ipam.external("net", "198.51.100.0/24", "2001:db8::/64")
    replica = await start_replica(ipam)
    await admin.execute(_HOLD_COMMITS)
    await admin.execute(f"SELECT pg_advisory_lock({_LOCK})")
    asked = request(wish)
    call = asyncio.create_task(replica.stub.AcquireIps(asked, timeout=30))
    await eventually(lambda: one_waits(admin), what="the commit to wait")
    retry = asyncio.create_task(
        ipam.ips_as_allocation().AcquireIps(asked)
    )  # Begins before it is known how the first ends.
    await replica.kill()
    with pytest.raises(LOST):
        await call
    await admin.execute(f"SELECT pg_advisory_unlock({_LOCK})")
    answer = await retry
    assert answer.ips[0].address == "198.51.100.1"
    assert await ipam.ips_as_allocation().AcquireIps(asked) == answer
    assert len(await ipam.list_ips()) == len(answer.ips)


async def test_killed_while_it_commits_a_release_is_done_once(
    ipam: Any, start_replica: StartReplica, admin: asyncpg.Connection, eventually: Any
) -> None:
    await ipam.external("net", "198.51.100.0/24", "2001:db8::/64")
    replica = await start_replica(ipam)
    service, owner = ipam.ips_as_allocation(), str(uuid4())
    await service.AcquireIps(request(IpWish(network="net", count=3), owner=owner))
    release = ip_pb2.ReleaseOwnedRequest(owner=ip_pb2.Owner(kind=ip_pb2.OWNER_KIND_ALLOCATION, id=owner))
    await admin.execute(_HOLD_COMMITS)
    await admin.execute(f"SELECT pg_advisory_lock({_LOCK})")
    call = asyncio.create_task(replica.stub.ReleaseOwned(release, timeout=30))
    await eventually(lambda: one_waits(admin), what="the commit to wait")
    await replica.kill()
    with pytest.raises(LOST):
        await call
    await admin.execute(f"SELECT pg_advisory_unlock({_LOCK})")

    async def released() -> bool:
        return await ipam.list_ips() == []

    await eventually(released, what="the commit to end")
    assert (await service.ReleaseOwned(release)).released_ips == 0


async def test_thirty_two_clients_of_two_processes_that_are_killed_again_and_again_lose_and_double_nothing(
    ipam: Any, start_replica: StartReplica, eventually: Any
) -> None:
    await ipam.external("net", "198.51.100.0/24", "2001:db8::/120")
    replicas = [await start_replica(ipam), await start_replica(ipam)]
    random_ = random.Random(23)
    held: dict[str, str] = {}
    done = 0
    over = False

    async def until_answered(number: int, method: str, asked: Any) -> Any:
        while True:
            try:
                return await getattr(replicas[number % 2].stub, method)(asked, timeout=5)
            except LOST:
                number += 1  # The other one, with the same request.
                await asyncio.sleep(0.05)

    async def client(number: int) -> None:
        nonlocal done
        while not over:
            owner = str(uuid4())
            asked = request(
                IpWish(network="net", family=random_.choice((V4, V6))), owner=owner if random_.random() < 0.5 else ""
            )
            [ip] = (await until_answered(number, "AcquireIps", asked)).ips
            assert ip.address not in held
            held[ip.address] = asked.request_id
            done += 1
            if asked.HasField("owner"):
                # Not ours any more from here on: it may be somebody's before we are told that it was released.
                del held[ip.address]
                await until_answered(number, "ReleaseOwned", ip_pb2.ReleaseOwnedRequest(owner=asked.owner))
            elif len(held) > 100:
                return

    clients = [asyncio.create_task(client(number)) for number in range(32)]
    for turn in range(3):
        before = done
        await eventually(lambda before=before: done > before + 10 or all(c.done() for c in clients), what="answers")
        await replicas[turn % 2].kill()
        await replicas[turn % 2].start()
    over = True
    await asyncio.gather(*clients)
    assert {ip.address for ip in await ipam.list_ips()} == held.keys()
