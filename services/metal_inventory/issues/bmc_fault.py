"""A BMC that cannot be used: unreachable, or its login is refused."""

from __future__ import annotations

from metal_inventory.issues.rule import Facts, Rule, Severity


def evaluate(facts: Facts) -> str | None:
    """Details when the machine has this issue."""
    return facts.bmc_fault or None


RULE = Rule("bmc-fault", Severity.MAJOR, "the machine cannot be switched by its BMC", evaluate)
