"""What leaves tell: who they are, what they have applied, what they see.

Each use case is one transaction and may be repeated: a leaf sends a report again until it is acknowledged.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from metal_kit.db import Connection, Database
from metal_kit.errors import Aborted
from metal_kit.ids import parse_uuid
from metal_kit.logs import get_logger
from metal_kit.timestamps import from_timestamp
from metalplane.fabric.v1.agent_pb2 import ApplyReport, DesiredState, Observations, PhoneHome
from prometheus_client import Counter, Histogram

from metal_fabric.messages import STATE_OF
from metal_fabric.planner import Planner
from metal_fabric.problems import Invalid, Refused
from metal_fabric.registration import Registration
from metal_fabric.store import CableStore, GenerationStore, SwitchStore, SyncStore
from metal_fabric.switch import Switch

log = get_logger(__name__)

APPLIED = Histogram(
    "metalplane_fabric_apply_seconds",
    "From a generation's commit to the leaf's report that it is applied and verified.",
    buckets=(0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 3600),
)
FAILED = Counter("metalplane_fabric_apply_failures_total", "Attempts of leaves to apply a generation that failed.")

# An installed system announces itself every few seconds, on every cable; one event in this time tells as much.
SEEN_EVERY = timedelta(seconds=30)
# Far beyond what real changes reach, and as far from what a bigint holds.
MAX_GENERATION = 1 << 48
_MAX_ERROR = 1024


class Leaves:
    """The leaves' side of fabric."""

    def __init__(self, db: Database, planner: Planner) -> None:
        self._db = db
        self._planner = planner
        self._registration = Registration()
        self._switches = SwitchStore()
        self._cables = CableStore()
        self._generations = GenerationStore()
        self._syncs = SyncStore()

    async def register(self, reported: Switch, session: str, *, generation: int, digest: str) -> None:
        """Take in how a leaf introduces itself, and let `session` speak for it from now on.

        `generation` and `digest` say what it has applied. They count only when they name a generation that was made
        here; what a leaf applied that nobody here knows, after a database was restored, is superseded by a new one.

        Raises Refused as `Registration.take_in` does; the switch's status then says why.
        """
        if generation >= MAX_GENERATION:
            raise Invalid("GENERATION_INVALID", "no such generation was ever made", field="hello.applied_generation")
        try:
            async with self._db.transaction(purpose="register leaf") as conn:
                taken = await self._registration.take_in(conn, reported, generation, digest)
                changed, foreign = taken.changed, taken.foreign
                applied = 0 if foreign else generation
                await self._syncs.open(conn, reported.id, session, applied=applied, digest="" if foreign else digest)
                newest = await self._planner.plan(conn, reported.id, beyond=generation if foreign else 0)
                await self._planner.announce(conn, reported.id, applied)
                # An older stream of this leaf, here or on another replica, ends.
                await self._generations.wake(conn, reported.id)
                if changed:
                    await self._planner.switch_changed(conn, reported.id)
        except Refused as refused:
            async with self._db.transaction(purpose="note refused leaf") as conn:
                await self._syncs.refused(conn, reported.id, f"{refused.reason}: {refused.message}")
            raise
        log.info("leaf.registered", switch=reported.id, applied=applied, desired=newest.number, changed=changed)

    async def applied(self, switch_id: str, session: str, report: ApplyReport) -> None:
        """Take in how an attempt to apply a generation ended.

        Raises Aborted when another session speaks for the leaf.
        """
        async with self._db.transaction(purpose="apply report") as conn:
            await self._demand_speaker(conn, switch_id, session)
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
        """Take in what a leaf sees on its ports. Raises Aborted when another session speaks for the leaf."""
        if observations.ports:
            async with self._db.transaction(purpose="port states") as conn:
                states = {port.name: STATE_OF[port.state] for port in observations.ports}
                await self._switches.lock(conn, [switch_id])
                await self._demand_speaker(conn, switch_id, session)
                if await self._switches.report(conn, switch_id, states):
                    await self._planner.switch_changed(conn, switch_id)
        if observations.phone_homes:
            async with self._db.transaction(purpose="phone homes") as conn:
                await self._demand_speaker(conn, switch_id, session)
                behind = {cable.port: cable.machine for cable in await self._cables.of_switches(conn, [switch_id])}
                # By machine, so that the two leaves of a pair do not wait for each other's rows.
                for phone_home in sorted(observations.phone_homes, key=lambda each: each.machine.lower()):
                    await self._seen(conn, switch_id, partition, phone_home, behind.get(phone_home.port, ""))

    async def wanted(self, switch_id: str, session: str, *, after: int) -> tuple[bool, DesiredState | None]:
        """Whether `session` still speaks for the leaf, and the newest desired state if it is later than `after`."""
        async with self._db.connection() as conn:
            generation = await self._syncs.check(conn, switch_id, session)
            if generation is None:
                return False, None
            if generation <= after:
                return True, None
            newest = await self._generations.newest(conn, switch_id)
        return True, DesiredState.FromString(newest.state) if newest and newest.state else None

    async def alive(self, switch_id: str, session: str) -> None:
        """Record that the leaf was heard of."""
        async with self._db.connection() as conn:
            await self._syncs.seen(conn, switch_id, session)

    async def ended(self, switch_id: str, session: str) -> None:
        """Record that the leaf's stream has ended, unless a newer one has taken its place."""
        async with self._db.connection() as conn:
            await self._syncs.close(conn, switch_id, session)

    async def _demand_speaker(self, conn: Connection, switch_id: str, session: str) -> None:
        # What an older stream left behind may be read at any time, and the leaf has said something newer since. It
        # tells again on its new stream what nobody has acknowledged.
        if not await self._syncs.speaks(conn, switch_id, session):
            raise superseded()

    async def _seen(self, conn: Connection, switch_id: str, partition: str, phone_home: PhoneHome, behind: str) -> None:
        machine = parse_uuid(phone_home.machine, field="observations.phone_homes.machine")
        if machine != behind:
            # A tenant's system can announce itself under any name; only the cable tells who it is.
            log.warning("leaf.stranger", switch=switch_id, port=phone_home.port, says=machine, cabled=behind)
            return
        version = await self._syncs.sight(conn, machine, SEEN_EVERY)
        if version is not None:
            phone_home.machine = machine
            await self._planner.machine_seen(conn, switch_id, partition, phone_home, version)


def superseded() -> Aborted:
    """What ends the older of two streams of a leaf."""
    return Aborted("STREAM_SUPERSEDED", "a newer stream of this leaf has taken over")


def _text(said: str) -> str:
    # Programs that fail print anything, and a report that cannot be stored would be sent again for ever.
    return said.replace("\0", "\ufffd")[:_MAX_ERROR]


def _instant(report: ApplyReport) -> datetime | None:
    try:
        return from_timestamp(report.time)
    except (ValueError, OverflowError):
        # A leaf's clock may say anything before it has been set; the report itself is still true.
        return None
