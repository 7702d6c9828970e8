"""Messages between the service and a driver process: a 4-byte big-endian length, then that much JSON.

Used on both sides of a pipe, so it imports neither asyncio nor anything of the service.
"""

from __future__ import annotations

import json
from typing import Any, BinaryIO

LENGTH_BYTES = 4
MAX_BYTES = 1 << 20

Message = dict[str, Any]


class FrameError(Exception):
    """The bytes are no frame; the pipe is out of step and its process has to go."""


def encode(message: Message) -> bytes:
    """One frame. Raises FrameError when the message is larger than 1 MiB."""
    body = json.dumps(message, separators=(",", ":")).encode()
    if len(body) > MAX_BYTES:
        raise FrameError("message too large")
    return len(body).to_bytes(LENGTH_BYTES, "big") + body


def body_length(header: bytes) -> int:
    """Length of the body that follows. Raises FrameError when it cannot be right."""
    length = int.from_bytes(header, "big")
    if len(header) != LENGTH_BYTES or length > MAX_BYTES:
        raise FrameError("bad frame length")
    return length


def decode(body: bytes) -> Message:
    """The message of a frame's body. Raises FrameError when it is not a JSON object."""
    try:
        message = json.loads(body)
    except ValueError as error:
        raise FrameError("bad frame body") from error
    if not isinstance(message, dict):
        raise FrameError("frame body is no object")
    return message


def read(stream: BinaryIO) -> Message | None:
    """Read one frame, blocking; None at the end of the stream."""
    header = stream.read(LENGTH_BYTES)
    if len(header) < LENGTH_BYTES:
        return None
    length = body_length(header)
    body = stream.read(length)
    return decode(body) if len(body) == length else None
