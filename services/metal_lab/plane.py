"""The services of the plane: all in this process, or one process each."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import signal
import sys
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from metal_allocation.service import SPEC as ALLOCATION
from metal_bmc.service import SPEC as BMC
from metal_boot.service import SPEC as BOOT
from metal_fabric.service import SPEC as FABRIC
from metal_inventory.service import SPEC as INVENTORY
from metal_ipam.service import SPEC as IPAM
from metal_kit.runtime import RunningService, ServiceSpec, start
from metal_kit.settings import ServiceSettings
from metal_tenancy.service import SPEC as TENANCY

from metal_lab.pki import MACHINE_AUTHORITY, LabPki
from metal_lab.servers.ports import is_free
from metal_lab.servers.process import ServerProcess

LOOPBACK = "127.0.0.1"
# Callees before callers: nothing depends on it, but the log of a start then reads without connection failures.
SPECS: tuple[ServiceSpec, ...] = (TENANCY, IPAM, FABRIC, INVENTORY, BMC, ALLOCATION, BOOT)
START_LIMIT = timedelta(seconds=60)
STATELESS = frozenset({"boot"})


@dataclass(frozen=True)
class PlaneSettings:
    """What the services are told, and where they are."""

    pki: LabPki
    partition: str
    database_url: str
    nats_url: str
    ports: Mapping[str, int]
    secrets: Mapping[str, str]
    log_directory: Path

    @property
    def endpoints(self) -> dict[str, str]:
        """Address of each service."""
        return {spec.name: f"{LOOPBACK}:{self.ports[spec.name]}" for spec in SPECS}

    @property
    def boot_url(self) -> str:
        """Where machines ask for something to boot."""
        return f"http://{LOOPBACK}:{self.ports['boot-http']}"

    def values(self, name: str) -> dict[str, Any]:
        """Settings of one service by their names."""
        identity = self.pki.service(name, self.partition)
        common: dict[str, Any] = {
            "listen": self.endpoints[name],
            "nats_url": self.nats_url,
            "tls_ca": str(identity.ca),
            "tls_cert": str(identity.cert),
            "tls_key": str(identity.key),
            "peers": self.endpoints,
            "drain_seconds": 3.0,
            "paging_key": self.secrets["paging_key"],
        }
        if name not in STATELESS:
            common["database_url"] = self.database_url
        return common | self._own(name)

    def _own(self, name: str) -> dict[str, Any]:
        """What only this service is told."""
        bmc_key = base64.b64encode(bytes.fromhex(self.secrets["bmc_key"])).decode()
        own: dict[str, dict[str, Any]] = {
            "tenancy": {"token_key": str(self.pki.token_key)},
            "bmc": {
                "partition": self.partition,
                "credential_keys": f"lab:{bmc_key}",
                # A lab is watched by people: half a minute is long.
                "poll_seconds": 10.0,
            },
            "boot": {
                "partition": self.partition,
                "http_listen": f"{LOOPBACK}:{self.ports['boot-http']}",
                "machine_ca": str(self.pki.machine_authority()),
                "machine_ca_name": MACHINE_AUTHORITY,
                "token_key": self.secrets["boot_key"],
            },
        }
        return own.get(name, {})

    def of(self, name: str) -> ServiceSettings:
        """Settings of one service."""
        spec = next(each for each in SPECS if each.name == name)
        return spec.settings(**self.values(name))


class Plane:
    """The running services."""

    def __init__(self, settings: PlaneSettings, *, processes: bool) -> None:
        self._settings = settings
        self._processes = processes
        self._running: list[RunningService] = []
        self._children: list[ServerProcess] = []

    async def start(self) -> None:
        """Start all services. Raises StartError or ServerError with one line that says which failed and why."""
        for spec in SPECS:
            if self._processes:
                await self._start_child(spec)
            else:
                self._running.append(await start(spec, self._settings.of(spec.name)))

    def ends(self) -> list[tuple[str, Coroutine[Any, Any, str]]]:
        """Each service's name, and what returns with the reason when the service has ended or has to."""
        found = [(service.name, end_of_service(service)) for service in self._running]
        return [*found, *((child.name, _end_of_child(child)) for child in self._children)]

    async def stop(self) -> None:
        """Stop all services, callers first."""
        for service in reversed(self._running):
            await service.stop(drain_seconds=2)
        await asyncio.gather(*(child.stop() for child in reversed(self._children)))

    async def _start_child(self, spec: ServiceSpec) -> None:
        child = ServerProcess(f"metal-{spec.name}", self._settings.log_directory, stop_signal=signal.SIGTERM)
        port = self._settings.ports[spec.name]

        async def listening() -> bool:
            return not is_free(port)

        self._children.append(child)
        await child.start(
            [sys.executable, "-m", f"metal_{spec.name}"],
            ready=listening,
            limit=START_LIMIT,
            environment={**os.environ, **environment(self._settings.values(spec.name))},
        )


async def end_of_service(service: RunningService) -> str:
    """Wait until a service loses a worker; it is stopped then, as its own process would stop."""
    task = await asyncio.shield(service.failed)
    await service.stop()
    return f"was stopped, since its task {task!r} has ended; the log says why"


async def _end_of_child(child: ServerProcess) -> str:
    status = await child.wait()
    return f"has ended with status {status}; {child.log_path} says why"


def environment(values: Mapping[str, Any]) -> dict[str, str]:
    """Settings as the environment that `metal_kit.settings` reads."""
    found = {}
    for name, value in values.items():
        text = json.dumps(value) if isinstance(value, dict | list | tuple) else str(value)
        found[f"METALPLANE_{name.upper()}"] = text
    return found
