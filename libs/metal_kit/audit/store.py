"""SQL of the audit log; the functions behind it are in the kit's migration 0003."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import asyncpg
from google.protobuf.message import DecodeError
from metalplane.audit.v1.audit_pb2 import AuditEntry, AuditLink, AuditPhase, ChainEnds

from metal_kit.audit.entry import Row, row_of
from metal_kit.db import Connection, Database

_APPEND = """
    SELECT audit_append(
        $1::bytea[], $2::uuid[], $3::smallint[], $4::timestamptz[], $5::text[], $6::text[], $7::text[], $8::text[],
        $9::text[]
    )
"""
_COLUMNS = "sequence, hash, entry, call::text, phase, time, project, caller, method, object, code"
_PAGE = f"SELECT {_COLUMNS} FROM audit_entry WHERE sequence > $1 AND sequence <= $2 ORDER BY sequence LIMIT $3"  # noqa: S608
_ENDS = "SELECT floor_sequence, floor_hash, head_sequence, head_hash FROM audit_chain"
# One row a call: its end, or its beginning while no end is known. Not with NOT EXISTS, for which Postgres would read
# the ends of all calls at once.
_LIST = f"""
    SELECT time, sequence, entry FROM audit_entry
    WHERE (phase <> {AuditPhase.AUDIT_PHASE_BEGUN} OR (
        SELECT later.phase FROM audit_entry AS later WHERE later.call = audit_entry.call
        AND later.phase IN ({AuditPhase.AUDIT_PHASE_ENDED}, {AuditPhase.AUDIT_PHASE_REFUSED}) LIMIT 1
    ) IS NULL)
"""  # noqa: S608 - constants of the contract
_LOCK = f"{_ENDS} FOR UPDATE"
_OLD = "SELECT sequence, hash, time FROM audit_entry ORDER BY sequence LIMIT $1"
_LARGEST_BATCH = 5000


@dataclass(frozen=True, slots=True)
class Filters:
    """What a list is restricted to; empty means everything. `code` None: whatever the outcome."""

    project: str = ""
    caller: str = ""
    method: str = ""
    object: str = ""
    code: str | None = None
    since: datetime | None = None
    until: datetime | None = None


@dataclass(frozen=True, slots=True)
class Listed:
    """A row of a list."""

    time: datetime
    sequence: int
    entry: AuditEntry


class LocalLog:
    """The audit log in this service's own schema; an `AuditLog` for the writer."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def append(self, rows: Sequence[Row]) -> None:
        """Append in one statement, which commits."""
        async with self._db.reserved() as connection:
            await append(connection, rows)


async def append(connection: Connection, rows: Sequence[Row]) -> None:
    """Append entries to the chain; waits for whoever else appends."""
    if rows:
        await connection.execute(_APPEND, *zip(*rows, strict=True))


async def ends(connection: Connection) -> ChainEnds:
    """Where the chain begins and ends at the moment."""
    row = await connection.fetchrow(_ENDS)
    assert row is not None
    return ChainEnds(**dict(row))


async def links(connection: Connection, after: int, upto: int, limit: int) -> list[AuditLink]:
    """The next links of the chain."""
    return [_link(row) for row in await connection.fetch(_PAGE, after, upto, limit)]


async def page(
    connection: Connection, filters: Filters, after: tuple[datetime, int] | None, limit: int
) -> list[Listed]:
    """Calls by time, the newest first, from below (time, sequence) on."""
    values: list[object] = []
    sql = _LIST
    for name in ("project", "caller", "method", "object"):
        if value := getattr(filters, name):
            values.append(value)
            sql += f" AND {name} = ${len(values)}"
    if filters.code is not None:
        values.append(filters.code)
        sql += f" AND code = ${len(values)}"
    if filters.since is not None:
        values.append(filters.since)
        sql += f" AND time >= ${len(values)}"
    if filters.until is not None:
        values.append(filters.until)
        sql += f" AND time < ${len(values)}"
    if after is not None:
        values += after
        sql += f" AND (time, sequence) < (${len(values) - 1}::timestamptz, ${len(values)}::bigint)"
    values.append(limit)
    rows = await connection.fetch(f"{sql} ORDER BY time DESC, sequence DESC LIMIT ${len(values)}", *values)
    return [Listed(row["time"], row["sequence"], _read(row["entry"])) for row in rows]


async def prune(connection: Connection, older_than: datetime, entry: AuditEntry) -> int:
    """Remove the oldest entries, as far as all before them are older too; the number removed. `entry` is completed
    with what was removed and appended. Within a transaction of the caller."""
    await connection.execute(_LOCK)
    rows = await connection.fetch(_OLD, _LARGEST_BATCH)
    last: asyncpg.Record | None = None
    for row in rows:
        if row["time"] >= older_than:
            break
        last = row
    if last is None:
        return 0
    entry.pruned.sequence, entry.pruned.hash = last["sequence"], last["hash"]
    entry.pruned.time.FromDatetime(last["time"])
    entry.code = "OK"
    await append(connection, [row_of(entry)])
    return int(await connection.fetchval("SELECT audit_prune($1)", last["sequence"]))


async def oldest(connection: Connection) -> datetime | None:
    """Time of the oldest entry; None when there is none."""
    time: datetime | None = await connection.fetchval("SELECT time FROM audit_entry ORDER BY sequence LIMIT 1")
    return time


def _link(row: asyncpg.Record) -> AuditLink:
    link = AuditLink(sequence=row["sequence"], entry=row["entry"], hash=row["hash"])
    link.misfiled = not _filed(row)
    return link


def _filed(row: asyncpg.Record) -> bool:
    """Whether the row's columns say what its entry says."""
    try:
        said = row_of(AuditEntry.FromString(row["entry"]))
    except (DecodeError, OverflowError):
        return True  # no entry at all: the hash, or whoever reads it, will say so
    names = ("call", "phase", "time", "project", "caller", "method", "object", "code")
    return all(getattr(said, name) == row[name] for name in names)


def _read(entry: bytes) -> AuditEntry:
    """The entry; where it is none, one that says so, since a list must not end at what somebody has damaged."""
    try:
        return AuditEntry.FromString(entry)
    except DecodeError:
        return AuditEntry(reason="DAMAGED")
