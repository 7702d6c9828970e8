"""One simulated BMC: on a loopback UDP port of its own, or one of a farm's (`farm`). Any number share one event loop.

Answers what a real one answers and drops what a real one drops: garbage, wrong codes, replays. What the machine prints
comes from its `serial` port. Does not simulate Redfish.
"""

from __future__ import annotations

import asyncio
import hmac
import uuid
from collections import Counter
from collections.abc import Sequence
from typing import Protocol

from metal_sim.bmc import commands, fru
from metal_sim.bmc.chassis import Chassis, PowerHook
from metal_sim.bmc.event_log import EventLog
from metal_sim.bmc.faults import RESTART_SECONDS, BmcFault, Faults
from metal_sim.bmc.packet import (
    RMCP_HEADER,
    Packet,
    PayloadType,
    build_plain,
    build_sealed,
    is_presence_ping,
    parse_packet,
    parse_request,
    presence_pong,
    session_id_of,
)
from metal_sim.bmc.sensors import Readings
from metal_sim.bmc.serial import SerialPort
from metal_sim.bmc.session import LoginCounters, Session, SessionTable
from metal_sim.bmc.sol import Sol
from metal_sim.bmc.suites import SUITES, CipherSuite, decrypt, encrypt
from metal_sim.bmc.users import UserTable

_Address = tuple[str, int]
_LAB_MANUFACTURER = 0
_LAB_PRODUCT = 1


class Port(Protocol):
    """Where a BMC's answers go out."""

    def sendto(self, data: bytes, addr: _Address, /) -> None:
        """Send one datagram."""
        ...

    def close(self) -> None:
        """Send nothing more."""
        ...


