"""Data of the last tenant may still be there: the machine must not be given away."""

from __future__ import annotations

from metal_inventory.issues.rule import Facts, Rule, Severity


def evaluate(facts: Facts) -> str | None:
    """Details when the machine has this issue."""
    return f"not clean: {', '.join(facts.quarantined_disks)}" if facts.quarantined_disks else None


RULE = Rule("quarantined-disks", Severity.CRITICAL, "disks could not be wiped", evaluate)
