"""Driver processes: started when needed, one order each at a time, killed when an order overruns its deadline.

pyghmi blocks, keeps global state and can deadlock; in a process that handles one order it can hurt nothing but that
order. The number of processes bounds what is asked of all BMCs at once. Passwords travel over the child's standard
input.
"""

from __future__ import annotations

import asyncio
import sys
from collections import deque
from collections.abc import Sequence

from metal_kit import guard
from metal_kit.logs import get_logger

from metal_bmc import metrics
from metal_bmc.drivers import frames
from metal_bmc.drivers.errors import (
    BY_REASON,
    BmcBadAnswer,
    BmcError,
    BmcRefused,
    BmcTimeout,
    DriverBusy,
    DriverCrashed,
)
from metal_bmc.drivers.process import DriverProcess

_log = get_logger(__name__)
_WORKER = (sys.executable, "-P", "-m", "metal_bmc.drivers.worker")


class WorkerPool:
    """At most `size` driver processes. `orders_each` bounds what leaks in the library: then it is replaced."""

    def __init__(self, *, size: int = 4, orders_each: int = 1000, command: Sequence[str] = _WORKER) -> None:
        self._free = asyncio.Semaphore(size)
        self._idle: deque[DriverProcess] = deque()
        self._busy: set[DriverProcess] = set()
        self._starts: set[asyncio.Task[DriverProcess]] = set()
        self._orphaned: deque[asyncio.Task[DriverProcess]] = deque()
        self._orders_each = orders_each
        self._command = tuple(command)
        self._next_id = 0
        self._closed = False

    @property
    def processes(self) -> list[int]:
        """Process ids of those that are ready, busy ones first."""
        return [worker.pid for worker in (*self._busy, *self._idle)]

    async def call(
        self, operation: str, target: frames.Message, arguments: frames.Message, *, deadline: float
    ) -> object:
        """Carry out one order within `deadline` seconds, waiting for a process included.

        Raises BmcError; DriverBusy when the time was over before a process could be given the order.
        """
        guard.refuse_in_transaction("a BMC exchange")
        given = False
        try:
            async with asyncio.timeout(deadline), self._free:
                worker = await self._take()
                given = True
                return await self._carry_out(worker, operation, target, arguments)
        except TimeoutError:
            if given:
                raise BmcTimeout(f"no answer within {deadline:g} s") from None
            raise DriverBusy(f"no driver process was ready within {deadline:g} s") from None

    async def close(self) -> None:
        """End all processes. Orders in flight fail with DriverCrashed."""
        self._closed = True
        for start in self._starts:
            start.cancel()
        await asyncio.gather(*self._starts, return_exceptions=True)
        workers = [*self._idle, *self._busy]
        self._idle.clear()
        await asyncio.gather(*(worker.end() for worker in workers))

    async def _carry_out(
        self, worker: DriverProcess, operation: str, target: frames.Message, arguments: frames.Message
    ) -> object:
        self._next_id += 1
        order = {"id": self._next_id, "operation": operation, "target": target, "arguments": arguments}
        cause = "overran"
        try:
            answer = await worker.ask(order)
            cause = "worn" if worker.orders >= self._orders_each else ""
        except (asyncio.IncompleteReadError, ConnectionError, frames.FrameError):
            cause = "died"
            _log.warning("bmc.driver.died", pid=worker.pid, operation=operation)
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

    async def _take(self) -> DriverProcess:
        while self._idle:
            worker = self._idle.pop()
            if worker.alive:
                self._busy.add(worker)
                return worker
        if self._closed:
            raise DriverCrashed("the driver is being stopped")
        start = self._orphaned.popleft() if self._orphaned else self._start()
        try:
            worker = await asyncio.shield(start)
        except asyncio.CancelledError:
            if start.cancelled():
                raise DriverCrashed("the driver is being stopped") from None
            # Importing the library can take longer than an order may. Killed for that, no process would ever get
            # ready on a busy host, so this one lives on for the next order.
            self._orphaned.append(start)
            if start.done():
                self._adopt(start)
            raise
        if self._closed:
            await worker.end()
            raise DriverCrashed("the driver is being stopped")
        self._busy.add(worker)
        return worker

    def _start(self) -> asyncio.Task[DriverProcess]:
        start = asyncio.create_task(DriverProcess.start(self._command), name="bmc driver start")
        self._starts.add(start)
        start.add_done_callback(self._starts.discard)
        start.add_done_callback(self._adopt)
        return start

    def _adopt(self, start: asyncio.Task[DriverProcess]) -> None:
        if start not in self._orphaned:
            return
        self._orphaned.remove(start)
        if not start.cancelled() and start.exception() is None:
            self._idle.append(start.result())


def _result(answer: frames.Message) -> object:
    reason = answer.get("error")
    if reason is None:
        return answer.get("result")
    kind = BY_REASON.get(str(reason), BmcBadAnswer)
    message = str(answer.get("message", ""))
    problem: BmcError = BmcRefused(message, int(answer.get("code", 0))) if kind is BmcRefused else kind(message)
    raise problem
