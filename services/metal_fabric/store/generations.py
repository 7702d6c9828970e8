"""Generations of a leaf's desired state, and the VLAN numbers that go with them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

import asyncpg
from metal_kit.db import Connection

from metal_fabric.vlans import Vlan

# A report about an older one cannot be checked any more; the leaf gets the newest anyway.
KEPT = 32
_TOPIC = "leaf/"

_NEWEST = """
    SELECT s.desired_generation, g.hash, g.state, y.applied_generation
    FROM switch s
    LEFT JOIN switch_generation g ON g.switch_id = s.id AND g.generation = s.desired_generation
    LEFT JOIN leaf_sync y ON y.switch_id = s.id
    WHERE s.id = $1
"""
# One statement for all switches of a change, however many: hundreds of them change at once.
_INSERT = """
    WITH made AS (
        SELECT * FROM unnest($1::text[], $2::bigint[], $3::text[], $4::bytea[], $5::bigint[])
            AS m (switch_id, generation, hash, state, pinned_to)
    ), newest AS (
        UPDATE switch SET desired_generation = m.generation FROM made m WHERE switch.id = m.switch_id
    ), pruned AS (
        DELETE FROM switch_generation g USING made m
        WHERE g.switch_id = m.switch_id AND g.generation <= (
            SELECT o.generation FROM switch_generation o WHERE o.switch_id = m.switch_id
            ORDER BY o.generation DESC OFFSET $6 LIMIT 1
        )
    ), carried AS (
        INSERT INTO vlan (switch_id, vni, vlan, released)
        SELECT ($1::text[])[v.place], v.vni, v.vlan, v.released
        FROM unnest($7::text::int[], $8::text::int[], $9::text::int[], $10::text::bigint[])
            AS v (place, vni, vlan, released)
        ON CONFLICT (switch_id, vni) DO UPDATE SET released = excluded.released
    ), added AS (
        INSERT INTO switch_generation (switch_id, generation, hash, state, pinned_to) SELECT * FROM made
    )
    SELECT pg_notify('metalplane_' || current_schema(), $11 || m.switch_id) FROM made m
"""
_PAGE = """
    SELECT g.*, s.desired_generation, y.applied_generation, y.applied_hash
    FROM switch_generation g
    JOIN switch s ON s.id = g.switch_id
    LEFT JOIN leaf_sync y ON y.switch_id = g.switch_id
    WHERE g.switch_id = $1 AND g.generation < $2
    ORDER BY g.generation DESC LIMIT $3
"""
_MADE = """
    SELECT hash, extract(epoch FROM clock_timestamp() - create_time)::float8 AS age
    FROM switch_generation WHERE switch_id = $1 AND generation = $2
"""
_TAKE_VLANS = "DELETE FROM vlan WHERE switch_id = $1 AND vni = ANY ($2::int[])"
_DROP_VLANS = "DELETE FROM vlan WHERE switch_id = $1 AND vni <> ALL ($2::int[])"
_PUT_VLANS = """
    INSERT INTO vlan (switch_id, vni, vlan, released)
    SELECT $1, * FROM unnest($2::int[], $3::int[], $4::bigint[])
    ON CONFLICT (switch_id, vni) DO UPDATE SET released = excluded.released WHERE vlan.released <> excluded.released
