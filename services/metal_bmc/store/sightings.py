"""Rows of `sighting`: BMCs in the lease file that are not known at that address, and what became of asking them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

from metal_kit.db import Connection


@dataclass(frozen=True, slots=True)
class Sighting:
    """A BMC where we do not expect it. `refused` ends the matter: a login is tried once, never guessed.

    `mac` is its address instead, where nobody tells the MAC address.
    """

    mac: str
    host: str
    reason: str
    refused: bool
    tries: int
    due: bool

    @property
    def known_mac(self) -> str:
        """The MAC address; empty when it is not known."""
        return "" if self.mac == self.host else self.mac


class SightingStore:
    """Sightings by MAC address."""

    async def see(self, connection: Connection, partition: str, mac: str, host: str) -> Sighting:
        """Note that the BMC is there. A new address does not earn a refused login another try."""
        row = await connection.fetchrow(
            """INSERT INTO sighting (partition, mac, host) VALUES ($1, $2, $3)
            ON CONFLICT (partition, mac) DO UPDATE SET host = excluded.host, seen_at = now()
            RETURNING mac, host, reason, refused, tries, try_at <= now() AS due""",
            partition,
            mac,
            host,
        )
        assert row is not None
        return Sighting(**dict(row))

    async def known_hosts(self, connection: Connection, partition: str, hosts: Sequence[str], port: int) -> set[str]:
        """Which of the hosts a registered BMC has, or one that a lease file showed."""
        rows = await connection.fetch(
            """SELECT host FROM endpoint WHERE partition = $1 AND host = ANY($2::text[]) AND host <> '' AND port = $3
            UNION SELECT host FROM sighting WHERE partition = $1 AND host = ANY($2::text[]) AND mac <> host""",
            partition,
            hosts,
            port,
        )
        return {row["host"] for row in rows}

    async def refused(self, connection: Connection, partition: str, mac: str, reason: str) -> None:
        """The login does not work there, or the answer says that it cannot be followed up."""
        await connection.execute(
            "UPDATE sighting SET refused = true, reason = $3, tries = tries + 1 WHERE partition = $1 AND mac = $2",
            partition,
            mac,
            reason,
        )

    async def postpone(self, connection: Connection, partition: str, mac: str, reason: str, after: timedelta) -> None:
        """It did not answer; ask again after that time."""
        await connection.execute(
            """UPDATE sighting SET reason = $3, tries = tries + 1, try_at = now() + $4::interval
            WHERE partition = $1 AND mac = $2""",
            partition,
            mac,
            reason,
            after,
        )

    async def reopen(self, connection: Connection, partition: str, reason: str) -> None:
        """Those that were closed for that reason may be asked again."""
        await connection.execute("DELETE FROM sighting WHERE partition = $1 AND reason = $2", partition, reason)

    async def forget(self, connection: Connection, partition: str, mac: str) -> None:
        """The BMC is registered now, or gone."""
        await connection.execute("DELETE FROM sighting WHERE partition = $1 AND mac = $2", partition, mac)
