"""Bearer tokens: whom they speak for, asked of tenancy and remembered for at most five seconds.

The cache is what makes a token affordable and the five seconds are how long a revoked one may still work. It is keyed
by a hash, so a memory dump of it yields no tokens. Nothing is trusted while tenancy cannot be asked.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import OrderedDict
from contextvars import Context
from datetime import timedelta
from typing import Any, Protocol

from metalplane.tenancy.v1.token_pb2 import CheckTokenRequest, Token

from metal_kit.errors import Problem, ResourceExhausted, Unauthenticated, Unavailable
from metal_kit.identity import Caller

MAX_AGE = 5.0
MAX_ENTRIES = 4096
MAX_SECRET = 8192
# Checks at once of tokens of which nothing is known. What tenancy takes of this service is for the others' tokens too.
MAX_STRANGERS = 64
CHECK_UNAVAILABLE = "TOKEN_CHECK_UNAVAILABLE"
_BEARER = "bearer "


class TokenChecker(Protocol):
    """Says whom a token speaks for; raises Unauthenticated when it does not hold."""

    async def check(self, secret: str) -> Caller:
        """The caller behind the token."""


class RemoteTokenChecker:
    """Asks tenancy's TokenService.CheckToken through a stub of `metal_kit.client.Peers`."""

    def __init__(self, stub: Any) -> None:
        self._stub = stub

    async def check(self, secret: str) -> Caller:
        """The caller behind the token. Raises Unauthenticated, or Unavailable when tenancy cannot be asked."""
        try:
            answer = await self._stub.CheckToken(CheckTokenRequest(secret=secret), timeout=3)
        except Unauthenticated:
            raise
        except Problem as problem:
            # Without an answer the caller is unknown. That is our trouble, not the fault of his token.
            raise Unavailable(
                CHECK_UNAVAILABLE, "tokens cannot be checked at the moment", retry_after=problem.retry_after
            ) from problem
        return caller_of(answer.token)


def caller_of(token: Token) -> Caller:
    """The caller that a checked token describes."""
    return Caller(
        "user",
        token.user,
        token_id=token.id,
        projects=dict(token.project_roles),
        tenants=dict(token.tenant_roles),
        plane_role=token.plane_role,
    )


class TokenVerifier:
    """A bounded cache in front of a TokenChecker; concurrent questions about one token share one check."""

    def __init__(
        self,
        checker: TokenChecker,
        *,
        max_age: float = MAX_AGE,
        max_entries: int = MAX_ENTRIES,
        max_strangers: int = MAX_STRANGERS,
    ) -> None:
        self._checker = checker
        self._max_age = min(max_age, MAX_AGE)
        self._max_entries = max_entries
        # Caller, or the refusal, with the moment (monotonic) from which it must be asked anew.
        self._known: OrderedDict[bytes, tuple[Caller | Unauthenticated, float]] = OrderedDict()
        self._running: dict[bytes, asyncio.Task[Caller]] = {}
        self._max_strangers = max_strangers
        self._strangers: set[bytes] = set()

    def known(self, secret: str) -> Caller | None:
        """The caller from the cache, or None when the token has to be checked; raises a remembered refusal anew."""
        entry = self._known.get(_key(secret))
        if entry is None or entry[1] <= time.monotonic():
            return None
        outcome = entry[0]
        if isinstance(outcome, Unauthenticated):
            raise Unauthenticated(outcome.reason, outcome.message)
        return outcome

    def last_known(self, secret: str) -> Caller | None:
        """Whom the token spoke for when it was last asked about, however long ago: good for counting calls, and for
        nothing else. None for one that was refused, or is unknown here."""
        entry = self._known.get(_key(secret))
        return entry[0] if entry is not None and isinstance(entry[0], Caller) else None

    async def verify(self, secret: str) -> Caller:
        """The caller behind the token. Raises Unauthenticated, or Unavailable when it cannot be checked now."""
        return self.known(secret) or await self.ask(secret)

    async def ask(self, secret: str, *, stranger: bool = False) -> Caller:
        """The same, asked now whatever is remembered: roles may have been given since.

        `stranger`: nothing is known of the token. Such questions do not keep those waiting whose tokens are known; with
        too many of them at once it raises ResourceExhausted.
        """
        key = _key(secret)
        running = self._running.get(key)
        if running is None:
            if stranger:
                if len(self._strangers) >= self._max_strangers:
                    raise ResourceExhausted(
                        "TOO_MANY_CHECKS",
                        f"{self._max_strangers} unknown tokens are being checked already",
                        retry_after=timedelta(seconds=1),
                    )
                self._strangers.add(key)
            # An empty context: the check must not inherit the deadline of whoever happens to ask first.
            running = asyncio.create_task(self._check(key, secret), name="token check", context=Context())
            self._running[key] = running
            running.add_done_callback(lambda task: self._finished(key, task))
        # Shielded: the one who asked first may hang up, the others still want the answer.
        return await asyncio.shield(running)

    async def _check(self, key: bytes, secret: str) -> Caller:
        # Age counts from the question: what tenancy knew is as old as that.
        expires = time.monotonic() + self._max_age
        try:
            caller = await self._checker.check(secret)
        except Unauthenticated as refusal:
            self._remember(key, refusal, expires)
            raise
        self._remember(key, caller, expires)
        return caller

    def _finished(self, key: bytes, task: asyncio.Task[Caller]) -> None:
        self._running.pop(key, None)
        self._strangers.discard(key)
        if not task.cancelled():
            task.exception()  # marks it as seen: when every asker has hung up, nobody else looks at it

    def _remember(self, key: bytes, outcome: Caller | Unauthenticated, expires: float) -> None:
        self._known[key] = (outcome, expires)
        self._known.move_to_end(key)
        while len(self._known) > self._max_entries:
            self._known.popitem(last=False)


def bearer(header: str) -> str:
    """The token of an `authorization` header. Raises Unauthenticated for another scheme or an absurd length."""
    if not header[: len(_BEARER)].lower().startswith(_BEARER) or len(header) > MAX_SECRET:
        raise Unauthenticated("AUTHORIZATION_MALFORMED", "the authorization metadata must be `Bearer <token>`")
    secret = header[len(_BEARER) :].strip()
    if not secret:
        raise Unauthenticated("AUTHORIZATION_MALFORMED", "the authorization metadata must be `Bearer <token>`")
    return secret


def _key(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()
