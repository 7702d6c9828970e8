"""What operators describe: partitions, sizes, images, layouts. One table a kind, the resource as a message.

Nothing in these resources is searched by, so they need no columns of their own; images add a few for the resolution
of shorthands. The row's version is the resource's etag.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

import asyncpg
from metal_kit.db import Connection
from metal_kit.errors import AlreadyExists
from metalplane.inventory.v1.image_pb2 import Image
from metalplane.inventory.v1.layout_pb2 import FilesystemLayout
from metalplane.inventory.v1.partition_pb2 import Partition
from metalplane.inventory.v1.size_pb2 import Size

from metal_inventory import contract, images

R = TypeVar("R", Partition, Size, Image, FilesystemLayout)
_COLUMNS = "id, version, created_at, updated_at, body"


class CatalogStore(Generic[R]):
    """The rows of one kind. `table` is a constant of the code, never input; so are the names that `extra` gives."""

    def __init__(self, table: str, message: type[R], extra: Callable[[R], Mapping[str, Any]] | None = None) -> None:
        self.table = table
        self._message: type[R] = message
        self._extra: Callable[[R], Mapping[str, Any]] | None = extra

    async def insert(self, conn: Connection, resource: R) -> R:
        """Store a new resource. Raises AlreadyExists when the id is taken."""
        values = self._values(resource)
        names, places = ", ".join(values), ", ".join(f"${n}" for n in range(1, len(values) + 1))
        row = await conn.fetchrow(
            f"INSERT INTO {self.table} ({names}) VALUES ({places}) ON CONFLICT (id) DO NOTHING RETURNING {_COLUMNS}",
            *values.values(),
        )
        if row is None:
            kind = self.table.replace("_", " ")
            raise AlreadyExists("ALREADY_EXISTS", f"{kind} {resource.id} exists already")
        return self._resource(row)

    async def get(self, conn: Connection, id_: str, *, lock: bool = False) -> R | None:
        """The resource, locked until the transaction ends if asked; None when there is none."""
        suffix = " FOR UPDATE" if lock else ""
        row = await conn.fetchrow(f"SELECT {_COLUMNS} FROM {self.table} WHERE id = $1{suffix}", id_)
        return None if row is None else self._resource(row)

    async def page(self, conn: Connection, *, after: str, limit: int) -> list[R]:
        """The next resources by id."""
        rows = await conn.fetch(
            f"SELECT {_COLUMNS} FROM {self.table} WHERE id > $1 ORDER BY id LIMIT $2",
            after,
            limit,
        )
        return [self._resource(row) for row in rows]

    async def everything(self, conn: Connection) -> list[R]:
        """All resources by id; for kinds of which there are dozens."""
        rows = await conn.fetch(f"SELECT {_COLUMNS} FROM {self.table} ORDER BY id")
        return [self._resource(row) for row in rows]

    async def hold(self, conn: Connection, id_: str) -> bool:
        """Keep the resource from being deleted until the transaction ends; False when it is gone."""
        held = await conn.fetchrow(f"SELECT 1 FROM {self.table} WHERE id = $1 FOR KEY SHARE", id_)
        return held is not None

    async def update(self, conn: Connection, resource: R) -> R:
        """Overwrite the resource, which the caller has locked."""
        values = self._values(resource)
        sets = ", ".join(f"{name} = ${n}" for n, name in enumerate(values, 1) if name != "id")
        row = await conn.fetchrow(
            f"UPDATE {self.table} SET {sets}, version = version + 1, updated_at = clock_timestamp() "
            f"WHERE id = $1 RETURNING {_COLUMNS}",
            *values.values(),
        )
        assert row is not None
        return self._resource(row)

    async def delete(self, conn: Connection, id_: str) -> None:
        """Remove the resource, which the caller has locked."""
        await conn.execute(f"DELETE FROM {self.table} WHERE id = $1", id_)

    async def lock_table(self, conn: Connection) -> None:
        """Let nobody else write this kind until the transaction ends: rules that compare all rows need it, or two
        overlapping ones could be created at once. Readers are not held up."""
        await conn.execute(f"LOCK TABLE {self.table} IN SHARE ROW EXCLUSIVE MODE")

    def _values(self, resource: R) -> dict[str, Any]:
        body = self._message()
        body.CopyFrom(resource)
        body.ClearField("etag")
        body.ClearField("create_time")
        body.ClearField("update_time")
        extra = self._extra(resource) if self._extra is not None else {}
        return {"id": resource.id, "body": body.SerializeToString(deterministic=True), **extra}

    def _resource(self, row: asyncpg.Record) -> R:
        resource = self._message()
        resource.MergeFromString(row["body"])
        resource.etag = str(row["version"])
        resource.create_time.FromDatetime(row["created_at"])
        resource.update_time.FromDatetime(row["updated_at"])
        return resource


def _image_columns(image: Image) -> Mapping[str, Any]:
    facts = contract.image(image)
    return {"os": facts.name.os, "classification": facts.classification.name, "expires_at": facts.expires}


class ImageStore(CatalogStore[Image]):
    """Images, which are also looked up by their operating system."""

    def __init__(self) -> None:
        super().__init__("image", Image, _image_columns)

    async def of_os(self, conn: Connection, os: str) -> list[images.Image]:
        """What resolution needs to know of an operating system's images."""
        rows = await conn.fetch("SELECT id, classification, expires_at FROM image WHERE os = $1", os)
        return [
            images.Image(row["id"], images.Classification[row["classification"]], row["expires_at"]) for row in rows
        ]


PARTITIONS: CatalogStore[Partition] = CatalogStore("partition", Partition)
SIZES: CatalogStore[Size] = CatalogStore("size", Size)
LAYOUTS: CatalogStore[FilesystemLayout] = CatalogStore("filesystem_layout", FilesystemLayout)
IMAGES = ImageStore()


async def machines_of(conn: Connection, column: str, value: str, *, limit: int = 10) -> list[str]:
    """Some machines whose `column` (a constant of the code: partition, size) has this value."""
    # machine.id, since a bare one would be the text of the result, which no index has.
    rows = await conn.fetch(
        f"SELECT id::text FROM machine WHERE {column} = $1 ORDER BY machine.id LIMIT $2",
        value,
        limit,
    )
    return [row["id"] for row in rows]
