"""What machines' ports are wanted to be, and which allocations are over."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import asyncpg
from metal_kit.db import Connection

from metal_fabric.attachment import Attachment, HeldPorts, Leaf
from metal_fabric.filters import PortRole, Wish
from metal_fabric.store.syncs import CONNECTED

_GET = "SELECT * FROM attachment WHERE machine = $1"
# Those that it hangs on, and those that it hung on before and that have not let go of it yet.
_LEAVES = f"""
    SELECT c.switch_id, array_agg(c.port ORDER BY c.port) AS ports, coalesce(max(l.wanted_generation), 0) AS wanted,
           y.applied_generation AS applied, {CONNECTED} AS connected, y.seen_time, y.error, false AS former
    FROM cable c
    JOIN leaf_sync y USING (switch_id)
    LEFT JOIN attachment_leaf l USING (machine, switch_id)
    WHERE c.machine = $1
    GROUP BY c.switch_id, y.switch_id
    UNION ALL
    SELECT l.switch_id, l.former_ports, l.wanted_generation, y.applied_generation, {CONNECTED}, y.seen_time, y.error,
           true
    FROM attachment_leaf l
    JOIN leaf_sync y USING (switch_id)
    WHERE l.machine = $1 AND l.former_ports IS NOT NULL AND l.wanted_generation > y.applied_generation
    ORDER BY former, switch_id
"""
_PUT = """
    INSERT INTO attachment (machine, owner, role, vrf, allowed_prefixes, vnis, leaving, announced)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
    ON CONFLICT (machine) DO UPDATE
    SET owner = excluded.owner, role = excluded.role, vrf = excluded.vrf, allowed_prefixes = excluded.allowed_prefixes,
        vnis = excluded.vnis, leaving = excluded.leaving, announced = excluded.announced,
        version = nextval('version'), update_time = clock_timestamp()
"""
# A leaf that it hung on before goes when it has let go of the machine. Later than that it may take it back, by going
# back to an older state; until there is a new wish that is noticed.
_DROP_LEAVES = """
    DELETE FROM attachment_leaf l USING leaf_sync y
    WHERE l.machine = $1 AND l.switch_id <> ALL ($2) AND y.switch_id = l.switch_id
        AND (l.former_ports IS NULL OR l.wanted_generation <= y.applied_generation)
"""
_PUT_LEAVES = """
    INSERT INTO attachment_leaf (machine, switch_id, wanted_generation, former_ports)
    VALUES ($1, $2, $3, $4)
    ON CONFLICT (machine, switch_id) DO UPDATE
    SET wanted_generation = excluded.wanted_generation, former_ports = excluded.former_ports
"""
_FORMER = "SELECT switch_id FROM attachment_leaf WHERE machine = ANY ($1::uuid[]) AND former_ports IS NOT NULL"
_UNCONFIRMED = """
    SELECT l.switch_id FROM attachment_leaf l JOIN leaf_sync y USING (switch_id)
    WHERE l.machine = $1 AND l.wanted_generation > y.applied_generation
"""
_HELD = """
    SELECT l.switch_id, l.machine, l.former_ports, l.wanted_generation
    FROM attachment_leaf l JOIN leaf_sync y USING (switch_id)
    WHERE l.switch_id = ANY ($1) AND l.former_ports IS NOT NULL AND l.wanted_generation > y.applied_generation
    ORDER BY l.switch_id, l.machine
"""
# Locked in the order in which leaves' reports lock them.
_POSTPONE = """
    WITH late AS (
        SELECT a.machine, a.announced
        FROM cable c
        JOIN attachment_leaf l ON l.machine = c.machine AND l.switch_id = c.switch_id
        JOIN attachment a ON a.machine = c.machine
        WHERE c.switch_id = $1 AND c.port = ANY ($2) AND l.wanted_generation <> $3
        ORDER BY a.machine FOR UPDATE OF a
    ), moved AS (
        UPDATE attachment_leaf SET wanted_generation = $3
        WHERE switch_id = $1 AND machine IN (SELECT machine FROM late)
    )
    UPDATE attachment a SET announced = false, version = nextval('version')
    FROM late WHERE a.machine = late.machine
    RETURNING a.machine, a.version, late.announced
"""
_LEAVERS = """
    SELECT l.machine FROM attachment_leaf l
    JOIN attachment a USING (machine)
    JOIN leaf_sync y ON y.switch_id = l.switch_id
    WHERE l.switch_id = $1 AND a.leaving AND y.applied_generation < l.wanted_generation
"""
# Locked in the order in which leaves' reports lock them.
_LOCK_OF_LEAF = """
    SELECT a.machine, a.leaving, a.announced, l.former_ports IS NOT NULL AS former
    FROM attachment_leaf l JOIN attachment a USING (machine)
    WHERE l.switch_id = $1 ORDER BY a.machine FOR UPDATE OF a
