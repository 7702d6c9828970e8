"""A simulated leaf with its agent, and a scripted fabric over real gRPC with mutual TLS and validation."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from metal_core import service
from metal_core.service import CoreSettings
from metal_kit import identity, logs
from metal_kit.agent import Agent, identity_of
from metal_kit.ca import Authority
from metal_kit.client import Peers
from metal_kit.identity import current_caller
from metal_kit.server import Server, Servicer
from metal_kit.tls import Identity
from metalplane.fabric.v1.agent_pb2 import (
    Ack,
    ApplyReport,
    ConnectRequest,
    ConnectResponse,
    DesiredPort,
    DesiredState,
    DesiredVrf,
    Heartbeat,
    Hello,
    PhoneHome,
)
from metalplane.fabric.v1.agent_pb2_grpc import SwitchAgentServiceServicer, add_SwitchAgentServiceServicer_to_server
from metalplane.fabric.v1.observation_pb2 import Drift, LldpNeighbours
from metalplane.fabric.v1.switch_pb2 import PortRole, PortState


class ScriptedFabric(SwitchAgentServiceServicer):
    """Sends what a test puts up, keeps what leaves say, and acknowledges unless told not to."""

    def __init__(self) -> None:
        self.callers: list[str] = []
        self.hellos: list[Hello] = []
        self.reports: list[ApplyReport] = []
        self.states: dict[str, PortState.ValueType] = {}
        self.phone_homes: list[PhoneHome] = []
        self.observation_ids: list[str] = []
        self.drifts: list[Drift] = []
        self.neighbours: list[LldpNeighbours] = []
        self.acknowledge = True
        self.drop_streams = asyncio.Event()
        self._out: asyncio.Queue[ConnectResponse] = asyncio.Queue()
        self.wanted: DesiredState | None = None

    def want(self, state: DesiredState) -> None:
        """Send the state now, and at each new connection."""
        self.wanted = state
        self._out.put_nowait(ConnectResponse(desired_state=state))

    async def Connect(self, request_iterator: AsyncIterator[ConnectRequest], context: Any) -> Any:
        self.callers.append(f"{current_caller().kind}:{current_caller().partition}:{current_caller().name}")
        self._out = asyncio.Queue()
        if self.wanted is not None:
            self._out.put_nowait(ConnectResponse(desired_state=self.wanted))
        reader = asyncio.create_task(self._read(request_iterator))
        try:
            while not self.drop_streams.is_set():
                message = None
                with suppress(TimeoutError):
                    async with asyncio.timeout(0.1):
                        message = await self._out.get()
                if message is not None:
                    # Outside the time limit, which would otherwise cut off the sending.
                    yield message
                if reader.done():
                    reader.result()
                    return
        finally:
            reader.cancel()

    async def _read(self, requests: AsyncIterator[ConnectRequest]) -> None:
        async for request in requests:
            report_id = ""
            match request.WhichOneof("message"):
                case "hello":
                    self.hellos.append(request.hello)
                case "apply_report":
                    self.reports.append(request.apply_report)
                    report_id = request.apply_report.id
                case "observations":
                    report_id = request.observations.id
                    self.observation_ids.append(report_id)
                    self.states |= {port.name: port.state for port in request.observations.ports}
                    self.phone_homes += request.observations.phone_homes
                    if request.observations.HasField("drift"):
                        self.drifts.append(request.observations.drift)
                    if request.observations.HasField("lldp"):
                        self.neighbours.append(request.observations.lldp)
                case _:
                    self._out.put_nowait(ConnectResponse(heartbeat=Heartbeat()))
            if report_id and self.acknowledge:
                self._out.put_nowait(ConnectResponse(ack=Ack(id=report_id)))


@dataclass
class Rack:
    """A leaf, an agent that can be started and stopped, and a fabric that can come and go."""

    bench: Any
    directory: Path
    authority: Authority
    fabric: ScriptedFabric = field(default_factory=ScriptedFabric)
    port: int = 0
    server: Server | None = None
    agent: asyncio.Task[None] | None = None
    stopping: asyncio.Event = field(default_factory=asyncio.Event)

    async def fabric_up(self) -> None:
        """The plane can be reached; after the first time at the same address."""
        name = "metalplane.fabric.v1.SwitchAgentService"
        self.fabric.drop_streams.clear()
        self.server = Server([Servicer(add_SwitchAgentServiceServicer_to_server, self.fabric, name)])
        address = await self.server.start(
            f"127.0.0.1:{self.port}", self._identity("fabric", identity.service_id("fabric"))
        )
        self.port = int(address.rpartition(":")[2])

    async def fabric_down(self) -> None:
        """The plane is cut off."""
        if self.server is not None:
            self.fabric.drop_streams.set()
            await self.server.stop(0)
            self.server = None

    def settings(self, **more: Any) -> dict[str, Any]:
        """The agent's settings."""
        certificate = self._identity("leaf01", identity.leaf_id("mini", "leaf01"))
        return {
            "partition": "mini",
            "rack": "rack1",
            "uplinks": "Ethernet120,Ethernet124",
            "tls_ca": str(certificate.ca),
            "tls_cert": str(certificate.cert),
            "tls_key": str(certificate.key),
            "peers": {"fabric": f"127.0.0.1:{self.port or 1}"},
            "state_directory": self.bench.known_good.path.parent,
            "frr_conf": self.bench.frr_conf,
            "database_config": self.bench.leaf.database_config,
            "observe_seconds": 0.05,
            "compare_seconds": 3600,
            "vtysh": "",
        } | more

    async def start_process(self, **more: Any) -> asyncio.subprocess.Process:
        """The agent as a process of its own, whose end is up to the caller."""
        settings = {
            name: value if isinstance(value, str) else json.dumps(value, default=str).strip('"')
            for name, value in self.settings(**more).items()
        }
        environment = {name: value for name, value in os.environ.items() if not name.startswith("METALPLANE_")}
        environment |= {f"METALPLANE_{name.upper()}": value for name, value in settings.items()}
        return await asyncio.create_subprocess_exec(
            sys.executable, "-m", "metal_core", env=environment, stderr=asyncio.subprocess.DEVNULL
        )

    def start_agent(self, **more: Any) -> None:
        """Start the agent within this process, as its own would."""
        settings = CoreSettings(**self.settings(**more))
        self.stopping = asyncio.Event()
        log = logs.get_logger("test")
        agent = Agent("metal-core", settings, lambda: Peers(settings.peers, identity_of(settings)), self.stopping, log)

        async def run() -> None:
            try:
                await service.run(agent)
            finally:
                await agent.close()

        self.agent = asyncio.create_task(run())

    async def stop_agent(self) -> None:
        """Stop it as SIGTERM does."""
        if self.agent is not None:
            self.stopping.set()
            await self.agent
            self.agent = None

    def _identity(self, name: str, spiffe_id: str) -> Identity:
        self.authority.save(self.directory)
        dns = [f"{name}.metalplane"] if name == "fabric" else []
        cert, key = self.authority.issue(name, spiffe_id, dns=dns).save(self.directory, name)
        return Identity(self.directory / "ca.crt", cert, key)


