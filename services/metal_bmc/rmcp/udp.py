"""One UDP socket for all BMCs of an address family: finds out whose a datagram is, drops and counts all others.

An answer in a session is known by the session's number, one of a handshake by its tag; either has to come from the
address that was asked.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
from collections import Counter
from collections.abc import Callable
from typing import Any, Protocol

from metal_bmc import metrics
from metal_bmc.rmcp import packets
from metal_bmc.rmcp.failures import NoRoom
from metal_bmc.rmcp.messages import CHANNEL_CAPABILITIES, Response, parse_response
from metal_bmc.rmcp.session import Dropped, Session

Address = tuple[str, int]
Step = Callable[[int, bytes], None]
_RECEIVE_BYTES = 1 << 20
_TAGS = 256


class Receiver(Protocol):
    """Who a session's messages are for."""

    address: Address
    session: Session

    def receive(self, message: bytes) -> None:
        """Take one IPMI message. Raises Dropped."""
        ...

    def receive_sol(self, packet: bytes) -> None:
        """Take one packet of the serial console. Raises Dropped."""
        ...


class UdpSocket(asyncio.DatagramProtocol):
    """Open it with `listen`. `dropped` counts datagrams that nobody took, by cause."""

    def __init__(self) -> None:
        self.dropped: Counter[str] = Counter()
        self._transport: asyncio.DatagramTransport | None = None
        self._sessions: dict[int, Receiver] = {}
        self._handshakes: dict[tuple[Address, int], Step] = {}
        self._questions: dict[Address, list[Response]] = {}

    @classmethod
    async def listen(cls, family: socket.AddressFamily) -> UdpSocket:
        """A socket on a port of the system's choice. Raises OSError when the host lacks the family."""
        made = cls()
        any_address = "::" if family is socket.AF_INET6 else "0.0.0.0"
        transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
            lambda: made, local_addr=(any_address, 0), family=family
        )
        made._transport = transport
        # Answers of thousands of BMCs arrive together; what does not fit is lost and costs a retransmission each.
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BYTES)
        return made

    def close(self) -> None:
        """Neither send nor receive any more."""
        if self._transport is not None:
            self._transport.close()

    def send(self, data: bytes, address: Address) -> None:
        """Send once; what cannot be sent is as good as lost."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.sendto(data, address)

    def new_console_id(self) -> int:
        """A number that no session has, hard to guess and never 0."""
        while (number := secrets.randbits(32)) == 0 or number in self._sessions:
            pass
        return number

    def expect(self, address: Address, step: Step) -> int:
        """Give a handshake's answers from `address` to `step`; returns its tag. Raises NoRoom: 256 are under way."""
        first = secrets.randbelow(_TAGS)
        for number in range(_TAGS):
            tag = (first + number) % _TAGS
            if (address, tag) not in self._handshakes:
                self._handshakes[(address, tag)] = step
                return tag
        raise NoRoom("too many logins to this BMC at once")

    def give_up(self, address: Address, tag: int) -> None:
        """The handshake has ended."""
        self._handshakes.pop((address, tag), None)

    def ask_capabilities(self, address: Address, answers: list[Response]) -> None:
        """Ask once which versions the BMC speaks; what it says is added to `answers` until `forget_capabilities`."""
        self._questions[address] = answers
        self.send(packets.plain_v15(CHANNEL_CAPABILITIES.encode(0)), address)

    def forget_capabilities(self, address: Address) -> None:
        """Nobody waits for the answer any more."""
        self._questions.pop(address, None)

    def join(self, receiver: Receiver) -> None:
        """Give a session's messages to `receiver`."""
        self._sessions[receiver.session.console_id] = receiver

    def leave(self, receiver: Receiver) -> None:
        """The session has ended."""
        self._sessions.pop(receiver.session.console_id, None)

    @property
    def waiting(self) -> int:
        """Handshakes, sessions and questions that expect datagrams."""
        return len(self._handshakes) + len(self._sessions) + len(self._questions)

    def datagram_received(self, data: bytes, addr: tuple[Any, ...]) -> None:
        """Hand over one datagram."""
        try:
            self._hand_over(data, addr[:2])
        except Dropped as cause:
            self.dropped[str(cause)] += 1
            metrics.DROPPED_DATAGRAMS.labels(str(cause)).inc()

    def _hand_over(self, data: bytes, address: Address) -> None:
        packet = packets.parse(data)
        if packet is None:
            self._take_capabilities(data, address)
            return
        if packet.session_id:
            receiver = self._sessions.get(packet.session_id)
            if receiver is None or receiver.address != address:
                raise Dropped("stranger")
            message = receiver.session.open(data, packet)
            if packet.payload_type == packets.PayloadType.SOL:
                receiver.receive_sol(message)
            else:
                receiver.receive(message)
            return
        if not packet.payload or packet.encrypted or packet.authenticated:
            raise Dropped("garbage")
        step = self._handshakes.get((address, packet.payload[0]))
        if step is None:
            raise Dropped("stranger")
        step(packet.payload_type, packet.payload)

    def _take_capabilities(self, data: bytes, address: Address) -> None:
        message = packets.parse_v15(data)
        response = None if message is None else parse_response(message)
        if response is None:
            raise Dropped("garbage")
        answers = self._questions.pop(address, None)
        if answers is None or response.command != CHANNEL_CAPABILITIES.command or response.code:
            raise Dropped("stranger")
        answers.append(response)
