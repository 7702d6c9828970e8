"""The BMCs of bench/bmc.py in a process of their own, so that their cost is not in ours.

`_bmc_farm.py COUNT` prints one line of JSON with addresses and machines, then answers each line of its standard input
with one line, and ends when that ends. Times are of the clock that all processes of a host share (CLOCK_MONOTONIC).

`{"dead": N}`: the first N fall silent, the others answer. `{"take": true}`: what was seen since the last time, as lists
of [number, time]: readings of the power, power orders; memory in MiB, CPU seconds.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import uvloop
from metal_sim.bmc import BmcFarm, PowerAction, SimulatedBmc
from metal_sim.bmc.farm import machine_uuid

PASSWORD = "bench"
_STATUS = (0, 1)
_SLOTS = 16


class Watched(SimulatedBmc):
    """Notes when its machine's power is asked for."""

    def __init__(self, number: int, asked: list[tuple[int, float]], machine: str, **options: Any) -> None:
        super().__init__(machine, **options)
        self._number, self._asked = number, asked

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        """Answer one packet."""
        before = self.seen[_STATUS]
        super().datagram_received(data, addr)
        if self.seen[_STATUS] != before:
            self._asked.append((self._number, time.monotonic()))


class Farm:
    """The BMCs and what was seen."""

    def __init__(self, count: int) -> None:
        self.bmcs = BmcFarm()
        self._silenced = 0
        self._asked: list[tuple[int, float]] = []
        self._ordered: list[tuple[int, float]] = []
        for number in range(count):
            uuid = machine_uuid(self.bmcs.network[number + 1])
            bmc = Watched(number, self._asked, uuid, password=PASSWORD, powered=True, session_slots=_SLOTS,
                          on_power=partial(self._order, number))  # fmt: skip
            self.bmcs.add(bmc)
        self.bmcs.start()

    def _order(self, number: int, _action: PowerAction) -> None:
        self._ordered.append((number, time.monotonic()))

    @property
    def left_open(self) -> int:
        """Sessions that are open; a BMC that fell silent did not hear the goodbye."""
        return sum(bmc.active_sessions for bmc in list(self.bmcs)[self._silenced :])

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """One line's answer."""
        if "dead" in request:
            self._silenced = max(self._silenced, request["dead"])
            for number, bmc in enumerate(self.bmcs):
                (bmc.faults.switch_on if number < request["dead"] else bmc.faults.switch_off)("hang")
            return {}
        answer = {"asked": list(self._asked), "ordered": list(self._ordered), "cpu": time.process_time(),
                  "memory": _memory()}  # fmt: skip
        self._asked.clear()
        self._ordered.clear()
        return answer


def _memory() -> float:
    return int(Path("/proc/self/status").read_text().partition("VmRSS:")[2].split()[0]) / 1024


async def main(count: int) -> None:
    """Serve `count` BMCs."""
    farm = Farm(count)
    bmcs = [[bmc.machine, *bmc.address] for bmc in farm.bmcs]
    print(json.dumps(bmcs), flush=True)
    while line := await asyncio.to_thread(sys.stdin.readline):
        print(json.dumps(farm.answer(json.loads(line))), flush=True)
    print(json.dumps({"active": farm.left_open}), flush=True)
    farm.bmcs.stop()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main(int(sys.argv[1])))
