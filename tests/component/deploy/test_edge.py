"""The edge: one address for people, in front of the whole plane; nginx with the configuration of its container."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest
from metal_init.plane import SERVICES
from metal_kit.ca import Authority
from metal_kit.errors import InvalidArgument, NotFound, ResourceExhausted, Unauthenticated, Unavailable, Unimplemented
from metal_sim.bmc import SimulatedBmc
from metalplane.audit.v1.audit_pb2 import ListAuditRecordsRequest
from metalplane.audit.v1.audit_pb2_grpc import AuditServiceStub
from metalplane.bmc.v1.bmc_pb2 import (
    CONSOLE_EVENT_OPENED,
    Bmc,
    ConsoleOpen,
    ConsoleRequest,
    DeleteBmcRequest,
    RegisterBmcRequest,
)
from metalplane.bmc.v1.bmc_pb2_grpc import BmcServiceStub
from metalplane.common.v1.access_pb2 import PlaneRole
from metalplane.inventory.v1.machine_pb2 import GetMachineRequest, ListMachinesRequest, WatchMachinesRequest
from metalplane.inventory.v1.machine_pb2_grpc import MachineServiceStub
from metalplane.inventory.v1.partition_pb2 import CreatePartitionRequest, Partition
from metalplane.inventory.v1.partition_pb2_grpc import PartitionServiceStub
from metalplane.ipam.v1.network_pb2 import ListNetworksRequest
from metalplane.ipam.v1.network_pb2_grpc import NetworkServiceStub
from metalplane.plane.v1.issue_pb2 import ListPlaneIssuesRequest
from metalplane.plane.v1.issue_pb2_grpc import IssueServiceStub
from metalplane.tenancy.v1.tenant_pb2 import CreateTenantRequest, ListTenantsRequest, Tenant
from metalplane.tenancy.v1.tenant_pb2_grpc import TenantServiceStub
from metalplane.tenancy.v1.token_pb2 import WhoAmIRequest
from metalplane.tenancy.v1.token_pb2_grpc import TokenServiceStub

pytestmark = [pytest.mark.peer, pytest.mark.timeout(240)]
Edge = Any  # tests/component/deploy/conftest.py


@pytest.fixture
async def people(edge: Edge, operator: str) -> Any:
    """An operator's clients."""
    peers = edge.peers(operator)
    yield peers
    await peers.close()


async def test_one_address_leads_to_every_service(people: Any) -> None:
    me = await people.stub(TokenServiceStub, "tenancy").WhoAmI(WhoAmIRequest())
    assert (me.name, me.token.plane_role) == ("anna", PlaneRole.PLANE_ROLE_OPERATOR)
    assert not (await people.stub(MachineServiceStub, "inventory").ListMachines(ListMachinesRequest())).machines
    assert not (await people.stub(NetworkServiceStub, "ipam").ListNetworks(ListNetworksRequest())).networks


async def test_what_every_service_serves_leads_to_the_one_that_is_named_and_knows_whence_a_call_came(
    people: Any, edge: Edge
) -> None:
    partition = Partition(id="edge-audit")
    await people.stub(PartitionServiceStub, "inventory").CreatePartition(CreatePartitionRequest(partition=partition))
    request = ListAuditRecordsRequest(object="edge-audit")
    found = {
        service: (await people.stub(AuditServiceStub, service).ListAuditRecords(request)).records
        for service in ("inventory", "ipam")
    }
    assert [each.entry.method for each in found["inventory"]] == ["inventory.v1.PartitionService/CreatePartition"]
    assert found["inventory"][0].entry.peer in {"127.0.0.1", "::1"}
    assert not found["ipam"]
    async with grpc.aio.secure_channel(edge.endpoint, edge.plane.identity("edge").channel_credentials()) as channel:
        for metadata in ((), (("x-metalplane-service", "nowhere"),)):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await AuditServiceStub(channel).ListAuditRecords(request, metadata=metadata, timeout=10)
            assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_errors_come_through_with_their_reason_and_field(people: Any) -> None:
    machines = people.stub(MachineServiceStub, "inventory")
    with pytest.raises(InvalidArgument) as caught:
        await machines.GetMachine(GetMachineRequest(id="no uuid"))
    assert caught.value.field == "id"
    with pytest.raises(NotFound) as missing:
        await machines.GetMachine(GetMachineRequest(id="11111111-2222-4333-8444-555555555555"))
    assert missing.value.reason


async def test_the_edge_lends_nobody_its_own_certificate(edge: Edge) -> None:
    peers = edge.peers()
    try:
        with pytest.raises(Unauthenticated):
            await peers.stub(TenantServiceStub, "tenancy").ListTenants(ListTenantsRequest())
    finally:
        await peers.close()


async def test_a_watch_passes_and_ends_with_its_client(people: Any, eventually: Any, edge: Edge) -> None:
    watch = people.stub(MachineServiceStub, "inventory").WatchMachines(WatchMachinesRequest(), timeout=60)
    async for batch in watch:
        assert batch.position
        break
    watch.cancel()
    await eventually(lambda: "MachineService/WatchMachines" in edge.log(), what="nginx logs a call when it has ended")


