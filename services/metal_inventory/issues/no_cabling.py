"""Without cabling there is no port to put into a tenant's network."""

from __future__ import annotations

from metal_inventory.issues.rule import Facts, Rule, Severity


def evaluate(facts: Facts) -> str | None:
    """Details when the machine has this issue."""
    return facts.cabling_problem or None


RULE = Rule("no-cabling", Severity.MAJOR, "the machine is not cabled to two leaves of one rack", evaluate)
