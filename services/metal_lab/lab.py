"""The running lab: servers, plane, leaves and machines, started in order and stopped in reverse.

A lab that was killed starts again on its directory: its servers clear what was left over, Postgres and JetStream keep
what they had, the disks are as they were, and all machines are switched on: an allocated one boots its disk, any other
the installer.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Mapping
from contextlib import AsyncExitStack
from datetime import timedelta
from typing import Any

import asyncpg
from aiohttp import web
from metal_kit.client import Peers
from metal_kit.logs import get_logger
from metal_kit.process import StartError
from metal_tenancy.bootstrap import operator_token
from metal_tenancy.service import Settings as TenancySettings

from metal_lab import faults
from metal_lab.control import ControlServer
from metal_lab.health import Health
from metal_lab.pki import SERVICES, LabPki
from metal_lab.plane import Plane, PlaneSettings
from metal_lab.rack.leaf import LabLeaf
from metal_lab.rack.machine import LabMachine
from metal_lab.rack.model import RackFile
from metal_lab.rack.wiring import PlacedMachine, leaves, machines
from metal_lab.seed import Seed
from metal_lab.servers import Nats, Postgres, Redis
from metal_lab.state import LabInfo, State

log = get_logger(__name__)
LOOPBACK = "127.0.0.1"
DATABASE = "metalplane"
OPERATOR = "lab-operator"
TOKEN_LIFETIME = timedelta(days=30)


class Lab:
    """A whole control plane with a rack below it."""

    def __init__(self, state: State, file: RackFile, *, processes: bool = False) -> None:
        self.state = state
        self.file = file
        self.stopping = asyncio.Event()
        self.info = LabInfo(pid=os.getpid(), started=time.time(), rack=file.name, processes=processes)
        self.machines: dict[str, LabMachine] = {}
        self.leaves: dict[str, LabLeaf] = {}
        self.health = Health(self._degrade)
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Lab:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """Start everything; nothing is left running when it fails."""
        self.state.prepare()
        try:
            await self._start()
            if self.health.failures:
                raise StartError("; ".join(f"{name} {text}" for name, text in self.health.failures.items()))
        except BaseException as error:
            self.health.expect_end()
            self.info.error = str(error) or type(error).__name__
            self._stage("failed")
            await self._stack.aclose()
            raise
        self._stage("ready")

    async def stop(self) -> None:
        """Stop everything, machines first: a rack that loses its plane must not be mistaken for one that went wild."""
        self.health.expect_end()
        self._stage("stopping")
        await self._stack.aclose()
        self._stage("stopped")

    def _degrade(self) -> None:
        """A part has failed. While the lab still starts, `start` makes it a start that failed."""
        if self.info.stage == "ready":
            self._stage("degraded")

    def _stage(self, stage: str) -> None:
        self.info.stage = stage
        self.state.write_info(self.info)
        log.info("lab.stage", stage=stage)

    async def _start(self) -> None:
        placed = machines(self.file)
        names = [*SERVICES, "postgres", "nats", "boot-http", "images", *(f"bmc-{each.name}" for each in placed)]
        ports = self.state.ports(names)
        control = ControlServer(
            self.state.control_socket, status=self.status, port=self.port, fault=self.fault, stop=self.stopping
        )
        await control.start()
        self._stack.push_async_callback(control.stop)
        self._stack.push_async_callback(self.health.stop)

        self._stage("servers")
        pki = await asyncio.to_thread(LabPki, self.state.path("pki"))
        secrets = self.state.secrets()
        postgres, nats = await self._servers(ports, secrets)
        settings = PlaneSettings(
            pki=pki,
            partition=self.file.partition,
            database_url=postgres.database_url(DATABASE),
            nats_url=nats.url,
            ports=ports,
            secrets=secrets,
            log_directory=self.state.path("log"),
        )
        await self._serve_images(ports["images"])

        self._stage("services")
        token = await self._operator_token(settings)
        plane = Plane(settings, processes=self.info.processes)
        self._stack.push_async_callback(plane.stop)
        await plane.start()
        for name, end in plane.ends():
            self.health.watch(name, end)
        self.info.endpoints = settings.endpoints
        self.info.boot_url = settings.boot_url
        self._write_context(pki, settings, token)

        self._stage("seeding")
        peers = Peers(settings.endpoints, pki.client("lab"), token=lambda: token)
        self._stack.push_async_callback(peers.close)
        images_url = f"http://{LOOPBACK}:{ports['images']}"
        seed = Seed(self.file, peers, self.state.path("images"), images_url)
        await seed.catalogue()

        self._stage("leaves")
        await self._start_leaves(pki, settings)

        self._stage("machines")
        addresses = await self._start_machines(placed, settings, ports)
        await seed.bmcs({each.uuid: each for each in placed}, addresses, settings.secrets["bmc_password"])
        for machine in self.machines.values():
            machine.power_button()

    async def _servers(self, ports: Mapping[str, int], secrets: Mapping[str, str]) -> tuple[Postgres, Nats]:
        # With passwords: loopback is open to everybody who has a login here.
        postgres = Postgres(
            self.state.path("postgres"), port=ports["postgres"], durable=True, password=secrets["postgres_password"]
        )
        nats = Nats(self.state.path("nats"), port=ports["nats"], password=secrets["nats_password"])
        for server in (postgres, nats):
            self._stack.push_async_callback(server.stop)
        await asyncio.gather(postgres.start(), nats.start())
        self.health.watch("postgres", end_of(postgres))
        self.health.watch("nats", end_of(nats))
        await ensure_database(postgres, DATABASE)
        return postgres, nats

    async def _operator_token(self, settings: PlaneSettings) -> str:
        tenancy = settings.of("tenancy")
        if not isinstance(tenancy, TenancySettings):
            raise TypeError("tenancy has settings of its own")
        return await operator_token(
            tenancy, user=OPERATOR, lifetime=TOKEN_LIFETIME, description=f"made by the lab {self.file.name}"
        )

    def _write_context(self, pki: LabPki, settings: PlaneSettings, token: str) -> None:
        identity = pki.client("lab")
        self.state.write_context(
            {
                "name": "lab",
                "endpoints": settings.endpoints,
                "ca": str(identity.ca),
                "cert": str(identity.cert),
                "key": str(identity.key),
                "token": token,
            }
        )

    async def _serve_images(self, port: int) -> None:
        directory = self.state.path("images")
        directory.mkdir(exist_ok=True)
        app = web.Application()
        app.router.add_static("/", directory)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        self._stack.push_async_callback(runner.cleanup)
        await web.TCPSite(runner, LOOPBACK, port).start()

    async def _start_leaves(self, pki: LabPki, settings: PlaneSettings) -> None:
        for placed in leaves(self.file):
            leaf = LabLeaf(
                placed,
                partition=self.file.partition,
                pxe_vlan=self.file.pxe_vlan,
                directory=self.state.path("leaves", placed.leaf.name),
                sockets=self.state.sockets,
                identity=pki.leaf(self.file.partition, placed.leaf.name),
                fabric=settings.endpoints["fabric"],
            )
            self.leaves[placed.leaf.name] = leaf
            self._stack.push_async_callback(leaf.stop)
        await asyncio.gather(*(leaf.start() for leaf in self.leaves.values()))
        for name, leaf in self.leaves.items():
            self.health.watch(f"redis of {name}", end_of(leaf.redis))

    async def _start_machines(
        self, placed: list[PlacedMachine], settings: PlaneSettings, ports: Mapping[str, int]
    ) -> Mapping[str, str]:
        chassis = {name: leaf.placed.mac for name, leaf in self.leaves.items()}
        addresses = {}
        for each in placed:
            machine = LabMachine(
                each,
                leaves={name: leaf.switch for name, leaf in self.leaves.items()},
                chassis_ids=chassis,
                directory=self.state.path("machines", each.name),
                boot_url=settings.boot_url,
                password=settings.secrets["bmc_password"],
            )
            self.machines[each.name] = machine
            self._stack.push_async_callback(machine.stop)
            addresses[each.uuid] = await machine.start(ports[f"bmc-{each.name}"])
            self.health.watch(each.name, machine.failed())
        return addresses

    def status(self) -> Mapping[str, Any]:
        """What the lab itself knows; how the plane sees it is asked of the plane."""
        return {
            "stage": self.info.stage,
            "error": self.info.error,
            "pid": self.info.pid,
            "rack": self.file.name,
            "failures": dict(self.health.failures),
            "machines": {
                name: {
                    "uuid": machine.placed.uuid,
                    "rack": machine.placed.rack,
                    "activity": machine.activity,
                    "faults": faults.of_machine(machine),
                }
                for name, machine in self.machines.items()
            },
            "leaves": {
                name: {"agent": leaf.activity, "faults": faults.of_leaf(leaf)} for name, leaf in self.leaves.items()
            },
        }

    async def port(self, leaf: str, port: str) -> Mapping[str, Any]:
        """What the switch itself does with a port, read from its CONFIG_DB."""
        if leaf not in self.leaves:
            return {}
        switch = self.leaves[leaf].switch
        try:
            return {
                "vrf": await switch.vrf_of(port),
                "vlan": await switch.vlan_of(port),
                "vni": await switch.vni_of(port),
                "up": await switch.is_up(port),
            }
        except ValueError:
            return {}

    async def fault(self, name: str, target: str, on: bool) -> str:
        """Switch a fault on or off."""
        text = await faults.switch(self.machines, self.leaves, name, target, on=on)
        log.warning("lab.fault", fault=name, target=target, on=on)
        return text


async def end_of(server: Postgres | Nats | Redis) -> str:
    """Wait until a server ends."""
    status = await server.wait()
    how = f"signal {-status}" if status < 0 else f"status {status}"
    return f"has ended with {how}; its log is in {server.directory}"


async def ensure_database(postgres: Postgres, name: str) -> None:
    """Create a database that is not there yet."""
    connection = await asyncpg.connect(postgres.url, timeout=10)
    try:
        if not await connection.fetchval("SELECT 1 FROM pg_database WHERE datname = $1", name):
            await connection.execute(f'CREATE DATABASE "{name}"')
    finally:
        await connection.close()
