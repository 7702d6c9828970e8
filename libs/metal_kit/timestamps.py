"""Points in time between the database's datetimes and the contracts' Timestamps; both are UTC."""

from __future__ import annotations

from datetime import UTC, datetime

from google.protobuf.timestamp_pb2 import Timestamp

from metal_kit.errors import InvalidArgument

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def to_timestamp(value: datetime | None) -> Timestamp | None:
    """The Timestamp of an aware datetime; None stays None, which leaves a message field unset."""
    if value is None:
        return None
    stamp = Timestamp()
    write_timestamp(stamp, value)
    return stamp


def write_timestamp(stamp: Timestamp, value: datetime) -> None:
    """Set a message's Timestamp in place to an aware datetime."""
    # FromDatetime goes through the calendar and takes four times as long, which lists notice.
    since = value - _EPOCH
    stamp.seconds = since.days * 86_400 + since.seconds
    stamp.nanos = since.microseconds * 1_000


def parse_timestamp(stamp: Timestamp, *, field: str) -> datetime:
    """The aware datetime of a Timestamp that a caller sent.

    Raises InvalidArgument that names `field` for one beyond the years 1 to 9999: the wire takes any number.
    """
    try:
        return stamp.ToDatetime(tzinfo=UTC)
    except (ValueError, OverflowError) as error:
        raise InvalidArgument("INVALID_TIME", f"{field}: must lie in the years 1 to 9999", field=field) from error


def from_timestamp(stamp: Timestamp) -> datetime | None:
    """The aware datetime of a Timestamp; None for an unset one."""
    return stamp.ToDatetime(tzinfo=UTC) if stamp.seconds or stamp.nanos else None
