"""What leaves tell: who they are, what they have applied, what they see.

Each use case is one transaction and may be repeated: a leaf sends a report again until it is acknowledged.
"""

from __future__ import annotations

from datetime import datetime

from metal_kit.db import Connection, Database
from metal_kit.logs import get_logger
from metal_kit.timestamps import from_timestamp
from metalplane.fabric.v1.agent_pb2 import ApplyReport, DesiredState, Observations
from prometheus_client import Counter, Histogram

from metal_fabric.health import Code, Finding
from metal_fabric.looks import Looks
from metal_fabric.observed import Observed, demand_speaker
from metal_fabric.planner import Planner
from metal_fabric.problems import Invalid, Refused
from metal_fabric.registration import Registration
from metal_fabric.signs import Signs
from metal_fabric.store import FindingStore, GenerationStore, ReportStore, SyncStore
from metal_fabric.store.syncs import SILENCE
from metal_fabric.switch import Switch

log = get_logger(__name__)

APPLIED = Histogram(
    "metalplane_fabric_apply_seconds",
    "From a generation's commit to the leaf's report that it is applied and verified.",
    buckets=(0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 3600),
)
FAILED = Counter("metalplane_fabric_apply_failures_total", "Attempts of leaves to apply a generation that failed.")

RETRACTED = Counter(
    "metalplane_fabric_confirmations_retracted_total",
    "Attachments of machines whose confirmation a leaf took back by returning to an older generation.",
)
PHASE_SECONDS = Histogram(
    "metalplane_fabric_leaf_phase_seconds",
    "Time that leaves took for each phase of an attempt to apply a generation, by their own clocks.",
    ["phase"],
    buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
)
PHASES = ("prepare", "apply", "verify", "commit", "rollback")
NAME_TAKEN = "SWITCH_NAME_TAKEN"
# Far beyond what real changes reach, and as far from what a bigint holds.
MAX_GENERATION = 1 << 48
_MAX_ERROR = 1024


