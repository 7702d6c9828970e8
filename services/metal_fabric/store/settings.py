"""Settings of partitions, and the copies that their leaves have."""

from __future__ import annotations

from metal_kit.db import Connection

from metal_fabric.settings import Settings, of_stored

_INHERIT = """
    UPDATE switch SET settings = f.content, settings_version = f.version
    FROM fabric_settings f WHERE switch.id = $1 AND f.partition = switch.partition
"""


class SettingsStore:
    """Settings, by partition and by switch."""

    async def of_switch(self, conn: Connection, switch_id: str) -> Settings:
        """The settings that have reached a switch."""
        return of_stored(await conn.fetchval("SELECT settings FROM switch WHERE id = $1", switch_id))

    async def inherit(self, conn: Connection, switch_id: str) -> None:
        """Give a new switch the newest settings of its partition: it carries no traffic that could be disturbed."""
        await conn.execute(_INHERIT, switch_id)
