"""Settings of partitions, and the copies that their leaves have."""

from __future__ import annotations

from metal_kit.db import Connection

from metal_fabric.settings import Settings, of_stored


class SettingsStore:
    """Settings, by partition and by switch."""

    async def of_switch(self, conn: Connection, switch_id: str) -> Settings:
        """The settings that have reached a switch."""
        return of_stored(await conn.fetchval("SELECT settings FROM switch WHERE id = $1", switch_id))
