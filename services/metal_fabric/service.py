"""Composition of the fabric service."""

from __future__ import annotations

from metal_kit.runtime import Background, Parts, Runtime, Servicer, ServiceSpec
from metal_kit.settings import ServiceSettings
from metalplane.fabric.v1.agent_pb2_grpc import add_SwitchAgentServiceServicer_to_server
from metalplane.fabric.v1.cabling_pb2_grpc import add_CablingServiceServicer_to_server
from metalplane.fabric.v1.generation_pb2_grpc import add_GenerationServiceServicer_to_server
from metalplane.fabric.v1.settings_pb2_grpc import add_FabricSettingsServiceServicer_to_server
from metalplane.fabric.v1.switch_pb2_grpc import add_SwitchServiceServicer_to_server

from metal_fabric.administration import Administration
from metal_fabric.api.agents import SwitchAgentApi
from metal_fabric.api.cabling import CablingApi
from metal_fabric.api.generations import GenerationApi
from metal_fabric.api.settings import FabricSettingsApi
from metal_fabric.api.switches import SwitchApi
from metal_fabric.common_settings import CommonSettings
from metal_fabric.history import History
from metal_fabric.leaves import Leaves
from metal_fabric.life import SwitchLife
from metal_fabric.machines import Machines
from metal_fabric.planner import Planner
from metal_fabric.watch import Watch


async def compose(rt: Runtime) -> Parts:
    """Wire use cases and servicers. Fabric calls nobody and consumes no events: leaves and services call it."""
    db = rt.require_db()
    planner = Planner()
    common = CommonSettings(db, planner)
    machines = Machines(db, planner)
    leaves = Leaves(db, planner)
    watch = Watch(db)
    switches = SwitchApi(Administration(db, planner), SwitchLife(db, planner), machines, rt.paging)
    agents = SwitchAgentApi(db, leaves, rt.stopping)
    return Parts(
        servicers=[
            Servicer(add_SwitchServiceServicer_to_server, switches, "metalplane.fabric.v1.SwitchService"),
            Servicer(
                add_CablingServiceServicer_to_server,
                CablingApi(machines, rt.paging),
                "metalplane.fabric.v1.CablingService",
            ),
            Servicer(
                add_FabricSettingsServiceServicer_to_server,
                FabricSettingsApi(common),
                "metalplane.fabric.v1.FabricSettingsService",
            ),
            Servicer(
                add_GenerationServiceServicer_to_server,
                GenerationApi(History(db, planner), rt.paging),
                "metalplane.fabric.v1.GenerationService",
            ),
            Servicer(add_SwitchAgentServiceServicer_to_server, agents, "metalplane.fabric.v1.SwitchAgentService"),
        ],
        background=[
            Background("switches", lambda: watch.measure(rt.stopping)),
            Background("settings", lambda: common.run(rt.stopping)),
        ],
        issues=[("switches", watch.issues)],
        close=[leaves.close],
    )


SPEC = ServiceSpec(name="fabric", settings=ServiceSettings, package="metal_fabric", compose=compose)
