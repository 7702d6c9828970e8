"""MachineService: provisioning events in and out, and what is wrong with machines."""

from __future__ import annotations

from metal_kit.errors import InvalidArgument
from metal_kit.ids import parse_uuid
from metal_kit.timestamps import parse_timestamp
from metalplane.inventory.v1 import machine_pb2 as pb

from metal_inventory import contract, issues, snapshot
from metal_inventory.api.reading import key_of, wanted
from metal_inventory.api.tools import Tools
from metal_inventory.api.visibility import require_visible, visible
from metal_inventory.lifecycle import Verdict
from metal_inventory.store.events import Report
from metal_inventory.store.machines import require_partition
from metal_inventory.store.queries import FIRST

_NEWEST = (1 << 63) - 1


class History:
    """Events and issues."""

    tools: Tools

    async def RecordEvents(self, request: pb.RecordEventsRequest, context: object) -> pb.RecordEventsResponse:
        reports = [_report(event, f"events[{at}]") for at, event in enumerate(request.events)]
        async with self.tools.db.transaction(purpose="record events") as conn:
            if request.allocation:
                # An allocation tells of a machine that it was given: one that is gone does not come back by it.
                row = await self.tools.machines.lock(conn, request.machine)
                require_partition(row, request.partition)
            else:
                row = await self.tools.machines.lock_or_create(conn, request.machine, request.partition)
            if request.allocation and str(row["allocation_id"]) != request.allocation.lower():
                # Late news of an allocation that no longer has the machine must not reach the next one's.
                verdicts = [Verdict.DROPPED] * len(reports)
            else:
                verdicts = await self.tools.events.record(conn, row, reports)
        return pb.RecordEventsResponse(outcomes=[contract.VERDICT_NUMBERS[verdict] for verdict in verdicts])

    async def ListMachineEvents(
        self, request: pb.ListMachineEventsRequest, context: object
    ) -> pb.ListMachineEventsResponse:
        page = self.tools.paging.page(request.page_size, request.page_token, filter_key=f"events {request.machine}")
        before = int(page.after_text(str(_NEWEST)))
        async with self.tools.db.connection() as conn:
            require_visible(await self.tools.machines.get(conn, request.machine), request.machine)
            rows = await self.tools.events.page(conn, request.machine, before=before, limit=page.limit)
        shown, token = page.cut(rows, lambda row: (row["sequence"],))
        return pb.ListMachineEventsResponse(events=[snapshot.event(row) for row in shown], next_page_token=token)

    async def ListMachineIssues(
        self, request: pb.ListMachineIssuesRequest, context: object
    ) -> pb.ListMachineIssuesResponse:
        for name, ids in (("only", request.only), ("omit", request.omit)):
            unknown = issues.unknown_ids(ids)
            if unknown:
                text = f"{name}: there is no rule {', '.join(unknown)}; known are {', '.join(issues.IDS)}"
                raise InvalidArgument("UNKNOWN_RULE", text, field=name)
        query = pb.ListMachineIssuesRequest(
            filter=request.filter, only=request.only, omit=request.omit, min_severity=request.min_severity
        )
        page = self.tools.paging.page(request.page_size, request.page_token, filter_key=key_of("issues", query))
        which, view = wanted(request.filter), visible()
        async with self.tools.db.connection() as conn:
            rows = await self.tools.queries.page(conn, which, view, after=page.after_text(FIRST), limit=page.limit)
            shown, token = page.cut(rows, lambda row: (str(row["id"]),))
            addresses = [row["bmc_address"] for row in shown if row["bmc_address"]]
            shared = await self.tools.queries.shared_bmc_addresses(conn, addresses)
        response = pb.ListMachineIssuesResponse(next_page_token=token)
        severity = contract.SEVERITIES.get(request.min_severity, issues.Severity.MINOR)
        for row in shown:
            facts = snapshot.facts(row, shared.get(row["bmc_address"], ()))
            for issue in issues.evaluate(facts, only=request.only, omit=request.omit, severity=severity):
                response.issues.add(
                    machine=facts.machine_id,
                    rule=issue.rule.id,
                    severity=contract.SEVERITY_NUMBERS[issue.rule.severity],
                    message=f"{issue.rule.description}: {issue.details}",
                )
        return response


def _report(event: pb.ReportedEvent, field: str) -> Report:
    reported = None
    if event.HasField("reported_time"):
        reported = parse_timestamp(event.reported_time, field=f"{field}.reported_time")
    id_ = parse_uuid(event.id, field=f"{field}.id") if event.id else ""
    return Report(contract.EVENT_TYPES[event.type], event.message, id_, reported)
