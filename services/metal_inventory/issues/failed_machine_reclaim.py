"""The worst one: what ran for the last tenant still runs."""

from __future__ import annotations

from metal_inventory.issues.rule import Facts, Rule, Severity
from metal_inventory.lifecycle import State


def evaluate(facts: Facts) -> str | None:
    """Details when the machine has this issue."""
    if facts.failed_machine_reclaim:
        return "it announced itself long after it was reclaimed"
    if not facts.allocated and facts.state is State.PHONED_HOME:
        return "it is not allocated and its newest event is a phone-home"
    return None


RULE = Rule(
    "failed-machine-reclaim", Severity.CRITICAL, "a freed machine still runs the old operating system", evaluate
)
