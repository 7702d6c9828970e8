"""A BMC that cannot be found in leases."""

from __future__ import annotations

from metal_inventory.issues.rule import Facts, Rule, Severity


def evaluate(facts: Facts) -> str | None:
    """Details when the machine has this issue."""
    return None if facts.bmc_mac else "no report has named the MAC address of the BMC"


RULE = Rule("bmc-without-mac", Severity.MAJOR, "the MAC address of the BMC is not known", evaluate)
