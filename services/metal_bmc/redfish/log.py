"""Entries of a BMC's event log, which come in either order and without a promise about their numbers. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from metal_bmc.redfish.document import Document
from metal_bmc.redfish.measurements import clean

EVENT_LOG_TYPES = ("SEL", "Event", "Multiple")
_LONGEST_TEXT = 1024
_LONGEST_ID = 128
_MOST_DIGITS = 18
LONG_AGO = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry. `created` is LONG_AGO and `number` 0 where the BMC has none that make sense."""

    number: int
    created: datetime
    severity: str
    message_id: str
    text: str


def entry(document: Document) -> Entry:
    """One entry of a log. Raises BadAnswer."""
    return Entry(
        number=_number(document.optional_text("Id")),
        created=time(document.optional_text("Created")),
        severity=document.optional_text("Severity"),
        message_id=clean(document.optional_text("MessageId"))[:_LONGEST_ID],
        text=clean(document.optional_text("Message"))[:_LONGEST_TEXT],
    )


def event(document: Document) -> Entry:
    """The same out of an event, which names things differently. Raises BadAnswer."""
    return Entry(
        number=_number(document.optional_text("EventId")),
        created=time(document.optional_text("EventTimestamp")),
        severity=document.optional_text("MessageSeverity") or document.optional_text("Severity"),
        message_id=clean(document.optional_text("MessageId"))[:_LONGEST_ID],
        text=clean(document.optional_text("Message"))[:_LONGEST_TEXT],
    )


def _number(identity: str) -> int:
    digits = "".join(each for each in identity if each.isascii() and each.isdigit())
    return int(digits[-_MOST_DIGITS:] or 0)


def time(text: str) -> datetime:
    """A point of time; LONG_AGO for none. One without an offset is taken for UTC."""
    try:
        read = datetime.fromisoformat(text)
        return (read if read.tzinfo is not None else read.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        return LONG_AGO


def rank(service: Document) -> int:
    """How well a log service fits as the event log of the machine, the lowest best. Raises BadAnswer."""
    kind = service.optional_text("LogEntryType")
    if kind in EVENT_LOG_TYPES:
        return EVENT_LOG_TYPES.index(kind)
    return 1 if "sel" in service.optional_text("Id").lower() else len(EVENT_LOG_TYPES)
