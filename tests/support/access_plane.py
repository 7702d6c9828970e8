"""One real plane for the proofs of access: all services, and two tenants with everything that a tenant can have.

Whatever belongs to the tenant A is what strangers must neither see nor change; the tenant B is such a stranger, with a
project, a network, a machine and an allocation of his own. There is no rack: the tests themselves are the boot service,
the leaves and the installers, with certificates as these have them.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import asyncpg
from access_objects import Objects, make_objects
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from metal_kit import identity
from metal_kit.ca import Authority, Issued
from metal_kit.client import Peers
from metal_kit.runtime import RunningService, start
from metal_kit.tls import Identity
from metal_lab.pki import MACHINE_AUTHORITY, LabPki
from metal_lab.plane import SPECS, PlaneSettings
from metal_lab.servers import Nats, Postgres
from metal_lab.servers.ports import free_ports
from metal_tenancy.bootstrap import operator_token
from metal_tenancy.service import Settings as TenancySettings

PARTITION, ELSEWHERE = "mini", "elsewhere"
# Nobody answers BMCs here, so none is asked more often than it has to be.
_OWN: dict[str, dict[str, Any]] = {"bmc": {"driver_processes": 2, "poll_seconds": 3600, "exchange_seconds": 2}}
# Thousands of calls in seconds, most of them refused, are what the limits are against.
_UNLIMITED = dict.fromkeys(
    ("limit_users", "limit_agents", "limit_services", "limit_strangers"),
    "rate=100000,burst=100000,calls=1000,streams=1000",
)


@dataclass
class AccessPlane:
    """The running services, who can speak to them, and the objects that are in them."""

    directory: Path
    pki: LabPki
    root: Authority
    machines: Authority
    database_url: str
    addresses: dict[str, str]
    services: list[RunningService]
    operator: str
    stack: AsyncExitStack
    objects: Objects = field(init=False)
    _peers: dict[tuple[str, str], Peers] = field(default_factory=dict)

    def identity(self, spiffe_id: str, *, by: Authority | None = None, ttl: timedelta | None = None) -> Identity:
        """A certificate for a name, from the plane's own authority unless `by` says otherwise."""
        name = f"c{uuid4().hex[:12]}"
        issued = (by or self.root).issue(name, spiffe_id, ttl=ttl or timedelta(hours=1))
        return Identity(self.pki.ca, *issued.save(self.directory, name))

    def installer(self, machine: str, session: str) -> Identity:
        """A machine's certificate, as boot makes it for one boot."""
        key = ec.generate_private_key(ec.SECP256R1())
        request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
        pem = request.public_bytes(serialization.Encoding.PEM)
        spiffe_id = identity.machine_id(machine)
        chain = self.machines.sign_request(pem, machine, spiffe_id, timedelta(hours=1), serial=UUID(session).int)
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        cert, secret = Issued(chain, private).save(self.directory, f"c{uuid4().hex[:12]}")
        return Identity(self.pki.ca, cert, secret)

    def peers(self, spiffe_id: str = "", token: str = "") -> Peers:
        """The plane as a certificate's bearer sees it, or a person with a token; the operator by default."""
        token = token or ("" if spiffe_id else self.operator)
        key = (spiffe_id, token)
        if key not in self._peers:
            mine = self.identity(spiffe_id or identity.client_id("tool"))
            self._peers[key] = Peers(self.addresses, mine, token=(lambda: token) if token else None)
            self.stack.push_async_callback(self._peers[key].close)
        return self._peers[key]

    async def sql(self, query: str, *values: Any) -> list[asyncpg.Record]:
        """Rows straight from the database; name the schema."""
        connection = await asyncpg.connect(self.database_url)
        try:
            return list(await connection.fetch(query, *values))
        finally:
            await connection.close()


@asynccontextmanager
async def access_plane(directory: Path, postgres: Postgres) -> AsyncIterator[AccessPlane]:
    """The plane, with its objects made."""
    async with AsyncExitStack() as stack:
        nats = Nats(directory / "nats")
        stack.push_async_callback(nats.stop)
        await nats.start()
        pki = LabPki(directory)
        pki.machine_authority()
        names = [*(spec.name for spec in SPECS), "boot-http"]
        settings = PlaneSettings(
            pki=pki,
            partition=PARTITION,
            database_url=await _database(postgres, stack),
            nats_url=nats.url,
            ports=dict(zip(names, free_ports(len(names)), strict=True)),
            secrets={"paging_key": "p" * 32, "bmc_key": secrets.token_hex(32), "boot_key": secrets.token_hex(32)},
            log_directory=directory,
        )
        tenancy = settings.of("tenancy")
        assert isinstance(tenancy, TenancySettings)
        operator = await operator_token(
            tenancy, user="root", lifetime=timedelta(hours=1), description="for the proofs of access"
        )
        services = []
        for spec in SPECS:
            values = settings.values(spec.name) | _UNLIMITED | _OWN.get(spec.name, {})
            running = await start(spec, spec.settings(**values))
            stack.push_async_callback(running.stop, 0)
            services.append(running)
        plane = AccessPlane(
            directory, pki, Authority.load(directory), Authority.load(directory, MACHINE_AUTHORITY),
            settings.database_url, settings.endpoints, services, operator, stack,
        )  # fmt: skip
        async with asyncio.timeout(60):
            plane.objects = await make_objects(plane)
        yield plane


async def _database(postgres: Postgres, stack: AsyncExitStack) -> str:
    name = f"access_{uuid4().hex}"

    async def on_server(statement: str) -> None:
        connection = await asyncpg.connect(postgres.url, timeout=10)
        try:
            await connection.execute(statement, timeout=30)
        finally:
            await connection.close()

    await on_server(f'CREATE DATABASE "{name}" TEMPLATE template0 STRATEGY file_copy')
    stack.push_async_callback(on_server, f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')
    return postgres.database_url(name)
