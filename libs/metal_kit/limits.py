"""How much one caller may ask of one server, so that he cannot starve the others: calls a second, calls and streams at
once.

A caller is who he has proved to be: a user whatever his tokens, an agent, a service. Who has proved nothing yet is his
address. What each kind of caller may, `DEFAULTS` says, and the settings of a service may say otherwise. Services of the
plane are not limited by rate: their own pools and queues bound them, and what they ask for is what others wait for.

Everything here is pure: the clock is the argument `now`, in seconds, monotonic. Messages within a stream are not
counted (flow control holds them), and each replica of a service counts for itself.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, Literal

from metal_kit.errors import ResourceExhausted

Kind = Literal["service", "agent", "user", "stranger"]
RATE_LIMITED, TOO_MANY_CALLS, TOO_MANY_STREAMS = "RATE_LIMITED", "TOO_MANY_CALLS", "TOO_MANY_STREAMS"
REASONS = (RATE_LIMITED, TOO_MANY_CALLS, TOO_MANY_STREAMS)
# Callers that are remembered. One that has nothing running and has long been silent is a new one the next time.
REMEMBERED = 10_000
# Nobody knows when a running call will end; who asks once a second learns it soon enough.
_AFTER_A_CALL = timedelta(seconds=1)
_AFTER_A_STREAM = timedelta(seconds=5)
# Whoever is refused over and over has one log line in this time, and a metric for the rest.
COMPLAIN_EVERY = 1.0
# Looked at in search of one that may be forgotten; beyond that the table grows by one.
_CANDIDATES = 8
_KINDS: Mapping[str, Kind] = {
    "service": "service",
    "bmc": "service",
    "boot": "service",
    "leaf": "agent",
    "machine": "agent",
    "user": "user",
}


@dataclass(frozen=True, slots=True)
class Allowance:
    """What one caller may: `rate` calls a second in the long run (0: no limit) and `burst` at once after a silence,
    and so many calls and streams that run at the same time."""

    rate: float
    burst: int
    calls: int
    streams: int

    def __post_init__(self) -> None:
        if not 0 <= self.rate <= 1e6:
            raise ValueError("rate: must be between 0 (no limit) and 1000000 calls a second")
        for name in ("burst", "calls", "streams"):
            if not 1 <= getattr(self, name) <= 1_000_000:
                raise ValueError(f"{name}: must be between 1 and 1000000")


Allowances = Mapping[Kind, Allowance]
DEFAULTS: Allowances = {
    "service": Allowance(rate=0, burst=1, calls=1000, streams=1000),
    # A machine or a leaf has one stream. One that was cut off may come back before its old ones are found dead.
    "agent": Allowance(rate=20, burst=200, calls=20, streams=10),
    "user": Allowance(rate=100, burst=500, calls=250, streams=100),
    "stranger": Allowance(rate=20, burst=100, calls=50, streams=10),
}


def read_allowance(text: str, kind: Kind) -> Allowance:
    """An allowance from a setting: `rate=50,calls=100` changes these two of the default. Raises ValueError."""
    given: dict[str, Any] = {}
    for part in text.split(","):
        name, equals, value = (each.strip() for each in part.partition("="))
        if not name and not equals:
            continue
        if name not in Allowance.__slots__:
            raise ValueError(f"{name or part!r} is none of {', '.join(Allowance.__slots__)}: write rate=50,calls=100")
        try:
            given[name] = float(value) if name == "rate" else int(value)
        except ValueError:
            raise ValueError(f"{name}: {value!r} is not a number") from None
    return replace(DEFAULTS[kind], **given)


def kind_of(kind: str) -> Kind:
    """The kind that limits know a caller's kind by (`metal_kit.identity.Caller.kind`)."""
    return _KINDS.get(kind, "stranger")


class Account:
    """What one caller has running, and how much of his allowance is left."""

    __slots__ = ("_allowance", "_full_at", "_interval", "_refused_at", "_span", "calls", "kind", "name", "streams")

    def __init__(self, name: str, kind: Kind, allowance: Allowance) -> None:
        self.name, self.kind, self._allowance = name, kind, allowance
        # The bucket as one number: the moment at which it would be full again (generic cell rate algorithm, ITU-T
        # I.371 annex A). A call moves it by one interval; it may be ahead of now by a burst of them.
        self._interval = 1 / allowance.rate if allowance.rate else 0.0
        self._span = self._interval * allowance.burst
        self._full_at = 0.0
        self._refused_at = float("-inf")
        self.calls = 0
        self.streams = 0

    @property
    def busy(self) -> bool:
        """Whether something of the caller is running."""
        return bool(self.calls or self.streams)

    def enter(self, now: float, *, stream: bool) -> None:
        """Let one more call in; `leave` ends it. Raises ResourceExhausted, which says when to come again."""
        allowance = self._allowance
        if stream:
            if self.streams >= allowance.streams:
                raise self._refusal(TOO_MANY_STREAMS, f"{allowance.streams} open streams", _AFTER_A_STREAM)
        elif self.calls >= allowance.calls:
            raise self._refusal(TOO_MANY_CALLS, f"{allowance.calls} calls at once", _AFTER_A_CALL)
        if self._interval:
            full_at = max(self._full_at, now) + self._interval
            # A tick's worth of tolerance: sums of floats must not refuse a call that is due now.
            if full_at - now > self._span + 1e-9:
                wait = timedelta(seconds=full_at - now - self._span)
                limit = f"{allowance.rate:g} calls a second and {allowance.burst} at once after a pause"
                raise self._refusal(RATE_LIMITED, limit, wait)
            self._full_at = full_at
        if stream:
            self.streams += 1
        else:
            self.calls += 1

    def leave(self, *, stream: bool) -> None:
        """One call has ended."""
        if stream:
            self.streams -= 1
        else:
            self.calls -= 1

    def refund(self) -> None:
        """Give back what the last `enter` took of the rate."""
        self._full_at -= self._interval

    def silenced(self, now: float) -> bool:
        """Whether the caller was refused a moment ago already, so that this refusal needs no log line."""
        if now - self._refused_at < COMPLAIN_EVERY:
            return True
        self._refused_at = now
        return False

    def _refusal(self, reason: str, limit: str, wait: timedelta) -> ResourceExhausted:
        return ResourceExhausted(
            reason, f"{self.name} is limited to {limit} here", metadata={"limit": limit}, retry_after=wait
        )


class Limiter:
    """The accounts of a server's callers. Not for use by several threads."""

    def __init__(self, allowances: Allowances | None = None, *, remembered: int = REMEMBERED) -> None:
        self._allowances = {**DEFAULTS, **(allowances or {})}
        self._remembered = remembered
        self._accounts: OrderedDict[str, Account] = OrderedDict()

    @property
    def known(self) -> int:
        """How many callers are remembered."""
        return len(self._accounts)

    def account(self, name: str, kind: Kind) -> Account:
        """The account of a caller; `name` is unique among all kinds."""
        account = self._accounts.get(name)
        if account is None:
            account = self._accounts[name] = Account(name, kind, self._allowances[kind])
            if len(self._accounts) > self._remembered:
                self._forget_one()
        else:
            self._accounts.move_to_end(name)
        return account

    def _forget_one(self) -> None:
        """Forget the caller that has been silent for longest. One with a stream open is not forgotten, or he could open
        as many again."""
        for _ in range(min(_CANDIDATES, len(self._accounts) - 1)):
            name, account = next(iter(self._accounts.items()))
            if not account.busy:
                del self._accounts[name]
                return
            self._accounts.move_to_end(name)
