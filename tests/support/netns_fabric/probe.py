"""Whether packets get through: datagrams that are answered with the name of whoever received them."""

from __future__ import annotations

import asyncio
import socket
from ipaddress import ip_address
from typing import Any

from netns_fabric.namespace import Box

_PORT = 7007
_LIMIT = 1.0


class Listener(asyncio.DatagramProtocol):
    """Answers each datagram with its name and what the datagram said."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._transport: Any = None

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, addr: tuple[object, ...]) -> None:
        if self._transport is not None:
            self._transport.sendto(self._name.encode() + b" " + data, addr)

    def error_received(self, exc: OSError) -> None:
        """An answer that could not be delivered is one that does not arrive."""

    def close(self) -> None:
        """Stop answering."""
        if self._transport is not None:
            self._transport.close()


async def listen(box: Box, address: str, name: str) -> Listener:
    """Have `name` answer at an address of the box, until the listener is closed."""
    bound = await _bound(box, address, _PORT)
    _, listener = await asyncio.get_running_loop().create_datagram_endpoint(lambda: Listener(name), sock=bound)
    return listener


async def who_answers(box: Box, source: str, target: str, number: int = 0) -> str:
    """The name of whoever answers at `target` to a datagram from an address of the box; empty when nobody does."""
    loop = asyncio.get_running_loop()
    bound = await _bound(box, source, 0)
    try:
        question = f"{box.name} {number}".encode()
        await loop.sock_sendto(bound, question, (target, _PORT))
        async with asyncio.timeout(_LIMIT):
            while True:
                answer = await loop.sock_recv(bound, 100)
                name, _, repeated = answer.partition(b" ")
                if repeated == question:
                    return name.decode()
    except (OSError, TimeoutError):
        # No route, or the datagram was lost on the way: both are nobody.
        return ""
    finally:
        bound.close()


async def _bound(box: Box, address: str, port: int) -> socket.socket:
    family = socket.AF_INET if ip_address(address).version == 4 else socket.AF_INET6
    found = await box.socket(family)
    try:
        found.bind((address, port))
    except OSError:
        found.close()
        raise
    return found
