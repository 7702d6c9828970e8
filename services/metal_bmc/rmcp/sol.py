"""Serial over LAN as the console speaks it (IPMI 2.0 §15.9-15.11): packets, and who owes whom an acknowledgement.

No sockets and no time. Each side has one packet under way at most. A packet that comes again has the number of before,
and may by then have grown: what was not seen yet is taken.
"""

from __future__ import annotations

from typing import NamedTuple

_HEAD_BYTES = 4
_NUMBERS = 15
_NACK, _UNAVAILABLE, _DEACTIVATING, _OVERRUN = 0x40, 0x20, 0x10, 0x08
_BREAK = 0x10
_MOST_CHARACTERS = 200
_FEWEST_CHARACTERS = 8
_MOST_COUNTED = 0xFF


class SolPacket(NamedTuple):
    """One packet. `number` is 0 where it only acknowledges; `flags` are operations to, and the status from a BMC."""

    number: int
    acknowledged: int
    accepted: int
    flags: int
    characters: bytes

    def encode(self) -> bytes:
        """As it goes into the payload (tables 15-2 and 15-3)."""
        return bytes((self.number, self.acknowledged, self.accepted, self.flags)) + self.characters


def parse(payload: bytes) -> SolPacket | None:
    """Read a payload; None when it is too short to be a packet."""
    if len(payload) < _HEAD_BYTES:
        return None
    return SolPacket(payload[0] & 0x0F, payload[1] & 0x0F, payload[2], payload[3], payload[_HEAD_BYTES:])


def most_characters(inbound: int) -> int:
    """How many characters a packet to a BMC may have that names `inbound` as its largest payload.

    Some name nonsense: 0, or the bytes the wrong way round. What cannot be right becomes what every BMC takes.
    """
    if not _HEAD_BYTES + _FEWEST_CHARACTERS <= inbound <= 1024:
        return _FEWEST_CHARACTERS
    return min(inbound - _HEAD_BYTES, _MOST_CHARACTERS)


class Heard(NamedTuple):
    """What a packet of the BMC brings. `reply` is to be sent at once. `settled` ends the wait for the packet under way.

    `gone` counts packets that the BMC has given up, `overrun` says that it lost characters before it could send them,
    `ended` that the console is being taken from this session.
    """

    characters: bytes
    reply: bytes
    settled: bool
    gone: int
    overrun: bool
    ended: bool


class SolEnd:
    """Our end of one active console."""

    __slots__ = ("_heard", "_length", "_number", "_under_way", "rest")

    def __init__(self) -> None:
        self._number = 0
        self._heard = 0
        self._length = 0
        self._under_way: SolPacket | None = None
        self.rest = b""
        """What the BMC did not take of the packet that was settled last."""

    def send(self, characters: bytes, *, with_break: bool = False) -> bytes:
        """The next packet, the same bytes for each time it has to be sent. It is under way until it is settled."""
        self._number = self._number % _NUMBERS + 1
        self._under_way = SolPacket(self._number, 0, 0, _BREAK if with_break else 0, characters)
        return self._under_way.encode()

    def hear(self, packet: SolPacket) -> Heard:
        """Take in a packet of the BMC."""
        settled = self._settle(packet)
        characters, reply, gone = b"", b"", 0
        if packet.number:
            brought = packet.characters[:_MOST_COUNTED]
            if packet.number != self._heard:
                gone = (packet.number - self._heard - 1) % _NUMBERS if self._heard else 0
                self._heard, self._length = packet.number, 0
            characters = brought[self._length :]
            self._length = max(self._length, len(brought))
            reply = SolPacket(0, packet.number, len(brought), 0, b"").encode()
        return Heard(
            characters, reply, settled, gone, bool(packet.flags & _OVERRUN), bool(packet.flags & _DEACTIVATING)
        )

    def _settle(self, packet: SolPacket) -> bool:
        ours = self._under_way
        if ours is None or not packet.acknowledged or packet.acknowledged != ours.number:
            return False
        refused = bool(packet.flags & (_NACK | _UNAVAILABLE))
        # Some acknowledge with a count of 0 and no refusal; they mean the whole packet.
        accepted = packet.accepted if refused or packet.accepted else len(ours.characters)
        self.rest = ours.characters[accepted:]
        self._under_way = None
        return True
