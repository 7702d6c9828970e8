"""A BMC out of sight."""

from __future__ import annotations

from metal_inventory.issues.rule import BMC_INFO_LIMIT, Facts, Rule, Severity, age


def evaluate(facts: Facts) -> str | None:
    """Details when the machine has this issue."""
    if facts.bmc_updated is None:
        return "the BMC has never been read"
    if facts.now - facts.bmc_updated > BMC_INFO_LIMIT:
        return f"last read {age(facts, facts.bmc_updated)}"
    return None


RULE = Rule("bmc-info-outdated", Severity.MAJOR, "the BMC has not been read lately", evaluate)
