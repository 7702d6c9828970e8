"""What a reconciler is, and what its `act` can answer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Protocol

from metal_kit.db import Connection


@dataclass(frozen=True)
class Done:
    """Nothing is left to do until somebody enqueues the key again."""

    reason: str = ""
    message: str = ""


@dataclass(frozen=True)
class Wait:
    """Something else has to happen first; look again after `after`, or when woken. Not a failure.

    `reason` is UPPER_SNAKE_CASE, `message` says what is waited for, for people.
    """

    reason: str
    message: str
    after: timedelta


@dataclass(frozen=True)
class Go:
    """The object enters `phase`; it is reconciled again at once."""

    phase: str
    reason: str = ""
    message: str = ""


@dataclass(frozen=True)
class Failed:
    """An attempt failed; it is repeated after `retry_after`, or with exponential backoff when that is None."""

    reason: str
    message: str
    retry_after: timedelta | None = None


Outcome = Done | Wait | Go | Failed


class StaleSnapshot(Exception):
    """Raised by `save` when the object's version is no longer the snapshot's; the key is reconciled again at once."""


class Snapshot(Protocol):
    """What `load` gives: all that `act` decides by."""

    @property
    def phase(self) -> str:
        """Phase of the object; empty for objects without phases."""
        ...

    @property
    def version(self) -> int:
        """Version of the object's row."""
        ...


class Reconciler(Protocol):
    """The three steps for one kind of object. One instance serves all workers: keep no state of a key in it."""

    @property
    def kind(self) -> str:
        """Name of the kind in the queue, for example `allocation`."""
        ...

    @property
    def deadlines(self) -> Mapping[str, timedelta]:
        """How long each phase may last before it counts as overdue; a phase that is not named has no deadline."""
        ...

    async def load(self, connection: Connection, key: str) -> Any | None:
        """The snapshot of the object (see `Snapshot`), or None when it is gone."""
        ...

    async def act(self, snapshot: Any) -> Outcome:
        """Do the next step, with no transaction open. A raised Problem counts as Failed with its reason."""
        ...

    async def save(self, connection: Connection, snapshot: Any, outcome: Outcome, *, overdue: bool) -> None:
        """Write what follows from the outcome: phase, conditions, events; in one transaction with the queue's row.

        Update `WHERE version = snapshot.version` and raise StaleSnapshot when that hits nothing. Leave the row alone
        when nothing changed, since a waiting object is saved at every look.
        """
        ...


class Sweeping(Protocol):
    """A reconciler that can name what should be in the queue; the safety net for lost wake-ups."""

    async def sweep(self, connection: Connection) -> Iterable[str]:
        """Keys of all objects that are not in a state of rest."""
        ...
