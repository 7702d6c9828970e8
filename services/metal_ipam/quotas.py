"""Quotas: how much a project may hold at once, by kind. Pure; what is held is the store's to count."""

from __future__ import annotations

from dataclasses import dataclass, fields

from metal_kit.errors import ResourceExhausted


@dataclass(frozen=True, slots=True)
class Amounts:
    """How many of each kind."""

    ipv4_addresses: int = 0
    ipv6_addresses: int = 0
    prefixes: int = 0


@dataclass(frozen=True, slots=True)
class Quota:
    """The limits of a project; None does not limit."""

    project: str
    ipv4_addresses: int | None = None
    ipv6_addresses: int | None = None
    prefixes: int | None = None
    version: int = 0

    def limits(self, wanted: Amounts) -> bool:
        """Whether any kind of what is wanted has a limit."""
        return any(getattr(wanted, kind) and getattr(self, kind) is not None for kind in KINDS)


KINDS = tuple(each.name for each in fields(Amounts))


def check(quota: Quota, held: Amounts, wanted: Amounts) -> None:
    """Whether the project may have what it wants besides what it holds.

    Raises:
        ResourceExhausted: QUOTA_EXHAUSTED, naming the quota and how much of it is used.
    """
    for kind in KINDS:
        limit, used, more = getattr(quota, kind), getattr(held, kind), getattr(wanted, kind)
        if more and limit is not None and used + more > limit:
            what = kind.replace("_", " ").replace("ipv", "IPv")
            raise ResourceExhausted(
                "QUOTA_EXHAUSTED",
                f"the project's quota of {limit} {what} does not suffice: {used} are held, {more} more are wanted; "
                "release some, or have it raised",
                metadata={
                    "quota": kind,
                    "limit": str(limit),
                    "used": str(used),
                    "wanted": str(more),
                    "project": quota.project,
                },
            )
