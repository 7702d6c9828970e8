"""A new generation is on trial until the plane has been heard after it: else the leaf goes back to the confirmed one.

Two files keep that across crashes and restarts. The known good state is the one that was confirmed, or that was never
in doubt. The candidate is written before anything is touched, again with its time when it is proven, and becomes the
known good state when the plane is heard. A leaf that has no confirmed state has nowhere to go back to, so its first
state is known good as soon as it is proven; so is one that takes somebody off a tenant's network, since the plane may
have heard of that though its answer was lost, and a freed machine must not come back.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from metal_kit import logs

from metal_core.desired import Desired, PortRole, from_json, to_json
from metal_core.former import FormerFields, standing_of
from metal_core.known_good import KnownGood, KnownGoodFile, replace_file
from metal_core.outcome import Standing

FORMAT = 1
# Seconds that an agent which was away meanwhile has at least to hear the plane, once a trial.
GRACE = 60.0
_log = logs.get_logger("metal_core.confirm")


@dataclass(frozen=True, slots=True)
class Candidate:
    """A state on trial. `proven_at` is when it was applied and verified, in seconds since the epoch; None before.

    `extended`: an agent that had been away has got its time to hear the plane.
    """

    desired: Desired
    proven_at: float | None
    extended: bool = False


class Trials:
    """What is confirmed and what is on trial, and in `fields` what a way back has to bring back beside the states.

    `limit` is the seconds that a trial lasts where the state itself does not say it; 0: there are no trials at all.
    """

    def __init__(
        self, known_good: KnownGoodFile, *, limit: float = 0.0, clock: Callable[[], float] = time.time
    ) -> None:
        self._file, self._limit, self._clock = known_good, limit, clock
        self._path = _beside(known_good)
        self._loaded = False
        self._earlier: Candidate | None = None
        self._previous: KnownGood | None = None
        self.fields = FormerFields(known_good.path.with_name("fields-before.json"))
        self.good: KnownGood | None = None
        self.candidate: Candidate | None = None

    async def load(self) -> None:
        """Read both files; afterwards `good` and `candidate` are what they say. Only the first call reads.

        A trial whose time has run out while the agent, or the whole leaf, was down has proven nothing. Raises OSError
        when that cannot be noted.
        """
        if self._loaded:
            return
        self.good, self._previous = await self._file.load(), await self._file.previous.load()
        await self.fields.load()
        candidate = await asyncio.to_thread(_read, self._path)
        self._loaded = True
        if not self._limit:
            return
        if candidate is not None and (self.good is None or candidate.desired == self.good.desired):
            # Confirmed just before a crash, or there is nothing left to go back to.
            await self._forget()
            return
        self.candidate = candidate
        if candidate is not None and self.left is not None and not candidate.extended:
            limit = self.limit_of(candidate.desired)
            if self.left < (grace := min(GRACE, limit)):
                await self._store(replace(candidate, proven_at=self._clock() - limit + grace, extended=True))

    @property
    def on_trial(self) -> Candidate | None:
        """The proven candidate that the plane has not been heard after."""
        return self.candidate if self.candidate is not None and self.candidate.proven_at is not None else None

    @property
    def left(self) -> float | None:
        """Seconds until the leaf goes back, 0 when it is time, None when nothing is on trial."""
        if self.on_trial is None or self.on_trial.proven_at is None or self.good is None:
            return None
        # A clock that was set, either way, makes a trial neither longer than a whole one nor endless.
        limit = self.limit_of(self.on_trial.desired)
        return min(max(self.on_trial.proven_at + limit - self._clock(), 0.0), limit)

    def limit_of(self, desired: Desired) -> float:
        """How many seconds a trial of `desired` lasts."""
        return float(desired.confirm_seconds or self._limit) if self._limit else 0.0

    @property
    def ways_back(self) -> tuple[Standing, ...]:
        """The states that the agent or a person may bring the leaf back to."""
        known = (self.good, self._previous, self.candidate, self._earlier)
        return tuple(dict.fromkeys(standing_of(each.desired) for each in known if each is not None))

    async def begin(self, desired: Desired) -> None:
        """The leaf is about to be changed for `desired`. Raises OSError when that cannot be noted."""
        await self.load()
        if not self._limit or self.good is None or self.good.desired == desired:
            return
        if takes_off(self.good.desired, desired):
            return
        if self.candidate is None or self.candidate.desired != desired:
            self._earlier = self.on_trial
            await self._store(Candidate(desired, None))

    async def given_up(self, desired: Desired) -> None:
        """What `begin` announced did not work, and the leaf has again what it had before."""
        if self.candidate is None or self.candidate.desired != desired or self.candidate.proven_at is not None:
            return
        try:
            await (self._store(self._earlier) if self._earlier is not None else self._forget())
        except OSError as error:
            _log.error("trial.not_noted", error=repr(error))

    async def proven(self, desired: Desired, *, idle: bool = False) -> None:
        """The leaf has `desired`; with `idle` it had it before the run. Raises OSError when the disk refuses."""
        await self.load()
        if self.good is not None and self.good.desired == desired:
            await self._forget()
        elif self.candidate is not None and (self.candidate.desired == desired or idle):
            # Also another generation's trial goes on, where this one only gave the same content another number.
            proven = replace(self.candidate, desired=desired, proven_at=self.candidate.proven_at or self._clock())
            if proven != self.candidate:
                await self._store(proven)
        else:
            await self._confirm(desired)

    async def heard(self) -> bool:
        """The plane was heard after the candidate was proven: it is the known good state from here on.

        Whether there was one on trial. Raises OSError when the disk refuses.
        """
        if self.on_trial is None:
            return False
        await self._confirm(self.on_trial.desired)
        return True

    async def _confirm(self, desired: Desired) -> None:
        good = KnownGood(desired, self._clock())
        await self._file.store(good)
        self.good, self._previous = good, await self._file.previous.load()
        await self._forget()

    async def _store(self, candidate: Candidate) -> None:
        text = json.dumps(_to_json(candidate), indent=1, sort_keys=True) + "\n"
        await asyncio.to_thread(replace_file, self._path, text)
        self.candidate = candidate

    async def _forget(self) -> None:
        await asyncio.to_thread(self._path.unlink, missing_ok=True)
        self.candidate = self._earlier = None


def takes_off(before: Desired, after: Desired) -> bool:
    """Whether a port reaches something of a tenant's in `before` that it does not reach in `after`."""
    ports = {port.name: port for port in after.ports}
    for port in before.with_role(PortRole.MACHINE, PortRole.FIREWALL):
        now = ports.get(port.name)
        if now is None or (now.role, now.vrf) != (port.role, port.vrf):
            return True
        if not set(port.vnis) <= set(now.vnis) or not set(port.allowed_prefixes) <= set(now.allowed_prefixes):
            return True
    return False


def read_candidate(known_good: KnownGoodFile) -> Candidate | None:
    """What is on trial beside a known good state, as the disk says it; for those who only look. Blocking."""
    return _read(_beside(known_good))


def _beside(known_good: KnownGoodFile) -> Path:
    return known_good.path.with_name("candidate.json")


def _read(path: Path) -> Candidate | None:
    try:
        return _from_json(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        # The known good state is still there; what was on trial comes again from the plane.
        _log.error("candidate.unreadable", path=str(path), error=repr(error))
        return None


def _to_json(candidate: Candidate) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "proven_at": candidate.proven_at,
        "extended": candidate.extended,
        "desired": to_json(candidate.desired),
    }


def _from_json(data: Mapping[str, Any]) -> Candidate:
    if data["format"] != FORMAT:
        raise ValueError(f"format {data['format']!r} is not {FORMAT}")
    proven_at = data["proven_at"]
    return Candidate(
        from_json(data["desired"]),
        None if proven_at is None else float(proven_at),
        bool(data["extended"]),
    )
