"""Messages of the contract ⇄ the agent's own values. No rules: whether a state makes sense is for `checks` to say."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from metalplane.fabric.v1.agent_pb2 import (
    ApplyReport,
    DesiredPort,
    DesiredState,
    Hello,
    HelloPort,
    Observations,
    ObservedPort,
    PhoneHome,
)
from metalplane.fabric.v1.observation_pb2 import LeafDifferences
from metalplane.fabric.v1.settings_pb2 import DriftPolicy as WirePolicy
from metalplane.fabric.v1.switch_pb2 import PortRole as WireRole
from metalplane.fabric.v1.switch_pb2 import PortState as WireState
from metalplane.fabric.v1.switch_pb2 import SwitchOs

from metal_core.apply import Outcome
from metal_core.compare import Differences
from metal_core.desired import Admin, Desired, DriftPolicy, Port, PortRole, Vrf
from metal_core.identity import LeafIdentity
from metal_core.observe import Announcement

# Limits of the contract, so that a long complaint or a chatty machine does not cost the whole stream.
_ERROR, _MESSAGE, _NOTES = 4096, 1024, 32
_DIFFERENCES, _LINE, _NAME, _KEY, _PHASE = 100, 512, 128, 255, 32

_ROLES: Mapping[WireRole.ValueType, PortRole] = {
    WireRole.PORT_ROLE_UPLINK: PortRole.UPLINK,
    WireRole.PORT_ROLE_UNPROVISIONED: PortRole.UNPROVISIONED,
    WireRole.PORT_ROLE_MACHINE: PortRole.MACHINE,
    WireRole.PORT_ROLE_FIREWALL: PortRole.FIREWALL,
    WireRole.PORT_ROLE_UNUSED: PortRole.DOWN,
    WireRole.PORT_ROLE_ADDITIONAL: PortRole.ADDITIONAL,
}
_ADMIN: Mapping[WireState.ValueType, Admin] = {
    WireState.PORT_STATE_UNSPECIFIED: Admin.KEEP,
    WireState.PORT_STATE_UP: Admin.UP,
    WireState.PORT_STATE_DOWN: Admin.DOWN,
}
_POLICIES: Mapping[WirePolicy.ValueType, DriftPolicy] = {
    WirePolicy.DRIFT_POLICY_UNSPECIFIED: DriftPolicy.REPAIR,
    WirePolicy.DRIFT_POLICY_REPAIR: DriftPolicy.REPAIR,
    WirePolicy.DRIFT_POLICY_REPORT: DriftPolicy.REPORT,
}
_STATES: Mapping[str, WireState.ValueType] = {
    "up": WireState.PORT_STATE_UP,
    "down": WireState.PORT_STATE_DOWN,
}


class UnknownState(ValueError):
    """The message says something that this version of the agent does not understand, and so must not act upon."""


def desired_of(message: DesiredState) -> Desired:
    """The state that a message describes. Raises UnknownState for what only a newer contract knows."""
    policy = _POLICIES.get(message.drift_policy)
    if policy is None:
        raise UnknownState(f"drift_policy: {message.drift_policy} is not known here")
    return Desired(
        switch_id=message.switch_id,
        generation=message.generation,
        digest=message.hash,
        asn=message.asn,
        loopback=message.loopback,
        pxe_vlan=message.pxe_vlan,
        ports=tuple(_port_of(port) for port in message.ports),
        vrfs=tuple(Vrf(vrf.name, vrf.vni, vrf.vlan) for vrf in message.vrfs),
        management_gateway=message.management_gateway,
        management_routes=tuple(message.management_routes),
        source_loopback=message.source_loopback,
        bgp_keepalive=message.bgp_keepalive,
        bgp_hold=message.bgp_hold,
        drift_policy=policy,
        confirm_seconds=message.confirm_seconds,
    )


def hello_of(leaf: LeafIdentity, states: Mapping[str, str], applied: Desired | None) -> Hello:
    """Who the leaf is, what it has, and what it last applied."""
    return Hello(
        switch_id=leaf.switch_id,
        partition=leaf.partition,
        rack=leaf.rack,
        os=SwitchOs.SWITCH_OS_SONIC,
        os_version=leaf.os_version,
        core_version=leaf.core_version,
        management_address=leaf.management_address,
        loopback=leaf.loopback,
        asn=leaf.asn,
        pxe_vlan=leaf.pxe_vlan,
        ports=[
            HelloPort(name=name, alias=alias, uplink=name in leaf.uplinks, state=state_of(states.get(name, "")))
            for name, alias in leaf.ports.items()
        ],
        applied_generation=applied.generation if applied else 0,
        applied_hash=applied.digest if applied else "",
    )


def apply_report_of(report_id: str, generation: int, digest: str, outcome: Outcome, ended: float) -> ApplyReport:
    """How a run ended; `ended` is in seconds since the epoch."""
    report = ApplyReport(
        id=report_id,
        generation=generation,
        hash=digest,
        applied=outcome.applied,
        error=_text(outcome.error)[:_ERROR],
        notes=[_text(note) for note in outcome.notes[:_NOTES]],
        phase=outcome.phase[:_PHASE],
        quarantine=_text(outcome.quarantined)[:_ERROR],
    )
    if outcome.differences:
        report.differences.CopyFrom(differences_of(outcome.differences))
    if outcome.is_at is not None:
        report.standing_generation, report.standing_hash = outcome.is_at.generation, outcome.is_at.digest
    for phase, seconds in outcome.durations.items():
        report.durations[phase].FromNanoseconds(int(seconds * 1e9))
    report.time.FromNanoseconds(int(ended * 1e9))
    return report


def observations_of(report_id: str, states: Mapping[str, str], announcements: Iterable[Announcement]) -> Observations:
    """Changed port states and installed systems that announced themselves."""
    observations = Observations(
        id=report_id, ports=[ObservedPort(name=name, state=state_of(state)) for name, state in states.items()]
    )
    for seen in announcements:
        home = PhoneHome(port=seen.port, machine=seen.machine, message=_text(seen.description)[:_MESSAGE])
        home.time.FromNanoseconds(int(seen.time * 1e9))
        observations.phone_homes.append(home)
    return observations


def differences_of(differences: Differences) -> LeafDifferences:
    """What differs, cut to what a report can carry."""
    message = LeafDifferences(
        frr_lines=[_text(line)[:_LINE] for line in differences.lines[:_DIFFERENCES]],
        row_count=len(differences.rows),
        frr_line_count=len(differences.lines),
    )
    for row in differences.rows[:_DIFFERENCES]:
        message.rows.add(
            table=_text(row.table)[:_NAME],
            key=_text(row.key)[:_KEY],
            field=_text(row.field)[:_NAME],
            wanted=None if row.wanted is None else _text(row.wanted)[:_LINE],
            found=None if row.found is None else _text(row.found)[:_LINE],
        )
    return message


def state_of(oper_status: str) -> WireState.ValueType:
    """`oper_status` of SONiC's PORT_TABLE; unspecified for anything but up and down."""
    return _STATES.get(oper_status, WireState.PORT_STATE_UNSPECIFIED)


def _text(said: str) -> str:
    """What a message can carry of a text from Redis, where bytes that are not UTF-8 stand as lone surrogates.

    A tenant's machine writes its LLDP description itself; refusing to send it would end the agent, again and again.
    """
    return said.encode("utf-8", "replace").decode("utf-8")


def _port_of(message: DesiredPort) -> Port:
    admin = _ADMIN.get(message.admin_state)
    role = _ROLES.get(message.role)
    if role is None and message.role == WireRole.PORT_ROLE_UNSPECIFIED and admin is Admin.DOWN:
        role = PortRole.DOWN
    if role is None or admin is None:
        raise UnknownState(
            f"ports[{message.name!r}]: role {message.role} with admin state {message.admin_state} is not known here"
        )
    return Port(
        name=message.name,
        role=role,
        admin=admin,
        mtu=message.mtu,
        vrf=message.vrf,
        allowed_prefixes=tuple(message.allowed_prefixes),
        vnis=tuple(message.vnis),
    )
