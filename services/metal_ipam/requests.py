"""Requests that are sent again under the same request id, where what they got keeps the id."""

from __future__ import annotations

import hashlib

from google.protobuf.message import Message
from metal_kit.errors import FailedPrecondition, InvalidArgument


def content_hash(request: Message) -> str:
    """What tells two requests with one request id apart; the id itself is not in it."""
    plain = type(request)()
    plain.CopyFrom(request)
    plain.ClearField("request_id")
    return hashlib.sha256(plain.SerializeToString(deterministic=True)).hexdigest()[:32]


def reused() -> InvalidArgument:
    """The error for a request id that came with another request before."""
    return InvalidArgument(
        "REQUEST_ID_REUSED", "was used with a different request; use a new id for a new request", field="request_id"
    )


def spent() -> FailedPrecondition:
    """The error for a request whose result was given back since."""
    return FailedPrecondition(
        "REQUEST_SPENT",
        "what this request got was released since; use a new request id to acquire anew",
        metadata={"field": "request_id"},
    )
