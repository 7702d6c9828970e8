"""AuditService as a service has it: what one without a database may append, how chains are shown and pages go on."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import pytest
from metal_kit.audit.api import AuditApi
from metal_kit.audit.chain import Verification
from metal_kit.db import Database
from metal_kit.errors import InvalidArgument
from metal_kit.identity import Caller, set_current_caller
from metal_kit.paging import Paging
from metalplane.audit.v1 import audit_pb2 as pb

NOW = datetime.now(UTC)


@pytest.fixture
def api(db: Database) -> AuditApi:
    set_current_caller(Caller("boot", "mini", partition="mini"))
    return AuditApi(db, Paging(b"secret"))


def entry(**changes: Any) -> pb.AuditEntry:
    given = {
        "call": str(uuid4()),
        "phase": pb.AUDIT_PHASE_ENDED,
        "service": "boot",
        "partition": "mini",
        "caller": "machine:m",
        "code": "OK",
    }
    made = pb.AuditEntry(**(given | changes))
    made.time.FromDatetime(NOW)
    return made


async def append(api: AuditApi, *entries: pb.AuditEntry) -> None:
    await api.AppendAuditEntries(pb.AppendAuditEntriesRequest(partition="mini", entries=entries), None)


async def verified(api: AuditApi) -> Verification:
    seen: Verification | None = None
    async for part in api.StreamAuditChain(pb.StreamAuditChainRequest(), None):
        seen = seen or Verification("kit", part.ends, None, NOW)
        for link in part.links:
            seen.take(link)
    assert seen is not None
    seen.finish()
    return seen


async def test_what_a_service_without_a_database_says_is_kept_and_said_twice_is_kept_once(api: AuditApi) -> None:
    # Ids come in any spelling, and texts as whoever took that service over likes them.
    one, other = entry(call=str(uuid4()).upper()), entry(caller="evil\0\n", object="o" * 1000)
    await append(api, one, other)
    await append(api, one)
    assert (await verified(api)).entries == 2
    records = (await api.ListAuditRecords(pb.ListAuditRecordsRequest(), None)).records
    assert {each.entry.caller for each in records} == {
        "machine:m",
        "evil\N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}",
    }


@pytest.mark.parametrize(
    "changes",
    [
        {"service": "inventory"},
        {"partition": "other"},
        {"phase": pb.AUDIT_PHASE_PRUNED},
        {"pruned": pb.PrunedEntry(sequence=1)},
        {"begin_time": {"seconds": 10**15}},
    ],
)
async def test_it_speaks_for_nobody_else_and_says_nothing_of_retention(api: AuditApi, changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument) as caught:
        await append(api, entry(), entry(**changes))
    assert caught.value.field.startswith("entries[1]")
    assert (await verified(api)).entries == 0


async def test_pages_go_on_where_the_one_before_ended_although_times_are_the_same(api: AuditApi) -> None:
    await append(api, *(entry(object=f"o{number}") for number in range(7)))
    request = pb.ListAuditRecordsRequest(page_size=3)
    found = []
    while True:
        page = await api.ListAuditRecords(request, None)
        found += [each.entry.object for each in page.records]
        request.page_token = page.next_page_token
        if not request.page_token:
            break
    assert found == [f"o{number}" for number in reversed(range(7))]
    first = await api.ListAuditRecords(pb.ListAuditRecordsRequest(page_size=3), None)
    with pytest.raises(InvalidArgument, match="page_token"):
        await api.ListAuditRecords(pb.ListAuditRecordsRequest(caller="x", page_token=first.next_page_token), None)
