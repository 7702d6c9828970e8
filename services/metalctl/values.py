"""Values of messages as people read them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import typer
from google.protobuf.descriptor import EnumDescriptor, FieldDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

# Counts of addresses end here: an IPv6 prefix has more than the contract's int64 can tell.
MANY = 2**63 - 1
UNSPECIFIED = "UNSPECIFIED"
_SPAN = re.compile(r"(\d{1,6})([smhd])", re.ASCII)
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def enum(wrapper: Any, value: int) -> str:
    """An enum value without its prefix, in lower case; `-` when it is not set.

    A value that a newer plane has and this metalctl has not is its number.
    """
    return enum_word(wrapper.DESCRIPTOR, value) or "-"


def enum_word(descriptor: EnumDescriptor, value: int) -> str:
    """An enum value without its prefix, in lower case; empty when it is not set."""
    found = descriptor.values_by_number.get(value)
    if found is None:
        return str(value)
    prefix = str(descriptor.values_by_number[0].name).removesuffix(UNSPECIFIED)
    word = str(found.name).removeprefix(prefix)
    return "" if word == UNSPECIFIED else word.lower().replace("_", " ")


def age(stamp: Timestamp) -> str:
    """How long ago, in one unit: seconds, minutes, hours or days; `-` when it is not set."""
    if not stamp.seconds:
        return "-"
    seconds = max(0, int((now() - stamp.ToDatetime(tzinfo=UTC)).total_seconds()))
    for size, unit in ((86400, "d"), (3600, "h"), (60, "m")):
        if seconds >= size:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"


def until(stamp: Timestamp) -> str:
    """How long it is until then, in two units: `in 7 h 12 min`; `over` when it has passed."""
    minutes, seconds = divmod(int((stamp.ToDatetime(tzinfo=UTC) - now()).total_seconds()), 60)
    if minutes < 0:
        return "over"
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    parts = [(days, "d"), (hours, "h"), (minutes, "min"), (seconds, "s")]
    first = next((index for index, (number, _) in enumerate(parts) if number), len(parts) - 1)
    return "in " + " ".join(f"{number} {unit}" for number, unit in parts[first : first + 2])


def instant(stamp: Timestamp) -> str:
    """A point in time, UTC, to the millisecond (RFC 3339); `-` when it is not set."""
    if not stamp.seconds:
        return "-"
    return f"{stamp.ToDatetime():%Y-%m-%dT%H:%M:%S}.{stamp.nanos // 1_000_000:03d}Z"


def minute(stamp: Timestamp) -> str:
    """A point in time, UTC, to the minute; `-` when it is not set."""
    return f"{stamp.ToDatetime():%Y-%m-%d %H:%MZ}" if stamp.seconds else "-"


def count(number: int) -> str:
    """A count of addresses."""
    return "2^63+" if number >= MANY else str(number)


def span(text: str) -> timedelta | None:
    """The length of time that such as 90s, 30m, 2h or 7d says; None when it says none."""
    found = _SPAN.fullmatch(text)
    return None if found is None else timedelta(**{_UNITS[found[2]]: int(found[1])})


def now() -> datetime:
    """The present."""
    return datetime.now(UTC)


@dataclass(slots=True)
class Sheet:
    """A message on paper: names and values, then its lists, each as a table of its own."""

    pairs: list[tuple[str, str]] = field(default_factory=list)
    tables: list[tuple[str, list[str], list[list[str]]]] = field(default_factory=list)


def sheet(message: Message) -> Sheet:
    """All that is set in a message, and every yes or no.

    A list of things that hold no lists themselves is a table; of others, each entry is numbered.
    """
    found = Sheet()
    _fill(found, "", message)
    return found


def _fill(into: Sheet, name: str, message: Message) -> None:
    fields_set = dict(message.ListFields())
    for descriptor in message.DESCRIPTOR.fields:
        path = f"{name}.{descriptor.name}" if name else descriptor.name
        if descriptor in fields_set:
            _field(into, path, descriptor, fields_set[descriptor])
        elif descriptor.type == FieldDescriptor.TYPE_BOOL and not (descriptor.has_presence or descriptor.is_repeated):
            into.pairs.append((path, "no"))


def _field(into: Sheet, path: str, descriptor: FieldDescriptor, value: Any) -> None:
    inner = descriptor.message_type
    if inner is not None and inner.GetOptions().map_entry:
        of = inner.fields_by_name["value"]
        for key in sorted(value):
            _value(into, f"{path}.{key}", of, value[key])
    elif descriptor.is_repeated and inner is not None:
        _list(into, path, value)
    elif descriptor.is_repeated:
        into.pairs.append((path, ", ".join(_scalar(descriptor, each) for each in value)))
    else:
        _value(into, path, descriptor, value)


def _list(into: Sheet, path: str, messages: Sequence[Message]) -> None:
    sheets = [sheet(each) for each in messages]
    if any(each.tables for each in sheets):
        for index, each in enumerate(messages):
            _fill(into, f"{path}[{index}]", each)
        return
    columns = list(dict.fromkeys(name for each in sheets for name, _ in each.pairs))
    order = messages[0].DESCRIPTOR.fields_by_name
    columns.sort(key=lambda name: order[name.partition(".")[0]].index)
    rows = [[dict(each.pairs).get(name, "") for name in columns] for each in sheets]
    into.tables.append((path, columns, rows))


def _value(into: Sheet, path: str, descriptor: FieldDescriptor, value: Any) -> None:
    if isinstance(value, Message) and not isinstance(value, Timestamp | Duration):
        _fill(into, path, value)
    else:
        into.pairs.append((path, _scalar(descriptor, value)))


def _scalar(descriptor: FieldDescriptor, value: Any) -> str:
    if isinstance(value, Timestamp):
        return instant(value)
    if isinstance(value, Duration):
        return value.ToJsonString()
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, bytes):
        return f"{len(value)} bytes"
    if descriptor.enum_type is not None:
        return enum_word(descriptor.enum_type, value) or "-"
    if isinstance(value, int):
        return count(value)
    return str(value)


def pairs(texts: Sequence[str]) -> dict[str, str]:
    """Labels as they are written, KEY=VALUE. Raises typer's BadParameter for anything else."""
    found = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not key or not equals:
            raise typer.BadParameter(f"{text!r} is no KEY=VALUE")
        found[key] = value
    return found
