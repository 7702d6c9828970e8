"""Tables for people, JSON for programs. Both show the same objects; JSON shows all of them."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import Any

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message

from metalctl.table import plain, render, render_pairs
from metalctl.values import sheet

Cell = Callable[[Any], str]
Columns = Sequence[tuple[str, Cell]]
# What a program ends with that a signal ended: 128 and SIGPIPE's number.
BROKEN_PIPE = 141


class Format(StrEnum):
    """How results are printed."""

    TABLE = "table"
    JSON = "json"


def show_many(messages: Sequence[Message], columns: Columns, how: Format) -> None:
    """Print a list."""
    if how is Format.JSON:
        write(as_json([as_dict(message) for message in messages]))
        return
    cells = ([cell(message) for _, cell in columns] for message in messages)
    write(render([name for name, _ in columns], cells))


def show_one(message: Message, how: Format) -> None:
    """Print one object, all of it."""
    if how is Format.JSON:
        write(as_json(as_dict(message)))
        return
    paper = sheet(message)
    tables = [
        f"{name}:\n{render([column.upper() for column in columns], rows)}" for name, columns, rows in paper.tables
    ]
    if text := "\n\n".join([render_pairs(paper.pairs), *tables]).strip():
        write(text)


def show_row(message: Message, columns: Columns, how: Format) -> None:
    """Print one object as a list would show it; as JSON, all of it."""
    if how is Format.JSON:
        show_one(message, how)
    else:
        show_many([message], columns, how)


def write(text: str) -> None:
    """Print lines, at once. When nobody reads any more, as in `… | head -1`, the program ends without a word."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        # Python flushes again when it ends, and would complain then.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(BROKEN_PIPE) from None


def note(text: str) -> None:
    """Tell a person something that is no result: one line on standard error."""
    print(plain(text), file=sys.stderr, flush=True)


def as_json(value: object, *, indent: int | None = 2) -> str:
    """JSON, sorted, for programs and for diffs; in ASCII where the output cannot be more."""
    unicode = (sys.stdout.encoding or "").lower().startswith("utf")
    return json.dumps(value, indent=indent, sort_keys=True, ensure_ascii=not unicode)


def as_dict(message: Message) -> dict[str, Any]:
    """A message as the contract's JSON: proto field names, enums by name, 64-bit integers as strings.

    Fields without presence are there even when they are empty or 0: a program that selects by one need not know that.
    """
    return MessageToDict(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
