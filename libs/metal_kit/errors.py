"""Domain errors and their way over the wire.

A handler raises a `Problem`; the interceptor turns it into a `google.rpc.Status` with `ErrorInfo`, `BadRequest` and
`RetryInfo`; `problem_from_rpc` restores it on the calling side. Every other exception is a defect: it becomes INTERNAL
with a log id, and its text stays in the log.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, ClassVar

import grpc
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

DOMAIN = "metalplane"
# HTTP/2 headers carry the status; details beyond this make the whole answer fail at the peer's header limit (8 KiB).
MAX_MESSAGE = 1024
MAX_VIOLATIONS = 20


@dataclass(frozen=True, slots=True)
class Violation:
    """One field of a request that does not hold: `field` is a dotted path, `description` says what would be right."""

    field: str
    description: str
    reason: str = ""


class Problem(Exception):
    """An expected failure, with a reason for programs and a message for people; both reach the client.

    `reason` is UPPER_SNAKE_CASE and stable. `field` names the request field at fault (dotted path). `metadata` holds
    values that a program may want (ids, limits), never a secret. `retry_after` tells clients when to try again.
    """

    code: ClassVar[grpc.StatusCode] = grpc.StatusCode.INTERNAL

    def __init__(
        self,
        reason: str,
        message: str,
        *,
        field: str = "",
        metadata: Mapping[str, str] | None = None,
        retry_after: timedelta | None = None,
        violations: Sequence[Violation] = (),
    ) -> None:
        super().__init__(f"{reason}: {message}")
        self.reason = reason
        self.message = message
        self.field = field or (violations[0].field if violations else "")
        self.metadata = dict(metadata or {})
        self.retry_after = retry_after
        self.violations = tuple(violations) or ((Violation(field, message, reason),) if field else ())

    def to_status(self) -> status_pb2.Status:
        """The `google.rpc.Status` of this problem; long messages and long violation lists are cut."""
        number: int = self.code.value[0]
        status = status_pb2.Status(code=number, message=self.message[:MAX_MESSAGE])
        _pack(status, error_details_pb2.ErrorInfo(reason=self.reason, domain=DOMAIN, metadata=self.metadata))
        if self.violations:
            bad = error_details_pb2.BadRequest()
            for violation in self.violations[:MAX_VIOLATIONS]:
                bad.field_violations.add(
                    field=violation.field[:256], description=violation.description[:256], reason=violation.reason
                )
            _pack(status, bad)
        if self.retry_after is not None:
            retry = error_details_pb2.RetryInfo()
            retry.retry_delay.FromTimedelta(self.retry_after)
            _pack(status, retry)
        return status


class InvalidArgument(Problem):
    """The request is wrong whatever the state of the plane is."""

    code = grpc.StatusCode.INVALID_ARGUMENT


class NotFound(Problem):
    """The object does not exist, or the caller may not know that it does."""

    code = grpc.StatusCode.NOT_FOUND


class AlreadyExists(Problem):
    """An object with this id or unique property exists."""

    code = grpc.StatusCode.ALREADY_EXISTS


class FailedPrecondition(Problem):
    """The state of the plane forbids it; repeating it unchanged does not help."""

    code = grpc.StatusCode.FAILED_PRECONDITION


class Aborted(Problem):
    """Lost against a concurrent change (etag, compare-and-set); read again and decide anew."""

    code = grpc.StatusCode.ABORTED


class OutOfRange(Problem):
    """A position that is no longer, or not yet, available."""

    code = grpc.StatusCode.OUT_OF_RANGE


class ResourceExhausted(Problem):
    """A quota, a pool or a limit is used up."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED


class PermissionDenied(Problem):
    """The caller is known and may not do this."""

    code = grpc.StatusCode.PERMISSION_DENIED


class Unauthenticated(Problem):
    """No credentials, or credentials that do not hold."""

    code = grpc.StatusCode.UNAUTHENTICATED


class Unavailable(Problem):
    """Something this call depends on is not there right now; try again."""

    code = grpc.StatusCode.UNAVAILABLE


class DeadlineExceeded(Problem):
    """The time ran out; whether the call had an effect is unknown."""

    code = grpc.StatusCode.DEADLINE_EXCEEDED


