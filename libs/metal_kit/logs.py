"""Structured logs through structlog: one line an event, fields instead of sentences, secrets redacted.

Levels: debug for a developer; info for what changed or was asked; warning for what went wrong and repairs itself;
error for what needs a person. Lines go to standard error, as JSON or for people. Records of the standard library's
loggers (asyncio, grpc, aiohttp) take the same way. This module does not ship logs anywhere.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import MutableMapping
from typing import Any, TextIO, cast

import structlog

from metal_kit.redaction import REDACTED, is_sensitive, redact
from metal_kit.request import current_request_id

Logger = structlog.typing.FilteringBoundLogger


def configure(level: str = "info", json: bool = True, *, stream: TextIO | None = None) -> None:
    """Set up the process's logs; `level` is debug, info, warning or error. Calling it again replaces the set-up."""
    threshold = logging.getLevelNamesMapping()[level.upper()]
    out = stream or sys.stderr
    processors: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        add_request_id,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]
    if json:
        processors += [
            structlog.processors.format_exc_info,
            redact_event,
            structlog.processors.JSONRenderer(default=str),
        ]
    else:
        # Plain tracebacks: the rich ones print local variables, which is where passwords live.
        colors = out.isatty()
        formatter = structlog.dev.plain_traceback
        processors += [redact_event, structlog.dev.ConsoleRenderer(colors=colors, exception_formatter=formatter)]
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=structlog.WriteLoggerFactory(file=out),
        cache_logger_on_first_use=True,
    )
    root = logging.getLogger()
    root.handlers[:] = [_Forward()]
    root.setLevel(max(threshold, logging.WARNING))


def get_logger(name: str, **fields: Any) -> Logger:
    """Lines carry `component=name` and the fields given: `log.info("machine.registered", machine=id)`."""
    return cast("Logger", structlog.get_logger(component=name, **fields))


def add_request_id(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """structlog processor that names the request a line belongs to."""
    request_id = current_request_id()
    if request_id:
        event.setdefault("request_id", request_id)
    return event


def redact_event(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """structlog processor that takes secrets out of the event; runs after tracebacks were rendered to text."""
    for key, value in event.items():
        if is_sensitive(key):
            event[key] = REDACTED
        elif key != "exc_info":
            event[key] = redact(value)
    return event


class _Forward(logging.Handler):
    """Hands records of the standard library's loggers to structlog."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            log = structlog.get_logger(component=record.name)
            fields: dict[str, Any] = {"exc_info": record.exc_info} if record.exc_info else {}
            log.log(record.levelno, record.getMessage(), **fields)
        except Exception:
            self.handleError(record)
