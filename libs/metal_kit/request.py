"""What is known of the call that is being served: its id, its trace, its deadline. Set by the interceptor.

Outgoing calls and events carry these on, so that one id finds every line and every event that a request caused.
"""

from __future__ import annotations

import re
import time
from contextvars import ContextVar

REQUEST_ID = "x-request-id"
TRACEPARENT = "traceparent"

_REQUEST_ID_FORM = re.compile(r"[A-Za-z0-9._:-]{1,64}", re.ASCII)
# W3C Trace Context, section 3.2.2: version 00.
_TRACEPARENT_FORM = re.compile(r"00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}", re.ASCII)

request_id: ContextVar[str] = ContextVar("metalplane_request_id", default="")
traceparent: ContextVar[str] = ContextVar("metalplane_traceparent", default="")
# Moment on time.monotonic()'s scale at which the answer is worthless; infinite outside of a call.
deadline: ContextVar[float] = ContextVar("metalplane_deadline", default=float("inf"))


def current_request_id() -> str:
    """Id of the request that is being served; empty outside of one."""
    return request_id.get()


def remaining() -> float:
    """Seconds until the deadline of the request that is being served; infinite outside of one, negative when over."""
    return deadline.get() - time.monotonic()


def acceptable_request_id(text: str) -> bool:
    """Whether an id that a client sent may go into logs and headers as it is."""
    return _REQUEST_ID_FORM.fullmatch(text) is not None


def acceptable_traceparent(text: str) -> bool:
    """Whether a client's `traceparent` header is well formed."""
    return _TRACEPARENT_FORM.fullmatch(text) is not None
