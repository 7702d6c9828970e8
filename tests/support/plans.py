"""How Postgres carries out the statements of a store, over tables with many rows.

A store's method is called as the service calls it, in a transaction that is rolled back, and the server itself
(auto_explain) reports the plan of each statement that it really executed, also inside SQL functions and for foreign
keys. A method passes when the work of each statement is bounded by what it returns or changes, not by the size of
the tables.

Prepared statements have two kinds of plan: for the arguments at hand, and one for all arguments that Postgres turns to
after five executions if it looks cheaper. Both are judged, the second where Postgres may come to choose it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest
from metal_kit.db import Connection, Database
from metal_kit.migrations import migrate
from metal_lab.servers import Postgres

Call = Callable[[Connection], Awaitable[object]]

MANY = 1000
"""From so many rows on a table counts as large: it must not be read from end to end."""
FACTOR = 4
"""Rows that may be read in each table for each row that is returned or changed."""
SPARE = 100
"""Rows that may be read besides."""
SPARE_BLOCKS = 300
"""Blocks that may be touched besides; those of the functions that a statement calls count as its own."""
BLOCKS = 8
"""Blocks that may be touched for each row read, looked for or changed: an index from its root, the row, other ones."""
FIRST = "00000000-0000-0000-0000-000000000000"
MIDDLE = "80000000-0000-0000-0000-000000000000"
"""Where a first page, and one amid the rows, begins in tables whose keys are UUIDs."""
_SHOWN = 400
_PLANNING = 2.5
"""What Postgres adds to the cost of a plan per table for planning it anew (plancache.c)."""
_SETTINGS = (
    "LOAD 'auto_explain'; SET auto_explain.log_min_duration = 0; SET auto_explain.log_analyze = on;"
    "SET auto_explain.log_buffers = on; SET auto_explain.log_timing = off; SET auto_explain.log_format = json;"
    "SET auto_explain.log_nested_statements = on; SET auto_explain.log_level = notice;"
    "SET auto_explain.log_parameter_max_length = 0"
)


def uuid_of(name: object) -> str:
    """The UUID that `md5(name)::uuid` makes in Postgres, where the tables are filled."""
    return str(UUID(hashlib.md5(str(name).encode()).hexdigest()))


@dataclass(frozen=True)
class Statement:
    """A statement as it was executed: its text and the tree of its plan."""

    sql: str
    root: Mapping[str, Any]

    def nodes(self) -> Iterator[Mapping[str, Any]]:
        """All nodes, parents first."""
        pending = [self.root]
        while pending:
            node = pending.pop()
            yield node
            pending += reversed(node.get("Plans", []))

    @property
    def returned(self) -> float:
        """Rows returned or changed, at least 1: to find nothing is a result too."""
        changed = [
            _rows(part)
            for node in self.nodes()
            if node["Node Type"] == "ModifyTable"
            for part in (node, *node.get("Plans", ())[:1])
        ]
        return max(1.0, _rows(self.root), *changed)

    @property
    def read(self) -> float:
        """Rows and index entries read, thrown away ones included."""
        return sum(_read(node) for node in self.nodes() if _is_scan(node))

    @property
    def blocks(self) -> int:
        """Blocks touched, in memory or not."""
        return int(self.root.get("Shared Hit Blocks", 0) + self.root.get("Shared Read Blocks", 0))

    @property
    def cost(self) -> float:
        """What Postgres believed it would cost."""
        return float(self.root["Total Cost"])

    def complaints(self, large: Mapping[str, float], reads: int) -> list[str]:
        """What is bad about the plan over these large tables; `reads` rows more than usual may be read."""
        most = reads + SPARE + FACTOR * self.returned * sum(1 for node in self.nodes() if _is_scan(node))
        found = []
        for node in self.nodes():
            table, kind = node.get("Relation Name"), node["Node Type"]
            # One that throws little away does no harm: most of the table is wanted.
            if kind == "Seq Scan" and table in large and _read(node) > min(most, 2 * _rows(node) + SPARE):
                found.append(f"reads all of {table} ({large[table]:.0f} rows)")
            if kind in {"Sort", "Incremental Sort"} and _rows(node["Plans"][0]) > most:
                found.append(f"sorts {_rows(node['Plans'][0]):.0f} rows")
        if self.read > most:
            found.append(f"reads {self.read:.0f} rows for {self.returned:.0f}")
        searches = sum(node.get("Index Searches", 0) * _loops(node) for node in self.nodes())
        if self.blocks > SPARE_BLOCKS + BLOCKS * (self.read + self.returned + searches):
            found.append(f"touches {self.blocks} blocks for {self.read:.0f} rows read and {self.returned:.0f} returned")
        return found

    def __str__(self) -> str:
        lines = [" ".join(self.sql.split())[-_SHOWN:]]
        pending = [(self.root, 1)]
        while pending:
            node, depth = pending.pop()
            names = ("Node Type", "Index Name", "Relation Name", "Index Cond", "Filter")
            what = " | ".join(str(node[name]) for name in names if name in node)
            lines.append(f"{'  ' * depth}{what} | read {_read(node):g} gave {_rows(node):g}")
            pending += [(child, depth + 1) for child in reversed(node.get("Plans", []))]
        return "\n".join(lines)


@dataclass(frozen=True)
class Cost:
    """What the statements of a call did together."""

    rows: float
    blocks: int


@dataclass
class Plans:
    """Plans of one schema; `large` are its tables with many rows."""

    db: Database
    large: Mapping[str, float] = field(default_factory=dict)

    async def complaints(
        self, cases: Mapping[str, Call], *, reads: int = 0, scans: Collection[str] = ()
    ) -> dict[str, list[str]]:
        """What is bad about the statements of each case, with their plans; empty when all is right.

        Cases that share a statement share its plan for all arguments: what one of them makes Postgres choose, the
        others get too. `reads`: rows that a case may read although it does not return them, as a count does.
        `scans`: tables that it may read from end to end.
        """
        large = {table: rows for table, rows in self.large.items() if table not in scans}
        reads += sum(int(rows) for table, rows in self.large.items() if table in scans)
        custom = {name: await self.executed(call) for name, call in cases.items()}
        generic = {name: await self.executed(call, plans="generic") for name, call in cases.items()}
        chosen = {sql for name in cases for sql in _chosen(custom[name], generic[name])}
        found: dict[str, list[str]] = {}
        for name in cases:
            if not custom[name]:
                found[name] = ["executes no statement over a table of the schema"]
            for statement in [*custom[name], *(each for each in generic[name] if each.sql in chosen)]:
                if complaints := statement.complaints(large, reads):
                    found.setdefault(name, []).append(f"{', '.join(complaints)}:\n{statement}")
        return found

    async def check(self, cases: Mapping[str, Call], *, reads: int = 0, scans: Collection[str] = ()) -> None:
        """Fail the test with all complaints."""
        found = await self.complaints(cases, reads=reads, scans=scans)
        if found:
            pytest.fail("\n\n".join(f"{name}: {each}" for name, all_ in found.items() for each in all_), pytrace=False)

    async def cost(self, call: Call) -> Cost:
        """What a call costs, as it is."""
        statements = await self.executed(call)
        return Cost(sum(each.read for each in statements), sum(each.blocks for each in statements))

    async def executed(self, call: Call, *, plans: str = "custom") -> list[Statement]:
        """The statements over tables that a call executes, with `custom` or `generic` plans; their effect is undone."""
        messages: list[str] = []

        def take(_connection: object, message: Any) -> None:
            messages.append(message.message)

        async with self.db.connection() as connection:
            await connection.execute(_SETTINGS)
            transaction = connection.transaction()
            await transaction.start()
            try:
                await connection.execute(f"SET LOCAL plan_cache_mode = force_{plans}_plan")
                connection.add_log_listener(take)
                try:
                    await call(connection)
                    # A statement ends, and is reported, when the next one takes its portal; rolled back it never would.
                    await connection.fetchval("SELECT 1")
                finally:
                    connection.remove_log_listener(take)
            finally:
                await transaction.rollback()
        return [statement for text in messages for statement in _parsed(text)]


class OneConnection:
    """Stands where a Database is wanted: for methods that open their connections by themselves."""

    schema = "plans"

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        yield self._connection

    @asynccontextmanager
    async def transaction(self, *, purpose: str) -> AsyncIterator[Connection]:
        assert purpose
        async with self._connection.transaction():
            yield self._connection


@asynccontextmanager
async def measured(server: Postgres, schema: str, package: str, fill: Sequence[str]) -> AsyncIterator[Plans]:
    """A database of its own with the package's migrations and the rows that `fill` writes, analysed."""
    name = f"plans_{uuid4().hex}"
    await _on(server.url, f'CREATE DATABASE "{name}" TEMPLATE template0 STRATEGY file_copy')
    try:
        await migrate(server.database_url(name), schema, package)
        db = await Database.open(server.database_url(name), schema, max_size=1)
        try:
            async with db.connection() as connection:
                for statement in fill:
                    await connection.execute(statement)
                # As autovacuum would have done by then, which these servers run without.
                await connection.execute("VACUUM (ANALYZE)")
                rows = await connection.fetch(
                    "SELECT relname, reltuples FROM pg_class WHERE relnamespace = $1::text::regnamespace "
                    "AND relkind = 'r' AND reltuples >= $2",
                    *(schema, MANY),
                )
            yield Plans(db, {row["relname"]: row["reltuples"] for row in rows})
        finally:
            await db.close()
    finally:
        await _on(server.url, f'DROP DATABASE "{name}" WITH (FORCE)')


