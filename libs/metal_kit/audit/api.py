"""AuditService: the log of this service, for those who look after it and for services without a database."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any

from google.protobuf.empty_pb2 import Empty
from google.protobuf.timestamp_pb2 import Timestamp
from metalplane.audit.v1 import audit_pb2 as pb
from metalplane.audit.v1.audit_pb2_grpc import AuditServiceServicer

from metal_kit.audit import store
from metal_kit.audit.entry import cleaned, row_of
from metal_kit.db import Database
from metal_kit.errors import Aborted, InvalidArgument
from metal_kit.identity import current_caller
from metal_kit.paging import Paging
from metal_kit.timestamps import parse_timestamp

FULL_NAME = "metalplane.audit.v1.AuditService"
UNKNOWN_OUTCOME = "UNKNOWN_OUTCOME"
_LINKS = 500
_OWN_PHASES = {
    pb.AUDIT_PHASE_BEGUN,
    pb.AUDIT_PHASE_ENDED,
    pb.AUDIT_PHASE_REFUSED,
    pb.AUDIT_PHASE_SUMMED,
}


class AuditApi(AuditServiceServicer):
    """The audit log of one schema."""

    def __init__(self, db: Database, paging: Paging) -> None:
        self._db = db
        self._paging = paging

    async def ListAuditRecords(self, request: pb.ListAuditRecordsRequest, context: Any) -> pb.ListAuditRecordsResponse:
        """A page of calls, the newest first. Whose project it is, the access rule has settled."""
        filters = _filters(request)
        page = self._paging.page(request.page_size, request.page_token, filter_key=_filter_key(request))
        after = None
        if page.after is not None:
            time, sequence = page.after
            assert isinstance(time, datetime)
            assert isinstance(sequence, int)
            after = (time, sequence)
        async with self._db.connection() as connection:
            rows = await store.page(connection, filters, after, page.limit)
        shown, token = page.cut(rows, lambda row: (row.time, row.sequence))
        records = [pb.AuditRecord(sequence=row.sequence, entry=row.entry) for row in shown]
        return pb.ListAuditRecordsResponse(records=records, next_page_token=token)

    async def StreamAuditChain(
        self, request: pb.StreamAuditChainRequest, context: Any
    ) -> AsyncIterator[pb.StreamAuditChainResponse]:
        """The chain up to its present head; each page is read by itself, no snapshot is held open."""
        async with self._db.connection() as connection:
            ends = await store.ends(connection)
        yield pb.StreamAuditChainResponse(ends=ends)
        # What stands below the floor is shown too: it has no business there.
        after = request.after
        while after < ends.head_sequence:
            async with self._db.connection() as connection:
                links = await store.links(connection, after, ends.head_sequence, _LINKS)
                floor = (await store.ends(connection)).floor_sequence
            if floor != ends.floor_sequence:
                raise Aborted("AUDIT_PRUNED", "retention has removed entries meanwhile; start again")
            if not links:
                return  # less than the head says: the reader sees it
            yield pb.StreamAuditChainResponse(links=links)
            after = links[-1].sequence

    async def AppendAuditEntries(self, request: pb.AppendAuditEntriesRequest, context: Any) -> Empty:
        """Append what a service without a database has to say about its own calls."""
        caller = current_caller()
        for number, entry in enumerate(request.entries):
            field = f"entries[{number}]"
            if entry.service != caller.kind or entry.partition != request.partition:
                raise InvalidArgument("NOT_YOUR_LOG", f"{field}: you may speak for yourself only", field=field)
            if entry.phase not in _OWN_PHASES or entry.HasField("pruned"):
                raise InvalidArgument("NOT_YOUR_PHASE", f"{field}.phase: is not for you to say", field=f"{field}.phase")
            parse_timestamp(entry.time, field=f"{field}.time")
            parse_timestamp(entry.begin_time, field=f"{field}.begin_time")
        async with self._db.connection() as connection:
            await store.append(connection, [row_of(cleaned(entry)) for entry in request.entries])
        return Empty()


def _filters(request: pb.ListAuditRecordsRequest) -> store.Filters:
    code = "" if request.outcome == UNKNOWN_OUTCOME else request.outcome or None
    return store.Filters(
        project=request.project,
        caller=request.caller,
        method=request.method,
        object=request.object,
        code=code,
        since=_time(request.since, "since") if request.HasField("since") else None,
        until=_time(request.until, "until") if request.HasField("until") else None,
    )


def _time(stamp: Timestamp, field: str) -> datetime:
    return parse_timestamp(stamp, field=field)


def _filter_key(request: pb.ListAuditRecordsRequest) -> str:
    key = pb.ListAuditRecordsRequest()
    key.CopyFrom(request)
    key.ClearField("page_size")
    key.ClearField("page_token")
    return f"ListAuditRecords {key.SerializeToString(deterministic=True).hex()}"
