"""The rule "no outbound call while a database transaction is open", made checkable.

`metal_kit.db` names the purpose of the open transaction in `in_transaction`; whatever leaves the process (gRPC client,
NATS publish, BMC) calls `refuse_in_transaction` first. A peer that hangs would otherwise hold row locks, and hold back
the outbox of the whole database.
"""

from __future__ import annotations

from contextvars import ContextVar

# The purpose of the transaction that is open in this context; empty when none is.
in_transaction: ContextVar[str] = ContextVar("metalplane_in_transaction", default="")


def refuse_in_transaction(what: str) -> None:
    """Raise RuntimeError when a transaction is open in this context; `what` names the outbound call."""
    purpose = in_transaction.get()
    if purpose:
        raise RuntimeError(f"outbound call {what} inside the transaction {purpose!r}; commit first, then call")
