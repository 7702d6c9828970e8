"""Sessions of a simulated BMC: RMCP+ open session and RAKP 1-4 (IPMI 2.0 §13.17-13.24), slots, lockout, replay window.

Holds no sockets and no command logic: takes payload bytes, returns payload bytes.
"""

from __future__ import annotations

import hmac
import os
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import IntEnum

from metal_sim.bmc.faults import BmcFault, Faults
from metal_sim.bmc.suites import SUITES, CipherSuite, SessionKeys, suite_for
from metal_sim.bmc.users import UserTable

_HALF_OPEN_LIMIT = 8
_REPLAY_WINDOW = 16
_ADMINISTRATOR = 4


class RakpStatus(IntEnum):
    """RMCP+ and RAKP status codes (IPMI 2.0 table 13-15)."""

    OK = 0x00
    NO_RESOURCES = 0x01
    INVALID_SESSION = 0x02
    INVALID_ROLE = 0x09
    UNAUTHORISED_ROLE = 0x0A
    INVALID_NAME_LENGTH = 0x0C
    UNKNOWN_USER = 0x0D
    INTEGRITY_CHECK_FAILED = 0x0F
    NO_CIPHER_SUITE = 0x11


@dataclass
class Session:
    """One session, from the open request until it is closed or times out."""

    managed_id: int
    console_id: int
    suite: CipherSuite
    last_used: float
    console_random: bytes = b""
    bmc_random: bytes = b""
    role: int = 0
    user: bytes = b""
    keys: SessionKeys | None = None
    privilege: int = 2
    active: bool = False
    sent: int = 0
    address: tuple[str, int] = ("", 0)
    """Where its last packet came from."""
    _highest: int = 0
    _seen: set[int] = field(default_factory=set)

    def next_sequence(self) -> int:
        """The sequence number of the next packet to the console; starts at 1."""
        self.sent += 1
        return self.sent

    def accept(self, sequence: int) -> bool:
        """Whether a packet with this number is new: inside the window and not seen before (IPMI 2.0 §6.12.13)."""
        if sequence == 0 or sequence <= self._highest - _REPLAY_WINDOW or sequence in self._seen:
            return False
        self._highest = max(self._highest, sequence)
        self._seen = {number for number in self._seen if number > self._highest - _REPLAY_WINDOW} | {sequence}
        return True


@dataclass
class LoginCounters:
    """What happened at the door. `started` counts RAKP 1 messages with a known session, each one a login attempt."""

    started: int = 0
    succeeded: int = 0
    failed: int = 0


