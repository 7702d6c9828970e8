"""Log lines: one JSON object each, and no secrets in any of them."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from metal_kit import logs, request
from metal_kit.redaction import REDACTED, is_sensitive, redact
from metalplane.tenancy.v1.token_pb2 import CreateTokenResponse

SECRET = "hunter2"


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    stream = io.StringIO()
    handlers, level = list(logging.root.handlers), logging.root.level
    logs.configure("info", json=True, stream=stream)
    yield stream
    logging.root.handlers[:], logging.root.level = handlers, level


def _read(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


@pytest.mark.parametrize(
    "key",
    ["password", "Password", "bmc_password", "passwords", "apiToken", "token", "page_token", "authorization",
     "Authorization", "private_key", "private-key", "privateKey", "client_secret", "api_key", "cookie", "credentials",
     "encryption_key", "X-Auth-Token"],
)  # fmt: skip
def test_sensitive_keys_are_known(key: str) -> None:
    assert is_sensitive(key)


@pytest.mark.parametrize(
    "key", ["token_id", "machine", "key", "credential_name", "password_file", "tokenKind", "public_key"]
)
def test_harmless_keys_are_left_alone(key: str) -> None:
    assert not is_sensitive(key)


def _nest(inner: Any) -> Any:
    return st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(["a", "b", "items"]), inner, max_size=3),
        st.tuples(inner, inner),
    )  # fmt: skip


SECRETIVE = st.fixed_dictionaries({"password": st.just(SECRET)}) | st.just(f"postgresql://u:{SECRET}@db/x")


@given(st.recursive(SECRETIVE | st.integers() | st.none() | st.text("xyz"), _nest, max_leaves=12))
def test_a_secret_is_redacted_at_any_depth(value: Any) -> None:
    assert SECRET not in repr(redact({"deep": value}))


def test_messages_bytes_and_dataclasses_do_not_leak() -> None:
    @dataclass
    class Login:
        user: str
        password: str

    value = redact({"message": CreateTokenResponse(secret=SECRET), "raw": SECRET.encode(), "login": Login("u", SECRET)})
    assert SECRET not in repr(value)
    assert value["login"] == {"user": "u", "password": REDACTED}
    assert value["message"] == "<metalplane.tenancy.v1.CreateTokenResponse>"


def test_a_line_is_one_json_object_with_its_fields(lines: io.StringIO) -> None:
    token = request.request_id.set("req-1")
    try:
        logs.get_logger("test").info(
            "machine.registered", machine="m\n\"1", count=3, share=0.5, bad=float("nan"), ok=True, none=None,
            nested={"api_token": SECRET, "n": [1]}, password=SECRET,
        )  # fmt: skip
    finally:
        request.request_id.reset(token)
    (line,) = _read(lines)
    assert line.pop("timestamp").endswith("Z")
    assert line.pop("bad") != line.get("bad")
    assert line == {
        "component": "test", "event": "machine.registered", "level": "info", "request_id": "req-1", "machine": 'm\n"1',
        "count": 3, "share": 0.5, "ok": True, "none": None, "nested": {"api_token": REDACTED, "n": [1]},
        "password": REDACTED,
    }  # fmt: skip


def test_an_exception_keeps_its_traceback_but_not_the_password_in_a_url(lines: io.StringIO) -> None:
    try:
        raise ValueError(f"cannot connect to nats://metal:{SECRET}@bus:4222")
    except ValueError:
        logs.get_logger("test").exception("bus.failed")
    (line,) = _read(lines)
    assert line["level"] == "error"
    assert "ValueError: cannot connect to nats://metal:[redacted]@bus:4222" in line["exception"]


def test_lines_below_the_level_are_not_written(lines: io.StringIO) -> None:
    logs.get_logger("test").debug("detail")
    assert not lines.getvalue()


def test_records_of_the_standard_library_take_the_same_way(lines: io.StringIO) -> None:
    logging.getLogger("asyncio").error("task %s leaked at nats://u:%s@h", "x", SECRET)
    (line,) = _read(lines)
    assert (line["component"], line["level"]) == ("asyncio", "error")
    assert SECRET not in lines.getvalue()


def test_the_console_form_redacts_as_well() -> None:
    stream = io.StringIO()
    try:
        logs.configure("info", json=False, stream=stream)
        logs.get_logger("test").info("login", password=SECRET, deep={"secret": SECRET})
    finally:
        logs.configure()
    assert SECRET not in stream.getvalue()
    assert "login" in stream.getvalue()


def test_a_task_keeps_the_request_it_was_started_for(lines: io.StringIO) -> None:
    async def work() -> None:
        request.request_id.set("req-2")
        await asyncio.create_task(later())

    async def later() -> None:
        logs.get_logger("test").info("later")

    asyncio.run(work())
    assert _read(lines)[0]["request_id"] == "req-2"


BASE = [
    "access", "agent", "ca", "client", "clock", "errors", "etag", "fieldmask", "guard", "identity", "ids", "logs",
    "paging", "process", "redaction", "request", "settings", "timestamps", "tls", "tokens", "validation",
]  # fmt: skip


def test_agents_live_on_the_base_dependencies() -> None:
    """On a leaf and in the ramdisk none of these packages exists, and grpc_reflection is not there either."""
    script = f"""
import sys
for name in ("asyncpg", "nats", "prometheus_client", "uvloop", "joserfc", "aiohttp", "grpc_reflection"):
    sys.modules[name] = None
import importlib
for name in {BASE!r}:
    importlib.import_module("metal_kit." + name)
from metal_kit import process
assert process._loop_factory() is None
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