class Unimplemented(Problem):
    """This server does not do that."""

    code = grpc.StatusCode.UNIMPLEMENTED


class PeerFailed(Problem):
    """A peer answered INTERNAL, UNKNOWN or DATA_LOSS; its own log has the cause. Handlers do not raise it."""

    code = grpc.StatusCode.INTERNAL


_KINDS: tuple[type[Problem], ...] = (
    InvalidArgument, NotFound, AlreadyExists, FailedPrecondition, Aborted, OutOfRange, ResourceExhausted,
    PermissionDenied, Unauthenticated, Unavailable, DeadlineExceeded, Unimplemented,
)  # fmt: skip
_BY_CODE: dict[grpc.StatusCode, type[Problem]] = {kind.code: kind for kind in _KINDS}
_BY_CODE[grpc.StatusCode.CANCELLED] = Aborted

# The texts of the transport name addresses and certificates; a Problem may travel on to a client, so they get these.
_TRANSPORT_TEXT = {
    grpc.StatusCode.UNAVAILABLE: "a service that is needed for this cannot be reached",
    grpc.StatusCode.DEADLINE_EXCEEDED: "a service that is needed for this did not answer in time",
    grpc.StatusCode.UNIMPLEMENTED: "a service that is needed for this does not know the method",
    grpc.StatusCode.RESOURCE_EXHAUSTED: "a message is larger than the limit, or the peer is overloaded",
    grpc.StatusCode.CANCELLED: "the call was cancelled",
}


# What grpc's C core says (message_size_filter.cc) when a message is refused by its size; "SERVER" when the request was.
_OVERSIZE = re.compile(r"(CLIENT|SERVER): (?:Received|Sent) message larger than max \((\d+) vs\. (\d+)\)")


def problem_from_rpc(error: grpc.aio.AioRpcError) -> Problem:
    """Restore the Problem that the server raised: class, reason, message, field, metadata and retry delay.

    Failures that the transport itself reports have no `ErrorInfo`; their reason is `TRANSPORT_<CODE>` and their
    message a fixed text. The AioRpcError stays reachable as `__cause__`.
    """
    code = error.code()
    kind = _BY_CODE.get(code, PeerFailed)
    status = _status_of(error)
    if status is None and (oversize := _OVERSIZE.search(error.details() or "")):
        return _too_large(error, *oversize.groups())
    info = error_details_pb2.ErrorInfo()
    bad = error_details_pb2.BadRequest()
    retry = error_details_pb2.RetryInfo()
    retry_after: timedelta | None = None
    if status is not None:
        for detail in status.details:
            # Unpack answers False, and leaves the target alone, when the detail is of another type.
            if not detail.Unpack(info) and not detail.Unpack(bad) and detail.Unpack(retry):
                retry_after = retry.retry_delay.ToTimedelta()
    problem = kind(
        info.reason or f"TRANSPORT_{code.name}",
        status.message if status is not None else _TRANSPORT_TEXT.get(code, "a service that is needed for this failed"),
        metadata=dict(info.metadata),
        retry_after=retry_after,
        violations=[Violation(each.field, each.description, each.reason) for each in bad.field_violations],
    )
    problem.__cause__ = error
    return problem


def _too_large(error: grpc.aio.AioRpcError, direction: str, size: str, limit: str) -> Problem:
    """gRPC refused a message before any of our code saw it."""
    sent_by_us = direction == "SERVER"
    problem = ResourceExhausted(
        "REQUEST_TOO_LARGE" if sent_by_us else "ANSWER_TOO_LARGE",
        f"the {'request' if sent_by_us else 'answer'} has {size} bytes and the limit is {limit}",
        metadata={"limit": limit},
    )
    problem.__cause__ = error
    return problem


def _status_of(error: grpc.aio.AioRpcError) -> status_pb2.Status | None:
    try:
        status: status_pb2.Status | None = rpc_status.from_call(error)  # type: ignore[no-untyped-call]
    except ValueError:  # the details contradict the code: not written by our servers, so not to be trusted
        return None
    return status


def _pack(status: status_pb2.Status, detail: Any) -> None:
    packed = any_pb2.Any()
    packed.Pack(detail)
    status.details.append(packed)