"""
_DROP_OF_LEAF = "DELETE FROM attachment_leaf WHERE switch_id = $1 AND machine = ANY ($2)"
_LEAVE_LEAF = """
    UPDATE attachment_leaf SET wanted_generation = $2, former_ports = ARRAY(
        SELECT port FROM unnest($3::uuid[], $4::text[]) AS was (machine, port)
        WHERE was.machine = attachment_leaf.machine ORDER BY port
    )
    WHERE switch_id = $1 AND machine = ANY ($5)
"""
_ADD_TO_LEAF = """
    INSERT INTO attachment_leaf (machine, switch_id, wanted_generation)
    SELECT machine, $2, $3 FROM unnest($1::uuid[]) AS machine
"""
_UNANNOUNCE = """
    UPDATE attachment SET announced = false, version = nextval('version') WHERE machine = ANY ($1)
    RETURNING machine, version
"""
_LOCK_UNANNOUNCED = """
    SELECT a.machine FROM attachment a
    WHERE NOT a.announced AND EXISTS (
        SELECT 1 FROM attachment_leaf l
        WHERE l.machine = a.machine AND l.switch_id = $1 AND l.wanted_generation <= $2
    )
    ORDER BY a.machine FOR UPDATE
"""
_ANNOUNCED = """
    UPDATE attachment SET announced = true, version = nextval('version') WHERE machine = $1 RETURNING version
"""
_RETRACT = """
    WITH lost AS (
        SELECT a.machine FROM attachment_leaf l JOIN attachment a USING (machine)
        WHERE l.switch_id = $1 AND l.wanted_generation > $2 AND a.announced
        ORDER BY a.machine FOR UPDATE OF a
    )
    UPDATE attachment a SET announced = false, version = nextval('version') FROM lost WHERE a.machine = lost.machine
    RETURNING a.machine, a.version