"""


@dataclass(frozen=True)
class Generation:
    """The newest generation of a switch (0 and empty before the first) and the one that its leaf has applied."""

    number: int = 0
    hash: str = ""
    state: bytes = b""
    applied: int = 0


@dataclass(frozen=True)
class Made:
    """A generation that is new: `state` is a DesiredState with its number and hash, `pinned_to` the generation that it
    was rolled back to (0 for none). `carried` are the VLANs that are new or other than they were, `dropped` the VNIs of
    those whose number another one has now."""

    switch_id: str
    number: int
    hash: str
    state: bytes
    pinned_to: int = 0
    carried: tuple[Vlan, ...] = ()
    dropped: tuple[int, ...] = ()


@dataclass(frozen=True)
class Kept:
    """A generation that was made: `applied` tells whether the leaf has it, `wanted` whether it is the newest one,
    `pinned_to` whose content it was rolled back to (0 for none)."""

    number: int
    hash: str
    state: bytes
    made: datetime
    applied: bool
    wanted: bool
    pinned_to: int


class GenerationStore:
    """Generations, by switch id."""

    async def newest(self, conn: Connection, switch_id: str) -> Generation | None:
        """The newest generation; None when the switch does not exist."""
        row = await conn.fetchrow(_NEWEST, switch_id)
        if row is None:
            return None
        return Generation(
            row["desired_generation"], row["hash"] or "", row["state"] or b"", row["applied_generation"] or 0
        )

    async def made(self, conn: Connection, switch_id: str, generation: int, digest: str) -> float | None:
        """Age in seconds of the generation with this number and hash; None when there is no such one, or not any
        more."""
        row = await conn.fetchrow(_MADE, switch_id, generation)
        return float(row["age"]) if row is not None and row["hash"] == digest else None

    async def page(self, conn: Connection, switch_id: str, *, before: int, limit: int) -> list[Kept]:
        """Generations below a number, the newest first."""
        return [_kept(row) for row in await conn.fetch(_PAGE, switch_id, before, limit)]

    async def state(self, conn: Connection, switch_id: str, generation: int) -> bytes | None:
        """Content of a generation; None for one that was never made, or is not kept any more."""
        query = "SELECT state FROM switch_generation WHERE switch_id = $1 AND generation = $2"
        content: bytes | None = await conn.fetchval(query, switch_id, generation)
        return content

    async def add(self, conn: Connection, made: Sequence[Made]) -> None:
        """Make these the newest generations of their switches, of each at most one. The leaves' streams, on whichever
        replica, look once this is committed."""
        for each in made:
            if each.dropped:
                # Before their numbers go to others: one statement does not say in which order it does its parts.
                await conn.execute(_TAKE_VLANS, each.switch_id, list(each.dropped))
        # With each the place of its switch in the lists, which count from 1.
        carried = [(place, vlan) for place, each in enumerate(made, 1) for vlan in each.carried]
        await conn.execute(
            _INSERT,
            [each.switch_id for each in made],
            [each.number for each in made],
            [each.hash for each in made],
            [each.state for each in made],
            [each.pinned_to for each in made],
            KEPT - 1,
            _array(place for place, _ in carried),
            _array(vlan.vni for _, vlan in carried),
            _array(vlan.id for _, vlan in carried),
            _array(vlan.released for _, vlan in carried),
            _TOPIC,
        )

    async def wake(self, conn: Connection, switch_id: str) -> None:
        """Have the streams of this leaf look at the database once this is committed."""
        await conn.execute("SELECT pg_notify('metalplane_' || current_schema(), $1)", topic_of(switch_id))

    async def vlans(self, conn: Connection, switch_id: str) -> list[Vlan]:
        """VLANs that the leaf has or had."""
        rows = await conn.fetch("SELECT vni, vlan, released FROM vlan WHERE switch_id = $1", switch_id)
        return [Vlan(row["vni"], row["vlan"], row["released"]) for row in rows]

    async def put_vlans(self, conn: Connection, switch_id: str, vlans: Iterable[Vlan]) -> None:
        """Make the VLANs of the leaf the given ones."""
        every = list(vlans)
        vnis = [vlan.vni for vlan in every]
        await conn.execute(_DROP_VLANS, switch_id, vnis)
        await conn.execute(_PUT_VLANS, switch_id, vnis, [vlan.id for vlan in every], [vlan.released for vlan in every])


def _kept(row: asyncpg.Record) -> Kept:
    number = row["generation"]
    return Kept(
        number=number,
        hash=row["hash"],
        state=row["state"],
        made=row["create_time"],
        applied=(number, row["hash"]) == (row["applied_generation"], row["applied_hash"]),
        wanted=number == row["desired_generation"],
        pinned_to=row["pinned_to"],
    )


def topic_of(switch_id: str) -> str:
    """Topic on which the streams of a leaf are woken."""
    return _TOPIC + switch_id


def _array(numbers: Iterable[int]) -> str:
    # As text: asyncpg looks at each element of a list several times before it writes it.
    return "{" + ",".join(map(str, numbers)) + "}"
