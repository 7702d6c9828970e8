"""FabricSettingsService: what the leaves of a partition have in common."""

from __future__ import annotations

from typing import Any

from metal_kit import validation
from metal_kit.etag import check_etag
from metal_kit.fieldmask import apply_update
from metal_kit.timestamps import to_timestamp
from metalplane.fabric.v1 import settings_pb2
from metalplane.fabric.v1.settings_pb2_grpc import FabricSettingsServiceServicer

from metal_fabric.common_settings import CommonSettings
from metal_fabric.messages import FEC_OF, FECS
from metal_fabric.refusals import answered
from metal_fabric.settings import DriftPolicy, PortSettings, Settings, canonical_ports, canonical_routes
from metal_fabric.store import PartitionSettings

_MUTABLE = [
    "pxe_vlan", "management_gateway", "management_routes", "additional_bridge_ports", "source_loopback",
    "bgp_keepalive", "bgp_hold", "drift_policy", "confirm_seconds", "ports",
]  # fmt: skip
_POLICIES = {
    DriftPolicy.DEFAULT: settings_pb2.DRIFT_POLICY_UNSPECIFIED,
    DriftPolicy.REPAIR: settings_pb2.DRIFT_POLICY_REPAIR,
    DriftPolicy.REPORT: settings_pb2.DRIFT_POLICY_REPORT,
}
_POLICY_OF = {message: policy for policy, message in _POLICIES.items()}


class FabricSettingsApi(FabricSettingsServiceServicer):
    """Implements FabricSettingsService."""

    def __init__(self, common: CommonSettings) -> None:
        self._common = common

    async def GetFabricSettings(
        self, request: settings_pb2.GetFabricSettingsRequest, context: Any
    ) -> settings_pb2.FabricSettings:
        return _message(await self._common.get(request.id))

    async def UpdateFabricSettings(
        self, request: settings_pb2.UpdateFabricSettingsRequest, context: Any
    ) -> settings_pb2.FabricSettings:
        def edit(known: PartitionSettings) -> Settings:
            check_etag(request.settings.etag, known.version, what=f"settings of partition {known.partition}")
            target = _message(known)
            apply_update(target, request.settings, request.update_mask, mutable=_MUTABLE)
            validation.check(target, field="settings")
            return _settings(target)

        with answered():
            return _message(await self._common.change(request.settings.id, edit))


def _message(known: PartitionSettings) -> settings_pb2.FabricSettings:
    settings = known.settings
    return settings_pb2.FabricSettings(
        id=known.partition,
        pxe_vlan=settings.pxe_vlan,
        management_gateway=settings.management_gateway,
        management_routes=settings.management_routes,
        additional_bridge_ports=settings.additional_bridge_ports,
        source_loopback=settings.source_loopback,
        bgp_keepalive=settings.bgp_keepalive,
        bgp_hold=settings.bgp_hold,
        drift_policy=_POLICIES[settings.drift_policy],
        confirm_seconds=settings.confirm_seconds,
        ports=[
            settings_pb2.PortSettings(name=port.name, speed=port.speed, fec=FECS[port.fec]) for port in settings.ports
        ],
        etag=str(known.version),
        update_time=to_timestamp(known.changed),
    )


def _settings(message: settings_pb2.FabricSettings) -> Settings:
    return Settings(
        pxe_vlan=message.pxe_vlan,
        management_gateway=message.management_gateway,
        management_routes=canonical_routes(message.management_routes),
        additional_bridge_ports=tuple(sorted(message.additional_bridge_ports)),
        source_loopback=message.source_loopback,
        bgp_keepalive=message.bgp_keepalive,
        bgp_hold=message.bgp_hold,
        drift_policy=_POLICY_OF[message.drift_policy],
        confirm_seconds=message.confirm_seconds,
        ports=canonical_ports(PortSettings(port.name, port.speed, FEC_OF[port.fec]) for port in message.ports),
    )
