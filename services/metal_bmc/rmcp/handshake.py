"""The way into a session: Open Session and RAKP 1 to 4 (IPMI 2.0 §13.17-13.24) as a state machine without I/O.

`start` gives the first datagram's content, `take` gets what came back and gives the next one. A step that is lost is
not repeated by itself: BMCs draw a new random number for each RAKP 1, and a late answer to the first would then fail as
a wrong password does. Start over with a new handshake instead; that is why tag and console id are given.
"""

from __future__ import annotations

import hmac
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum

from metal_bmc.rmcp.failures import (
    BadAnswer,
    LoginRefused,
    NoAnswer,
    RmcpFailure,
    SessionRefused,
    SlotsFull,
    SuiteRefused,
)
from metal_bmc.rmcp.packets import PayloadType
from metal_bmc.rmcp.session import Dropped, Session
from metal_bmc.rmcp.suites import CipherSuite, SessionKeys

_MOST_NAME_BYTES, _MOST_PASSWORD_BYTES = 16, 20
_RANDOM_BYTES, _GUID_BYTES = 16, 16
_HIGHEST_PRIVILEGE = 0
# Look the user up by name alone (bit 4) and be administrator (§13.20).
_ROLE = 0x14

# RMCP+ status codes (IPMI 2.0 table 13-15) by what they mean to us.
_SLOTS = {0x01, 0x0B}
_STALE = {0x02, 0x08}
_ALGORITHM = {0x04, 0x05, 0x10, 0x11}
_CREDENTIALS = {0x09, 0x0A, 0x0C, 0x0D, 0x0E}
_WRONG_PROOF = 0x0F
_WRONG_PASSWORD = "the BMC and we do not have the same password"  # noqa: S105 - a text about one


@dataclass(frozen=True, slots=True)
class Login:
    """Where a BMC is and how to get in."""

    host: str
    port: int
    user: str
    password: str = field(repr=False)


class Stage(Enum):
    """What the console waits for."""

    NEW = "nothing yet"
    OPENING = "the answer to Open Session"
    PROVING = "RAKP 2"
    FINISHING = "RAKP 4"
    DONE = "nothing more"
    DENIED = "nothing more: the BMC has another password than we"


