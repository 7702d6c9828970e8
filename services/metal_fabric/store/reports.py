"""What leaves have told about their last attempt and about themselves, and what was found in it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import asyncpg
from metal_kit.db import Connection

from metal_fabric.health import RIVAL_FORGOTTEN, Code, Facts, Finding, SessionCount
from metal_fabric.settings import ignored, of_stored
from metal_fabric.store.syncs import CONNECTED

_APPLY = """
    INSERT INTO leaf_report (switch_id, generation, phase, quarantine, apply) VALUES ($1, $2, $3, $4, $5)
    ON CONFLICT (switch_id) DO UPDATE
    SET generation = excluded.generation, phase = excluded.phase, quarantine = excluded.quarantine,
        apply = excluded.apply
"""
_BGP = """
    INSERT INTO leaf_report (switch_id, bgp, uplink_sessions, uplink_sessions_up, sessions, sessions_up)
    VALUES ($1, $2, $3, $4, $5, $6)
    ON CONFLICT (switch_id) DO UPDATE
    SET bgp = excluded.bgp, uplink_sessions = excluded.uplink_sessions,
        uplink_sessions_up = excluded.uplink_sessions_up, sessions = excluded.sessions,
        sessions_up = excluded.sessions_up
"""
_LLDP = """
    INSERT INTO leaf_report (switch_id, lldp) VALUES ($1, $2)
    ON CONFLICT (switch_id) DO UPDATE SET lldp = excluded.lldp
"""
_DRIFT = """
    INSERT INTO leaf_report (switch_id, drift) VALUES ($1, $2)
    ON CONFLICT (switch_id) DO UPDATE SET drift = excluded.drift
"""
_TOLD = "SELECT apply, bgp, lldp, drift FROM leaf_report WHERE switch_id = $1"
_DROP = """
    DELETE FROM finding
    WHERE switch_id = $1 AND source = $2
      AND (code, subject) NOT IN (SELECT * FROM unnest($3::text[], $4::text[]))
"""
_PUT = """
    INSERT INTO finding (switch_id, source, code, subject, message)
    SELECT $1, $2, * FROM unnest($3::text[], $4::text[], $5::text[])
    ON CONFLICT (switch_id, source, code, subject) DO UPDATE
    SET message = excluded.message, seen_time = clock_timestamp(),
        -- Such findings are not taken back but forgotten after a while, and then they begin anew.
        since_time = CASE WHEN excluded.source = 'name' AND finding.seen_time < clock_timestamp() - $6::interval
                          THEN clock_timestamp() ELSE finding.since_time END
"""
_FACTS = f"""
    SELECT s.id, clock_timestamp() AS now, s.desired_generation, y.applied_generation, y.error, y.seen_time,
           y.chassis,
           {CONNECTED} AS connected,
           g.create_time AS wanted_since, coalesce(r.phase, '') AS phase,
           CASE WHEN r.generation = s.desired_generation THEN r.quarantine ELSE '' END AS quarantine,
           coalesce(r.uplink_sessions, 0) AS uplink_sessions, coalesce(r.uplink_sessions_up, 0) AS uplink_sessions_up,
           coalesce(r.sessions, 0) AS sessions, coalesce(r.sessions_up, 0) AS sessions_up
    FROM switch s
    JOIN leaf_sync y ON y.switch_id = s.id
    LEFT JOIN leaf_report r ON r.switch_id = s.id
    LEFT JOIN switch_generation g ON g.switch_id = s.id AND g.generation = s.desired_generation
    WHERE s.id = ANY ($1)
    ORDER BY s.id
