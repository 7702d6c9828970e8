"""Which BMCs are due for a poll, and which observations inventory has to hear of. Replicas share both lists."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from metal_kit.db import Connection

from metal_bmc.endpoint import MAX_REFUSED_LOGINS, Endpoint
from metal_bmc.sharing import Tenure
from metal_bmc.store.endpoints import from_row, selected


@dataclass(frozen=True, slots=True)
class Unchanged:
    """A BMC that answered as it did before: `endpoint` as it was read then, `tenure` the right to write it, `after` the
    time until the next poll."""

    endpoint: Endpoint
    tenure: Tenure
    at: datetime
    after: timedelta | None


class ScheduleStore:
    """Columns `poll_at` and `report_at` of `endpoint`."""

    async def claim_polls(
        self, connection: Connection, partition: str, *, buckets: Sequence[int], most: int, hold: timedelta
    ) -> list[Endpoint]:
        """BMCs of these buckets that are due, longest due first; each is due again after `hold` unless rescheduled.

        The caller owns the buckets, so nobody else claims them.
        """
        rows = await connection.fetch(
            f"""UPDATE endpoint SET poll_at = now() + $3::interval WHERE machine IN (
                SELECT machine FROM endpoint WHERE partition = $1 AND poll_at <= now()
                AND refused_logins < $4 AND sealed IS NOT NULL AND host <> '' AND bucket = ANY ($5::int[])
                ORDER BY poll_at LIMIT $2
            ) RETURNING {selected()}""",
            partition,
            most,
            hold,
            MAX_REFUSED_LOGINS,
            buckets,
        )
        return [from_row(row) for row in rows]

    async def unchanged(self, connection: Connection, answers: Sequence[Unchanged]) -> None:
        """BMCs answered as before, of many at once: when, and when to ask again.

        Those that changed or were registered anew meanwhile are left alone: this says nothing about them.
        """
        await connection.execute(
            """UPDATE endpoint AS e SET observed_at = seen.at, poll_at = coalesce(now() + seen.after, poll_at),
            wish_seen = CASE WHEN reported_on = desired_on THEN wish_generation ELSE wish_seen END,
            off_event = CASE WHEN reported_on THEN off_event END,
            report_at = CASE WHEN report_at = 'infinity' THEN now() ELSE report_at END
            FROM unnest($1::uuid[], $2::bigint[], $3::bigint[], $4::timestamptz[], $5::interval[])
            AS seen (machine, version, revision, at, after)
            WHERE e.machine = seen.machine AND e.version = seen.version AND e.revision = seen.revision
            AND e.observed_at <= seen.at""",
            [each.endpoint.machine for each in answers],
            [each.endpoint.version for each in answers],
            [each.endpoint.revision for each in answers],
            [each.at for each in answers],
            [each.after for each in answers],
        )

    async def due_reports(self, connection: Connection, partition: str, *, most: int) -> list[Endpoint]:
        """Endpoints that inventory has to hear of now."""
        rows = await connection.fetch(
            f"""SELECT {selected()} FROM endpoint
            WHERE partition = $1 AND report_at <= now() AND observed_at IS NOT NULL
            ORDER BY report_at LIMIT $2""",
            partition,
            most,
        )
        return [from_row(row) for row in rows]

    async def reported(self, connection: Connection, reports: Sequence[tuple[str, datetime]], again: timedelta) -> None:
        """These (machine, observation time) were taken in; what was observed later stays due."""
        await connection.execute(
            """UPDATE endpoint AS e SET report_at = now() + $3::interval
            FROM unnest($1::uuid[], $2::timestamptz[]) AS sent (machine, observed_at)
            WHERE e.machine = sent.machine AND e.observed_at = sent.observed_at""",
            [machine for machine, _ in reports],
            [observed_at for _, observed_at in reports],
            again,
        )