def state(generation: int, vni: int = 0) -> DesiredState:
    """Ethernet0 in the VRF of `vni`, everything else as after the first installation."""
    message = DesiredState(
        switch_id="leaf01",
        generation=generation,
        hash=f"hash{generation}",
        asn=4200000011,
        loopback="10.0.0.11",
        pxe_vlan=4000,
    )
    for name in ("Ethernet120", "Ethernet124"):
        message.ports.append(DesiredPort(name=name, role=PortRole.PORT_ROLE_UPLINK, mtu=9216))
    for name in ("Ethernet0", "Ethernet4", "Ethernet8", "Ethernet12"):
        message.ports.append(DesiredPort(name=name, role=PortRole.PORT_ROLE_UNPROVISIONED, mtu=9000))
    if vni:
        port = message.ports[2]
        port.role, port.vrf = PortRole.PORT_ROLE_MACHINE, f"Vrf{vni}"
        port.allowed_prefixes.append("10.1.0.1/32")
        message.vrfs.append(DesiredVrf(name=f"Vrf{vni}", vni=vni, vlan=1001))
    return message


def applied(rack: Rack, generation: int) -> Callable[[], bool]:
    """Whether the newest report says that the generation is applied."""
    return lambda: (
        bool(rack.fabric.reports)
        and (rack.fabric.reports[-1].generation, rack.fabric.reports[-1].applied)
        == (
            generation,
            True,
        )
    )
