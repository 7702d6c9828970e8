"""What can be asked of one BMC while nobody else asks it: documents, changes under an entity tag, actions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from metal_bmc.redfish import session as sessions
from metal_bmc.redfish.document import Document, checked_path
from metal_bmc.redfish.failures import BadAnswer
from metal_bmc.redfish.session import Session
from metal_bmc.redfish.wire import Pin, Reply

_BUSY = (429, 503)
_BUSY_TRIES = 3
_BUSY_SECONDS = 5.0
_STALE = (412, 428)
_MOST_MEMBERS = 2000
_MOST_PAGES = 50


@dataclass(frozen=True, slots=True)
class Question:
    """One request. With `once` it leaves one time at most."""

    method: str
    path: str
    body: Mapping[str, object] | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    once: bool = False


class Visit:
    """All methods raise RedfishFailure, and end by `give_up` on the event loop's clock."""

    def __init__(
        self,
        give_up: float,
        *,
        ask: Callable[[Question], Awaitable[Reply]],
        session: Callable[[], Awaitable[Session]],
        pin: Callable[[], Pin],
        known: dict[str, str],
    ) -> None:
        self.give_up = give_up
        self._ask, self._session, self._pin = ask, session, pin
        self.known = known
        """What was found out about the BMC before, as long as the session is the same."""

    @property
    def fingerprint(self) -> bytes:
        """SHA-256 of the certificate that the BMC showed, empty before it showed one."""
        return self._pin().seen

    async def root(self) -> Document:
        """The service root."""
        return (await self._session()).root

    async def get(self, path: str) -> Document:
        """The document at a path."""
        return sessions.read(path, await self._patiently(Question("GET", path)))

    async def pages(self, path: str) -> AsyncIterator[Document]:
        """The pages of a collection, some dozens at most."""
        seen: set[str] = set()
        while path and len(seen) < _MOST_PAGES:
            if path in seen:
                raise BadAnswer("the pages of a collection lead in a circle")
            seen.add(path)
            page = await self.get(path)
            yield page
            following = page.optional_text("Members@odata.nextLink")
            path = checked_path(following) if following else ""

    async def members(self, path: str) -> list[str]:
        """The paths of a collection's members."""
        found: list[str] = []
        async for page in self.pages(path):
            found += page.links("Members")
            if len(found) > _MOST_MEMBERS:
                raise BadAnswer(f"a collection has more than {_MOST_MEMBERS} members")
        return found

    async def patch(self, path: str, body: Mapping[str, object], *, etag: str = "") -> None:
        """Change a document that was read with this `etag`. Sent again when an answer is lost."""
        reply = await self._patch(path, body, etag)
        if reply.status in _STALE:
            reply = await self._patch(path, body, (await self.get(path)).etag)
        if reply.status in _STALE:
            # Tags that change by themselves, weak ones that match nothing, none although they are required.
            reply = await self._patch(path, body, "*")
        _check(path, reply)

    async def post(self, path: str, body: Mapping[str, object], *, once: bool = False) -> Reply:
        """Order an action; with `once` a lost answer raises NoAnswer and leaves open whether it was carried out."""
        reply = await self._patiently(Question("POST", path, body, once=once))
        _check(path, reply)
        return reply

    async def _patch(self, path: str, body: Mapping[str, object], etag: str) -> Reply:
        return await self._patiently(Question("PATCH", path, body, {"If-Match": etag} if etag else {}))

    async def _patiently(self, question: Question) -> Reply:
        """Asks a BMC again that is busy and says for how short a while."""
        loop = asyncio.get_running_loop()
        for _ in range(_BUSY_TRIES - 1):
            reply = await self._ask(question)
            pause = sessions.retry_after(reply) or 1.0
            too_long = pause > _BUSY_SECONDS or loop.time() + pause >= self.give_up
            if reply.status not in _BUSY or question.once or too_long:
                return reply
            await asyncio.sleep(pause)
        return await self._ask(question)


def _check(path: str, reply: Reply) -> None:
    if not 200 <= reply.status < 300:
        raise sessions.failure(path, reply)
