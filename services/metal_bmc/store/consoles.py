"""Rows of `console`: which replica has the serial console of a machine open, so that two do not take it in turns."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from metal_kit.db import Connection


@dataclass(frozen=True, slots=True)
class Claim:
    """The outcome of a claim. `owner` is the replica that has the console if it is not ours; `former` what the BMC
    calls the session in which a replica has left it open, None when there is none."""

    owner: str = ""
    former: bytes | None = None


class ConsoleStore:
    """Claims run out by the database's clock. A replica that nobody reads through gives way to one that is asked."""

    async def claim(self, connection: Connection, machine: str, partition: str, holder: str, ttl: timedelta) -> Claim:
        """Take the console for `ttl`."""
        row = await connection.fetchrow(
            """INSERT INTO console (machine, partition, holder, expires_at)
            VALUES ($1, $2, $3, clock_timestamp() + $4::interval)
            ON CONFLICT (machine) DO UPDATE
            SET partition = excluded.partition, holder = excluded.holder, expires_at = excluded.expires_at, idle = false
            WHERE console.holder = excluded.holder OR console.expires_at < clock_timestamp() OR console.idle
            RETURNING session""",
            machine,
            partition,
            holder,
            ttl,
        )
        if row is not None:
            return Claim(former=row["session"])
        owner = await connection.fetchval("SELECT holder FROM console WHERE machine = $1", machine)
        return Claim(owner=owner or "another replica")

    async def renew(
        self, connection: Connection, machines: dict[str, bool], holder: str, ttl: timedelta
    ) -> frozenset[str]:
        """Keep the consoles of these machines for another `ttl`; the value says whether nobody reads. Those that are
        still ours."""
        rows = await connection.fetch(
            """UPDATE console SET expires_at = clock_timestamp() + $4::interval, idle = mine.idle
            FROM unnest($1::uuid[], $2::bool[]) AS mine (machine, idle)
            WHERE console.machine = mine.machine AND console.holder = $3
            RETURNING console.machine::text AS machine""",
            list(machines),
            list(machines.values()),
            holder,
            ttl,
        )
        return frozenset(row["machine"] for row in rows)

    async def opened(self, connection: Connection, machine: str, holder: str, session: bytes) -> None:
        """Remember what the BMC calls our session, for the replica that comes after a crash of this one."""
        await connection.execute(
            "UPDATE console SET session = $3 WHERE machine = $1 AND holder = $2", machine, holder, session
        )

    async def release(self, connection: Connection, machine: str, holder: str) -> None:
        """The console is closed; a no-op when it is another's."""
        await connection.execute("DELETE FROM console WHERE machine = $1 AND holder = $2", machine, holder)
