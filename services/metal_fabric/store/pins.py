"""Switches that are held at an older desired state."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from metal_kit.db import Connection

_PUT = """
    INSERT INTO switch_pin (switch_id, generation, state, reason) VALUES ($1, $2, $3, $4)
    ON CONFLICT (switch_id) DO UPDATE
    SET generation = excluded.generation, state = excluded.state, reason = excluded.reason,
        create_time = excluded.create_time
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

    async def put(self, conn: Connection, switch_id: str, generation: int, state: bytes, reason: str) -> None:
        """Hold the switch at this content."""
        await conn.execute(_PUT, switch_id, generation, state, reason)

    async def delete(self, conn: Connection, switch_id: str) -> bool:
        """Let the switch follow the plane; False when it did."""
        return bool(await conn.fetchval("DELETE FROM switch_pin WHERE switch_id = $1 RETURNING true", switch_id))
