"""The plane as docker-compose.yml describes it, with processes for containers and loopback ports for names.

Commands, settings, health checks and the order of things are read from the Compose file; metal-init makes the secrets;
the entry point and nginx.conf are the ones that get into the containers. What an engine would add (images, volumes,
networks) is not under test here.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import ssl
import sys
import sysconfig
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import yaml
from metal_init.plane import MOUNTED, NATS_LISTEN, NATS_MONITOR, NATS_STORE, SERVICES
from metal_kit import health_check
from metal_kit.client import Peers
from metal_kit.tls import Identity
from metal_lab.servers import Postgres
from metal_lab.servers.binaries import nats_server
from metal_lab.servers.ports import LOOPBACK, free_port
from metal_lab.servers.process import ServerProcess

ROOT = Path(__file__).parents[3]
SCRIPTS = Path(sysconfig.get_path("scripts"))
START_LIMIT = timedelta(seconds=90)
COMMAND_SECONDS = 60
DATABASE = "metalplane"
NGINX = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
REQUIRED = os.environ.get("METALPLANE_REQUIRE_PEERS") == "1"


@dataclass
class Done:
    """A command that ended."""

    code: int
    out: str
    err: str


@dataclass
class ComposedPlane:
    """The running plane. `ports` has a port for each service, and `boot-http`, `<service>-metrics`, `edge`."""

    directory: Path
    compose: dict[str, Any]
    postgres_port: int
    nats_port: int
    ports: dict[str, int]
    processes: dict[str, ServerProcess] = field(default_factory=dict)

    @property
    def secrets(self) -> Path:
        """Folders that would be volumes."""
        return self.directory / "secrets"

    def address(self, name: str) -> str:
        """Loopback address of a port by its name."""
        return f"{LOOPBACK}:{self.ports[name]}"

    def here(self, name: str, text: str) -> str:
        """A text of the Compose file with variables at their defaults, and addresses and paths of this machine."""
        text = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)
        text = text.replace(MOUNTED, str(self.secrets / name))
        text = text.replace("0.0.0.0:9100", self.address(f"{name}-metrics") if name in SERVICES else "")
        text = text.replace(f"{LOOPBACK}:8080", self.address("boot-http")).replace(
            f"{LOOPBACK}:9444", self.address("boot")
        )
        for own in ("0.0.0.0:9000", f"{LOOPBACK}:9000"):
            text = text.replace(own, self.address(name) if name in SERVICES else "")
        text = text.replace("0.0.0.0:8080", self.address("boot-http"))
        return re.sub(r"\b([a-z]+):9000\b", lambda found: self.address(found[1]), text)

    def environment(self, name: str) -> dict[str, str]:
        """What a container's process would see, before the entry point adds the secrets."""
        given = self.compose["services"][name].get("environment", {})
        return {
            "PATH": f"{SCRIPTS}:{os.environ.get('PATH', '')}",
            # The code under test is the one that the tests see.
            **{key: os.environ[key] for key in ("PYTHONPATH",) if key in os.environ},
            "METALPLANE_ENV_FILE": str(self.secrets / name / "env"),
            **{key: self.here(name, value) for key, value in given.items()},
        }

    async def run(self, name: str, *command: str, **more: str) -> Done:
        """Run a command in what would be a container of the service (`docker-compose run --rm NAME COMMAND`)."""
        process = await asyncio.create_subprocess_exec(
            *("sh", str(ROOT / "deploy" / "entrypoint.sh"), *_program(command)),
            env=self.environment(name) | more,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        async with asyncio.timeout(COMMAND_SECONDS):
            out, err = await process.communicate()
        return Done(process.returncode or 0, out.decode(), err.decode())

    async def init(self, *command: str) -> Done:
        """Run metal-init as the container `init` does."""
        return await self.run(
            "init",
            *("metal-init", *command),
            METALPLANE_INIT_ROOT=str(self.secrets),
            METALPLANE_INIT_DATABASE_SERVER=f"{LOOPBACK}:{self.postgres_port}",
            METALPLANE_INIT_NATS_SERVER=f"{LOOPBACK}:{self.nats_port}",
        )

    async def start_service(self, name: str) -> None:
        """Start a service's command and wait until it serves."""
        process = self.processes.setdefault(
            name, ServerProcess(f"metal-{name}", self.directory / "logs", stop_signal=signal.SIGTERM)
        )
        command = self.compose["services"][name]["command"]
        await process.start(
            ["/bin/sh", str(ROOT / "deploy" / "entrypoint.sh"), *_program(command)],
            ready=lambda: self.healthy(name),
            limit=START_LIMIT,
            environment=self.environment(name),
        )

    async def healthy(self, name: str) -> bool:
        """Whether the service says that it serves."""
        own = self.identity(name)
        fault = await asyncio.to_thread(
            health_check.check, self.address(name), name, ca=own.ca, cert=own.cert, key=own.key, seconds=1
        )
        return not fault

    def identity(self, name: str) -> Identity:
        """The certificate of a container."""
        folder = self.secrets / name
        return Identity(folder / "ca.crt", folder / "tls.crt", folder / "tls.key")

    def tls(self, name: str) -> ssl.SSLContext:
        """The same for clients that are not gRPC."""
        own = self.identity(name)
        context = ssl.create_default_context(cafile=str(own.ca))
        context.load_cert_chain(own.cert, own.key)
        return context

    def secret(self, name: str, setting: str) -> str:
        """A secret setting of a service."""
        found = re.search(rf"^{setting}='([^']*)'$", (self.secrets / name / "env").read_text(), re.MULTILINE)
        assert found is not None
        return found[1]

    def peers(self, token: str = "", *, as_: str = "edge") -> Peers:
        """Clients of the services themselves, with a certificate that authorises nothing unless `as_` says so."""
        endpoints = {name: self.address(name) for name in SERVICES}
        return Peers(endpoints, self.identity(as_), token=lambda: token)


def _program(command: list[str] | tuple[str, ...]) -> list[str]:
    """The command with the program of this virtual environment."""
    program, *rest = command
    if program == "python":
        return [sys.executable, *rest]
    script = SCRIPTS / program
    # Console scripts exist once the project was installed after they were added; the modules always do.
    return [str(script), *rest] if script.exists() else [sys.executable, "-m", program.replace("-", "_"), *rest]


@pytest.fixture(scope="session")
async def composed(server_directory: Path) -> AsyncIterator[ComposedPlane]:
    """The whole plane without its edge, started once."""
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    directory = server_directory / "composed"
    names = [*SERVICES, "boot-http", "edge", "edge-health", *(f"{name}-metrics" for name in SERVICES)]
    plane = ComposedPlane(directory, compose, free_port(), free_port(), {name: free_port() for name in names})
    (directory / "logs").mkdir(parents=True)
    directory.chmod(0o711)
    async with AsyncExitStack() as stack:
        made = await plane.init("plane")
        assert made.code == 0, made.err
        await _start_servers(plane, stack)
        made = await plane.run("database", *compose["services"]["database"]["command"])
        assert made.code == 0, made.err
        for name in SERVICES:
            stack.push_async_callback(_stop, plane, name)
        await asyncio.gather(*(plane.start_service(name) for name in SERVICES))
        yield plane


async def _start_servers(plane: ComposedPlane, stack: AsyncExitStack) -> None:
    password = (plane.secrets / "postgres" / "password").read_text()
    postgres = Postgres(plane.directory / "postgres", durable=False, port=plane.postgres_port, password=password)
    await postgres.start()
    stack.push_async_callback(postgres.stop)
    connection = await asyncpg.connect(postgres.url)
    await connection.execute(f"CREATE DATABASE {DATABASE}")
    await connection.close()
    configuration = (plane.secrets / "nats" / "nats.conf").read_text()
    for theirs, ours in (
        (NATS_LISTEN, f"{LOOPBACK}:{plane.nats_port}"),
        (NATS_MONITOR, f"{LOOPBACK}:{free_port()}"),
        (MOUNTED, str(plane.secrets / "nats")),
        (f'"{NATS_STORE}"', f'"{plane.directory / "nats" / "store"}"'),
    ):
        assert theirs in configuration
        configuration = configuration.replace(theirs, ours)
    path = plane.directory / "nats.conf"
    path.write_text(configuration)
    nats = ServerProcess("nats", plane.directory / "logs", stop_signal=signal.SIGTERM)
    command = [str(nats_server()), "-c", str(path)]
    await nats.start(command, ready=lambda: listening(plane.nats_port), limit=START_LIMIT)
    stack.push_async_callback(nats.stop)
    plane.processes["nats"] = nats


async def listening(port: int) -> bool:
    """Whether somebody takes connections; NATS does once it has recovered its streams."""
    try:
        _, writer = await asyncio.open_connection(LOOPBACK, port)
    except OSError:
        return False
    writer.close()
    return True


async def _stop(plane: ComposedPlane, name: str) -> None:
    if name in plane.processes:
        await plane.processes[name].stop()


@pytest.fixture(scope="session")
async def operator(composed: ComposedPlane) -> str:
    """The first operator's token, made as the README says."""
    done = await composed.run("tenancy", "metal-tenancy", "bootstrap", "--user", "anna")
    assert done.code == 0, done.err
    return done.out.strip()


def nginx_program() -> str:
    """The program nginx; skips the test where there is none and none is demanded."""
    if NGINX is None:
        assert not REQUIRED, "METALPLANE_REQUIRE_PEERS is set and there is no nginx"
        pytest.skip("no nginx here (`make peers` installs it)")
    return NGINX


@dataclass
class Edge:
    """nginx with our configuration, and clients that go through it as metalctl does."""

    plane: ComposedPlane
    directory: Path
    process: ServerProcess

    @property
    def endpoint(self) -> str:
        """Its one address, by a name that its certificate carries."""
        return f"localhost:{self.plane.ports['edge']}"

    def peers(
        self,
        token: str | Callable[[], str] = "",
        *,
        server_name: str = "localhost",
        ca: Path | None = None,
        services: Sequence[str] = SERVICES,
    ) -> Peers:
        """Clients of all services, with nothing but the edge's address."""
        own = self.plane.identity("edge")
        return Peers(
            dict.fromkeys(services, self.endpoint),
            Identity(ca or own.ca, own.cert, own.key),
            token=token if callable(token) else lambda: token,
            server_names=dict.fromkeys(services, server_name),
        )

    def log(self) -> str:
        """What it logged."""
        return self.process.log_path.read_text()


def edge_configuration(plane: ComposedPlane, directory: Path) -> Path:
    """The edge's folder with this machine's ports and paths; the path of its nginx.conf."""
    directory.mkdir(parents=True)
    for name in ("nginx.conf", "backends.conf", "resolver.conf"):
        text = (ROOT / "deploy" / "edge" / name).read_text()
        text = text.replace("/tmp/", f"{directory}/").replace(MOUNTED, str(plane.secrets / "edge"))
        text = text.replace("listen 8443 ", f"listen {plane.address('edge')} ")
        # What nginx waits for between two pieces of a request, 60 s by itself.
        text = text.replace("client_max_body_size 5m;", "client_max_body_size 5m; client_body_timeout 1s;")
        text = text.replace("127.0.0.1:8081", plane.address("edge-health"))
        (directory / name).write_text(plane.here("edge", text))
    return directory / "nginx.conf"


def nginx_command(configuration: Path) -> list[str]:
    """How the container starts nginx; a root's workers would otherwise be another user, whom temporary files refuse."""
    command = [nginx_program(), "-e", "/dev/stderr", "-c", str(configuration)]
    return [*command, "-g", "user root;"] if os.geteuid() == 0 else command


@pytest.fixture(scope="session")
async def edge(composed: ComposedPlane) -> AsyncIterator[Edge]:
    """The edge in front of the plane."""
    directory = composed.directory / "edge"
    command = nginx_command(edge_configuration(composed, directory))
    process = ServerProcess("edge", composed.directory / "logs", stop_signal=signal.SIGQUIT)
    await process.start(command, ready=lambda: listening(composed.ports["edge"]), limit=START_LIMIT)
    yield Edge(composed, directory, process)
    await process.stop()
