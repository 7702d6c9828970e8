"""Two sizes that claim one machine: it has none of them."""

from __future__ import annotations

from metal_inventory.issues.rule import Facts, Rule, Severity


def evaluate(facts: Facts) -> str | None:
    """Details when the machine has this issue."""
    return f"matches {', '.join(facts.matching_sizes)}" if len(facts.matching_sizes) > 1 else None


RULE = Rule("size-not-distinct", Severity.MAJOR, "several sizes match the machine", evaluate)
