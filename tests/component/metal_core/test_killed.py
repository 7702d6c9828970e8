"""The agent as a process, killed between any two of its steps, on a real Redis and a real FRR: the next one converges.

The machine's network is not touched (see `scratch_frr`), so FRR is judged by what it says it is configured with.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from itertools import product
from pathlib import Path

import pytest
from leaf_rack import Rack, applied, state
from metal_core.compare import LeafFacts, compare
from metal_core.vtysh import Vtysh
from metal_core.wire import desired_of
from metalplane.fabric.v1.agent_pb2 import DesiredState
from metalplane.fabric.v1.switch_pb2 import PortRole
from redis.asyncio import Redis
from scratch_frr import ScratchFrr, peer

Eventually = Callable[..., Awaitable[None]]
# A dozen processes start one after the other.
pytestmark = [pytest.mark.peer, peer, pytest.mark.timeout(400)]
# Talks to FRR, until the change that the test has chosen: of that it makes a half or the whole, and the agent dies.
_VTYSH = """\
#!/bin/sh
case "$1 $2" in "-f "*|"-c configure terminal") if [ -f {left} ]; then
  read -r left part < {left}
  left=$((left - 1)); echo $left $part > {left}
  if [ $left = 0 ]; then
    rm {left}
    if [ $part = half ]; then
      [ "$1" = -f ] && head -n $(($(wc -l < "$2") / 2)) "$2" > {left}.conf && {vtysh} -f {left}.conf
    else
      {vtysh} "$@"
    fi
    kill -9 $PPID
    exit 1
  fi
fi;; esac
exec {vtysh} "$@"
"""


@pytest.fixture
async def frr() -> AsyncIterator[ScratchFrr]:
    """A zebra and a bgpd with nothing configured."""
    frr = ScratchFrr()
    try:
        await frr.start()
        yield frr
    finally:
        await frr.stop()


class Doomed:
    """The agent's process on a leaf, and the ways to have it die at a chosen step."""

    def __init__(self, rack: Rack, frr: ScratchFrr, directory: Path) -> None:
        self.rack, self.frr = rack, frr
        self.left = directory / "left"
        self._script = directory / "vtysh"
        self._script.write_text(_VTYSH.format(left=self.left, vtysh=" ".join(frr.vtysh)))
        self._script.chmod(0o755)
        self.vtysh = Vtysh(frr.vtysh, directory)
        self.process: asyncio.subprocess.Process | None = None

    @property
    def dead(self) -> bool:
        """Whether the agent has ended."""
        return self.process is not None and self.process.returncode is not None

    async def start(self) -> None:
        """Start the agent, unless it lives."""
        if self.process is None or self.dead:
            self.process = await self.rack.start_process(vtysh=str(self._script))

    async def stop(self) -> None:
        """Kill the agent if it still lives."""
        if self.process is not None:
            if self.process.returncode is None:
                self.process.kill()
            await self.process.wait()

    def die_at_change(self, number: int, part: str) -> None:
        """Have the agent killed at its change of FRR of this number from now on, when `half` or `all` of it is made."""
        self.left.write_text(f"{number} {part}\n")

    async def die_at_row(self, number: int) -> None:
        """Kill the agent as soon as so many rows of CONFIG_DB have changed."""
        config = self.rack.bench.sonic.client("CONFIG_DB")
        database = config.connection_pool.connection_kwargs["db"]
        events = Redis(unix_socket_path=str(self.rack.bench.server.socket)).pubsub()
        await events.psubscribe(f"__keyspace@{database}__:*")
        try:
            left = number + 1  # one more for the answer to the subscription
            while left and not self.dead:
                left -= await events.get_message(timeout=0.5) is not None
            await self.stop()
        finally:
            await events.aclose()  # type: ignore[no-untyped-call]

    async def has(self, wanted: DesiredState) -> bool:
        """Whether rows, FRR and the file for FRR's next boot are as they shall be."""
        desired = desired_of(wanted)
        facts = LeafFacts(await self.rack.bench.sonic.config(), await self.vtysh.running())
        return not compare(desired, facts) and f"router bgp {desired.asn}" in self.rack.bench.frr_conf.read_text()


@pytest.fixture
async def doomed(rack: Rack, frr: ScratchFrr, tmp_path: Path) -> AsyncIterator[Doomed]:
    """An agent that has been started."""
    doomed = Doomed(rack, frr, tmp_path)
    await doomed.start()
    yield doomed
    await doomed.stop()
    # Only now: it is asked after each of the agent's ends, and once closed it answers nobody.
    await doomed.vtysh.close()


def everything_moves(generation: int) -> DesiredState:
    """Ethernet0 from VRF to VRF, Ethernet4 a firewall or not, and filters that change with both."""
    wanted = state(generation, 2000 + generation % 2)
    if generation % 2:
        port = wanted.ports[3]
        port.role, port.mtu = PortRole.PORT_ROLE_FIREWALL, 9216
        port.vnis.append(2001)
        port.allowed_prefixes.extend(["10.0.9.1/32", "2001:db8:9::1/128"])
    return wanted


async def test_an_agent_killed_at_any_change_of_frr_is_made_good_by_the_next_one(
    doomed: Doomed, eventually: Eventually
) -> None:
    generation, killed = 1, []
    await _want(doomed, generation, eventually)
    for number, part in product(range(1, 9), ("half", "all")):
        generation += 1
        doomed.die_at_change(number, part)
        if not await _want(doomed, generation, eventually):
            break
        killed.append((number, part))
    assert killed[-1][0] >= 3, "letting go of neighbours, of VRFs, and taking what is new"
    assert doomed.rack.bench.leaf.violations == []


async def test_an_agent_killed_between_rows_is_made_good_by_the_next_one(
    doomed: Doomed, eventually: Eventually
) -> None:
    generation, killed = 1, 0
    doomed.rack.bench.leaf.faults.orchagent_delay = 0.05
    await _want(doomed, generation, eventually)
    for row in (1, 7, 13):
        generation += 1
        death = asyncio.create_task(doomed.die_at_row(row))
        killed += await _want(doomed, generation, eventually)
        await death
    assert killed >= 2
    assert doomed.rack.bench.leaf.violations == []


async def _want(doomed: Doomed, generation: int, eventually: Eventually) -> bool:
    """Want the generation until the leaf has it, with another agent if the first one dies; whether it did."""
    wanted, is_applied = everything_moves(generation), applied(doomed.rack, generation)
    doomed.rack.fabric.want(wanted)
    await eventually(lambda: is_applied() or doomed.dead, seconds=60)
    died = doomed.dead
    await doomed.start()
    await eventually(is_applied, seconds=60)
    assert await doomed.has(wanted)
    return died
