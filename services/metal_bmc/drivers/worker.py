"""The driver process: says that it is ready, then reads one order from standard input, carries it out with pyghmi,
writes one answer, and repeats.

Orders arrive one at a time and pyghmi is used from one thread only, because its locks can block each other for good
when several threads wait (reference of the field: measured with dead BMCs in the fleet). The parent gives each order a
deadline and kills this process when it passes. Passwords come through the pipe and are never printed; an unexpected
exception is answered by its type and place alone, since its text may quote a session key with the password in it.
"""

from __future__ import annotations

import contextlib
import os
import queue
import sys
import threading
import traceback
from typing import Any

from metal_bmc.drivers import frames
from metal_bmc.drivers.errors import BmcError, BmcRefused

_QUEUED_ORDERS = 4


def _feed(orders: queue.Queue[frames.Message]) -> None:
    """Read orders; when the parent is gone, end at once, whatever the main thread is stuck in."""
    try:
        while (message := frames.read(sys.stdin.buffer)) is not None:
            orders.put(message)
    except (frames.FrameError, OSError):
        os._exit(2)
    os._exit(0)


def _load() -> None:
    # So that the first order is not kept waiting for the import. One that fails is the answer to each order.
    with contextlib.suppress(Exception):
        from metal_bmc.drivers import operations  # noqa: F401, PLC0415


def _answer(order: frames.Message) -> frames.Message:
    # Imported here so that a broken library is an answer, not a silent death.
    try:
        from metal_bmc.drivers import operations  # noqa: PLC0415

        result: Any = operations.run(order)
    except BmcError as error:
        code = error.code if isinstance(error, BmcRefused) else 0
        return {"id": order.get("id"), "error": error.reason, "message": error.message, "code": code}
    except Exception as error:
        return {"id": order.get("id"), "error": "BAD_ANSWER", "message": _place(error), "code": 0}
    return {"id": order.get("id"), "result": result}


def _place(error: Exception) -> str:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} in {os.path.basename(frame.filename)}:{frame.lineno}"


def main() -> None:
    """Serve until standard input ends."""
    # The library prints to standard output now and then; that must not land between two frames.
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    orders: queue.Queue[frames.Message] = queue.Queue(_QUEUED_ORDERS)
    threading.Thread(target=_feed, args=(orders,), daemon=True).start()
    _load()
    answers.write(frames.encode({"ready": True}))
    while True:
        answers.write(frames.encode(_answer(orders.get())))


if __name__ == "__main__":
    main()
