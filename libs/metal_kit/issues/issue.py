"""An issue, and who finds some."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from enum import IntEnum


class Severity(IntEnum):
    """How bad an issue is; the numbers are those of the contract."""

    MINOR = 1
    MAJOR = 2
    CRITICAL = 3


@dataclass(frozen=True, slots=True)
class Issue:
    """Something that is wrong. `id` is the same for as long as it lasts; `since` has a time zone."""

    id: str
    severity: Severity
    subject: str
    details: str
    since: datetime


Source = Callable[[datetime], Awaitable[list[Issue]]]
"""Finds what is wrong at a moment, which is now."""


def worst_first(issues: Iterable[Issue]) -> list[Issue]:
    """The order of lists: by severity, then by id."""
    return sorted(issues, key=lambda issue: (-issue.severity, issue.id))
