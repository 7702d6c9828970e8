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
# Leaves of a rack that have yet to arrive: at the content that they are held at, or at the end of that, the latter only
# while they are there. Changes of tenants under a pin are no return: whoever has a generation of the pin has arrived,
# and so has who had the content before it was pinned, for which no generation is made. Nor is one made for the end of a
# pin whose content the plane wants by now: the leaf still has to get there. The asked one comes first.
_RETURNING = f"""
    SELECT o.id, o.desired_generation, p.switch_id IS NOT NULL AS pinned
    FROM switch s
    JOIN switch o ON o.partition = s.partition AND o.rack = s.rack AND o.kind = 'leaf'
    JOIN leaf_sync y ON y.switch_id = o.id
    LEFT JOIN switch_pin p ON p.switch_id = o.id
    LEFT JOIN switch_generation n ON n.switch_id = o.id AND n.generation = o.desired_generation
    LEFT JOIN switch_generation a ON a.switch_id = o.id AND a.generation = y.applied_generation
    WHERE s.id = $1 AND y.applied_generation < o.desired_generation
        AND (p.switch_id IS NOT NULL OR {CONNECTED})
        AND CASE WHEN n.pinned_to > 0 THEN a.pinned_to IS DISTINCT FROM coalesce(p.generation, n.pinned_to)
                AND y.applied_generation <> coalesce(p.generation, n.pinned_to)
            ELSE p.switch_id IS NULL AND a.pinned_to > 0 END
    ORDER BY o.id <> s.id, o.id LIMIT 1
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

    async def holds(self, conn: Connection, switch_id: str) -> bool:
        """Whether the switch is held."""
        return bool(await conn.fetchval("SELECT true FROM switch_pin WHERE switch_id = $1", switch_id))

    async def rack_of(self, conn: Connection, switch_id: str) -> set[str]:
        """The leaves of a switch's rack, itself among them if it is one."""
        return {row["id"] for row in await conn.fetch(_RACK, switch_id)}

    async def returning(self, conn: Connection, switch_id: str) -> Returning | None:
        """Another leaf of the switch's rack that is on its way to an older content or back from it.

        None while the switch itself is: of two that wait for each other neither could be helped any more.
        """
        row = await conn.fetchrow(_RETURNING, switch_id)
        if row is None or row["id"] == switch_id:
            return None
        return Returning(row["id"], row["desired_generation"], row["pinned"])

    async def put(self, conn: Connection, switch_id: str, generation: int, state: bytes, reason: str) -> None:
        """Hold the switch at this content."""
        await conn.execute(_PUT, switch_id, generation, state, reason)

    async def delete(self, conn: Connection, switch_id: str) -> None:
        """Let the switch follow the plane."""
        await conn.execute("DELETE FROM switch_pin WHERE switch_id = $1", switch_id)