"""
_UPLINKS = "SELECT switch_id, name, reported FROM port WHERE uplink AND switch_id = ANY ($1) ORDER BY switch_id, name"
_FINDINGS = "SELECT * FROM finding WHERE switch_id = ANY ($1) ORDER BY switch_id, source, code, subject"
# Of few switches is anything set about ports at all.
_SHAPED = "SELECT id, partition, settings FROM switch WHERE id = ANY ($1) AND settings ? 'ports'"
_HAS_PORTS = "SELECT name FROM port WHERE switch_id = $1 AND name = ANY ($2)"
_IDS = "SELECT id FROM switch WHERE id > $1 ORDER BY id LIMIT $2"


@dataclass(frozen=True)
class Told:
    """Reports of a leaf as they came, serialised; empty for what it has not told."""

    apply: bytes = b""
    bgp: bytes = b""
    lldp: bytes = b""
    drift: bytes = b""


class ReportStore:
    """Reports, by switch id."""

    async def put_apply(
        self, conn: Connection, switch_id: str, *, generation: int, phase: str, quarantine: str, report: bytes
    ) -> None:
        """Keep how the last attempt ended."""
        await conn.execute(_APPLY, switch_id, generation, phase, quarantine, report)

    async def put_bgp(self, conn: Connection, switch_id: str, report: bytes, count: SessionCount) -> None:
        """Keep the BGP sessions."""
        await conn.execute(_BGP, switch_id, report, count.uplinks, count.uplinks_up, count.all, count.all_up)

    async def put_lldp(self, conn: Connection, switch_id: str, report: bytes) -> None:
        """Keep the LLDP neighbours."""
        await conn.execute(_LLDP, switch_id, report)

    async def put_drift(self, conn: Connection, switch_id: str, report: bytes) -> None:
        """Keep what somebody else has changed."""
        await conn.execute(_DRIFT, switch_id, report)

    async def told(self, conn: Connection, switch_id: str) -> Told:
        """What the leaf has told last."""
        row = await conn.fetchrow(_TOLD, switch_id)
        return Told(*(value or b"" for value in row)) if row is not None else Told()


class FindingStore:
    """Findings and the facts about health, by switch id."""

    async def put(self, conn: Connection, switch_id: str, source: str, findings: Collection[Finding]) -> None:
        """Make the findings of one source the given ones; one that was there keeps its beginning."""
        codes, subjects = [each.code.value for each in findings], [_text(each.subject) for each in findings]
        await conn.execute(_DROP, switch_id, source, codes, subjects)
        if findings:
            messages = [_text(each.message) for each in findings]
            await conn.execute(_PUT, switch_id, source, codes, subjects, messages, RIVAL_FORGOTTEN)

    async def drop(self, conn: Connection, switch_id: str, source: str, subject: str) -> None:
        """Forget the findings of one source about a subject."""
        query = "DELETE FROM finding WHERE switch_id = $1 AND source = $2 AND subject = $3"
        await conn.execute(query, switch_id, source, subject)

    async def ids(self, conn: Connection, *, after: str, limit: int) -> list[str]:
        """Ids of switches after one of them."""
        return [row["id"] for row in await conn.fetch(_IDS, after, limit)]

    async def facts(self, conn: Connection, ids: Sequence[str]) -> dict[str, Facts]:
        """What the health of these leaves is told from, by id; switches that never registered are left out."""
        ports: dict[str, list[asyncpg.Record]] = {}
        for row in await conn.fetch(_UPLINKS, ids):
            ports.setdefault(row["switch_id"], []).append(row)
        findings: dict[str, list[Finding]] = {}
        for row in await conn.fetch(_FINDINGS, ids):
            findings.setdefault(row["switch_id"], []).append(_finding(row))
        for row in await conn.fetch(_SHAPED, ids):
            findings.setdefault(row["id"], []).extend(await self._ignored(conn, row))
        return {
            row["id"]: _facts(row, ports.get(row["id"], ()), tuple(findings.get(row["id"], ())))
            for row in await conn.fetch(_FACTS, ids)
        }

    async def _ignored(self, conn: Connection, row: asyncpg.Record) -> list[Finding]:
        """What is set about ports of a switch and not heeded. Not stored: it is over when the settings are others."""
        settings = of_stored(row["settings"])
        why = {port.name: ignored(port, settings.additional_bridge_ports, row["partition"]) for port in settings.ports}
        wrong = {name: message for name, message in why.items() if message}
        if not wrong:
            return []
        there = await conn.fetch(_HAS_PORTS, row["id"], list(wrong))
        return [Finding(Code.PORT_SETTING_IGNORED, name, wrong[name]) for (name,) in sorted(map(tuple, there))]


def _text(said: str) -> str:
    # Names of ports and VRFs are the leaf's, and Postgres takes no NUL in a text.
    return said.replace("\0", "\ufffd")


def _finding(row: asyncpg.Record) -> Finding:
    return Finding(Code(row["code"]), row["subject"], row["message"], row["since_time"], row["seen_time"])


def _facts(row: asyncpg.Record, ports: Sequence[asyncpg.Record], findings: tuple[Finding, ...]) -> Facts:
    return Facts(
        switch_id=row["id"],
        desired=row["desired_generation"],
        applied=row["applied_generation"],
        wanted_since=row["wanted_since"],
        error=row["error"],
        phase=row["phase"],
        quarantine=row["quarantine"],
        connected=row["connected"],
        seen=row["seen_time"],
        uplinks=tuple(port["name"] for port in ports),
        uplinks_down=tuple(port["name"] for port in ports if port["reported"] == "down"),
        findings=findings,
        sessions=SessionCount(row["uplink_sessions"], row["uplink_sessions_up"], row["sessions"], row["sessions_up"]),
        now=row["now"],
        chassis=row["chassis"],
    )
