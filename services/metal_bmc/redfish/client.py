"""Sessions that are kept: one a BMC and user, at most so many, closed when nobody asks, and never left behind.

A BMC has few sessions (4 to 16 on many boards) and keeps one for half an hour, so one that is not closed locks out
people soon. What could not be closed is remembered by its location and deleted at the next chance.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Protocol

from metal_bmc.redfish import events
from metal_bmc.redfish import session as sessions
from metal_bmc.redfish.document import Document
from metal_bmc.redfish.failures import (
    BadAnswer,
    ConnectionLost,
    LoginRefused,
    NoAnswer,
    NoRoom,
    SlotsFull,
    WrongCertificate,
)
from metal_bmc.redfish.session import Login, Session
from metal_bmc.redfish.visit import Question, Visit
from metal_bmc.redfish.wire import Pin, Place, Reply, Wire

_GOODBYE_SECONDS = 2.0
_LOGIN_SECONDS = 30.0
_MOST_CHORES = 128
_MOST_LEFT = 16
_LOST_PAUSES = (0.25, 0.5)

Key = tuple[str, int, str]


@dataclass(frozen=True, slots=True)
class SessionLife:
    """How long sessions live, in seconds: unused, and at all, which bounds how long one outlives its password."""

    most: int = 2500
    unused: float = 90.0
    oldest: float = 3600.0
    look: float = 1.0


class Ledger(Protocol):
    """Where it is written down which sessions are open, so that those of a process that died can be closed."""

    def opened(self, login: Login, location: str) -> None:
        """A session was opened."""
        ...

    def closed(self, login: Login, location: str) -> None:
        """A session is gone."""
        ...


class NoLedger:
    """Writes nothing down."""

    def opened(self, login: Login, location: str) -> None:
        """See `Ledger`."""

    def closed(self, login: Login, location: str) -> None:
        """See `Ledger`."""


@dataclass(slots=True)
class _Kept:
    login: Login
    place: Place
    used: float
    session: Session | None = None
    opening: asyncio.Task[Session] | None = None
    door: asyncio.Lock = field(default_factory=asyncio.Lock)
    visitors: int = 0
    # What was found out about the BMC while this session is open; nothing of it outlives the session.
    known: dict[str, str] = field(default_factory=dict)


class RedfishClient:
    """Use it in one event loop. `close` logs out everywhere."""

    def __init__(self, life: SessionLife = SessionLife(), ledger: Ledger | None = None) -> None:
        self._life = life
        self._ledger = ledger or NoLedger()
        self._wire = Wire()
        self._kept: OrderedDict[Key, _Kept] = OrderedDict()
        self._left: dict[Key, list[str]] = {}
        self._chores: set[asyncio.Task[None]] = set()
        self._keeper: asyncio.Task[None] | None = None
        self._closed = False

    @property
    def sessions(self) -> int:
        """How many are open."""
        return sum(kept.session is not None for kept in self._kept.values())

    def left_behind(self, login: Login, location: str) -> None:
        """Delete a session that an earlier process left open, at the next login to its BMC."""
        left = self._left.setdefault(_key(login), [])
        if location not in left:
            left.append(location)
            del left[:-_MOST_LEFT]

    @asynccontextmanager
    async def visit(self, login: Login, *, give_up: float) -> AsyncIterator[Visit]:
        """The BMC for oneself, until `give_up` on the event loop's clock. Raises RedfishFailure."""
        kept = self._enter(login)
        try:
            await _pass(kept.door, give_up)
            try:
                if kept.session is not None and not self._fits(kept, login):
                    await self._drop(kept)
                if kept.login.fingerprint != login.fingerprint:
                    kept.place = _place(login)
                kept.login = login
                yield Visit(
                    give_up,
                    ask=lambda question: self._ask(kept, question, give_up),
                    session=lambda: self._session(kept, give_up),
                    pin=lambda: kept.place.pin,
                    known=kept.known,
                )
            finally:
                kept.door.release()
        finally:
            self._leave(kept)

    @asynccontextmanager
    async def listen(self, login: Login, *, give_up: float, silence: float) -> AsyncIterator[AsyncIterator[Document]]:
        """What the BMC tells by itself (DSP0266 §13.5), while others may ask it. Raises RedfishFailure.

        Begins by `give_up` on the event loop's clock; NoAnswer after `silence` seconds without a byte.
        """
        # As a visitor that does not stand in the door, it keeps the session open.
        kept = self._enter(login)
        try:
            async with self.visit(login, give_up=give_up) as visit:
                path = await events.path(visit)
                headers = sessions.authority(login, await self._session(kept, give_up))
            async with self._wire.stream(kept.place, path, headers=headers, give_up=give_up, silence=silence) as stream:
                if isinstance(stream, Reply):
                    raise sessions.failure(path, stream)
                yield events.documents(stream)
        finally:
            self._leave(kept)

    async def close(self) -> None:
        """Log out of every BMC, waiting a moment for those that do not answer, and close the connections."""
        self._closed = True
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        # Logins that are under way open sessions that nobody else will close.
        pending = {kept.opening for kept in self._kept.values() if kept.opening is not None} | self._chores
        if pending:
            await asyncio.wait(pending, timeout=_GOODBYE_SECONDS)
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
        kept = list(self._kept.values())
        self._kept.clear()
        await asyncio.gather(*(self._drop(each) for each in kept))
        await self._wire.close()

    async def _ask(self, kept: _Kept, question: Question, give_up: float) -> Reply:
        """A reply whatever its status, but never 401: a session that is over is opened again, one time."""
        try:
            reply = await self._send(kept, question, give_up)
            session = kept.session
            if reply.status == 401 and session is not None and session.token and session.proven:
                # It has run out, or the BMC has started again. Nothing was carried out.
                self._forget(kept)
                reply = await self._send(kept, question, give_up)
        except WrongCertificate:
            # Whoever it is, the session is not his. The next visit begins anew.
            self._forget(kept)
            kept.place = _place(kept.login)
            raise
        if reply.status != 401:
            if kept.session is not None:
                kept.session.proven = True
            return reply
        basic = kept.session is not None and not kept.session.token
        await self._drop(kept)
        if basic:
            raise LoginRefused("the BMC refuses user or password")
        raise BadAnswer("the BMC opens a session and refuses its token")

    async def _send(self, kept: _Kept, question: Question, give_up: float) -> Reply:
        for pause in (*_LOST_PAUSES, None):
            session = await self._session(kept, give_up)
            headers = {**question.headers, **sessions.authority(kept.login, session)}
            try:
                return await self._wire.send(
                    kept.place, question.method, question.path, headers=headers, body=question.body, give_up=give_up
                )
            except ConnectionLost:
                if question.once or pause is None or asyncio.get_running_loop().time() + pause >= give_up:
                    raise
                await asyncio.sleep(pause)
        raise AssertionError("the last turn returns or raises")

    async def _session(self, kept: _Kept, give_up: float) -> Session:
        if kept.session is not None:
            return kept.session
        if self._closed:
            raise NoRoom("the client is being stopped")
        if kept.opening is None:
            # Belongs to the BMC and not to who asks first: who gives up must not leave a session that nobody knows.
            kept.visitors += 1
            kept.opening = asyncio.create_task(self._open(kept, kept.login), name="redfish login")
            kept.opening.add_done_callback(_see)
        opening = kept.opening
        try:
            async with asyncio.timeout_at(give_up):
                return await asyncio.shield(opening)
        except TimeoutError:
            raise NoAnswer("the BMC does not answer to the login") from None

    async def _open(self, kept: _Kept, login: Login) -> Session:
        loop = asyncio.get_running_loop()
        try:
            session = await self._log_in(kept, login, loop.time() + _LOGIN_SECONDS)
            kept.session, kept.login = session, login
            kept.known.clear()
            if session.location:
                self._ledger.opened(login, session.location)
            return session
        finally:
            kept.opening = None
            self._leave(kept)

    async def _log_in(self, kept: _Kept, login: Login, give_up: float) -> Session:
        now = asyncio.get_running_loop().time()
        left = self._left.get(_key(login), [])
        try:
            session = await sessions.open_session(self._wire, kept.place, login, now=now, give_up=give_up)
        except SlotsFull:
            # The password holds, or the BMC would have said so first; ours are the only sessions that may be closed.
            if not left or not await self._delete_left(kept, login, sessions.basic(login), give_up):
                raise
            session = await sessions.open_session(self._wire, kept.place, login, now=now, give_up=give_up)
        if left:
            await self._delete_left(kept, login, sessions.authority(login, session), give_up)
        return session

    async def _delete_left(self, kept: _Kept, login: Login, headers: Mapping[str, str], give_up: float) -> int:
        left, gone = self._left.get(_key(login), []), 0
        for location in list(left):
            if await sessions.delete(self._wire, kept.place, location, headers, give_up=give_up):
                left.remove(location)
                self._ledger.closed(login, location)
                gone += 1
        if not left:
            self._left.pop(_key(login), None)
        return gone

    def _fits(self, kept: _Kept, login: Login) -> bool:
        assert kept.session is not None
        age = asyncio.get_running_loop().time() - kept.session.opened
        return kept.login == login and age <= self._life.oldest

    async def _drop(self, kept: _Kept) -> None:
        """Log out."""
        session, kept.session = kept.session, None
        if session is None:
            return
        give_up = asyncio.get_running_loop().time() + _GOODBYE_SECONDS
        if not await sessions.close_session(self._wire, kept.place, kept.login, session, give_up=give_up):
            self.left_behind(kept.login, session.location)
        elif session.location:
            self._ledger.closed(kept.login, session.location)

    def _forget(self, kept: _Kept) -> None:
        """Give up a session whose token is refused. It may still take a slot, so it is deleted at the next login."""
        session, kept.session = kept.session, None
        if session is not None and session.location:
            self.left_behind(kept.login, session.location)

    def _enter(self, login: Login) -> _Kept:
        if self._closed:
            raise NoRoom("the client is being stopped")
        if self._keeper is None:
            self._keeper = asyncio.create_task(self._keep(), name="redfish keeper")
        key, now = _key(login), asyncio.get_running_loop().time()
        kept = self._kept.get(key)
        if kept is None:
            if len(self._kept) >= self._life.most:
                self._make_room()
            kept = self._kept[key] = _Kept(login, _place(login), now)
        self._kept.move_to_end(key)
        kept.used = now
        kept.visitors += 1
        return kept

    def _leave(self, kept: _Kept) -> None:
        kept.visitors -= 1
        if kept.session is None and not kept.visitors and self._kept.get(_key(kept.login)) is kept:
            del self._kept[_key(kept.login)]

    def _make_room(self) -> None:
        for key, kept in self._kept.items():
            if not kept.visitors and len(self._chores) < _MOST_CHORES:
                del self._kept[key]
                self._do(kept)
                return
        raise NoRoom(f"all {self._life.most} sessions are in use")

    async def _keep(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(self._life.look)
            limit = loop.time() - self._life.unused
            for kept in list(self._kept.values()):
                if not kept.visitors and kept.used <= limit and len(self._chores) < _MOST_CHORES:
                    self._do(kept)

    def _do(self, kept: _Kept) -> None:
        kept.visitors += 1
        task = asyncio.create_task(self._log_out(kept), name="redfish logout")
        self._chores.add(task)
        task.add_done_callback(self._chores.discard)

    async def _log_out(self, kept: _Kept) -> None:
        try:
            async with kept.door:
                await self._drop(kept)
        finally:
            self._leave(kept)


def _key(login: Login) -> Key:
    return login.host, login.port, login.user


def _place(login: Login) -> Place:
    return Place(login.host, login.port, Pin(login.fingerprint))


def _see(opening: asyncio.Task[Session]) -> None:
    """Whoever waited for it may have given up; a failure that nobody looks at is no defect then."""
    if not opening.cancelled():
        opening.exception()


async def _pass(door: asyncio.Lock, give_up: float) -> None:
    try:
        async with asyncio.timeout_at(give_up):
            await door.acquire()
    except TimeoutError:
        raise NoRoom("another exchange with this BMC did not end in time") from None
