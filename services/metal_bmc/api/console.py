"""The stream of BmcService.Console: messages ⇄ a seat at a console."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from metal_kit.errors import InvalidArgument, Problem
from metal_kit.identity import current_caller
from metal_kit.ids import parse_uuid
from metal_kit.logs import get_logger
from metalplane.bmc.v1 import bmc_pb2 as pb

from metal_bmc.console.attachment import Event, News, Printed
from metal_bmc.console.hub import ConsoleHub, Seat
from metal_bmc.console.machine import Wish

log = get_logger(__name__)

_EVENTS = {event: pb.ConsoleEvent.Value(f"CONSOLE_EVENT_{event.name}") for event in Event}


class ConsoleApi:
    """Serves the streams."""

    def __init__(self, hub: ConsoleHub) -> None:
        self._hub = hub

    async def stream(self, requests: AsyncIterator[pb.ConsoleRequest]) -> AsyncIterator[pb.ConsoleResponse]:
        """A reader, from its first request to the end."""
        first = await anext(requests)
        if first.WhichOneof("request") != "open":
            raise InvalidArgument("CONSOLE_NOT_OPEN", "the first request has to open the console", field="open")
        open_, caller = first.open, current_caller().label
        wish = Wish(caller, open_.read_only, open_.take_over, open_.replay_bytes, open_.position)
        if wish.read_only and wish.take_over:
            raise InvalidArgument("CONSOLE_MODE", "who only reads has nothing to take over", field="open.take_over")
        machine = parse_uuid(open_.machine, field="open.machine")
        seat = await self._hub.attach(machine, wish)
        log.info("console.attached", machine=machine, caller=caller, read_only=wish.read_only)
        listening = asyncio.create_task(_listen(seat, requests, wish), name=f"console {machine} keys")
        try:
            async for each in seat.attachment:
                yield _response(seat, each)
        finally:
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)
            self._hub.leave(seat)
            log.info("console.detached", machine=machine, caller=caller)


async def _listen(seat: Seat, requests: AsyncIterator[pb.ConsoleRequest], wish: Wish) -> None:
    """Take what the reader sends. Who sends nothing more goes on reading; what he does wrong ends the stream."""
    console, attachment = seat.console, seat.attachment
    try:
        async for request in requests:
            kind = str(request.WhichOneof("request"))
            if kind == "detach":
                attachment.end()
                return
            if kind == "open":
                raise InvalidArgument("CONSOLE_OPEN_TWICE", "the console of this stream is open", field="open")
            if wish.read_only:
                raise InvalidArgument(
                    "CONSOLE_READ_ONLY", "this stream only reads; open one that types", field=kind or ""
                )
            if kind == "send_break":
                console.send_break(attachment)
            else:
                await console.type(attachment, request.data)
        await console.typed_out(attachment)
        console.lay_down(attachment)
    except Problem as problem:
        attachment.end(problem)


def _response(seat: Seat, each: Printed | News) -> pb.ConsoleResponse:
    position = seat.console.position_name(each.position)
    if isinstance(each, Printed):
        return pb.ConsoleResponse(data=each.data, position=position)
    status = pb.ConsoleStatus(
        event=_EVENTS[each.event], writer=each.writer, skipped_bytes=each.skipped, message=each.message
    )
    return pb.ConsoleResponse(status=status, position=position)
