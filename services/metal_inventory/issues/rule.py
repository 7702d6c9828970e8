"""What an issue rule is, and the facts that rules look at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import IntEnum

from metal_inventory.lifecycle import Event, State
from metal_inventory.liveliness import Liveliness

LAST_ERROR_THRESHOLD = timedelta(days=7)
"""Errors older than this are history, unless the caller asks for another limit."""

BMC_INFO_LIMIT = timedelta(minutes=20)
"""A BMC that has not been read for longer than this is out of sight."""


class Severity(IntEnum):
    """How bad an issue is; a higher number is worse."""

    MINOR = 1
    MAJOR = 2
    CRITICAL = 3


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known about one machine when its issues are evaluated.

    ``bmc_address_shared_with`` holds the *other* machines with the same BMC address, out of all machines and not
    only out of those that somebody asked about: duplicates outside a filter are just as harmful.
    """

    machine_id: str
    now: datetime
    partition: str = ""
    allocated: bool = False
    state: State = State.INITIAL
    liveliness: Liveliness = Liveliness.NOT_AVAILABLE
    last_event_time: datetime | None = None
    last_error: Event | None = None
    last_error_threshold: timedelta = LAST_ERROR_THRESHOLD
    crash_loop: bool = False
    failed_machine_reclaim: bool = False
    bmc_mac: str = ""
    bmc_address: str = ""
    bmc_updated: datetime | None = None
    bmc_fault: str = ""
    bmc_address_shared_with: tuple[str, ...] = ()
    quarantined_disks: tuple[str, ...] = ()
    cabling_problem: str = ""
    matching_sizes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Rule:
    """One issue: when ``evaluate`` returns a text the machine has it, and the text gives the details."""

    id: str
    severity: Severity
    description: str
    evaluate: Callable[[Facts], str | None]


def age(facts: Facts, time: datetime) -> str:
    """How long ago ``time`` was, in whole minutes, for people."""
    return f"{int((facts.now - time).total_seconds() // 60)} min ago"
