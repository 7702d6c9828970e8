"""Versions of operating systems and constraints on them.

A version is ``major[.minor[.patch]]``. A constraint is ``*`` or one or more ``<operator> <version>`` joined by commas,
operator and version separated by a space. A version with missing parts stands for all versions below it, so
``<= 12`` includes 12.7 and ``> 12`` does not. Every constraint is one interval, which makes overlap exact.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

Version = tuple[int, int, int]

_VERSION = re.compile(r"(0|[1-9]\d{0,8})(?:\.(0|[1-9]\d{0,8}))?(?:\.(0|[1-9]\d{0,8}))?")
_FIRST: Version = (0, 0, 0)
_OPERATORS = ("=", ">", ">=", "<", "<=", "~", "^")


@dataclass(frozen=True, slots=True)
class VersionRange:
    """Versions from ``low`` up to, not including, ``high``; no upper end when ``high`` is None."""

    low: Version = _FIRST
    high: Version | None = None

    @property
    def empty(self) -> bool:
        """Whether no version is inside."""
        return self.high is not None and self.high <= self.low

    def __contains__(self, version: Version) -> bool:
        return self.low <= version and (self.high is None or version < self.high)

    def intersection(self, other: VersionRange) -> VersionRange:
        """The versions in both."""
        highs = [high for high in (self.high, other.high) if high is not None]
        return VersionRange(max(self.low, other.low), min(highs) if highs else None)


def parse_version(text: str) -> tuple[Version, int]:
    """The version with missing parts as zero, and how many parts were given; ValueError when it is none."""
    found = _VERSION.fullmatch(text)
    if found is None:
        raise ValueError(f"{text!r} is not a version like 12, 12.4 or 12.4.20250101")
    parts = [int(part) for part in found.groups() if part is not None]
    padded = parts + [0] * (3 - len(parts))
    return (padded[0], padded[1], padded[2]), len(parts)


def spanned(text: str) -> VersionRange:
    """All versions that a version with missing parts stands for (the tilde range)."""
    version, given = parse_version(text)
    return VersionRange(version, _after(version, given))


def parse_constraint(text: str) -> VersionRange:
    """The range that a constraint allows; ValueError says what is wrong and how to write it."""
    if text == "*":
        return VersionRange()
    allowed = VersionRange()
    for term in text.split(","):
        words = term.split()
        if len(words) != 2 or words[0] not in _OPERATORS:
            raise ValueError(
                f"{term.strip()!r} is not `*` or an operator ({' '.join(_OPERATORS)}), a space and a version"
            )
        allowed = allowed.intersection(_term(words[0], words[1]))
    if allowed.empty:
        raise ValueError(f"{text!r} allows no version at all")
    return allowed


def _term(operator: str, text: str) -> VersionRange:
    version, given = parse_version(text)
    after = _after(version, given)
    match operator:
        case "=":
            return VersionRange(version, after)
        case ">":
            return VersionRange(after)
        case ">=":
            return VersionRange(version)
        case "<":
            return VersionRange(_FIRST, version)
        case "<=":
            return VersionRange(_FIRST, after)
        case "~":
            return VersionRange(version, _after(version, min(given, 2)))
        case _:
            return VersionRange(version, _after(version, 1))


def _after(version: Version, parts: int) -> Version:
    major, minor, patch = version
    return ((major + 1, 0, 0), (major, minor + 1, 0), (major, minor, patch + 1))[parts - 1]
