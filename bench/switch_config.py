"""From a tenant's wish to leaves that have it: how long does it take, and what does it cost?

`bench/switch_config.py [--json FILE] [--quick] [--only NAME,...]`. Fabric, Postgres, NATS, Redis, FRR and the agents
are the real ones, in processes of their own; the switch behind Redis is simulated (it follows 10 ms after a change),
and FRR has no links, so no session has to come back. What needs FRR needs root, and is left out visibly without.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import uvloop
from _switch_core import deltas, left_out, looks, restored
from _switch_fabric import compute, connected, wishes
from _switch_frr import missing
from _switch_plane import directory
from metal_kit import logs
from report import Answer, arguments, finish

Question = Callable[[Path, bool], Awaitable[list[Answer]]]
WITH_FRR: dict[str, Question] = {"wish": wishes, "delta": deltas, "nothing": looks, "restore": restored}
QUESTIONS: dict[str, Question] = WITH_FRR | {"compute": compute, "leaves": connected}


async def measure(quick: bool, only: Sequence[str]) -> list[Answer]:
    """The questions, each in a directory of its own."""
    answers: list[Answer] = []
    for name, question in QUESTIONS.items():
        if only and name not in only:
            continue
        if name in WITH_FRR and (reason := missing()):
            found = [left_out(name, reason)]
        else:
            with directory() as where:
                found = await question(where, quick)
        for answer in found:
            print(answer.line(), file=sys.stderr, flush=True)
        answers += found
    return answers


def main() -> int:
    """The console's entry."""
    options = arguments(__doc__.partition("\n")[0], own=("--only",))
    logs.configure("error", json=True)
    only = [name for name in (options.only or "").split(",") if name]
    if unknown := set(only) - QUESTIONS.keys():
        print(f"no such question: {', '.join(sorted(unknown))}; there are {', '.join(QUESTIONS)}", file=sys.stderr)
        return 2
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return finish(runner.run(measure(options.quick, only)), options)


if __name__ == "__main__":
    sys.exit(main())
