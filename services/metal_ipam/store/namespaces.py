"""Namespaces."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from metal_kit.db import Connection
from metal_kit.errors import AlreadyExists, FailedPrecondition
from metal_kit.identity import missing

DEFAULT = "default"
_COLUMNS = "id, name, project_id, description, created_at"
_NAMED = 3


@dataclass(frozen=True, slots=True)
class Namespace:
    """A space in which a prefix and an address exist once. `id` is the database's, people use the name."""

    id: int
    name: str
    project: str
    description: str
    create_time: datetime


async def insert(connection: Connection, name: str, *, project: str, description: str) -> Namespace:
    """Write a new one.

    Raises:
        AlreadyExists: NAMESPACE_EXISTS.
    """
    row = await connection.fetchrow(
        f"""INSERT INTO namespace (name, project_id, description) VALUES ($1, $2, $3)
            ON CONFLICT DO NOTHING RETURNING {_COLUMNS}""",
        *(name, project, description),
    )
    if row is None:
        raise AlreadyExists("NAMESPACE_EXISTS", f"there is a namespace {name!r} already", field="namespace.id")
    return _namespace(row)


async def get(connection: Connection, name: str, *, field: str = "namespace", lock: str = "") -> Namespace:
    """The namespace of this name, the empty one being `default`.

    Raises:
        NotFound: there is none; names the request's `field`.
    """
    row = await connection.fetchrow(f"SELECT {_COLUMNS} FROM namespace WHERE name = $1 {lock}", name or DEFAULT)
    if row is None:
        problem = missing(f"namespace {name!r}")
        problem.field = field
        raise problem
    return _namespace(row)


async def page(connection: Connection, *, after: str, limit: int) -> list[Namespace]:
    """Namespaces by name."""
    rows = await connection.fetch(
        f"SELECT {_COLUMNS} FROM namespace WHERE name > $1 ORDER BY name LIMIT $2", after, limit
    )
    return [_namespace(row) for row in rows]


async def delete(connection: Connection, name: str) -> None:
    """Delete an empty one.

    Raises:
        NotFound: there is none.
        FailedPrecondition: NAMESPACE_IN_USE, naming some of its prefixes or networks; NAMESPACE_STAYS.
    """
    if name == DEFAULT:
        raise FailedPrecondition("NAMESPACE_STAYS", f"networks are in namespace {DEFAULT}; it cannot be deleted")
    found = await get(connection, name, field="id", lock="FOR UPDATE")
    # Nobody adds a prefix while the row is locked: `create_root` locks it too.
    rows = await connection.fetch(
        "SELECT cidr FROM prefix WHERE namespace_id = $1 ORDER BY namespace_id, cidr LIMIT $2", found.id, _NAMED + 1
    )
    if rows:
        some = ", ".join(str(row["cidr"]) for row in rows[:_NAMED]) + (", …" if len(rows) > _NAMED else "")
        raise FailedPrecondition(
            "NAMESPACE_IN_USE", f"namespace {name!r} has prefixes: {some}", metadata={"prefixes": some}
        )
    await connection.execute("DELETE FROM namespace WHERE id = $1", found.id)


def _namespace(row: Any) -> Namespace:
    return Namespace(row["id"], row["name"], row["project_id"], row["description"], row["created_at"])
