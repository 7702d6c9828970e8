"""How a switch is, and why.

Pure rules. What the leaf told (its attempts, its ports) and what was found in its reports become reasons; the worst one
says how the switch is. Sessions of machines are no reason: whoever holds a machine may switch it off.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum

# A leaf follows within a second or two; what takes longer than this is not on its way any more.
BEHIND = timedelta(seconds=30)
# A box that has not tried to take the name for so long has been dealt with.
RIVAL_FORGOTTEN = timedelta(minutes=10)
# Where the refused box or the connected one has no base MAC address, and the first is still refused after this time, it
# is not the same one: that one's old stream would count as gone by now.
STILL_ITSELF = timedelta(seconds=20)
_SHOWN = 300


class Health(StrEnum):
    """How a switch is, as `SwitchHealth` of the contract says."""

    HEALTHY = "healthy"
    DEGRADED = "degraded"
    UNHEALTHY = "unhealthy"
    UNKNOWN = "unknown"


class Code(StrEnum):
    """Why a switch is not well. The names are for programs and do not change."""

    NOT_CONNECTED = "NOT_CONNECTED"
    QUARANTINED = "QUARANTINED"
    APPLY_FAILED = "APPLY_FAILED"
    BEHIND = "BEHIND"
    NO_UPLINK = "NO_UPLINK"
    UPLINK_DOWN = "UPLINK_DOWN"
    NO_UPLINK_SESSION = "NO_UPLINK_SESSION"
    UPLINK_SESSION_DOWN = "UPLINK_SESSION_DOWN"
    PREFIX_LIMIT_NEAR = "PREFIX_LIMIT_NEAR"
    DRIFT = "DRIFT"
    DRIFT_NOT_CORRECTED = "DRIFT_NOT_CORRECTED"
    CABLE_MOVED = "CABLE_MOVED"
    CABLES_SWAPPED = "CABLES_SWAPPED"
    OTHER_MACHINE = "OTHER_MACHINE"
    SWITCH_ON_MACHINE_PORT = "SWITCH_ON_MACHINE_PORT"
    NAME_TAKEN = "NAME_TAKEN"
    PORT_SETTING_IGNORED = "PORT_SETTING_IGNORED"


_MAKES = {
    Code.NOT_CONNECTED: Health.UNKNOWN,
    Code.QUARANTINED: Health.UNHEALTHY,
    Code.APPLY_FAILED: Health.UNHEALTHY,
    Code.BEHIND: Health.UNHEALTHY,
    Code.NO_UPLINK: Health.UNHEALTHY,
    Code.NO_UPLINK_SESSION: Health.UNHEALTHY,
    Code.DRIFT_NOT_CORRECTED: Health.UNHEALTHY,
}
_ORDER = (Health.UNKNOWN, Health.UNHEALTHY, Health.DEGRADED, Health.HEALTHY)


@dataclass(frozen=True)
class Finding:
    """Something wrong that was found in a report; `subject` is the port or the like that is meant, empty for all.

    `since` and `seen` are when it was first and last found; None before it is stored.
    """

    code: Code
    subject: str
    message: str
    since: datetime | None = None
    seen: datetime | None = None


@dataclass(frozen=True)
class Reason:
    """Why a switch is not well; `since` as far as that is known."""

    code: Code
    message: str
    since: datetime | None = None
    subject: str = ""

    @property
    def health(self) -> Health:
        """How bad it makes the switch."""
        return _MAKES.get(self.code, Health.DEGRADED)


@dataclass(frozen=True)
class SessionCount:
    """BGP sessions of a leaf: those to spines, those of them that are established, all, all that are established."""

    uplinks: int = 0
    uplinks_up: int = 0
    all: int = 0
    all_up: int = 0


@dataclass(frozen=True)
class Facts:
    """What the health of a leaf is told from.

    `now` is the database's time, `wanted_since` when the newest generation was made, `quarantine` why the leaf does not
    try it again, `error` why its last attempt failed in `phase`. `uplinks` and `uplinks_down` are names of ports.
    `chassis` is the box that speaks for the leaf, empty when it does not say.
    """

    switch_id: str
    now: datetime
    desired: int
    applied: int
    wanted_since: datetime | None = None
    error: str = ""
    phase: str = ""
    quarantine: str = ""
    connected: bool = False
    seen: datetime | None = None
    uplinks: tuple[str, ...] = ()
    uplinks_down: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()
    sessions: SessionCount = field(default_factory=SessionCount)
    chassis: str = ""


def assess(facts: Facts) -> list[Reason]:
    """What a leaf is not well for, the worst first."""
    reasons = [*_following(facts), *_links(facts)]
    for finding in facts.findings:
        if finding.code is Code.NAME_TAKEN and not _rival(finding, facts):
            continue
        reasons.append(Reason(finding.code, finding.message, finding.since, finding.subject))
    return sorted(reasons, key=lambda reason: (_ORDER.index(reason.health), reason.code, reason.subject))


def health_of(reasons: Iterable[Reason]) -> Health:
    """How a switch with these reasons is."""
    return min((reason.health for reason in reasons), key=_ORDER.index, default=Health.HEALTHY)


def _rival(finding: Finding, facts: Facts) -> bool:
    """Whether another box wants the name, and did so lately."""
    if finding.seen is None or finding.since is None:
        return True
    if facts.now - finding.seen > RIVAL_FORGOTTEN:
        return False
    return bool(finding.subject and facts.chassis) or finding.seen - finding.since > STILL_ITSELF


def _following(facts: Facts) -> Iterable[Reason]:
    if not facts.connected:
        message = "has never been heard of" if facts.seen is None else "its stream is closed"
        yield Reason(Code.NOT_CONNECTED, message, facts.seen)
    if facts.quarantine:
        message = f"generation {facts.desired} is not tried any more: {facts.quarantine[:_SHOWN]}"
        yield Reason(Code.QUARANTINED, message, facts.wanted_since)
    elif facts.error:
        where = f" in phase {facts.phase}" if facts.phase else ""
        yield Reason(Code.APPLY_FAILED, f"the last attempt failed{where}: {facts.error[:_SHOWN]}", facts.wanted_since)
    late = facts.wanted_since is not None and facts.now - facts.wanted_since > BEHIND
    if facts.connected and facts.applied < facts.desired and late:
        message = f"generation {facts.desired} is wanted, {facts.applied or 'none'} is applied"
        yield Reason(Code.BEHIND, message, facts.wanted_since)


def _links(facts: Facts) -> Iterable[Reason]:
    if facts.uplinks and set(facts.uplinks) <= set(facts.uplinks_down):
        yield Reason(Code.NO_UPLINK, f"all uplinks are down: {', '.join(facts.uplinks)}")
        return
    for port in facts.uplinks_down:
        yield Reason(Code.UPLINK_DOWN, f"uplink {port} is down", subject=port)
