"""The serial console of a machine on this terminal, or between two pipes."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import ExitStack, asynccontextmanager, suppress
from typing import Annotated, Any

import grpc
import typer
from metal_kit.client import Peers
from metalplane.bmc.v1 import bmc_pb2 as pb
from metalplane.bmc.v1.bmc_pb2_grpc import BmcServiceStub

from metalctl import command
from metalctl.session import run
from metalctl.table import plain
from metalctl.terminal import ESCAPES, Escape, Keys, raw, show, typed

HELP = (
    "the serial console of a machine, through its BMC. On a terminal: " + ESCAPES + ". Input from a pipe or a file is "
    "typed as it is; it ends some time after the input does (--wait). What is printed goes to standard output, what "
    "happens to the console to standard error. With --read-only Ctrl-C ends it."
)
_REPLAY = 2048
_ENDED_BY = 128


def add(groups: Mapping[str, typer.Typer]) -> None:
    """Add this module's command to its group."""
    command.add(groups["machine"], "console", console, HELP)


def console(
    ctx: typer.Context,
    machine: Annotated[str, typer.Argument(help="UUID of the machine")],
    read_only: Annotated[bool, typer.Option("--read-only", help="only read; any number may")] = False,
    take_over: Annotated[
        bool, typer.Option("--take-over", help="type, although somebody else does, and whatever tool has the console")
    ] = False,
    replay: Annotated[
        int, typer.Option(min=0, max=262144, help="show so many bytes of what was printed before")
    ] = _REPLAY,
    wait: Annotated[
        float,
        typer.Option(min=0, help="after the end of piped input: end when nothing was printed for so long, in seconds"),
    ] = 1.0,
) -> None:
    """Sit down at a machine."""
    if read_only and take_over:
        raise typer.BadParameter("--read-only takes nothing over")
    open_ = pb.ConsoleOpen(machine=machine, read_only=read_only, take_over=take_over, replay_bytes=replay)

    async def body(peers: Peers) -> None:
        call = peers.stub(BmcServiceStub, "bmc").Console()
        try:
            await call.write(pb.ConsoleRequest(open=open_))
            await _Sitting(call, wait).sit(read_only=read_only)
        finally:
            call.cancel()

    run(ctx.obj, body)


class _Sitting:
    """Between the terminal and the stream."""

    def __init__(self, call: Any, wait: float) -> None:
        self._call, self._wait = call, wait
        self._raw = False
        self._printed = asyncio.Event()

    async def sit(self, *, read_only: bool) -> None:
        """Until either side ends it. Raises the Problem that the plane ends it with."""
        await self._take(await self._call.read())
        terminal = sys.stdin.isatty() and not read_only
        with ExitStack() as stack:
            if terminal:
                stack.enter_context(raw(sys.stdin.fileno()))
                self._raw = True
            async with _ended_by_signals():
                works = [asyncio.create_task(self._read(), name="console output")]
                if not read_only:
                    keys = self._keys() if terminal else self._pipe()
                    works.append(asyncio.create_task(keys, name="console input"))
                try:
                    done, _ = await asyncio.wait(works, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    for work in works:
                        work.cancel()
                    await asyncio.gather(*works, return_exceptions=True)
        self._raw = False
        # The stream's end says more than that nothing could be written to it any more.
        for work in works:
            if work in done:
                work.result()

    async def _read(self) -> None:
        while (response := await self._call.read()) is not grpc.aio.EOF:
            await self._take(response)

    async def _take(self, response: Any) -> None:
        if response is grpc.aio.EOF:
            return
        if response.WhichOneof("response") == "data":
            await show(response.data)
            self._printed.set()
        else:
            self._say(_sentence(response.status))

    async def _keys(self) -> None:
        """From a terminal, until `~.` or its end."""
        keys = Keys()
        self._say(f"at the console; {ESCAPES}")
        async for pressed in typed(sys.stdin.fileno()):
            for each in keys.press(pressed):
                if each is Escape.DETACH:
                    self._say("left")
                    return
                if each is Escape.HELP:
                    self._say(ESCAPES)
                elif each is Escape.BREAK:
                    await self._call.write(pb.ConsoleRequest(send_break=pb.ConsoleBreak()))
                else:
                    await self._call.write(pb.ConsoleRequest(data=each))

    async def _pipe(self) -> None:
        """From a pipe or a file, until it has ended and the machine is silent."""
        async for data in typed(sys.stdin.fileno()):
            await self._call.write(pb.ConsoleRequest(data=data))
        await self._call.done_writing()
        while True:
            self._printed.clear()
            try:
                async with asyncio.timeout(self._wait):
                    await self._printed.wait()
            except TimeoutError:
                return

    def _say(self, text: str) -> None:
        """A line about the console, on standard error; a raw terminal needs to be told to return its carriage."""
        end = "\r\n" if self._raw else "\n"
        begin = "\r\n" if self._raw else ""
        print(f"{begin}[metalctl: {plain(text)}]", end=end, file=sys.stderr, flush=True)


def _sentence(status: pb.ConsoleStatus) -> str:
    event, writer = status.event, status.writer
    if event == pb.CONSOLE_EVENT_OPENED:
        return "console open; " + (f"{writer} types" if writer else "nobody types")
    if event == pb.CONSOLE_EVENT_LOST:
        return f"console lost: {status.message}; keys are dropped until it is back"
    if event == pb.CONSOLE_EVENT_REOPENED:
        return "console open again"
    if event == pb.CONSOLE_EVENT_WRITER_CHANGED:
        return f"{writer} types from now on" if writer else "nobody types any more"
    if event == pb.CONSOLE_EVENT_SKIPPED:
        return f"{status.skipped_bytes} bytes were printed too fast for this reader, and are lost to it"
    return status.message or "something happened to the console that this metalctl does not know"


@asynccontextmanager
async def _ended_by_signals() -> AsyncIterator[None]:
    """Signals that end a program end the block instead, so that the terminal gets back what it was."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    came: list[int] = []

    def end(number: int) -> None:
        came.append(number)
        task.cancel()

    signals = (signal.SIGTERM, signal.SIGHUP)
    try:
        for each in signals:
            with suppress(ValueError, RuntimeError):  # not the main thread
                loop.add_signal_handler(each, end, each)
        yield
    except asyncio.CancelledError:
        if came:
            raise typer.Exit(_ENDED_BY + came[0]) from None
        raise
    finally:
        for each in signals:
            with suppress(ValueError, RuntimeError):
                loop.remove_signal_handler(each)
