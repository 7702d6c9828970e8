"""A session after its handshake: numbers, seals and opens datagrams. No sockets, no time.

`SequenceWindow` is the replay protection of IPMI 2.0 §6.12.13: each number once, and none that is far behind.
"""

from __future__ import annotations

import hmac

from metal_bmc.rmcp import packets
from metal_bmc.rmcp.suites import CipherSuite, Confidentiality, SessionKeys

_WINDOW = 32


class Dropped(Exception):
    """A datagram that is not taken; the text is the cause as metrics count it."""


class SequenceWindow:
    """Sequence numbers of one direction. Ahead any number is taken: only the holder of the keys can count on."""

    __slots__ = ("_highest", "_seen")

    def __init__(self) -> None:
        self._highest = 0
        self._seen = 0

    def accept(self, number: int) -> bool:
        """Whether the number is new; it is used up by this. 0 never is: it means "outside of a session"."""
        ahead = number - self._highest
        if number == 0 or ahead <= -_WINDOW:
            return False
        if ahead > 0:
            self._seen = (self._seen << min(ahead, _WINDOW) | 1) & (1 << _WINDOW) - 1
            self._highest = number
            return True
        bit = 1 << -ahead
        if self._seen & bit:
            return False
        self._seen |= bit
        return True


class Session:
    """Keys and counters. Packets to the BMC carry the managed id, packets from it the console id."""

    __slots__ = ("_confidentiality", "_integrity_key", "_received", "_sent", "console_id", "managed_id", "suite")

    def __init__(self, suite: CipherSuite, keys: SessionKeys, *, console_id: int, managed_id: int) -> None:
        self.suite, self.console_id, self.managed_id = suite, console_id, managed_id
        self._integrity_key = keys.integrity
        self._confidentiality = Confidentiality(keys.encryption)
        self._sent = 0
        self._received = SequenceWindow()

    def seal(self, message: bytes, payload_type: packets.PayloadType = packets.PayloadType.IPMI) -> bytes:
        """The datagram that carries a message. Sealing the same message again gives the next number."""
        self._sent += 1
        payload = self._confidentiality.encrypt(message)
        body = packets.signed_part(payload, session_id=self.managed_id, sequence=self._sent, payload_type=payload_type)
        return packets.RMCP_HEADER + body + self.suite.code(self._integrity_key, body)

    def open(self, data: bytes, packet: packets.Packet) -> bytes:
        """The message of a datagram to this session. Raises Dropped: unsealed, forged, replayed, garbage."""
        if not (packet.authenticated and packet.encrypted):
            raise Dropped("unsealed")
        parts = packets.code_of(data, packet, self.suite.code_length)
        if parts is None:
            raise Dropped("garbage")
        signed, code = parts
        if not hmac.compare_digest(code, self.suite.code(self._integrity_key, signed)):
            raise Dropped("forged")
        if not self._received.accept(packet.sequence):
            raise Dropped("replayed")
        if packet.payload_type > packets.PayloadType.SOL:
            raise Dropped("unexpected")
        message = self._confidentiality.decrypt(packet.payload)
        if message is None:
            raise Dropped("garbage")
        return message
