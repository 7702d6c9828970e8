"""Who may talk to a simulated Redfish BMC: its one user, by password, or by the token of a session that it opened."""

from __future__ import annotations

import base64
import binascii
import hmac
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field


@dataclass
class Logins:
    """Attempts since the start, by password: to open a session, or in a request of its own."""

    started: int = 0
    succeeded: int = 0
    failed: int = 0
    full: int = 0


@dataclass
class Session:
    """One that is open. `used` is when its token last came, on the clock of the table."""

    id: str
    token: str = field(repr=False)
    used: float


class SessionsFull(Exception):
    """As many are open as there may be."""


class SessionTable:
    """The sessions of one BMC: `limit` at most, each gone after `idle_seconds` without use."""

    def __init__(self, *, limit: int, idle_seconds: float, clock: Callable[[], float]) -> None:
        self.limit, self.idle_seconds = limit, idle_seconds
        self._clock = clock
        self._open: dict[str, Session] = {}
        self._number = 0

    def __len__(self) -> int:
        self._expire()
        return len(self._open)

    def __iter__(self) -> Iterator[str]:
        """Their ids."""
        self._expire()
        return iter([session.id for session in self._open.values()])

    def open(self) -> Session:
        """A new one. Raises SessionsFull."""
        self._expire()
        if len(self._open) >= self.limit:
            raise SessionsFull
        self._number += 1
        session = Session(str(self._number), secrets.token_urlsafe(24), self._clock())
        self._open[session.token] = session
        return session

    def holds(self, token: str) -> bool:
        """Whether a token is that of an open session; keeps it open."""
        self._expire()
        session = self._open.get(token)
        if session is None:
            return False
        session.used = self._clock()
        return True

    def close(self, identity: str) -> bool:
        """Log out by id; False when there is no such session."""
        for token, session in self._open.items():
            if session.id == identity:
                del self._open[token]
                return True
        return False

    def close_all(self) -> None:
        """Forget them, as a BMC does that restarts."""
        self._open.clear()

    def _expire(self) -> None:
        limit = self._clock() - self.idle_seconds
        for token in [token for token, session in self._open.items() if session.used < limit]:
            del self._open[token]


def basic_login(header: str) -> tuple[str, str] | None:
    """User and password of an Authorization header; None for another kind, or one that makes no sense."""
    kind, _, value = header.partition(" ")
    if kind.lower() != "basic":
        return None
    try:
        user, colon, password = base64.b64decode(value, validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        return None
    return (user, password) if colon else None


def same(one: str, other: str) -> bool:
    """Whether two secrets are equal, in a time that does not tell."""
    return hmac.compare_digest(one.encode(), other.encode())
