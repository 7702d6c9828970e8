"""A machine that started over where it should not have."""

from __future__ import annotations

from metal_inventory.issues.rule import Facts, Rule, Severity
from metal_inventory.lifecycle import State


def evaluate(facts: Facts) -> str | None:
    """Details when the machine has this issue."""
    if not facts.crash_loop or facts.state is State.WAITING:
        return None
    error = facts.last_error
    if error is None:
        return "the crash loop flag is set"
    # The flag is only cleared by a planned reboot or a complete run: a machine that has been running well since
    # its last error must not look faulty for ever.
    if facts.now - error.time > facts.last_error_threshold:
        return None
    return f"{error.type.value}: {error.message}".removesuffix(": ")


RULE = Rule("crashloop", Severity.MAJOR, "the machine reboots or crashes out of turn", evaluate)
