"""Namespaces."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from metal_kit.db import Connection
from metal_kit.errors import Aborted, AlreadyExists, FailedPrecondition, InvalidArgument
from metal_kit.identity import missing

DEFAULT = "default"
_COLUMNS = "id, name, project_id, description, for_networks, created_at"
_NAMED = 3
_ATTEMPTS = 5
_OF_PROJECT = re.compile(r"project-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.ASCII | re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Namespace:
    """A space in which a prefix and an address exist once. `id` is the database's, people use the name."""

    id: int
    name: str
    project: str
    description: str
    create_time: datetime
    # Made for the child networks of its project; what is in it is theirs.
    for_networks: bool = False


async def insert(connection: Connection, name: str, *, project: str, description: str) -> Namespace:
    """Write a new one.

    Raises:
        InvalidArgument: NAMESPACE_NAME_RESERVED. AlreadyExists: NAMESPACE_EXISTS.
    """
    if _OF_PROJECT.fullmatch(name):
        raise InvalidArgument(
            "NAMESPACE_NAME_RESERVED",
            "`project-` with a project's id names the namespace of that project's networks; take another name",
            field="namespace.id",
        )
    row = await connection.fetchrow(
        f"""INSERT INTO namespace (name, project_id, description) VALUES ($1, $2, $3)
            ON CONFLICT DO NOTHING RETURNING {_COLUMNS}""",
        *(name, project, description),
    )
    if row is None:
        raise AlreadyExists("NAMESPACE_EXISTS", f"there is a namespace {name!r} already", field="namespace.id")
    return _namespace(row)


async def hold_of_project(connection: Connection, project: str) -> int:
    """The id of the namespace of the project's networks, made if there is none; locked until the transaction ends.

    Raises:
        FailedPrecondition: NAMESPACE_TAKEN, somebody made one of that name when that was not refused yet.
        Aborted: CONCURRENT_CHANGE.
    """
    name = f"project-{project}"
    for _ in range(_ATTEMPTS):
        row = await connection.fetchrow(
            "SELECT id, for_networks FROM namespace WHERE name = $1 FOR NO KEY UPDATE", name
        )
        if row is None:  # Or it went while this waited for it.
            await connection.execute(
                """INSERT INTO namespace (name, project_id, description, for_networks) VALUES ($1, $2, $3, true)
                   ON CONFLICT DO NOTHING""",
                *(name, project, "networks of the project; ipam makes and deletes it"),
            )
        elif row["for_networks"]:
            found: int = row["id"]
            return found
        else:
            raise FailedPrecondition(
                "NAMESPACE_TAKEN", f"the project's networks need namespace {name!r}, which is used otherwise; delete it"
            )
    raise Aborted("CONCURRENT_CHANGE", f"namespace {name!r} comes and goes; try again")


def check_open(namespace: Namespace) -> None:
    """People put nothing into a namespace that was made for networks.

    Raises:
        FailedPrecondition: NAMESPACE_OF_NETWORKS.
    """
    if namespace.for_networks:
        raise FailedPrecondition(
            "NAMESPACE_OF_NETWORKS",
            f"namespace {namespace.name!r} is for the networks of project {namespace.project}; create a network, or "
            "take another namespace",
        )


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
        FailedPrecondition: NAMESPACE_IN_USE, naming some of its prefixes; NAMESPACE_STAYS, NAMESPACE_OF_NETWORKS.
    """
    if name == DEFAULT:
        raise FailedPrecondition("NAMESPACE_STAYS", f"networks are in namespace {DEFAULT}; it cannot be deleted")
    found = await get(connection, name, field="id", lock="FOR UPDATE")
    check_open(found)
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
    return Namespace(
        row["id"], row["name"], row["project_id"], row["description"], row["created_at"], row["for_networks"]
    )