class Handshake:
    """One try to log in with one suite. Raises SessionRefused for a name or password that IPMI cannot carry."""

    def __init__(
        self,
        login: Login,
        suite: CipherSuite,
        *,
        tag: int,
        console_id: int,
        random: Callable[[int], bytes] = os.urandom,
    ) -> None:
        self._name, self._password = login.user.encode(), login.password.encode()
        if len(self._name) > _MOST_NAME_BYTES:
            raise SessionRefused(f"a BMC's user name has at most {_MOST_NAME_BYTES} bytes")
        if len(self._password) > _MOST_PASSWORD_BYTES:
            raise SessionRefused(f"a BMC's password has at most {_MOST_PASSWORD_BYTES} bytes")
        self.suite, self.tag, self.console_id = suite, tag, console_id
        self.stage = Stage.NEW
        self.session: Session | None = None
        """From RAKP 3 on: the BMC may hold the session open from then, whether or not we hear of it."""
        self._console_random = random(_RANDOM_BYTES)
        self._managed_id = 0
        self._proof = b""

    def start(self) -> tuple[PayloadType, bytes]:
        """Open Session Request (§13.17)."""
        self.stage = Stage.OPENING
        blocks = b"".join(
            bytes((kind, 0, 0, 8, algorithm, 0, 0, 0)) for kind, algorithm in enumerate(self.suite.algorithms)
        )
        head = struct.pack("<BBHI", self.tag, _HIGHEST_PRIVILEGE, 0, self.console_id)
        return PayloadType.OPEN_SESSION_REQUEST, head + blocks

    def take(self, payload_type: int, payload: bytes) -> tuple[PayloadType, bytes] | None:
        """What to send next; None when the session stands.

        Raises Dropped for what is no answer to the last step, and RmcpFailure when the BMC refuses or lies.
        """
        if len(payload) < 2 or payload[0] != self.tag:
            raise Dropped("unexpected")
        if self.stage is Stage.OPENING and payload_type == PayloadType.OPEN_SESSION_RESPONSE:
            return self._opened(payload)
        if self.stage is Stage.PROVING and payload_type == PayloadType.RAKP_2:
            return self._rakp_2(payload)
        if self.stage is Stage.FINISHING and payload_type == PayloadType.RAKP_4:
            self._rakp_4(payload)
            return None
        raise Dropped("unexpected")

    def renounce(self) -> tuple[PayloadType, bytes] | None:
        """What tells a BMC whose proof is wrong that nobody comes any more (§13.22); None at any other stage."""
        if self.stage is not Stage.DENIED:
            return None
        return PayloadType.RAKP_3, struct.pack("<BBHI", self.tag, _WRONG_PROOF, 0, self._managed_id)

    def _check_head(self, payload: bytes, length: int) -> None:
        """Refusals may be as short as tag and status; whoever accepts has to name our session."""
        named = payload[4:8]
        ours = self.console_id.to_bytes(4, "little")
        status = payload[1]
        if status:
            if named not in (ours, b"", bytes(4)):
                raise Dropped("unexpected")
            raise _refusal(status)
        if len(payload) < length:
            raise Dropped("garbage")
        if named != ours:
            raise Dropped("unexpected")

    def _opened(self, payload: bytes) -> tuple[PayloadType, bytes]:
        self._check_head(payload, 36)
        if (payload[16], payload[24], payload[32]) != self.suite.algorithms:
            raise SuiteRefused("the BMC chose other algorithms than it was asked for")
        self._managed_id = int.from_bytes(payload[8:12], "little")
        if self._managed_id == 0:
            raise BadAnswer("the BMC gave its session the number 0")
        self.stage = Stage.PROVING
        head = struct.pack("<BBHI", self.tag, 0, 0, self._managed_id)
        return PayloadType.RAKP_1, head + self._console_random + struct.pack("<BH", _ROLE, 0) + self._named()

    def _rakp_2(self, payload: bytes) -> tuple[PayloadType, bytes]:
        start = 8 + _RANDOM_BYTES + _GUID_BYTES
        self._check_head(payload, start)
        bmc_random, guid = payload[8 : 8 + _RANDOM_BYTES], payload[8 + _RANDOM_BYTES : start]
        ids = struct.pack("<II", self.console_id, self._managed_id)
        who = bytes((_ROLE,)) + self._named()
        expected = self.suite.digest(self._password, ids + self._console_random + bmc_random + guid + who)
        if not hmac.compare_digest(expected, payload[start:]):
            self.stage = Stage.DENIED
            raise LoginRefused(_WRONG_PASSWORD)
        keys = SessionKeys.derive(self.suite, self._password, self._console_random + bmc_random + who)
        self._proof = self.suite.code(keys.session, self._console_random + ids[4:] + guid)
        self.session = Session(self.suite, keys, console_id=self.console_id, managed_id=self._managed_id)
        self.stage = Stage.FINISHING
        head = struct.pack("<BBHI", self.tag, 0, 0, self._managed_id)
        return PayloadType.RAKP_3, head + self.suite.digest(self._password, bmc_random + ids[:4] + who)

    def _rakp_4(self, payload: bytes) -> None:
        self._check_head(payload, 8)
        if not hmac.compare_digest(self._proof, payload[8:]):
            raise LoginRefused("the BMC does not prove that it derived the session's keys")
        self.stage = Stage.DONE

    def _named(self) -> bytes:
        return bytes((len(self._name),)) + self._name


def _refusal(status: int) -> RmcpFailure:
    if status in _SLOTS:
        return SlotsFull("all session slots of the BMC are taken")
    if status in _ALGORITHM:
        return SuiteRefused("the BMC does not take the cipher suite")
    if status == _WRONG_PROOF:
        return LoginRefused(_WRONG_PASSWORD)
    if status in _CREDENTIALS:
        return LoginRefused("the BMC refuses the user")
    if status in _STALE:
        return NoAnswer("the BMC has forgotten the session that was being opened")
    return SessionRefused(f"the BMC refuses the session (RMCP+ status {status:#04x})", status)
