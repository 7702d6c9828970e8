"""The plane's side of bench/bmc.py: the real metal_bmc in a process of its own, so that its memory is its.

`_bmc_server.py SETTINGS.json` prints one line of JSON with its address and serves until its standard input ends.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import uvloop
from metal_bmc.service import SPEC
from metal_kit import logs
from metal_kit.runtime import start


async def serve(settings: dict[str, Any]) -> None:
    """Until standard input ends."""
    running = await start(SPEC, SPEC.settings(**settings["bmc"]))
    print(json.dumps({"bmc": running.address}), flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await running.stop(1)


def main() -> None:
    """The process."""
    settings = json.loads(Path(sys.argv[1]).read_text())
    with open(settings["log"], "w", encoding="utf-8", buffering=1) as log:
        logs.configure("info", json=True, stream=log)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve(settings))


if __name__ == "__main__":
    main()
