"""Tokens over real gRPC: nobody grants what he lacks, and what was taken away ends."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from google.protobuf.duration_pb2 import Duration
from joserfc import jwt
from joserfc.jwk import OKPKey
from metal_kit.errors import InvalidArgument, NotFound, PermissionDenied, Problem, Unauthenticated
from metal_kit.runtime import Parts, RunningService, Runtime, Servicer, ServiceSpec
from metal_kit.settings import ServiceSettings
from metal_tenancy.service import KEEP_EXPIRED, SPEC
from metal_tenancy.store import TokenStore
from metalplane.common.v1.access_pb2 import PlaneRole, Role
from metalplane.ipam.v1 import network_pb2
from metalplane.ipam.v1.network_pb2_grpc import (
    NetworkServiceServicer,
    NetworkServiceStub,
    add_NetworkServiceServicer_to_server,
)
from metalplane.tenancy.v1 import project_pb2, token_pb2

VIEWER, EDITOR, OWNER = Role.ROLE_VIEWER, Role.ROLE_EDITOR, Role.ROLE_OWNER
PLANE_VIEWER, OPERATOR = PlaneRole.PLANE_ROLE_VIEWER, PlaneRole.PLANE_ROLE_OPERATOR
NOBODY = "0198c1d2-0000-7000-8000-00000000dead"
REFUSAL = "TOKEN_INVALID: the token does not hold; log in again"
REVOCATION_LIMIT = 5.0


async def refused(call: Awaitable[Any]) -> Problem:
    """The refusal of a call."""
    with pytest.raises(Problem) as caught:
        await call
    return caught.value


def signing_key(path: Path) -> OKPKey:
    """The service's own key."""
    return OKPKey.import_key(path.read_bytes())


async def test_a_token_with_roles_is_worth_no_more_than_its_user_at_each_use(tenancy: Any) -> None:
    tenant = await tenancy.tenant()
    project = await tenancy.project(tenant.id)
    alice = await tenancy.person("alice", OWNER, project=project.id)
    script = (await tenancy.token(as_=alice, projects={project.id: EDITOR})).secret
    assert dict((await tenancy.check(script)).project_roles) == {project.id: EDITOR}

    await tenancy.join("alice", VIEWER, project=project.id)
    assert dict((await tenancy.check(script)).project_roles) == {project.id: VIEWER}
    await tenancy.projects().RemoveProjectMember(
        project_pb2.RemoveProjectMemberRequest(project=project.id, user="alice")
    )
    assert dict((await tenancy.check(script)).project_roles) == {}
    assert dict((await tenancy.check(alice)).project_roles) == {}, "a token without roles follows its user too"


async def test_what_an_operator_granted_needs_no_membership_and_ends_with_the_project(tenancy: Any) -> None:
    tenant = await tenancy.tenant()
    project = await tenancy.project(tenant.id)
    robot = (await tenancy.token("robot", projects={project.id: EDITOR}, plane=PLANE_VIEWER)).secret
    checked = await tenancy.check(robot)
    assert (checked.user, dict(checked.project_roles), checked.plane_role) == (
        "robot", {project.id: EDITOR}, PLANE_VIEWER,
    )  # fmt: skip
    await tenancy.projects().DeleteProject(project_pb2.DeleteProjectRequest(id=project.id))
    assert dict((await tenancy.check(robot)).project_roles) == {}


async def test_a_role_on_a_tenant_is_one_on_its_projects_also_on_later_ones(tenancy: Any) -> None:
    tenant, other = await tenancy.tenant("acme"), await tenancy.tenant("other")
    first = await tenancy.project(tenant.id, "first")
    await tenancy.project(other.id, "foreign")
    alice = await tenancy.person("alice", EDITOR, tenant=tenant.id)
    await tenancy.join("alice", OWNER, project=first.id)
    second = await tenancy.project(tenant.id, "second", as_=alice)
    checked = await tenancy.check(alice)
    assert dict(checked.project_roles) == {first.id: OWNER, second.id: EDITOR}
    assert dict(checked.tenant_roles) == {tenant.id: EDITOR}


