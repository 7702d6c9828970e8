"""Registration: what an installer found, and what it did to the disks.

A registration starts a new generation: whatever was granted or proved for the machine before is void.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import asyncpg
from metal_kit.db import Connection
from metal_kit.errors import Aborted
from metal_kit.ids import made_before
from metalplane.inventory.v1.hardware_pb2 import Bios, BmcInfo, Hardware, WipeResult
from metalplane.inventory.v1.machine_pb2 import Link, Machine

from metal_inventory.lifecycle import EventType, State
from metal_inventory.sizes import UNKNOWN_SIZE
from metal_inventory.store.events import EventStore, Report
from metal_inventory.store.machines import MachineStore

_PARTS = "INSERT INTO machine_part (machine, kind, value) SELECT $1, * FROM unnest($2::text[], $3::text[])"
_BMC = """
INSERT INTO bmc (machine, address, mac) VALUES ($1, $2, $3)
ON CONFLICT (machine) DO UPDATE SET
    address = coalesce(nullif(excluded.address, ''), bmc.address), mac = coalesce(nullif(excluded.mac, ''), bmc.mac)
"""


@dataclass(frozen=True, slots=True)
class Cabling:
    """What fabric made of the machine's neighbours: a rack and links, or an error."""

    rack: str = ""
    links: Sequence[Link] = ()
    error: str = ""


@dataclass(frozen=True, slots=True)
class Registration:
    """One registration, checked."""

    session: str
    hardware: Hardware
    bios: Bios
    bmc: BmcInfo
    installer_version: str
    cabling: Cabling
    matching_sizes: Sequence[str] = ()


class RegistrationStore:
    """Writes registrations and wipe results."""

    def __init__(self, machines: MachineStore, events: EventStore) -> None:
        self._machines = machines
        self._events = events

    async def register(self, conn: Connection, row: asyncpg.Record, found: Registration) -> Machine:
        """Take in the registration of a locked machine.

        The same session again refreshes the facts and keeps generation, lease and proof: it is a retry. Raises Aborted
        for a session that began before the one that is known: its certificate outlived its boot.
        """
        if row["session"] is not None and made_before(found.session, str(row["session"])):
            raise Aborted("SUPERSEDED", f"machine {row['id']} has registered from a later boot than this one")
        again = str(row["session"]) == found.session
        report = Machine(hardware=found.hardware, bios=found.bios, links=found.cabling.links)
        changes: dict[str, object] = {}
        if again:
            report.wipe_results.extend(Machine.FromString(row["report"]).wipe_results)
        else:
            changes = {
                "generation": row["generation"] + 1,
                "session": found.session,
                "disks_clean": False,
                "quarantined_disks": [],
                "waiting": False,
            }
            await conn.execute("DELETE FROM waiting_lease WHERE machine = $1", row["id"])
        await self._machines.change(
            conn,
            row["id"],
            **changes,
            size=found.matching_sizes[0] if len(found.matching_sizes) == 1 else UNKNOWN_SIZE,
            matching_sizes=list(found.matching_sizes),
            installer_version=found.installer_version,
            rack=found.cabling.rack,
            cabled=bool(found.cabling.rack),
            cabling_error=found.cabling.error,
            report=report.SerializeToString(),
        )
        await self._index(conn, row, found.hardware)
        if found.bmc.address or found.bmc.mac:
            await conn.execute(_BMC, row["id"], found.bmc.address, found.bmc.mac)
        if not again and row["lifecycle"] != State.REGISTERING.name:
            # Installers report the event themselves, before they call; one that does not still leaves its trace.
            fresh = await self._machines.lock(conn, row["id"])
            await self._events.record(conn, fresh, [Report(EventType.REGISTERING)], publish=False)
        return await self._machines.publish(conn, row["id"])

    async def record_wipe(
        self, conn: Connection, row: asyncpg.Record, generation: int, results: Sequence[WipeResult]
    ) -> Machine:
        """Take in what a wipe did to the disks of a locked machine.

        Clean means: every disk of the registered hardware was wiped without error and was found empty afterwards.
        Raises Aborted when the machine has registered again since the wipe was granted.
        """
        require_generation(row, generation)
        report = Machine.FromString(row["report"])
        merged = {result.serial: result for result in report.wipe_results}
        merged |= {result.serial: result for result in results}
        failed = sorted(result.serial for result in merged.values() if result.error or not result.verified)
        clean = not failed and all(disk.serial in merged for disk in report.hardware.disks)
        ordered = [merged[serial] for serial in sorted(merged)]
        report.ClearField("wipe_results")
        report.wipe_results.extend(ordered)
        await self._machines.change(
            conn, row["id"], report=report.SerializeToString(), disks_clean=clean, quarantined_disks=failed
        )
        return await self._machines.publish(conn, row["id"])

    async def _index(self, conn: Connection, row: asyncpg.Record, hardware: Hardware) -> None:
        parts = sorted(
            {("nic_mac", nic.mac) for nic in hardware.nics} | {("disk_serial", disk.serial) for disk in hardware.disks}
        )
        await conn.execute("DELETE FROM machine_part WHERE machine = $1", row["id"])
        await conn.execute(_PARTS, row["id"], [kind for kind, _ in parts], [value for _, value in parts])


def require_generation(row: asyncpg.Record, generation: int) -> None:
    """Raise Aborted unless the caller speaks of the machine's present registration."""
    if row["generation"] != generation:
        raise Aborted(
            "GENERATION_STALE",
            f"machine {row['id']} has registered again: generation {generation} is over, {row['generation']} is now",
            field="generation",
            metadata={"generation": str(row["generation"])},
        )
