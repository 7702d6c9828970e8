"""A leaf for bench/switch_config.py: real Redis, real FRR, a simulated orchagent, and the agent as a process."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _switch_frr import Frr, frr
from metal_core import databases
from metal_core.apply import Applier
from metal_core.confirm import Trials
from metal_core.desired import FIRST_VLAN, Desired, Port, PortRole, Vrf
from metal_core.frr.render import render
from metal_core.known_good import KnownGood, KnownGoodFile
from metal_core.sonic import Sonic
from metal_core.vtysh import Vtysh
from metal_kit.tls import Identity
from metal_lab.servers import Redis
from metal_sim.leaf import LeafSpec, SimLeaf

PARTITION = "mini"
UPLINKS = ("Ethernet4000", "Ethernet4004")
FIRST_VNI = 104_000
_END_SECONDS = 20.0
# The agent without what a development machine has and a leaf does not (`metalplane[leaf]`); structlog loads rich where
# it is there, which takes as long as the rest of it.
_AS_ON_A_LEAF = """
import sys
sys.modules.update(dict.fromkeys(("rich", "uvloop")))
from metal_core.__main__ import main
main()
"""


def machine_ports(count: int) -> tuple[str, ...]:
    """The ports of so many machines."""
    return tuple(f"Ethernet{4 * number}" for number in range(count))


def desired(spec: LeafSpec, tenants: int, generation: int = 1) -> Desired:
    """The state of a leaf with so many tenants, one machine each; the other ports wait in the PXE VLAN."""
    ports = [Port(name, PortRole.UPLINK) for name in spec.uplinks]
    vrfs = []
    for number, name in enumerate(each for each in spec.ports if each not in spec.uplinks):
        if number < tenants:
            vni = FIRST_VNI + number
            vrfs.append(Vrf(f"Vrf{vni}", vni, FIRST_VLAN + number))
            prefixes = (f"10.{number // 250}.{number % 250}.0/24", "10.128.0.0/14", f"2001:db8:{number:x}::/64")
            ports.append(Port(name, PortRole.MACHINE, vrf=f"Vrf{vni}", allowed_prefixes=prefixes))
        else:
            ports.append(Port(name, PortRole.UNPROVISIONED))
    return Desired(
        spec.name, generation, f"digest-{generation}", spec.asn, spec.loopback, spec.pxe_vlan, tuple(ports), tuple(vrfs)
    )


class AgentLog:
    """What an agent logs."""

    def __init__(self) -> None:
        self._events: dict[str, dict[str, Any]] = {}
        self._lines: deque[str] = deque(maxlen=20)
        self._news = asyncio.Event()
        self._ended = False

    async def read(self, stream: asyncio.StreamReader) -> None:
        """Take in lines until the agent ends."""
        async for raw in stream:
            self._lines.append(raw.decode(errors="replace"))
            with suppress(ValueError, TypeError, KeyError):
                entry = json.loads(raw)
                self._events[entry["event"]] = entry
            self._news.set()
        self._ended = True
        self._news.set()

    async def event(self, name: str, seconds: float = 60.0) -> dict[str, Any]:
        """The last entry of an event, once there is one. Raises RuntimeError when the agent ends before."""
        async with asyncio.timeout(seconds):
            while name not in self._events:
                if self._ended:
                    raise RuntimeError("the agent has ended: " + "".join(self._lines))
                self._news.clear()
                await self._news.wait()
        return self._events[name]


@dataclass
class Leaf:
    """A leaf that runs; `directory` has its agent's files."""

    spec: LeafSpec
    directory: Path
    switch: SimLeaf
    frr: Frr
    sonic: Sonic

    @property
    def frr_conf(self) -> Path:
        """What FRR would boot with."""
        return self.directory / "frr.conf"

    @property
    def known_good(self) -> KnownGoodFile:
        """The agent's memory."""
        return KnownGoodFile(self.directory / "state")

    def applier(self) -> Applier:
        """The agent's applier, in this process."""
        return Applier(self.sonic, self.frr.client, Trials(self.known_good), self.frr_conf)

    async def remember(self, state: Desired) -> None:
        """Leave what an agent leaves that has applied and proven this: its memory, and what FRR has accepted."""
        await self.known_good.store(KnownGood(state, time.time()))
        client, text = Vtysh(self.frr.vtysh, self.known_good.path.parent), render(state).text()
        await client.running()
        await client.check(text)
        await client.keep(text)
        await client.close()

    @asynccontextmanager
    async def agent(self, identity: Identity, fabric: str) -> AsyncIterator[AgentLog]:
        """`metal-core` as a process of its own, until the end of the block."""
        settings = {
            "TLS_CA": str(identity.ca), "TLS_CERT": str(identity.cert), "TLS_KEY": str(identity.key),
            "PEERS": json.dumps({"fabric": fabric}), "PARTITION": PARTITION, "RACK": "rack1",
            "UPLINKS": ",".join(self.spec.uplinks), "STATE_DIRECTORY": str(self.directory / "state"),
            "FRR_CONF": str(self.frr_conf), "VTYSH": " ".join(self.frr.vtysh),
            "DATABASE_CONFIG": str(self.switch.database_config),
        }  # fmt: skip
        environment = {f"METALPLANE_{name}": value for name, value in settings.items()}
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", _AS_ON_A_LEAF, env=byte_code(self.directory.parent) | environment,
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        assert process.stdout is not None
        log = AgentLog()
        reader = asyncio.create_task(log.read(process.stdout))
        try:
            yield log
        finally:
            if process.returncode is None:
                process.terminate()
            try:
                async with asyncio.timeout(_END_SECONDS):
                    await process.wait()
            finally:
                if process.returncode is None:
                    process.kill()
                    await process.wait()
                await reader


def byte_code(directory: Path) -> dict[str, str]:
    """The environment of a process whose modules are compiled, as they are in the image; `compiled` does that."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {**environment, "PYTHONPYCACHEPREFIX": str(directory / "byte-code")}


async def compiled(directory: Path) -> None:
    """Have everything that an agent of a leaf in `directory` imports compiled."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", "import metal_core.service"), env=byte_code(directory)
    )
    if await process.wait():
        raise RuntimeError("the agent's modules cannot be imported")


@asynccontextmanager
async def leaf(directory: Path, number: int, machines: int) -> AsyncIterator[Leaf]:
    """A leaf with ports for so many machines, as it is when it has been installed."""
    spec = LeafSpec(
        f"leaf0{number}", (*machine_ports(machines), *UPLINKS), UPLINKS, 4_200_000_010 + number, f"10.0.0.{number}"
    )
    home = directory / spec.name
    home.mkdir()
    home.chmod(0o755)
    (home / "state").mkdir()
    async with AsyncExitStack() as stack:
        redis = Redis(home / "redis")
        stack.push_async_callback(redis.stop)
        await redis.start()
        switch = await stack.enter_async_context(SimLeaf(spec, redis.socket, home))
        daemons = await stack.enter_async_context(frr(home / "frr"))
        sonic = Sonic(databases.read(switch.database_config))
        stack.push_async_callback(sonic.close)
        yield Leaf(spec, home, switch, daemons, sonic)