async def test_a_project_can_be_used_by_its_maker_at_once(tenancy: Any) -> None:
    tenant = await tenancy.tenant()
    alice = await tenancy.person("alice", OWNER, tenant=tenant.id)
    for number in range(3):
        project = await tenancy.project(tenant.id, f"p{number}", as_=alice)
        got = await tenancy.projects(alice).GetProject(project_pb2.GetProjectRequest(id=project.id))
        assert got == project
        listed = await tenancy.projects(alice).ListProjects(project_pb2.ListProjectsRequest())
        assert project in listed.projects


async def test_nobody_grants_more_than_he_holds(tenancy: Any) -> None:
    tenant = await tenancy.tenant()
    project, other = await tenancy.project(tenant.id, "a"), await tenancy.project(tenant.id, "b")
    alice = await tenancy.person("alice", EDITOR, project=project.id)
    for wish, field in (
        ({"projects": {project.id: OWNER}}, "token.project_roles"),
        ({"projects": {other.id: VIEWER}}, "token.project_roles"),
        ({"projects": {NOBODY: VIEWER}}, "token.project_roles"),
        ({"tenants": {tenant.id: VIEWER}}, "token.tenant_roles"),
        ({"plane": PLANE_VIEWER}, "token.plane_role"),
        ({"plane": OPERATOR}, "token.plane_role"),
        ({"user": "bob"}, "token.user"),
    ):
        problem = await refused(tenancy.token(as_=alice, **wish))
        assert (type(problem), problem.field) == (PermissionDenied, field), wish
    listed = await tenancy.tokens(alice).ListTokens(token_pb2.ListTokensRequest())
    assert len(listed.tokens) == 1, "nothing was made"


async def test_a_small_token_does_not_make_a_large_one(tenancy: Any) -> None:
    tenant = await tenancy.tenant()
    project = await tenancy.project(tenant.id)
    alice = await tenancy.person("alice", OWNER, project=project.id)
    small = (await tenancy.token(as_=alice, projects={project.id: VIEWER})).secret
    everything = await refused(tenancy.token(as_=small))
    assert (type(everything), everything.reason) == (PermissionDenied, "GRANT_TOO_LARGE")
    larger = await refused(tenancy.token(as_=small, projects={project.id: EDITOR}))
    assert (type(larger), larger.field) == (PermissionDenied, "token.project_roles")
    assert dict((await tenancy.check((await tenancy.token(as_=small, projects={project.id: VIEWER})).secret))
                .project_roles) == {project.id: VIEWER}  # fmt: skip
    again = (await tenancy.token(as_=alice)).secret
    assert dict((await tenancy.check(again)).project_roles) == {project.id: OWNER}


async def test_a_grant_that_would_be_worth_nothing_is_refused(tenancy: Any) -> None:
    """A role that comes from an operator's token only: tokens that its holder makes are cut to memberships."""
    tenant = await tenancy.tenant()
    project = await tenancy.project(tenant.id)
    robot = (await tenancy.token("robot", projects={project.id: EDITOR}, plane=PLANE_VIEWER)).secret
    problem = await refused(tenancy.token(as_=robot, projects={project.id: VIEWER}))
    assert "by membership" in problem.message
    assert (await refused(tenancy.token(as_=robot, plane=PLANE_VIEWER))).field == "token.plane_role"


async def test_a_mistyped_scope_or_role_is_refused_with_its_field(tenancy: Any) -> None:
    tenant = await tenancy.tenant()
    project = await tenancy.project(tenant.id)
    assert (await refused(tenancy.token(projects={NOBODY: VIEWER}))).field == "token.project_roles"
    assert isinstance(await refused(tenancy.token(tenants={NOBODY: VIEWER})), NotFound)
    for wish in ({"projects": {"web": VIEWER}}, {"projects": {project.id: 9}}, {"plane": 7}, {"seconds": 1}):
        assert isinstance(await refused(tenancy.token("x", **wish)), InvalidArgument), wish
    shouted = (await tenancy.token("x", projects={project.id.upper(): VIEWER})).secret
    assert dict((await tenancy.check(shouted)).project_roles) == {project.id: VIEWER}


