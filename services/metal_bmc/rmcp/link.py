"""A session with a BMC over the wire: asks one thing at a time, sends again what may be sent again, says goodbye."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from metal_bmc.rmcp.failures import NoAnswer
from metal_bmc.rmcp.messages import Request, Response, close_session, parse_response
from metal_bmc.rmcp.packets import PayloadType
from metal_bmc.rmcp.session import Dropped, Session
from metal_bmc.rmcp.udp import Address, UdpSocket
from metal_bmc.rmcp.waiting import within

_SEQUENCES = 64


class Link:
    """`heard` is when the BMC last answered, on the event loop's clock. That one task at a time asks is the caller's
    business. `on_sol` takes the packets of the serial console where it is active."""

    __slots__ = ("_expected", "_future", "_sequence", "_socket", "address", "heard", "on_sol", "opened", "session")

    def __init__(self, socket: UdpSocket, address: Address, session: Session) -> None:
        self._socket, self.address, self.session = socket, address, session
        self._sequence = 0
        self._expected = (0, 0, 0)
        self._future: asyncio.Future[Response] | None = None
        self.on_sol: Callable[[bytes], None] | None = None
        self.heard = self.opened = asyncio.get_running_loop().time()
        socket.join(self)

    async def ask(self, request: Request, *, waits: Sequence[float], give_up: float) -> Response:
        """The BMC's answer. Sent once for each of `waits`, seconds to wait then, until `give_up` (loop time).

        Every sending has a session sequence number of its own and the same rqSeq. Raises NoAnswer.
        """
        loop = asyncio.get_running_loop()
        sequence = self._sequence = (self._sequence + 1) % _SEQUENCES
        self._expected = (request.netfn | 1, request.command, sequence)
        message = request.encode(sequence)
        try:
            for wait in waits:
                left = min(wait, give_up - loop.time())
                if left <= 0:
                    break
                self._future = loop.create_future()
                self._socket.send(self.session.seal(message), self.address)
                try:
                    return await within(self._future, left)
                except NoAnswer:
                    continue
        finally:
            self._future = None
        raise NoAnswer("the BMC stopped answering")

    def receive(self, message: bytes) -> None:
        """Take an answer. Raises Dropped for one that nobody waits for any more."""
        response = parse_response(message)
        if response is None:
            raise Dropped("garbage")
        self.heard = asyncio.get_running_loop().time()
        if self._future is None or self._future.done() or response[:3] != self._expected:
            raise Dropped("late")
        self._future.set_result(response)

    def send_sol(self, packet: bytes) -> None:
        """Send a packet of the serial console once."""
        self._socket.send(self.session.seal(packet, PayloadType.SOL), self.address)

    def receive_sol(self, packet: bytes) -> None:
        """Take a packet of the serial console. Raises Dropped where it is not active, or the packet is none."""
        if self.on_sol is None:
            raise Dropped("unexpected")
        self.heard = asyncio.get_running_loop().time()
        self.on_sol(packet)

    def part(self) -> None:
        """Close the session without waiting for the BMC to agree."""
        self._socket.send(self.session.seal(close_session(self.session.managed_id).encode(0)), self.address)
        self._socket.leave(self)

    async def close(self, *, give_up: float) -> None:
        """Close the session and wait a moment for the BMC to agree, so that its slot is free on return."""
        try:
            await self.ask(close_session(self.session.managed_id), waits=(0.5, 0.5), give_up=give_up)
        except NoAnswer:
            return
        finally:
            self._socket.leave(self)
