"""Switches that are held at an older desired state."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from metal_kit.db import Connection

from metal_fabric.pinning import Returning
from metal_fabric.store.syncs import CONNECTED

_PUT = """
    INSERT INTO switch_pin (switch_id, generation, state, reason) VALUES ($1, $2, $3, $4)
    ON CONFLICT (switch_id) DO UPDATE
    SET generation = excluded.generation, state = excluded.state, reason = excluded.reason,
        create_time = excluded.create_time
"""
# A roll-back that has not been applied yet, or the end of one; the latter only while the leaf is there.
_RETURNING = f"""
    SELECT o.id, o.desired_generation, p.switch_id IS NOT NULL AS pinned
    FROM switch s
    JOIN switch o ON o.partition = s.partition AND o.rack = s.rack AND o.kind = 'leaf' AND o.id <> s.id
    JOIN leaf_sync y ON y.switch_id = o.id
    LEFT JOIN switch_pin p ON p.switch_id = o.id
    LEFT JOIN switch_generation n ON n.switch_id = o.id AND n.generation = o.desired_generation
    LEFT JOIN switch_generation a ON a.switch_id = o.id AND a.generation = y.applied_generation
    WHERE s.id = $1 AND y.applied_generation < o.desired_generation
        AND (p.switch_id IS NOT NULL AND n.pinned_to > 0 OR p.switch_id IS NULL AND a.pinned_to > 0 AND {CONNECTED})
    ORDER BY o.id LIMIT 1
"""
_RACK = """
    SELECT o.id FROM switch s JOIN switch o ON o.partition = s.partition AND o.rack = s.rack AND o.kind = 'leaf'
    WHERE s.id = $1
"""


@dataclass(frozen=True)
class Pin:
    """A switch is held at the content of a generation since `since`, because of `reason`."""

    generation: int
    reason: str
    since: datetime


class PinStore:
    """Pins, by switch id. The switch must be locked to change one."""

    async def state(self, conn: Connection, switch_id: str) -> tuple[int, bytes] | None:
        """Generation and content that the switch is held at; None for one that follows the plane."""
        row = await conn.fetchrow("SELECT generation, state FROM switch_pin WHERE switch_id = $1", switch_id)
        return None if row is None else (row["generation"], row["state"])

    async def rack_of(self, conn: Connection, switch_id: str) -> set[str]:
        """The leaves of a switch's rack, itself among them if it is one."""
        return {row["id"] for row in await conn.fetch(_RACK, switch_id)}

    async def returning(self, conn: Connection, switch_id: str) -> Returning | None:
        """Another leaf of the switch's rack that is on its way to an older content or back from it."""
        row = await conn.fetchrow(_RETURNING, switch_id)
        return None if row is None else Returning(row["id"], row["desired_generation"], row["pinned"])

    async def put(self, conn: Connection, switch_id: str, generation: int, state: bytes, reason: str) -> None:
        """Hold the switch at this content."""
        await conn.execute(_PUT, switch_id, generation, state, reason)

    async def delete(self, conn: Connection, switch_id: str) -> bool:
        """Let the switch follow the plane; False when it did."""
        return bool(await conn.fetchval("DELETE FROM switch_pin WHERE switch_id = $1 RETURNING true", switch_id))