async def test_a_console_passes_in_both_directions_and_may_be_silent(people: Any) -> None:
    bmc = SimulatedBmc("6f8e2c1a-0b7d-4e55-9a10-0242ac12ed6e", password="at the edge")
    host, port = await bmc.start()
    bmc.serial.on_input = bmc.serial.write
    service = people.stub(BmcServiceStub, "bmc")
    wanted = Bmc(
        machine=bmc.machine, partition="partition-1", address=f"{host}:{port}", user="metal", password="at the edge"
    )
    await service.RegisterBmc(RegisterBmcRequest(bmc=wanted))
    call = service.Console()
    try:
        await call.write(ConsoleRequest(open=ConsoleOpen(machine=bmc.machine)))
        assert (await call.read()).status.event == CONSOLE_EVENT_OPENED
        await call.write(ConsoleRequest(data=b"before"))
        assert (await call.read()).data == b"before"
        await asyncio.sleep(2)  # longer than nginx waits for the next piece of other requests here
        await call.write(ConsoleRequest(data=b"after"))
        assert (await call.read()).data == b"after"
    finally:
        call.cancel()
        await service.DeleteBmc(DeleteBmcRequest(machine=bmc.machine))
        bmc.stop()


async def test_what_every_service_serves_is_asked_of_the_one_that_is_named(
    people: Any, edge: Edge, eventually: Any
) -> None:
    for service in SERVICES:
        answer = await people.stub(IssueServiceStub, service).ListPlaneIssues(ListPlaneIssuesRequest(), timeout=10)
        assert {issue.service for issue in answer.issues} <= {service}
        led = f'"backend":"{edge.plane.address(service)}"'
        await eventually(
            lambda led=led: any("IssueService" in line and led in line for line in edge.log().splitlines()),
            what=f"a call for {service} is led to it",
        )
    for named in ("postgres", "", "ipam.example.org", "127.0.0.1:22"):
        stranger = edge.peers("x", services=[named])
        try:
            with pytest.raises(Unimplemented):
                await stranger.stub(IssueServiceStub, named).ListPlaneIssues(ListPlaneIssuesRequest(), timeout=10)
        finally:
            await stranger.close()


async def test_the_edge_says_where_a_call_came_from_and_a_client_cannot(people: Any, edge: Edge) -> None:
    whoami = people.stub(TokenServiceStub, "tenancy").WhoAmI
    await whoami(WhoAmIRequest(), metadata=(("x-forwarded-for", "203.0.113.7"),))
    guesses = iter(range(1000))
    strangers = edge.peers(lambda: f"guess.{next(guesses)}.x")
    guess = strangers.stub(TokenServiceStub, "tenancy").WhoAmI

    async def outcome(number: int) -> str:
        # They claim to come from everywhere, and are all this host's.
        try:
            await guess(WhoAmIRequest(), metadata=(("x-forwarded-for", f"203.0.113.{number}"),))
        except (Unauthenticated, ResourceExhausted) as problem:
            return f"{problem.reason}: {problem.message}"
        return "let in"

    try:
        outcomes = await asyncio.gather(*(outcome(number) for number in range(200)))
    finally:
        await strangers.close()
    limited = [each for each in outcomes if "address:127.0.0.1 is limited to" in each]
    assert limited, set(outcomes)
    assert all(each in limited or "TOKEN" in each for each in outcomes)
    await whoami(WhoAmIRequest())


async def test_a_request_that_is_too_large_is_refused_with_a_reason(people: Any) -> None:
    tenants = people.stub(TenantServiceStub, "tenancy")
    for megabytes in (4.5, 6):
        text = "x" * int(megabytes * 1024 * 1024)
        with pytest.raises(ResourceExhausted):
            await tenants.CreateTenant(CreateTenantRequest(tenant=Tenant(name="big", description=text)))


async def test_what_has_no_route_is_unimplemented(edge: Edge) -> None:
    identity = edge.plane.identity("edge")
    root = identity.ca.read_bytes()
    async with grpc.aio.secure_channel(edge.endpoint, grpc.ssl_channel_credentials(root)) as channel:
        for method in ("/metalplane.boot.v1.BootService/Work", "/grpc.health.v1.Health/Check", "/a/b"):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await channel.unary_unary(method)(b"", timeout=10)
            assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED, method


async def test_a_service_that_is_away_is_unavailable_and_comes_back(edge: Edge, people: Any) -> None:
    networks = people.stub(NetworkServiceStub, "ipam")
    await edge.plane.processes["ipam"].stop()
    try:
        with pytest.raises(Unavailable):
            await networks.ListNetworks(ListNetworksRequest(), timeout=10)
    finally:
        await edge.plane.start_service("ipam")
    assert not (await networks.ListNetworks(ListNetworksRequest(), timeout=10)).networks


async def test_a_client_that_does_not_know_our_authority_goes_no_further(edge: Edge, tmp_path: Any) -> None:
    Authority.create("somebody else").save(tmp_path)
    peers = edge.peers(ca=tmp_path / "ca.crt")
    try:
        with pytest.raises(Unavailable):
            await peers.stub(TokenServiceStub, "tenancy").WhoAmI(WhoAmIRequest(), timeout=5)
    finally:
        await peers.close()


async def test_the_log_has_the_calls_and_no_token(edge: Edge, operator: str, eventually: Any) -> None:
    peers = edge.peers(operator)
    partitions = peers.stub(PartitionServiceStub, "inventory")
    try:
        await partitions.CreatePartition(CreatePartitionRequest(partition=Partition(id="edge-log")))
    finally:
        await peers.close()
    await eventually(lambda: "PartitionService/CreatePartition" in edge.log())
    assert operator not in edge.log()
    assert "Bearer" not in edge.log()
