"""Events that do not get out, and events that could not be taken in."""

from __future__ import annotations

from datetime import datetime, timedelta

from metal_kit.db import Database
from metal_kit.issues.issue import Issue, Severity

# An outage of NATS is waited out; longer than this it is worth a look.
_WAITING = (
    (timedelta(hours=1), Severity.CRITICAL),
    (timedelta(minutes=10), Severity.MAJOR),
    (timedelta(minutes=1), Severity.MINOR),
)
# Counted no further: the count is for people, and the table may be long when it matters.
_MOST = 10_000
_OLDEST = "SELECT created_at FROM outbox ORDER BY outbox.id LIMIT 1"
_COUNT = f"SELECT count(*) FROM (SELECT FROM outbox LIMIT {_MOST}) AS few"  # noqa: S608 - a constant of ours
_PARKED = f"""
    SELECT consumer, count(*) AS events, min(parked_at) AS since
    FROM (SELECT consumer, parked_at FROM parked_event ORDER BY parked_event.id LIMIT {_MOST}) AS few
    GROUP BY consumer
"""  # noqa: S608 - a constant of ours


class EventIssues:
    """What is wrong with the events of one schema."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def issues(self, now: datetime) -> list[Issue]:
        """Look. Raises what the database raises."""
        async with self._db.connection() as connection:
            oldest = await connection.fetchval(_OLDEST)
            waiting = await connection.fetchval(_COUNT) if oldest is not None else 0
            parked = await connection.fetch(_PARKED)
        found = [_parked_issue(row["consumer"], row["events"], row["since"], self._db.schema) for row in parked]
        issue = waiting_issue(waiting, oldest, now) if oldest is not None else None
        return found if issue is None else [issue, *found]


def waiting_issue(count: int, oldest: datetime, now: datetime) -> Issue | None:
    """The issue of events that wait to be published since `oldest`; None while that is not for long. Pure."""
    age = now - oldest
    for limit, severity in _WAITING:
        if age >= limit:
            details = (
                f"{_number(count)} to be published, the oldest for {int(age.total_seconds() // 60)} min; is NATS there?"
            )
            return Issue("events/waiting", severity, "events in the outbox", details, oldest)
    return None


def _parked_issue(consumer: str, count: int, since: datetime, schema: str) -> Issue:
    details = (
        f"{_number(count)} put aside because this service could not take them in; the log says why (event.parked), the "
        f"table {schema}.parked_event has them: delete them there when they are looked after"
    )
    return Issue(f"events/parked/{consumer}", Severity.MAJOR, f"consumer {consumer}", details, since)


def _number(count: int) -> str:
    if count == 1:
        return "1 event"
    return f"{_MOST} events or more" if count >= _MOST else f"{count} events"
