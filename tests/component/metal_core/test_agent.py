"""The whole agent on a simulated leaf, against a scripted fabric over real gRPC with mutual TLS and validation."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
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
from metalplane.fabric.v1.switch_pb2 import PortRole, PortState

MACHINE = "4c4c4544-0042-4b10-8031-b9c04f4b3533"
Eventually = Callable[..., Awaitable[None]]


class ScriptedFabric(SwitchAgentServiceServicer):
    """Sends what a test puts up, keeps what leaves say, and acknowledges unless told not to."""

    def __init__(self) -> None:
        self.callers: list[str] = []
        self.hellos: list[Hello] = []
        self.reports: list[ApplyReport] = []
        self.states: dict[str, PortState.ValueType] = {}
        self.phone_homes: list[PhoneHome] = []
        self.observation_ids: list[str] = []
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

    def start_agent(self, **more: Any) -> None:
        """Start the agent as its process would."""
        certificate = self._identity("leaf01", identity.leaf_id("mini", "leaf01"))
        settings = CoreSettings(
            partition="mini",
            rack="rack1",
            uplinks="Ethernet120,Ethernet124",
            tls_ca=str(certificate.ca),
            tls_cert=str(certificate.cert),
            tls_key=str(certificate.key),
            peers={"fabric": f"127.0.0.1:{self.port or 1}"},
            state_directory=self.bench.known_good.path.parent,
            frr_conf=self.bench.frr_conf,
            vtysh="",
            database_config=self.bench.leaf.database_config,
            observe_seconds=0.05,
            **({"compare_seconds": 3600} | more),
        )
        self.stopping = asyncio.Event()
        peers = Peers(settings.peers, identity_of(settings))
        agent = Agent("metal-core", settings, peers, self.stopping, logs.get_logger("test"))

        async def run() -> None:
            try:
                await service.run(agent)
            finally:
                await peers.close()

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


@pytest.fixture
async def rack(bench: Any, tmp_path: Path) -> AsyncIterator[Rack]:
    """A leaf with its agent stopped and fabric up."""
    async with AsyncExitStack() as stack:
        rack = Rack(bench, tmp_path / "certificates", Authority.create("core tests"))
        await rack.fabric_up()
        stack.push_async_callback(rack.fabric_down)
        stack.push_async_callback(rack.stop_agent)
        yield rack


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


async def test_a_leaf_says_who_it_is_and_applies_what_it_is_told(rack: Rack, eventually: Eventually) -> None:
    rack.start_agent()
    await eventually(lambda: rack.fabric.hellos)
    (hello,) = rack.fabric.hellos
    assert rack.fabric.callers == ["leaf:mini:leaf01"]
    assert (hello.switch_id, hello.partition, hello.rack) == ("leaf01", "mini", "rack1")
    assert (hello.asn, hello.loopback, hello.pxe_vlan, hello.applied_generation) == (4200000011, "10.0.0.11", 4000, 0)
    assert [port.name for port in hello.ports if port.uplink] == ["Ethernet120", "Ethernet124"]
    rack.fabric.want(state(1, 2000))
    await eventually(applied(rack, 1))
    report = rack.fabric.reports[-1]
    assert (report.hash, report.error, list(report.notes)) == ("hash1", "", ["frr: not present"])
    assert {"prepare", "apply", "verify", "commit"} <= set(report.durations)
    assert await rack.bench.leaf.vni_of("Ethernet0") == 2000
    assert await rack.bench.leaf.vlan_of("Ethernet4") == 4000
    rack.fabric.want(state(2))
    await eventually(applied(rack, 2))
    assert await rack.bench.leaf.vrf_of("Ethernet0") == ""
    assert await rack.bench.leaf.vlan_of("Ethernet0") == 4000
    assert rack.bench.leaf.violations == []


async def test_ports_and_phoned_home_systems_are_reported(rack: Rack, eventually: Eventually) -> None:
    leaf = rack.bench.leaf
    rack.start_agent()
    await eventually(lambda: rack.fabric.states.get("Ethernet120") == PortState.PORT_STATE_UP)
    assert rack.fabric.states["Ethernet0"] == PortState.PORT_STATE_DOWN
    await leaf.link_up("Ethernet0")
    await leaf.lldp("Ethernet0", chassis="00:11", system_name=MACHINE, description="metal-hammer, installing")
    await eventually(lambda: rack.fabric.states["Ethernet0"] == PortState.PORT_STATE_UP)
    assert rack.fabric.phone_homes == []
    await leaf.lldp("Ethernet0", chassis="00:11", system_name=MACHINE, description="provisioned since 12:00")
    await eventually(lambda: rack.fabric.phone_homes)
    home = rack.fabric.phone_homes[0]
    assert (home.port, home.machine, home.message) == ("Ethernet0", MACHINE, "provisioned since 12:00")
    await leaf.link_down("Ethernet0")
    await eventually(lambda: rack.fabric.states["Ethernet0"] == PortState.PORT_STATE_DOWN)


async def test_on_a_new_stream_every_port_is_reported_after_the_hello(rack: Rack, eventually: Eventually) -> None:
    """The Hello reads the ports between two looks, and a port that flaps then has not changed for the next look."""
    rack.start_agent()
    await eventually(lambda: len(rack.fabric.states) == 6)
    await rack.fabric_down()
    rack.fabric.states.clear()
    await rack.fabric_up()
    await eventually(lambda: len(rack.fabric.states) == 6)


async def test_a_report_that_nobody_acknowledged_is_sent_again_on_the_next_stream(
    rack: Rack, eventually: Eventually
) -> None:
    rack.fabric.acknowledge = False
    rack.fabric.wanted = state(1)
    rack.start_agent()
    await eventually(lambda: rack.fabric.reports and rack.fabric.observation_ids)
    first, seen = rack.fabric.reports[0].id, rack.fabric.observation_ids[0]
    await rack.fabric_down()
    rack.fabric.wanted, rack.fabric.acknowledge = None, True
    await rack.fabric_up()
    await eventually(lambda: rack.fabric.reports[-1].id == first and len(rack.fabric.reports) > 1)
    await eventually(lambda: rack.fabric.observation_ids.count(seen) > 1)


async def test_cut_off_from_the_plane_a_leaf_keeps_what_it_has_and_comes_back(
    rack: Rack, eventually: Eventually
) -> None:
    rack.fabric.want(state(1, 2000))
    rack.start_agent()
    await eventually(applied(rack, 1))
    before = await rack.bench.sonic.config()
    await rack.fabric_down()
    await rack.stop_agent()
    assert await rack.bench.sonic.config() == before
    rack.start_agent()
    await rack.fabric_up()
    await eventually(lambda: len(rack.fabric.hellos) > 1)
    assert (rack.fabric.hellos[-1].applied_generation, rack.fabric.hellos[-1].applied_hash) == (1, "hash1")
    assert await rack.bench.sonic.config() == before


async def test_after_a_reboot_without_the_plane_the_tenants_network_is_back(rack: Rack, eventually: Eventually) -> None:
    rack.fabric.want(state(1, 2000))
    rack.start_agent()
    await eventually(applied(rack, 1))
    await rack.stop_agent()
    await rack.fabric_down()
    async with rack.bench.sonic.database("CONFIG_DB") as config:
        await config.flushdb()
    await rack.bench.leaf.stop()
    await rack.bench.leaf.start()
    assert await rack.bench.leaf.vrf_of("Ethernet0") == ""
    rack.start_agent()

    async def restored() -> bool:
        return bool(await rack.bench.leaf.vni_of("Ethernet0") == 2000)

    await eventually(restored)


async def test_an_older_generation_does_not_take_the_leaf_back(rack: Rack, eventually: Eventually) -> None:
    rack.fabric.want(state(5, 2000))
    rack.start_agent()
    await eventually(applied(rack, 5))
    rack.fabric.want(state(4))
    rack.fabric.want(state(6, 2001))
    await eventually(applied(rack, 6))
    assert 4 not in {report.generation for report in rack.fabric.reports}
    assert await rack.bench.leaf.vni_of("Ethernet0") == 2001


async def test_a_plane_that_has_forgotten_the_switch_is_followed_from_its_first_generation_on(
    rack: Rack, eventually: Eventually
) -> None:
    """The leaf has applied nothing, so nothing in its Hello tells the plane to begin above what failed."""
    bad = state(5, 2001)
    bad.ports.add(name="Ethernet999", role=PortRole.PORT_ROLE_UNPROVISIONED)
    rack.fabric.want(bad)
    rack.start_agent()
    await eventually(lambda: rack.fabric.reports and rack.fabric.reports[-1].error)
    await rack.fabric_down()
    rack.fabric.wanted = state(1, 2000)
    await rack.fabric_up()
    await eventually(applied(rack, 1))
    assert await rack.bench.leaf.vni_of("Ethernet0") == 2000


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (lambda bad: bad.ClearField("ports"), "none has the role uplink"),
        (lambda bad: bad.ClearField("vrfs"), "'Vrf2001' is not among the VRFs"),
        (lambda bad: bad.ports.add(name="Ethernet999", role=PortRole.PORT_ROLE_UNPROVISIONED), "PORT|Ethernet999"),
        (lambda bad: bad.ports.add(name="Ethernet999"), "is not known here"),
        (lambda bad: setattr(bad, "switch_id", "leaf02"), "'leaf02'"),
        (lambda bad: bad.Clear() or setattr(bad, "generation", 2), "switch_id"),
    ],
)
async def test_a_wrong_state_from_the_plane_changes_nothing_and_is_answered_with_the_reason(
    rack: Rack, eventually: Eventually, spoil: Callable[[DesiredState], Any], complaint: str
) -> None:
    rack.fabric.want(state(1, 2000))
    rack.start_agent()
    await eventually(applied(rack, 1))
    before = await rack.bench.sonic.config()
    bad = state(2, 2001)
    spoil(bad)
    rack.fabric.want(bad)
    await eventually(lambda: rack.fabric.reports[-1].generation == 2)
    assert not rack.fabric.reports[-1].applied
    assert complaint in rack.fabric.reports[-1].error
    assert await rack.bench.sonic.config() == before
    rack.fabric.want(state(3, 2001))
    await eventually(applied(rack, 3))


async def test_what_somebody_changed_by_hand_is_corrected_and_said(rack: Rack, eventually: Eventually) -> None:
    rack.fabric.want(state(1, 2000))
    rack.start_agent(compare_seconds=0.2)
    await eventually(applied(rack, 1))
    await rack.bench.sonic.delete(["INTERFACE|Ethernet0"])
    await eventually(lambda: any("drift" in note for note in rack.fabric.reports[-1].notes))
    assert await rack.bench.leaf.vni_of("Ethernet0") == 2000


async def test_a_switch_that_does_not_follow_is_reported_and_tried_again(rack: Rack, eventually: Eventually) -> None:
    rack.bench.leaf.faults.orchagent_delay = 60.0
    rack.fabric.want(state(1, 2000))
    rack.start_agent(wait_seconds=0.2)
    await eventually(lambda: rack.fabric.reports)
    assert "did not follow within 0.2 s" in rack.fabric.reports[0].error
    rack.bench.leaf.faults.orchagent_delay = 0.01
    await rack.bench.leaf.stop()
    await rack.bench.leaf.start()
    await eventually(applied(rack, 1), seconds=60)


async def test_a_redis_that_dies_is_reported_and_the_leaf_gets_its_state_again(
    rack: Rack, eventually: Eventually
) -> None:
    rack.fabric.want(state(1, 2000))
    rack.start_agent(compare_seconds=0.2)
    await eventually(applied(rack, 1))
    await rack.bench.leaf.stop()
    await rack.bench.server.kill()
    await eventually(lambda: rack.fabric.reports[-1].error.startswith("APPL_DB: "))
    await rack.bench.server.start()
    await rack.bench.leaf.start()
    await eventually(applied(rack, 1), seconds=60)
    assert await rack.bench.leaf.vni_of("Ethernet0") == 2000


async def test_the_agent_stops_at_once_when_there_is_no_plane(rack: Rack, eventually: Eventually) -> None:
    await rack.fabric_down()
    rack.start_agent()
    await eventually(lambda: rack.agent is not None and not rack.agent.done())
    async with asyncio.timeout(5):
        await rack.stop_agent()
