"""How far leaves have followed their desired state, their streams, and which machines they saw."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import NamedTuple

from metal_kit.db import Connection

# Leaves send a sign of life every 5 s; after three missed ones a stream counts as gone, whatever TCP says.
SILENCE = timedelta(seconds=15)
# Of `leaf_sync y`: its stream is open, and not only because nobody noticed its end. By the database's clock.
CONNECTED = (
    "(y.session IS NOT NULL AND coalesce(y.seen_time > clock_timestamp() - interval "
    f"'{SILENCE.total_seconds():g} seconds', false))"
)

_OPEN = """
    INSERT INTO leaf_sync (switch_id, session, seen_time, applied_generation, applied_hash, chassis)
    VALUES ($1, $2, clock_timestamp(), $3, $4, $5)
    ON CONFLICT (switch_id) DO UPDATE
    SET session = excluded.session, seen_time = excluded.seen_time, chassis = excluded.chassis,
        applied_generation = excluded.applied_generation, applied_hash = excluded.applied_hash, error = ''
"""
_CHASSIS = f"SELECT y.chassis FROM leaf_sync y WHERE y.switch_id = $1 AND {CONNECTED}"
_HAS = "SELECT applied_generation, applied_hash FROM leaf_sync WHERE switch_id = $1"
_STAND = """
    UPDATE leaf_sync SET applied_generation = $2, applied_hash = $3, apply_time = NULL
    WHERE switch_id = $1 AND (applied_generation, applied_hash) <> ($2, $3)
    RETURNING switch_id
"""
_APPLIED = """
    UPDATE leaf_sync SET applied_generation = $2, applied_hash = $3, apply_time = coalesce($4, clock_timestamp()),
                         error = '', notes = $5
    WHERE switch_id = $1 AND applied_generation <= $2
    RETURNING switch_id
"""
_FAILED = "UPDATE leaf_sync SET error = $3, notes = $4 WHERE switch_id = $1 AND applied_generation <= $2"
_REFUSED = "UPDATE leaf_sync SET error = $2 WHERE switch_id = $1"
_POSITIONS = """
    SELECT s.id, s.desired_generation, y.session FROM switch s JOIN leaf_sync y ON y.switch_id = s.id
    WHERE s.id = ANY ($1)
"""
_SPEAKER = "SELECT session FROM leaf_sync WHERE switch_id = $1 FOR UPDATE"
# Nobody is waited for, so that a leaf whose row is held keeps none of the others.
_SEEN = """
    WITH heard AS (SELECT * FROM unnest($1::text[], $2::uuid[]) AS h (switch_id, session)),
    free AS (
        SELECT y.switch_id FROM heard h JOIN leaf_sync y USING (switch_id, session)
        FOR NO KEY UPDATE OF y SKIP LOCKED
    ), written AS (
        UPDATE leaf_sync y SET seen_time = clock_timestamp() FROM free WHERE y.switch_id = free.switch_id
        RETURNING y.switch_id
    )
    SELECT h.switch_id FROM heard h LEFT JOIN leaf_sync y USING (switch_id, session)
    WHERE y.switch_id IS NULL OR h.switch_id IN (SELECT switch_id FROM written)
"""
_CLOSE = "UPDATE leaf_sync SET session = NULL WHERE switch_id = $1 AND session = $2"
_HOLD = "SELECT switch_id FROM leaf_sync WHERE switch_id = ANY ($1) ORDER BY switch_id FOR SHARE"
_SIGHT = """
    INSERT INTO sighting (machine, emit_time) VALUES ($1, clock_timestamp())
    ON CONFLICT (machine) DO UPDATE SET emit_time = excluded.emit_time
    WHERE sighting.emit_time <= excluded.emit_time - $2::interval
    RETURNING nextval('version')
