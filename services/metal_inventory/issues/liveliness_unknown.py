"""An allocated machine that went silent: dead, or its user switched the announcements off."""

from __future__ import annotations

from metal_inventory.issues.rule import Facts, Rule, Severity, age
from metal_inventory.liveliness import Liveliness


def evaluate(facts: Facts) -> str | None:
    """Details when the machine has this issue."""
    if facts.liveliness is not Liveliness.UNKNOWN or facts.last_event_time is None:
        return None
    return f"last event {age(facts, facts.last_event_time)}"


RULE = Rule("liveliness-unknown", Severity.MAJOR, "the machine is silent while it is allocated", evaluate)
