"""A real fabric service with its database, agents of leaves, and the clients that inventory and allocation are.

What the leaves are made of is for the tests to say; here they are only what an agent needs to know of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any
from uuid import uuid4

from metal_core import service as core
from metal_core.service import CoreSettings
from metal_fabric.service import SPEC
from metal_kit import identity, logs
from metal_kit.agent import Agent, identity_of
from metal_kit.ca import Authority
from metal_kit.client import Peers
from metal_kit.runtime import RunningService, start
from metal_kit.settings import ServiceSettings
from metal_kit.tls import Identity
from metal_sim.leaf import LeafSpec
from metalplane.fabric.v1.cabling_pb2 import ConnectMachineRequest
from metalplane.fabric.v1.switch_pb2 import (
    AttachMachineRequest,
    Attachment,
    GetAttachmentRequest,
    PortRole,
)

Eventually = Callable[..., Awaitable[None]]


class LiveRack:
    """A fabric, and the agents of the leaves that are started in it; all over mutual TLS."""

    def __init__(self, authority: Authority, directory: Path, stack: AsyncExitStack) -> None:
        self.authority, self.directory, self.stack = authority, directory, stack
        self.agents: dict[str, tuple[asyncio.Event, asyncio.Task[None]]] = {}
        self.fabric: RunningService | None = None

    def identity(self, name: str, spiffe_id: str, *dns: str) -> Identity:
        self.authority.save(self.directory)
        cert, key = self.authority.issue(name, spiffe_id, dns=dns).save(self.directory, name)
        return Identity(self.directory / "ca.crt", cert, key)

    def _paths(self, found: Identity) -> dict[str, str]:
        return {"tls_ca": str(found.ca), "tls_cert": str(found.cert), "tls_key": str(found.key)}

    async def start_fabric(self, database_url: str, nats_url: str) -> None:
        certificate = self.identity("fabric", identity.service_id("fabric"), "fabric.metalplane")
        settings = ServiceSettings(
            listen="127.0.0.1:0",
            database_url=database_url,
            nats_url=nats_url,
            drain_seconds=1,
            **self._paths(certificate),
        )
        self.fabric = await start(SPEC, settings)
        self.stack.push_async_callback(self.fabric.stop)

    def start_agent(self, spec: LeafSpec, database_config: Path, **settings: Any) -> None:
        """Start the agent of a leaf; `settings` say more than a leaf without FRR needs."""
        assert self.fabric is not None
        name = spec.name
        wanted = CoreSettings(
            **{
                "partition": "mini",
                "rack": "rack1",
                "uplinks": spec.uplinks,
                "peers": {"fabric": self.fabric.address},
                "state_directory": self.directory / name / "state",
                "frr_conf": self.directory / name / "frr.conf",
                "vtysh": "",
                "database_config": database_config,
                "observe_seconds": 0.1,
                **self._paths(self.identity(name, identity.leaf_id("mini", name))),
                **settings,
            }
        )
        stopping = asyncio.Event()
        agent = Agent(
            "metal-core", wanted, lambda: Peers(wanted.peers, identity_of(wanted)), stopping, logs.get_logger(name)
        )

        async def run() -> None:
            try:
                await core.run(agent)
            finally:
                await agent.close()

        self.agents[name] = stopping, asyncio.create_task(run(), name=name)

    async def stop_agent(self, name: str) -> None:
        """Have the agent of a leaf end as it does on a signal."""
        stopping, task = self.agents.pop(name)
        stopping.set()
        await task

    async def kill_agent(self, name: str) -> None:
        """End the agent of a leaf wherever it is; nothing happens when there is none."""
        stopping, task = self.agents.pop(name, (asyncio.Event(), None))
        stopping.set()
        async with asyncio.timeout(20):
            while task is not None and not task.done():
                # The client library of Redis can turn a cancellation into a timeout of its own.
                task.cancel()
                await asyncio.wait([task], timeout=0.2)

    async def stop_agents(self) -> None:
        agents, self.agents = self.agents, {}
        for stopping, _ in agents.values():
            stopping.set()
        await asyncio.gather(*(task for _, task in agents.values()))

    def stub(self, stub: Any, service: str) -> Any:
        assert self.fabric is not None
        peers = Peers({"fabric": self.fabric.address}, self.identity(service, identity.service_id(service)))
        self.stack.push_async_callback(peers.close)
        return peers.stub(stub, "fabric")


def on_leaves(leaves: Sequence[str], port: str) -> ConnectMachineRequest:
    """The request that cables a new machine to `port` of two leaves."""
    machine = str(uuid4())
    request = ConnectMachineRequest(machine=machine, partition="mini")
    for number, leaf in enumerate(leaves):
        mac = f"aa:{machine[:2]}:{machine[2:4]}:{machine[4:6]}:{machine[6:8]}:0{number}"
        request.neighbours.add(nic_mac=mac, system_name=leaf, port_id=port)
    return request


def attach(machine: str, allocation: str, vrf: int, *prefixes: str) -> AttachMachineRequest:
    """The request that brings a machine into a tenant's VRF."""
    return AttachMachineRequest(
        machine=machine,
        allocation=allocation,
        role=PortRole.PORT_ROLE_MACHINE,
        vrf=vrf,
        allowed_prefixes=prefixes,
    )


async def confirmed(switches: Any, eventually: Eventually, machine: str) -> Attachment:
    """The attachment of a machine, once both leaves have confirmed it."""
    found: list[Attachment] = []

    async def both() -> bool:
        found.append(await switches.GetAttachment(GetAttachmentRequest(machine=machine)))
        return found[-1].confirmed

    await eventually(both, seconds=30)
    return found[-1]
