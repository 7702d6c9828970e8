"""Ramdisk tokens: what lets a booted installer ask for its certificate, once.

A token is bound to one machine and one boot (the session), lives at most ten minutes, and is signed with a key that
all replicas of a partition share, so that any of them can answer. That it works only once is remembered per replica:
reusing one on another replica within its lifetime is possible for whoever has read the kernel command line, and is
bounded by that lifetime.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import secrets
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

LIFETIME = 600.0
"""Seconds from the boot script to the certificate: loading a ramdisk over a slow link, and a slow firmware."""

MAX_LENGTH = 1024
_MIN_KEY = 16
_MAX_USED = 100_000


class TokenRefusal(StrEnum):
    """Why a token is refused. For logs; whoever asked only learns that it was refused."""

    MALFORMED = "malformed"
    SIGNATURE = "signature"
    OTHER_MACHINE = "other machine"
    EXPIRED = "expired"
    USED = "used before"


class TokenRefused(Exception):
    """The token does not open anything."""

    def __init__(self, refusal: TokenRefusal) -> None:
        super().__init__(refusal.value)
        self.refusal = refusal


@dataclass(frozen=True, slots=True)
class Redeemed:
    """What a good token says."""

    machine_id: str
    session: str


class RamdiskTokens:
    """Issues and redeems tokens. `clock` gives seconds since the epoch."""

    def __init__(self, key: bytes, clock: Callable[[], float], *, lifetime: float = LIFETIME) -> None:
        if len(key) < _MIN_KEY:
            raise ValueError(f"the token key needs at least {_MIN_KEY} bytes")
        if not 0 < lifetime <= LIFETIME:
            raise ValueError(f"a token lives at most {LIFETIME:.0f} s")
        self._key = key
        self._clock = clock
        self._lifetime = lifetime
        self._used: OrderedDict[str, float] = OrderedDict()

    def issue(self, machine_id: str, session: str) -> str:
        """A token for one boot of one machine."""
        claims = {
            "m": machine_id,
            "s": session,
            "e": self._clock() + self._lifetime,
            "n": secrets.token_urlsafe(12),
        }
        body = _encode(json.dumps(claims, separators=(",", ":")).encode())
        return f"{body}.{_encode(self._sign(body))}"

    def redeem(self, token: str, machine_id: str) -> Redeemed:
        """Use a token up. Raises TokenRefused."""
        body, dot, signature = token.partition(".")
        if not dot or len(token) > MAX_LENGTH or not token.isascii():
            raise TokenRefused(TokenRefusal.MALFORMED)
        if not hmac.compare_digest(_encode(self._sign(body)).encode(), signature.encode()):
            raise TokenRefused(TokenRefusal.SIGNATURE)
        try:
            claims = json.loads(_decode(body))
            owner, session, end, nonce = claims["m"], claims["s"], float(claims["e"]), claims["n"]
        except (ValueError, TypeError, KeyError, binascii.Error) as error:
            raise TokenRefused(TokenRefusal.MALFORMED) from error
        if owner != machine_id:
            raise TokenRefused(TokenRefusal.OTHER_MACHINE)
        now = self._clock()
        if not now < end <= now + LIFETIME:
            raise TokenRefused(TokenRefusal.EXPIRED)
        self._forget(now)
        if nonce in self._used:
            raise TokenRefused(TokenRefusal.USED)
        self._used[nonce] = end
        return Redeemed(owner, session)

    def _sign(self, body: str) -> bytes:
        # The prefix keeps a signature made for another purpose with the same key from being taken for a token.
        return hmac.digest(self._key, b"metalplane ramdisk token\n" + body.encode(), hashlib.sha256)

    def _forget(self, now: float) -> None:
        """Tokens expire in the order they were used, give or take; the size is bounded in any case."""
        while self._used:
            nonce, end = next(iter(self._used.items()))
            if end > now and len(self._used) < _MAX_USED:
                return
            del self._used[nonce]


def _encode(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def _decode(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
