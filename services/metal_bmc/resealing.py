"""Which key seals which password, and moving them all to the ring's first key.

Of one partition: other partitions' services have rings of their own, in which that key may not be yet. Nothing is ever
dropped: a password that does not open stays where it is, and its machine is named.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

from metal_kit.db import Connection, Database
from metal_kit.logs import get_logger

from metal_bmc.credentials import CredentialError, KeyRing
from metal_bmc.store import EndpointStore, ExpectedStore

log = get_logger(__name__)

_BATCH = 500
# Machines that an answer names; it also says how many there are.
MOST_NAMED = 200


@dataclass(frozen=True, slots=True)
class Unusable:
    """A sealed password that does not open. `key_id` is empty when the bytes do not even name a key."""

    machine: str
    key_id: str
    cause: str


@dataclass(slots=True)
class Survey:
    """How many passwords each key seals, and which of them do not open. `unusable` names the first ones."""

    passwords: Counter[str] = field(default_factory=Counter)
    unusable: list[Unusable] = field(default_factory=list)
    unusable_count: int = 0

    def refuse(self, machine: str, key_id: str, cause: str) -> None:
        """Count a password that does not open."""
        self.unusable_count += 1
        if len(self.unusable) < MOST_NAMED:
            self.unusable.append(Unusable(machine, key_id, cause))


class Resealing:
    """The sealed passwords of one partition."""

    def __init__(self, db: Database, ring: KeyRing, *, partition: str) -> None:
        self.partition, self.ring = partition, ring
        self._db = db
        self._endpoints, self._expected = EndpointStore(), ExpectedStore()

    async def survey(self) -> Survey:
        """Open every password, and count them by key."""
        found = Survey()
        async for _, page in self._pages():
            for each in page:
                key_id = ""
                try:
                    key_id = self.ring.key_of(each.sealed)
                    self.ring.open(each.bound_to, each.sealed)
                except CredentialError as error:
                    found.refuse(each.bound_to, key_id, str(error))
                found.passwords[key_id] += 1
        return found

    async def reseal(self) -> int:
        """Seal every password with the first key of the ring; returns how many changed."""
        moved = 0
        async for connection, page in self._pages():
            for each in page:
                moved += await self._reseal_one(connection, each)
        if moved:
            log.info("bmc.resealed", count=moved, key_id=self.ring.current)
        return moved

    async def _pages(self) -> AsyncIterator[tuple[Connection, Sequence[_Sealed]]]:
        """All sealed passwords, with the connection that read them: of BMCs, and of expected machines."""
        after = None
        while True:
            async with self._db.connection() as connection:
                page = await self._endpoints.page(connection, partition=self.partition, after=after, limit=_BATCH)
                yield connection, [_Sealed(each.machine, each.sealed) for each in page if each.sealed is not None]
            if len(page) < _BATCH:
                break
            after = page[-1].machine
        after = None
        while True:
            async with self._db.connection() as connection:
                wishes = await self._expected.wishes(connection, self.partition, after, _BATCH)
                yield connection, [_Sealed(each.bound_to, each.sealed, each.id) for each in wishes if each.sealed]
            if len(wishes) < _BATCH:
                return
            after = wishes[-1].id

    async def _reseal_one(self, connection: Connection, each: _Sealed) -> bool:
        try:
            if self.ring.key_of(each.sealed) == self.ring.current:
                return False
            new = self.ring.seal(each.bound_to, self.ring.open(each.bound_to, each.sealed))
        except CredentialError as error:
            log.warning("bmc.credential_unusable", machine=each.bound_to, cause=str(error))
            return False
        # Not when it changed meanwhile: then it has just been sealed.
        if each.expected:
            return await self._expected.reseal(connection, each.expected, old=each.sealed, new=new)
        return await self._endpoints.reseal(connection, each.bound_to, old=each.sealed, new=new)


@dataclass(frozen=True, slots=True)
class _Sealed:
    """A sealed password and what it is bound to; `expected` is the id of the expected machine whose first one it is."""

    bound_to: str
    sealed: bytes = field(repr=False)
    expected: str = ""