class SessionTable:
    """All sessions of one BMC. At most `slots` are active; one that is idle for `idle_seconds` loses its slot."""

    def __init__(
        self,
        *,
        users: UserTable,
        guid: bytes,
        faults: Faults,
        clock: Callable[[], float],
        slots: int,
        idle_seconds: float,
        suites: Sequence[CipherSuite] = SUITES,
    ) -> None:
        self._users, self._guid, self._faults, self._clock = users, guid, faults, clock
        self._slots, self._idle_seconds = slots, idle_seconds
        self.suites = tuple(suites)
        self._by_id: dict[int, Session] = {}
        self.counters = LoginCounters()

    def __len__(self) -> int:
        """Sessions of all kinds, also those that are being opened."""
        self._expire()
        return len(self._by_id)

    def active(self, managed_id: int) -> Session | None:
        """The active session with that id; being found keeps it alive."""
        self._expire()
        session = self._by_id.get(managed_id)
        if session is None or not session.active:
            return None
        session.last_used = self._clock()
        return session

    def holds(self, session: Session) -> bool:
        """Whether the session is still there; does not keep it alive."""
        self._expire()
        return self._by_id.get(session.managed_id) is session

    def active_count(self) -> int:
        """How many slots are taken."""
        self._expire()
        return sum(session.active for session in self._by_id.values())

    def close(self, managed_id: int) -> bool:
        """End a session; False when there is none."""
        return self._by_id.pop(managed_id, None) is not None

    def close_all(self) -> None:
        """Forget all sessions, as a BMC reset does."""
        self._by_id.clear()

    def open(self, payload: bytes) -> bytes | None:
        """Answer an open session request."""
        if len(payload) < 32:
            return None
        tag = payload[0]
        console_id = int.from_bytes(payload[4:8], "little")
        suite = suite_for(self.suites, payload[12], payload[20], payload[28])
        if suite is None:
            return _refusal(tag, RakpStatus.NO_CIPHER_SUITE, console_id)
        if self._faults.has(BmcFault.SLOTS_FULL) or self.active_count() >= self._slots:
            return _refusal(tag, RakpStatus.NO_RESOURCES, console_id)
        self._make_room()
        session = Session(self._new_id(), console_id, suite, self._clock())
        self._by_id[session.managed_id] = session
        chosen = b"".join(
            bytes((kind, 0, 0, 8, algorithm, 0, 0, 0))
            for kind, algorithm in enumerate((suite.authentication, suite.integrity, suite.confidentiality))
        )
        head = bytes((tag, RakpStatus.OK, _ADMINISTRATOR, 0))
        return head + struct.pack("<II", console_id, session.managed_id) + chosen

    def rakp_1(self, payload: bytes) -> bytes | None:
        """Answer RAKP 1: who the console claims to be; the answer proves that the BMC knows the password."""
        if len(payload) < 28 or len(payload) < 28 + payload[27]:
            return None
        tag, managed_id = payload[0], int.from_bytes(payload[4:8], "little")
        session = self._by_id.get(managed_id)
        if session is None or session.active:
            return _refusal(tag, RakpStatus.INVALID_SESSION, 0)
        if payload[27] > 16:
            return self._refuse(session, tag, RakpStatus.INVALID_NAME_LENGTH)
        self.counters.started += 1
        user = self._users.by_name(payload[28 : 28 + payload[27]])
        if user is None or self._locked_out():
            self.counters.failed += 1
            return self._refuse(session, tag, RakpStatus.UNKNOWN_USER)
        if payload[24] & 0x0F > user.privilege:
            return self._refuse(session, tag, RakpStatus.UNAUTHORISED_ROLE)
        session.console_random, session.role = payload[8:24], payload[24]
        session.user, session.bmc_random = user.name, os.urandom(16)
        proof = session.suite.digest(
            self._password(session.user),
            struct.pack("<II", session.console_id, managed_id)
            + session.console_random
            + session.bmc_random
            + self._guid
            + bytes((session.role, len(session.user)))
            + session.user,
        )
        head = bytes((tag, RakpStatus.OK, 0, 0)) + struct.pack("<I", session.console_id)
        return head + session.bmc_random + self._guid + proof

    def rakp_3(self, payload: bytes) -> bytes | None:
        """Answer RAKP 3: the console's proof that it knows the password; activates the session."""
        if len(payload) < 8:
            return None
        tag, managed_id = payload[0], int.from_bytes(payload[4:8], "little")
        session = self._by_id.get(managed_id)
        if session is None or session.active or not session.bmc_random:
            return _refusal(tag, RakpStatus.INVALID_SESSION, 0)
        if payload[1] != RakpStatus.OK:
            # The console gives up; it has found our proof wrong.
            self._fail(session)
            return None
        password = self._password(session.user)
        expected = session.suite.digest(
            password,
            session.bmc_random
            + struct.pack("<I", session.console_id)
            + bytes((session.role, len(session.user)))
            + session.user,
        )
        if not hmac.compare_digest(expected, payload[8:]):
            self._fail(session)
            return _refusal(tag, RakpStatus.INTEGRITY_CHECK_FAILED, session.console_id)
        session.keys = SessionKeys.derive(
            session.suite,
            password,
            console_random=session.console_random,
            bmc_random=session.bmc_random,
            role=session.role,
            user=session.user,
        )
        session.active, session.last_used = True, self._clock()
        self.counters.succeeded += 1
        check = session.suite.short_digest(
            session.keys.session, session.console_random + struct.pack("<I", managed_id) + self._guid
        )
        return bytes((tag, RakpStatus.OK, 0, 0)) + struct.pack("<I", session.console_id) + check

    def _password(self, name: bytes) -> bytes:
        user = self._users.by_name(name)
        password = user.password if user is not None else b""
        return password + b"?" if self._faults.has(BmcFault.WRONG_PASSWORD) else password

    def _locked_out(self) -> bool:
        # A console that finds the BMC's proof wrong usually falls silent, so a login that never got to RAKP 3 counts.
        abandoned = sum(bool(s.bmc_random) and not s.active for s in self._by_id.values())
        limit = self._faults.value(BmcFault.LOCKOUT)
        return self._faults.has(BmcFault.LOCKOUT) and self.counters.failed + abandoned >= limit

    def _refuse(self, session: Session, tag: int, status: RakpStatus) -> bytes:
        self._by_id.pop(session.managed_id, None)
        return _refusal(tag, status, session.console_id)

    def _fail(self, session: Session) -> None:
        self.counters.failed += 1
        self._by_id.pop(session.managed_id, None)

    def _new_id(self) -> int:
        while (candidate := int.from_bytes(os.urandom(4), "little")) == 0 or candidate in self._by_id:
            pass
        return candidate

    def _make_room(self) -> None:
        half_open = [session for session in self._by_id.values() if not session.active]
        for session in half_open[: max(0, len(half_open) - _HALF_OPEN_LIMIT + 1)]:
            if session.bmc_random:
                self.counters.failed += 1
            del self._by_id[session.managed_id]

    def _expire(self) -> None:
        deadline = self._clock() - self._idle_seconds
        for session in [s for s in self._by_id.values() if s.last_used < deadline]:
            if session.bmc_random and not session.active:
                self.counters.failed += 1
            del self._by_id[session.managed_id]


def _refusal(tag: int, status: RakpStatus, console_id: int) -> bytes:
    return bytes((tag, status, 0, 0)) + struct.pack("<I", console_id)
