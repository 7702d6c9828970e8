"""What BMCs report about their machines. Credentials are the BMC service's and never get here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

import asyncpg
from metal_kit.db import Connection
from metalplane.inventory.v1.hardware_pb2 import BmcInfo

from metal_inventory.snapshot import POWER_NAMES
from metal_inventory.store.machines import MachineStore, no_partition

_CREATE = """
WITH fresh AS (
    INSERT INTO machine (id, partition) SELECT id, $2 FROM unnest($1::uuid[]) AS id ORDER BY id
    ON CONFLICT (id) DO NOTHING RETURNING id
)
INSERT INTO lifecycle (machine) SELECT id FROM fresh RETURNING machine::text
"""
# In the order of ids, so that two reports with the same machines cannot wait for each other in a circle.
_LOCK = "SELECT id::text, partition FROM machine WHERE id = ANY ($1::uuid[]) ORDER BY machine.id FOR NO KEY UPDATE"
_KNOWN = """
SELECT machine::text, address, mac, firmware, power, fru, fault_reason, fault, fault_since FROM bmc
WHERE machine = ANY ($1::uuid[])
"""
_UPSERT = """
INSERT INTO bmc (machine, address, mac, firmware, power, fru, fault_reason, fault, fault_since, observed_at)
SELECT * FROM unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::text[], $6::bytea[], $7::text[], $8::text[],
    $9::timestamptz[], $10::timestamptz[])
ON CONFLICT (machine) DO UPDATE SET
    address = excluded.address, mac = excluded.mac, firmware = excluded.firmware, power = excluded.power,
    fru = excluded.fru, fault_reason = excluded.fault_reason, fault = excluded.fault,
    fault_since = excluded.fault_since, observed_at = greatest(excluded.observed_at, bmc.observed_at)
"""
Facts = tuple[str, str, str, str, bytes, str, str, datetime | None]


class BmcStore:
    """Takes in reports, a partition's many at a time."""

    def __init__(self, machines: MachineStore) -> None:
        self._machines = machines

    async def report(
        self, conn: Connection, partition: str, reports: Mapping[str, BmcInfo]
    ) -> tuple[Sequence[str], Sequence[str]]:
        """Take in reports by machine; the machines that were created, and those that another partition claims.

        A report that repeats what is known only moves its time. What a report leaves empty keeps its old value, but for
        the fault: that is over then.
        Raises FailedPrecondition when the partition does not exist.
        """
        ids = sorted(reports)
        try:
            created = [row["machine"] for row in await conn.fetch(_CREATE, ids, partition)]
        except asyncpg.ForeignKeyViolationError as error:
            raise no_partition(partition) from error
        locked = {row["id"]: row["partition"] for row in await conn.fetch(_LOCK, ids)}
        refused = [id_ for id_, owner in locked.items() if owner not in (partition, None)]
        mine = [id_ for id_ in locked if id_ not in refused]
        known = {row["machine"]: _known(row) for row in await conn.fetch(_KNOWN, mine)}
        facts = {id_: _merged(reports[id_], known.get(id_)) for id_ in mine}
        times = [
            reports[id_].observed_time.ToDatetime(tzinfo=UTC) if reports[id_].HasField("observed_time") else None
            for id_ in mine
        ]
        columns = list(zip(*facts.values(), strict=True)) or [()] * 8
        await conn.execute(_UPSERT, mine, *columns, times)
        for id_ in mine:
            adopted = locked[id_] is None
            if adopted or facts[id_] != known.get(id_):
                await self._machines.change(conn, id_, **({"partition": partition} if adopted else {}))
                await self._machines.publish(conn, id_)
        return created, refused


def _known(row: asyncpg.Record) -> Facts:
    known = (row["address"], row["mac"], row["firmware"], row["power"], row["fru"])
    return (*known, row["fault_reason"], row["fault"], row["fault_since"])


def _merged(info: BmcInfo, known: Facts | None) -> Facts:
    power, fru = POWER_NAMES[info.power], info.fru.SerializeToString(deterministic=True)
    since = info.fault.since.ToDatetime(tzinfo=UTC) if info.fault.HasField("since") else None
    fault = (info.fault.reason, info.fault.message, since)
    if known is None:
        return info.address, info.mac, info.version, power, fru, *fault
    return (
        info.address or known[0],
        info.mac or known[1],
        info.version or known[2],
        known[3] if power == "UNSPECIFIED" else power,
        fru or known[4],
        *fault,
    )
