"""Generations that are not tried again: the reason, what differed, and what ends it. Kept on the leaf's disk.

A state that cannot work is set aside at once, one that failed on the way after several attempts, one that cut the leaf
off from the plane when it was taken back. A newer generation is always tried. The same one is tried again when a person
says so (`metal-core retry` removes the file), when the leaf went through an outage after the attempts, or when it turns
out that the plane was out of reach by itself. Failures of Redis or FRR before anything was touched never count.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from metal_kit import logs

from metal_core.compare import Differences, RowDifference
from metal_core.desired import Desired
from metal_core.known_good import replace_file
from metal_core.outcome import Failure, Outcome

FORMAT = 1
# Attempts that may fail on the way before a generation is set aside.
ATTEMPTS = 3
# Seconds in which a plane that was out of reach because of the generation is heard again after it was taken back: the
# longest pause between two connections and what it takes to make one.
BLAME = 60.0
# Differences that are kept, of each kind; as many as a report carries.
_KEPT = 100
_log = logs.get_logger("metal_core.quarantine")


@dataclass(frozen=True, slots=True)
class Entry:
    """What is known about a generation that failed. Without a `reason` it is still tried.

    `since` is in seconds since the epoch. `unheard`: it was taken back because the plane was not heard, and the plane
    has not been heard since.
    """

    generation: int
    digest: str
    failures: int
    reason: str
    phase: str
    differences: Differences
    since: float
    unheard: bool = False


class Quarantine:
    """Remembers the newest generation that failed, in `directory`; without one only as long as the process lives."""

    def __init__(self, directory: Path | None = None, *, clock: Callable[[], float] = time.time) -> None:
        self.path = directory / "quarantine.json" if directory is not None else None
        self._clock = clock
        self._on_disk = False
        self.entry: Entry | None = None

    async def load(self) -> None:
        """Read the file; one that cannot be read counts as none, since trying again harms less than never doing so."""
        if self.path is not None:
            self.entry = await asyncio.to_thread(_read, self.path)
            self._on_disk = self.entry is not None

    @property
    def sets_aside(self) -> bool:
        """Whether there is a generation that is not tried."""
        return self.entry is not None and bool(self.entry.reason)

    def reason(self, desired: Desired) -> str:
        """Why `desired` is not tried; empty when it is."""
        return self.entry.reason if self.entry is not None and _is_about(self.entry, desired) else ""

    async def failed(self, desired: Desired, outcome: Outcome) -> str:
        """Count a failed run and say why the generation is not tried again, empty when it is."""
        if outcome.failure not in (Failure.FAILED, Failure.INVALID):
            return ""
        before = self.entry.failures if self.entry is not None and _is_about(self.entry, desired) else 0
        reason = ""
        if outcome.failure is Failure.INVALID:
            reason = f"it can never be applied here: {outcome.error}"
        elif before + 1 >= ATTEMPTS:
            reason = f"{before + 1} attempts failed, the last one in phase {outcome.phase}: {outcome.error}"
        await self._keep(_entry(desired, before + 1, reason, outcome, self._clock()))
        return reason

    async def cut_off(self, desired: Desired, reason: str) -> None:
        """`desired` was taken back because the plane was not heard after it."""
        await self._keep(
            replace(_entry(desired, 1, reason, Outcome(False, phase="confirm"), self._clock()), unheard=True)
        )

    async def passed(self, desired: Desired) -> None:
        """`desired` was applied: what is known of itself or of an older generation does not matter any more."""
        if self.entry is not None and (_is_about(self.entry, desired) or desired.generation > self.entry.generation):
            await self._keep(None)

    @property
    def awaits_plane(self) -> bool:
        """Whether it is open who was to blame that the plane was not heard."""
        return self.entry is not None and self.entry.unheard

    async def heard(self) -> bool:
        """The plane was heard again after a generation was taken back; whether that generation is to be tried again.

        Soon afterwards: the generation had cut it off. Much later: the plane was out of reach by itself.
        """
        if self.entry is None or not self.entry.unheard:
            return False
        soon = 0 <= self._clock() - self.entry.since <= BLAME
        await self._keep(replace(self.entry, unheard=False) if soon else None)
        return not soon

    async def relent(self) -> None:
        """The leaf has been through an outage since: whatever kept the generation from working may have gone by it."""
        if self.entry is not None and self.entry.failures >= ATTEMPTS:
            _log.info("quarantine.tried_once_more", generation=self.entry.generation)
            await self._keep(replace(self.entry, reason="", failures=ATTEMPTS - 1))

    async def end(self) -> Entry | None:
        """Have what was set aside tried again, by the agent that runs or by the next one; what is known of it, None for
        nothing. Of a generation that is tried anyway the failures stay. Raises OSError when the file cannot be removed.
        """
        await self.load()
        entry = self.entry
        if self.path is not None and (entry is None or self.sets_aside):
            # Also one that cannot be read: an agent that runs may know what stood in it.
            await asyncio.to_thread(self.path.unlink, missing_ok=True)
        return entry

    async def ended_by_a_person(self) -> bool:
        """Whether somebody removed the file; the generation is tried again then."""
        if self.path is None or not self._on_disk or await asyncio.to_thread(self.path.exists):
            return False
        self.entry, self._on_disk = None, False
        return True

    async def _keep(self, entry: Entry | None) -> None:
        self.entry = entry
        if self.path is None:
            return
        try:
            if entry is None:
                await asyncio.to_thread(self.path.unlink, missing_ok=True)
            else:
                text = json.dumps({"format": FORMAT} | asdict(entry), indent=1, sort_keys=True) + "\n"
                await asyncio.to_thread(replace_file, self.path, text)
            self._on_disk = entry is not None
        except OSError as error:
            # It still holds for this process; a full disk must not keep the leaf from its other states.
            _log.error("quarantine.not_stored", path=str(self.path), error=repr(error))


def _entry(desired: Desired, failures: int, reason: str, outcome: Outcome, now: float) -> Entry:
    differences = Differences(outcome.differences.rows[:_KEPT], outcome.differences.lines[:_KEPT])
    return Entry(desired.generation, desired.digest, failures, reason, outcome.phase, differences, now)


def _is_about(entry: Entry, desired: Desired) -> bool:
    return (entry.generation, entry.digest) == (desired.generation, desired.digest)


def _read(path: Path) -> Entry | None:
    try:
        return _from_json(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        _log.error("quarantine.unreadable", path=str(path), error=repr(error))
        return None


def _from_json(data: Mapping[str, Any]) -> Entry:
    if data["format"] != FORMAT:
        raise ValueError(f"format {data['format']!r} is not {FORMAT}")
    rows = tuple(RowDifference(**row) for row in data["differences"]["rows"])
    return Entry(
        generation=int(data["generation"]),
        digest=str(data["digest"]),
        failures=int(data["failures"]),
        reason=str(data["reason"]),
        phase=str(data["phase"]),
        differences=Differences(rows, tuple(str(line) for line in data["differences"]["lines"])),
        since=float(data["since"]),
        unheard=bool(data["unheard"]),
    )
