"""Certificates are renewed while the plane of docker-compose.yml runs, as deploy/README.md says: nothing is restarted,
and nobody notices."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from metal_init.plane import SERVICES
from metal_kit.client import Peers
from metal_kit.errors import Problem, Unavailable
from metal_kit.tls import Identity
from metal_lab.servers.ports import LOOPBACK
from metalplane.plane.v1.issue_pb2 import ListPlaneIssuesRequest
from metalplane.plane.v1.issue_pb2_grpc import IssueServiceStub
from metalplane.tenancy.v1.tenant_pb2 import ListTenantsRequest
from metalplane.tenancy.v1.tenant_pb2_grpc import TenantServiceStub

pytestmark = [pytest.mark.peer, pytest.mark.timeout(240)]
Plane = Any  # tests/component/deploy/conftest.py
Edge = Any


async def _serial(plane: Plane, port: int, *, greeted: bool = False) -> int:
    """Serial number of the certificate that a server shows now. `greeted`: it speaks before TLS begins, like NATS."""
    context = plane.tls("edge")
    context.check_hostname = False
    reader, writer = await asyncio.open_connection(LOOPBACK, port, ssl=None if greeted else context)
    try:
        if greeted:
            await reader.readline()
            await writer.start_tls(context)
        shown: ssl.SSLObject = writer.get_extra_info("ssl_object")
        certificate = shown.getpeercert(binary_form=True)
        assert certificate is not None
        return x509.load_der_x509_certificate(certificate).serial_number
    finally:
        writer.close()


async def _serials(plane: Plane) -> dict[str, int]:
    found = {name: await _serial(plane, plane.ports[name]) for name in (*SERVICES, "edge")}
    return found | {"nats": await _serial(plane, plane.nats_port, greeted=True)}


async def _keep_asking(stub: Any, ended: asyncio.Event) -> tuple[int, list[Problem]]:
    answered, failures = 0, []
    while not ended.is_set():
        try:
            await stub.ListTenants(ListTenantsRequest(), timeout=10)
            answered += 1
        except Problem as problem:
            failures.append(problem)
        await asyncio.sleep(0.02)
    return answered, failures


async def _take_up(plane: Plane, edge: Edge, *command: str) -> str:
    """Run metal-init and tell those that have to be told, as the README says."""
    done = await plane.init(*command)
    assert done.code == 0, done.err
    # docker compose kill -s HUP nats edge
    for process in (plane.processes["nats"], edge.process):
        os.kill(process.pid, signal.SIGHUP)
    out: str = done.out
    return out


@asynccontextmanager
async def _asked_all_the_time(plane: Plane, edge: Edge, operator: str) -> AsyncIterator[Peers]:
    """Calls to tenancy, directly and through the edge, none of which may fail; gives clients of the services."""
    direct, through = plane.peers(operator), edge.peers(operator)
    ended = asyncio.Event()
    asking = [
        asyncio.create_task(_keep_asking(peers.stub(TenantServiceStub, "tenancy"), ended))
        for peers in (direct, through)
    ]
    try:
        yield direct
    finally:
        ended.set()
        outcomes = await asyncio.gather(*asking)
        for peers in (direct, through):
            await peers.close()
    for answered, failures in outcomes:
        assert answered > 5
        assert not failures


async def test_everything_shows_a_new_certificate_and_no_call_fails_meanwhile(
    composed: Plane, edge: Edge, operator: str, eventually: Any
) -> None:
    before = await _serials(composed)
    async with _asked_all_the_time(composed, edge, operator) as direct:
        assert await _take_up(composed, edge, "plane") == "certificates issued: none, all are good\n"
        await _take_up(composed, edge, "plane", "--renew")
        await eventually(lambda: _all_new(composed, before), what="every server shows its new certificate")
        for name in SERVICES:
            issues = await direct.stub(IssueServiceStub, name).ListPlaneIssues(ListPlaneIssuesRequest(), timeout=10)
            assert not [issue for issue in issues.issues if issue.id.startswith("certificate/")], name


async def test_another_authority_takes_over_and_no_call_fails_meanwhile(
    composed: Plane, edge: Edge, operator: str, eventually: Any, tmp_path: Path
) -> None:
    before = await _serials(composed)
    for path in (composed.secrets / "edge").glob("*.*"):
        shutil.copy(path, tmp_path)
    old = Identity(tmp_path / "ca.crt", tmp_path / "tls.crt", tmp_path / "tls.key")
    async with _asked_all_the_time(composed, edge, operator):
        for step in ("next", "switch", "retire"):
            done = await composed.init("authority", step)
            assert done.code == 0, done.err
            issued = await _take_up(composed, edge, "plane")
            assert ("tenancy" in issued) == (step == "switch")
            if step == "switch":
                await eventually(lambda: _all_new(composed, before), what="every server shows its new certificate")
    left_behind = Peers({"tenancy": composed.address("tenancy")}, old, token=lambda: operator)
    try:
        with pytest.raises(Unavailable):
            await left_behind.stub(TenantServiceStub, "tenancy").ListTenants(ListTenantsRequest(), timeout=10)
    finally:
        await left_behind.close()


async def _all_new(plane: Plane, before: dict[str, int]) -> bool:
    now = await _serials(plane)
    return all(now[name] != serial for name, serial in before.items())
