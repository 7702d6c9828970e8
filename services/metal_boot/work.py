"""The work stream: looks at one machine's situation again and again, and tells its installer what to do.

It looks when a hint says so, and every two seconds in any case. The control plane's state alone decides: a stream has
no memory that another replica would need. While the machine may be given away, the stream holds inventory's waiting
lease under an id of its own, so that the end of an old stream does not end the lease of a newer one.
"""

from __future__ import annotations

import asyncio
import random
import time
import uuid
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field

from metal_kit.errors import Aborted, NotFound, Problem, Unavailable
from metal_kit.logs import get_logger
from metalplane.boot.v1 import boot_pb2

from metal_boot import metrics
from metal_boot.decider import Decider
from metal_boot.hints import Hints
from metal_boot.orders import Instruction, Order, instruct
from metal_boot.plane import Plane, View

log = get_logger(__name__)

GRANT_SECONDS = 600
"""How long a grant can be begun with; what has begun may end later."""


@dataclass(frozen=True, slots=True)
class Pace:
    """Times of a work stream, in seconds."""

    poll: float = 2.0
    repeat: float = 10.0
    """A standing item is sent again this often, as a sign of life."""
    lease_renewal: float = 5.0
    lease: float = 20.0
    farewell: float = 2.0
    """How long the end of a stream may take for giving the lease back."""


@dataclass(slots=True)
class WorkStream:
    """One stream of one installer."""

    plane: Plane
    decider: Decider
    hints: Hints
    stopping: asyncio.Event
    machine_id: str
    generation: int
    pace: Pace = field(default_factory=Pace)
    _holder: str = field(default_factory=lambda: str(uuid.uuid4()))
    _leased: bool = False
    _renew_at: float = 0.0
    _sent: tuple[Order, str, str] | None = None
    _repeat_at: float = 0.0

    async def items(self) -> AsyncGenerator[boot_pb2.WorkResponse]:
        """Items until the installer goes, or the service drains. Raises Aborted after a newer registration."""
        with self.hints.of(self.machine_id) as woken, metrics.STREAMS.track_inprogress():
            try:
                while not self.stopping.is_set():
                    woken.clear()
                    try:
                        response = await self._look()
                    except (Aborted, NotFound):
                        raise
                    except Problem as problem:
                        # The installer goes on with what it does; the lease runs out by itself if this lasts.
                        log.warning("work.without_plane", machine=self.machine_id, reason=problem.reason)
                        response = None
                    if response is not None:
                        yield response
                    await self._sleep(woken)
            finally:
                await self._give_lease_back()
        raise Unavailable("DRAINING", "this replica is stopping; connect again")

    async def _look(self) -> boot_pb2.WorkResponse | None:
        """Look once; returns an item if it is new or due for repetition."""
        view = await self.plane.view(self.machine_id)
        situation = view.situation
        if situation.generation != self.generation:
            raise Aborted("SUPERSEDED", f"the machine has registered again: generation {situation.generation}")
        self.decider.learn(situation)
        instruction = instruct(situation)
        await self._hold_lease(instruction)
        key = (instruction.order, instruction.reason, situation.allocation_id)
        now = time.monotonic()
        if key == self._sent and now < self._repeat_at:
            return None
        if key != self._sent:
            metrics.ORDERS.labels(instruction.order.value).inc()
            log.info(
                "work.ordered",
                machine=self.machine_id,
                order=instruction.order.value,
                reason=instruction.reason,
                allocation=situation.allocation_id,
            )
        self._sent, self._repeat_at = key, now + self.pace.repeat
        return response(instruction, view, expires=time.time() + GRANT_SECONDS)

    async def _hold_lease(self, instruction: Instruction) -> None:
        now = time.monotonic()
        if instruction.offer:
            if not self._leased or now >= self._renew_at:
                self._leased = True  # also when the answer is lost: then it has to be given back
                await self.plane.set_waiting(
                    self.machine_id,
                    holder=self._holder,
                    generation=self.generation,
                    waiting=True,
                    ttl=self.pace.lease,
                )
                self._renew_at = now + self.pace.lease_renewal
        elif self._leased:
            await self._end_lease(deadline=10.0)

    async def _end_lease(self, *, deadline: float) -> None:
        await self.plane.set_waiting(
            self.machine_id,
            holder=self._holder,
            generation=self.generation,
            waiting=False,
            ttl=1.0,
            deadline=deadline,
        )
        self._leased = False

    async def _give_lease_back(self) -> None:
        if not self._leased:
            return
        try:
            await asyncio.shield(asyncio.wait_for(self._end_lease(deadline=self.pace.farewell), self.pace.farewell))
        except (Problem, TimeoutError) as error:
            # The lease runs out by itself.
            log.info("lease.not_returned", machine=self.machine_id, error=type(error).__name__)

    async def _sleep(self, woken: asyncio.Event) -> None:
        """Until a hint, a poll or the drain. The jitter keeps the streams of a rack from asking all at once."""
        stop = asyncio.ensure_future(self.stopping.wait())
        wake = asyncio.ensure_future(woken.wait())
        try:
            limit = self.pace.poll * random.uniform(0.8, 1.0)
            await asyncio.wait({stop, wake}, timeout=limit, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (stop, wake):
                task.cancel()


def response(instruction: Instruction, view: View, *, expires: float) -> boot_pb2.WorkResponse:
    """The message for an instruction; grants end at `expires`, in seconds since the epoch. Pure."""
    situation, installation = view.situation, view.installation
    match instruction.order:
        case Order.WIPE:
            grant = _grant(view, allocation="", serials=view.disk_serials, expires=expires)
            return boot_pb2.WorkResponse(wipe=boot_pb2.Wipe(grant=grant))
        case Order.INSTALL if installation is not None:
            serials = tuple(serial for serial in installation.spec.disk_serials if serial in view.disk_serials)
            grant = _grant(view, allocation=situation.allocation_id, serials=serials, expires=expires)
            return boot_pb2.WorkResponse(install=boot_pb2.Install(grant=grant, spec=installation.spec))
        case Order.START if installation is not None:
            start = boot_pb2.Start(allocation=situation.allocation_id, boot_info=installation.boot_info)
            return boot_pb2.WorkResponse(start=start)
        case Order.BOOT_EXISTING:
            return boot_pb2.WorkResponse(boot_existing=boot_pb2.BootExisting(reason=instruction.reason))
    return boot_pb2.WorkResponse(wait=boot_pb2.Wait(reason=instruction.reason))


def _grant(view: View, *, allocation: str, serials: tuple[str, ...], expires: float) -> boot_pb2.DiskGrant:
    grant = boot_pb2.DiskGrant(
        machine=view.situation.machine_id,
        generation=view.situation.generation,
        allocation=allocation,
        disk_serials=serials,
    )
    grant.expire_time.FromNanoseconds(int(expires * 1e9))
    return grant
