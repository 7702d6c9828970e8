"""Ends, versions and retries: what tokens, tenants and members have to bear."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import uuid4

import asyncpg
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from metal_kit.errors import Aborted, InvalidArgument, NotFound, Problem
from metalplane.common.v1.access_pb2 import Role
from metalplane.tenancy.v1 import project_pb2, tenant_pb2, token_pb2

YEAR = 31_622_400


async def refused(call: Any) -> Problem:
    with pytest.raises(Problem) as caught:
        await call
    return caught.value


async def count(url: str, table: str) -> int:
    connection = await asyncpg.connect(url)
    try:
        return int(await connection.fetchval(f"SELECT count(*) FROM tenancy.{table}"))
    finally:
        await connection.close()


async def test_a_token_without_an_end_or_with_a_distant_one_is_not_made(tenancy: Any, tenancy_url: str) -> None:
    before = await count(tenancy_url, "token")
    for lifetime in (None, Duration(), Duration(seconds=59), Duration(seconds=-60), Duration(seconds=YEAR, nanos=1)):
        request = token_pb2.CreateTokenRequest(token={"user": "alice"}, lifetime=lifetime)
        problem = await refused(tenancy.tokens().CreateToken(request))
        assert (type(problem), problem.field) == (InvalidArgument, "lifetime"), lifetime
    assert await count(tenancy_url, "token") == before
    for seconds in (60, YEAR):
        made = (await tenancy.token("alice", seconds=seconds)).token
        assert made.expire_time.ToMicroseconds() - made.create_time.ToMicroseconds() == seconds * 1_000_000


async def test_what_is_only_said_in_answers_is_not_taken_from_a_request(tenancy: Any) -> None:
    request = token_pb2.CreateTokenRequest(
        token={"id": str(uuid4()), "user": "alice", "expire_time": {"seconds": 1}, "revoke_time": {"seconds": 1}},
        lifetime=Duration(seconds=3600),
    )
    made = await tenancy.tokens().CreateToken(request)
    assert made.token.id != request.token.id
    assert not made.token.HasField("revoke_time")
    assert made.token.expire_time.seconds > 1
    assert (await tenancy.check(made.secret)).user == "alice"


async def test_tenants_are_guarded_by_their_version_like_projects(tenancy: Any) -> None:
    tenant = await tenancy.tenant()
    update = tenant_pb2.UpdateTenantRequest(tenant={"id": tenant.id, "etag": tenant.etag, "description": "new"})
    outcomes = await asyncio.gather(*(tenancy.tenants().UpdateTenant(update) for _ in range(6)), return_exceptions=True)
    assert sorted(type(each).__name__ for each in outcomes) == ["Aborted"] * 5 + ["Tenant"]
    old = tenant_pb2.DeleteTenantRequest(id=tenant.id, etag=tenant.etag)
    assert isinstance(await refused(tenancy.tenants().DeleteTenant(old)), Aborted)
    new = tenant_pb2.DeleteTenantRequest(id=tenant.id, etag="2")
    await tenancy.tenants().DeleteTenant(new)
    for call in (
        tenancy.tenants().DeleteTenant(new),
        tenancy.tenants().UpdateTenant(update),
        tenancy.tenants().GetTenant(tenant_pb2.GetTenantRequest(id=tenant.id)),
    ):
        assert isinstance(await refused(call), NotFound)


async def test_a_mask_of_everything_takes_away_what_the_request_leaves_out(tenancy: Any) -> None:
    tenant = await tenancy.tenant("acme", description="old", labels={"a": "1"})
    request = tenant_pb2.UpdateTenantRequest(
        tenant={"id": tenant.id, "name": "bolt"}, update_mask=FieldMask(paths=["*"])
    )
    new = await tenancy.tenants().UpdateTenant(request)
    assert (new.name, new.description, dict(new.labels)) == ("bolt", "", {})
    populated = tenant_pb2.UpdateTenantRequest(tenant={"id": tenant.id, "description": "d"})
    assert (await tenancy.tenants().UpdateTenant(populated)).name == "bolt"
    for path in ("etag", "create_time", "nothing"):
        wrong = tenant_pb2.UpdateTenantRequest(tenant={"id": tenant.id}, update_mask=FieldMask(paths=[path]))
        assert isinstance(await refused(tenancy.tenants().UpdateTenant(wrong)), InvalidArgument), path
    assert (await tenancy.tenants().GetTenant(tenant_pb2.GetTenantRequest(id=tenant.id))).etag == "3"


async def test_a_tenants_create_is_answered_again_to_its_sender_only(tenancy: Any, tenancy_url: str) -> None:
    request = tenant_pb2.CreateTenantRequest(request_id=str(uuid4()), tenant={"name": "acme"})
    first = await tenancy.tenants().CreateTenant(request)
    assert await tenancy.tenants().CreateTenant(request) == first
    tenant_owner = await tenancy.person("olga", Role.ROLE_OWNER, tenant=first.id)
    same_id = project_pb2.CreateProjectRequest(
        request_id=request.request_id, project={"tenant": first.id, "name": "web"}
    )
    mine = await tenancy.projects().CreateProject(same_id)
    other = project_pb2.CreateProjectRequest(
        request_id=request.request_id, project={"tenant": first.id, "name": "other"}
    )
    hers = await tenancy.projects(tenant_owner).CreateProject(other)
    assert (mine.name, hers.name) == ("web", "other"), "an id is remembered for its sender and its method"
    assert await count(tenancy_url, "tenant") == 1


async def test_members_of_a_project_are_paged_by_name_and_tokens_of_filters_do_not_mix(tenancy: Any) -> None:
    tenant = await tenancy.tenant()
    first, second = await tenancy.project(tenant.id, "a"), await tenancy.project(tenant.id, "b")
    for user in ("carol", "alice", "Bob", "dave"):
        await tenancy.join(user, Role.ROLE_VIEWER, project=first.id)
    listed: list[str] = []
    token, tokens = "", []
    while True:
        request = project_pb2.ListProjectMembersRequest(project=first.id, page_size=2, page_token=token)
        page = await tenancy.projects().ListProjectMembers(request)
        listed += [member.user for member in page.members]
        token = page.next_page_token
        if not token:
            break
        tokens.append(token)
    assert sorted(listed) == ["Bob", "alice", "carol", "dave"]
    assert len(tokens) == 1
    foreign = project_pb2.ListProjectMembersRequest(project=second.id, page_size=2, page_token=tokens[0])
    problem = await refused(tenancy.projects().ListProjectMembers(foreign))
    assert (type(problem), problem.field) == (InvalidArgument, "page_token")
    users = token_pb2.ListTokensRequest(page_token=tokens[0])
    assert (await refused(tenancy.tokens().ListTokens(users))).field == "page_token"
