"""What one audited call leaves: an entry before the handler runs, one when it ended; a refusal leaves one.

Calls of routine methods that went well are summed instead, and nothing waits for them; streams are recorded each.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from google.protobuf.timestamp_pb2 import Timestamp
from metalplane.audit.v1.audit_pb2 import (
    AUDIT_PHASE_BEGUN,
    AUDIT_PHASE_ENDED,
    AUDIT_PHASE_REFUSED,
    AuditEntry,
)

from metal_kit.access import Rule, service_descriptor
from metal_kit.audit.entry import clean
from metal_kit.audit.subject import Subject
from metal_kit.audit.writer import AuditWriter
from metal_kit.ids import uuid7

if TYPE_CHECKING:
    from metal_kit.call import Call

_OK = "OK"
_BILLION = 1_000_000_000


class MethodAudit:
    """How the calls of one method are recorded."""

    def __init__(self, full_name: str, rule: Rule, writer: AuditWriter) -> None:
        service, _, name = full_name.removeprefix("/").rpartition("/")
        method = service_descriptor(service).methods_by_name[name]
        self.name = full_name.removeprefix("/metalplane.")
        self.writer = writer
        self.subject = Subject(method, rule)
        self.summed = rule.routine and not (method.client_streaming or method.server_streaming)

    def open(self, peer: str) -> Trace:
        """The trace of a call that has just come in from there."""
        return Trace(self, peer)


class Trace:
    """The trace of one call: `begin` before the handler, `answered` with what it says, `end` at last."""

    __slots__ = ("_admitted", "_answer", "_audit", "_entry", "_request", "_started", "peer")

    def __init__(self, audit: MethodAudit, peer: str) -> None:
        self._audit = audit
        self._started = time.time_ns()
        self._entry: AuditEntry | None = None
        self._request: Any = None
        self._answer: Any = None
        self._admitted = False
        self.peer = peer

    def asked(self, request: Any) -> None:
        """The request, or a stream's first one, as soon as it can be read: a refusal names what it was about."""
        self._request = request

    async def begin(self, call: Call) -> None:
        """The call may go on. Raises Unavailable when the log cannot be written: then it must not."""
        audit = self._audit
        if not audit.summed:
            self._entry = self._describe(call)
            self._entry.phase = AUDIT_PHASE_BEGUN
            _set(self._entry.time, self._started)
            await audit.writer.commit(self._entry)
        self._admitted = True

    def answered(self, answer: Any) -> None:
        """The answer, or a stream's first one: of a new object, it has the id."""
        if self._answer is None:
            self._answer = answer

    def end(self, call: Call) -> None:
        """The call has ended as it says."""
        if call.silent:
            return  # one of a flood of refusals, whose first one in this second has its entry
        audit, subject, request = self._audit, self._audit.subject, self._request
        entry = self._entry or self._describe(call)
        entry.code = call.code
        if call.failure is not None:
            entry.reason = clean(call.failure.reason)
        _set(entry.time, time.time_ns())
        if not self._admitted:
            entry.phase = AUDIT_PHASE_REFUSED
            audit.writer.refuse(entry)
            return
        if request is not None:
            entry.object = subject.object(request, self._answer)
            entry.project = subject.project(request, self._answer, call.settled.project)
        entry.phase = AUDIT_PHASE_ENDED
        if audit.summed and call.code == _OK:
            audit.writer.add(entry)
        else:
            audit.writer.put(entry)

    def _describe(self, call: Call) -> AuditEntry:
        """All that is known before the handler runs."""
        writer, subject, request = self._audit.writer, self._audit.subject, self._request
        entry = AuditEntry(
            call=uuid7(),
            service=writer.service,
            partition=writer.partition,
            method=self._audit.name,
            caller=clean(call.caller),
            token_id=clean(call.who.token_id),
            peer=self.peer,
            request_id=call.request_id,
        )
        _set(entry.begin_time, self._started)
        if request is not None:
            entry.object = subject.object(request)
            entry.project = subject.project(request)
            entry.tenant = subject.tenant(request)
            if fields := subject.fields(request):
                entry.fields.extend(fields)
        return entry


def _set(stamp: Timestamp, nanoseconds: int) -> None:
    """To the microsecond, which is what Postgres keeps."""
    seconds, rest = divmod(nanoseconds, _BILLION)
    stamp.seconds = seconds
    stamp.nanos = rest // 1000 * 1000
