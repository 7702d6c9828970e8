"""A request that is sent again with the same `request_id` has one effect and one answer.

The answer is stored in the transaction of the effect, so that there is never one without the other. Answers are
remembered for RETENTION; a retry after that is a new request. Requests that failed are not remembered: they had no
effect.
"""

from __future__ import annotations

import hashlib
from datetime import timedelta
from typing import TypeVar

from google.protobuf.message import Message

from metal_kit.db import Connection
from metal_kit.errors import InvalidArgument

RETENTION = timedelta(hours=24)
MAX_REQUEST_ID = 128

M = TypeVar("M", bound=Message)

# The lock makes a second copy of the request wait until the first has committed or rolled back, so that it finds the
# answer instead of failing on a unique key somewhere in the middle of the effect.
_LOCK = (
    "SELECT pg_advisory_xact_lock(hashtextextended(concat_ws(chr(1), 'idempotency', $1::text, $2::text, $3::text), 0))"
)
_READ = "SELECT request_hash, response FROM idempotency WHERE caller = $1 AND method = $2 AND request_id = $3"
_WRITE = """
    INSERT INTO idempotency (caller, method, request_id, request_hash, response) VALUES ($1, $2, $3, $4, $5)
"""
_FORGET = "DELETE FROM idempotency WHERE caller = $1 AND method = $2 AND request_id = $3"


async def remembered(
    connection: Connection, *, caller: str, method: str, request_id: str, request: Message, response_type: type[M]
) -> M | None:
    """The answer that was given to this request before, or None when it is new (or has no `request_id`).

    Call it first in the transaction of the effect. `caller` is `Caller.label`, `method` the RPC's full name.

    Raises:
        InvalidArgument: REQUEST_ID_REUSED, the id came with another request before; or REQUEST_ID_TOO_LONG.
    """
    if not request_id:
        return None
    if len(request_id) > MAX_REQUEST_ID:
        raise InvalidArgument(
            "REQUEST_ID_TOO_LONG", f"must have at most {MAX_REQUEST_ID} characters", field="request_id"
        )
    await connection.execute(_LOCK, caller, method, request_id)
    row = await connection.fetchrow(_READ, caller, method, request_id)
    if row is None:
        return None
    if row["request_hash"] != _hash(request):
        raise InvalidArgument(
            "REQUEST_ID_REUSED", "was used with a different request; use a new id for a new request", field="request_id"
        )
    return response_type.FromString(row["response"])


async def remember(
    connection: Connection, *, caller: str, method: str, request_id: str, request: Message, response: Message
) -> None:
    """Store the answer, in the transaction of the effect; a no-op without a `request_id`."""
    if request_id:
        await connection.execute(
            _WRITE, caller, method, request_id, _hash(request), response.SerializeToString(deterministic=True)
        )


async def forget(connection: Connection, *, caller: str, method: str, request_id: str) -> None:
    """Drop a stored answer whose effect was undone, so that a retry is a new try; a no-op without a `request_id`."""
    if request_id:
        await connection.execute(_FORGET, caller, method, request_id)


def _hash(request: Message) -> bytes:
    # Deterministic only within one release of protobuf, which is enough for the hours that a retry takes.
    return hashlib.sha256(request.SerializeToString(deterministic=True)).digest()
