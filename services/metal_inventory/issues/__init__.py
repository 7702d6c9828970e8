"""Issues: what is wrong with a machine, one small rule a file.

Rules are pure: they see the facts of one machine and answer with details or None. Add one by writing its file and
naming it in ``RULES``.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from metal_inventory.issues import (
    bmc_fault,
    bmc_info_outdated,
    bmc_no_distinct_ip,
    bmc_without_ip,
    bmc_without_mac,
    crash_loop,
    failed_machine_reclaim,
    last_event_error,
    liveliness_dead,
    liveliness_not_available,
    liveliness_unknown,
    no_cabling,
    no_event_container,
    no_partition,
    quarantined_disks,
    size_not_distinct,
)
from metal_inventory.issues.rule import LAST_ERROR_THRESHOLD, Facts, Rule, Severity

__all__ = ["IDS", "LAST_ERROR_THRESHOLD", "RULES", "Facts", "Issue", "Rule", "Severity", "evaluate", "unknown_ids"]

RULES: tuple[Rule, ...] = (
    no_partition.RULE,
    liveliness_dead.RULE,
    liveliness_unknown.RULE,
    liveliness_not_available.RULE,
    failed_machine_reclaim.RULE,
    crash_loop.RULE,
    last_event_error.RULE,
    bmc_without_mac.RULE,
    bmc_without_ip.RULE,
    bmc_info_outdated.RULE,
    bmc_fault.RULE,
    bmc_no_distinct_ip.RULE,
    no_event_container.RULE,
    quarantined_disks.RULE,
    no_cabling.RULE,
    size_not_distinct.RULE,
)


IDS: tuple[str, ...] = tuple(rule.id for rule in RULES)


@dataclass(frozen=True, slots=True)
class Issue:
    """A rule that holds for a machine, with the details."""

    rule: Rule
    details: str


def evaluate(
    facts: Facts,
    *,
    only: Collection[str] = (),
    omit: Collection[str] = (),
    severity: Severity = Severity.MINOR,
) -> list[Issue]:
    """The machine's issues of at least ``severity``, in the order of ``RULES``; ``omit`` wins over ``only``.

    A machine without any event has that one issue only: nothing else is known well enough to be reported.
    """
    silent = no_event_container.RULE.evaluate(facts) is not None
    rules = (no_event_container.RULE,) if silent else RULES
    found = []
    for rule in rules:
        if rule.severity < severity or rule.id in omit or (only and rule.id not in only):
            continue
        details = rule.evaluate(facts)
        if details is not None:
            found.append(Issue(rule, details))
    return found


def unknown_ids(ids: Collection[str]) -> list[str]:
    """Those of the given ids that no rule has."""
    return sorted(set(ids) - set(IDS))
