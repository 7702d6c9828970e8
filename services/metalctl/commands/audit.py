"""The audit log: what was done on every service, and whether anybody has changed the record of it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from google.protobuf.timestamp_pb2 import Timestamp
from metal_kit.audit.chain import Anchor, Broken, Verification
from metal_kit.client import Peers
from metal_kit.errors import Aborted
from metalplane.audit.v1 import audit_pb2 as pb
from metalplane.audit.v1.audit_pb2_grpc import AuditServiceStub

from metalctl import anchors, command, naming
from metalctl.failure import REFUSED, USAGE, fail
from metalctl.output import Format, as_json, show_many, write
from metalctl.session import run
from metalctl.table import render
from metalctl.values import instant, now, span

ATTEMPTS = 3
TIME_HELP = "an age such as 90s, 30m, 2h or 7d, or a time such as 2026-03-01T12:00Z (UTC, unless it says otherwise)"


class ServiceName(StrEnum):
    """The services that keep an audit log; boot's is kept by inventory."""

    TENANCY = "tenancy"
    INVENTORY = "inventory"
    IPAM = "ipam"
    ALLOCATION = "allocation"
    FABRIC = "fabric"
    BMC = "bmc"


Services = Annotated[
    list[ServiceName] | None, typer.Option("--service", help="only this service; repeatable", show_default=False)
]


def add(groups: Mapping[str, typer.Typer]) -> None:
    """Add this module's commands to their group."""
    command.add(groups["audit"], "list", list_, "list calls that changed something or told a secret, the newest first")
    command.add(groups["audit"], "verify", verify, "recompute each chain; ends with 1 when one was tampered with")


def _outcome(record: pb.AuditRecord) -> str:
    entry = record.entry
    if entry.phase == pb.AUDIT_PHASE_PRUNED:
        return f"removed up to {entry.pruned.sequence}"
    text = entry.reason or entry.code or "unknown"
    return f"{text} x{entry.count}" if entry.phase == pb.AUDIT_PHASE_SUMMED else text


def _subject(record: pb.AuditRecord) -> str:
    entry = record.entry
    fields = f" ({', '.join(entry.fields)})" if entry.fields else ""
    return f"{entry.object}{fields}"


COLUMNS = (
    ("TIME", lambda r: instant(r.entry.time)),
    ("CALLER", lambda r: r.entry.caller),
    ("FROM", lambda r: r.entry.peer),
    ("METHOD", lambda r: r.entry.method),
    ("OBJECT", _subject),
    ("PROJECT", lambda r: r.entry.project),
    ("OUTCOME", _outcome),
    ("REQUEST", lambda r: r.entry.request_id),
)


def list_(
    ctx: typer.Context,
    project: Annotated[str, typer.Option(help="only calls about this project (id or name)")] = "",
    since: Annotated[str, typer.Option(help=f"only since then: {TIME_HELP}")] = "",
    until: Annotated[str, typer.Option(help="only before then; written like --since")] = "",
    caller: Annotated[str, typer.Option(help="only calls of this caller: user:anna, service:allocation, …")] = "",
    method: Annotated[str, typer.Option(help="only this method: ipam.v1.NetworkService/CreateNetwork")] = "",
    object_: Annotated[str, typer.Option("--object", help="only calls about the object with this id")] = "",
    outcome: Annotated[str, typer.Option(help="only this status: OK, NOT_FOUND, …, or UNKNOWN_OUTCOME")] = "",
    service: Services = None,
    limit: Annotated[int, typer.Option(help="at most so many; 0 for all", min=0)] = 100,
) -> None:
    """List calls."""
    request = pb.ListAuditRecordsRequest(caller=caller, method=method, object=object_, outcome=outcome.upper())
    for option, text, stamp in (("--since", since, request.since), ("--until", until, request.until)):
        if text:
            stamp.CopyFrom(_moment(option, text))

    async def body(peers: Peers) -> list[pb.AuditRecord]:
        if project:
            request.project = await naming.project(peers, project)
        asked = [_newest(peers, each, request, limit) for each in _chosen(peers, service)]
        found = [record for records in await asyncio.gather(*asked) for record in records]
        found.sort(key=lambda record: (record.entry.time.ToNanoseconds(), record.sequence), reverse=True)
        return found[:limit] if limit else found

    show_many(run(ctx.obj, body), COLUMNS, ctx.obj.output)


@dataclass(frozen=True, slots=True)
class Finding:
    """What the chain of a service is like; `broken` says what is wrong with it, and `head` how far it is good."""

    service: str
    verification: Verification | None
    head: Anchor | None
    broken: Broken | None


