"""One running call: who makes it, how it ends, and what is told about it afterwards."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import grpc

from metal_kit.errors import DeadlineExceeded, Problem, ResourceExhausted
from metal_kit.identity import ANONYMOUS, Caller, Settled, set_current_caller
from metal_kit.ids import uuid7
from metal_kit.limits import Account
from metal_kit.logs import Logger, get_logger
from metal_kit.metrics import MethodMetrics, limited
from metal_kit.tls import NOBODY, Shown

if TYPE_CHECKING:
    from metal_kit.audit.trace import Trace
    from metal_kit.tokens import TokenVerifier

    Context = grpc.aio.ServicerContext[Any, Any]
else:
    Context = grpc.aio.ServicerContext

# Statuses that tell of trouble on our side; they are logged as warnings.
_WORRYING = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.INTERNAL}

log = get_logger("rpc")


class Call:
    """A call from its first to its last moment; one instance a call."""

    __slots__ = (
        "_log", "_metrics", "_stream", "account", "bearer", "caller", "certificate", "code", "failure", "limited",
        "method", "remembered", "request_id", "settled", "silent", "started", "trace", "who",
    )  # fmt: skip

    def __init__(self, method: str, metrics: MethodMetrics, logger: Logger, *, stream: bool = False) -> None:
        self._metrics = metrics
        self._log = logger
        self._stream = stream
        self.method = method
        self.started = time.monotonic()
        # The certificate of the connection, and who calls: they differ where a token speaks.
        self.certificate: Shown = NOBODY
        self.who = ANONYMOUS
        self.caller = "unknown"
        self.settled = Settled()
        self.request_id = ""
        self.code = "OK"
        self.failure: Problem | None = None
        # Whether the client named a deadline.
        self.limited = False
        # The token whose roles came from the cache, and who can ask for them anew.
        self.remembered: tuple[TokenVerifier, str] | None = None
        # The token that the call came with, who can ask whether it still holds, and whom it spoke for at the start.
        self.bearer: tuple[TokenVerifier, str, Caller] | None = None
        # Where the call is counted (`metal_kit.limits`), and whether its refusal is one of many and needs no line.
        self.account: Account | None = None
        self.silent = False
        # What the audit log gets to know; None when calls of the method are not audited.
        self.trace: Trace | None = None
        metrics.running += 1

    def enter(self, account: Account) -> None:
        """Count the call for a caller from here to its end. Raises ResourceExhausted when he has too many."""
        try:
            account.enter(self.started, stream=self._stream)
        except ResourceExhausted as problem:
            self.caller = account.name
            self.silent = account.silenced(self.started)
            limited(problem.reason, account.kind)
            raise
        self.account = account

    def vouched_for(self, account: Account) -> None:
        """Count the call for this caller instead of his address, which has lost nothing by it."""
        if self.account is not None:
            self.account.refund()
            self.account.leave(stream=self._stream)
            self.account = None
        self.enter(account)

    def identified(self, caller: Caller) -> None:
        """Set the caller for the handler and for what is told about the call."""
        self.who = caller
        self.caller = caller.label
        self.settled = set_current_caller(caller)

    async def fail(self, context: Context, error: BaseException) -> None:
        """Answer a failure; returns for what has to travel on as it is."""
        if isinstance(error, Problem):
            problem = error
        elif isinstance(error, asyncio.CancelledError | GeneratorExit):
            self.code = "CANCELLED"
            return
        elif isinstance(error, grpc.aio.AbortError):
            # The handler aborted by itself; that code is on its way.
            code = context.code()
            self.code = code.name if isinstance(code, grpc.StatusCode) else "UNKNOWN"
            return
        elif isinstance(error, TimeoutError):
            problem = DeadlineExceeded("DEADLINE_EXCEEDED", "the call took too long")
            problem.__cause__ = error
        elif not isinstance(error, Exception):
            self.code = "UNKNOWN"
            return
        else:
            problem = self._unknown(error)
        self.code = problem.code.name
        self.failure = problem
        status = problem.to_status()
        await context.abort(problem.code, status.message, (("grpc-status-details-bin", status.SerializeToString()),))

    def _unknown(self, error: Exception) -> Problem:
        """Log what nobody foresaw, in full; the client gets an id to ask about and nothing else."""
        log_id = uuid7()
        log.error(
            "rpc.defect",
            log_id=log_id,
            method=self.method,
            request_id=self.request_id,
            caller=self.caller,
            exc_info=error,
        )
        return Problem("INTERNAL", f"internal error; the log has it under {log_id}", metadata={"log_id": log_id})

    def end(self) -> None:
        """Count the call, write its line, and tell the audit log."""
        if self.trace is not None:
            self.trace.end(self)
        seconds = time.monotonic() - self.started
        if self.account is not None:
            self.account.leave(stream=self._stream)
            self.account = None
        self._metrics.running -= 1
        self._metrics.ended(self.code, seconds)
        if self.silent:
            return
        failure = self.failure
        milliseconds = round(seconds * 1000, 2)
        if failure is None:
            self._log.info("rpc", code=self.code, caller=self.caller, request_id=self.request_id, ms=milliseconds)
            return
        write = self._log.warning if failure.code in _WORRYING else self._log.info
        write(
            "rpc", code=self.code, caller=self.caller, request_id=self.request_id, ms=milliseconds,
            reason=failure.reason, field=failure.field, problem=failure.message,
            cause=repr(failure.__cause__) if failure.__cause__ is not None else None,
        )  # fmt: skip
