"""MachineService: provisioning events in and out, and what is wrong with machines."""

from __future__ import annotations

from datetime import UTC

from metal_kit.errors import InvalidArgument
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
        reports = [_report(event) for event in request.events]
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
        paging = self.tools.paging
        size, filter_key = paging.page_size(request.page_size), f"events {request.machine}"
        key = paging.parse(request.page_token, filter_key=filter_key)
        before = int(str(key[0])) if key else _NEWEST
        async with self.tools.db.connection() as conn:
            require_visible(await self.tools.machines.get(conn, request.machine), request.machine)
            rows = await self.tools.events.page(conn, request.machine, before=before, limit=size + 1)
        more = len(rows) > size
        return pb.ListMachineEventsResponse(
            events=[snapshot.event(row) for row in rows[:size]],
            next_page_token=paging.token((rows[size - 1]["sequence"],), filter_key=filter_key) if more else "",
        )

    async def ListMachineIssues(
        self, request: pb.ListMachineIssuesRequest, context: object
    ) -> pb.ListMachineIssuesResponse:
        for name, ids in (("only", request.only), ("omit", request.omit)):
            unknown = issues.unknown_ids(ids)
            if unknown:
                text = f"{name}: there is no rule {', '.join(unknown)}; known are {', '.join(issues.IDS)}"
                raise InvalidArgument("UNKNOWN_RULE", text, field=name)
        paging = self.tools.paging
        query = pb.ListMachineIssuesRequest(
            filter=request.filter, only=request.only, omit=request.omit, min_severity=request.min_severity
        )
        size, filter_key = paging.page_size(request.page_size), key_of("issues", query)
        key = paging.parse(request.page_token, filter_key=filter_key)
        after = str(key[0]) if key else FIRST
        async with self.tools.db.connection() as conn:
            rows = await self.tools.queries.page(conn, wanted(request.filter), visible(), after=after, limit=size + 1)
            addresses = [row["bmc_address"] for row in rows[:size] if row["bmc_address"]]
            shared = await self.tools.queries.shared_bmc_addresses(conn, addresses)
        response = pb.ListMachineIssuesResponse()
        severity = contract.SEVERITIES.get(request.min_severity, issues.Severity.MINOR)
        for row in rows[:size]:
            facts = snapshot.facts(row, shared.get(row["bmc_address"], ()))
            for issue in issues.evaluate(facts, only=request.only, omit=request.omit, severity=severity):
                response.issues.add(
                    machine=facts.machine_id,
                    rule=issue.rule.id,
                    severity=contract.SEVERITY_NUMBERS[issue.rule.severity],
                    message=f"{issue.rule.description}: {issue.details}",
                )
        if len(rows) > size:
            response.next_page_token = paging.token((str(rows[size - 1]["id"]),), filter_key=filter_key)
        return response


def _report(event: pb.ReportedEvent) -> Report:
    reported = event.reported_time.ToDatetime(tzinfo=UTC) if event.HasField("reported_time") else None
    return Report(contract.EVENT_TYPES[event.type], event.message, event.id, reported)
