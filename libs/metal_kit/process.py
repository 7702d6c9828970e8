"""What each process of the plane does around its work: settings, logs, the loop, signals, exit codes.

Servers come here through `metal_kit.runtime.main`, agents through `metal_kit.agent.main`.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from typing import NoReturn, TypeVar

from pydantic import ValidationError

from metal_kit import logs
from metal_kit.settings import AgentSettings

Settings = TypeVar("Settings", bound=AgentSettings)


class StartError(Exception):
    """The process cannot start, or cannot go on. The message is one line that says what to do; `code` is the exit code
    (sysexits.h: 69 something that is needed is not there, 70 a defect of ours, 78 wrong settings)."""

    def __init__(self, message: str, code: int = os.EX_CONFIG) -> None:
        super().__init__(message)
        self.code = code


def run(
    name: str, settings_type: type[Settings], body: Callable[[Settings, asyncio.Event], Awaitable[None]]
) -> NoReturn:
    """Read the settings from the environment, run `body`, exit the process.

    `body` gets the settings and an event that SIGTERM or SIGINT sets; a second signal ends the process at once. Exit
    codes: 0 when `body` returns, a StartError's code with its one line on standard error, 70 for any other exception.
    """
    try:
        settings = settings_type()
    except ValidationError as error:
        _exit(name, _explain(settings_type, error), os.EX_CONFIG)
    logs.configure(settings.log_level, settings.log_json)
    log = logs.get_logger("process", process=name)
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(_with_signals(lambda stopping: body(settings, stopping)))
    except StartError as error:
        _exit(name, str(error), error.code)
    except Exception:
        log.exception("process.failed")
        sys.exit(os.EX_SOFTWARE)
    sys.exit(os.EX_OK)


async def _with_signals(body: Callable[[asyncio.Event], Awaitable[None]]) -> None:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()

    def on_signal() -> None:
        if stopping.is_set():  # asked twice: whoever asks does not want to wait for the drain
            os._exit(130)
        stopping.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    await body(stopping)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop, where it is installed: it halves the time that the loop itself takes from a call."""
    try:
        import uvloop  # noqa: PLC0415 - the agents run without it
    except ImportError:
        return None
    return uvloop.new_event_loop


def _explain(settings_type: type[AgentSettings], error: ValidationError) -> str:
    prefix = settings_type.model_config.get("env_prefix", "")
    faults = [
        f"{prefix}{'__'.join(str(part) for part in each['loc']).upper()}: {each['msg']}"
        for each in error.errors(include_input=False, include_url=False, include_context=False)
    ]
    return "; ".join(faults)


def _exit(name: str, line: str, code: int) -> NoReturn:
    sys.stderr.write(f"{name}: {line}\n")
    sys.exit(code)
