"""Sessions that are kept: one a BMC and user, at most so many, alive while they are used, closed when nobody asks.

A kept session costs a slot on the BMC and a small packet now and then; a new one at every poll costs six times the
processor time. What is asked of one BMC is asked one after the other.
"""

from __future__ import annotations

import asyncio
import socket
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from heapq import heappop, heappush
from ipaddress import ip_address
from itertools import count

from metal_bmc.rmcp.failures import NoAnswer, NoRoom
from metal_bmc.rmcp.handshake import Login
from metal_bmc.rmcp.link import Link
from metal_bmc.rmcp.login import PATIENT, log_in
from metal_bmc.rmcp.messages import DEVICE_ID, Request, Response
from metal_bmc.rmcp.pace import LoginPace
from metal_bmc.rmcp.udp import Address, UdpSocket

# A kept session that is silent for this long is given up for a new one: BMCs restart.
_IMPATIENT = (0.5, 1.0)
_ONE_SHOT = (5.0,)
_BUSY = {0xC0, 0xC3, 0xD3}
_BUSY_PAUSES = (0.25, 0.5, 1.0)
_GOODBYE_SECONDS = 1.0
_MOST_CHORES = 512

Key = tuple[str, int, str]


@dataclass(frozen=True, slots=True)
class Keeping:
    """How long sessions live, in seconds: unused, between two signs of life, and at all.

    BMCs end a silent session after 60 s, some 3 s earlier (IPMI 2.0 §6.12.15); a sign of life may have to be repeated.
    It comes late enough that a BMC that is polled every minute needs one in between. `oldest` bounds how long a session
    outlives the password that opened it. `look` is how exact these times are.
    """

    most: int = 2500
    unused: float = 90.0
    sign_of_life: float = 40.0
    oldest: float = 3600.0
    look: float = 1.0


@dataclass(slots=True)
class _Kept:
    login: Login
    used: float
    link: Link | None = None
    door: asyncio.Lock = field(default_factory=asyncio.Lock)
    visitors: int = 0
    watched: bool = False
    """Whether it is among those that the keeper will look at."""


Chore = Callable[[_Kept], Awaitable[None]]


