"""Serial over LAN of a simulated BMC: the payload's commands, and its packets (IPMI 2.0 §15.9, §24, §26).

One session at a time has it; another may deactivate it and take it. Each side has at most one packet on its way: it is
sent again until it is acknowledged, a number of times, and then given up. Holds no sockets: `send` seals and sends.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable

from metal_sim.bmc.faults import BmcFault, Faults
from metal_sim.bmc.serial import SerialPort
from metal_sim.bmc.session import Session, SessionTable

PAYLOAD = 0x01
_INSTANCE = 1
_ENCRYPTED, _AUTHENTICATED = 0x80, 0x40
_MOST_INBOUND, _MOST_OUTBOUND = 64, 200
_HEAD_BYTES = 4
_MOST_WAITING = 1 << 14
_NACK, _UNAVAILABLE, _DEACTIVATING, _OVERRUN = 0x40, 0x20, 0x10, 0x08
_BREAK = 0x10
_REVISION = 0x11

_OK, _ALREADY_ACTIVE, _DISABLED, _LIMIT, _UNENCRYPTED = 0x00, 0x80, 0x81, 0x82, 0x84
_ALREADY_INACTIVE = 0x80
_NO_PARAMETER, _READ_ONLY = 0x80, 0x82
_LENGTH, _INVALID_FIELD, _PRIVILEGE = 0xC7, 0xCC, 0xD4

# Parameters of Set and Get SOL Configuration (table 26-5) as they are at first.
_ENABLE, _ACCUMULATE, _RETRY, _CHANNEL, _PORT = 1, 3, 4, 7, 8
_DEFAULTS = {
    0: b"\x00",  # nobody is setting anything
    _ENABLE: b"\x01",
    2: b"\xc4",  # authentication and encryption are forced; administrator
    _ACCUMULATE: b"\x02\x60",  # 10 ms, 96 characters
    _RETRY: b"\x07\x0a",  # 7 times, every 100 ms
    5: b"\x0a",  # 115,200 bit/s
    6: b"\x0a",
    _CHANNEL: b"\x01",
    _PORT: b"\x6f\x02",  # 623, until the BMC listens elsewhere
}
_FIXED = {_CHANNEL, _PORT}

Answer = tuple[int, bytes]


class Sol:
    """The payload of one BMC. `send` gives a packet's payload to the session that it names."""

    def __init__(
        self, port: SerialPort, sessions: SessionTable, faults: Faults, send: Callable[[Session, bytes], None]
    ) -> None:
        self._sessions, self._faults, self._send, self._serial = sessions, faults, send, port
        self._parameters = dict(_DEFAULTS)
        self._owner: Session | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._waiting, self._outstanding, self._overrun = bytearray(), b"", False
        self._number = self._heard = self._accepted = self._tries = 0
        port.listen(self._printed)

    @property
    def owner(self) -> Session | None:
        """The session that has the payload."""
        if self._owner is not None and not self._sessions.holds(self._owner):
            self._end()
        return self._owner

    def listens_on(self, port: int) -> None:
        """The UDP port that consoles are told: the BMC's own."""
        self._parameters[_PORT] = struct.pack("<H", port)

    def close(self) -> None:
        """Send nothing more."""
        self._end()

    # Commands

    def activate(self, data: bytes, session: Session | None) -> Answer:
        """Activate Payload (§24.1)."""
        if len(data) < 6:
            return _LENGTH, b""
        if session is None:
            return _PRIVILEGE, b""
        if (data[0] & 0x3F, data[1] & 0x0F) != (PAYLOAD, _INSTANCE):
            return (_LIMIT if data[0] & 0x3F == PAYLOAD else _INVALID_FIELD), b""
        if not self._parameters[_ENABLE][0] & 1:
            return _DISABLED, b""
        if data[2] & (_ENCRYPTED | _AUTHENTICATED) != _ENCRYPTED | _AUTHENTICATED:
            return _UNENCRYPTED, b""
        if self.owner is not None:
            return _ALREADY_ACTIVE, b""
        self._begin()
        self._owner = session
        sizes = struct.pack("<HH", _MOST_INBOUND, _MOST_OUTBOUND)
        return _OK, bytes(4) + sizes + self._parameters[_PORT] + b"\xff\xff"

    def deactivate(self, data: bytes, _session: Session | None) -> Answer:
        """Deactivate Payload (§24.2), by whichever session; the one that had it is told."""
        if len(data) < 2:
            return _LENGTH, b""
        if (data[0] & 0x3F, data[1] & 0x0F) != (PAYLOAD, _INSTANCE):
            return _INVALID_FIELD, b""
        owner = self.owner
        if owner is None:
            return _ALREADY_INACTIVE, b""
        if owner is not _session:
            self._tell(bytes((0, 0, 0, _DEACTIVATING)))
        self._end()
        return _OK, b""

    def status(self, data: bytes, _session: Session | None) -> Answer:
        """Get Payload Activation Status (§24.4)."""
        if not data:
            return _LENGTH, b""
        return _OK, bytes((1, int(data[0] & 0x3F == PAYLOAD and self.owner is not None), 0))

    def instance(self, data: bytes, _session: Session | None) -> Answer:
        """Get Payload Instance Info (§24.5): which session has it."""
        if len(data) < 2:
            return _LENGTH, b""
        owner = self.owner if (data[0], data[1]) == (PAYLOAD, _INSTANCE) else None
        return _OK, struct.pack("<I", owner.managed_id if owner is not None else 0) + b"\x01" + bytes(7)

    def user_access(self, data: bytes, _session: Session | None) -> Answer:
        """Get User Payload Access (§24.7): everybody may."""
        return (_OK, b"\x02\x00\x00\x00") if len(data) >= 2 else (_LENGTH, b"")

    def get_configuration(self, data: bytes, _session: Session | None) -> Answer:
        """Get SOL Configuration Parameters (§26.3)."""
        if len(data) < 4:
            return _LENGTH, b""
        if data[0] & 0x80:
            return _OK, bytes((_REVISION,))
        value = self._parameters.get(data[1])
        return (_NO_PARAMETER, b"") if value is None else (_OK, bytes((_REVISION,)) + value)

    def set_configuration(self, data: bytes, _session: Session | None) -> Answer:
        """Set SOL Configuration Parameters (§26.2)."""
        if len(data) < 3:
            return _LENGTH, b""
        number, value = data[1], data[2:]
        if number not in self._parameters:
            return _NO_PARAMETER, b""
        if number in _FIXED:
            return _READ_ONLY, b""
        if len(value) < len(self._parameters[number]):
            return _LENGTH, b""
        self._parameters[number] = value[: len(self._parameters[number])]
        return _OK, b""

    # Packets

    def receive(self, session: Session, packet: bytes) -> None:
        """A packet of the console: what it acknowledges, then what it brings (table 15-2)."""
        if session is not self.owner or len(packet) < _HEAD_BYTES or self._faults.has(BmcFault.SOL_SILENT):
            return
        if self._faults.loses_sol_packet():
            return
        number, acknowledged, count, operation = packet[0] & 0x0F, packet[1] & 0x0F, packet[2], packet[3]
        if acknowledged and acknowledged == self._number and self._outstanding:
            self._acknowledged(count, nack=bool(operation & _NACK))
        if number:
            self._take(number, packet[_HEAD_BYTES:], operation)

    def _take(self, number: int, typed: bytes, operation: int) -> None:
        if number != self._heard:
            self._heard = number
            taken = typed
            if self._faults.has(BmcFault.SOL_TAKES_HALF) and len(typed) > 1:
                taken = typed[: len(typed) // 2]
            self._accepted = len(taken)
            if operation & _BREAK:
                self._serial.send_break()
            if taken:
                self._serial.type(taken)
        status = _NACK | _UNAVAILABLE if self._accepted < len(typed) else 0
        self._tell(bytes((0, number, self._accepted, status)))

    def _acknowledged(self, count: int, *, nack: bool) -> None:
        self._waiting[:0] = self._outstanding[count:] if nack or count < len(self._outstanding) else b""
        self._outstanding = b""
        self._cancel()
        self._flush()

    def _printed(self, data: bytes) -> None:
        if self.owner is None:
            return
        room = _MOST_WAITING - len(self._waiting)
        self._overrun = self._overrun or len(data) > room
        self._waiting += data[: max(0, room)]
        interval, threshold = self._parameters[_ACCUMULATE]
        if self._outstanding:
            return
        if len(self._waiting) >= threshold or not interval:
            self._cancel()
            self._flush()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(interval * 0.005, self._flush)

    def _flush(self) -> None:
        """Send what waits, unless a packet is still on its way."""
        self._timer = None
        if self._outstanding or not self._waiting or self.owner is None:
            return
        self._outstanding = bytes(self._waiting[: _MOST_OUTBOUND - _HEAD_BYTES])
        del self._waiting[: len(self._outstanding)]
        self._number = self._number % 15 + 1
        self._tries = self._parameters[_RETRY][0] & 7
        self._transmit()

    def _transmit(self) -> None:
        if self.owner is None:
            return
        status, self._overrun = _OVERRUN if self._overrun else 0, False
        self._tell(bytes((self._number, 0, 0, status)) + self._outstanding)
        interval = self._parameters[_RETRY][1] * 0.01
        self._timer = asyncio.get_running_loop().call_later(interval, self._unacknowledged)

    def _unacknowledged(self) -> None:
        self._timer = None
        if self._tries:
            self._tries -= 1
            self._transmit()
            return
        self._outstanding = b""
        self._flush()

    def _tell(self, packet: bytes) -> None:
        silent = self._faults.has(BmcFault.SOL_SILENT) or self._faults.loses_sol_packet()
        if self._owner is not None and not silent:
            self._send(self._owner, packet)

    def _begin(self) -> None:
        self._waiting, self._outstanding, self._overrun = bytearray(), b"", False
        self._number = self._heard = self._accepted = self._tries = 0

    def _end(self) -> None:
        self._cancel()
        self._owner = None
        self._begin()

    def _cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
