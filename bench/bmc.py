"""What does it cost to ask BMCs whether their machines are on?

`bench/bmc.py [--json FILE] [--quick] [--only NAME,...]`. The BMCs are simulated, in a process of their own on the same
processors, and answer at once; real ones take 10 to 500 ms, which changes rates and not the CPU of a poll.

`clients` measures our client as the driver that the service uses, without database. ipmitool (a process a poll) and
pyghmi (kept sessions, one thread) stand beside it; ipmitool is left out where it is not installed. The others are about
the whole service, in a process of its own with a durable Postgres and NATS: `fleet` is what 2,000 BMCs cost and
how long an order takes meanwhile, `10k` what 10,000 cost, `dead` what the living notice when 500 die.
"""

from __future__ import annotations

import asyncio
import os
import resource
import shutil
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvloop
from _bmc_farm import PASSWORD
from _bmc_fleet import polled, polled_by_ten_thousand, with_dead_ones
from _bmc_plane import USER, farm
from metal_bmc.drivers.interface import Target
from metal_bmc.drivers.ipmi import IpmiDriver
from metal_bmc.drivers.pool import WorkerPool
from metal_bmc.drivers.pyghmi import PyghmiFru
from metal_bmc.rmcp.client import Keeping, RmcpClient
from metal_kit import logs
from report import Answer, arguments, finish, percentile

AT_ONCE = 50
BMCS = 50
DEADLINE = 20.0
Poll = Callable[[Target], Awaitable[object]]


@dataclass(frozen=True)
class Load:
    """Polls in a time. `cpu` is seconds of this process, with children where those do the work."""

    samples: Sequence[float]
    seconds: float
    cpu: float

    @property
    def rate(self) -> float:
        """Polls a second."""
        return len(self.samples) / self.seconds

    @property
    def each(self) -> float:
        """Milliseconds of CPU a poll."""
        return self.cpu / len(self.samples) * 1000

    def answers(self, name: str, *, rate: str = "", each: str = "") -> list[Answer]:
        """Rate and cost, with the latencies beside the rate."""
        p50, p99 = percentile(self.samples, 0.5), percentile(self.samples, 0.99)
        return [
            Answer(name, self.rate, "polls/s", rate, p50, p99, f"ms a poll; {len(self.samples):,} polls"),
            Answer(f"{name}: CPU", self.each, "ms a poll", each),
        ]


def spent(*, children: bool) -> float:
    """CPU seconds of this process so far."""
    mine = time.process_time()
    if not children:
        return mine
    theirs = resource.getrusage(resource.RUSAGE_CHILDREN)
    return mine + theirs.ru_utime + theirs.ru_stime


async def load(targets: Sequence[Target], poll: Poll, seconds: float, at_once: int, *, children: bool = False) -> Load:
    """Poll all in turn, `at_once` at a time and none twice at once, for so long."""
    samples: list[float] = []
    end = time.perf_counter() + seconds

    async def worker(mine: Sequence[Target]) -> None:
        while True:
            for target in mine:
                before = time.perf_counter()
                if before >= end:
                    return
                await poll(target)
                samples.append((time.perf_counter() - before) * 1000)

    started, cpu = time.perf_counter(), spent(children=children)
    await asyncio.gather(*(worker(targets[number::at_once]) for number in range(min(at_once, len(targets)))))
    return Load(samples, time.perf_counter() - started, spent(children=children) - cpu)


async def ours(targets: Sequence[Target], seconds: float, keeping: Keeping, rounds: int) -> Load:
    """Our client; the calmest round."""
    driver = IpmiDriver(RmcpClient(keeping), PyghmiFru(WorkerPool(size=1)))

    async def poll(target: Target) -> None:
        assert await driver.powered(target, deadline=DEADLINE)

    try:
        # Logins of kept sessions are another question.
        await load(targets, poll, 0.5, AT_ONCE)
        loads = [await load(targets, poll, seconds, AT_ONCE) for _ in range(rounds)]
    finally:
        await driver.close()
    return min(loads, key=lambda each: each.each)


async def ipmitool(targets: Sequence[Target], seconds: float, directory: Path) -> Load:
    """A process a poll, as a shell script would."""
    secret = directory / f"bmc-bench-{os.getpid()}"
    secret.write_text(PASSWORD)

    async def poll(target: Target) -> None:
        process = await asyncio.create_subprocess_exec(
            "ipmitool", "-I", "lanplus", "-C", "17", "-H", target.host, "-p", str(target.port), "-U", target.user,
            "-f", str(secret), "power", "status", stdout=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        if await process.wait():
            raise RuntimeError("ipmitool failed")

    try:
        return await load(targets, poll, seconds, 8, children=True)
    finally:
        secret.unlink()


def pyghmi(targets: Sequence[Target], seconds: float) -> Load:
    """One thread and sessions that are kept, which is pyghmi at its best."""
    from pyghmi.ipmi import command as library  # noqa: PLC0415 - a thread and sockets of its own begin here

    # The library has no type annotations.
    new: Any = library.Command
    commands = [
        new(bmc=each.host, port=each.port, userid=each.user, password=each.password, privlevel=4) for each in targets
    ]
    samples: list[float] = []
    started, cpu = time.perf_counter(), time.process_time()
    while time.perf_counter() - started < seconds:
        for command in commands:
            before = time.perf_counter()
            assert command.get_power()["powerstate"] == "on"
            samples.append((time.perf_counter() - before) * 1000)
    measured = Load(samples, time.perf_counter() - started, time.process_time() - cpu)
    for command in commands:
        command.ipmi_session.logout()
    return measured


async def clients(quick: bool) -> list[Answer]:
    """Our driver, and what others would use."""
    seconds, rounds = (0.3, 1) if quick else (2.0, 3)
    answers: list[Answer] = []
    async with farm(BMCS) as bmcs:
        targets = [Target(each.host, each.port, USER, PASSWORD) for each in bmcs.bmcs]
        kept = await ours(targets, seconds, Keeping(), rounds)
        answers += kept.answers("kept sessions, 50 BMCs at once", rate=">= 4500", each="<= 0.15")
        fresh = await ours(targets, seconds, Keeping(oldest=0.0), rounds)
        answers += fresh.answers("a new session for each poll", each="<= 0.8")
        if shutil.which("ipmitool"):
            beside = await ipmitool(targets, seconds, Path(os.environ.get("TMPDIR", "/tmp")))
            answers += beside.answers("ipmitool, a process for each poll, 8 at once")
        answers += (await asyncio.to_thread(pyghmi, targets, seconds)).answers("pyghmi, kept sessions, one thread")
    return answers


Question = Callable[[bool], Awaitable[list[Answer]]]
QUESTIONS: dict[str, Question] = {
    "clients": clients,
    "fleet": polled,
    "dead": with_dead_ones,
    "10k": polled_by_ten_thousand,
}


async def measure(quick: bool, only: Sequence[str]) -> list[Answer]:
    """The questions, one after the other."""
    answers: list[Answer] = []
    for name, question in QUESTIONS.items():
        if only and name not in only:
            continue
        found = await question(quick)
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
