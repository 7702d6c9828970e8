"""Rows of `replica` and `bucket`: who lives, and who has which BMCs. All times are the database's.

Rows of `bucket` are always locked in the order of their numbers, so that replicas never wait in a circle.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import timedelta

from metal_kit.db import Connection

TOPIC = "owners"
"""What replicas are woken by when one came, went or let go of something; followed by `:` and the partition."""

_FORGOTTEN = timedelta(minutes=5)


class OwnerStore:
    """Replicas and buckets of one partition."""

    def __init__(self, partition: str) -> None:
        self._partition = partition
        self.topic = f"{TOPIC}:{partition}"

    async def enlist(self, connection: Connection, replica: str, span: timedelta) -> bool:
        """Say that the replica lives for as long as `span`; True when it was not known to."""
        known = await connection.fetchval(
            """WITH before AS (SELECT FROM replica WHERE id = $1 AND expires_at > clock_timestamp())
            INSERT INTO replica (id, partition, expires_at) VALUES ($1, $2, clock_timestamp() + $3::interval)
            ON CONFLICT (id) DO UPDATE SET expires_at = excluded.expires_at RETURNING EXISTS (SELECT FROM before)""",
            *(replica, self._partition, span),
        )
        return not known

    async def living(self, connection: Connection) -> list[str]:
        """The replicas that live."""
        rows = await connection.fetch(
            "SELECT id FROM replica WHERE partition = $1 AND expires_at > clock_timestamp()", self._partition
        )
        return [str(row["id"]) for row in rows]

    async def renew(self, connection: Connection, replica: str, span: timedelta) -> dict[int, int]:
        """Keep the replica's buckets for `span` more; their fences by number. One that nobody took stays its own."""
        rows = await connection.fetch(
            """UPDATE bucket AS b SET expires_at = clock_timestamp() + $3::interval FROM (
                SELECT number FROM bucket WHERE partition = $1 AND holder = $2 ORDER BY number FOR NO KEY UPDATE
            ) AS mine WHERE b.partition = $1 AND b.number = mine.number RETURNING b.number, b.fence""",
            *(self._partition, replica, span),
        )
        return {row["number"]: row["fence"] for row in rows}

    async def take(
        self, connection: Connection, replica: str, numbers: Collection[int], span: timedelta
    ) -> dict[int, int]:
        """Take those of the buckets that nobody has any more; their new fences by number."""
        rows = await connection.fetch(
            """INSERT INTO bucket (partition, number, holder, fence, expires_at)
            SELECT $1, number, $2, nextval('bucket_fence'), clock_timestamp() + $4::interval
            FROM unnest($3::int[]) AS number
            ON CONFLICT (partition, number) DO UPDATE
            SET holder = excluded.holder, fence = excluded.fence, expires_at = excluded.expires_at
            WHERE bucket.expires_at <= clock_timestamp() RETURNING number, fence""",
            *(self._partition, replica, sorted(numbers), span),
        )
        return {row["number"]: row["fence"] for row in rows}

    async def let_go(self, connection: Connection, replica: str, numbers: Collection[int]) -> None:
        """Give buckets back, so that another takes them at once; those that are not the replica's are left alone."""
        await connection.execute(
            """UPDATE bucket AS b SET holder = '', expires_at = '-infinity' FROM (
                SELECT number FROM bucket WHERE partition = $1 AND holder = $2 AND number = ANY ($3::int[])
                ORDER BY number FOR NO KEY UPDATE
            ) AS mine WHERE b.partition = $1 AND b.number = mine.number""",
            *(self._partition, replica, list(numbers)),
        )

    async def leave(self, connection: Connection, replica: str) -> None:
        """The replica ends; long dead ones are forgotten with it."""
        await connection.execute(
            "DELETE FROM replica WHERE id = $1 OR expires_at < clock_timestamp() - $2::interval",
            *(replica, _FORGOTTEN),
        )

    async def call(self, connection: Connection) -> None:
        """Wake the replicas, as soon as the transaction is committed."""
        await connection.execute("SELECT pg_notify('metalplane_' || current_schema(), $1)", self.topic)

    async def hold(
        self, connection: Connection, replica: str, fences: Collection[tuple[int, int]]
    ) -> set[tuple[int, int]]:
        """Which of these buckets, by number and fence, are the replica's; they stay so until the transaction ends."""
        numbers, values = zip(*fences, strict=True) if fences else ((), ())
        rows = await connection.fetch(
            """SELECT number, fence FROM bucket JOIN unnest($3::int[], $4::bigint[]) AS mine (number, fence)
            USING (number, fence) WHERE partition = $1 AND holder = $2 ORDER BY number FOR SHARE OF bucket""",
            *(self._partition, replica, numbers, values),
        )
        return {(row["number"], row["fence"]) for row in rows}