@pytest.mark.parametrize("spiffe", ["service/ipam", "partition/mini/leaf/alice", "machine/" + NOBODY])
async def test_a_certificate_that_is_named_like_a_user_makes_and_lists_no_tokens(tenancy: Any, spiffe: str) -> None:
    await tenancy.token("alice")
    stub = tenancy.tokens(as_=f"spiffe://metalplane/{spiffe}")
    request = token_pb2.CreateTokenRequest(token={"user": "alice"}, lifetime=Duration(seconds=3600))
    assert isinstance(await refused(stub.CreateToken(request)), PermissionDenied)
    assert isinstance(await refused(stub.ListTokens(token_pb2.ListTokensRequest())), PermissionDenied)


async def test_people_see_and_end_their_own_tokens_and_operators_all(tenancy: Any) -> None:
    alice, bob = (await tenancy.token("alice")), (await tenancy.token("bob"))
    for _ in range(2):
        await tenancy.token(as_=alice.secret)
    mine = await tenancy.tokens(alice.secret).ListTokens(token_pb2.ListTokensRequest(page_size=2))
    rest = await tenancy.tokens(alice.secret).ListTokens(
        token_pb2.ListTokensRequest(page_size=2, page_token=mine.next_page_token)
    )
    assert [token.user for token in [*mine.tokens, *rest.tokens]] == ["alice"] * 3
    assert isinstance(
        await refused(tenancy.tokens(alice.secret).ListTokens(token_pb2.ListTokensRequest(user="bob"))),
        PermissionDenied,
    )
    revoke = token_pb2.RevokeTokenRequest(id=bob.token.id)
    assert isinstance(await refused(tenancy.tokens(alice.secret).RevokeToken(revoke)), NotFound)
    for _ in range(2):
        await tenancy.tokens().RevokeToken(revoke)
    listed = await tenancy.tokens().ListTokens(token_pb2.ListTokensRequest(user="bob"))
    assert [token.HasField("revoke_time") for token in listed.tokens] == [True]
    assert len((await tenancy.tokens().ListTokens(token_pb2.ListTokensRequest())).tokens) == 5


async def test_every_token_that_does_not_hold_is_refused_with_one_text(
    tenancy: Any, tenancy_url: str, token_key: Path
) -> None:
    good = await tenancy.token("alice")
    revoked, ended, unknown, other = [await tenancy.token("alice") for _ in range(4)]
    await tenancy.tokens().RevokeToken(token_pb2.RevokeTokenRequest(id=revoked.token.id))
    connection = await asyncpg.connect(tenancy_url)
    try:
        await connection.execute("UPDATE tenancy.token SET expire_time = now() WHERE id = $1", ended.token.id)
        await connection.execute("DELETE FROM tenancy.token WHERE id = $1", unknown.token.id)
        await connection.execute("UPDATE tenancy.token SET username = 'bob' WHERE id = $1", other.token.id)
    finally:
        await connection.close()
    key = signing_key(token_key)
    header, payload, signature = good.secret.split(".")
    claims = jwt.decode(good.secret, key, algorithms=["Ed25519"]).claims
    foreign = jwt.encode({"alg": "Ed25519"}, claims, OKPKey.generate_key("Ed25519"), algorithms=["Ed25519"])
    bad = [
        revoked.secret, ended.secret, unknown.secret, other.secret, foreign,
        f"eyJhbGciOiJub25lIn0.{payload}.", f"{header}.{payload}.{signature[:-4]}AAAA", "nonsense",
    ]  # fmt: skip
    stub = tenancy.tokens(as_="spiffe://metalplane/service/ipam")
    for secret in bad:
        problem = await refused(stub.CheckToken(token_pb2.CheckTokenRequest(secret=secret)))
        assert (type(problem), str(problem), problem.metadata) == (Unauthenticated, REFUSAL, {})
        problem = await refused(tenancy.tokens(secret).WhoAmI(token_pb2.WhoAmIRequest()))
        assert (type(problem), str(problem)) == (Unauthenticated, REFUSAL)
    assert (await tenancy.check(good.secret)).user == "alice"


async def test_only_services_may_have_tokens_checked(tenancy: Any) -> None:
    request = token_pb2.CheckTokenRequest(secret=tenancy.operator)
    assert isinstance(await refused(tenancy.tokens().CheckToken(request)), PermissionDenied)
    leaf = tenancy.tokens(as_="spiffe://metalplane/partition/mini/leaf/leaf1")
    assert isinstance(await refused(leaf.CheckToken(request)), PermissionDenied)


