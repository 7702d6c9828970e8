"""Logging in over the wire: handshakes until one succeeds, the best cipher suite first, then the role of administrator.

A handshake that loses a datagram is started over with new numbers. A refusal ends it at once: each one may count.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from metal_bmc.rmcp import packets
from metal_bmc.rmcp.failures import LoginRefused, NoAnswer, RmcpFailure, SessionRefused, SuiteRefused, TooOld
from metal_bmc.rmcp.handshake import Handshake, Login, Stage
from metal_bmc.rmcp.link import Link
from metal_bmc.rmcp.messages import BE_ADMINISTRATOR, Response, close_session, speaks_rmcp_plus
from metal_bmc.rmcp.packets import PayloadType
from metal_bmc.rmcp.session import Dropped, Session
from metal_bmc.rmcp.suites import PREFERRED, CipherSuite
from metal_bmc.rmcp.udp import Address, UdpSocket
from metal_bmc.rmcp.waiting import within

_OPENING_WAITS = (0.5, 1.0, 2.0, 2.0, 2.0)
# Proofs take slow BMCs longer than the answer to the first datagram, and an abandoned RAKP 1 may count as a failure.
_PROVING_FACTOR = 2
PATIENT = (0.5, 1.0, 1.5, 2.0)
"""Seconds to wait after each sending of a command that may be repeated."""


async def log_in(
    socket: UdpSocket, address: Address, login: Login, *, give_up: float, suites: Sequence[CipherSuite] = PREFERRED
) -> Link:
    """A session as administrator. `give_up` is on the event loop's clock. Raises RmcpFailure; nothing is left open."""
    for suite in suites:
        try:
            session = await _with_suite(socket, address, login, suite, give_up)
        except SuiteRefused:
            continue
        link = Link(socket, address, session)
        try:
            response = await link.ask(BE_ADMINISTRATOR, waits=PATIENT, give_up=give_up)
            if response.code:
                raise LoginRefused("the BMC does not let the user act as administrator")
        except BaseException:
            link.part()
            raise
        return link
    raise SessionRefused("the BMC takes neither cipher suite 17 nor 3")


async def _with_suite(socket: UdpSocket, address: Address, login: Login, suite: CipherSuite, give_up: float) -> Session:
    loop = asyncio.get_running_loop()
    capabilities: list[Response] = []
    try:
        for number, wait in enumerate(_OPENING_WAITS):
            if loop.time() >= give_up:
                break
            if number == 1:
                # Silence may mean that it has never heard of RMCP+. Most BMCs have, so this is not asked before.
                socket.ask_capabilities(address, capabilities)
            try:
                return await _Attempt(socket, address, login, suite).run(wait, give_up)
            except NoAnswer:
                if capabilities and not speaks_rmcp_plus(capabilities[0]):
                    raise TooOld("the BMC speaks IPMI 1.5 only, without RMCP+") from None
    finally:
        socket.forget_capabilities(address)
    raise NoAnswer("the BMC does not answer")


class _Attempt:
    """One handshake."""

    def __init__(self, socket: UdpSocket, address: Address, login: Login, suite: CipherSuite) -> None:
        self._socket, self._address = socket, address
        self._step: asyncio.Future[tuple[PayloadType, bytes] | None] | None = None
        tag = socket.expect(address, self._received)
        try:
            self._handshake = Handshake(login, suite, tag=tag, console_id=socket.new_console_id())
        except BaseException:
            socket.give_up(address, tag)
            raise

    async def run(self, wait: float, give_up: float) -> Session:
        """The session. `wait` is for the first answer, later ones get more."""
        loop = asyncio.get_running_loop()
        try:
            out: tuple[PayloadType, bytes] | None = self._handshake.start()
            while out is not None:
                self._step = loop.create_future()
                self._socket.send(packets.plain(*out), self._address)
                patience = wait if self._handshake.stage is Stage.OPENING else wait * _PROVING_FACTOR
                out = await within(self._step, min(patience, give_up - loop.time()))
        except BaseException:
            self._abandon()
            raise
        finally:
            self._socket.give_up(self._address, self._handshake.tag)
        assert self._handshake.session is not None
        return self._handshake.session

    def _received(self, payload_type: int, payload: bytes) -> None:
        if self._step is None or self._step.done():
            raise Dropped("unexpected")
        try:
            out = self._handshake.take(payload_type, payload)
        except RmcpFailure as failure:
            self._step.set_exception(failure)
        else:
            self._step.set_result(out)

    def _abandon(self) -> None:
        """Leave no slot taken: the BMC may have opened the session, and its RAKP 4 was lost."""
        session, last_word = self._handshake.session, self._handshake.renounce()
        if session is not None:
            self._socket.send(session.seal(close_session(session.managed_id).encode(0)), self._address)
        elif last_word is not None:
            self._socket.send(packets.plain(*last_word), self._address)
