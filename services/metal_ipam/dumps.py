"""All of a namespace as lines of JSON, and back.

A dump is what one statement sees, so it is one moment. A load is one transaction: rows are written, free space and
counters are made anew from them, and the proof of the accounts decides whether it commits.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from itertools import groupby
from typing import Any

import asyncpg
from metal_kit.db import Connection
from metal_kit.errors import FailedPrecondition, InvalidArgument, ResourceExhausted

from metal_ipam.cidr import Prefix, contains, parse_address, parse_prefix
from metal_ipam.store import dumps as store
from metal_ipam.store import namespaces

# The lines of one dump are in memory at once, some 300 bytes each.
MOST_LINES = 500_000
VERSION = 1
_PART_BYTES = 256 * 1024
_BATCH = 2_000
_TOLD = 5


@dataclass(slots=True)
class Content:
    """What a dump holds: JSON objects as `store.dumps` makes them."""

    prefixes: list[dict[str, Any]] = field(default_factory=list)
    ranges: list[dict[str, Any]] = field(default_factory=list)
    ips: list[dict[str, Any]] = field(default_factory=list)


async def dump(connection: Connection, namespace: str) -> list[str]:
    """The lines of a namespace: a head, prefixes before their children, reserved ranges, addresses, and an end.

    Raises:
        NotFound: there is no such namespace. ResourceExhausted: DUMP_TOO_LARGE.
    """
    home = await namespaces.get(connection, namespace, field="id")
    lines = await store.lines(connection, home.id, limit=MOST_LINES + 1)
    if len(lines) > MOST_LINES:
        raise ResourceExhausted(
            "DUMP_TOO_LARGE", f"namespace {home.name!r} has more than {MOST_LINES} prefixes, ranges and addresses"
        )
    head = json.dumps({"kind": "head", "version": VERSION})
    return [head, *lines, json.dumps({"kind": "end", "lines": len(lines)})]


def parts(lines: Iterable[str]) -> Iterator[list[str]]:
    """The lines in pieces of messages' size."""
    part: list[str] = []
    size = 0
    for line in lines:
        part.append(line)
        size += len(line)
        if size >= _PART_BYTES:
            yield part
            part, size = [], 0
    if part:
        yield part


class Reading:
    """Takes the lines of a dump as they come, and says what is wrong with the first bad one."""

    def __init__(self) -> None:
        self.namespace = ""
        self._content = Content()
        self._kinds: dict[Prefix, str] = {}
        self._number = 0
        self._ended = False

    def add(self, namespace: str, lines: Iterable[str]) -> None:
        """Read a part of the dump.

        Raises:
            InvalidArgument: DUMP_INVALID with the number of the line. ResourceExhausted: DUMP_TOO_LARGE.
        """
        if namespace and self.namespace not in {"", namespace}:
            raise InvalidArgument("DUMP_INVALID", "parts name different namespaces", field="id")
        self.namespace = self.namespace or namespace
        for line in lines:
            self._number += 1
            if self._number > MOST_LINES + 2:
                raise ResourceExhausted("DUMP_TOO_LARGE", f"more than {MOST_LINES} lines")
            try:
                self._line(json.loads(line))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise self._bad(f"cannot be read: {type(error).__name__}") from error

    def done(self) -> Content:
        """All of it.

        Raises:
            InvalidArgument: DUMP_INVALID, the end is missing; NAMESPACE_MISSING.
        """
        if not self.namespace:
            raise InvalidArgument("NAMESPACE_MISSING", "name the namespace in the first part", field="id")
        if not self._ended:
            raise InvalidArgument("DUMP_INVALID", "the end is missing; the dump was cut off", field="lines")
        return self._content

    def _line(self, row: dict[str, Any]) -> None:
        kind = row["kind"]
        if (kind == "head") != (self._number == 1) or self._ended:
            raise self._bad("is not at its place")
        if kind == "head":
            if row["version"] != VERSION:
                raise self._bad(f"has a version that is not {VERSION}")
        elif kind == "end":
            if row["lines"] != self._number - 2:
                raise self._bad(f"says {row['lines']} lines, there are {self._number - 2}")
            self._ended = True
        elif kind == "prefix":
            self._prefix(row)
        elif kind == "range":
            home = self._home(row, "leaf")
            ends = [parse_address(row[name], field="lines") for name in ("first", "last")]
            if not all(contains(home, end) for end in ends) or not isinstance(row["label"], str):
                raise self._bad("does not lie in its prefix")
            _time(row["created_at"])
            self._content.ranges.append(row)
        elif kind == "ip":
            home = self._home(row, "leaf")
            if not contains(home, parse_address(row["address"], field="lines")):
                raise self._bad("does not lie in its prefix")
            if row["type"] not in {"ephemeral", "static"} or row["state"] not in {"active", "reserved", "quarantine"}:
                raise self._bad("has an unknown type or state")
            if row["owner_kind"] not in {"", "allocation", "network", "other"}:
                raise self._bad("has an owner of an unknown kind")
            _labels(row["labels"])
            _time(row["created_at"])
            if row["release_after"] is not None:
                _time(row["release_after"])
            self._content.ips.append(row)
        else:
            raise self._bad("is of an unknown kind")

    def _prefix(self, row: dict[str, Any]) -> None:
        cidr = parse_prefix(row["cidr"], field="lines")
        if row["parent"] is not None:
            parent = parse_prefix(row["parent"], field="lines")
            if self._kinds.get(parent) != "container":
                raise self._bad(f"has a parent {parent} that is no container before it")
            if cidr.version != parent.version or cidr == parent or not cidr.subnet_of(parent):  # type: ignore[arg-type]
                raise self._bad(f"does not lie in its parent {parent}")
        if row["type"] not in {"container", "leaf"} or row["status"] not in {"active", "reserved", "deprecated"}:
            raise self._bad("has an unknown type or status")
        if row["network"]:
            raise FailedPrecondition(
                "DUMP_HAS_NETWORKS", f"{cidr} belongs to network {row['network']}; networks cannot be loaded"
            )
        if cidr in self._kinds:
            raise self._bad(f"tells of {cidr} a second time")
        if not isinstance(row["all_usable"], bool) or not 0 <= float(row["quarantine"]) <= 30 * 86_400:
            raise self._bad("has an impossible all_usable or quarantine")
        _labels(row["labels"])
        _time(row["created_at"])
        self._kinds[cidr] = row["type"]
        self._content.prefixes.append(row)

    def _home(self, row: Mapping[str, Any], kind: str) -> Prefix:
        home = parse_prefix(row["prefix"], field="lines")
        if self._kinds.get(home) != kind:
            raise self._bad(f"is of {home}, which is no {kind} before it")
        return home

    def _bad(self, what: str) -> InvalidArgument:
        return InvalidArgument("DUMP_INVALID", f"line {self._number} {what}", field="lines")


