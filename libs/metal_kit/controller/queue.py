"""The queue table: who may work on which key, and when. All times are the database's.

A row that nobody holds may be taken from `ready_at` on; a row that is held, from the end of the lease on, which is the
same column. What is enqueued while a row is held goes to `woken_at`, so that the holder, who may have loaded before the
change, does not swallow it.

Locks are always taken in the order: object's row, then queue row. Callers of `enqueue` have changed their object
before; `finish` is called after `save`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta

from metal_kit.controller.outcome import Outcome
from metal_kit.db import Connection

NOW = timedelta(0)

_ENQUEUE = """
    WITH queued AS (
        INSERT INTO reconcile_queue AS q (kind, key, ready_at)
        SELECT $1, key, clock_timestamp() + $3::interval FROM unnest($2::text[]) AS key
        ON CONFLICT (kind, key) DO UPDATE SET
            ready_at = CASE WHEN q.holder IS NULL THEN least(q.ready_at, excluded.ready_at) ELSE q.ready_at END,
            woken_at = CASE WHEN q.holder IS NULL THEN NULL ELSE least(q.woken_at, excluded.ready_at) END
    )
    SELECT pg_notify('metalplane_' || current_schema(), 'reconcile:' || $1)
"""
_ADD_MISSING = """
    INSERT INTO reconcile_queue (kind, key, ready_at)
    SELECT $1, key, clock_timestamp() FROM unnest($2::text[]) AS key
    ON CONFLICT (kind, key) DO NOTHING
"""
# What is due is compared with the statement's time: the clock itself, which may go on between two rows, is nothing that
# an index can be searched for, and all that wait for later would be looked at as well.
# The last argument: which shards of the keys, NULL for all. Few keys are due at a time, so theirs is worked out here.
_CLAIM = """
    UPDATE reconcile_queue AS q
    SET holder = $2, fence = nextval('reconcile_fence'), ready_at = clock_timestamp() + $3::interval, woken_at = NULL
    FROM (
        SELECT kind, key FROM reconcile_queue
        WHERE kind = $1 AND ready_at <= statement_timestamp()
        AND ($5::int[] IS NULL OR get_byte(decode(md5(key), 'hex'), 0) = ANY ($5))
        ORDER BY ready_at LIMIT $4 FOR UPDATE SKIP LOCKED
    ) AS due
    WHERE q.kind = due.kind AND q.key = due.key
    RETURNING q.key, q.fence, q.attempts, q.phase, q.overdue, clock_timestamp() - q.phase_since AS in_phase
"""
_NEXT = """
    SELECT extract(epoch FROM min(ready_at) - clock_timestamp())::float8 FROM reconcile_queue
    WHERE kind = $1 AND ($2::int[] IS NULL OR get_byte(decode(md5(key), 'hex'), 0) = ANY ($2))
"""
_RENEW = """
    UPDATE reconcile_queue AS q SET ready_at = clock_timestamp() + $4::interval
    FROM (
        SELECT kind, key FROM reconcile_queue
        JOIN unnest($2::text[], $3::bigint[]) AS mine (key, fence) USING (key, fence)
        WHERE kind = $1 AND holder IS NOT NULL ORDER BY key FOR UPDATE OF reconcile_queue
    ) AS held
    WHERE q.kind = held.kind AND q.key = held.key
    RETURNING q.key
"""
_REMOVE = """
    DELETE FROM reconcile_queue
    WHERE kind = $1 AND key = $2 AND fence = $3 AND holder IS NOT NULL AND woken_at IS NULL
    RETURNING key
"""
_FINISH = """
    UPDATE reconcile_queue SET
        holder = NULL,
        ready_at = least(clock_timestamp() + $4::interval, woken_at),
        woken_at = NULL,
        attempts = $5,
        phase_since = CASE WHEN phase = $6 THEN phase_since ELSE clock_timestamp() END,
        phase = $6,
        overdue = $7,
        outcome = $8, reason = $9, message = $10,
        updated_at = clock_timestamp()
    WHERE kind = $1 AND key = $2 AND fence = $3 AND holder IS NOT NULL
    RETURNING key
"""
_ENTER = """
    UPDATE reconcile_queue SET phase = $4, phase_since = clock_timestamp(), overdue = false
    WHERE kind = $1 AND key = $2 AND fence = $3 AND holder IS NOT NULL
