"""What leaves see: port states, installed systems, BGP sessions, neighbours, and what others have changed on them.

Each kind is a transaction of its own and may be repeated. What is wrong in it is kept as findings, beside the report.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta

from metal_kit.db import Connection, Database
from metal_kit.errors import Aborted
from metal_kit.ids import parse_uuid
from metal_kit.logs import get_logger
from metalplane.fabric.v1.agent_pb2 import Observations, PhoneHome
from metalplane.fabric.v1.observation_pb2 import BgpSessions, Drift, DriftState, LldpNeighbours

from metal_fabric.cabling import host_key
from metal_fabric.messages import STATE_OF
from metal_fabric.planner import Planner
from metal_fabric.sessions import count, differing, drift_findings, session_findings
from metal_fabric.store import CableStore, FindingStore, ReportStore, SwitchStore, SyncStore
from metal_fabric.verification import Announced, verify

log = get_logger(__name__)

# An installed system announces itself every few seconds, on every cable; one event in this time tells as much.
SEEN_EVERY = timedelta(seconds=30)


class Observed:
    """Takes in what leaves see. Methods raise Aborted when another session speaks for the leaf."""

    def __init__(self, db: Database, planner: Planner) -> None:
        self._db = db
        self._planner = planner
        self._switches = SwitchStore()
        self._cables = CableStore()
        self._syncs = SyncStore()
        self._reports = ReportStore()
        self._findings = FindingStore()

    async def take(self, switch_id: str, session: str, partition: str, observations: Observations) -> None:
        """Take in one report."""
        if observations.ports:
            await self._ports(switch_id, session, observations)
        if observations.phone_homes:
            await self._homes(switch_id, session, partition, observations.phone_homes)
        if observations.HasField("bgp"):
            await self._bgp(switch_id, session, observations.bgp)
        if observations.HasField("lldp"):
            await self._lldp(switch_id, session, observations.lldp)
        if observations.HasField("drift"):
            await self._drift(switch_id, session, observations.drift)

    async def _ports(self, switch_id: str, session: str, observations: Observations) -> None:
        async with self._db.transaction(purpose="port states") as conn:
            states = {port.name: STATE_OF[port.state] for port in observations.ports}
            await self._switches.lock(conn, [switch_id])
            await demand_speaker(conn, switch_id, session)
            if await self._switches.report(conn, switch_id, states):
                await self._planner.switch_changed(conn, switch_id)

    async def _homes(self, switch_id: str, session: str, partition: str, homes: Iterable[PhoneHome]) -> None:
        async with self._db.transaction(purpose="phone homes") as conn:
            await demand_speaker(conn, switch_id, session)
            behind = {cable.port: cable.machine for cable in await self._cables.of_switches(conn, [switch_id])}
            # By machine, so that the two leaves of a pair do not wait for each other's rows.
            for phone_home in sorted(homes, key=lambda each: each.machine.lower()):
                await self._seen(conn, switch_id, partition, phone_home, behind.get(phone_home.port, ""))

    async def _bgp(self, switch_id: str, session: str, sessions: BgpSessions) -> None:
        async with self._db.transaction(purpose="bgp sessions") as conn:
            await demand_speaker(conn, switch_id, session)
            await self._reports.put_bgp(conn, switch_id, sessions.SerializeToString(), count(sessions))
            await self._findings.put(conn, switch_id, "bgp", session_findings(sessions))

    async def _lldp(self, switch_id: str, session: str, neighbours: LldpNeighbours) -> None:
        announced = [
            Announced(each.port, each.chassis_id, each.port_id, each.system_name) for each in neighbours.neighbours
        ]
        macs = {mac for each in announced for mac in each.macs}
        machines = {each.machine for each in announced} - {""}
        async with self._db.transaction(purpose="lldp neighbours") as conn:
            await demand_speaker(conn, switch_id, session)
            known = set(await self._cables.of_switches(conn, [switch_id]))
            known |= set(await self._cables.of_announced(conn, macs, machines))
            switches = await self._switches.by_host(conn, {each.system_name for each in announced})
            findings = verify(switch_id, announced, known, {host_key(each) for each in switches})
            await self._reports.put_lldp(conn, switch_id, neighbours.SerializeToString())
            await self._findings.put(conn, switch_id, "lldp", findings)

    async def _drift(self, switch_id: str, session: str, drift: Drift) -> None:
        async with self._db.transaction(purpose="drift") as conn:
            await demand_speaker(conn, switch_id, session)
            if drift.state != DriftState.DRIFT_STATE_NONE:
                # That it is gone is no reason to forget what it was.
                await self._reports.put_drift(conn, switch_id, drift.SerializeToString())
            await self._findings.put(conn, switch_id, "drift", drift_findings(drift))
        if drift.state == DriftState.DRIFT_STATE_NONE:
            log.info("leaf.drift_gone", switch=switch_id)
        else:
            log.warning("leaf.drift", switch=switch_id, state=DriftState.Name(drift.state), differs=differing(drift))

    async def _seen(self, conn: Connection, switch_id: str, partition: str, phone_home: PhoneHome, behind: str) -> None:
        machine = parse_uuid(phone_home.machine, field="observations.phone_homes.machine")
        if machine != behind:
            # A tenant's system can announce itself under any name; only the cable tells who it is.
            log.warning("leaf.stranger", switch=switch_id, port=phone_home.port, says=machine, cabled=behind)
            return
        version = await self._syncs.sight(conn, machine, SEEN_EVERY)
        if version is not None:
            phone_home.machine = machine
            await self._planner.machine_seen(conn, switch_id, partition, phone_home, version)


async def demand_speaker(conn: Connection, switch_id: str, session: str) -> None:
    """Raise Aborted when another session speaks for the leaf.

    What an older stream left behind may be read at any time, and the leaf has said something newer since. It tells
    again on its new stream what nobody has acknowledged.
    """
    if not await SyncStore().speaks(conn, switch_id, session):
        raise superseded()


def superseded() -> Aborted:
    """What ends the older of two streams of a leaf."""
    return Aborted("STREAM_SUPERSEDED", "a newer stream of this leaf has taken over")
