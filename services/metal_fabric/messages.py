"""Between the domain's values and the messages of the contract."""

from __future__ import annotations

import hashlib

from metal_kit.timestamps import to_timestamp
from metalplane.fabric.v1 import agent_pb2, cabling_pb2, settings_pb2, switch_pb2
from metalplane.fabric.v1.agent_pb2 import DesiredState
from metalplane.fabric.v1.observation_pb2 import BgpSessions, Drift, LldpNeighbours

from metal_fabric import desired
from metal_fabric.attachment import Attachment
from metal_fabric.cabling import Cable
from metal_fabric.desired import vrf_name
from metal_fabric.filters import PortRole
from metal_fabric.health import Facts, Health, assess, health_of
from metal_fabric.ports import AdminState, Fec, LinkState, SwitchOs, sort_key
from metal_fabric.store import PortUse, SwitchView, Told
from metal_fabric.switch import Port, Switch, SwitchFacts, SwitchKind, SwitchMode, ports_by_name

ROLES = {
    PortRole.UPLINK: switch_pb2.PORT_ROLE_UPLINK,
    PortRole.UNPROVISIONED: switch_pb2.PORT_ROLE_UNPROVISIONED,
    PortRole.MACHINE: switch_pb2.PORT_ROLE_MACHINE,
    PortRole.FIREWALL: switch_pb2.PORT_ROLE_FIREWALL,
    PortRole.UNUSED: switch_pb2.PORT_ROLE_UNUSED,
    PortRole.ADDITIONAL: switch_pb2.PORT_ROLE_ADDITIONAL,
}
ROLE_OF = {message: role for role, message in ROLES.items()}
STATES = {
    LinkState.UNKNOWN: switch_pb2.PORT_STATE_UNSPECIFIED,
    LinkState.UP: switch_pb2.PORT_STATE_UP,
    LinkState.DOWN: switch_pb2.PORT_STATE_DOWN,
}
FECS = {
    Fec.UNSET: settings_pb2.PORT_FEC_UNSPECIFIED,
    Fec.NONE: settings_pb2.PORT_FEC_NONE,
    Fec.RS: settings_pb2.PORT_FEC_RS,
    Fec.FC: settings_pb2.PORT_FEC_FC,
    Fec.AUTO: settings_pb2.PORT_FEC_AUTO,
}
FEC_OF = {message: fec for fec, message in FECS.items()}
STATE_OF = {message: state for state, message in STATES.items()}
SYSTEMS = {
    SwitchOs.SONIC: switch_pb2.SWITCH_OS_SONIC,
    SwitchOs.CUMULUS: switch_pb2.SWITCH_OS_CUMULUS,
    SwitchOs.OTHER: switch_pb2.SWITCH_OS_UNSPECIFIED,
}
HEALTHS = {
    Health.HEALTHY: switch_pb2.SWITCH_HEALTH_HEALTHY,
    Health.DEGRADED: switch_pb2.SWITCH_HEALTH_DEGRADED,
    Health.UNHEALTHY: switch_pb2.SWITCH_HEALTH_UNHEALTHY,
    Health.UNKNOWN: switch_pb2.SWITCH_HEALTH_UNKNOWN,
}
KINDS = {
    SwitchKind.LEAF: switch_pb2.SWITCH_KIND_LEAF,
    SwitchKind.SPINE: switch_pb2.SWITCH_KIND_SPINE,
    SwitchKind.EXIT: switch_pb2.SWITCH_KIND_EXIT,
}
KIND_OF = {message: kind for kind, message in KINDS.items()}
MODES = {
    SwitchMode.OPERATIONAL: switch_pb2.SWITCH_MODE_OPERATIONAL,
    SwitchMode.REPLACE: switch_pb2.SWITCH_MODE_REPLACE,
}
SYSTEM_OF = {message: system for system, message in SYSTEMS.items()}


