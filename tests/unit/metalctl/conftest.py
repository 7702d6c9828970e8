"""metalctl's main in this process, against stubs that answer from a script."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.message import Message
from metalctl import session
from metalctl.__main__ import main

Answer = Message | BaseException | Callable[[Any], Message]


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    code: int
    out: str
    err: str


@dataclass
class Plane:
    """Answers by method's name: a message, an error to raise, a function of the request, or a list of these in turn.

    `asked` has every request by then.
    """

    answers: dict[str, Any] = field(default_factory=dict)
    asked: list[tuple[str, Message]] = field(default_factory=list)
    away: frozenset[str] = frozenset({"boot"})

    def stub(self, _: object, service: str) -> Any:
        return _Stub(self, service)

    def has(self, service: str) -> bool:
        """The services that the context knows; those of `away` it does not."""
        return service not in self.away

    async def close(self) -> None:
        """As the real one."""

    def requests(self, method: str) -> list[Any]:
        return [request for name, request in self.asked if name == method]


@dataclass
class _Stub:
    plane: Plane
    service: str

    def __getattr__(self, method: str) -> Callable[..., Any]:
        answer = self.plane.answers[method]
        if method.startswith("Watch"):
            return lambda request, timeout=None: self._stream(method, request, answer)

        async def call(request: Message, timeout: float | None = None) -> Message:
            self.plane.asked.append((method, _copy(request)))
            return _say(answer.pop(0) if isinstance(answer, list) else answer, request)

        return call

    async def _stream(self, method: str, request: Message, answer: list[Iterable[Answer]]) -> Any:
        self.plane.asked.append((method, _copy(request)))
        for each in answer.pop(0):
            yield _say(each, request)


def _say(answer: Answer, request: Message) -> Message:
    if isinstance(answer, BaseException):
        raise answer
    return answer if isinstance(answer, Message) else answer(request)


def _copy(request: Message) -> Message:
    copied = type(request)()
    copied.CopyFrom(request)
    return copied


Call = Callable[..., Outcome]


@pytest.fixture
def context_file(tmp_path: Path) -> Path:
    """A context that holds, of a plane that is not there."""
    for name in ("ca.crt", "tls.crt", "tls.key"):
        (tmp_path / name).write_text("-----BEGIN CERTIFICATE-----\n")
    services = ("tenancy", "inventory", "ipam", "allocation", "fabric", "bmc")
    path = tmp_path / "context.json"
    path.write_text(
        json.dumps({
            "name": "test", "endpoints": dict.fromkeys(services, "127.0.0.1:1"), "token": "secret.of.test",
            "ca": "ca.crt", "cert": "tls.crt", "key": "tls.key",
        })
    )  # fmt: skip
    path.chmod(0o600)
    return path


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], context_file: Path) -> Call:
    """`call("machine", "list")` runs main with these arguments and the context; gives code and output."""
    monkeypatch.setenv("METALPLANE_CONTEXT", str(context_file))
    monkeypatch.delenv("METALPLANE_TOKEN", raising=False)
    # What main does to the standard streams is for the terminal's sake; here they are pytest's.
    monkeypatch.setenv("COLUMNS", "100")

    def run(*arguments: str) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["metalctl", *arguments])
        capsys.readouterr()
        code = 0
        try:
            main()
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else 0 if ended.code is None else 1
        printed = capsys.readouterr()
        return Outcome(code, printed.out, printed.err)

    return run


@pytest.fixture
def plane(monkeypatch: pytest.MonkeyPatch) -> Plane:
    """What metalctl reaches instead of a plane."""
    made = Plane()
    monkeypatch.setattr(session, "Peers", lambda *args, **named: made)
    return made
