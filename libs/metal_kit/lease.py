"""Leadership by a row: at most one holder at a time, with an epoch that rises at every change.

Not an advisory lock: that pins a connection for as long as one leads, and is lost with it. All times are the
database's, so clocks of replicas do not matter. A holder that is stalled may not notice that its lease has run out;
what it writes must therefore check the epoch (`held`) in the same statement or transaction.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
from datetime import timedelta

from metal_kit.db import Connection, Database

_TAKE = """
    INSERT INTO lease (name, holder, epoch, expires_at)
    VALUES ($1, $2, 1, clock_timestamp() + $3::interval)
    ON CONFLICT (name) DO UPDATE
    SET holder = excluded.holder,
        epoch = lease.epoch + CASE WHEN lease.holder = excluded.holder THEN 0 ELSE 1 END,
        expires_at = excluded.expires_at
    WHERE lease.holder = excluded.holder OR lease.expires_at < clock_timestamp()
    RETURNING epoch
"""
_HELD = "SELECT 1 FROM lease WHERE name = $1 AND holder = $2 AND epoch = $3 FOR SHARE"
_RELEASE = "UPDATE lease SET expires_at = '-infinity' WHERE name = $1 AND holder = $2 AND epoch = $3"


def new_holder() -> str:
    """A name for this process's claims that no other process, before or after, has."""
    return f"{socket.gethostname()}/{os.getpid()}/{secrets.token_hex(4)}"


class Lease:
    """One contender for the lease `name`; `take` it again before `ttl` is over to keep it."""

    def __init__(self, db: Database, name: str, holder: str, *, ttl: timedelta) -> None:
        self._db = db
        self.name = name
        self.holder = holder
        self.ttl = ttl
        self.epoch = 0
        self._good_until = 0.0

    @property
    def leads(self) -> bool:
        """Whether we hold it, by our own monotonic clock counted from before the last `take`."""
        return self.epoch > 0 and asyncio.get_running_loop().time() < self._good_until

    async def take(self) -> bool:
        """Take or renew the lease; False while another holds it."""
        before = asyncio.get_running_loop().time()
        async with self._db.connection() as connection:
            epoch = await connection.fetchval(_TAKE, self.name, self.holder, self.ttl)
        self.epoch = epoch or 0
        self._good_until = before + self.ttl.total_seconds()
        return self.epoch > 0

    async def held(self, connection: Connection) -> bool:
        """Whether we still hold it, and keep it so until the caller's transaction ends."""
        return await connection.fetchval(_HELD, self.name, self.holder, self.epoch) is not None

    async def release(self) -> None:
        """Give it up, so that another takes it at once; a no-op when we do not hold it."""
        if self.epoch > 0:
            async with self._db.connection() as connection:
                await connection.execute(_RELEASE, self.name, self.holder, self.epoch)
            self.epoch = 0
