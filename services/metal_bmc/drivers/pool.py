"""Driver processes: started when needed, one order each at a time, killed when an order overruns its deadline.

pyghmi blocks, keeps global state and can deadlock; in a process that handles one order it can hurt nothing but that
order. The number of processes bounds what is asked of all BMCs at once. Passwords travel over the child's standard
input; the child gets neither our environment, which may hold keys, nor a command line that names anything.
"""

from __future__ import annotations

import asyncio
import os
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections import deque
from collections.abc import Sequence

from metal_kit import guard
from metal_kit.logs import get_logger

from metal_bmc import metrics
from metal_bmc.drivers import frames
from metal_bmc.drivers.errors import BY_REASON, BmcBadAnswer, BmcError, BmcRefused, BmcTimeout, DriverCrashed

_log = get_logger(__name__)
_WORKER = (sys.executable, "-P", "-m", "metal_bmc.drivers.worker")
_INHERITED = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "TZ", "VIRTUAL_ENV", "PYTHONHOME")
_REAP_SECONDS = 5.0


class _Worker:
    """One driver process."""

    def __init__(self, process: Process) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self.process = process
        self._stdin, self._stdout = process.stdin, process.stdout
        self.orders = 0

    @classmethod
    async def start(cls, command: Sequence[str]) -> _Worker:
        environment = {name: os.environ[name] for name in _INHERITED if name in os.environ}
        return cls(
            await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE, stderr=DEVNULL, env=environment)
        )

    async def ask(self, order: frames.Message) -> frames.Message:
        self.orders += 1
        if self._stdin.transport.is_closing():
            # uvloop would raise RuntimeError: the process has ended, and its exit status is still to come.
            raise ConnectionResetError
        self._stdin.write(frames.encode(order))
        await self._stdin.drain()
        header = await self._stdout.readexactly(frames.LENGTH_BYTES)
        return frames.decode(await self._stdout.readexactly(frames.body_length(header)))

    async def end(self) -> None:
        """Kill and reap. A kill cannot be refused, so the wait is short; it is bounded all the same."""
        if self.process.returncode is None:
            self.process.kill()
        try:
            await asyncio.wait_for(self.process.wait(), _REAP_SECONDS)
        except TimeoutError:
            _log.error("bmc.driver.not_reaped", pid=self.process.pid)


class WorkerPool:
    """At most `size` driver processes. `orders_each` bounds what leaks in the library: then it is replaced."""

    def __init__(self, *, size: int = 4, orders_each: int = 1000, command: Sequence[str] = _WORKER) -> None:
        self._free = asyncio.Semaphore(size)
        self._idle: deque[_Worker] = deque()
        self._busy: set[_Worker] = set()
        self._orders_each = orders_each
        self._command = tuple(command)
        self._next_id = 0
        self._closed = False

    @property
    def processes(self) -> list[int]:
        """Process ids, busy ones first."""
        return [worker.process.pid for worker in (*self._busy, *self._idle)]

    async def call(
        self, operation: str, target: frames.Message, arguments: frames.Message, *, deadline: float
    ) -> object:
        """Carry out one order within `deadline` seconds, waiting for a free process included. Raises BmcError."""
        guard.refuse_in_transaction("a BMC exchange")
        try:
            async with asyncio.timeout(deadline):
                async with self._free:
                    return await self._carry_out(operation, target, arguments)
        except TimeoutError:
            raise BmcTimeout(f"no answer within {deadline:g} s") from None

    async def close(self) -> None:
        """End all processes. Orders in flight fail with DriverCrashed."""
        self._closed = True
        workers = [*self._idle, *self._busy]
        self._idle.clear()
        await asyncio.gather(*(worker.end() for worker in workers))

    async def _carry_out(self, operation: str, target: frames.Message, arguments: frames.Message) -> object:
        worker = await self._take()
        self._next_id += 1
        order = {"id": self._next_id, "operation": operation, "target": target, "arguments": arguments}
        cause = "overran"
        try:
            answer = await worker.ask(order)
            cause = "worn" if worker.orders >= self._orders_each else ""
        except (asyncio.IncompleteReadError, ConnectionError, frames.FrameError):
            cause = "died"
            _log.warning("bmc.driver.died", pid=worker.process.pid, operation=operation)
            raise DriverCrashed("the driver process died while it carried the order") from None
        finally:
            # Also on cancellation, which is how a deadline arrives: what the process is doing now nobody waits for.
            self._busy.discard(worker)
            if not cause and not self._closed:
                self._idle.append(worker)
            else:
                metrics.DRIVER_ENDS.labels(cause or "worn").inc()
                await asyncio.shield(worker.end())
        return _result(answer)

    async def _take(self) -> _Worker:
        while self._idle:
            worker = self._idle.pop()
            if worker.process.returncode is None:
                self._busy.add(worker)
                return worker
        if self._closed:
            raise DriverCrashed("the driver is being stopped")
        worker = await _Worker.start(self._command)
        self._busy.add(worker)
        return worker


def _result(answer: frames.Message) -> object:
    reason = answer.get("error")
    if reason is None:
        return answer.get("result")
    kind = BY_REASON.get(str(reason), BmcBadAnswer)
    message = str(answer.get("message", ""))
    problem: BmcError = BmcRefused(message, int(answer.get("code", 0))) if kind is BmcRefused else kind(message)
    raise problem
