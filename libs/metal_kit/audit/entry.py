"""Entries as they are stored, and the columns that lists search by. Pure.

Texts come from callers: they are cut, and what Postgres or a terminal cannot take is replaced. An entry that could not
be stored would hold up all those behind it.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from metalplane.audit.v1.audit_pb2 import AuditEntry

LONGEST = 256
MOST_FIELDS = 64
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_TEXTS = (
    "service", "partition", "method", "caller", "token_id", "peer", "tenant", "project", "object", "request_id", "code",
    "reason",
)  # fmt: skip


class Row(NamedTuple):
    """An entry, and what is searched by, in the order of the SQL function that appends."""

    entry: bytes
    call: str
    phase: int
    time: datetime
    project: str
    caller: str
    method: str
    object: str
    code: str


def row_of(entry: AuditEntry) -> Row:
    """The row of an entry whose texts are clean."""
    stamp = entry.time
    return Row(
        entry.SerializeToString(),
        entry.call,
        entry.phase,
        _EPOCH + timedelta(seconds=stamp.seconds, microseconds=stamp.nanos // 1000),
        entry.project,
        entry.caller,
        entry.method,
        entry.object,
        entry.code,
    )


def clean(text: str) -> str:
    """A text that can be stored and shown: at most LONGEST characters, none of them a control character."""
    if len(text) > LONGEST:
        text = text[:LONGEST]
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in text)


def cleaned(entry: AuditEntry) -> AuditEntry:
    """The entry itself, with all its texts clean; for entries that another process has made."""
    entry.call = entry.call.lower()
    for name in _TEXTS:
        setattr(entry, name, clean(getattr(entry, name)))
    fields = [clean(each) for each in entry.fields[:MOST_FIELDS]]
    del entry.fields[:]
    entry.fields.extend(fields)
    return entry