def switch_of_hello(hello: agent_pb2.Hello) -> Switch:
    """The switch that a leaf reports itself to be. Raises Invalid when it names a port twice."""
    ports = (Port(port.name, port.alias, port.uplink, AdminState(actual=STATE_OF[port.state])) for port in hello.ports)
    facts = SwitchFacts(
        partition=hello.partition,
        rack=hello.rack,
        os=SYSTEM_OF[hello.os],
        os_version=hello.os_version,
        core_version=hello.core_version,
        management_address=hello.management_address,
        loopback=hello.loopback,
        asn=hello.asn,
        pxe_vlan=hello.pxe_vlan,
    )
    return Switch(hello.switch_id, facts, ports_by_name(ports))


def switch_of_device(request: switch_pb2.RecordDeviceRequest) -> Switch:
    """The spine or exit that an operator records."""
    facts = SwitchFacts(
        partition=request.partition,
        rack=request.rack,
        os=SYSTEM_OF[request.os],
        management_address=request.management_address,
        loopback=request.loopback,
        asn=request.asn,
    )
    return Switch(request.id, facts, {}, request.description, KIND_OF[request.kind])


def desired_message(state: desired.DesiredState) -> DesiredState:
    """The message of a desired state, without generation and hash."""
    message = DesiredState(switch_id=state.switch_id, asn=state.asn, loopback=state.loopback, pxe_vlan=state.pxe_vlan)
    for port in state.ports:
        message.ports.add(
            name=port.name,
            role=ROLES[port.role],
            admin_state=STATES[port.admin or LinkState.UNKNOWN],
            mtu=port.mtu,
            vrf=port.vrf,
            allowed_prefixes=port.allowed_prefixes,
            vnis=port.vnis,
            speed=port.speed,
            fec=FECS[port.fec],
        )
    for vrf in state.vrfs:
        message.vrfs.add(name=vrf.name, vni=vrf.vni, vlan=vrf.vlan)
    message.management_gateway = state.management_gateway
    message.management_routes.extend(state.management_routes)
    message.source_loopback = state.source_loopback
    message.bgp_keepalive, message.bgp_hold = state.bgp_keepalive, state.bgp_hold
    if state.report_drift_only:
        message.drift_policy = settings_pb2.DRIFT_POLICY_REPORT
    message.confirm_seconds = state.confirm_seconds
    return message


def desired_of(message: DesiredState) -> desired.DesiredState:
    """The desired state that a message tells; the inverse of `desired_message`."""
    ports = (
        desired.DesiredPort(
            name=port.name,
            role=ROLE_OF[port.role],
            admin=STATE_OF[port.admin_state] if port.admin_state else None,
            mtu=port.mtu,
            vrf=port.vrf,
            allowed_prefixes=tuple(port.allowed_prefixes),
            vnis=tuple(port.vnis),
            speed=port.speed,
            fec=FEC_OF[port.fec],
        )
        for port in message.ports
    )
    return desired.DesiredState(
        switch_id=message.switch_id,
        asn=message.asn,
        loopback=message.loopback,
        pxe_vlan=message.pxe_vlan,
        ports=tuple(ports),
        vrfs=tuple(desired.DesiredVrf(vrf.name, vrf.vni, vrf.vlan) for vrf in message.vrfs),
        management_gateway=message.management_gateway,
        management_routes=tuple(message.management_routes),
        source_loopback=message.source_loopback,
        bgp_keepalive=message.bgp_keepalive,
        bgp_hold=message.bgp_hold,
        report_drift_only=message.drift_policy == settings_pb2.DRIFT_POLICY_REPORT,
        confirm_seconds=message.confirm_seconds,
    )


def digest_of(message: DesiredState) -> str:
    """SHA-256, hexadecimal, over a desired state without generation and hash. There is no map in it, so equal states
    have equal bytes."""
    if message.generation or message.hash:
        bare = DesiredState()
        bare.CopyFrom(message)
        bare.ClearField("generation")
        bare.ClearField("hash")
        message = bare
    return hashlib.sha256(message.SerializeToString(deterministic=True)).hexdigest()


def cable_message(cable: Cable) -> cabling_pb2.Cable:
    """The message of a cable."""
    return cabling_pb2.Cable(machine=cable.machine, nic_mac=cable.nic_mac, switch_id=cable.switch_id, port=cable.port)


