"""Two machines behind one BMC address: a power command may hit the wrong one."""

from __future__ import annotations

from metal_inventory.issues.rule import Facts, Rule, Severity


def evaluate(facts: Facts) -> str | None:
    """Details when the machine has this issue."""
    if not facts.bmc_address or not facts.bmc_address_shared_with:
        return None
    return f"{facts.bmc_address} is also the BMC address of {', '.join(facts.bmc_address_shared_with)}"


RULE = Rule("bmc-no-distinct-ip", Severity.MAJOR, "another machine has the same BMC address", evaluate)
