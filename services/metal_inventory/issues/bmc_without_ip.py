"""A BMC that cannot be reached: no power control."""

from __future__ import annotations

from metal_inventory.issues.rule import Facts, Rule, Severity


def evaluate(facts: Facts) -> str | None:
    """Details when the machine has this issue."""
    return None if facts.bmc_address else "no report has named the address of the BMC"


RULE = Rule("bmc-without-ip", Severity.MAJOR, "the address of the BMC is not known", evaluate)