def _chosen(custom: Sequence[Statement], generic: Sequence[Statement]) -> Iterator[str]:
    """Texts of the statements whose plan for all arguments looks cheaper to Postgres, the planning saved."""
    cheapest = {each.sql: each.cost for each in sorted(generic, key=lambda each: -each.cost)}
    for ours in custom:
        planning = _PLANNING * (1 + sum(1 for _ in ours.nodes()))
        if cheapest.get(ours.sql, float("inf")) <= ours.cost + planning:
            yield ours.sql


def _parsed(message: str) -> Iterator[Statement]:
    head, _, body = message.partition("plan:\n")
    if not head.startswith("duration:"):
        return
    explained = json.loads(body)
    statement = Statement(explained["Query Text"], explained["Plan"])
    tables = [node["Relation Name"] for node in statement.nodes() if "Relation Name" in node]
    if any(not table.startswith("pg_") for table in tables):
        yield statement


def _loops(node: Mapping[str, Any]) -> float:
    return float(node.get("Actual Loops", 0))


def _rows(node: Mapping[str, Any]) -> float:
    return float(node.get("Actual Rows", 0)) * _loops(node)


def _read(node: Mapping[str, Any]) -> float:
    removed = sum(value for name, value in node.items() if name.startswith("Rows Removed by"))
    return _rows(node) + float(removed) * _loops(node)


def _is_scan(node: Mapping[str, Any]) -> bool:
    return node["Node Type"] == "Bitmap Index Scan" or ("Relation Name" in node and node["Node Type"] != "ModifyTable")


async def _on(url: str, statement: str) -> None:
    connection = await asyncpg.connect(url, timeout=10)
    try:
        await connection.execute(statement, timeout=30)
    finally:
        await connection.close()
