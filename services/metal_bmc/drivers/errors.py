"""What can go wrong between us and a BMC, by what has to be done about it.

Messages are for operators and end in the command's result, so they hold no addresses, users, passwords or library text.
"""

from __future__ import annotations

from typing import ClassVar


class BmcError(Exception):
    """An exchange with a BMC failed. `reason` is UPPER_SNAKE_CASE and stable."""

    reason: ClassVar[str] = "BMC_ERROR"
    retryable: ClassVar[bool] = True

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class BmcTimeout(BmcError):
    """No answer in time: dead, cut off, or too busy. Retry with backoff."""

    reason = "TIMEOUT"


class BmcAuthFailed(BmcError):
    """User or password refused. At most two tries: BMCs lock accounts, and some lock themselves."""

    reason = "AUTH_FAILED"


class BmcSessionsFull(BmcError):
    """All session slots are taken. Wait for some to expire (60 s on most BMCs)."""

    reason = "SESSIONS_FULL"


class BmcUnsupported(BmcError):
    """The BMC does not know the command. Never retried and never passed off as success."""

    reason = "UNSUPPORTED"
    retryable = False


class BmcRefused(BmcError):
    """The BMC knows the command and answered with a completion code that means no."""

    reason = "REFUSED"

    def __init__(self, message: str, code: int = 0) -> None:
        super().__init__(message)
        self.code = code


class BmcBadAnswer(BmcError):
    """The BMC, or the library below us, gave an answer that makes no sense."""

    reason = "BAD_ANSWER"


class DriverCrashed(BmcError):
    """The driver's process died while it carried the order. Whether the BMC got it is unknown."""

    reason = "DRIVER_CRASHED"


BY_REASON: dict[str, type[BmcError]] = {
    kind.reason: kind for kind in (BmcTimeout, BmcAuthFailed, BmcSessionsFull, BmcUnsupported, BmcRefused, BmcBadAnswer)
}
"""Classes that cross the process boundary, by the reason that stands for them on the wire."""
