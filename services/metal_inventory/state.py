"""Administrative state: whether operators let a machine be used.

AVAILABLE machines are offered to everyone. TAINTED ones are never chosen, but may be named. LOCKED ones may not be
allocated, freed, reinstalled or deleted. From TAINTED and LOCKED the only way to another state leads through
AVAILABLE, so that nobody's reason is overwritten unread.
"""

from __future__ import annotations

from enum import Enum


class AdminState(Enum):
    """What operators allow."""

    AVAILABLE = "available"
    TAINTED = "tainted"
    LOCKED = "locked"


class StateRefusal(Enum):
    """Why a change of the administrative state is refused."""

    DESCRIPTION_MISSING = "DESCRIPTION_MISSING"
    DESCRIPTION_NOT_ALLOWED = "DESCRIPTION_NOT_ALLOWED"
    NOT_FROM_THIS_STATE = "NOT_FROM_THIS_STATE"


def refuse_change(current: AdminState, wanted: AdminState, description: str) -> StateRefusal | None:
    """Why ``wanted`` with ``description`` cannot follow ``current``; None when it can.

    The same state again is allowed and changes the description.
    """
    if wanted is AdminState.AVAILABLE:
        return StateRefusal.DESCRIPTION_NOT_ALLOWED if description.strip() else None
    if not description.strip():
        return StateRefusal.DESCRIPTION_MISSING
    if current not in (wanted, AdminState.AVAILABLE):
        return StateRefusal.NOT_FROM_THIS_STATE
    return None