"""
_RELEASE = """
    UPDATE reconcile_queue SET holder = NULL, ready_at = clock_timestamp() + $4::interval, woken_at = NULL
    WHERE kind = $1 AND key = $2 AND fence = $3 AND holder IS NOT NULL
"""


SHARDS = 256
"""Into so many parts keys can be told apart, for replicas that each work on their own."""


def shard_of(key: str) -> int:
    """The shard of a key: the first byte of its MD5, which Postgres works out as well."""
    return hashlib.md5(key.encode(), usedforsecurity=False).digest()[0]


class LeaseLost(Exception):
    """Another worker has taken the key over; nothing of ours may be written."""


@dataclass(frozen=True)
class Claim:
    """A key that is ours as long as `fence` is the row's."""

    key: str
    fence: int
    attempts: int
    phase: str
    overdue: bool
    in_phase: timedelta


async def enqueue(connection: Connection, kind: str, key: str | Iterable[str], *, after: timedelta = NOW) -> None:
    """Have `key` (or several) reconciled after `after`; in the caller's transaction, after it changed the object.

    A key that already waits is looked at at the earlier of the two times; one that is being worked on is looked at
    again afterwards.
    """
    # Sorted, so that two transactions with several keys in common wait for each other instead of deadlocking.
    keys = [key] if isinstance(key, str) else sorted(set(key))
    if keys:
        await connection.execute(_ENQUEUE, kind, keys, after)


async def add_missing(connection: Connection, kind: str, keys: Iterable[str]) -> int:
    """Queue the keys that are not in the queue; those that are keep their backoff. The number that was added."""
    status = await connection.execute(_ADD_MISSING, kind, sorted(set(keys)))
    return int(status.rpartition(" ")[2])


async def claim(
    connection: Connection,
    kind: str,
    holder: str,
    lease: timedelta,
    most: int,
    shards: Collection[int] | None = None,
) -> list[Claim]:
    """Take up to `most` keys that are due, the longest due first; of these shards only (see `shard_of`)."""
    rows = await connection.fetch(_CLAIM, kind, holder, lease, most, shards if shards is None else list(shards))
    return [
        Claim(row["key"], row["fence"], row["attempts"], row["phase"], row["overdue"], row["in_phase"]) for row in rows
    ]


async def seconds_to_next(connection: Connection, kind: str, shards: Collection[int] | None = None) -> float | None:
    """Seconds until a key of these shards is due or a lease ends, negative when one is; None when there is none."""
    seconds: float | None = await connection.fetchval(_NEXT, kind, shards if shards is None else list(shards))
    return seconds


async def renew(connection: Connection, kind: str, claims: Sequence[Claim], lease: timedelta) -> set[str]:
    """Prolong the leases; the keys that are still ours."""
    keys = [each.key for each in claims]
    rows = await connection.fetch(_RENEW, kind, keys, [each.fence for each in claims], lease)
    return {row["key"] for row in rows}


async def enter_phase(connection: Connection, kind: str, held: Claim, phase: str) -> None:
    """Start the clock of a phase that was entered by somebody else than the worker."""
    await connection.execute(_ENTER, kind, held.key, held.fence, phase)


async def remove(connection: Connection, kind: str, held: Claim) -> bool:
    """Take the key off the queue; False when it was woken meanwhile or is not ours, and so has to stay."""
    return await connection.fetchval(_REMOVE, kind, held.key, held.fence) is not None


async def finish(
    connection: Connection,
    kind: str,
    held: Claim,
    outcome: Outcome,
    *,
    phase: str,
    after: timedelta,
    attempts: int,
    overdue: bool,
) -> None:
    """Put the key back, due after `after` or as soon as it was woken. Raises LeaseLost when it is not ours any more."""
    found = await connection.fetchval(
        _FINISH,
        *(kind, held.key, held.fence, after, attempts, phase, overdue),
        *(type(outcome).__name__.lower(), outcome.reason, outcome.message),
    )
    if found is None:
        raise LeaseLost(held.key)


async def release(connection: Connection, kind: str, held: Claim, *, after: timedelta = NOW) -> None:
    """Give the key back as if it had not been worked on; a no-op when it is not ours any more."""
    await connection.execute(_RELEASE, kind, held.key, held.fence, after)
