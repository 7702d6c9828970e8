"""All switches at a glance: issues for people who ask what is wrong, and metrics for monitoring.

Both are told from the same health that a switch shows. Nothing is stored, so each replica tells the same.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from datetime import datetime, timedelta

import asyncpg
from metal_kit.backoff import pause
from metal_kit.db import Database
from metal_kit.errors import Problem
from metal_kit.issues import Issue, Severity
from metal_kit.logs import get_logger
from prometheus_client import Gauge

from metal_fabric.health import Code, Facts, Health, Reason, assess, health_of
from metal_fabric.store import FindingStore

log = get_logger(__name__)

SWITCHES = Gauge("metalplane_fabric_switches", "Leaves, by their health. Each replica tells all.", ["health"])
REASONS = Gauge(
    "metalplane_fabric_switch_reasons", "Reasons why leaves are not well. Each replica tells all.", ["code"]
)
SESSIONS = Gauge(
    "metalplane_fabric_bgp_sessions", "BGP sessions of leaves. Each replica tells all.", ["group", "state"]
)
LOOK_EVERY = timedelta(seconds=15)
# Switches a statement, and issues an answer.
PAGE, MOST = 200, 1000
# A leaf that restarts is back within this time.
ABSENT = timedelta(minutes=1)

_SEVERITIES = {
    Code.NO_UPLINK: Severity.CRITICAL,
    Code.NO_UPLINK_SESSION: Severity.CRITICAL,
    Code.NAME_TAKEN: Severity.CRITICAL,
    Code.BEHIND: Severity.MINOR,
    Code.PREFIX_LIMIT_NEAR: Severity.MINOR,
    Code.DRIFT: Severity.MINOR,
    Code.PORT_SETTING_IGNORED: Severity.MINOR,
}


class Watch:
    """Looks at all leaves that have ever registered."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._findings = FindingStore()

    async def issues(self, now: datetime) -> list[Issue]:
        """What is wrong with switches, at most `MOST` of it. Raises what the database raises."""
        found: list[Issue] = []
        async for facts in self._all():
            found += [_issue(facts, reason) for reason in assess(facts) if not _passing(facts, reason)]
            if len(found) > MOST:
                more = Issue("switch/more", Severity.MAJOR, "switches", f"{MOST} issues are told, there are more", now)
                return [*found[:MOST], more]
        return found

    async def measure(self, stopping: asyncio.Event) -> None:
        """Keep the metrics until `stopping` is set."""
        while not stopping.is_set():
            try:
                await self.look()
            except (Problem, asyncpg.PostgresError, OSError, TimeoutError) as error:
                # Metrics that stay as they were are told by their age in the database's own metrics.
                log.warning("watch.failed", error=repr(error))
            await pause(stopping, LOOK_EVERY)

    async def look(self) -> None:
        """Set the metrics once."""
        healths: Counter[Health] = Counter()
        codes: Counter[Code] = Counter()
        sessions: Counter[tuple[str, str]] = Counter()
        async for facts in self._all():
            reasons = assess(facts)
            healths[health_of(reasons)] += 1
            codes.update(reason.code for reason in reasons)
            count = facts.sessions
            sessions["uplink", "established"] += count.uplinks_up
            sessions["uplink", "down"] += count.uplinks - count.uplinks_up
            sessions["other", "established"] += count.all_up - count.uplinks_up
            sessions["other", "down"] += count.all - count.all_up - (count.uplinks - count.uplinks_up)
        for health in Health:
            SWITCHES.labels(health.value).set(healths[health])
        for code in Code:
            REASONS.labels(code.value).set(codes[code])
        for labels, number in sessions.items():
            SESSIONS.labels(*labels).set(number)

    async def _all(self) -> AsyncIterator[Facts]:
        after = ""
        while True:
            async with self._db.connection() as conn:
                ids = await self._findings.ids(conn, after=after, limit=PAGE)
                page = await self._findings.facts(conn, ids)
            for facts in page.values():
                yield facts
            if len(ids) < PAGE:
                return
            after = ids[-1]


def _passing(facts: Facts, reason: Reason) -> bool:
    """Whether it is over by itself in a moment."""
    return reason.code is Code.NOT_CONNECTED and facts.seen is not None and facts.now - facts.seen < ABSENT


def _issue(facts: Facts, reason: Reason) -> Issue:
    id_ = f"switch/{facts.switch_id}/{reason.code.value}" + (f"/{reason.subject}" if reason.subject else "")
    severity = _SEVERITIES.get(reason.code, Severity.MAJOR)
    return Issue(id_, severity, f"switch {facts.switch_id}", reason.message, reason.since or facts.now)