"""


@dataclass(frozen=True)
class Sync:
    """How far a leaf has followed, as `SyncStatus` of the contract shows it."""

    desired: int
    applied: int = 0
    applied_hash: str = ""
    apply_time: datetime | None = None
    error: str = ""
    notes: tuple[str, ...] = ()
    seen: datetime | None = None
    connected: bool = False


class Position(NamedTuple):
    """The newest generation that a leaf shall have, and the session that speaks for it; empty for none."""

    desired: int
    session: str


class SyncStore:
    """The leaves' half of the story, by switch id."""

    async def open(
        self, conn: Connection, switch_id: str, session: str, *, applied: int, digest: str, chassis: str
    ) -> None:
        """Let `session` speak for the leaf, which says that it has applied this generation (0 for none)."""
        await conn.execute(_OPEN, switch_id, session, applied, digest, chassis)

    async def chassis(self, conn: Connection, switch_id: str) -> str | None:
        """The box whose stream is open for the leaf; empty when it does not say, None when no stream is open."""
        chassis: str | None = await conn.fetchval(_CHASSIS, switch_id)
        return chassis

    async def applied_generation(self, conn: Connection, switch_id: str) -> tuple[int, str]:
        """The generation that the leaf is known to have, and its hash; 0 and empty for none."""
        row = await conn.fetchrow(_HAS, switch_id)
        return (row["applied_generation"], row["applied_hash"]) if row is not None else (0, "")

    async def stand(self, conn: Connection, switch_id: str, generation: int, *, digest: str) -> bool:
        """Record what the leaf really has, be it older or newer than what was known; False when it is no news."""
        return bool(await conn.fetchval(_STAND, switch_id, generation, digest))

    async def positions(self, conn: Connection, switch_ids: Collection[str]) -> dict[str, Position]:
        """Where these leaves are, by switch id; those that are gone are left out."""
        rows = await conn.fetch(_POSITIONS, list(switch_ids))
        return {row["id"]: Position(row["desired_generation"], str(row["session"] or "")) for row in rows}

    async def speaks(self, conn: Connection, switch_id: str, session: str) -> bool:
        """Whether the session speaks for the leaf; no other one takes its place until the transaction ends."""
        return str(await conn.fetchval(_SPEAKER, switch_id)) == session

    async def seen(self, conn: Connection, heard: Mapping[str, str]) -> set[str]:
        """Record that these leaves were heard of, each on a session, by switch id.

        Gives those that are dealt with: written, or spoken for by another session. The rows of the rest are held.
        """
        rows = await conn.fetch(_SEEN, list(heard), list(heard.values()))
        return {row["switch_id"] for row in rows}

    async def close(self, conn: Connection, switch_id: str, session: str) -> None:
        """Record that the session has ended, unless another one has taken its place."""
        await conn.execute(_CLOSE, switch_id, session)

    async def applied(
        self,
        conn: Connection,
        switch_id: str,
        generation: int,
        *,
        digest: str,
        at: datetime | None,
        notes: Sequence[str],
    ) -> bool:
        """Record that the leaf has applied a generation; False when it is older than what is known."""
        return bool(await conn.fetchval(_APPLIED, switch_id, generation, digest, at, list(notes)))

    async def failed(
        self, conn: Connection, switch_id: str, generation: int, *, error: str, notes: Sequence[str]
    ) -> None:
        """Record why the leaf could not apply a generation, or keep to it, unless it has applied a later one since.

        Of one generation the last report counts: a leaf compares itself with what it has applied from time to time.
        """
        await conn.execute(_FAILED, switch_id, generation, error, list(notes))

    async def refused(self, conn: Connection, switch_id: str, error: str) -> None:
        """Record why the leaf's registration was refused."""
        await conn.execute(_REFUSED, switch_id, error)

    async def hold(self, conn: Connection, switch_ids: Collection[str]) -> None:
        """Keep reports of these leaves out until the transaction ends."""
        await conn.execute(_HOLD, sorted(switch_ids))

    async def sight(self, conn: Connection, machine: str, every: timedelta) -> int | None:
        """Whether a sighting of the machine is due to be published: its version, or None within `every` of the last."""
        version = await conn.fetchval(_SIGHT, machine, every)
        return None if version is None else int(version)

    async def forget_sightings(self, conn: Connection, machine: str) -> None:
        """Have the next sighting of the machine published at once."""
        await conn.execute("DELETE FROM sighting WHERE machine = $1", machine)
