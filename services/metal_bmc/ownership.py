"""One owner a BMC: which machines this replica may talk to, and the proof of it that its writes carry.

The machines of a partition are in 256 buckets (`shard_of` their UUID), and each living replica has the buckets that
rendezvous hashing gives it, under a lease with a fence. What another replica was given in the meantime cannot be
written here any more (`check`), and nothing more is asked (`using`): not when the lease may have run out, by our own
clock and with a margin, nor when the bucket is to be handed over. A replica that stops lets go of everything at once,
after it has logged out; one that dies is missed when its leases have run out: after a lease and a third at most.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from datetime import timedelta

import asyncpg
from metal_kit.controller import SHARDS, shard_of
from metal_kit.db import Connection, Database
from metal_kit.errors import Problem
from metal_kit.lease import new_holder
from metal_kit.listen import Wakeup, wake_at
from metal_kit.logs import get_logger

from metal_bmc import metrics
from metal_bmc.sharing import Tenure, share_of
from metal_bmc.store import OwnerStore

log = get_logger(__name__)

LEASE = timedelta(seconds=15)
# The part of a lease that is relied on; in the rest, what is under way ends.
_CERTAIN = 0.8
_TROUBLE = (Problem, asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError)


class NotOwner(Exception):
    """The machine's BMC is another replica's, or may be by now; nothing more may be asked or written."""


class Ownership:
    """The buckets of this replica. `run` it as a task, and `release` when all work has ended."""

    def __init__(self, db: Database, *, partition: str, lease: timedelta = LEASE, wakes: Collection[str] = ()) -> None:
        """`wakes` are the topics whose waiters have more to do when buckets came."""
        self._db, self._lease, self._wakes = db, lease, tuple(wakes)
        self._partition = partition
        self._store = OwnerStore(partition)
        self.replica = new_holder()
        self._fences: dict[int, int] = {}
        self._leaving: set[int] = set()
        self._good_until = 0.0
        self._lapse: asyncio.TimerHandle | None = None
        self._users: Counter[int] = Counter()
        self._limits: dict[asyncio.Timeout, int] = {}
        self._wakeup: Wakeup | None = None
        self._share: tuple[frozenset[str], frozenset[int]] = (frozenset(), frozenset())

    def buckets(self) -> list[int]:
        """The buckets whose machines may be asked now."""
        if asyncio.get_running_loop().time() >= self._good_until:
            return []
        return [number for number in self._fences if number not in self._leaving]

    def owns(self, machine: str) -> bool:
        """Whether the machine's BMC may be asked by this replica now."""
        return self._tenure(machine) is not None

    def tenure(self, machine: str) -> Tenure:
        """The proof for writes about the machine. Raises NotOwner."""
        tenure = self._tenure(machine)
        if tenure is None:
            raise NotOwner(machine)
        return tenure

    def _tenure(self, machine: str) -> Tenure | None:
        bucket = shard_of(machine)
        fence = self._fences.get(bucket)
        if fence is None or bucket in self._leaving or asyncio.get_running_loop().time() >= self._good_until:
            return None
        return Tenure(bucket, fence)

    @asynccontextmanager
    async def using(self, machine: str) -> AsyncIterator[Tenure]:
        """Ask the machine's BMC within the block, which ends with NotOwner as soon as it is no longer ours.

        A bucket that is to be handed over waits for the block.
        """
        tenure = self.tenure(machine)
        limit = asyncio.timeout(None)
        self._users[tenure.bucket] += 1
        try:
            async with limit:
                self._limits[limit] = tenure.bucket
                yield tenure
        except TimeoutError:
            if limit.expired():
                raise NotOwner(machine) from None
            raise
        finally:
            self._limits.pop(limit, None)
            self._users[tenure.bucket] -= 1
            if not self._users[tenure.bucket] and tenure.bucket in self._leaving and self._wakeup is not None:
                self._wakeup.wake()

    async def check(self, connection: Connection, tenure: Tenure) -> None:
        """Raise NotOwner unless the bucket is still ours, and keep it so until the caller's transaction ends."""
        if not await self.still_held(connection, [tenure]):
            raise NotOwner

    async def still_held(self, connection: Connection, tenures: Collection[Tenure]) -> set[Tenure]:
        """Those that still hold; they do so until the caller's transaction ends."""
        pairs = {(each.bucket, each.fence) for each in tenures}
        return {Tenure(*pair) for pair in await self._store.hold(connection, self.replica, pairs)}

    async def run(self, stopping: asyncio.Event) -> None:
        """Keep the leases, take over and hand over, until `stopping` is set; without the database, nothing is ours."""
        every = self._lease.total_seconds() / 3
        with self._db.listener.subscribe(self._store.topic) as wakeup:
            self._wakeup = wakeup
            stopper = asyncio.create_task(wake_at(stopping, wakeup), name="owner stop")
            try:
                while True:
                    # Once more when it stops: what is under way then has the whole lease to end in.
                    last = stopping.is_set()
                    await self.start()
                    if last:
                        return
                    await wakeup.wait(every)
            finally:
                stopper.cancel()
                self._wakeup = None

    async def start(self) -> None:
        """Take what is free before anything else begins; without the database, `run` does it later."""
        try:
            async with asyncio.timeout(self._lease.total_seconds() / 3):
                await self.beat()
        except _TROUBLE as error:
            log.warning("bmc.owner.waits", cause=type(error).__name__)

    async def beat(self) -> None:
        """Renew what is ours, take what should be and is free, and let go of what should be another's and is idle."""
        began = asyncio.get_running_loop().time()
        async with self._db.transaction(purpose="renew the ownership of BMCs") as connection:
            newcomer = await self._store.enlist(connection, self.replica, self._lease)
            living = await self._store.living(connection)
            held = await self._store.renew(connection, self.replica, self._lease)
            if newcomer:
                await self._store.call(connection)
        share = self._share_among(frozenset(living))
        async with self._db.transaction(purpose="take over BMCs") as connection:
            fresh = await self._store.take(connection, self.replica, share - held.keys(), self._lease)
        self._adopt({**held, **fresh}, share, began)
        idle = {number for number in self._leaving if not self._users[number]}
        if idle:
            await self._let_go(idle)
        if fresh:
            log.info("bmc.owner.took", buckets=len(fresh), has=len(self._fences), replicas=len(living))
            for topic in self._wakes:
                self._db.listener.wake(topic)

    async def release(self) -> None:
        """Let go of everything, so that the others take over at once. Nothing of ours may be under way any more."""
        self._forget()
        try:
            async with self._db.transaction(purpose="hand over BMCs") as connection:
                await self._store.let_go(connection, self.replica, range(SHARDS))
                await self._store.leave(connection, self.replica)
                await self._store.call(connection)
        except _TROUBLE as error:
            log.warning("bmc.owner.not_released", cause=type(error).__name__, hint="the leases run out by themselves")

    async def _let_go(self, numbers: set[int]) -> None:
        # First here, so that nothing is begun while the row changes.
        for number in numbers:
            self._fences.pop(number, None)
        self._leaving -= numbers
        async with self._db.transaction(purpose="hand over BMCs") as connection:
            await self._store.let_go(connection, self.replica, numbers)
            await self._store.call(connection)
        log.info("bmc.owner.handed_over", buckets=len(numbers), has=len(self._fences))

    def _share_among(self, living: frozenset[str]) -> frozenset[int]:
        if self._share[0] != living:
            self._share = living, share_of(self.replica, living)
        return self._share[1]

    def _adopt(self, held: dict[int, int], share: Collection[int], began: float) -> None:
        lost = {number for number, fence in self._fences.items() if held.get(number) != fence}
        self._fences = held
        self._leaving = held.keys() - share
        self._end_uses(lost)
        if lost:
            log.warning("bmc.owner.lost", buckets=len(lost))
        loop = asyncio.get_running_loop()
        self._good_until = began + self._lease.total_seconds() * _CERTAIN
        if self._lapse is not None:
            self._lapse.cancel()
        self._lapse = loop.call_at(self._good_until, self._lapsed)
        metrics.OWNED_BUCKETS.labels(self._partition).set(len(held))

    def _lapsed(self) -> None:
        if self._fences:
            log.warning("bmc.owner.lapsed", buckets=len(self._fences))
        self._end_uses(self._fences.keys())

    def _end_uses(self, numbers: Collection[int]) -> None:
        now = asyncio.get_running_loop().time()
        for limit, number in self._limits.items():
            if number in numbers and not limit.expired():
                limit.reschedule(now)

    def _forget(self) -> None:
        self._end_uses(self._fences.keys())
        self._fences, self._leaving, self._good_until = {}, set(), 0.0
        if self._lapse is not None:
            self._lapse.cancel()
