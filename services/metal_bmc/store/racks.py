"""Rows of `power_on`: how many machines of a rack were switched on lately, by all replicas together."""

from __future__ import annotations

from datetime import timedelta

from metal_kit.db import Connection


class RackStore:
    """The power-ons of racks."""

    async def may_switch_on(
        self, connection: Connection, partition: str, rack: str, *, most: int, within: timedelta
    ) -> timedelta | None:
        """Count one more power-on in the rack and return None, or else how long it has to wait for its turn."""
        counted = await connection.fetchval(
            """INSERT INTO power_on AS p (partition, rack, recent) VALUES ($1, $2, ARRAY[clock_timestamp()])
            ON CONFLICT (partition, rack) DO UPDATE
            SET recent = (p.recent || clock_timestamp())[greatest(1, cardinality(p.recent) + 2 - $3):]
            WHERE cardinality(p.recent) < $3
                OR p.recent[cardinality(p.recent) + 1 - $3] <= clock_timestamp() - $4::interval
            RETURNING true""",
            *(partition, rack, most, within),
        )
        if counted:
            return None
        left: timedelta | None = await connection.fetchval(
            """SELECT recent[cardinality(recent) + 1 - $3] + $4::interval - clock_timestamp()
            FROM power_on WHERE partition = $1 AND rack = $2""",
            *(partition, rack, most, within),
        )
        return max(left or timedelta(0), timedelta(milliseconds=50))
