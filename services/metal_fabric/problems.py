"""The one way in which fabric's rules refuse something.

The rules know neither gRPC nor the kit; the use cases turn a refusal into FAILED_PRECONDITION or INVALID_ARGUMENT.
"""

from __future__ import annotations


class Refused(Exception):
    """A rule says no.

    `reason` is UPPER_SNAKE_CASE for programs; `message` says for people what is wrong and what would help; `field` is
    the part of the request it is about, empty when the request is fine and the state of things forbids it.
    """

    def __init__(self, reason: str, message: str, *, field: str = "") -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.field = field
