"""What a BMC tells by itself: an event stream (server-sent events, DSP0266 §13.5) with documents in it."""

from __future__ import annotations

from collections.abc import AsyncIterator

from metal_bmc.redfish import document
from metal_bmc.redfish.document import Document
from metal_bmc.redfish.failures import BadAnswer, NotThere
from metal_bmc.redfish.visit import Visit

MOST_BYTES = 256 * 1024
"""Of one event."""


class EventLines:
    """Puts the lines of a stream together. Give it bytes as they come."""

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[bytes] = []
        self._size = 0

    def feed(self, piece: bytes) -> list[bytes]:
        """The data of the events that are complete now. Raises BadAnswer for one without end."""
        # A line may end with CR and LF in two pieces; a CR at the end waits for what follows.
        text = self._rest + piece
        held = b"\r" if text.endswith(b"\r") else b""
        *lines, last = text[: len(text) - len(held)].replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        self._rest = last + held
        found = [event for line in lines if (event := self._line(line))]
        if len(self._rest) + self._size > MOST_BYTES:
            raise BadAnswer(f"an event of the BMC has more than {MOST_BYTES} bytes")
        return found

    def _line(self, line: bytes) -> bytes:
        if not line:
            event, self._data, self._size = b"\n".join(self._data), [], 0
            return event
        name, _, value = line.partition(b":")
        if name == b"data":
            self._data.append(value.removeprefix(b" "))
            self._size += len(value)
        return b""


async def path(visit: Visit) -> str:
    """Where the stream is. Raises RedfishFailure; NotThere for a BMC without one."""
    service = (await visit.root()).optional_link("EventService")
    uri = (await visit.get(service)).optional_text("ServerSentEventUri") if service else ""
    if not uri:
        raise NotThere("the BMC has no event stream")
    return document.location_path(uri)


async def documents(stream: AsyncIterator[bytes]) -> AsyncIterator[Document]:
    """The events of a stream, one by one. Raises BadAnswer."""
    lines = EventLines()
    async for piece in stream:
        for data in lines.feed(piece):
            message = document.parse("event", data)
            for each in message.inners("Events"):
                yield each
