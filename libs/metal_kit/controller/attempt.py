"""One attempt at one key: load, act, save.

Nothing here claims, renews or retries; `worker` does. What it promises: no transaction is open while `act` runs; either
all that follows from the outcome is written or nothing; an error is recorded even when the saving of it fails.
"""

from __future__ import annotations

import asyncio
import random
import secrets
from dataclasses import replace
from datetime import timedelta

import asyncpg
from structlog.contextvars import bound_contextvars

from metal_kit import request
from metal_kit.backoff import Backoff
from metal_kit.controller import history, queue
from metal_kit.controller.outcome import Done, Failed, Go, Outcome, Reconciler, Snapshot, StaleSnapshot, Wait
from metal_kit.controller.queue import NOW, Claim, LeaseLost
from metal_kit.db import Connection, Database, is_outage
from metal_kit.errors import Problem
from metal_kit.logs import get_logger

log = get_logger(__name__)

# So that a deadline is noticed by the look that follows it, and not by the one after.
_AFTER_DEADLINE = timedelta(milliseconds=20)
_STALE_SECONDS = 0.2


class Attempt:
    """How one controller works on its keys."""

    def __init__(
        self, reconciler: Reconciler, db: Database, *, holder: str, backoff: Backoff, act_limit: timedelta
    ) -> None:
        self._reconciler = reconciler
        self._kind = reconciler.kind
        self._db = db
        self._holder = holder
        self._backoff = backoff
        self._act_limit = act_limit

    async def run(self, held: Claim) -> Outcome | None:
        """Work on a claimed key; the outcome that was saved, None when nothing was (gone, stale, lost, outage)."""
        request.request_id.set(f"{self._kind}:{held.fence}"[:64])
        with bound_contextvars(kind=self._kind, key=held.key):
            try:
                return await self._run(held)
            except StaleSnapshot:
                # Whoever changed the object has the right of way; a little later, so that we do not meet again.
                log.debug("controller.stale", fence=held.fence)
                after = timedelta(seconds=random.uniform(0, _STALE_SECONDS))
                async with self._db.connection() as connection:
                    await queue.release(connection, self._kind, held, after=after)
            except LeaseLost:
                log.warning("controller.lease_lost", fence=held.fence)
            return None

    async def _run(self, held: Claim) -> Outcome | None:
        loop = asyncio.get_running_loop()
        started = loop.time()
        try:
            async with self._db.connection() as connection:
                snapshot: Snapshot | None = await self._reconciler.load(connection, held.key)
                if snapshot is None:
                    if not await queue.remove(connection, self._kind, held):
                        await queue.release(connection, self._kind, held)
                    return None
                if snapshot.phase != held.phase:
                    await queue.enter_phase(connection, self._kind, held, snapshot.phase)
                    held = replace(held, phase=snapshot.phase, overdue=False, in_phase=NOW)
        except (StaleSnapshot, LeaseLost):
            raise
        except Exception as error:
            return await self._record_failure(held, self._failure_of(error, "load"), held.in_phase)
        outcome = await self._act(snapshot)
        in_phase = held.in_phase + timedelta(seconds=loop.time() - started)
        try:
            await self._save(held, snapshot, outcome, in_phase)
        except (StaleSnapshot, LeaseLost):
            raise
        except Exception as error:
            return await self._record_failure(held, self._failure_of(error, "save"), in_phase)
        return outcome

    async def _act(self, snapshot: Snapshot) -> Outcome:
        limit = asyncio.timeout(self._act_limit.total_seconds())
        try:
            async with limit:
                outcome = await self._reconciler.act(snapshot)
        except TimeoutError as error:
            if limit.expired():
                return Failed("ACT_TIMEOUT", f"the step did not end within {self._act_limit.total_seconds():g} s")
            return self._failure_of(error, "act")
        except Exception as error:
            return self._failure_of(error, "act")
        if isinstance(outcome, Go) and outcome.phase == snapshot.phase:
            log.error("controller.goes_nowhere", phase=snapshot.phase)
            return Failed("INTERNAL", f"the step wants to enter {outcome.phase}, in which it is")
        return outcome

    async def _save(self, held: Claim, snapshot: Snapshot, outcome: Outcome, in_phase: timedelta) -> None:
        deadline = self._reconciler.deadlines.get(snapshot.phase)
        leaves = isinstance(outcome, Done | Go)
        overdue = deadline is not None and in_phase > deadline and not leaves
        self._tell_overdue(held, outcome, overdue)
        after, attempts = self._next(outcome, held)
        if deadline is not None and not overdue and not leaves:
            after = min(after, max(NOW, deadline - in_phase) + _AFTER_DEADLINE)
        async with self._db.transaction(purpose=f"reconcile {self._kind}") as connection:
            await self._reconciler.save(connection, snapshot, outcome, overdue=overdue)
            await self._record(connection, held, outcome, snapshot.phase, overdue)
            if isinstance(outcome, Done) and await queue.remove(connection, self._kind, held):
                return
            await queue.finish(
                connection,
                self._kind,
                held,
                outcome,
                phase=outcome.phase if isinstance(outcome, Go) else snapshot.phase,
                after=after,
                attempts=attempts,
                overdue=overdue,
            )

    async def _record_failure(self, held: Claim, outcome: Failed, in_phase: timedelta) -> Outcome | None:
        """Keep at least the error, in a transaction of its own, and that the phase is overdue when it is."""
        deadline = self._reconciler.deadlines.get(held.phase)
        overdue = deadline is not None and in_phase > deadline
        self._tell_overdue(held, outcome, overdue)
        after, attempts = self._next(outcome, held)
        try:
            async with self._db.transaction(purpose=f"reconcile {self._kind}: record a failure") as connection:
                await self._record(connection, held, outcome, held.phase, overdue)
                await queue.finish(
                    connection,
                    self._kind,
                    held,
                    outcome,
                    phase=held.phase,
                    after=after,
                    attempts=attempts,
                    overdue=overdue,
                )
        except (Problem, asyncpg.PostgresError, OSError, TimeoutError) as error:
            log.warning("controller.not_recorded", error=str(error), hint="the key comes back when its lease ends")
            return None
        return outcome

    async def _record(self, connection: Connection, held: Claim, outcome: Outcome, phase: str, overdue: bool) -> None:
        await history.record(
            connection,
            self._kind,
            held.key,
            outcome,
            phase=phase,
            overdue=overdue,
            worker=self._holder,
            fence=held.fence,
        )

    def _tell_overdue(self, held: Claim, outcome: Outcome, overdue: bool) -> None:
        if overdue and not held.overdue:
            log.warning("controller.overdue", phase=held.phase, reason=outcome.reason, message=outcome.message)

    def _next(self, outcome: Outcome, held: Claim) -> tuple[timedelta, int]:
        """When to look again, and the number of failures in a row."""
        if isinstance(outcome, Wait):
            return outcome.after, 0
        if isinstance(outcome, Failed):
            after = outcome.retry_after if outcome.retry_after is not None else self._backoff.delay(held.attempts)
            return after, held.attempts + 1
        return NOW, 0

    def _failure_of(self, error: Exception, step: str) -> Failed:
        if isinstance(error, Problem):
            told = error.retry_after
            # Many things may have been told the same at the same moment.
            return Failed(error.reason, error.message, told * random.uniform(1, 1.25) if told is not None else None)
        if step != "act" and is_outage(error):
            return Failed("DATABASE_UNREACHABLE", "the database cannot be used")
        log_id = secrets.token_hex(6)
        log.error("controller.failed", step=step, log_id=log_id, exc_info=error)
        return Failed("INTERNAL", f"an unexpected error; the log has it as {log_id}")
