"""Acquiring and releasing addresses: from a call to transactions. All of a call or none of it.

The rules are in `addresses` and `networks`, the SQL in `store`; this module puts them in the order that keeps a retry
harmless: what the request got before is looked up first, then a plan is made and carried out, and made anew when others
were faster.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from ipaddress import ip_address

import asyncpg
from metal_kit.db import Connection, Database
from metal_kit.errors import (
    Aborted,
    ResourceExhausted,
)
from metal_kit.identity import missing

from metal_ipam import selection
from metal_ipam.addresses import MAX_ADDRESSES_A_CALL, Ip, Leaf, Owner, Share, Unit, expand, spread
from metal_ipam.call import (
    Call,
    Outrun,
    check,
    check_networks,
    earlier_of,
    earlier_of_any,
    home_of,
    in_use,
    ip_in,
    ip_of,
    keep_quota,
    lone_leaves,
)
from metal_ipam.coalescer import Coalescer
from metal_ipam.known import Known, KnownNetworks
from metal_ipam.store import addresses, networks, numbers, owners, prefixes, quotas
from metal_ipam.store.addresses import Acquired, Release, Released

# How often a plan may be outrun by other calls before the caller is told to come again.
ATTEMPTS = 5
_RELEASE_BATCH = 500


@dataclass(frozen=True, slots=True)
class Pending:
    """A call that waits for its turn at the prefix `leaf`, whose text is `prefix`."""

    known: Known
    leaf: Leaf
    prefix: str
    answer: asyncio.Future[Acquired]


class _Tried(Exception):
    """What a call would get that keeps nothing; it ends the transaction without effect."""

    def __init__(self, results: list[Acquired]) -> None:
        self.results = results


class Acquisition:
    """Addresses for calls, and back."""

    def __init__(self, db: Database, coalescer: Coalescer) -> None:
        self._db = db
        self._coalescer = coalescer
        self.known = KnownNetworks(db)

    async def acquire(self, call: Call) -> list[Ip]:
        """The addresses that the call wishes for, in the order of `addresses.expand`.

        Raises: as `_acquire`, and as `selection.choose` for networks that are chosen by labels.
        """
        if not any(wish.labels for wish in call.wishes):
            return await self._acquire(call)
        for attempt in range(ATTEMPTS):
            async with self._db.connection() as connection:
                # Before the choice: now that what it got is taken, it could be another one.
                if call.request_id and (earlier := await earlier_of_any(connection, call)):
                    return earlier
                wishes = await selection.choose(connection, call.project, call.wishes)
            try:
                return await self._acquire(replace(call, wishes=wishes, chosen=True))
            except (ResourceExhausted, Aborted) as problem:
                if problem.reason not in {"NETWORK_FULL", "CONCURRENT_CHANGE"} or attempt == ATTEMPTS - 1:
                    raise
        raise AssertionError("the last attempt answers or raises")

    async def _acquire(self, call: Call) -> list[Ip]:
        """The addresses of a call whose networks are known.

        Raises:
            NotFound: a network that does not exist, or that the project may not know of.
            FailedPrecondition: the network gives no addresses, or none to this project; the address is reserved or
                rests; the owner was released.
            OutOfRange, ResourceExhausted, AlreadyExists: the address is outside, there are not enough or its quota does
                not allow them, it is taken.
            InvalidArgument: contradicting wishes, or a request id that came with another request.
            Aborted: outrun ATTEMPTS times.
        """
        if call.keep and (one := await self._next_free(call)) is not None:
            return [one]
        async with self._db.connection() as connection:
            known = await networks.get_many(connection, list({w.network for w in call.wishes if w.prefix is None}))
            check_networks(call, known)
            await lone_leaves(connection, call)
            units = expand(call.wishes, known)
            if call.request_id:
                earlier = await (
                    earlier_of_any(connection, call) if call.chosen else earlier_of(connection, call, len(units))
                )
                if earlier:
                    return earlier
        for _ in range(ATTEMPTS):
            async with self._db.connection() as connection:
                leaves = await prefixes.leaves(connection, list(known))
                leaves += await lone_leaves(connection, call)
            shares = spread(units, leaves)
            try:
                results = await self._coalesced(call, units, shares)
                if not results:
                    results = await self._all_or_none(call, units, shares, leaves)
            except (Outrun, asyncpg.UniqueViolationError):  # The latter: a twin of this request is just faster.
                continue
            return [ip_in(call, unit, result, leaves) for unit, result in zip(units, results, strict=True)]
        raise Aborted("CONCURRENT_CHANGE", "other calls were faster each time; try again")

    async def acquire_alike(self, call: Call) -> tuple[Ip, list[str]] | None:
        """Several addresses that may be any of one prefix: one of them, and all as text, which is less work than so
        many objects that differ in nothing else.

        None: `acquire` must tell, be it that the prefix has not enough, or that the request came before. Raises
        NotFound or FailedPrecondition as `acquire` does.
        """
        [wish, *others] = call.wishes
        if others or wish.prefix is not None or wish.address is not None or wish.count < 2 or wish.labels:
            return None
        if not call.keep or owners.ends(call.owner) or wish.most > MAX_ADDRESSES_A_CALL:
            return None
        known = await self.known.get(wish.network)
        if known is None:
            return None
        check_networks(call, {wish.network: known.network})
        # Of one, since all are alike, and to make hundreds of them takes longer than all else here.
        families = {unit.family for unit in expand([replace(wish, count=1)], {wish.network: known.network})}
        home = next((leaf for leaf in known.leaves if {leaf.cidr.version} == families), None)
        if home is None or self.known.is_full(known, home):
            return None
        request = f"{call.project}/{call.request_id}" if call.request_id else None
        try:
            async with self._db.connection() as connection:
                if await quotas.limited(connection, [call.project]):
                    return None
                outcome, texts, time = await addresses.acquire_many(
                    connection, home.id, wish.count, call.entry(0), request
                )
        except asyncpg.UniqueViolationError:  # A twin of this request is just faster.
            return None
        if outcome == "gone":
            self.known.forget(wish.network)
        if outcome != "ok":
            return None
        return ip_of(call, home, Acquired(outcome, ip_address(texts[0]), time)), texts

    async def release(self, ip: Ip, *, actor: str) -> None:
        """Release an address that nobody uses, as it was read: not if somebody got it since.

        Raises:
            FailedPrecondition: IP_IN_USE, naming the owner.
            NotFound: it was released meanwhile.
        """
        if ip.owner:
            raise in_use(ip)
        if not ip.network:
            await self._release_alone(ip, actor=actor)
            return
        release = Release(ip.address, [ip.project], seen=ip.create_time, actor=actor)
        # The prefix as it was read with the address: one that grew may be remembered as it was before.
        outcome = await self._coalescer.release(ip.prefix_id, release)
        if outcome.outcome == "in_use":
            raise in_use(replace(ip, owner=outcome.holder))
        if outcome.outcome == "unknown":
            raise missing(f"address {ip.address}")
        if (known := await self.known.get(ip.network)) is not None:
            known.full.pop(ip.prefix_id, None)

    async def _release_alone(self, ip: Ip, *, actor: str) -> None:
        """Release an address of a prefix on its own, which is nothing that is remembered."""
        async with self._db.transaction(purpose="release an address") as connection:
            # A twin of this call may have been faster, and the address have gone to the next one who asked.
            if not await addresses.hold(connection, ip):
                raise missing(f"address {ip.address}")
            [outcome] = await addresses.release(connection, [ip], actor=actor, owner=Owner())
        if outcome == "unknown":
            raise missing(f"address {ip.address}")
        if outcome != "ok":
            raise Aborted("CONCURRENT_CHANGE", f"{ip.address} was given to somebody meanwhile; read it again")

    async def release_at_once(self, network: str, release: Release) -> Released:
        """Release an address without reading it first; `unknown` also for what only a look at it can tell."""
        answer = await self.enqueue_release(network, release)
        return await answer if answer is not None else Released("unknown")

    async def enqueue_release(self, network: str, release: Release) -> asyncio.Future[Released] | None:
        """Let the release wait for its turn at its prefix; None when the address lies in no prefix of the network."""
        known = await self.known.get(network)
        home = known.home(release.address) if known is not None else None
        if known is None or home is None:
            # The network may have grown, or be another one by now.
            self.known.forget(network)
            known = await self.known.get(network)
            home = known.home(release.address) if known is not None else None
            if known is None or home is None:
                return None
        known.full.pop(home.id, None)
        return self._coalescer.submit_release(home.id, release)

    def enqueue(self, call: Call, known: Known) -> Pending | None:
        """Let a call for one address that may be any wait for its turn at its prefix, together with others.

        None when it is no such call, or when every prefix was full a moment ago: then `acquire` must tell.
        Raises NotFound or FailedPrecondition as `acquire` does, and Unavailable when too many wait.
        """
        [wish, *others] = call.wishes
        if others or wish.address is not None or wish.count != 1 or owners.ends(call.owner):
            return None
        network = known.network
        check_networks(call, {network.id: network})
        families = network.families
        family = wish.family or (min(families) if len(families) == 1 else 0)
        for leaf in known.leaves:
            if leaf.cidr.version == family and not self.known.is_full(known, leaf):
                answer = self._coalescer.submit(leaf.id, call.entry(0))
                return Pending(known, leaf, known.texts[leaf.id], answer)
        return None

    def outrun(self, pending: Pending, result: Acquired | None) -> None:
        """What was remembered of the prefix did not hold; None: it is not known what became of it."""
        if result is not None and result.outcome == "full":
            self.known.note_full(pending.known, pending.leaf)
        elif result is None or result.outcome not in {"ok", "limited"}:
            self.known.forget(pending.known.network.id)

    async def release_owned(self, owner: Owner, *, actor: str) -> tuple[int, int, int]:
        """Let go of all that the owner has: released addresses, detached static addresses, released numbers."""
        released = 0
        async with self._db.transaction(purpose="release what an owner has") as connection:
            await owners.end(connection, owner)
            released_numbers = await numbers.release(connection, owner, actor=actor)
            await addresses.lock_homes(connection, owner)
            while batch := await addresses.owned(connection, owner, limit=_RELEASE_BATCH):
                outcomes = await addresses.release(connection, batch, actor=actor, owner=owner)
                if set(outcomes) - {"ok", "unknown"}:
                    raise Aborted("CONCURRENT_CHANGE", f"addresses of {owner} changed meanwhile; try again")
                released += outcomes.count("ok")
            detached = await addresses.detach_static(connection, owner, actor=actor)
        return released, detached, released_numbers

    async def _next_free(self, call: Call) -> Ip | None:
        """The common call, for one address that may be any: one statement, shared with others. None: the long way must
        tell, be it that prefixes are full, or that the request came before."""
        if call.wishes[0].prefix is not None:
            return None
        known = await self.known.get(call.wishes[0].network)
        while known is not None and (pending := self.enqueue(call, known)) is not None:
            try:
                result = await pending.answer
            except asyncpg.UniqueViolationError:  # A twin of this request is just faster.
                return None
            if result.outcome == "ok":
                return ip_of(call, pending.leaf, result) if result.fresh else None
            self.outrun(pending, result)
            if result.outcome != "full":
                return None
        return None

    async def _coalesced(self, call: Call, units: Sequence[Unit], shares: Sequence[Share]) -> list[Acquired]:
        """What the call gets together with others; empty for one that has to go alone."""
        if len(units) > 1 or shares[0].specific or owners.ends(call.owner) or not call.keep:
            return []
        result = await self._coalescer.acquire(shares[0].prefix_id, call.entry(0))
        if result.outcome == "limited":
            return []
        check(call, units[0], result)
        return [result]

    async def _all_or_none(
        self, call: Call, units: Sequence[Unit], shares: Sequence[Share], leaves: Sequence[Leaf]
    ) -> list[Acquired]:
        try:
            async with self._db.transaction(purpose="acquire addresses") as connection:
                results = await self._take(connection, call, units, shares)
                for unit, result in zip(units, results, strict=True):
                    home_of(unit, result, leaves)
                if not call.keep:
                    raise _Tried(results)
        except _Tried as tried:
            return tried.results
        return results

    async def _take(
        self, connection: Connection, call: Call, units: Sequence[Unit], shares: Sequence[Share]
    ) -> list[Acquired]:
        results: dict[int, Acquired] = {}
        await owners.hold(connection, call.owner)
        await keep_quota(connection, call, units)
        for share in shares:
            for index in share.specific:
                address = units[index].address
                assert address is not None
                results[index] = await addresses.acquire_specific(
                    connection,
                    share.prefix_id,
                    address,
                    call.entry(index),
                    take=("reserved",) if units[index].reserved else (),
                )
            if share.next_free:
                entries = [call.entry(index) for index in share.next_free]
                got = await addresses.acquire_next(connection, share.prefix_id, entries)
                results.update(zip(share.next_free, got, strict=True))
            for index in (*share.specific, *share.next_free):
                check(call, units[index], results[index])  # Raises, and with that nothing of the call is kept.
        return [results[index] for index in range(len(units))]
