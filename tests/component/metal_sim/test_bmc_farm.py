"""Many BMCs behind one socket, and the command that starts them for people."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from ipaddress import IPv4Network

import pytest
from metal_bmc.rmcp.client import RmcpClient
from metal_bmc.rmcp.handshake import Login
from metal_bmc.rmcp.messages import CHANNEL_CAPABILITIES, CHASSIS, CHASSIS_STATUS, SYSTEM_GUID, Request
from metal_bmc.rmcp.packets import plain_v15
from metal_sim.bmc import BmcFarm

PASSWORD = "pw-Tr0ub4dor-do-leak"


@pytest.fixture
async def farm() -> AsyncIterator[BmcFarm]:
    made = BmcFarm(IPv4Network("127.77.0.0/16"))
    made.fill(300, password=PASSWORD)
    made.start()
    yield made
    made.stop()


def soon(seconds: float = 20) -> float:
    return asyncio.get_running_loop().time() + seconds


async def test_each_address_is_a_bmc_of_its_own(farm: BmcFarm) -> None:
    client, bmcs = RmcpClient(), list(farm)
    for bmc in bmcs[::3]:
        bmc.chassis.powered = True
    logins = [Login(*bmc.address, "metal", PASSWORD) for bmc in bmcs]
    answers = await asyncio.gather(*(client.ask(login, CHASSIS_STATUS, give_up=soon()) for login in logins))
    assert [bool(answer.data[0] & 1) for answer in answers] == [bmc.chassis.powered for bmc in bmcs]
    guids = {(await client.ask(login, SYSTEM_GUID, give_up=soon())).data for login in logins[:20]}
    assert len(guids) == 20
    await client.ask(logins[7], Request(CHASSIS, 2, b"\x01"), give_up=soon())
    assert [bmc.chassis.powered for bmc in bmcs[6:9]] == [True, True, False]
    assert [bmc.logins.succeeded for bmc in bmcs] == [1] * 300
    await client.close()
    assert sum(bmc.active_sessions for bmc in bmcs) == 0


async def test_what_was_sent_to_no_bmc_is_dropped(farm: BmcFarm) -> None:
    received = asyncio.Queue[bytes]()

    class Asker(asyncio.DatagramProtocol):
        def datagram_received(self, data: bytes, addr: object) -> None:
            received.put_nowait(data)

    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(Asker, local_addr=("127.0.0.1", 0))
    question = plain_v15(CHANNEL_CAPABILITIES.encode(0))
    for host in ("127.0.0.1", "127.77.1.200", "127.77.0.1"):
        transport.sendto(question, (host, farm.port))
    await asyncio.wait_for(received.get(), 10)
    assert farm.dropped == 2
    assert received.empty()
    transport.close()


async def test_a_stopped_bmc_of_a_farm_is_silent_and_the_others_answer(farm: BmcFarm) -> None:
    client, bmcs = RmcpClient(), list(farm)
    bmcs[0].stop()
    with pytest.raises(Exception, match="does not answer"):
        await client.ask(Login(*bmcs[0].address, "metal", PASSWORD), CHASSIS_STATUS, give_up=soon(0.3))
    assert (await client.ask(Login(*bmcs[1].address, "metal", PASSWORD), CHASSIS_STATUS, give_up=soon())).code == 0
    await client.close()


async def test_people_start_a_farm_by_a_command() -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "metal_sim.bmc", "--count", "40", "--port", "0", "--network", "127.78.0.0/24",
        "--powered", "--fault", "does-nothing:1", stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    first = (await asyncio.wait_for(process.stdout.readline(), 30)).decode()
    port = int(first.split("port ")[1].split(":")[0])
    assert first == f"40 BMCs on UDP port {port}: 127.78.0.1 to 127.78.0.40\n"
    client = RmcpClient()
    for host, after in (("127.78.0.1", 1), ("127.78.0.40", 0)):
        login = Login(host, port, "metal", "metal")
        await client.ask(login, Request(CHASSIS, 2, b"\x00"), give_up=soon())
        assert (await client.ask(login, CHASSIS_STATUS, give_up=soon())).data[0] & 1 == after
    await client.close()
    process.terminate()
    assert await asyncio.wait_for(process.wait(), 20) == 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [(["--network", "10.0.0.0/8"], "loopback"), (["--count", "0"], "1 or more"), (["--fault", "explode"], "unknown")],
)
async def test_what_cannot_be_is_refused_in_words(arguments: list[str], says: str) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "metal_sim.bmc", *arguments, stderr=asyncio.subprocess.PIPE
    )
    _, told = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode
    assert says in told.decode()
    assert "Traceback" not in told.decode()