class RmcpClient:
    """Use it in one event loop. `close` logs out everywhere."""

    def __init__(self, keeping: Keeping = Keeping(), pace: LoginPace | None = None) -> None:
        self._keeping, self._pace = keeping, pace or LoginPace()
        self._kept: OrderedDict[Key, _Kept] = OrderedDict()
        self._sockets: dict[socket.AddressFamily, asyncio.Task[UdpSocket]] = {}
        self._keeper: asyncio.Task[None] | None = None
        self._chores: set[asyncio.Task[None]] = set()
        # When to look at a session again: of thousands, only those whose time has come are looked at.
        self._agenda: list[tuple[float, int, _Kept]] = []
        self._numbers = count()
        self._closed = False

    @property
    def sessions(self) -> int:
        """How many are open."""
        return sum(kept.link is not None for kept in self._kept.values())

    @property
    def dropped(self) -> Counter[str]:
        """Datagrams that nobody took, by cause."""
        return sum((each.dropped for each in self._open_sockets()), Counter())

    async def ask(self, login: Login, request: Request, *, give_up: float, once: bool = False) -> Response:
        """A BMC's answer, whatever its completion code, until `give_up` on the event loop's clock.

        With `once` the request is sent one time at most: a lost answer raises NoAnswer and leaves open whether it was
        carried out. Without, it is sent again when an answer is lost or the BMC is busy. Raises RmcpFailure.
        """
        kept = self._enter(login)
        try:
            await _pass(kept.door, give_up)
            try:
                return await self._ask(kept, login, request, give_up, once)
            finally:
                kept.door.release()
        finally:
            self._leave(login, kept)

    async def open(self, login: Login, *, give_up: float) -> Link:
        """A session beside the kept ones, for what needs its own; whoever opens it closes it. Raises RmcpFailure."""
        return await self._log_in(login, give_up)

    async def close(self) -> None:
        """Log out of every BMC, waiting a moment for those that do not answer, and close the sockets."""
        self._closed = True
        tasks = [*self._chores, *([self._keeper] if self._keeper else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        links = [kept.link for kept in self._kept.values() if kept.link is not None]
        self._kept.clear()
        give_up = asyncio.get_running_loop().time() + _GOODBYE_SECONDS
        await asyncio.gather(*(link.close(give_up=give_up) for link in links))
        for each in self._open_sockets():
            each.close()

    async def _ask(self, kept: _Kept, login: Login, request: Request, give_up: float, once: bool) -> Response:
        loop = asyncio.get_running_loop()
        if kept.link is not None and (kept.login != login or loop.time() - kept.link.opened > self._keeping.oldest):
            await self._drop(kept)
        for pause in _BUSY_PAUSES:
            response = await self._exchange(kept, login, request, give_up, once)
            if once or response.code not in _BUSY or loop.time() + pause >= give_up:
                return response
            await asyncio.sleep(pause)
        return await self._exchange(kept, login, request, give_up, once)

    async def _exchange(self, kept: _Kept, login: Login, request: Request, give_up: float, once: bool) -> Response:
        if kept.link is not None:
            try:
                return await kept.link.ask(request, waits=_ONE_SHOT if once else _IMPATIENT, give_up=give_up)
            except NoAnswer:
                self._part(kept)
                if once:
                    raise
        kept.link, kept.login = await self._log_in(login, give_up), login
        self._watch(kept)
        try:
            return await kept.link.ask(request, waits=_ONE_SHOT if once else PATIENT, give_up=give_up)
        except NoAnswer:
            self._part(kept)
            raise

    async def _log_in(self, login: Login, give_up: float) -> Link:
        if self._closed:
            raise NoRoom("the client is being stopped")
        family, address = await _resolve(login.host, login.port, give_up)
        try:
            udp = await self._socket(family)
        except OSError:
            raise NoAnswer("this host cannot reach the BMC's address family") from None
        await self._pace.turn(give_up)
        return await log_in(udp, address, login, give_up=give_up)

    async def _socket(self, family: socket.AddressFamily) -> UdpSocket:
        opening = self._sockets.get(family)
        if opening is None or (opening.done() and (opening.cancelled() or opening.exception() is not None)):
            opening = self._sockets[family] = asyncio.create_task(UdpSocket.listen(family), name=f"rmcp {family.name}")
        return await asyncio.shield(opening)

    def _open_sockets(self) -> list[UdpSocket]:
        done = [task for task in self._sockets.values() if task.done() and not task.cancelled()]
        return [task.result() for task in done if task.exception() is None]

    def _enter(self, login: Login) -> _Kept:
        if self._closed:
            raise NoRoom("the client is being stopped")
        if self._keeper is None:
            self._keeper = asyncio.create_task(self._keep(), name="rmcp keeper")
        key, now = (login.host, login.port, login.user), asyncio.get_running_loop().time()
        kept = self._kept.get(key)
        if kept is None:
            if len(self._kept) >= self._keeping.most:
                self._make_room()
            kept = self._kept[key] = _Kept(login, now)
        self._kept.move_to_end(key)
        kept.used = now
        kept.visitors += 1
        return kept

    def _leave(self, login: Login, kept: _Kept) -> None:
        kept.visitors -= 1
        if kept.link is None and not kept.visitors:
            self._kept.pop((login.host, login.port, login.user), None)

    def _make_room(self) -> None:
        for key, kept in self._kept.items():
            if not kept.visitors:
                del self._kept[key]
                self._part(kept)
                return
        raise NoRoom(f"all {self._keeping.most} sessions are in use")

    @staticmethod
    def _part(kept: _Kept) -> None:
        if kept.link is not None:
            kept.link.part()
            kept.link = None

    @staticmethod
    async def _drop(kept: _Kept) -> None:
        link, kept.link = kept.link, None
        if link is not None:
            await link.close(give_up=asyncio.get_running_loop().time() + _GOODBYE_SECONDS)

    def _watch(self, kept: _Kept) -> None:
        if kept.watched or kept.link is None:
            return
        kept.watched = True
        at = min(kept.used + self._keeping.unused, kept.link.heard + self._keeping.sign_of_life)
        heappush(self._agenda, (at, next(self._numbers), kept))

    async def _keep(self) -> None:
        """Look at the sessions whose time has come: close those that nobody uses, give a sign of life for others."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(self._keeping.look)
            now, again = loop.time(), list[_Kept]()
            while self._agenda and self._agenda[0][0] <= now and len(self._chores) < _MOST_CHORES:
                kept = heappop(self._agenda)[2]
                kept.watched = False
                if kept.link is None:
                    continue
                if not kept.visitors and now - kept.used >= self._keeping.unused:
                    self._do(kept, self._drop)
                elif not kept.visitors and now - kept.link.heard >= self._keeping.sign_of_life:
                    self._do(kept, self._sign_of_life)
                else:
                    again.append(kept)
            for kept in again:
                self._watch(kept)

    def _do(self, kept: _Kept, chore: Chore) -> None:
        kept.visitors += 1
        task = asyncio.create_task(self._behind(kept, chore), name="rmcp chore")
        self._chores.add(task)
        task.add_done_callback(self._chores.discard)

    async def _behind(self, kept: _Kept, chore: Chore) -> None:
        try:
            async with kept.door:
                await chore(kept)
        finally:
            self._watch(kept)
            self._leave(kept.login, kept)

    async def _sign_of_life(self, kept: _Kept) -> None:
        if kept.link is None:
            return
        try:
            give_up = asyncio.get_running_loop().time() + sum(_IMPATIENT)
            await kept.link.ask(DEVICE_ID, waits=_IMPATIENT, give_up=give_up)
        except NoAnswer:
            self._part(kept)


async def _pass(door: asyncio.Lock, give_up: float) -> None:
    if not door.locked():
        await door.acquire()
        return
    try:
        async with asyncio.timeout_at(give_up):
            await door.acquire()
    except TimeoutError:
        raise NoRoom("another exchange with this BMC did not end in time") from None


async def _resolve(host: str, port: int, give_up: float) -> tuple[socket.AddressFamily, Address]:
    """Family and address as datagrams from there will name it. Raises NoAnswer for a name that does not resolve."""
    try:
        literal = ip_address(host)
    except ValueError:
        pass
    else:
        return (socket.AF_INET if literal.version == 4 else socket.AF_INET6), (str(literal), port)
    try:
        async with asyncio.timeout_at(give_up):
            found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_DGRAM)
    except (OSError, UnicodeError):
        raise NoAnswer("the BMC's name cannot be resolved") from None
    family, _, _, _, address = found[0]
    return family, (str(address[0]), int(address[1]))