async def load(connection: Connection, namespace: str, content: Content, *, actor: str) -> None:
    """Write the content into an empty namespace.

    Raises:
        NotFound: there is no such namespace. FailedPrecondition: NAMESPACE_NOT_EMPTY, NAMESPACE_OF_NETWORKS.
        InvalidArgument: DUMP_CONTRADICTS, what was read cannot be true at once.
    """
    # Nobody adds a root while the row is locked.
    home = await namespaces.get(connection, namespace, field="id", lock="FOR NO KEY UPDATE")
    namespaces.check_open(home)
    if await store.has_prefixes(connection, home.id):
        raise FailedPrecondition("NAMESPACE_NOT_EMPTY", f"namespace {home.name!r} has prefixes; load into an empty one")
    try:
        await _write(connection, home.id, content)
    except asyncpg.IntegrityConstraintViolationError as error:
        detail = str(getattr(error, "detail", "") or "two of its lines exclude each other")
        raise InvalidArgument("DUMP_CONTRADICTS", detail[:500], field="lines") from error
    findings = [text async for text in store.rebuild(connection, home.id)]
    if findings:
        raise InvalidArgument("DUMP_CONTRADICTS", "; ".join(findings[:_TOLD])[:1000], field="lines")
    await store.remember(connection, home.id, actor=actor)


async def _write(connection: Connection, namespace_id: int, content: Content) -> None:
    # Level by level: a statement does not see the parents that it writes itself.
    def length(row: Mapping[str, Any]) -> int:
        return int(row["cidr"].rpartition("/")[2])

    for _, level in groupby(sorted(content.prefixes, key=length), key=length):
        for rows in _batches(list(level)):
            await store.insert_prefixes(connection, namespace_id, rows)
    for rows in _batches(content.ranges):
        await store.insert_ranges(connection, namespace_id, rows)
    for rows in _batches(content.ips):
        await store.insert_ips(connection, namespace_id, rows)


def _batches(rows: list[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    for start in range(0, len(rows), _BATCH):
        yield rows[start : start + _BATCH]


def _labels(labels: Mapping[str, Any]) -> None:
    if not isinstance(labels, dict) or not all(isinstance(each, str) for pair in labels.items() for each in pair):
        raise TypeError("labels are texts")


def _time(text: str) -> None:
    datetime.fromisoformat(text)
