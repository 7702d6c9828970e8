"""Switches as they are shown: with what their ports are used for and how far the leaf has followed."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

import asyncpg
from metal_kit.db import Connection

from metal_fabric.attachment import HeldPorts
from metal_fabric.desired import role_of
from metal_fabric.filters import PortRole, Wish
from metal_fabric.health import Facts
from metal_fabric.settings import NOTHING_SET, Settings, of_stored
from metal_fabric.store.attachments import AttachmentStore
from metal_fabric.store.pins import Pin
from metal_fabric.store.reports import FindingStore, ReportStore, Told
from metal_fabric.store.switches import facts_of, port_of
from metal_fabric.store.syncs import CONNECTED, Sync
from metal_fabric.switch import Port, SwitchFacts, SwitchKind, SwitchMode

_SWITCHES = f"""
    SELECT s.*, y.applied_generation, y.applied_hash, y.apply_time, y.error, y.notes, y.seen_time,
           coalesce({CONNECTED}, false) AS connected,
           p.generation AS pin_generation, p.reason AS pin_reason, p.create_time AS pin_time,
           CASE WHEN s.kind = 'leaf' AND f.version <> s.settings_version THEN (
               SELECT array_agg(o.id ORDER BY o.id)
               FROM switch o LEFT JOIN leaf_sync oy ON oy.switch_id = o.id
               WHERE o.partition = s.partition AND o.rack = s.rack AND o.kind = 'leaf'
                   AND o.settings_version = f.version AND coalesce(oy.applied_generation, 0) < o.desired_generation
           ) END AS settings_wait_for
    FROM switch s
    LEFT JOIN leaf_sync y ON y.switch_id = s.id
    LEFT JOIN switch_pin p ON p.switch_id = s.id
    LEFT JOIN fabric_settings f ON f.partition = s.partition
    WHERE s.id = ANY ($1)
    ORDER BY s.id
"""
_PORTS = """
    SELECT p.*, c.machine, c.nic_mac, coalesce(a.role, 'unprovisioned') AS role, coalesce(a.vrf, 0) AS vrf
    FROM port p
    LEFT JOIN cable c ON c.switch_id = p.switch_id AND c.port = p.name
    LEFT JOIN attachment a ON a.machine = c.machine
    WHERE p.switch_id = ANY ($1)
"""
_PAGE = """
    SELECT id FROM switch
    WHERE id > $1 AND ($2 = '' OR partition = $2) AND ($3 = '' OR rack = $3)
    ORDER BY id LIMIT $4
"""


@dataclass(frozen=True)
class PortUse:
    """A port and what it is used for; `machine` and `nic_mac` are empty when nothing hangs on it, `vrf` 0 for none."""

    port: Port
    role: PortRole
    vrf: int = 0
    machine: str = ""
    nic_mac: str = ""


@dataclass(frozen=True)
class SwitchView:
    """A switch as it is shown."""

    id: str
    facts: SwitchFacts
    description: str
    version: int
    create_time: datetime
    update_time: datetime
    sync: Sync
    kind: SwitchKind = SwitchKind.LEAF
    mode: SwitchMode = SwitchMode.OPERATIONAL
    settings: Settings = NOTHING_SET
    settings_wait_for: tuple[str, ...] = ()
    pin: Pin | None = None
    ports: list[PortUse] = field(default_factory=list)
    health: Facts | None = None
    """What its health is told from; None where that was not asked, or nothing ever registered."""
    told: Told = field(default_factory=Told)
    held: list[HeldPorts] = field(default_factory=list)


class ViewStore:
    """Reads only."""

    def __init__(self) -> None:
        self._attachments = AttachmentStore()
        self._reports = ReportStore()
        self._findings = FindingStore()

    async def describe(self, conn: Connection, switch_id: str) -> SwitchView | None:
        """One switch, with its health and all that its leaf has told."""
        view = await self.get(conn, switch_id)
        if view is None:
            return None
        (whole,) = await self.with_health(conn, [view])
        return replace(whole, told=await self._reports.told(conn, switch_id))

    async def with_health(self, conn: Connection, views: Sequence[SwitchView]) -> list[SwitchView]:
        """The same switches with what their health is told from."""
        facts = await self._findings.facts(conn, [view.id for view in views])
        return [replace(view, health=facts.get(view.id)) for view in views]

    async def get(self, conn: Connection, switch_id: str) -> SwitchView | None:
        """One switch."""
        views = await self.load(conn, [switch_id])
        return views[0] if views else None

    async def page(self, conn: Connection, *, after: str, partition: str, rack: str, limit: int) -> list[SwitchView]:
        """Switches after an id, by id, of one partition and rack if given."""
        rows = await conn.fetch(_PAGE, after, partition, rack, limit)
        return await self.load(conn, [row["id"] for row in rows])

    async def load(self, conn: Connection, ids: Collection[str]) -> list[SwitchView]:
        """These switches, by id."""
        views = {row["id"]: _view(row) for row in await conn.fetch(_SWITCHES, list(ids))}
        for row in await conn.fetch(_PORTS, list(views)):
            view, port = views[row["switch_id"]], port_of(row)
            additional, wish = view.settings.additional_bridge_ports, Wish(PortRole(row["role"]))
            view.ports.append(
                PortUse(
                    port=port,
                    role=role_of(port, wish, occupied=row["machine"] is not None, additional=additional),
                    vrf=row["vrf"],
                    machine=str(row["machine"]) if row["machine"] else "",
                    nic_mac=row["nic_mac"] or "",
                )
            )
        for switch_id, held in (await self._attachments.held(conn, list(views))).items():
            views[switch_id].held.extend(held)
        return list(views.values())


def _view(row: asyncpg.Record) -> SwitchView:
    sync = Sync(
        desired=row["desired_generation"],
        applied=row["applied_generation"] or 0,
        applied_hash=row["applied_hash"] or "",
        apply_time=row["apply_time"],
        error=row["error"] or "",
        notes=tuple(row["notes"] or ()),
        seen=row["seen_time"],
        connected=row["connected"],
    )
    return SwitchView(
        id=row["id"],
        facts=facts_of(row),
        description=row["description"],
        version=row["version"],
        create_time=row["create_time"],
        update_time=row["update_time"],
        sync=sync,
        kind=SwitchKind(row["kind"]),
        mode=SwitchMode(row["mode"]),
        settings=of_stored(row["settings"]),
        settings_wait_for=tuple(row["settings_wait_for"] or ()),
        pin=Pin(row["pin_generation"], row["pin_reason"], row["pin_time"]) if row["pin_generation"] else None,
    )
