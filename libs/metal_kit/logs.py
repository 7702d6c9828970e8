"""Structured logs through structlog: one line an event, fields instead of sentences, secrets redacted.

Levels: debug for a developer; info for what changed or was asked; warning for what went wrong and repairs itself;
error for what needs a person. Lines go to standard error, as JSON or for people. Records of the standard library's
loggers (asyncio, grpc, aiohttp) take the same way. This module does not ship logs anywhere.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import MutableMapping
from json import dumps
from json.encoder import encode_basestring_ascii as _quote
from math import isfinite
from typing import Any, TextIO, cast
from weakref import WeakSet

import structlog

from metal_kit.redaction import REDACTED, is_sensitive, redact
from metal_kit.request import current_request_id

Logger = structlog.typing.FilteringBoundLogger


def configure(level: str = "info", json: bool = True, *, stream: TextIO | None = None) -> None:
    """Set up the process's logs; `level` is debug, info, warning or error. Calling it again replaces the set-up."""
    threshold = logging.getLevelNamesMapping()[level.upper()]
    out = stream or sys.stderr
    if json:
        processors: list[structlog.typing.Processor] = [structlog.contextvars.merge_contextvars, render_json]
    else:
        # Plain tracebacks: the rich ones print local variables, which is where passwords live.
        console = structlog.dev.ConsoleRenderer(colors=out.isatty(), exception_formatter=structlog.dev.plain_traceback)
        processors = [structlog.contextvars.merge_contextvars, stamp, redact_event, console]
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=structlog.WriteLoggerFactory(file=out),
        cache_logger_on_first_use=True,
    )
    for log in _loggers:
        # Where structlog keeps what the logger was bound to at its first line; without this it would stay with the old.
        vars(log).pop("bind", None)
    root = logging.getLogger()
    root.handlers[:] = [_Forward()]
    root.setLevel(max(threshold, logging.WARNING))


def get_logger(name: str, **fields: Any) -> Logger:
    """Lines carry `component=name` and the fields given: `log.info("machine.registered", machine=id)`."""
    log = structlog.get_logger(component=name, **fields)
    _loggers.add(log)
    return cast("Logger", log)


# Every logger that was given out, for `configure` to reach.
_loggers: WeakSet[Any] = WeakSet()


def stamp(_logger: Any, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """structlog processor: level, time (UTC), and the request that the line belongs to."""
    event["level"] = "error" if method == "exception" else method
    event["timestamp"] = _timestamp()
    request_id = current_request_id()
    if request_id:
        event.setdefault("request_id", request_id)
    return event


def redact_event(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """structlog processor that takes secrets out of the event."""
    for key, value in event.items():
        if is_sensitive(key):
            event[key] = REDACTED
        elif key != "exc_info":
            event[key] = redact(value)
    return event


def render_json(_logger: Any, method: str, event: MutableMapping[str, Any]) -> str:
    """structlog processor: stamped, without secrets, as one line of JSON.

    One processor in place of five, and strings straight to the C encoder: every call of the plane writes a line, and it
    is the dearest part of what surrounds a handler.
    """
    stamp(_logger, method, event)
    if "exc_info" in event:
        structlog.processors.format_exc_info(_logger, method, event)
    parts = []
    for key, value in event.items():
        name, sensitive = _known_keys.get(key) or _know(key)
        kind = type(value)
        if sensitive:
            parts.append(f'{name}"{REDACTED}"')
        elif kind is str and "://" not in value:
            parts.append(name + _quote(value))
        elif kind is int or (kind is float and isfinite(value)):
            parts.append(f"{name}{value}")
        else:
            parts.append(name + dumps(redact(value), default=str))
    return "{" + ", ".join(parts) + "}"


# Keys are few; how they are written and whether they are secret is found out once.
_known_keys: dict[str, tuple[str, bool]] = {}
_MAX_KNOWN_KEYS = 4096


def _know(key: str) -> tuple[str, bool]:
    known = (f"{_quote(key)}: ", is_sensitive(key))
    if len(_known_keys) < _MAX_KNOWN_KEYS:
        _known_keys[key] = known
    return known


# The last second and its text; most lines fall into the second of the line before.
_second: tuple[int, str] = (0, "")


def _timestamp() -> str:
    """RFC 3339 in UTC with microseconds."""
    global _second  # noqa: PLW0603
    nanoseconds = time.time_ns()
    second, rest = divmod(nanoseconds, 1_000_000_000)
    if second != _second[0]:
        _second = (second, time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second)))
    return f"{_second[1]}.{rest // 1000:06d}Z"


class _Forward(logging.Handler):
    """Hands records of the standard library's loggers to structlog."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            log = structlog.get_logger(component=record.name)
            fields: dict[str, Any] = {"exc_info": record.exc_info} if record.exc_info else {}
            log.log(record.levelno, record.getMessage(), **fields)
        except Exception:
            self.handleError(record)
