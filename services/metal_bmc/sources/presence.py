"""Asks many addresses whether something there speaks RMCP, without logging in: ASF presence pings (IPMI 2.0 §13.2.4).

A ping is one datagram of 12 bytes that needs no session and counts as no login; who does not answer it is left alone.
"""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import Sequence
from typing import Any

from metal_kit.logs import get_logger

from metal_bmc.sources.lease import Address

log = get_logger(__name__)

_HEADER = bytes((0x06, 0x00, 0xFF, 0x06)) + (4542).to_bytes(4, "big")
"""RMCP without acknowledgement, class ASF; IANA's number of the ASF."""
_PING, _PONG = 0x80, 0x40
_IPMI = 0x80
"""In the supported entities of a pong: IPMI is spoken there."""
_LENGTH = 28
_TRIES = 2
_PATIENCE_SECONDS = 1.0


class _Ear(asyncio.DatagramProtocol):
    """Collects who answers of those that were asked."""

    def __init__(self, tag: int, port: int) -> None:
        self.asked: set[str] = set()
        self.heard: set[str] = set()
        self._tag, self._port = tag, port

    def datagram_received(self, data: bytes, addr: tuple[Any, ...]) -> None:
        """Take a pong; anything else is dropped."""
        if len(data) < _LENGTH or data[:2] != _HEADER[:2] or data[3] & 0x1F != 0x06 or data[4:8] != _HEADER[4:]:
            return
        right = data[8] == _PONG and data[9] == self._tag and data[20] & _IPMI and addr[1] == self._port
        if right and addr[0] in self.asked:
            self.heard.add(str(addr[0]))


async def who_answers(hosts: Sequence[Address], *, port: int, rate: float, stopping: asyncio.Event) -> list[str]:
    """Which of the hosts, all of one family, answer a presence ping; at most `rate` pings a second, unevenly spread.

    Raises OSError when the host lacks the family.
    """
    if not hosts:
        return []
    v6 = hosts[0].version == 6
    tag = random.randrange(0xFF)
    loop = asyncio.get_running_loop()
    transport, ear = await loop.create_datagram_endpoint(
        lambda: _Ear(tag, port),
        local_addr=("::" if v6 else "0.0.0.0", 0),
        family=socket.AF_INET6 if v6 else socket.AF_INET,
    )
    ping = _HEADER + bytes((_PING, tag, 0, 0))
    try:
        for _ in range(_TRIES):
            for host in (str(each) for each in hosts):
                if stopping.is_set():
                    return []
                if host not in ear.heard:
                    ear.asked.add(host)
                    transport.sendto(ping, (host, port))
                    # Unevenly, so that our pings and somebody else's timer do not meet again and again.
                    await asyncio.sleep(random.uniform(0.5, 1.5) / rate)
            await asyncio.sleep(_PATIENCE_SECONDS)
    finally:
        transport.close()
    return [host for host in map(str, hosts) if host in ear.heard]