async def test_whoami_says_what_the_token_is_worth(tenancy: Any) -> None:
    tenant = await tenancy.tenant()
    project = await tenancy.project(tenant.id)
    alice = await tenancy.person("alice", OWNER, tenant=tenant.id)
    answer = await tenancy.tokens(alice).WhoAmI(token_pb2.WhoAmIRequest())
    assert (answer.kind, answer.name, dict(answer.token.project_roles)) == ("user", "alice", {project.id: OWNER})
    by_certificate = await tenancy.tokens(as_="spiffe://metalplane/service/ipam").WhoAmI(token_pb2.WhoAmIRequest())
    assert (by_certificate.kind, by_certificate.name) == ("service", "ipam")
    assert not by_certificate.HasField("token")


class Networks(NetworkServiceServicer):
    """Any service that is not tenancy."""

    async def GetNetwork(self, request: network_pb2.GetNetworkRequest, context: Any) -> network_pb2.Network:
        return network_pb2.Network(id=request.id)


async def test_every_service_refuses_a_revoked_token_within_five_seconds(
    tenancy: Any, start_service: Callable[..., Awaitable[RunningService]], eventually: Any
) -> None:
    async def compose(_: Runtime) -> Parts:
        name = "metalplane.ipam.v1.NetworkService"
        return Parts(servicers=[Servicer(add_NetworkServiceServicer_to_server, Networks(), name)])

    class InPartition(ServiceSettings):
        """A service without a database has its audit log kept by inventory, which is not asked here."""

        partition: str = "mini"

    spec = ServiceSpec(name="ipam", settings=InPartition, package="", compose=compose)
    peers = {"tenancy": tenancy.running.address, "inventory": "127.0.0.1:1"}
    running = await start_service(spec, peers=peers)
    token = await tenancy.token("alice", plane=PLANE_VIEWER)
    stub = tenancy.make_stub(running, NetworkServiceStub, token=token.secret)
    request = network_pb2.GetNetworkRequest(id="internet")
    assert (await stub.GetNetwork(request)).id == "internet"

    await tenancy.tokens().RevokeToken(token_pb2.RevokeTokenRequest(id=token.token.id))
    began = time.monotonic()

    async def is_refused() -> bool:
        try:
            await stub.GetNetwork(request)
        except Unauthenticated as problem:
            return str(problem) == REFUSAL
        return False

    await eventually(is_refused, seconds=REVOCATION_LIMIT + 2)
    assert time.monotonic() - began <= REVOCATION_LIMIT + 0.5


async def test_a_second_replica_knows_every_token_and_an_unusable_key_is_named(
    tenancy: Any,
    start_service: Callable[..., Awaitable[RunningService]],
    tenancy_url: str,
    token_key: Path,
    tmp_path: Path,
) -> None:
    other = await start_service(SPEC, database_url=tenancy_url, token_key=token_key)
    stub = tenancy.make_stub(other, type(tenancy.tokens()), token=tenancy.operator)
    assert (await stub.WhoAmI(token_pb2.WhoAmIRequest())).name == "root"
    broken = tmp_path / "broken.pem"
    broken.write_text("no key")
    for path, text in ((broken, "is not an Ed25519 private key"), (tmp_path / "none.pem", "No such file")):
        with pytest.raises(Exception, match=text) as unusable:
            await start_service(SPEC, database_url=tenancy_url, token_key=path)
        assert type(unusable.value).__name__ == "StartError"
        assert str(path) in str(unusable.value)


async def test_tokens_that_ended_long_ago_are_forgotten_and_others_kept(tenancy: Any, tenancy_url: str) -> None:
    long_ago, lately = await tenancy.token("alice"), await tenancy.token("alice")
    connection = await asyncpg.connect(tenancy_url)
    try:
        change = "UPDATE tenancy.token SET expire_time = now() - $2::interval WHERE id = $1"
        await connection.execute(change, long_ago.token.id, KEEP_EXPIRED * 1.1)
        await connection.execute(change, lately.token.id, KEEP_EXPIRED * 0.9)
        await connection.execute("SET search_path = tenancy")
        await TokenStore().forget(connection, KEEP_EXPIRED)
        kept = {str(row["id"]) for row in await connection.fetch("SELECT id FROM token WHERE username = 'alice'")}
    finally:
        await connection.close()
    assert kept == {lately.token.id}