def attachment_message(attachment: Attachment) -> switch_pb2.Attachment:
    """The message of an attachment, one leaf entry a port."""
    message = switch_pb2.Attachment(
        machine=attachment.machine,
        allocation=attachment.held_by,
        role=ROLES[attachment.wish.role],
        vrf=attachment.wish.vrf,
        allowed_prefixes=attachment.wish.allowed_prefixes,
        vnis=attachment.wish.vnis,
        confirmed=attachment.confirmed,
    )
    for leaf in attachment.leaves:
        for port in leaf.ports:
            message.leaves.add(
                switch_id=leaf.switch_id,
                port=port,
                wanted_generation=leaf.wanted,
                applied_generation=leaf.applied,
                confirmed=leaf.confirmed,
                connected=leaf.connected,
                seen_time=to_timestamp(leaf.seen),
                error=leaf.error,
                former=leaf.former,
            )
    return message


def switch_message(view: SwitchView) -> switch_pb2.Switch:
    """The message of a switch, its ports by lane."""
    facts = view.facts
    message = switch_pb2.Switch(
        id=view.id,
        partition=facts.partition,
        rack=facts.rack,
        os=SYSTEMS[facts.os],
        os_version=facts.os_version,
        core_version=facts.core_version,
        management_address=facts.management_address,
        loopback=facts.loopback,
        asn=facts.asn,
        sync=_sync_message(view),
        description=view.description,
        kind=KINDS[view.kind],
        mode=MODES[view.mode],
        settings_wait_for=view.settings_wait_for,
        held_ports=[
            switch_pb2.HeldPort(port=port, machine=each.machine, wanted_generation=each.wanted)
            for each in view.held
            for port in each.ports
        ],
        etag=str(view.version),
        create_time=to_timestamp(view.create_time),
        update_time=to_timestamp(view.update_time),
    )
    if view.pin is not None:
        pin = view.pin
        message.pin.CopyFrom(
            switch_pb2.Pin(generation=pin.generation, reason=pin.reason, create_time=to_timestamp(pin.since))
        )
    for use in sorted(view.ports, key=lambda each: sort_key(each.port.name, facts.os)):
        message.ports.append(_port_message(use))
    return message


def _port_message(use: PortUse) -> switch_pb2.Port:
    return switch_pb2.Port(
        name=use.port.name,
        alias=use.port.alias,
        role=ROLES[use.role],
        desired_state=STATES[use.port.admin.wish or LinkState.UNKNOWN],
        reported_state=STATES[use.port.admin.actual],
        vrf=vrf_name(use.vrf),
        machine=use.machine,
        nic_mac=use.nic_mac,
    )


def _sync_message(view: SwitchView) -> switch_pb2.SyncStatus:
    sync = view.sync
    message = switch_pb2.SyncStatus(
        desired_generation=sync.desired,
        applied_generation=sync.applied,
        applied_hash=sync.applied_hash,
        apply_time=to_timestamp(sync.apply_time),
        error=sync.error,
        notes=sync.notes,
        seen_time=to_timestamp(sync.seen),
        connected=sync.connected,
    )
    if view.health is not None:
        _put_health(message, view.health)
    _put_told(message, view.told)
    return message


def _put_health(message: switch_pb2.SyncStatus, facts: Facts) -> None:
    reasons = assess(facts)
    message.health = HEALTHS[health_of(reasons)]
    message.phase, message.quarantine = facts.phase, facts.quarantine
    for reason in reasons:
        message.health_reasons.add(
            code=reason.code.value,
            health=HEALTHS[reason.health],
            message=reason.message,
            since_time=to_timestamp(reason.since),
        )


def _put_told(message: switch_pb2.SyncStatus, told: Told) -> None:
    if told.apply:
        report = agent_pb2.ApplyReport.FromString(told.apply)
        for phase, lasted in report.durations.items():
            message.durations[phase].CopyFrom(lasted)
        if report.HasField("differences"):
            message.differences.CopyFrom(report.differences)
    if told.drift:
        message.drift.CopyFrom(Drift.FromString(told.drift))
    if told.bgp:
        message.bgp.CopyFrom(BgpSessions.FromString(told.bgp))
    if told.lldp:
        message.lldp.CopyFrom(LldpNeighbours.FromString(told.lldp))
