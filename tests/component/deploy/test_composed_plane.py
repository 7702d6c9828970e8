"""The plane of docker-compose.yml comes up from nothing, and its parts are as separate as they are meant to be."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import uuid4

import asyncpg
import nats
import nats.errors
import nats.js.errors
import pytest
from metal_init.plane import SERVICES, WITH_DATABASE
from metal_kit.errors import Unauthenticated
from metalplane.common.v1.access_pb2 import PlaneRole
from metalplane.tenancy.v1.tenant_pb2 import CreateTenantRequest, Tenant
from metalplane.tenancy.v1.tenant_pb2_grpc import TenantServiceStub
from metalplane.tenancy.v1.token_pb2 import WhoAmIRequest
from metalplane.tenancy.v1.token_pb2_grpc import TokenServiceStub

Plane = Any  # tests/component/deploy/conftest.py


@pytest.mark.parametrize("name", SERVICES)
async def test_the_health_check_of_the_compose_file_holds(composed: Plane, name: str) -> None:
    check = composed.compose["services"][name]["healthcheck"]["test"]
    assert check[0] == "CMD"
    done = await composed.run(name, *(composed.here(name, word) for word in check[1:]))
    assert (done.code, done.err) == (0, "")


async def test_the_health_check_fails_for_a_server_that_is_another_service(composed: Plane) -> None:
    done = await composed.run("ipam", "python", "-m", "metal_kit.health_check", composed.address("tenancy"), "ipam")
    assert done.code == 1
    assert "UNAVAILABLE" in done.err


async def test_the_health_check_names_what_it_lacks(composed: Plane) -> None:
    command = ("python", "-m", "metal_kit.health_check", composed.address("ipam"), "ipam")
    done = await composed.run("ipam", *command, METALPLANE_TLS_KEY="")
    assert (done.code, done.err) == (2, "METALPLANE_TLS_KEY not set\n")
    done = await composed.run("ipam", *command, METALPLANE_TLS_KEY="/nowhere/tls.key")
    assert (done.code, done.err) == (2, "/nowhere/tls.key: No such file or directory\n")


async def test_the_first_operator_token_opens_the_plane(composed: Plane, operator: str) -> None:
    peers = composed.peers(operator)
    try:
        me = await peers.stub(TokenServiceStub, "tenancy").WhoAmI(WhoAmIRequest())
    finally:
        await peers.close()
    assert (me.name, me.token.plane_role) == ("anna", PlaneRole.PLANE_ROLE_OPERATOR)


async def test_a_certificate_alone_opens_nothing(composed: Plane) -> None:
    peers = composed.peers()
    try:
        with pytest.raises(Unauthenticated):
            await peers.stub(TokenServiceStub, "tenancy").WhoAmI(WhoAmIRequest())
    finally:
        await peers.close()


@pytest.mark.parametrize("name", WITH_DATABASE)
async def test_a_service_owns_its_schema_and_cannot_look_into_another(composed: Plane, name: str) -> None:
    connection = await asyncpg.connect(composed.secret(name, "METALPLANE_DATABASE_URL"))
    try:
        assert await connection.fetchval("SELECT current_user") == name
        assert await connection.fetchval(f"SELECT count(*) FROM {name}.schema_version") > 0
        other = "tenancy" if name != "tenancy" else "ipam"
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.fetch(f"SELECT * FROM {other}.schema_version")
    finally:
        await connection.close()


async def test_making_the_roles_again_changes_nothing(composed: Plane) -> None:
    done = await composed.run("database", "metal-init", "database")
    assert (done.code, done.out) == (0, "roles made: none, all were there\n")


async def test_the_set_up_again_issues_nothing(composed: Plane) -> None:
    done = await composed.init("plane")
    assert (done.code, done.out) == (0, "certificates issued: none, all are good\n")


async def test_the_bus_wants_a_certificate_and_a_password(composed: Plane) -> None:
    url = composed.secret("ipam", "METALPLANE_NATS_URL")
    with_password = await nats.connect(url, tls=composed.tls("ipam"), allow_reconnect=False)
    assert (await with_password.jetstream().stream_info("METALPLANE")).config.name == "METALPLANE"
    await with_password.close()

    async def ignore(error: Exception) -> None:
        """nats-py prints what is not taken from it."""

    plain = url.replace(url.split("//")[1].split("@")[0] + "@", "")
    with pytest.raises((nats.errors.Error, OSError)):
        await nats.connect(plain, tls=composed.tls("ipam"), allow_reconnect=False, error_cb=ignore)
    trusting = composed.tls("ipam")
    bare = type(trusting)(trusting.protocol)
    bare.load_verify_locations(str(composed.identity("ipam").ca))
    with pytest.raises((nats.errors.Error, OSError)):
        await nats.connect(url, tls=bare, allow_reconnect=False, error_cb=ignore)


@pytest.mark.parametrize(
    ("name", "subject"),
    [
        ("boot", "metalplane.inventory.machine.changed"),
        ("ipam", "metalplane.inventory.machine.changed"),
        ("ipam", "$JS.API.STREAM.DELETE.METALPLANE"),
        ("ipam", "$JS.API.STREAM.PURGE.METALPLANE"),
        ("ipam", "$JS.API.CONSUMER.DELETE.METALPLANE.allocation-machines"),
    ],
)
async def test_a_service_listens_to_all_facts_and_tells_only_its_own(composed: Plane, name: str, subject: str) -> None:
    refused: asyncio.Queue[str] = asyncio.Queue()

    async def note(error: Exception) -> None:
        refused.put_nowait(str(error).lower())

    url = composed.secret(name, "METALPLANE_NATS_URL")
    client = await nats.connect(url, tls=composed.tls(name), allow_reconnect=False, error_cb=note)
    try:
        await client.subscribe("metalplane.inventory.machine.changed")
        await client.flush()
        assert refused.empty()
        await client.publish(subject, b"forged")
        async with asyncio.timeout(10):
            assert "permissions violation for publish" in await refused.get()
    finally:
        await client.close()


async def test_what_a_service_tells_reaches_the_stream_and_its_listeners(
    composed: Plane, operator: str, eventually: Any
) -> None:
    heard: asyncio.Queue[bytes] = asyncio.Queue()

    async def hear(message: Any) -> None:
        heard.put_nowait(message.data)

    url = composed.secret("allocation", "METALPLANE_NATS_URL")
    client = await nats.connect(url, tls=composed.tls("allocation"), allow_reconnect=False)
    peers = composed.peers(operator)
    try:
        await client.subscribe("metalplane.tenancy.>", cb=hear)
        await client.flush()
        tenants: Any = peers.stub(TenantServiceStub, "tenancy")
        tenant = await tenants.CreateTenant(CreateTenantRequest(tenant=Tenant(name=f"heard-{uuid4().hex[:8]}")))
        async with asyncio.timeout(20):
            assert tenant.id.encode() in await heard.get()

        async def followed() -> bool:
            try:
                return bool((await client.jetstream().consumer_info("METALPLANE", "allocation-machines")).name)
            except nats.js.errors.NotFoundError:
                return False

        await eventually(followed)
    finally:
        await peers.close()
        await client.close()


async def test_a_service_that_is_stopped_as_an_engine_does_ends_in_time_and_cleanly(composed: Plane) -> None:
    process = composed.processes["ipam"]
    async with asyncio.timeout(45):  # the Compose file's stop_grace_period
        await process.stop()
    assert "service.stopped" in process.log_path.read_text()
    assert not await composed.healthy("ipam")
    await composed.start_service("ipam")
    assert await composed.healthy("ipam")
