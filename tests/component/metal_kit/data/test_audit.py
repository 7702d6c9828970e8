"""The audit log in Postgres: one chain for all replicas that nothing changes, retention, lists, the writer."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import asyncpg
import pytest
from metal_kit import logs
from metal_kit.audit import store, upkeep
from metal_kit.audit.chain import Anchor, Broken, Verification
from metal_kit.audit.entry import Row, row_of
from metal_kit.audit.store import Filters, LocalLog
from metal_kit.audit.writer import LOST, AuditWriter
from metal_kit.db import Database
from metal_kit.errors import Unavailable
from metal_lab.servers import Postgres
from metalplane.audit.v1.audit_pb2 import AuditEntry, AuditPhase
from plans import Plans, measured
from running import running

BEGUN, ENDED = AuditPhase.AUDIT_PHASE_BEGUN, AuditPhase.AUDIT_PHASE_ENDED
REFUSED = AuditPhase.AUDIT_PHASE_REFUSED
NOW = datetime.now(UTC).replace(microsecond=0)


def entry(phase: AuditPhase.ValueType = ENDED, *, call: str = "", age: timedelta = timedelta(), **more: Any) -> Any:
    given = {
        "caller": "user:eve",
        "method": "ipam.v1.NetworkService/CreateNetwork",
        "code": "" if phase == BEGUN else "OK",
    }
    made = AuditEntry(call=call or str(uuid4()), phase=phase, service="kit", **(given | more))
    made.time.FromDatetime(NOW - age)
    return made


async def verify(db: Database, anchor: Anchor | None = None) -> Verification:
    """As metalctl does, over the store. Raises Broken."""
    async with db.connection() as connection:
        ends = await store.ends(connection)
        verification = Verification("kit", ends, anchor, NOW)
        after = 0
        while links := await store.links(connection, after, ends.head_sequence, 7):
            for link in links:
                verification.take(link)
            after = links[-1].sequence
    verification.finish()
    return verification


async def fill(db: Database, *entries: Any) -> None:
    await LocalLog(db).append([row_of(each) for each in entries])


@pytest.fixture
async def replica(kit_url: str) -> AsyncIterator[Database]:
    """Another process of the same service."""
    database = await Database.open(kit_url, "kit")
    yield database
    await database.close()


# -- the chain


async def test_replicas_that_append_at_once_make_one_unbroken_chain(db: Database, replica: Database) -> None:
    writers = [AuditWriter(LocalLog(each), "kit") for each in (db, replica)]
    async with running(*writers):
        waited = [writer.commit(entry(BEGUN)) for _ in range(40) for writer in writers]
        for writer in writers:
            for _ in range(20):
                writer.put(entry())
        await asyncio.gather(*waited)
    found = await verify(db)
    assert (found.entries, found.head.sequence, len(found.open)) == (120, 120, 80)


async def test_what_is_appended_again_is_there_once(db: Database) -> None:
    one, other = entry(BEGUN), entry(BEGUN)
    await fill(db, one, other)
    await fill(db, other, entry(ENDED, call=other.call), one)
    assert (await verify(db)).entries == 3


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE audit_entry SET caller = 'user:adam'",
        "DELETE FROM audit_entry WHERE sequence = 2",
        "TRUNCATE audit_entry",
        "DELETE FROM audit_chain",
        "TRUNCATE audit_chain",
        "UPDATE audit_chain SET head_sequence = 1",
        "UPDATE audit_chain SET floor_sequence = 3",
        "SELECT audit_prune(3)",
    ],
)
async def test_what_would_change_the_past_is_refused(db: Database, statement: str) -> None:
    await fill(db, entry(), entry(), entry())
    with pytest.raises(asyncpg.InsufficientPrivilegeError, match="append-only"):
        async with db.transaction(purpose="rewrite") as connection:
            await connection.execute(statement)
    assert (await verify(db)).entries == 3


@pytest.mark.parametrize(
    ("statement", "sequence", "found"),
    [
        ("UPDATE audit_entry SET entry = set_byte(entry, 5, get_byte(entry, 5) # 1) WHERE sequence = 3", 3, "hash"),
        ("UPDATE audit_entry SET caller = 'user:adam' WHERE sequence = 3", 3, "columns"),
        ("UPDATE audit_entry SET time = time - interval '1 year' WHERE sequence = 3", 3, "columns"),
        ("DELETE FROM audit_entry WHERE sequence = 3", 3, "entry 3 is missing"),
        ("DELETE FROM audit_entry WHERE sequence > 3", 4, "ends at 3 and should at 5"),
        ("DELETE FROM audit_entry WHERE sequence <= 2; UPDATE audit_chain SET (floor_sequence, floor_hash) = "
         "(2, (SELECT sha256('x')))", 3, "hash"),
    ],
)  # fmt: skip
async def test_a_superuser_who_switches_the_triggers_off_is_found_out(
    db: Database, statement: str, sequence: int, found: str
) -> None:
    await fill(db, *(entry() for _ in range(5)))
    assert (await verify(db)).entries == 5
    async with db.transaction(purpose="tamper") as connection:
        await connection.execute(f"SET LOCAL session_replication_role = replica; {statement}")
    with pytest.raises(Broken, match=found) as caught:
        await verify(db)
    assert caught.value.sequence == sequence


async def test_a_tail_that_is_cut_off_with_the_head_set_back_needs_an_anchor_to_be_found(db: Database) -> None:
    await fill(db, *(entry() for _ in range(5)))
    anchor = (await verify(db)).head
    async with db.transaction(purpose="tamper") as connection:
        await connection.execute("SET LOCAL session_replication_role = replica")
        await connection.execute("DELETE FROM audit_entry WHERE sequence > 3")
        await connection.execute(
            "UPDATE audit_chain SET (head_sequence, head_hash) = "
            "(SELECT sequence, hash FROM audit_entry WHERE sequence = 3)"
        )
    await verify(db)
    with pytest.raises(Broken, match="when the anchor was noted it went to 5"):
        await verify(db, Anchor(anchor.sequence, anchor.hash, NOW))
    # It went on growing: now there is an entry 5 again, and it is another one.
    await fill(db, entry(), entry())
    await verify(db)
    with pytest.raises(Broken, match="rewritten"):
        await verify(db, Anchor(anchor.sequence, anchor.hash, NOW))


# -- retention


async def test_retention_removes_what_is_old_and_the_chain_stays_whole(db: Database) -> None:
    keep = timedelta(days=400)
    await fill(db, *(entry(age=timedelta(days=500 - number)) for number in range(10)))
    anchor = (await verify(db)).head
    await fill(db, entry(age=timedelta(days=1)), entry(age=timedelta(days=600)), entry())
    assert await upkeep.retain(db, keep) == 10, "what is old behind what is not stays"
    found = await verify(db, Anchor(anchor.sequence, anchor.hash, NOW - timedelta(days=490)))
    assert (found.entries, found.head.sequence) == (4, 14)
    assert await upkeep.retain(db, keep) == 0
    await fill(db, entry())
    assert (await verify(db)).entries == 5


async def test_two_replicas_that_remove_at_once_remove_once(db: Database, replica: Database) -> None:
    await fill(db, *(entry(age=timedelta(days=500)) for _ in range(30)), entry())
    removed = await asyncio.gather(*(upkeep.retain(each, timedelta(days=400)) for each in (db, replica)))
    assert sorted(removed) == [0, 30]
    assert (await verify(db)).entries == 2


async def test_a_days_worth_gathers_before_anything_is_removed(db: Database) -> None:
    await fill(db, entry(age=timedelta(days=400, hours=23)), entry())
    assert await upkeep.retain(db, timedelta(days=400)) == 0
    with pytest.raises(ValueError, match="at least 30 days"):
        await upkeep.run(db, timedelta(days=29), asyncio.Event())


async def test_the_head_is_logged_when_it_has_moved(db: Database) -> None:
    lines = io.StringIO()
    logs.configure(stream=lines)
    await fill(db, entry())
    noted = await upkeep.note_head(db)
    await upkeep.note_head(db, noted)
    assert lines.getvalue().count((await verify(db)).head.hash.hex()) == 1


# -- the writer


class Unsteady:
    """A log that is away until it is told to be there; what it has taken, in order."""

    def __init__(self) -> None:
        self.away = True
        self.rows: list[Row] = []

    async def append(self, rows: Sequence[Row]) -> None:
        if self.away:
            raise Unavailable("DATABASE_UNREACHABLE", "away")
        if any(row.method == "poison" for row in rows):
            raise asyncpg.DataError("this cannot be stored")
        self.rows += rows


async def test_while_the_log_is_away_nobody_may_go_on_and_what_has_ended_is_kept(eventually: Any) -> None:
    destination = Unsteady()
    writer = AuditWriter(destination, "unsteady")
    async with running(writer):
        ended = [entry() for _ in range(3)]
        for each in ended:
            writer.put(each)
        for _ in range(2):
            with pytest.raises(Unavailable) as caught:
                await writer.commit(entry(BEGUN))
            assert caught.value.reason == "AUDIT_UNAVAILABLE"
        destination.away = False
        await eventually(lambda: len(destination.rows) == 3)
        await writer.commit(entry(BEGUN))
    assert [row.call for row in destination.rows[:3]] == [each.call for each in ended]


async def test_handlers_that_have_every_connection_do_not_keep_calls_from_being_recorded(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many that wait for one lock have the whole pool; a call that has nothing to do with it is not to be refused."""
    monkeypatch.setattr("metal_kit.audit.writer.APPEND_SECONDS", 2.0)
    writer = AuditWriter(LocalLog(db), "kit")
    async with AsyncExitStack() as handlers:
        for _ in range(db.pool.get_max_size()):
            await handlers.enter_async_context(db.connection())
        async with running(writer):
            await writer.commit(entry(BEGUN))
    assert (await verify(db)).entries == 1


