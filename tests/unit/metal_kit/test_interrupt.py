"""Ctrl-C against a program that waits and hears of nothing."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys

import pytest
from metal_kit.interrupt import run_command

# The signal is taken by a second thread, so that the system call in which the loop sleeps is not broken off.
PROGRAM = """
import asyncio, signal, sys, threading, time
from metal_kit.interrupt import run_command

async def wait_for_ever():
    threading.Thread(target=interrupt, daemon=True).start()
    try:
        await asyncio.Event().wait()
    finally:
        print("tidied up", flush=True)
        STUBBORN and await asyncio.Event().wait()

def interrupt():
    for _ in range(1 + STUBBORN):
        time.sleep(0.2)
        signal.pthread_kill(threading.get_ident(), signal.SIGINT)

try:
    run_command(wait_for_ever())
except KeyboardInterrupt:
    sys.exit(130)
"""


@pytest.mark.parametrize("stubborn", [False, True], ids=["tidies up", "needs a second one"])
def test_it_ends_a_loop_that_sleeps_whatever_thread_gets_it(stubborn: bool) -> None:
    program = PROGRAM.replace("STUBBORN", str(int(stubborn)))
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=20, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "tidied up\n", "")


def test_what_the_command_returns_or_raises_is_passed_on() -> None:
    async def answer() -> int:
        return 42

    async def fail() -> None:
        raise LookupError("it")

    async def cancelled() -> None:
        raise asyncio.CancelledError

    assert run_command(answer()) == 42
    with pytest.raises(LookupError, match="it"):
        run_command(fail())
    with pytest.raises(asyncio.CancelledError):
        run_command(cancelled())
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
