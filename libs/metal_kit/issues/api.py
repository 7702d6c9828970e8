"""IssueService: every service tells what is wrong with itself."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import asyncpg
from metalplane.plane.v1 import issue_pb2 as pb
from metalplane.plane.v1.issue_pb2_grpc import IssueServiceServicer

from metal_kit import clock
from metal_kit.errors import Problem
from metal_kit.issues.issue import Issue, Severity, Source, worst_first
from metal_kit.logs import get_logger
from metal_kit.paging import Paging

log = get_logger(__name__)

FULL_NAME = "metalplane.plane.v1.IssueService"
# A source that takes longer is not waited for: whoever asks wants to know of the others.
LOOK_SECONDS = 3.0


class IssueApi(IssueServiceServicer):
    """Answers for one service; `sources` by name."""

    def __init__(self, service: str, paging: Paging, sources: Sequence[tuple[str, Source]]) -> None:
        self._service, self._paging, self._sources = service, paging, tuple(sources)

    async def ListPlaneIssues(self, request: pb.ListPlaneIssuesRequest, context: Any) -> pb.ListPlaneIssuesResponse:
        filter_key = f"plane issues:{request.min_severity}"
        page = self._paging.page(request.page_size, request.page_token, filter_key=filter_key)
        found = [issue for issue in await self.look(clock.now()) if issue.severity >= request.min_severity]
        if page.after is not None:
            severity, id_ = page.after
            found = [issue for issue in found if (-issue.severity, issue.id) > (severity, id_)]
        shown, token = page.cut(found[: page.limit], lambda issue: (-issue.severity, issue.id))
        return pb.ListPlaneIssuesResponse(issues=[self._message(each) for each in shown], next_page_token=token)

    async def look(self, now: datetime) -> list[Issue]:
        """All issues, the worst first."""
        found = await asyncio.gather(*(self._ask(name, source, now) for name, source in self._sources))
        return worst_first(issue for issues in found for issue in issues)

    async def _ask(self, name: str, source: Source, now: datetime) -> list[Issue]:
        try:
            async with asyncio.timeout(LOOK_SECONDS):
                return await source(now)
        except (Problem, asyncpg.PostgresError, OSError, TimeoutError) as error:
            log.warning("issues.unknown", source=name, error=repr(error))
            details = "cannot be looked at now, and what is wrong there is unknown; the log says why (issues.unknown)"
            return [Issue(f"unknown/{name}", Severity.CRITICAL, name, details, now)]

    def _message(self, issue: Issue) -> pb.PlaneIssue:
        message = pb.PlaneIssue(
            id=issue.id,
            service=self._service,
            severity=pb.PlaneIssueSeverity.ValueType(issue.severity),
            subject=issue.subject,
            details=issue.details,
        )
        message.since.FromDatetime(issue.since)
        return message
