"""An error event that is younger than the threshold."""

from __future__ import annotations

from metal_inventory.issues.rule import Facts, Rule, Severity, age


def evaluate(facts: Facts) -> str | None:
    """Details when the machine has this issue."""
    error = facts.last_error
    if error is None or facts.now - error.time > facts.last_error_threshold:
        return None
    return f"{error.type.value}, {age(facts, error.time)}: {error.message}".removesuffix(": ")


RULE = Rule("last-event-error", Severity.MINOR, "the machine had an error lately", evaluate)
