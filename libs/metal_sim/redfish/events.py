"""Server-sent events of a simulated Redfish BMC (DSP0266 §13.5): what is written into the log goes to who listens."""

from __future__ import annotations

import asyncio
import json

from aiohttp import web

from metal_sim.redfish.state import LogEntry

_MOST_WAITING = 256
_LOOK_SECONDS = 0.1
"""How often it is looked whether the listener is still there."""


class Listeners:
    """The streams that are open. A listener that does not keep up is cut off."""

    def __init__(self) -> None:
        self._queues: set[asyncio.Queue[LogEntry | None]] = set()

    def __len__(self) -> int:
        return len(self._queues)

    def tell(self, entry: LogEntry) -> None:
        """Send an event to all."""
        for queue in list(self._queues):
            self._put(queue, entry)

    def cut(self) -> None:
        """End all streams; who listens may come again."""
        for queue in list(self._queues):
            self._put(queue, None)

    close = cut

    async def serve(self, request: web.BaseRequest) -> web.StreamResponse:
        """One stream, until it is cut or the client goes."""
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"})
        queue: asyncio.Queue[LogEntry | None] = asyncio.Queue(_MOST_WAITING)
        self._queues.add(queue)
        try:
            await response.prepare(request)
            await response.write(b": stream is open\n\n")
            while request.transport is not None and not request.transport.is_closing():
                try:
                    entry = await asyncio.wait_for(queue.get(), _LOOK_SECONDS)
                except TimeoutError:
                    continue
                if entry is None:
                    break
                await response.write(_event(entry))
        finally:
            self._queues.discard(queue)
        return response

    def _put(self, queue: asyncio.Queue[LogEntry | None], entry: LogEntry | None) -> None:
        try:
            queue.put_nowait(entry)
        except asyncio.QueueFull:
            self._queues.discard(queue)


def _event(entry: LogEntry) -> bytes:
    document = {
        "@odata.type": "#Event.v1_4_0.Event",
        "Id": str(entry.id),
        "Name": "Event",
        "Events": [
            {
                "EventId": str(entry.id),
                "EventTimestamp": entry.created.isoformat(timespec="seconds"),
                "Severity": entry.severity,
                "MessageId": entry.message_id,
                "Message": entry.message,
            }
        ],
    }
    return f"id: {entry.id}\ndata: {json.dumps(document)}\n\n".encode()