async def test_an_entry_that_cannot_be_stored_does_not_hold_up_the_others() -> None:
    destination = Unsteady()
    destination.away = False
    writer = AuditWriter(destination, "poisoned")
    before = LOST.labels("poisoned")._value.get()
    for method in ("a", "poison", "b"):
        writer.put(entry(method=method))
    refused = asyncio.create_task(writer.commit(entry(BEGUN, method="poison")))
    async with running(writer):
        with pytest.raises(Unavailable):
            await refused
        await writer.commit(entry(BEGUN, method="c"))
    assert [row.method for row in destination.rows] == ["a", "b", "c"]
    assert LOST.labels("poisoned")._value.get() - before == 1


async def test_a_full_queue_refuses_new_calls_and_counts_what_it_cannot_keep(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("metal_kit.audit.writer.QUEUE", 2)
    writer = AuditWriter(Unsteady(), "full")
    before = LOST.labels("full")._value.get()
    for _ in range(5):
        writer.put(entry())
    with pytest.raises(Unavailable):
        await writer.commit(entry(BEGUN))
    assert LOST.labels("full")._value.get() - before == 3


async def test_a_stop_writes_the_sums_and_what_is_queued(db: Database) -> None:
    writer = AuditWriter(LocalLog(db), "kit")
    async with running(writer):
        for _ in range(7):
            writer.add(entry(object="leaf01"))
        for _ in range(25):
            writer.refuse(entry(REFUSED, code="UNAUTHENTICATED"))
    async with db.connection() as connection:
        listed = [each.entry for each in await store.page(connection, Filters(), None, 100)]
    sums = {each.code: each.count for each in listed if each.phase == AuditPhase.AUDIT_PHASE_SUMMED}
    assert sums == {"OK": 7, "UNAUTHENTICATED": 5}
    assert len(listed) == 2 + 20, "the first refusals stand by themselves"
    await verify(db)


# -- lists


async def test_a_list_has_one_row_a_call_the_newest_first(db: Database) -> None:
    ids = [str(uuid4()) for _ in range(3)]
    hour = timedelta(hours=1)
    await fill(
        db,
        entry(BEGUN, call=ids[0], age=4 * hour, project="p"),
        entry(ENDED, call=ids[0], age=3 * hour, project="p"),
        entry(BEGUN, call=ids[1], age=2 * hour, project="p"),
        entry(BEGUN, call=ids[2], age=2 * hour, project="p"),
        entry(REFUSED, call=ids[2], age=hour, project="q", code="UNAVAILABLE"),
    )

    async def calls(**filters: Any) -> list[str]:
        async with db.connection() as connection:
            return [each.entry.call for each in await store.page(connection, Filters(**filters), None, 10)]

    assert await calls() == [ids[2], ids[1], ids[0]]
    assert await calls(project="p") == [ids[1], ids[0]]
    assert await calls(code="") == [ids[1]], "no end is known"
    assert await calls(code="UNAVAILABLE") == [ids[2]]
    assert await calls(since=NOW - 2 * hour, until=NOW - hour) == [ids[1]]
    assert await calls(caller="user:adam") == []


FILL = """
    INSERT INTO audit_entry (sequence, hash, entry, call, phase, time, project, caller, method, object, code)
    SELECT n, 'h', ''::bytea, md5((n / 2)::text)::uuid, CASE WHEN n % 2 = 0 THEN 1 ELSE 2 END,
        now() - (100000 - n) * interval '1 s', 'p' || n / 2 % 400, 'user:u' || n / 2 % 400, 'm' || n / 2 % 60,
        'o' || n / 2 % 5000, CASE WHEN n % 2 = 0 THEN '' WHEN n % 999 = 0 THEN 'INTERNAL' ELSE 'OK' END
    FROM generate_series(2, 100001) AS n
"""


@pytest.fixture(scope="module")
async def plans(postgres: Postgres) -> AsyncIterator[Plans]:
    async with measured(postgres, "kit", "", [FILL, "UPDATE audit_chain SET head_sequence = 100001"]) as made:
        yield made


async def test_lists_of_a_hundred_thousand_entries_are_found_by_their_indexes(plans: Plans) -> None:
    middle = datetime.now(UTC) - timedelta(seconds=50_000)

    def listing(**filters: Any) -> Any:
        return lambda conn: store.page(conn, Filters(**filters), None, 51)

    # Each call that has ended is looked at twice: its beginning is read, and passed over.
    cases = {
        "all": listing(),
        "since": listing(since=middle),
        "until": listing(until=middle),
        "between": listing(since=middle - timedelta(minutes=1), until=middle),
        "project": listing(project="p7"),
        "project since": listing(project="p7", since=middle),
        "caller": listing(caller="user:u7"),
        "method": listing(method="m7"),
        "object": listing(object="o7"),
        "failed": listing(code="INTERNAL"),
        "further": lambda conn: store.page(conn, Filters(project="p7"), (middle, 50_000), 51),
    }
    await plans.check(cases, reads=110)


async def test_the_chain_is_read_and_appended_to_whatever_its_length(plans: Plans) -> None:
    cases = {
        "links": lambda conn: store.links(conn, 50_000, 100_000, 500),
        "append": lambda conn: store.append(conn, [row_of(entry(BEGUN)) for _ in range(10)]),
        "oldest": store.oldest,
        "ends": store.ends,
    }
    await plans.check(cases)
