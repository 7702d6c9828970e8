"""What the agent has to tell → messages of the contract, cut to what they can carry. No rules."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from metalplane.fabric.v1.agent_pb2 import ApplyReport, ConnectRequest, Observations, ObservedPort, PhoneHome
from metalplane.fabric.v1.observation_pb2 import (
    BgpFamily,
    BgpSession,
    BgpSessions,
    BgpState,
    LeafDifferences,
    LldpNeighbours,
)
from metalplane.fabric.v1.observation_pb2 import Drift as WireDrift
from metalplane.fabric.v1.observation_pb2 import DriftState as WireDriftState

from metal_core.bgp_state import Session
from metal_core.compare import Differences
from metal_core.drift import Drift, DriftState
from metal_core.observe import Neighbour
from metal_core.told import Batch, RunEnded
from metal_core.wire import state_of

# Limits of the contract, so that a long complaint or a chatty machine does not cost the whole stream.
_ERROR, _MESSAGE, _NOTES = 4096, 1024, 32
_DIFFERENCES, _LINE, _NAME, _TEXT, _SHORT, _PHASE = 100, 512, 128, 255, 63, 32
# Neighbours and sessions in one report.
MOST = 1024

_BGP_STATES: Mapping[str, BgpState.ValueType] = {
    "Idle": BgpState.BGP_STATE_IDLE,
    "Connect": BgpState.BGP_STATE_CONNECT,
    "Active": BgpState.BGP_STATE_ACTIVE,
    "OpenSent": BgpState.BGP_STATE_OPEN_SENT,
    "OpenConfirm": BgpState.BGP_STATE_OPEN_CONFIRM,
    "Established": BgpState.BGP_STATE_ESTABLISHED,
}
_DRIFT_STATES: Mapping[DriftState, WireDriftState.ValueType] = {
    DriftState.NONE: WireDriftState.DRIFT_STATE_NONE,
    DriftState.REPORTED: WireDriftState.DRIFT_STATE_REPORTED,
    DriftState.CORRECTED: WireDriftState.DRIFT_STATE_CORRECTED,
    DriftState.FAILED: WireDriftState.DRIFT_STATE_FAILED,
}


def request_of(report_id: str, content: RunEnded | Batch) -> ConnectRequest:
    """What is to be sent of `content`."""
    if isinstance(content, RunEnded):
        return ConnectRequest(apply_report=_apply_report_of(report_id, content))
    return ConnectRequest(observations=_observations_of(report_id, content))


def _apply_report_of(report_id: str, ended: RunEnded) -> ApplyReport:
    outcome = ended.outcome
    report = ApplyReport(
        id=report_id,
        generation=ended.generation,
        hash=ended.digest,
        applied=outcome.applied,
        error=_text(outcome.error)[:_ERROR],
        notes=[_text(note) for note in outcome.notes[:_NOTES]],
        phase=outcome.phase[:_PHASE],
        quarantine=_text(outcome.quarantined)[:_ERROR],
    )
    if outcome.differences:
        report.differences.CopyFrom(_differences_of(outcome.differences))
    if outcome.is_at is not None:
        report.standing_generation, report.standing_hash = outcome.is_at.generation, outcome.is_at.digest
    for phase, seconds in outcome.durations.items():
        report.durations[phase].FromNanoseconds(int(seconds * 1e9))
    report.time.FromNanoseconds(int(ended.time * 1e9))
    return report


def _observations_of(report_id: str, batch: Batch) -> Observations:
    observations = Observations(
        id=report_id, ports=[ObservedPort(name=name, state=state_of(state)) for name, state in batch.states.items()]
    )
    for seen in batch.announcements:
        home = PhoneHome(port=seen.port, machine=seen.machine, message=_text(seen.description)[:_MESSAGE])
        home.time.FromNanoseconds(int(seen.time * 1e9))
        observations.phone_homes.append(home)
    if (looked := batch.neighbours) is not None:
        observations.lldp.CopyFrom(_neighbours_message(looked.neighbours or (), looked.time))
    if (looked := batch.sessions) is not None:
        observations.bgp.CopyFrom(_sessions_message(looked.sessions or (), looked.time))
    if batch.drift is not None:
        observations.drift.CopyFrom(_drift_message(batch.drift))
    return observations


def _neighbours_message(neighbours: Iterable[Neighbour], at: float) -> LldpNeighbours:
    message = LldpNeighbours()
    message.time.FromNanoseconds(int(at * 1e9))
    for each in list(neighbours)[:MOST]:
        message.neighbours.add(
            port=each.port,
            chassis_id=_text(each.chassis)[:_TEXT],
            port_id=_text(each.port_id)[:_TEXT],
            system_name=_text(each.system_name)[:_TEXT],
            management_address=_text(each.management_address)[:_TEXT],
        )
    return message


def _sessions_message(sessions: Iterable[Session], at: float) -> BgpSessions:
    message = BgpSessions()
    message.time.FromNanoseconds(int(at * 1e9))
    message.sessions.extend(_session_message(each) for each in list(sessions)[:MOST])
    return message


def _drift_message(drift: Drift) -> WireDrift:
    message = WireDrift(
        state=_DRIFT_STATES[drift.state], generation=drift.generation, differences=_differences_of(drift.differences)
    )
    message.time.FromNanoseconds(int(drift.time * 1e9))
    return message


def _differences_of(differences: Differences) -> LeafDifferences:
    message = LeafDifferences(
        frr_lines=[_text(line)[:_LINE] for line in differences.lines[:_DIFFERENCES]],
        row_count=len(differences.rows),
        frr_line_count=len(differences.lines),
    )
    for row in differences.rows[:_DIFFERENCES]:
        message.rows.add(
            table=_text(row.table)[:_NAME],
            key=_text(row.key)[:_TEXT],
            field=_text(row.field)[:_NAME],
            wanted=None if row.wanted is None else _text(row.wanted)[:_LINE],
            found=None if row.found is None else _text(row.found)[:_LINE],
        )
    return message


def _session_message(session: Session) -> BgpSession:
    message = BgpSession(
        vrf=_text(session.vrf)[:_SHORT],
        port=_text(session.port)[:_SHORT],
        state=_BGP_STATES.get(session.state, BgpState.BGP_STATE_UNSPECIFIED),
        drops=session.drops,
        peer_group=_text(session.peer_group)[:_SHORT],
        hostname=_text(session.hostname)[:_TEXT],
        last_reset=_text(session.last_reset)[:_TEXT],
    )
    if session.since:
        message.establish_time.FromSeconds(session.since)
    families = dict(session.families)
    for name, field in (("ipv4", message.ipv4), ("ipv6", message.ipv6), ("evpn", message.evpn)):
        if family := families.get(name):
            field.CopyFrom(BgpFamily(accepted=family.accepted, sent=family.sent, prefix_limit=family.limit))
    return message


def _text(said: str) -> str:
    """What a message can carry of a text from Redis, where bytes that are not UTF-8 stand as lone surrogates.

    A tenant's machine writes its LLDP description itself; refusing to send it would end the agent, again and again.
    """
    return said.encode("utf-8", "replace").decode("utf-8")
