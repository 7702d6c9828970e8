"""Settings of partitions, and the copies that their leaves have."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime

from metal_kit.db import Connection

from metal_fabric.rollout import Progress
from metal_fabric.settings import NOTHING_SET, Settings, of_stored, stored
from metal_fabric.store.syncs import CONNECTED

# A row that is there can be locked: a leaf that is just coming and a change of the settings do not miss each other.
_ENSURE = """
    INSERT INTO fabric_settings (partition, content, version, rolling) VALUES ($1, '{}', 0, false)
    ON CONFLICT DO NOTHING
"""
_PUT = """
    UPDATE fabric_settings SET content = $2, version = nextval('version'), rolling = true,
                               update_time = clock_timestamp()
    WHERE partition = $1
    RETURNING version, update_time
"""
_INHERIT = """
    UPDATE switch SET settings = f.content, settings_version = f.version
    FROM (SELECT * FROM fabric_settings WHERE partition = $2 FOR SHARE) f WHERE switch.id = $1
"""
_PROGRESS = f"""
    SELECT s.id, s.rack, s.settings_version, coalesce({CONNECTED}, false) AS connected,
           coalesce(y.applied_generation, 0) >= s.desired_generation AS settled
    FROM switch s LEFT JOIN leaf_sync y ON y.switch_id = s.id
    WHERE s.partition = $1 AND ($2::text IS NULL OR s.rack = $2) AND s.kind = 'leaf'
    ORDER BY s.rack, s.id
"""
_GIVE = "UPDATE switch SET settings = $2, settings_version = $3 WHERE id = $1"
_DONE = """
    UPDATE fabric_settings SET rolling = false
    WHERE partition = $1 AND version = $2
        AND NOT EXISTS (SELECT 1 FROM switch WHERE partition = $1 AND kind = 'leaf' AND settings_version <> $2)
"""
_IN_USE = """
    SELECT c.switch_id, c.port FROM switch s JOIN cable c ON c.switch_id = s.id
    WHERE s.partition = $1 AND c.port = ANY ($2) ORDER BY c.switch_id, c.port LIMIT 1
"""


@dataclass(frozen=True)
class PartitionSettings:
    """A partition's newest settings; `version` is 0 and `changed` None when nothing was ever set."""

    partition: str
    settings: Settings = NOTHING_SET
    version: int = 0
    changed: datetime | None = None


class SettingsStore:
    """Settings, by partition and by switch."""

    async def get(self, conn: Connection, partition: str, *, lock: bool = False) -> PartitionSettings:
        """The newest settings of a partition. With `lock`, nobody else changes them until the transaction ends."""
        if lock:
            await conn.execute(_ENSURE, partition)
        query = "SELECT * FROM fabric_settings WHERE partition = $1" + (" FOR UPDATE" if lock else "")
        row = await conn.fetchrow(query, partition)
        if row is None or not row["version"]:
            return PartitionSettings(partition)
        return PartitionSettings(partition, of_stored(row["content"]), row["version"], row["update_time"])

    async def put(self, conn: Connection, partition: str, settings: Settings) -> PartitionSettings:
        """Make these the newest settings of a partition, which is locked; leaves do not have them yet."""
        row = await conn.fetchrow(_PUT, partition, stored(settings))
        if row is None:
            raise RuntimeError(f"settings of partition {partition} vanished under their lock")
        return PartitionSettings(partition, settings, row["version"], row["update_time"])

    async def inherit(self, conn: Connection, switch_id: str, partition: str) -> None:
        """Give a new switch the newest settings of its partition: it carries no traffic that could be disturbed."""
        await conn.execute(_ENSURE, partition)
        await conn.execute(_INHERIT, switch_id, partition)

    async def rolling(self, conn: Connection) -> list[str]:
        """Partitions where a leaf may have older settings than the newest."""
        rows = await conn.fetch("SELECT partition FROM fabric_settings WHERE rolling ORDER BY partition")
        return [row["partition"] for row in rows]

    async def progress(self, conn: Connection, partition: str, rack: str | None = None) -> dict[str, list[Progress]]:
        """How far the leaves of a partition are, or those of one rack, by rack."""
        racks: dict[str, list[Progress]] = {}
        for row in await conn.fetch(_PROGRESS, partition, rack):
            leaf = Progress(row["id"], row["settings_version"], row["settled"], row["connected"])
            racks.setdefault(row["rack"], []).append(leaf)
        return racks

    async def give(self, conn: Connection, switch_id: str, newest: PartitionSettings) -> None:
        """Let the settings reach a switch, which is locked."""
        await conn.execute(_GIVE, switch_id, stored(newest.settings), newest.version)

    async def done(self, conn: Connection, partition: str, version: int) -> None:
        """Look after the partition no more once all of its leaves have this version."""
        await conn.execute(_DONE, partition, version)

    async def cabled(self, conn: Connection, partition: str, ports: Collection[str]) -> tuple[str, str] | None:
        """A switch of the partition and one of these ports that a machine hangs on, if there is one."""
        row = await conn.fetchrow(_IN_USE, partition, list(ports))
        return None if row is None else (row["switch_id"], row["port"])
