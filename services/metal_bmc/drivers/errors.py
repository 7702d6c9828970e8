"""What can go wrong between us and a BMC, by what has to be done about it.

Messages are for operators and end in the command's result, so they hold no addresses, users, passwords or library text.
"""

from __future__ import annotations

from typing import ClassVar


class BmcError(Exception):
    """An exchange with a BMC failed. `reason` is UPPER_SNAKE_CASE and stable."""

    reason: ClassVar[str] = "BMC_ERROR"
    # Whether trying the same again can help at all.
    retryable: ClassVar[bool] = True
    # Whether an order that was sent may have been carried out all the same.
    outcome_unknown: ClassVar[bool] = False
    # Whether it may have come before user and password were looked at, so that it says nothing about them.
    before_login: ClassVar[bool] = False

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class BmcTimeout(BmcError):
    """No answer in time: dead, cut off, or too busy. Retry with backoff."""

    reason = "TIMEOUT"
    outcome_unknown = True


class BmcAuthFailed(BmcError):
    """User or password refused. At most two tries: BMCs lock accounts, and some lock themselves."""

    reason = "AUTH_FAILED"


class BmcSessionsFull(BmcError):
    """All session slots are taken. Wait for some to expire (60 s on most BMCs)."""

    reason = "SESSIONS_FULL"
    before_login = True


class BmcBusy(BmcError):
    """The BMC cannot do it now, and did nothing. `retry_after` are the seconds that it asks for, 0 for none."""

    reason = "BUSY"
    before_login = True

    def __init__(self, message: str, retry_after: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class BmcUntrusted(BmcError):
    """Who answers shows another certificate than the one on record. Nothing was told to it; a person has to look."""

    reason = "UNTRUSTED"
    retryable = False
    before_login = True


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
    outcome_unknown = True


class DriverCrashed(BmcError):
    """The driver's process died while it carried the order. Whether the BMC got it is unknown."""

    reason = "DRIVER_CRASHED"
    outcome_unknown = True


class DriverBusy(BmcError):
    """The time was over before the order could be given to a driver process; nothing was sent to the BMC."""

    reason = "DRIVER_BUSY"


class Unreachable(BmcError):
    """The BMC has been silent for so long that only probes and people's orders are tried; nothing was sent."""

    reason = "UNREACHABLE"


class LoginBlocked(BmcError):
    """Logins were refused twice; nothing was sent. Only new credentials help."""

    reason = "LOGIN_BLOCKED"
    retryable = False


class NoCredentials(BmcError):
    """No password is stored, none of our keys opens it, or no address is known; nothing was sent."""

    reason = "NO_CREDENTIALS"
    retryable = False


BY_REASON: dict[str, type[BmcError]] = {
    kind.reason: kind for kind in (BmcTimeout, BmcAuthFailed, BmcSessionsFull, BmcUnsupported, BmcRefused, BmcBadAnswer)
}
"""Classes that cross the process boundary, by the reason that stands for them on the wire."""
