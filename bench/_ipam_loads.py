"""The loads of bench/ipam.py: what callers do, each caller one after the other and many of them at once.

Every load tells `Doubles` what it was given and what it gives back: an address that two hold at once is counted.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from itertools import count
from typing import Any
from uuid import UUID, uuid4

import grpc
from _ipam_plane import Bench, Doubles, Load, wish
from _ipam_server import PROJECT
from metalplane.ipam.v1 import ip_pb2, network_pb2, prefix_pb2

Step = Callable[[], Awaitable[int]]
Make = Callable[[int], Step]
WARM_SECONDS = 0.5
_BASE, _NUMBERS = uuid4().int, count(1)


def request_id() -> str:
    """A new one; the kernel's randomness would cost the client a system call each."""
    return str(UUID(int=_BASE ^ next(_NUMBERS)))


def echo(bench: Bench) -> Make:
    """The bare echo, with a message as long as an acquire's."""
    raw = wish("network", 1).SerializeToString() + bytes(40)

    def make(number: int) -> Step:
        call = bench.echo[number % len(bench.echo)]

        async def step() -> int:
            await call(raw)
            return 1

        return step

    return make


def mixed(bench: Bench, networks: Sequence[str], doubles: Doubles, *, hold: int = 4) -> Make:
    """AcquireIps and ReleaseIp of single addresses in turn; every caller holds up to `hold` in his network."""

    def make(number: int) -> Step:
        ips, network = bench.bare[number % len(bench.bare)], networks[number % len(networks)]
        own: deque[str] = deque()
        turn = count(number)

        async def step() -> int:
            nonlocal network
            if len(own) >= hold or (own and next(turn) % 2):
                address = own.popleft()
                doubles.gave(network, address)
                await ips.ReleaseIp(ip_pb2.ReleaseIpRequest(address=address, network=network))
                return 1
            if not own:
                # With more networks than callers, each goes through its part of them.
                network = networks[(number + 64 * next(turn)) % len(networks)]
            request = wish(network, 1)
            request.request_id = request_id()
            answer = await ips.AcquireIps(request)
            doubles.took(network, answer.ips[0].address)
            own.append(answer.ips[0].address)
            return 1

        return step

    return make


def bulk(bench: Bench, network: str, doubles: Doubles, size: int, given: list[str] | None = None) -> Make:
    """AcquireIps of many at once; nothing is given back. `given` collects them."""

    def make(number: int) -> Step:
        ips = bench.ips[number % len(bench.ips)]

        async def step() -> int:
            request = wish(network, size)
            request.request_id = request_id()
            answer = await ips.AcquireIps(request)
            for ip in answer.ips:
                doubles.took(network, ip.address)
                if given is not None:
                    given.append(ip.address)
            return len(answer.ips)

        return step

    return make


def children(bench: Bench, parent: str, doubles: Doubles) -> Make:
    """AcquireChildPrefix of a /22, and DeletePrefix, in turn."""

    def make(number: int) -> Step:
        own: list[str] = []

        async def step() -> int:
            if own:
                cidr = own.pop()
                doubles.gave(parent, cidr)
                await bench.prefixes.DeletePrefix(prefix_pb2.DeletePrefixRequest(cidr=cidr))
                return 1
            child = await bench.prefixes.AcquireChildPrefix(
                prefix_pb2.AcquireChildPrefixRequest(parent=parent, length=22, request_id=request_id())
            )
            doubles.took(parent, child.cidr)
            own.append(child.cidr)
            return 1

        return step

    return make


def child_networks(bench: Bench, parent: str, doubles: Doubles) -> Make:
    """CreateNetwork of a child with a /22 and a VRF of its own, and DeleteNetwork, in turn."""

    def make(number: int) -> Step:
        own: list[network_pb2.Network] = []

        async def step() -> int:
            if own:
                child = own.pop()
                doubles.gave(parent, child.prefixes[0])
                await bench.networks.DeleteNetwork(network_pb2.DeleteNetworkRequest(id=child.id))
                return 1
            network = network_pb2.Network(type=network_pb2.NETWORK_TYPE_CHILD, parent=parent, project=PROJECT)
            child = await bench.networks.CreateNetwork(network_pb2.CreateNetworkRequest(network=network))
            doubles.took(parent, child.prefixes[0])
            own.append(child)
            return 1

        return step

    return make


class Stream:
    """One ExchangeIps with `in_flight` changes under way: each address that comes is released, each release is followed
    by an acquire."""

    def __init__(self, bench: Bench, number: int, networks: Sequence[str], doubles: Doubles, in_flight: int) -> None:
        self._call: Any = bench.ips[number % len(bench.ips)].ExchangeIps()
        self._networks = networks
        self._doubles = doubles
        self._in_flight = in_flight
        self._sent: dict[int, tuple[float, str]] = {}
        self._numbers = count(1)

    async def run(self, result: Load, until: float, measuring: Callable[[], bool]) -> None:
        """Until `until`, then whatever is held is given back."""
        first = [self._acquire() for _ in range(self._in_flight)]
        await self._call.write(ip_pb2.ExchangeIpsRequest(project=PROJECT, changes=first))
        while self._sent:
            response = await self._call.read()
            now = time.perf_counter()
            changes: list[ip_pb2.IpChange] = []
            for answer in response.answers:
                if answer.error.code:
                    raise RuntimeError(f"a change failed: {answer.error}")
                began, network = self._sent.pop(answer.number)
                if measuring():
                    result.operations += 1
                    result.samples.append((now - began) * 1000)
                if answer.prefix:
                    self._doubles.took(network, answer.address)
                    changes.append(self._release(network, answer.address))
                elif now < until:
                    changes.append(self._acquire())
            if changes:
                await self._call.write(ip_pb2.ExchangeIpsRequest(changes=changes))
        await self._call.done_writing()
        if await self._call.read() is not grpc.aio.EOF:
            raise RuntimeError("the stream has answered more than it was asked")

    def _acquire(self) -> ip_pb2.IpChange:
        number = next(self._numbers)
        network = self._networks[number % len(self._networks)]
        self._sent[number] = time.perf_counter(), network
        change = ip_pb2.AcquireIpChange(network=network)
        return ip_pb2.IpChange(number=number, request_id=request_id(), acquire=change)

    def _release(self, network: str, address: str) -> ip_pb2.IpChange:
        number = next(self._numbers)
        self._sent[number] = time.perf_counter(), network
        self._doubles.gave(network, address)
        return ip_pb2.IpChange(number=number, release=ip_pb2.ReleaseIpChange(network=network, address=address))


async def streams(
    bench: Bench, networks: Sequence[str], doubles: Doubles, seconds: float, *, number: int = 1, in_flight: int = 256
) -> Load:
    """`number` streams at once; an operation is an acquire or a release."""
    result = Load()
    measuring = False
    until = time.perf_counter() + WARM_SECONDS + seconds
    tasks = [
        asyncio.create_task(Stream(bench, n, networks, doubles, in_flight).run(result, until, lambda: measuring))
        for n in range(number)
    ]
    await asyncio.sleep(WARM_SECONDS)
    before, began = bench.cpu(), time.perf_counter()
    measuring = True
    await asyncio.wait(tasks, timeout=seconds)
    measuring = False
    result.cpu, result.seconds = bench.cpu() - before, time.perf_counter() - began
    await asyncio.gather(*tasks)
    return result
