"""Certificates are renewed while the plane of docker-compose.yml runs, as deploy/README.md says: nothing is restarted,
and nobody notices."""

from __future__ import annotations

import asyncio
import os
import signal
import ssl
from typing import Any

import pytest
from cryptography import x509
from metal_init.plane import SERVICES
from metal_kit.errors import Problem
from metal_lab.servers.ports import LOOPBACK
from metalplane.plane.v1.issue_pb2 import ListPlaneIssuesRequest
from metalplane.plane.v1.issue_pb2_grpc import IssueServiceStub
from metalplane.tenancy.v1.tenant_pb2 import ListTenantsRequest
from metalplane.tenancy.v1.tenant_pb2_grpc import TenantServiceStub

pytestmark = [pytest.mark.peer, pytest.mark.timeout(240)]
Plane = Any  # tests/component/deploy/conftest.py
Edge = Any


async def _serial(plane: Plane, port: int, *, greeted: bool = False) -> int:
    """Serial number of the certificate that a server shows now. `greeted`: it speaks before TLS begins, as NATS does."""
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


async def test_everything_shows_a_new_certificate_and_no_call_fails_meanwhile(
    composed: Plane, edge: Edge, operator: str, eventually: Any
) -> None:
    before = await _serials(composed)
    direct, through = composed.peers(operator), edge.peers(operator)
    ended = asyncio.Event()
    asking = [
        asyncio.create_task(_keep_asking(peers.stub(TenantServiceStub, "tenancy"), ended))
        for peers in (direct, through)
    ]
    try:
        done = await composed.init("plane")
        assert (done.code, done.out) == (0, "certificates issued: none, all are good\n")
        done = await composed.init("plane", "--renew")
        assert done.code == 0, done.err
        # docker compose kill -s HUP nats edge
        for process in (composed.processes["nats"], edge.process):
            os.kill(process.pid, signal.SIGHUP)

        async def all_new() -> bool:
            now = await _serials(composed)
            return all(now[name] != serial for name, serial in before.items())

        await eventually(all_new, what="every server shows its new certificate")
        for name in SERVICES:
            issues = await direct.stub(IssueServiceStub, name).ListPlaneIssues(ListPlaneIssuesRequest(), timeout=10)
            assert not [issue for issue in issues.issues if issue.id.startswith("certificate/")], name
    finally:
        ended.set()
        outcomes = await asyncio.gather(*asking)
        for peers in (direct, through):
            await peers.close()
    for answered, failures in outcomes:
        assert answered > 5
        assert not failures
