"""Kept sessions against simulated BMCs: when they are made, used, kept alive, given up, and who is not believed."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from metal_bmc.drivers.interface import Target
from metal_bmc.rmcp import failures
from metal_bmc.rmcp.client import Keeping, RmcpClient
from metal_bmc.rmcp.handshake import Login
from metal_bmc.rmcp.messages import CHASSIS, CHASSIS_STATUS, DEVICE_ID, Request
from metal_bmc.rmcp.udp import UdpSocket
from metal_sim.bmc import SimulatedBmc, packet

NewBmc = Callable[..., Awaitable[SimulatedBmc]]
Eventually = Callable[..., Awaitable[None]]
NewClient = Callable[..., RmcpClient]
STATUS = (0, 1)


@pytest.fixture
async def new_client() -> AsyncIterator[NewClient]:
    """Clients with a keeping of their own, logged out at the end."""
    clients: list[RmcpClient] = []

    def make(**keeping: Any) -> RmcpClient:
        clients.append(RmcpClient(Keeping(**{"look": 0.05, **keeping})))
        return clients[-1]

    yield make
    for client in clients:
        await client.close()


@pytest.fixture
def login(target: Callable[..., Target]) -> Callable[..., Login]:
    def of(bmc: SimulatedBmc, **more: str) -> Login:
        where = target(bmc, **more)
        return Login(where.host, where.port, where.user, where.password)

    return of


def soon(seconds: float = 20) -> float:
    return asyncio.get_running_loop().time() + seconds


async def test_many_bmcs_share_one_socket(client: RmcpClient, new_bmc: NewBmc, login: Any) -> None:
    bmcs = [await new_bmc(powered=number % 3 == 0) for number in range(40)]
    for _ in range(3):
        answers = await asyncio.gather(*(client.ask(login(bmc), CHASSIS_STATUS, give_up=soon()) for bmc in bmcs))
        assert [bool(answer.data[0] & 1) for answer in answers] == [bmc.chassis.powered for bmc in bmcs]
    assert [bmc.logins.started for bmc in bmcs] == [1] * 40
    assert client.sessions == 40
    await client.close()
    assert [bmc.active_sessions for bmc in bmcs] == [0] * 40


async def test_a_bmc_on_ipv6_is_reached(client: RmcpClient, new_bmc: NewBmc, login: Any) -> None:
    bmc = await new_bmc(host="::1", powered=True)
    assert (await client.ask(login(bmc), CHASSIS_STATUS, give_up=soon())).data[0] & 1


async def test_callers_of_one_bmc_take_turns(client: RmcpClient, new_bmc: NewBmc, login: Any) -> None:
    bmc = await new_bmc()
    await asyncio.gather(*(client.ask(login(bmc), CHASSIS_STATUS, give_up=soon()) for _ in range(30)))
    assert bmc.logins.started == 1
    assert bmc.seen[STATUS] == 30
    assert not client.dropped


async def test_a_silent_session_gets_a_sign_of_life(
    new_client: NewClient, new_bmc: NewBmc, login: Any, eventually: Eventually
) -> None:
    bmc, client = await new_bmc(idle_seconds=2), new_client(sign_of_life=0.3)
    await client.ask(login(bmc), CHASSIS_STATUS, give_up=soon())
    await eventually(lambda: bmc.seen[(6, 1)] >= 9)
    assert bmc.active_sessions == 1
    await client.ask(login(bmc), CHASSIS_STATUS, give_up=soon())
    assert bmc.logins.started == 1


async def test_a_session_that_nobody_uses_is_closed(
    new_client: NewClient, new_bmc: NewBmc, login: Any, eventually: Eventually
) -> None:
    bmc, client = await new_bmc(), new_client(unused=0.2)
    await client.ask(login(bmc), CHASSIS_STATUS, give_up=soon())
    await eventually(lambda: bmc.active_sessions == 0)
    await eventually(lambda: client.sessions == 0)


async def test_a_session_that_was_kept_for_long_is_replaced(new_client: NewClient, new_bmc: NewBmc, login: Any) -> None:
    bmc, client = await new_bmc(), new_client(oldest=0.0)
    for _ in range(3):
        await client.ask(login(bmc), CHASSIS_STATUS, give_up=soon())
    assert (bmc.logins.succeeded, bmc.active_sessions) == (3, 1)


async def test_the_number_of_sessions_is_bounded_and_the_longest_unused_goes(
    new_client: NewClient, new_bmc: NewBmc, login: Any, eventually: Eventually
) -> None:
    client, bmcs = new_client(most=2), [await new_bmc() for _ in range(4)]
    for bmc in bmcs:
        await client.ask(login(bmc), CHASSIS_STATUS, give_up=soon())
    await eventually(lambda: [bmc.active_sessions for bmc in bmcs] == [0, 0, 1, 1])
    assert client.sessions == 2


async def test_another_password_gives_the_old_session_up(client: RmcpClient, new_bmc: NewBmc, login: Any) -> None:
    bmc = await new_bmc()
    await client.ask(login(bmc), CHASSIS_STATUS, give_up=soon())
    with pytest.raises(failures.LoginRefused):
        await client.ask(login(bmc, password="guess"), CHASSIS_STATUS, give_up=soon())
    assert (bmc.logins.started, bmc.active_sessions, client.sessions) == (2, 0, 0)


async def test_a_bmc_that_has_restarted_is_logged_in_to_again(client: RmcpClient, new_bmc: NewBmc, login: Any) -> None:
    bmc = await new_bmc()
    await client.ask(login(bmc), CHASSIS_STATUS, give_up=soon())
    bmc.forget_sessions()
    assert (await client.ask(login(bmc), CHASSIS_STATUS, give_up=soon())).code == 0
    assert bmc.logins.succeeded == 2


async def test_what_is_sent_once_is_not_sent_into_a_second_session(
    client: RmcpClient, new_bmc: NewBmc, login: Any
) -> None:
    bmc = await new_bmc(powered=True)
    await client.ask(login(bmc), CHASSIS_STATUS, give_up=soon())
    bmc.forget_sessions()
    with pytest.raises(failures.NoAnswer):
        await client.ask(login(bmc), Request(CHASSIS, 2, b"\x03"), give_up=soon(1), once=True)
    assert bmc.chassis.history == []
    assert bmc.logins.started == 1


async def test_a_login_that_is_given_up_leaves_no_session(
    client: RmcpClient, new_bmc: NewBmc, login: Any, eventually: Eventually
) -> None:
    bmc = await new_bmc()
    # The answer to RAKP 3 is lost: the BMC has the session, we have not heard of it.
    bmc.faults.lose_packets(1, after=5)
    with pytest.raises(failures.NoAnswer):
        await client.ask(login(bmc), CHASSIS_STATUS, give_up=soon(0.4))
    assert bmc.logins.succeeded == 1
    await eventually(lambda: bmc.active_sessions == 0)
    assert client.sessions == 0


async def test_a_name_that_does_not_resolve_is_no_answer(client: RmcpClient) -> None:
    with pytest.raises(failures.NoAnswer, match="resolved"):
        await client.ask(Login("no-such-bmc.invalid", 623, "metal", "x"), DEVICE_ID, give_up=soon())


class OldBmc(asyncio.DatagramProtocol):
    """Speaks IPMI 1.5 only: says so when it is asked, and drops all else."""

    transport: Any = None

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        parsed = packet.parse_packet(data)
        if parsed is None or parsed.version != 15:
            return
        request = packet.parse_request(parsed.payload)
        assert request is not None
        assert (request.netfn, request.command) == (6, 0x38)
        answer = request.response(0, bytes((1, 0x14, 0x04, 0, 0, 0, 0, 0)))
        self.transport.sendto(packet.build_plain(answer, version=15), addr)


async def test_a_bmc_without_rmcp_plus_is_told_apart_from_a_dead_one(client: RmcpClient) -> None:
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(OldBmc, local_addr=("127.0.0.1", 0))
    host, port = transport.get_extra_info("sockname")
    with pytest.raises(failures.TooOld):
        await client.ask(Login(host, port, "metal", "x"), DEVICE_ID, give_up=soon())
    assert [each.waiting for each in client._open_sockets()] == [0]
    transport.close()


class Forger(asyncio.DatagramProtocol):
    """Sits between client and BMC: passes datagrams on, and answers each with noise of its own beside it."""

    def __init__(self, bmc: SimulatedBmc) -> None:
        self._bmc, self._chance = bmc, random.Random(6)
        self._client: Any = None
        self.transport: Any = None
        self.stranger: Any = None
        self.noise = 0

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        if addr != self._bmc.address:
            self._client = addr
            self.transport.sendto(data, self._bmc.address)
            return
        for _ in range(12):
            cut = data[: self._chance.randrange(1, len(data))]
            flipped = bytearray(data)
            flipped[self._chance.randrange(4, len(data))] ^= 1 << self._chance.randrange(8)
            self._say(self.transport, cut)
            self._say(self.transport, self._chance.randbytes(60))
            if data[5] & 0x40:  # in a session: any bit may flip
                self._say(self.transport, bytes(flipped))
            self._say(self.stranger, data)
        self.transport.sendto(data, self._client)
        if data[5] & 0x40:
            self._say(self.transport, data)

    def _say(self, transport: Any, data: bytes) -> None:
        self.noise += 1
        transport.sendto(data, self._client)


async def test_noise_forgeries_replays_and_strangers_are_dropped_and_counted(
    client: RmcpClient, new_bmc: NewBmc, login: Any, eventually: Eventually
) -> None:
    bmc = await new_bmc(powered=True)
    loop = asyncio.get_running_loop()
    transport, forger = await loop.create_datagram_endpoint(lambda: Forger(bmc), local_addr=("127.0.0.1", 0))
    forger.stranger, _ = await loop.create_datagram_endpoint(asyncio.DatagramProtocol, local_addr=("127.0.0.1", 0))
    host, port = transport.get_extra_info("sockname")
    through = Login(host, port, login(bmc).user, login(bmc).password)
    for _ in range(30):
        answer = await client.ask(through, CHASSIS_STATUS, give_up=soon())
        assert (answer.code, answer.data[0] & 1) == (0, 1)
    assert bmc.logins.started == 1
    # Nothing that was noise is left unaccounted for.
    await eventually(lambda: client.dropped.total() == forger.noise)
    assert {"garbage", "forged", "replayed", "stranger"} <= set(client.dropped)
    await client.close()
    assert bmc.active_sessions == 0
    transport.close()
    forger.stranger.close()


async def test_nothing_waits_in_the_socket_after_an_exchange(new_bmc: NewBmc, login: Any) -> None:
    client, bmc = RmcpClient(), await new_bmc()
    bmc.faults.switch_on("hang")
    with pytest.raises(failures.NoAnswer):
        await client.ask(login(bmc), CHASSIS_STATUS, give_up=soon(0.2))
    cancelled = asyncio.create_task(client.ask(login(bmc), CHASSIS_STATUS, give_up=soon()))
    await asyncio.sleep(0)
    cancelled.cancel()
    await asyncio.gather(cancelled, return_exceptions=True)
    sockets: list[UdpSocket] = client._open_sockets()
    assert [each.waiting for each in sockets] == [0]
    assert not client._kept
    await client.close()
    with pytest.raises(failures.NoRoom):
        await client.ask(login(bmc), CHASSIS_STATUS, give_up=soon())