class Leaves:
    """The leaves' side of fabric."""

    def __init__(self, db: Database, planner: Planner) -> None:
        self._db = db
        self._planner = planner
        self._registration = Registration()
        self._generations = GenerationStore()
        self._syncs = SyncStore()
        self._reports = ReportStore()
        self._findings = FindingStore()
        self._observed = Observed(db, planner)
        self._looks = Looks(db)
        self._signs = Signs(db)

    async def register(
        self, reported: Switch, session: str, *, generation: int, digest: str, chassis: str = ""
    ) -> None:
        """Take in how a leaf introduces itself, and let `session` speak for it from now on.

        `generation` and `digest` say what it has applied. They count only when they name a generation that was made
        here; what a leaf applied that nobody here knows, after a database was restored, is superseded by a new one.
        `chassis` tells its box from others; empty when it does not say.

        Raises Refused as `Registration.take_in` does, and `SWITCH_NAME_TAKEN` while another box speaks for the leaf, or
        one that may be another; the switch's status then says why.
        """
        if generation >= MAX_GENERATION:
            raise Invalid("GENERATION_INVALID", "no such generation was ever made", field="hello.applied_generation")
        try:
            async with self._db.transaction(purpose="register leaf") as conn:
                # Before anything of another box is looked at; and again behind the lock, for two that come at once.
                await self._demand_one_box(conn, reported.id, chassis)
                taken = await self._registration.take_in(conn, reported, generation, digest)
                await self._demand_one_box(conn, reported.id, chassis)
                changed, foreign = taken.changed, taken.foreign
                applied = 0 if foreign else generation
                await self._syncs.open(
                    conn, reported.id, session, applied=applied, digest="" if foreign else digest, chassis=chassis
                )
                # It was this box that was refused, by a stream of its own that was open yet or by one before it.
                await self._findings.drop(conn, reported.id, "name", chassis)
                lost = await self._planner.retract(conn, reported.id, applied)
                newest = await self._planner.plan(conn, reported.id, beyond=generation if foreign else 0)
                await self._planner.announce(conn, reported.id, applied)
                # An older stream of this leaf, here or on another replica, ends.
                await self._generations.wake(conn, reported.id)
                if changed:
                    await self._planner.switch_changed(conn, reported.id)
        except Refused as refused:
            async with self._db.transaction(purpose="note refused leaf") as conn:
                if refused.reason == NAME_TAKEN:
                    # The leaf that has the name is well, and its status is its own.
                    # A box that cannot be told apart may be the same one, so what it meant is told after a while.
                    finding = Finding(Code.NAME_TAKEN, chassis, refused.message)
                    await self._findings.put(conn, reported.id, "name", [finding])
                else:
                    await self._syncs.refused(conn, reported.id, f"{refused.reason}: {refused.message}")
            raise
        RETRACTED.inc(len(lost))
        if lost:
            log.warning("leaf.went_back", switch=reported.id, applied=applied, unconfirmed=lost)
        log.info("leaf.registered", switch=reported.id, applied=applied, desired=newest.number, changed=changed)

    async def applied(self, switch_id: str, session: str, report: ApplyReport) -> None:
        """Take in how an attempt to apply a generation ended, and what the leaf has after it.

        A leaf that has gone back behind a generation takes its confirmations with it. Raises Aborted when another
        session speaks for the leaf.
        """
        async with self._db.transaction(purpose="apply report") as conn:
            await demand_speaker(conn, switch_id, session)
            age = await self._generations.made(conn, switch_id, report.generation, report.hash)
            confirmed: list[str] = []
            notes = [_text(note) for note in report.notes]
            if not report.applied:
                error = _text(report.error) or "the leaf gave no reason"
                await self._syncs.failed(conn, switch_id, report.generation, error=error, notes=notes)
            elif age is None:
                # Not what was sent, or too old to tell. It confirms nothing; the newest state is on its way anyway.
                log.warning("leaf.applied_unknown", switch=switch_id, generation=report.generation)
                return
            elif await self._syncs.applied(
                conn, switch_id, report.generation, digest=report.hash, at=_instant(report), notes=notes
            ):
                confirmed = await self._planner.announce(conn, switch_id, report.generation)
            await self._keep(conn, switch_id, report)
            confirmed += await self._stand(conn, switch_id, report)
        _measure(report)
        if report.applied and age is not None:
            APPLIED.observe(age)
        else:
            FAILED.inc()
        log.info(
            "leaf.applied" if report.applied else "leaf.apply_failed",
            switch=switch_id,
            generation=report.generation,
            error=_text(report.error),
            confirmed=confirmed,
        )

    async def observed(self, switch_id: str, session: str, partition: str, observations: Observations) -> None:
        """Take in what a leaf sees on its ports and on itself. Raises Aborted when another session speaks for it."""
        await self._observed.take(switch_id, session, partition, observations)

    async def wanted(self, switch_id: str, session: str, *, after: int) -> tuple[bool, DesiredState | None]:
        """Whether `session` still speaks for the leaf, and the newest desired state if it is later than `after`."""
        position = await self._looks.position(switch_id)
        if position is None or position.session != session:
            return False, None
        if position.desired <= after:
            return True, None
        async with self._db.connection() as conn:
            newest = await self._generations.newest(conn, switch_id)
        return True, DesiredState.FromString(newest.state) if newest and newest.state else None

    async def close(self) -> None:
        """End what the streams have left running."""
        await self._looks.close()
        await self._signs.close()

    def alive(self, switch_id: str, session: str) -> None:
        """Have it recorded soon that the leaf was heard of."""
        self._signs.heard(switch_id, session)

    async def ended(self, switch_id: str, session: str) -> None:
        """Record that the leaf's stream has ended, unless a newer one has taken its place."""
        self._signs.ended(switch_id, session)
        async with self._db.connection() as conn:
            await self._syncs.close(conn, switch_id, session)

    async def _keep(self, conn: Connection, switch_id: str, report: ApplyReport) -> None:
        await self._reports.put_apply(
            conn,
            switch_id,
            generation=report.generation,
            phase=_text(report.phase) if not report.applied else "",
            quarantine=_text(report.quarantine),
            report=report.SerializeToString(),
        )

    async def _stand(self, conn: Connection, switch_id: str, report: ApplyReport) -> list[str]:
        """Take in which generation the leaf really has; gives the machines that are confirmed by it.

        A stream's reports come in order and only the newest is sent again, so this one is the latest word.
        """
        if not report.HasField("standing_generation"):
            return []
        generation, digest = report.standing_generation, report.standing_hash
        if generation == report.generation and report.applied:
            return []
        known = await self._syncs.applied_generation(conn, switch_id)
        if known == (generation, digest):
            return []
        if await self._generations.made(conn, switch_id, generation, digest) is None:
            # Nobody here knows what that would be, so it confirms nothing.
            generation, digest = 0, ""
        if not await self._syncs.stand(conn, switch_id, generation, digest=digest):
            return []
        lost = await self._planner.retract(conn, switch_id, generation)
        RETRACTED.inc(len(lost))
        if known[0] > generation:
            log.warning("leaf.went_back", switch=switch_id, applied=generation, before=known[0], unconfirmed=lost)
        return await self._planner.announce(conn, switch_id, generation)

    async def _demand_one_box(self, conn: Connection, switch_id: str, chassis: str) -> None:
        speaking = await self._syncs.chassis(conn, switch_id)
        if speaking is None or (chassis and chassis == speaking):
            return
        if chassis and speaking:
            which = (
                f"two boxes are called {switch_id}: {_text(speaking)} is connected, {_text(chassis)} claims the name"
            )
            fix = "rename one of them, or switch the old one off"
        else:
            which = f"{_box(speaking)} called {switch_id} is connected, and {_box(chassis)} claims the name"
            fix = (
                "rename one of them. If it is the same one it gets in by itself once its old stream counts as gone, "
                f"after {SILENCE.total_seconds():g} s; at once if DEVICE_METADATA|localhost has a mac"
            )
        raise Refused(NAME_TAKEN, f"{which}; {fix}", field="hello.switch_id")


def _box(chassis: str) -> str:
    return f"box {_text(chassis)}" if chassis else "a box without a base MAC address"


def _measure(report: ApplyReport) -> None:
    for phase, lasted in report.durations.items():
        # What a newer agent calls its phases must not make a metric of every name.
        seconds = max(lasted.seconds + lasted.nanos / 1e9, 0.0)
        PHASE_SECONDS.labels(phase if phase in PHASES else "other").observe(seconds)


def _text(said: str) -> str:
    # Programs that fail print anything, and a report that cannot be stored would be sent again for ever.
    return said.replace("\0", "\ufffd")[:_MAX_ERROR]


def _instant(report: ApplyReport) -> datetime | None:
    try:
        return from_timestamp(report.time)
    except (ValueError, OverflowError):
        # A leaf's clock may say anything before it has been set; the report itself is still true.
        return None
