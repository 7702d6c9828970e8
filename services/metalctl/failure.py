"""How failures are told: one line on standard error, and an exit code that scripts can tell apart."""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime
from math import ceil
from typing import NoReturn

import typer
from metal_kit.errors import (
    DeadlineExceeded,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    Problem,
    Unauthenticated,
    Unavailable,
)

from metalctl.context import Context
from metalctl.output import note

REFUSED = 1
USAGE = 2
DENIED = 4
UNREACHABLE = 5
INTERRUPTED = 130
EXIT_CODES: dict[type[Problem], int] = {
    InvalidArgument: USAGE,
    NotFound: 3,
    Unauthenticated: DENIED,
    PermissionDenied: DENIED,
    Unavailable: UNREACHABLE,
    DeadlineExceeded: UNREACHABLE,
}
EXIT_HELP = (
    "Exit codes: 0 done, 1 refused or failed, 2 wrong usage or input, 3 not found, 4 not allowed, "
    "5 not reachable or not in time, 130 interrupted."
)
TRANSPORT = "TRANSPORT_"


def fail(message: str, code: int = REFUSED) -> NoReturn:
    """End with one line on standard error."""
    note(f"metalctl: {message}")
    raise typer.Exit(code)


def exit_code(problem: Problem) -> int:
    """The exit code of a problem; 1 for every kind that has none of its own."""
    return EXIT_CODES.get(type(problem), REFUSED)


def explain(problem: Problem, context: Context) -> str:
    """A problem in one line: which field, what, and what to do where metalctl knows it."""
    text = f"{_what(problem)} [{problem.reason}]"
    if problem.reason.startswith(TRANSPORT) and isinstance(problem, Unavailable | DeadlineExceeded):
        return f"{_unreached(problem, context)} [{problem.reason}]"
    if problem.reason.startswith("CERTIFICATE_"):
        return f"{text}; it is {context.cert}"
    if isinstance(problem, Unauthenticated) and context.token:
        advice = "; log in again: metalctl login" if context.token_source == str(context.path) else ""
        return f"{text}; the token is from {context.token_source}{advice}"
    if isinstance(problem, PermissionDenied) and context.token:
        return f"{text}; what you have: metalctl whoami"
    if problem.reason == "PEER_NOT_CONFIGURED":
        return f"{text}; look at endpoints in {context.path}"
    if problem.retry_after is not None:
        return f"{text}; try again in {max(1, ceil(problem.retry_after.total_seconds()))} s"
    return text


def _what(problem: Problem) -> str:
    """Message and fields: all of them, where a request had several mistakes."""
    if len(problem.violations) > 1:
        return "; ".join(f"{each.field}: {each.description}" for each in problem.violations)
    if problem.field and not re.search(rf"(?<![\w.]){re.escape(problem.field)}(?![\w.])", problem.message):
        return f"{problem.field}: {problem.message}"
    return problem.message


def _unreached(problem: Problem, context: Context) -> str:
    """Why a service could not be spoken to."""
    service = problem.metadata.get("peer", "")
    where = f"{service or 'the plane'} at {context.endpoints.get(service, 'its address')}"
    if isinstance(problem, DeadlineExceeded):
        return f"{where} did not answer in time"
    if ended := _certificate_ended(context):
        return f"the certificate {context.cert} ended at {ended}; get a new one"
    cause = problem.__cause__
    details = str(cause.details() if cause is not None and hasattr(cause, "details") else "").lower()
    if any(word in details for word in ("handshake", "socket closed", "reset")):
        # A server that does not know our certificate hangs up without a word.
        return f"{where} answers, but not to this context: are {context.ca} and {context.cert} of the same plane?"
    return f"{where} cannot be reached; is the plane of context {context.name} ({context.path}) running?"


def _certificate_ended(context: Context) -> str:
    """When the context's certificate ended; empty while it holds. Servers end the handshake without saying that."""
    from cryptography import x509  # noqa: PLC0415 - only this failure needs it, and it takes its time

    try:
        ends = x509.load_pem_x509_certificate(context.cert.read_bytes()).not_valid_after_utc
    except (OSError, ValueError):
        return ""
    return "" if ends > datetime.fromtimestamp(time.time(), UTC) else f"{ends:%Y-%m-%d %H:%MZ}"
