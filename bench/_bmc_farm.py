"""The BMCs of bench/bmc.py in a process of their own, so that their cost is not in ours.

`_bmc_farm.py COUNT` prints one line of JSON with the ports and serves until its standard input ends.
"""

from __future__ import annotations

import asyncio
import json
import sys
import uuid

import uvloop
from metal_sim.bmc import SimulatedBmc

PASSWORD = "bench"


async def main(count: int) -> None:
    """Serve `count` BMCs."""
    bmcs = [
        SimulatedBmc(str(uuid.UUID(int=number + 1)), password=PASSWORD, powered=True, session_slots=16)
        for number in range(count)
    ]
    for bmc in bmcs:
        await bmc.start()
    print(json.dumps([bmc.address[1] for bmc in bmcs]), flush=True)
    await asyncio.to_thread(sys.stdin.read)
    print(json.dumps({"active": sum(bmc.active_sessions for bmc in bmcs)}), flush=True)


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main(int(sys.argv[1])))