"""
_END = "INSERT INTO ended_allocation (allocation, machine) VALUES ($1, $2) ON CONFLICT DO NOTHING"
_ENDED = "SELECT EXISTS (SELECT 1 FROM ended_allocation WHERE allocation = $1 AND machine = $2)"


@dataclass(frozen=True)
class FormerLeaf:
    """A leaf that a machine hung on, its ports there, and the generation `wanted` that has it no more."""

    switch_id: str
    ports: Sequence[str]
    wanted: int


@dataclass(frozen=True)
class FormerPlace:
    """A leaf that others relieve: its machines and their ports there, and the generation `wanted` without them."""

    switch_id: str
    ports: Sequence[tuple[str, str]]
    wanted: int


class AttachmentStore:
    """Attachments, by machine."""

    async def get(self, conn: Connection, machine: str, *, lock: bool = False) -> Attachment:
        """The machine's attachment with its leaves as they are now; one that nobody owns when there is none."""
        row = await conn.fetchrow(_GET + (" FOR UPDATE" if lock else ""), machine)
        # A statement of its own: behind the lock it sees what the one who held it before has written.
        leaves = tuple(_leaf(leaf) for leaf in await conn.fetch(_LEAVES, machine))
        if row is None:
            return Attachment(machine, leaves=leaves)
        return Attachment(
            machine=machine,
            owner=str(row["owner"]),
            wish=_wish(row),
            leaving=row["leaving"],
            announced=row["announced"],
            leaves=leaves,
        )

    async def put(self, conn: Connection, attachment: Attachment) -> None:
        """Write the attachment, without its leaves."""
        wish = attachment.wish
        await conn.execute(
            _PUT,
            *(attachment.machine, attachment.owner, wish.role.value, wish.vrf, list(wish.allowed_prefixes)),
            *(list(wish.vnis), attachment.leaving, attachment.announced),
        )

    async def put_leaves(
        self, conn: Connection, machine: str, wanted: Mapping[str, int], *, left: Iterable[FormerLeaf] = ()
    ) -> None:
        """Record for the machine's leaves, by switch id, since which generation they contain what is wanted, and for
        those that it has `left` just now, since which one they do not have it any more."""
        rows: list[tuple[str, str, int, list[str] | None]] = [
            *((machine, switch_id, number, None) for switch_id, number in wanted.items()),
            *((machine, each.switch_id, each.wanted, list(each.ports)) for each in left),
        ]
        await conn.execute(_DROP_LEAVES, machine, [row[1] for row in rows])
        await conn.executemany(_PUT_LEAVES, rows)

    async def former_leaves(self, conn: Connection, machines: Collection[str]) -> set[str]:
        """Leaves that these machines hung on before, and that may have yet to let go of them."""
        return {row["switch_id"] for row in await conn.fetch(_FORMER, list(machines))}

    async def unconfirmed_leaves(self, conn: Connection, machine: str) -> set[str]:
        """Leaves that have not applied what they were last wanted to have of the machine."""
        return {row["switch_id"] for row in await conn.fetch(_UNCONFIRMED, machine)}

    async def version(self, conn: Connection, machine: str) -> int:
        """The attachment's version."""
        return int(await conn.fetchval("SELECT version FROM attachment WHERE machine = $1", machine))

    async def held(self, conn: Connection, switch_ids: Collection[str]) -> dict[str, list[HeldPorts]]:
        """What leaves have yet to let go of, machines that hang on others by now, by switch id where there is any."""
        held: dict[str, list[HeldPorts]] = {}
        for switch_id, machine, ports, wanted in await conn.fetch(_HELD, list(switch_ids)):
            held.setdefault(switch_id, []).append(HeldPorts(str(machine), tuple(ports), wanted))
        return held

    async def postpone(
        self, conn: Connection, switch_id: str, ports: Collection[str], generation: int
    ) -> dict[str, int]:
        """Have the machines on these ports wait for a generation of this switch that has not been made yet.

        Gives the new versions of the attachments that were confirmed, by machine.
        """
        rows = await conn.fetch(_POSTPONE, switch_id, list(ports), generation)
        return _versions(row for row in rows if row["announced"])

    async def unconfirmed_leavers(self, conn: Connection, switch_id: str) -> list[str]:
        """Machines that leave a tenant's network, which this leaf has not confirmed."""
        return [str(row["machine"]) for row in await conn.fetch(_LEAVERS, switch_id)]

    async def lock_of_leaf(self, conn: Connection, switch_id: str) -> list[str]:
        """Machines that this leaf has to do with, locked."""
        return [str(row["machine"]) for row in await conn.fetch(_LOCK_OF_LEAF, switch_id)]

    async def move_leaf(self, conn: Connection, old: FormerPlace, new_id: str, generation: int) -> dict[str, int]:
        """Have the machines that are attached wait for this generation of a leaf that has taken over, and for the old
        one to let go. Of those that left it never knew.

        Gives the new versions of the attachments that were confirmed, by machine.
        """
        there = [row for row in await conn.fetch(_LOCK_OF_LEAF, old.switch_id) if not row["former"]]
        staying = [row["machine"] for row in there if not row["leaving"]]
        await conn.execute(_DROP_OF_LEAF, old.switch_id, [row["machine"] for row in there if row["leaving"]])
        machines, ports = [machine for machine, _ in old.ports], [port for _, port in old.ports]
        await conn.execute(_LEAVE_LEAF, old.switch_id, old.wanted, machines, ports, staying)
        # What it had of its own is of machines that hang elsewhere by now, and it has let go of them.
        await conn.execute("DELETE FROM attachment_leaf WHERE switch_id = $1", new_id)
        await conn.execute(_ADD_TO_LEAF, staying, new_id, generation)
        confirmed = {str(row["machine"]) for row in there if row["announced"]}
        moved = _versions(await conn.fetch(_UNANNOUNCE, staying))
        return {machine: version for machine, version in moved.items() if machine in confirmed}

    async def lock_unannounced(self, conn: Connection, switch_id: str, applied: int) -> list[str]:
        """Machines whose attachment may now be confirmed because the switch has applied this generation, locked."""
        return [str(row["machine"]) for row in await conn.fetch(_LOCK_UNANNOUNCED, switch_id, applied)]

    async def mark_announced(self, conn: Connection, machine: str) -> int:
        """Record that the confirmation has been published; gives the attachment's new version."""
        return int(await conn.fetchval(_ANNOUNCED, machine))

    async def retract(self, conn: Connection, switch_id: str, applied: int) -> dict[str, int]:
        """Have the confirmations published again that the switch, which has this generation, has gone back behind.

        Gives the attachments' new versions, by machine.
        """
        return _versions(await conn.fetch(_RETRACT, switch_id, applied))

    async def delete(self, conn: Connection, machine: str) -> None:
        """Forget the attachment of a machine that has been uncabled."""
        await conn.execute("DELETE FROM attachment WHERE machine = $1", machine)

    async def end(self, conn: Connection, machine: str, allocation: str) -> None:
        """Record that the allocation's use of the machine is over."""
        await conn.execute(_END, allocation, machine)

    async def ended(self, conn: Connection, machine: str, allocation: str) -> bool:
        """Whether the allocation's use of the machine is over."""
        return bool(await conn.fetchval(_ENDED, allocation, machine))


def _versions(rows: Iterable[asyncpg.Record]) -> dict[str, int]:
    return dict(sorted((str(row["machine"]), int(row["version"])) for row in rows))


def _wish(row: asyncpg.Record) -> Wish:
    return Wish(PortRole(row["role"]), row["vrf"], tuple(row["allowed_prefixes"]), tuple(row["vnis"]))


def _leaf(row: asyncpg.Record) -> Leaf:
    return Leaf(
        switch_id=row["switch_id"],
        ports=tuple(row["ports"]),
        wanted=row["wanted"],
        applied=row["applied"],
        connected=row["connected"],
        seen=row["seen_time"],
        error=row["error"],
        former=row["former"],
    )
