"""The one way in which fabric's rules refuse something.

The rules know neither gRPC nor the kit: `refusals` tells callers of RPCs about it.
"""

from __future__ import annotations


class Refused(Exception):
    """A rule says no, because of how things are.

    `reason` is UPPER_SNAKE_CASE for programs; `message` says for people what is wrong and what would help; `field` is
    the part of the request it is about, empty for the whole.
    """

    def __init__(self, reason: str, message: str, *, field: str = "") -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.field = field


class Invalid(Refused):
    """A rule says no whatever the state of things is: the request contradicts itself."""


class Exhausted(Refused):
    """Nothing is left of what the request needs."""
