"""`metalctl issues`: what is wrong with the plane itself, as each service tells it of itself."""

from __future__ import annotations

import asyncio
import time

import typer
from metal_kit.client import Peers
from metal_kit.errors import PermissionDenied, Problem, Unauthenticated
from metalplane.plane.v1 import issue_pb2 as pb
from metalplane.plane.v1.issue_pb2_grpc import IssueServiceStub

from metalctl import naming
from metalctl.context import SERVICES
from metalctl.output import show_many
from metalctl.session import run
from metalctl.values import enum, instant

COLUMNS = (
    ("SEVERITY", lambda i: enum(pb.PlaneIssueSeverity, i.severity)),
    ("SERVICE", lambda i: i.service),
    ("SUBJECT", lambda i: i.subject),
    ("SINCE", lambda i: instant(i.since)),
    ("DETAILS", lambda i: i.details),
)


def issues(ctx: typer.Context) -> None:
    """Ask every service, and show what they tell, the worst first."""

    async def body(peers: Peers) -> list[pb.PlaneIssue]:
        asked = [service for service in SERVICES if peers.has(service)]
        answers = await asyncio.gather(*(_ask(peers, service) for service in asked))
        return sorted((issue for each in answers for issue in each), key=lambda i: (-i.severity, i.service, i.id))

    show_many(run(ctx.obj, body), COLUMNS, ctx.obj.output)


async def _ask(peers: Peers, service: str) -> list[pb.PlaneIssue]:
    """What a service tells of itself. That it tells nothing is an issue, too, unless it is we who may not ask."""
    method = peers.stub(IssueServiceStub, service).ListPlaneIssues
    try:
        return [each async for each in naming.pages(method, pb.ListPlaneIssuesRequest(), "issues")]
    except (Unauthenticated, PermissionDenied):
        raise
    except Problem as problem:
        silent = pb.PlaneIssue(
            id="unreachable",
            service=service,
            severity=pb.PlaneIssueSeverity.PLANE_ISSUE_SEVERITY_CRITICAL,
            subject="the service",
            details=f"does not tell what is wrong with it: {problem.message} [{problem.reason}]",
        )
        silent.since.FromSeconds(int(time.time()))
        return [silent]
