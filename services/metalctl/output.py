"""Tables for people, JSON for programs. Both show the same objects; JSON shows all of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from rich import box
from rich.console import Console
from rich.table import Table

Cell = Callable[[Any], str]
Columns = Sequence[tuple[str, Cell]]


class Format(StrEnum):
    """How results are printed."""

    TABLE = "table"
    JSON = "json"


def show_many(messages: Sequence[Message], columns: Columns, how: Format) -> None:
    """Print a list."""
    if how is Format.JSON:
        print_json([as_dict(message) for message in messages])
        return
    rows(([cell(message) for _, cell in columns] for message in messages), [name for name, _ in columns])


def show_one(message: Message, how: Format) -> None:
    """Print one object, all of it."""
    if how is Format.JSON:
        print_json(as_dict(message))
        return
    lines: list[tuple[str, str]] = []
    _flatten("", as_dict(message), lines)
    width = max((len(name) for name, _ in lines), default=0)
    for name, value in lines:
        print(f"{name:<{width}}  {value}")


def rows(cells: Iterable[Sequence[str]], headers: Sequence[str]) -> None:
    """Print a table; a terminal that is too narrow folds cells, a pipe gets whole lines."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for header in headers:
        table.add_column(header, overflow="fold")
    for row in cells:
        table.add_row(*row)
    console = Console(soft_wrap=False, highlight=False, markup=False)
    if not console.is_terminal:
        console = Console(width=400, highlight=False, markup=False)
    console.print(table)


def print_json(value: object) -> None:
    """Print JSON, sorted, for programs and for diffs."""
    print(json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False))


def as_dict(message: Message) -> dict[str, Any]:
    """A message as the contract names it: proto field names, enums by name."""
    return MessageToDict(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=False)


def enum(wrapper: Any, value: int) -> str:
    """An enum value without its prefix, in lower case; `-` when it is not set."""
    prefix = wrapper.Name(0).removesuffix("UNSPECIFIED")
    return wrapper.Name(value).removeprefix(prefix).lower().replace("_", " ") if value else "-"


def age(stamp: Timestamp) -> str:
    """How long ago, in one unit."""
    if not stamp.seconds:
        return "-"
    seconds = max(0, int((datetime.now(UTC) - stamp.ToDatetime(tzinfo=UTC)).total_seconds()))
    for size, unit in ((86400, "d"), (3600, "h"), (60, "m")):
        if seconds >= size:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"


def _flatten(name: str, value: Any, lines: list[tuple[str, str]]) -> None:
    if isinstance(value, dict):
        for key, each in value.items():
            _flatten(f"{name}.{key}" if name else key, each, lines)
    elif isinstance(value, list):
        for index, each in enumerate(value):
            _flatten(f"{name}[{index}]", each, lines)
    else:
        lines.append((name, str(value)))
