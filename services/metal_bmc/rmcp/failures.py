"""What can go wrong in RMCP+, by what a caller can do about it. Texts hold no addresses, users or passwords."""

from __future__ import annotations


class RmcpFailure(Exception):
    """The exchange failed."""


class NoAnswer(RmcpFailure):
    """Nothing that belongs to the exchange came in time, or the address cannot be resolved."""


class LoginRefused(RmcpFailure):
    """User, password or role do not hold. Each one counts towards the BMC's own lockout."""


class SlotsFull(RmcpFailure):
    """The BMC has no session left."""


class SuiteRefused(RmcpFailure):
    """The BMC does not take the cipher suite that was asked for, or answered with another one."""


class TooOld(RmcpFailure):
    """The BMC answers, but in IPMI 1.5 only, whose passwords go over the wire as good as in clear."""


class SessionRefused(RmcpFailure):
    """The BMC refuses the session for another reason; `status` is the RMCP+ status code."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class BadAnswer(RmcpFailure):
    """The BMC's answer makes no sense, though it is authentic."""


class NoRoom(RmcpFailure):
    """As many sessions as this client may have are in use; nothing was sent."""
