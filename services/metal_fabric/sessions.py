"""What a leaf's BGP sessions and its drift say about how it is. Pure rules over what the leaf reported."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from metalplane.fabric.v1.observation_pb2 import BgpSession, BgpSessions, BgpState, Drift, DriftState

from metal_fabric.health import Code, Finding, SessionCount

# The peer group that metal-core puts sessions to spines into.
UPLINKS = "FABRIC"
# A session that reaches its limit is ended by FRR, and with it what is behind it.
_NEAR_TENTHS = 9
_SHOWN = 200


def count(sessions: BgpSessions) -> SessionCount:
    """How many sessions there are, and how many of them are established."""
    uplinks = [each for each in sessions.sessions if each.peer_group == UPLINKS]
    return SessionCount(len(uplinks), sum(map(_up, uplinks)), len(sessions.sessions), sum(map(_up, sessions.sessions)))


def session_findings(sessions: BgpSessions) -> list[Finding]:
    """Sessions to spines that are down, and any that are near their limit of prefixes.

    That a machine's session is down is no finding: whoever holds it may switch it off.
    """
    uplinks = [each for each in sessions.sessions if each.peer_group == UPLINKS]
    down = [each for each in uplinks if not _up(each)]
    found = [Finding(Code.UPLINK_SESSION_DOWN, each.port, _down(each)) for each in down]
    if uplinks and len(down) == len(uplinks):
        ports = ", ".join(each.port for each in uplinks)
        found = [Finding(Code.NO_UPLINK_SESSION, "", f"no BGP session to a spine is established, of {ports}")]
    return [*found, *_near_limits(sessions.sessions)]


def drift_findings(drift: Drift) -> list[Finding]:
    """What somebody else has changed on the leaf and is still there."""
    if drift.state == DriftState.DRIFT_STATE_REPORTED:
        return [Finding(Code.DRIFT, "", f"{differing(drift)}; left as it is, as the policy says")]
    if drift.state == DriftState.DRIFT_STATE_FAILED:
        return [Finding(Code.DRIFT_NOT_CORRECTED, "", f"{differing(drift)}; correcting it failed")]
    return []


def differing(drift: Drift) -> str:
    """What differs, for people: how much, and the first of it."""
    rows, lines = drift.differences.rows, drift.differences.frr_lines
    first = ""
    if rows:
        first = f"{rows[0].table}|{rows[0].key}" + (f" {rows[0].field}" if rows[0].field else "")
    elif lines:
        first = lines[0]
    counted = f"{drift.differences.row_count} differences in CONFIG_DB, {drift.differences.frr_line_count} in FRR"
    return f"{counted}, first {first[:_SHOWN]!r}" if first else counted


def _near_limits(sessions: Iterable[BgpSession]) -> Iterator[Finding]:
    for session in sessions:
        for name in ("ipv4", "ipv6", "evpn"):
            family = getattr(session, name)
            if family.prefix_limit and family.accepted * 10 >= family.prefix_limit * _NEAR_TENTHS:
                yield Finding(
                    Code.PREFIX_LIMIT_NEAR,
                    f"{session.vrf} {session.port} {name}",
                    f"the neighbour on {session.port} in VRF {session.vrf} announces {family.accepted} {name} prefixes "
                    f"of at most {family.prefix_limit}; beyond that the session is ended",
                )


def _down(session: BgpSession) -> str:
    state = BgpState.Name(session.state).removeprefix("BGP_STATE_").replace("_", " ").lower()
    why = f", last lost: {session.last_reset[:_SHOWN]}" if session.last_reset else ""
    return f"the BGP session to the spine on {session.port} is {state}, not established{why}"


def _up(session: BgpSession) -> bool:
    return session.state == BgpState.BGP_STATE_ESTABLISHED
