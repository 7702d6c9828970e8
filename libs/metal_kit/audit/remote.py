"""The audit log of a service that has no database: kept by one that has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from metalplane.audit.v1.audit_pb2 import AppendAuditEntriesRequest, AuditEntry
from metalplane.audit.v1.audit_pb2_grpc import AuditServiceStub

from metal_kit.audit.entry import Row
from metal_kit.client import Peers
from metal_kit.errors import InvalidArgument, Problem, Unavailable

_SECONDS = 4.0
KEEPER = "inventory"
"""The service that keeps the log of those without a database."""


class RemoteLog:
    """An `AuditLog` for the writer, behind the keeper's AuditService."""

    def __init__(self, peers: Peers, partition: str) -> None:
        self._stub: Any = peers.stub(AuditServiceStub, KEEPER)
        self._partition = partition

    async def append(self, rows: Sequence[Row]) -> None:
        """Append in one call; what an earlier attempt has appended is not appended again."""
        entries = [AuditEntry.FromString(row.entry) for row in rows]
        request = AppendAuditEntriesRequest(partition=self._partition, entries=entries)
        try:
            await self._stub.AppendAuditEntries(request, timeout=_SECONDS)
        except InvalidArgument:
            raise  # an entry that the keeper will never take
        except Problem as problem:
            raise Unavailable("AUDIT_KEEPER_AWAY", f"{KEEPER} does not take the audit log's entries now") from problem
