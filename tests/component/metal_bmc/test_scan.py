"""Ranges of addresses: only what answers a ping is asked, and that once."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from ipaddress import ip_address
from typing import Any

import pytest
from metal_bmc.service import SPEC
from metal_bmc.sources.presence import who_answers
from metal_sim.bmc import SimulatedBmc
from metalplane.bmc.v1 import bmc_pb2 as pb
from pydantic import ValidationError

NewBmc = Callable[..., Awaitable[SimulatedBmc]]
Eventually = Callable[..., Awaitable[None]]
FACTORY = "factory-secret"


@pytest.fixture
def port() -> int:
    """A UDP port that is free on the loopback addresses."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("0.0.0.0", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def options(port: int) -> dict[str, Any]:
    factory = {"factory_user": "ADMIN", "factory_password": FACTORY, "factory_port": port}
    return {"scan_ranges": "127.9.3.1-127.9.3.6, 127.9.3.9", "scan_seconds": 0.2, "scan_rate": 1000, **factory}


async def test_what_answers_a_ping_is_asked_once_and_registered_and_nobody_else_is(
    plane: Any, new_bmc: NewBmc, port: int, options: dict[str, Any], eventually: Eventually
) -> None:
    bmc = await new_bmc("127.9.3.2", port, user="ADMIN", password=FACTORY)
    stranger = await new_bmc("127.9.3.3", port, user="ADMIN", password="somebody-elses")
    deaf = await new_bmc("127.9.3.4", port, user="ADMIN", password=FACTORY)
    deaf.faults.switch_on("hang")
    outside = await new_bmc("127.9.3.7", port, user="ADMIN", password=FACTORY)
    last = await new_bmc("127.9.3.9", port, user="ADMIN", password=FACTORY)
    last.faults.switch_on("hang")
    await plane.start(**options)
    await eventually(lambda: plane.rows("SELECT FROM endpoint"), seconds=30)
    await eventually(lambda: plane.rows("SELECT FROM sighting WHERE refused"))
    # A later pass that is known to have been made, because it found something new.
    last.faults.clear()
    await eventually(lambda: plane.rows("SELECT FROM endpoint WHERE machine = $1", last.machine), seconds=30)
    answer = await plane.stub("viewer").ListBmcs(pb.ListBmcsRequest())
    addresses = {(each.machine, each.address) for each in answer.bmcs}
    assert addresses == {(bmc.machine, f"127.9.3.2:{port}"), (last.machine, f"127.9.3.9:{port}")}
    assert (stranger.logins.started, deaf.logins.started, outside.logins.started) == (1, 0, 0)
    rows = await plane.rows("SELECT mac, host, reason FROM sighting")
    assert [tuple(row) for row in rows] == [("127.9.3.3", "127.9.3.3", "AUTH_FAILED")]


async def test_pings_keep_to_their_rate_and_only_pongs_of_those_asked_count(new_bmc: NewBmc, port: int) -> None:
    await new_bmc("127.9.3.1", port)
    loop, stopping = asyncio.get_running_loop(), asyncio.Event()
    hosts = [ip_address(f"127.9.3.{number}") for number in range(1, 41)]
    began = loop.time()
    assert await who_answers(hosts, port=port, rate=100, stopping=stopping) == ["127.9.3.1"]
    # 40 and, of those that were silent, 39 again; each waits half of its share at least.
    assert loop.time() - began >= 79 / 100 / 2
    stopping.set()
    assert await who_answers(hosts, port=port, rate=100, stopping=stopping) == []


async def test_what_answers_with_garbage_is_no_bmc(port: int) -> None:
    class Garbage(asyncio.DatagramProtocol):
        def connection_made(self, transport: Any) -> None:
            self.transport = transport

        def datagram_received(self, data: bytes, addr: Any) -> None:
            pong = data[:8] + bytes((0x40, data[9], 0, 16)) + data[4:8] + bytes(4)
            wrong_tag = pong[:9] + bytes(((data[9] + 1) % 256,)) + pong[10:]
            for each in (b"", data, pong, pong + bytes(8), wrong_tag + b"\x81" + bytes(7), bytes(2000)):
                self.transport.sendto(each, addr)

    transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(Garbage, local_addr=("127.9.3.8", port))
    try:
        hosts = [ip_address("127.9.3.8")]
        assert await who_answers(hosts, port=port, rate=1000, stopping=asyncio.Event()) == []
    finally:
        transport.close()


@pytest.mark.parametrize("ranges", ["10.0.0.0/8", "10.1.0.0/24,rack-7"])
def test_ranges_that_cannot_be_meant_end_the_start_with_their_name(ranges: str) -> None:
    with pytest.raises(ValidationError) as refused:
        SPEC.settings(partition="fra1", credential_keys="k1:x", scan_ranges=ranges)
    (error,) = (each for each in refused.value.errors() if each["loc"] == ("scan_ranges",))
    assert ranges.rsplit(",", maxsplit=1)[-1] in error["msg"]
