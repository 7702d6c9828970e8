"""A thousand bad packets on real sockets, to our client and to a simulated BMC: dropped, counted, sessions live on."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from ipaddress import IPv4Network
from typing import Any

from metal_bmc.drivers.interface import Target
from metal_bmc.rmcp.client import RmcpClient
from metal_bmc.rmcp.handshake import Handshake, Login
from metal_bmc.rmcp.messages import CHASSIS_STATUS
from metal_bmc.rmcp.packets import RMCP_HEADER, PayloadType, plain
from metal_bmc.rmcp.suites import SUITE_17
from metal_sim.bmc import BmcFarm, SimulatedBmc

NewBmc = Callable[..., Awaitable[SimulatedBmc]]
Eventually = Callable[..., Awaitable[None]]
PASSWORD = "pw-Tr0ub4dor-do-leak"
COUNT = 1000


class Tap(asyncio.DatagramProtocol):
    """Passes datagrams between a client and a BMC on, and keeps those of the client."""

    def __init__(self, bmc: tuple[str, int]) -> None:
        self._bmc = bmc
        self.client: Any = None
        self.transport: Any = None
        self.seen: list[bytes] = []

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        if addr == self._bmc:
            self.transport.sendto(data, self.client)
        else:
            self.client = addr
            self.seen.append(data)
            self.transport.sendto(data, self._bmc)


def soon(seconds: float = 20) -> float:
    return asyncio.get_running_loop().time() + seconds


def noise(chance: random.Random, known: list[bytes]) -> bytes:
    """One bad packet: random bytes, a plausible head, a known packet that is cut, damaged, or sent again."""
    kind, one = chance.randrange(6), chance.choice(known)
    if kind == 0:
        return chance.randbytes(chance.randrange(1, 120))
    if kind == 1:
        return RMCP_HEADER + b"\x06" + chance.randbytes(chance.randrange(90))
    if kind == 2:
        handshake_step = chance.choice([PayloadType.RAKP_1, PayloadType.RAKP_3])
        return plain(handshake_step, chance.randbytes(chance.randrange(60)))
    if kind == 3:
        return one[: chance.randrange(1, len(one))]
    if kind == 4:
        damaged = bytearray(one)
        damaged[chance.randrange(4, len(one))] ^= 1 << chance.randrange(8)
        return bytes(damaged)
    return one


async def test_a_bmc_drops_a_thousand_and_its_session_lives_on(
    client: RmcpClient, new_bmc: NewBmc, eventually: Eventually
) -> None:
    bmc = await new_bmc(powered=True, session_slots=2)
    loop = asyncio.get_running_loop()
    transport, tap = await loop.create_datagram_endpoint(lambda: Tap(bmc.address), local_addr=("127.0.0.1", 0))
    host, port = transport.get_extra_info("sockname")
    login = Login(host, port, "metal", PASSWORD)
    for _ in range(5):
        await client.ask(login, CHASSIS_STATUS, give_up=soon())
    # Those of the session, which a replay may not use twice; what opens a session may come as often as it likes.
    known = [data for data in tap.seen if data[5] & 0x40]
    stranger, _ = await loop.create_datagram_endpoint(asyncio.DatagramProtocol, local_addr=("127.0.0.1", 0))
    chance, before = random.Random(11), bmc.seen.copy()
    for number in range(COUNT):
        stranger.sendto(noise(chance, known), bmc.address)
        if number % 50 == 49:
            answer = await client.ask(login, CHASSIS_STATUS, give_up=soon())
            assert answer.data[0] & 1
    assert bmc.dropped > COUNT / 2
    assert bmc.seen - before == {(0, 1): COUNT // 50}
    assert (bmc.logins.succeeded, bmc.active_sessions, bmc.sessions) == (1, 1, 1)
    await client.close()
    assert bmc.sessions == 0
    transport.close()
    stranger.close()


async def test_logins_that_are_begun_and_left_take_no_slot(
    client: RmcpClient, new_bmc: NewBmc, target: Callable[..., Target]
) -> None:
    bmc = await new_bmc(powered=True, session_slots=1)
    loop = asyncio.get_running_loop()
    stranger, _ = await loop.create_datagram_endpoint(asyncio.DatagramProtocol, local_addr=("127.0.0.1", 0))
    login = Login(*bmc.address, "metal", PASSWORD)
    for number in range(200):
        begun = Handshake(login, SUITE_17, tag=number % 256, console_id=number + 1)
        stranger.sendto(plain(*begun.start()), bmc.address)
    assert (await client.ask(login, CHASSIS_STATUS, give_up=soon())).data[0] & 1
    assert bmc.sessions <= 9
    stranger.close()


async def test_our_client_drops_a_thousand_of_the_bmcs_own_address_and_of_strangers(
    client: RmcpClient, eventually: Eventually
) -> None:
    farm = BmcFarm(IPv4Network("127.80.0.0/24"))
    farm.fill(2, password=PASSWORD, powered=True)
    farm.start()
    bmc, other = farm
    answers: list[bytes] = []
    asker: list[Any] = []
    send = farm.send

    def keep(data: bytes, ancillary: Any, address: Any) -> None:
        answers.append(data)
        asker[:] = [address]
        send(data, ancillary, address)

    farm.send = keep  # type: ignore[method-assign]
    login = Login(*bmc.address, "metal", PASSWORD)
    for _ in range(5):
        await client.ask(login, CHASSIS_STATUS, give_up=soon())
    known, chance = [data for data in answers if data[5] & 0x40], random.Random(12)
    farm.send = send  # type: ignore[method-assign]
    for number in range(COUNT):
        # Every other one is from the wrong address, and good but for that.
        sender, data = (other, known[-1]) if number % 2 else (bmc, noise(chance, known))
        assert sender._transport is not None
        sender._transport.sendto(data, asker[0])
        if number % 50 == 49:
            assert (await client.ask(login, CHASSIS_STATUS, give_up=soon())).data[0] & 1
    await eventually(lambda: client.dropped.total() == COUNT)
    assert client.dropped["stranger"] >= COUNT / 2
    assert {"garbage", "forged", "replayed"} <= set(client.dropped)
    assert (client.sessions, bmc.logins.started, other.logins.started) == (1, 1, 0)
    assert [udp.waiting for udp in client._open_sockets()] == [1]
    await client.close()
    assert bmc.sessions == 0
    farm.stop()


async def test_a_bmc_half_of_whose_answers_are_garbage_is_served(client: RmcpClient, new_bmc: NewBmc) -> None:
    bmc = await new_bmc(powered=True, machine="6f8e2c1a-0b7d-4e55-9a10-0242ac120002")
    login = Login(*bmc.address, "metal", PASSWORD)
    assert (await client.ask(login, CHASSIS_STATUS, give_up=soon())).data[0] & 1
    bmc.faults.switch_on("garbage", 30)
    for _ in range(10):
        assert (await client.ask(login, CHASSIS_STATUS, give_up=soon(40))).data[0] & 1
    assert client.dropped.total() > 0
