"""A machine without any liveliness at all."""

from __future__ import annotations

from metal_inventory.issues.rule import Facts, Rule, Severity
from metal_inventory.liveliness import Liveliness


def evaluate(facts: Facts) -> str | None:
    """Details when the machine has this issue."""
    known = (Liveliness.ALIVE, Liveliness.DEAD, Liveliness.UNKNOWN)
    return None if facts.liveliness in known else "no event gave a time to judge by"


RULE = Rule("liveliness-not-available", Severity.MINOR, "nothing is known about the liveliness", evaluate)
