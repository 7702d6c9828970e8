"""Messages of the contract ⇄ the agent's own values. No rules: whether a state makes sense is for `checks` to say.

What the agent has to report is in `report_messages`.
"""

from __future__ import annotations

from collections.abc import Mapping

from metalplane.fabric.v1.agent_pb2 import DesiredPort, DesiredState, Hello, HelloPort
from metalplane.fabric.v1.settings_pb2 import DriftPolicy as WirePolicy
from metalplane.fabric.v1.settings_pb2 import PortFec as WireFec
from metalplane.fabric.v1.switch_pb2 import PortRole as WireRole
from metalplane.fabric.v1.switch_pb2 import PortState as WireState
from metalplane.fabric.v1.switch_pb2 import SwitchOs

from metal_core.desired import Admin, Desired, DriftPolicy, Fec, Port, PortRole, Vrf
from metal_core.identity import LeafIdentity

# The contract's limit.
_CHASSIS = 64
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
_FECS: Mapping[WireFec.ValueType, Fec] = {
    WireFec.PORT_FEC_UNSPECIFIED: Fec.KEEP,
    WireFec.PORT_FEC_NONE: Fec.NONE,
    WireFec.PORT_FEC_RS: Fec.RS,
    WireFec.PORT_FEC_FC: Fec.FC,
    WireFec.PORT_FEC_AUTO: Fec.AUTO,
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
        chassis_id=leaf.chassis[:_CHASSIS],
    )


def state_of(oper_status: str) -> WireState.ValueType:
    """`oper_status` of SONiC's PORT_TABLE; unspecified for anything but up and down."""
    return _STATES.get(oper_status, WireState.PORT_STATE_UNSPECIFIED)


def _port_of(message: DesiredPort) -> Port:
    admin = _ADMIN.get(message.admin_state)
    role = _ROLES.get(message.role)
    if role is None and message.role == WireRole.PORT_ROLE_UNSPECIFIED and admin is Admin.DOWN:
        role = PortRole.DOWN
    if role is None or admin is None:
        raise UnknownState(
            f"ports[{message.name!r}]: role {message.role} with admin state {message.admin_state} is not known here"
        )
    fec = _FECS.get(message.fec)
    if fec is None:
        raise UnknownState(f"ports[{message.name!r}].fec: {message.fec} is not known here")
    return Port(
        name=message.name,
        role=role,
        admin=admin,
        mtu=message.mtu,
        vrf=message.vrf,
        allowed_prefixes=tuple(message.allowed_prefixes),
        vnis=tuple(message.vnis),
        speed=message.speed,
        fec=fec,
    )
