"""Points in time between the database's datetimes and the contracts' Timestamps; both are UTC."""

from __future__ import annotations

from datetime import UTC, datetime

from google.protobuf.timestamp_pb2 import Timestamp


def to_timestamp(value: datetime | None) -> Timestamp | None:
    """The Timestamp of an aware datetime; None stays None, which leaves a message field unset."""
    if value is None:
        return None
    stamp = Timestamp()
    stamp.FromDatetime(value)
    return stamp


def from_timestamp(stamp: Timestamp) -> datetime | None:
    """The aware datetime of a Timestamp; None for an unset one."""
    return stamp.ToDatetime(tzinfo=UTC) if stamp.seconds or stamp.nanos else None