class SimulatedBmc(asyncio.DatagramProtocol):
    """A BMC that belongs to the machine with SMBIOS UUID `machine`.

    `dropped` counts packets that got no answer, faults aside; `restarts` how often the BMC restarted.

    `fru_info` defaults to serial numbers derived from the UUID, `guid` to the UUID in SMBIOS order; `mac` is the BMC's
    own address, which it tells where it is given. `session_slots` is how many sessions it keeps at once, `idle_seconds`
    how long an unused one lives, `suites` which cipher suites it knows.
    """

    def __init__(
        self,
        machine: str,
        *,
        user: str = "metal",
        password: str = "",
        fru_info: fru.FruInfo | None = None,
        firmware: tuple[int, int] = (1, 20),
        powered: bool = False,
        session_slots: int = 4,
        idle_seconds: float = 60.0,
        suites: Sequence[CipherSuite] = SUITES,
        on_power: PowerHook | None = None,
        guid: bytes | None = None,
        mac: str = "",
    ) -> None:
        identity = uuid.UUID(machine)
        self.machine = str(identity)
        self.faults = Faults(seed=identity.int & 0xFFFFFFFF)
        self.chassis = Chassis(powered=powered, on_power=on_power)
        self.users = UserTable(user, password)
        self.fru_info = fru_info or _default_fru(identity)
        self.seen: Counter[tuple[int, int]] = Counter()
        # SMBIOS keeps the first three fields little-endian, and that is how BMCs hand the UUID out.
        guid = identity.bytes_le if guid is None else guid
        self._sessions = SessionTable(
            users=self.users,
            guid=guid,
            faults=self.faults,
            clock=lambda: asyncio.get_running_loop().time(),
            slots=session_slots,
            idle_seconds=idle_seconds,
            suites=suites,
        )
        self.serial = SerialPort()
        self._sol = Sol(self.serial, self._sessions, self.faults, self._say)
        self._state = commands.BmcState(
            guid=guid,
            firmware=firmware,
            manufacturer=_LAB_MANUFACTURER,
            product=_LAB_PRODUCT,
            fru=fru.encode(self.fru_info),
            chassis=self.chassis,
            users=self.users,
            sessions=self._sessions,
            faults=self.faults,
            sol=self._sol,
            mac=bytes.fromhex(mac.replace(":", "")),
        )
        self._transport: Port | None = None
        self._restarting: asyncio.TimerHandle | None = None
        self.restarts = 0
        self.dropped = 0
        self._delayed: set[asyncio.TimerHandle] = set()
        self.address: _Address = ("", 0)

    @property
    def sessions(self) -> int:
        """Sessions that are open or being opened."""
        return len(self._sessions)

    @property
    def event_log(self) -> EventLog:
        """The system event log."""
        return self._state.event_log

    @property
    def readings(self) -> Readings:
        """What the sensors read."""
        return self._state.readings

    @property
    def logins(self) -> LoginCounters:
        """Login attempts, successes and failures since the start."""
        return self._sessions.counters

    @property
    def active_sessions(self) -> int:
        """How many session slots are taken right now."""
        return self._sessions.active_count()

    @property
    def console_taken(self) -> bool:
        """Whether a session has the serial console."""
        return self._sol.owner is not None

    def forget_sessions(self) -> None:
        """End all sessions without a word, as a BMC does that restarts."""
        self._sessions.close_all()

    def restart(self, seconds: float = RESTART_SECONDS) -> None:
        """Restart the BMC, not the machine: silent for so long, and all sessions are lost."""
        self.forget_sessions()
        self.restarts += 1
        if self._restarting is not None:
            self._restarting.cancel()
        self._restarting = asyncio.get_running_loop().call_later(seconds, self._restarted)

    def _restarted(self) -> None:
        self._restarting = None

    def attach(self, port: Port, address: _Address) -> None:
        """Answer through a port that somebody else listens on, who calls `datagram_received`."""
        self._transport, self.address = port, address

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> _Address:
        """Listen; port 0 picks a free one. Returns the address. Raises OSError when the port is taken."""
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_datagram_endpoint(lambda: self, local_addr=(host, port))
        self._transport = transport
        name = transport.get_extra_info("sockname")
        self.address = (str(name[0]), int(name[1]))
        self._sol.listens_on(self.address[1])
        return self.address

    def stop(self) -> None:
        """Fall silent for good; may be called twice."""
        self.chassis.close()
        self._sol.close()
        for handle in self._delayed:
            handle.cancel()
        self._delayed.clear()
        if self._restarting is not None:
            self._restarting.cancel()
            self._restarting = None
        if self._transport is not None:
            self._transport.close()
            self._transport = None

    def datagram_received(self, data: bytes, addr: _Address) -> None:
        """Answer one packet."""
        if self._restarting is not None or self.faults.loses_packet():
            return
        answer = self._answer(data, addr)
        if answer:
            self._send_faultily(answer, addr)
        elif answer is None:
            self.dropped += 1

    def _say(self, session: Session, packet: bytes) -> None:
        """Send a packet of the serial console."""
        self._send_faultily(self._sealed(session, packet, PayloadType.SOL), session.address)

    def _send_faultily(self, answer: bytes, addr: _Address) -> None:
        if self.faults.loses_packet():
            return
        if self.faults.restarts():
            self.restart()
            return
        answer = self.faults.garbled(answer)
        delay = self.faults.value(BmcFault.SLOW)
        if delay:
            self._send_later(delay, answer, addr)
        else:
            self._send(answer, addr)

    def _send_later(self, delay: float, answer: bytes, addr: _Address) -> None:
        def send() -> None:
            self._delayed.discard(handle)
            self._send(answer, addr)

        handle = asyncio.get_running_loop().call_later(delay, send)
        self._delayed.add(handle)

    def _send(self, answer: bytes, addr: _Address) -> None:
        if self._transport is not None:
            self._transport.sendto(answer, addr)

    def _answer(self, data: bytes, addr: _Address) -> bytes | None:
        if is_presence_ping(data):
            return presence_pong(data)
        session_id = session_id_of(data)
        if session_id:
            session = self._sessions.active(session_id)
            return self._answer_in_session(session, data, addr) if session is not None else None
        packet = parse_packet(data)
        if packet is None or packet.encrypted or packet.authenticated or packet.session_id:
            return None
        if packet.payload_type == PayloadType.OPEN_SESSION_REQUEST:
            return _framed(self._sessions.open(packet.payload), PayloadType.OPEN_SESSION_RESPONSE)
        if packet.payload_type == PayloadType.RAKP_1:
            return _framed(self._sessions.rakp_1(packet.payload), PayloadType.RAKP_2)
        if packet.payload_type == PayloadType.RAKP_3:
            return _framed(self._sessions.rakp_3(packet.payload), PayloadType.RAKP_4)
        if packet.payload_type != PayloadType.IPMI:
            return None
        response = self._execute(packet.payload, None)
        return None if response is None else build_plain(response, version=packet.version)

    def _answer_in_session(self, session: Session, data: bytes, addr: _Address) -> bytes | None:
        packet = parse_packet(data, code_length=session.suite.code_length)
        message = self._open_sealed(session, packet)
        if packet is None or message is None:
            return None
        session.address = addr
        if packet.payload_type == PayloadType.SOL:
            # The console speaks for itself.
            self._sol.receive(session, message)
            return b""
        response = self._execute(message, session) if packet.payload_type == PayloadType.IPMI else None
        return None if response is None else self._sealed(session, response)

    @staticmethod
    def _sealed(session: Session, message: bytes, payload_type: int = PayloadType.IPMI) -> bytes:
        assert session.keys is not None
        payload = encrypt(session.keys.encryption, message)
        body = build_sealed(
            payload, session_id=session.console_id, sequence=session.next_sequence(), payload_type=payload_type
        )
        return RMCP_HEADER + body + session.suite.short_digest(session.keys.integrity, body)

    @staticmethod
    def _open_sealed(session: Session, packet: Packet | None) -> bytes | None:
        if packet is None or not (packet.encrypted and packet.authenticated) or session.keys is None:
            return None
        expected = session.suite.short_digest(session.keys.integrity, packet.signed)
        if not hmac.compare_digest(expected, packet.code) or not session.accept(packet.sequence):
            return None
        return decrypt(session.keys.encryption, packet.payload)

    def _execute(self, message: bytes, session: Session | None) -> bytes | None:
        request = parse_request(message)
        if request is None:
            return None
        self.seen[(request.netfn, request.command)] += 1
        code, data = commands.execute(self._state, request.netfn, request.command, request.data, session)
        return request.response(code, data)


def _framed(payload: bytes | None, payload_type: PayloadType) -> bytes | None:
    return None if payload is None else build_plain(payload, payload_type)


def _default_fru(identity: uuid.UUID) -> fru.FruInfo:
    serial = identity.hex[-12:].upper()
    return fru.FruInfo(chassis_serial=f"C{serial}", board_serial=f"B{serial}", product_serial=f"P{serial}")
