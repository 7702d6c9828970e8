"""What the servicers of operator-described resources have in common: create, get, list, update, delete.

A kind differs in its rules and in what may stand in the way of its deletion; both are functions that run in the
transaction of the change.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from typing import Generic

from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message
from metal_kit import validation
from metal_kit.db import Connection, Database
from metal_kit.errors import InvalidArgument, Violation
from metal_kit.etag import check_etag
from metal_kit.fieldmask import apply_update
from metal_kit.idempotency import remember, remembered
from metal_kit.identity import current_caller, missing
from metal_kit.paging import Paging

from metal_inventory.store.catalog import CatalogStore, R


async def _nothing(conn: Connection, resource: Message) -> None:
    """No rule."""


@dataclass(frozen=True)
class Crud(Generic[R]):
    """The standard methods of one kind.

    `field` is the resource's name in requests; `check` raises when a resource breaks the kind's rules, and may fill
    in defaults; `in_use` raises when it must not be deleted. `compares` says that `check` looks at all rows.
    """

    db: Database
    paging: Paging
    store: CatalogStore[R]
    message: type[R]
    field: str
    mutable: Collection[str]
    check: Callable[[Connection, R], Awaitable[None]] = _nothing
    in_use: Callable[[Connection, R], Awaitable[None]] = _nothing
    compares: bool = False

    async def create(self, method: str, request_id: str, request: Message, resource: R) -> R:
        """Store a new resource, once a request id."""
        caller = current_caller().label
        async with self.db.transaction(purpose=f"create {self.field}") as conn:
            known = await remembered(
                conn,
                caller=caller,
                method=method,
                request_id=request_id,
                request=request,
                response_type=self.message,
            )
            if known is not None:
                return known
            if self.compares:
                await self.store.lock_table(conn)
            fresh = self.message()
            fresh.CopyFrom(resource)
            await self.check(conn, fresh)
            created = await self.store.insert(conn, fresh)
            await remember(conn, caller=caller, method=method, request_id=request_id, request=request, response=created)
        return created

    async def get(self, id_: str) -> R:
        """The resource. Raises NotFound."""
        async with self.db.connection() as conn:
            return self._found(await self.store.get(conn, id_), id_)

    async def page(self, page_size: int, page_token: str) -> tuple[list[R], str]:
        """One page by id, and the token of the next."""
        page = self.paging.page(page_size, page_token, filter_key=self.store.table)
        async with self.db.connection() as conn:
            rows = await self.store.page(conn, after=page.after_text(), limit=page.limit)
        shown, token = page.cut(rows, lambda row: (row.id,))
        return list(shown), token

    async def update(self, resource: R, mask: FieldMask) -> R:
        """Change the fields that the mask names. Raises NotFound, or Aborted when the etag is not the present one."""
        if not resource.id:
            raise InvalidArgument(
                "FIELD_REQUIRED", f"{self.field}.id must name what to change", field=f"{self.field}.id"
            )
        async with self.db.transaction(purpose=f"update {self.field}") as conn:
            if self.compares:
                await self.store.lock_table(conn)
            current = self._found(await self.store.get(conn, resource.id, lock=True), resource.id)
            check_etag(resource.etag, int(current.etag), what=self._named(resource.id))
            apply_update(current, resource, mask, mutable=self.mutable)
            validation.check(current, field=self.field)
            await self.check(conn, current)
            return await self.store.update(conn, current)

    async def delete(self, id_: str, etag: str) -> None:
        """Remove the resource. Raises NotFound, Aborted on another etag, or what `in_use` raises."""
        async with self.db.transaction(purpose=f"delete {self.field}") as conn:
            current = self._found(await self.store.get(conn, id_, lock=True), id_)
            check_etag(etag, int(current.etag), what=self._named(id_))
            await self.in_use(conn, current)
            await self.store.delete(conn, id_)

    def _found(self, resource: R | None, id_: str) -> R:
        if resource is None:
            raise missing(self._named(id_))
        return resource

    def _named(self, id_: str) -> str:
        return f"{self.field.replace('_', ' ')} {id_}"


def refuse(problems: Collection[tuple[str, str]], *, field: str) -> None:
    """Raise InvalidArgument that names every problem, a (path, message) each; nothing when there is none."""
    if problems:
        violations = [Violation(f"{field}.{path}", text, "INVALID_VALUE") for path, text in problems]
        first = violations[0]
        raise InvalidArgument("INVALID_FIELD", f"{first.field}: {first.description}", violations=violations)
