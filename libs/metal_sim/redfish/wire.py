"""How answers of a simulated Redfish BMC go over the wire, with the faults that show there."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import json
from typing import Any

from aiohttp import web

from metal_sim.redfish.changes import Answer
from metal_sim.redfish.faults import RedfishFault, RedfishFaults
from metal_sim.redfish.personality import Etags, Personality

HUGE_BYTES = 100 * 1000 * 1000
_CHUNK = b'{"Padding": "' + b"x" * (64 * 1024)
_DEEP = b'{"Members": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
_LOGIN_PAGE = b"<!DOCTYPE html><html><body><form>Please log in</form></body></html>"


def etag(document: dict[str, Any]) -> str:
    """The strong entity tag of a document."""
    return f'"{hashlib.sha256(_dump(document)).hexdigest()[:16]}"'


def cut(request: web.BaseRequest) -> web.StreamResponse:
    """Cut the connection without an answer; what is returned reaches nobody."""
    if request.transport is not None:
        request.transport.abort()
    return web.Response()


async def send(
    request: web.BaseRequest, answer: Answer, faults: RedfishFaults, make: Personality
) -> web.StreamResponse:
    """Send an answer as it is, or as a fault makes it."""
    headers = {"OData-Version": "4.0", **answer.headers}
    if answer.document is not None and request.method != "DELETE":
        spoilt = await _spoilt(request, answer, headers, faults)
        if spoilt is not None:
            return spoilt
        if make.etags is not Etags.NONE and answer.status == 200:
            headers["ETag"] = ("W/" if make.weak_etags else "") + etag(answer.document)
    body = b"" if answer.document is None else _dump(answer.document)
    if body:
        headers["Content-Type"] = "application/json; charset=utf-8"
    if faults.spoils(RedfishFault.DRIP, request.method, request.path.rstrip("/")):
        return await _drip(request, answer.status, headers, body, faults.value(RedfishFault.DRIP))
    return web.Response(status=answer.status, headers=headers, body=body)


async def _spoilt(
    request: web.BaseRequest, answer: Answer, headers: dict[str, str], faults: RedfishFaults
) -> web.StreamResponse | None:
    document = answer.document or {}
    json_type = {**headers, "Content-Type": "application/json"}

    def has(fault: RedfishFault) -> bool:
        return faults.spoils(fault, request.method, request.path.rstrip("/"))

    body = _dump(document)
    if has(RedfishFault.REDIRECT):
        return web.Response(status=307, headers={"Location": "https://192.0.2.1/redfish/v1"})
    if has(RedfishFault.HTML):
        return web.Response(headers={**headers, "Content-Type": "text/html"}, body=_LOGIN_PAGE, status=answer.status)
    if has(RedfishFault.WRONG_TYPES):
        return web.Response(headers=json_type, body=_dump(_other_types(document)), status=answer.status)
    if has(RedfishFault.NO_OBJECT):
        return web.Response(headers=json_type, body=_dump([document]), status=answer.status)
    if has(RedfishFault.HALF):
        return web.Response(headers=json_type, body=body[: len(body) // 2], status=answer.status)
    if has(RedfishFault.DEEP):
        return web.Response(headers=json_type, body=_DEEP, status=answer.status)
    if has(RedfishFault.COMPRESSED):
        small = gzip.compress(b'{"Padding": "' + b"x" * 10_000_000 + b'"}')
        return web.Response(headers={**json_type, "Content-Encoding": "gzip"}, body=small, status=answer.status)
    if has(RedfishFault.TRUNCATED):
        return await _truncated(request, answer.status, json_type, body)
    if has(RedfishFault.HUGE) or has(RedfishFault.HUGE_ANNOUNCED):
        return await _huge(request, answer.status, json_type, faults, announced=has(RedfishFault.HUGE_ANNOUNCED))
    return None


async def _truncated(request: web.BaseRequest, status: int, headers: dict[str, str], body: bytes) -> web.StreamResponse:
    response = web.StreamResponse(status=status, headers={**headers, "Content-Length": str(len(body))})
    await response.prepare(request)
    await response.write(body[: len(body) // 2])
    cut(request)
    return response


async def _huge(
    request: web.BaseRequest, status: int, headers: dict[str, str], faults: RedfishFaults, *, announced: bool
) -> web.StreamResponse:
    size = {"Content-Length": str(HUGE_BYTES)} if announced else {}
    response = web.StreamResponse(status=status, headers={**headers, **size})
    await response.prepare(request)
    left = HUGE_BYTES
    while left > 0:
        # Ends with the connection, which a client closes that has had enough.
        await response.write(_CHUNK[:left])
        left -= len(_CHUNK)
        faults.huge_sent += len(_CHUNK)
    return response


async def _drip(
    request: web.BaseRequest, status: int, headers: dict[str, str], body: bytes, seconds: float
) -> web.StreamResponse:
    response = web.StreamResponse(status=status, headers={**headers, "Content-Length": str(len(body))})
    await response.prepare(request)
    for byte in body:
        await response.write(bytes((byte,)))
        await asyncio.sleep(seconds)
    return response


def _other_types(value: Any) -> Any:
    """The same document, but texts are numbers, numbers texts, lists and objects booleans below the first level."""
    return {name: _other(each) for name, each in value.items()}


def _other(value: Any) -> Any:
    if isinstance(value, bool):
        return "yes"
    if isinstance(value, str):
        return 42
    if isinstance(value, int | float):
        return str(value)
    return [None] if isinstance(value, dict) else True


def _dump(document: Any) -> bytes:
    return json.dumps(document).encode()
