"""A machine that is only known by name: nothing else can be said about it."""

from __future__ import annotations

from metal_inventory.issues.rule import Facts, Rule, Severity


def evaluate(facts: Facts) -> str | None:
    """Details when the machine has this issue."""
    return "no event has ever been received" if facts.last_event_time is None else None


RULE = Rule("no-event-container", Severity.MAJOR, "the machine has never sent an event", evaluate)
