"""What machines' ports are wanted to be, and which allocations are over."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import asyncpg
from metal_kit.db import Connection

from metal_fabric.attachment import Attachment, Leaf
from metal_fabric.filters import PortRole, Wish
from metal_fabric.store.syncs import CONNECTED

_GET = "SELECT * FROM attachment WHERE machine = $1"
_LEAVES = f"""
    SELECT c.switch_id, array_agg(c.port ORDER BY c.port) AS ports, coalesce(max(l.wanted_generation), 0) AS wanted,
           y.applied_generation AS applied, {CONNECTED} AS connected, y.seen_time, y.error
    FROM cable c
    JOIN leaf_sync y USING (switch_id)
    LEFT JOIN attachment_leaf l USING (machine, switch_id)
    WHERE c.machine = $1
    GROUP BY c.switch_id, y.switch_id
    ORDER BY c.switch_id
"""
_PUT = """
    INSERT INTO attachment (machine, owner, role, vrf, allowed_prefixes, vnis, leaving, announced)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
    ON CONFLICT (machine) DO UPDATE
    SET owner = excluded.owner, role = excluded.role, vrf = excluded.vrf, allowed_prefixes = excluded.allowed_prefixes,
        vnis = excluded.vnis, leaving = excluded.leaving, announced = excluded.announced,
        version = nextval('version'), update_time = clock_timestamp()
"""
_DROP_LEAVES = "DELETE FROM attachment_leaf WHERE machine = $1 AND switch_id <> ALL ($2)"
_PUT_LEAVES = """
    INSERT INTO attachment_leaf (machine, switch_id, wanted_generation)
    SELECT $1, * FROM unnest($2::text[], $3::bigint[])
    ON CONFLICT (machine, switch_id) DO UPDATE SET wanted_generation = excluded.wanted_generation
"""
# Locked in the order in which leaves' reports lock them.
_POSTPONE = """
    WITH late AS (
        SELECT a.machine
        FROM cable c
        JOIN attachment_leaf l ON l.machine = c.machine AND l.switch_id = c.switch_id
        JOIN attachment a ON a.machine = c.machine
        WHERE c.switch_id = $1 AND c.port = ANY ($2) AND l.wanted_generation <> $3
        ORDER BY a.machine FOR UPDATE OF a
    ), moved AS (
        UPDATE attachment_leaf SET wanted_generation = $3
        WHERE switch_id = $1 AND machine IN (SELECT machine FROM late)
    )
    UPDATE attachment SET announced = false, version = nextval('version')
    WHERE machine IN (SELECT machine FROM late)
"""
_LEAVERS = """
    SELECT l.machine FROM attachment_leaf l
    JOIN attachment a USING (machine)
    JOIN leaf_sync y ON y.switch_id = l.switch_id
    WHERE l.switch_id = $1 AND a.leaving AND y.applied_generation < l.wanted_generation
"""
# Locked in the order in which leaves' reports lock them.
_LOCK_OF_LEAF = """
    SELECT a.machine, a.leaving FROM attachment_leaf l JOIN attachment a USING (machine)
    WHERE l.switch_id = $1 ORDER BY a.machine FOR UPDATE OF a
"""
_DROP_OF_LEAF = "DELETE FROM attachment_leaf WHERE switch_id = $1"
_ADD_TO_LEAF = "INSERT INTO attachment_leaf SELECT machine, $2, $3 FROM unnest($1::uuid[]) AS machine"
_UNANNOUNCE = "UPDATE attachment SET announced = false, version = nextval('version') WHERE machine = ANY ($1)"
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

    async def put_leaves(self, conn: Connection, machine: str, wanted: Mapping[str, int]) -> None:
        """Record for the machine's leaves, by switch id, since which generation they contain what is wanted."""
        await conn.execute(_DROP_LEAVES, machine, list(wanted))
        await conn.execute(_PUT_LEAVES, machine, list(wanted), list(wanted.values()))

    async def postpone(self, conn: Connection, switch_id: str, ports: Collection[str], generation: int) -> None:
        """Have the machines on these ports wait for a generation of this switch that has not been made yet."""
        await conn.execute(_POSTPONE, switch_id, list(ports), generation)

    async def unconfirmed_leavers(self, conn: Connection, switch_id: str) -> list[str]:
        """Machines that leave a tenant's network, which this leaf has not confirmed."""
        return [str(row["machine"]) for row in await conn.fetch(_LEAVERS, switch_id)]

    async def move_leaf(self, conn: Connection, old_id: str, new_id: str, generation: int) -> None:
        """Have the machines that are attached wait for this generation of a leaf that has taken over. Of those that
        left it never knew."""
        rows = await conn.fetch(_LOCK_OF_LEAF, old_id)
        staying = [row["machine"] for row in rows if not row["leaving"]]
        await conn.execute(_DROP_OF_LEAF, old_id)
        # What it had of its own is of machines that hang elsewhere by now.
        await conn.execute(_DROP_OF_LEAF, new_id)
        await conn.execute(_ADD_TO_LEAF, staying, new_id, generation)
        await conn.execute(_UNANNOUNCE, staying)

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
        rows = await conn.fetch(_RETRACT, switch_id, applied)
        return dict(sorted((str(row["machine"]), int(row["version"])) for row in rows))

    async def delete(self, conn: Connection, machine: str) -> None:
        """Forget the attachment of a machine that has been uncabled."""
        await conn.execute("DELETE FROM attachment WHERE machine = $1", machine)

    async def end(self, conn: Connection, machine: str, allocation: str) -> None:
        """Record that the allocation's use of the machine is over."""
        await conn.execute(_END, allocation, machine)

    async def ended(self, conn: Connection, machine: str, allocation: str) -> bool:
        """Whether the allocation's use of the machine is over."""
        return bool(await conn.fetchval(_ENDED, allocation, machine))


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
    )