def verify(
    ctx: typer.Context,
    service: Services = None,
    anchor: Annotated[
        Path | None,
        typer.Option(help="file that remembers where each chain ended, and is compared with the next time"),
    ] = None,
) -> None:
    """Recompute each chain."""
    try:
        known = anchors.load(anchor) if anchor is not None else {}
    except anchors.AnchorError as error:
        fail(str(error), USAGE)

    async def body(peers: Peers) -> list[Finding]:
        return [await _followed(peers, each, known.get(each)) for each in _chosen(peers, service)]

    found = run(ctx.obj, body)
    _show(found, ctx.obj.output)
    if anchor is not None:
        # Of a broken chain the old anchor stays: it is the evidence.
        good = {each.service: each.head for each in found if each.broken is None and each.head is not None}
        try:
            anchors.save(anchor, known | good)
        except anchors.AnchorError as error:
            fail(str(error))
    broken = [f"{each.service} is broken at entry {each.broken.sequence}" for each in found if each.broken is not None]
    if broken:
        fail(f"the audit log of {'; of '.join(broken)}", REFUSED)


def _show(found: Sequence[Finding], how: Format) -> None:
    rows = [_row(each) for each in found]
    if how is Format.JSON:
        write(as_json(rows))
        return
    columns = ("service", "entries", "from", "to", "open", "head", "hash", "verdict")
    write(render([name.upper() for name in columns], ([str(row[name]) for name in columns] for row in rows)))


def _row(finding: Finding) -> dict[str, Any]:
    seen = finding.verification
    broken = finding.broken
    return {
        "service": finding.service,
        "entries": seen.entries if seen is not None else 0,
        "from": f"{seen.since:%Y-%m-%d %H:%MZ}" if seen is not None and seen.since else "",
        "to": f"{seen.until:%Y-%m-%d %H:%MZ}" if seen is not None and seen.until else "",
        "open": len(seen.open) if seen is not None else 0,
        "head": finding.head.sequence if finding.head is not None else 0,
        "hash": finding.head.hash.hex() if finding.head is not None else "",
        "broken_at": broken.sequence if broken is not None else None,
        "verdict": f"broken at entry {broken.sequence}: {broken.what}" if broken is not None else "whole",
    }


async def _followed(peers: Peers, service: str, anchor: Anchor | None) -> Finding:
    """Verify one chain; again when retention came in between."""
    for attempt in range(ATTEMPTS):
        try:
            return await _follow(peers, service, anchor)
        except Aborted:
            if attempt == ATTEMPTS - 1:
                raise
    raise AssertionError("unreachable")


async def _follow(peers: Peers, service: str, anchor: Anchor | None) -> Finding:
    stub: Any = peers.stub(AuditServiceStub, service)
    seen: Verification | None = None
    try:
        async for part in stub.StreamAuditChain(pb.StreamAuditChainRequest()):
            if seen is None:
                seen = Verification(service, part.ends, anchor, now())
            for link in part.links:
                seen.take(link)
        if seen is None:
            raise Broken(0, "the service showed nothing")
        seen.finish()
    except Broken as broken:
        return Finding(service, seen, _head(seen), broken)
    return Finding(service, seen, _head(seen), None)


def _head(seen: Verification | None) -> Anchor | None:
    return Anchor(seen.head.sequence, seen.head.hash, now()) if seen is not None else None


async def _newest(peers: Peers, service: str, request: pb.ListAuditRecordsRequest, limit: int) -> list[pb.AuditRecord]:
    own = pb.ListAuditRecordsRequest()
    own.CopyFrom(request)
    found: list[pb.AuditRecord] = []
    async for record in naming.pages(peers.stub(AuditServiceStub, service).ListAuditRecords, own, "records"):
        found.append(record)
        if limit and len(found) >= limit:
            break
    return found


def _chosen(peers: Peers, services: Sequence[ServiceName] | None) -> list[str]:
    """The services that were asked for, else all that the context knows."""
    return [str(each) for each in services or ServiceName if services or peers.has(each)]


def _moment(option: str, text: str) -> Timestamp:
    stamp = Timestamp()
    if (age := span(text)) is not None:
        stamp.FromDatetime(now() - age)
        return stamp
    try:
        stamp.FromDatetime(datetime.fromisoformat(text))
    except ValueError:
        fail(f"{option} {text}: write {TIME_HELP}", USAGE)
    return stamp
