"""Points in time between datetimes and Timestamps."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st
from metal_kit.errors import InvalidArgument
from metal_kit.timestamps import parse_timestamp, to_timestamp

ZONES = st.integers(-14 * 60, 14 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes)))


# A day from both ends of what a datetime can hold, as another zone's clock may be there already.
@given(st.datetimes(datetime(1, 1, 2), datetime(9999, 12, 30), timezones=ZONES))  # noqa: DTZ001  # naive by contract
def test_a_datetime_is_the_timestamp_that_protobuf_makes_of_it_and_comes_back(value: datetime) -> None:
    expected = Timestamp()
    expected.FromDatetime(value)
    stamp = to_timestamp(value)
    assert stamp == expected
    assert parse_timestamp(expected, field="at") == value


def test_no_time_is_no_timestamp() -> None:
    assert to_timestamp(None) is None


@pytest.mark.parametrize("seconds", [-62_135_596_801, 253_402_300_800])
def test_a_time_beyond_the_calendar_names_its_field(seconds: int) -> None:
    with pytest.raises(InvalidArgument) as error:
        parse_timestamp(Timestamp(seconds=seconds), field="as_of")
    assert error.value.field == "as_of"


def test_microseconds_survive() -> None:
    value = datetime(2026, 11, 22, 3, 4, 5, 678_901, tzinfo=UTC)
    assert parse_timestamp(to_timestamp(value) or Timestamp(), field="at") == value
