"""What can go wrong in Redfish, by what a caller can do about it. Texts hold no addresses, users or passwords."""

from __future__ import annotations


class RedfishFailure(Exception):
    """The exchange failed."""


class NoAnswer(RedfishFailure):
    """Nothing came in time, or the address cannot be resolved."""


class ConnectionLost(NoAnswer):
    """The connection was refused or cut: the BMC restarts, or is gone."""


class WrongCertificate(RedfishFailure):
    """Who answers shows another certificate than the one that was expected; nothing was told to it."""


class LoginRefused(RedfishFailure):
    """User or password do not hold. Each one counts towards the BMC's own lockout."""


class SlotsFull(RedfishFailure):
    """The BMC has no session left."""


class Busy(RedfishFailure):
    """The BMC cannot do it now; `after` is the seconds that it asks for, 0 when it names none."""

    def __init__(self, message: str, after: float = 0.0) -> None:
        super().__init__(message)
        self.after = after


class NotThere(RedfishFailure):
    """The BMC does not have the document, the method or the parameter."""


class Refused(RedfishFailure):
    """The BMC knows what is wanted and says no. `status` is that of HTTP, `message_id` as in its message registry."""

    def __init__(self, message: str, status: int, message_id: str = "") -> None:
        super().__init__(message)
        self.status, self.message_id = status, message_id


class BadAnswer(RedfishFailure):
    """The BMC's answer makes no sense, or more of it came than anybody needs."""


class NoRoom(RedfishFailure):
    """As many sessions as this client may have are in use, or it is being stopped; nothing was sent."""
