"""A machine that no partition claims is never offered to anyone."""

from __future__ import annotations

from metal_inventory.issues.rule import Facts, Rule, Severity


def evaluate(facts: Facts) -> str | None:
    """Details when the machine has this issue."""
    return None if facts.partition else "neither its boot service nor its BMC has named a partition"


RULE = Rule("no-partition", Severity.MAJOR, "the machine belongs to no partition", evaluate)
