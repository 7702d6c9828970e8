"""What comes of a token: nothing that outlives what it had, nothing without bound, and an end for all of it at once."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Awaitable
from datetime import timedelta
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from metal_kit.errors import NotFound, PermissionDenied, Problem, ResourceExhausted, Unauthenticated
from metal_tenancy.bootstrap import operator_token
from metal_tenancy.issuing import MOST_LIVING
from metal_tenancy.service import KEEP_EXPIRED, Settings
from metal_tenancy.store import TokenStore
from metalplane.common.v1.access_pb2 import PlaneRole, Role
from metalplane.tenancy.v1 import project_pb2, token_pb2

OPERATOR, PLANE_VIEWER = PlaneRole.PLANE_ROLE_OPERATOR, PlaneRole.PLANE_ROLE_VIEWER
VIEWER, EDITOR, OWNER = Role.ROLE_VIEWER, Role.ROLE_EDITOR, Role.ROLE_OWNER


async def refused(call: Awaitable[Any]) -> Problem:
    with pytest.raises(Problem) as caught:
        await call
    return caught.value


async def revoke(tenancy: Any, token: token_pb2.Token, *, as_: str = "", made_with_it: bool = False) -> None:
    await tenancy.tokens(as_).RevokeToken(token_pb2.RevokeTokenRequest(id=token.id, made_with_it=made_with_it))


async def revoked(tenancy: Any) -> set[str]:
    listed = await tenancy.tokens().ListTokens(token_pb2.ListTokensRequest())
    return {token.id for token in listed.tokens if token.HasField("revoke_time")}


async def test_a_revoked_token_makes_none_while_it_is_still_remembered(tenancy: Any) -> None:
    """For five seconds it may read; what it made in them would hold for a year."""
    thief = await tenancy.token("thief", plane=OPERATOR)
    assert (await tenancy.tokens(thief.secret).WhoAmI(token_pb2.WhoAmIRequest())).name == "thief"
    await revoke(tenancy, thief.token)
    problem = await refused(tenancy.token(as_=thief.secret, plane=OPERATOR))
    assert (type(problem), problem.reason) == (Unauthenticated, "TOKEN_INVALID")


@pytest.mark.parametrize("how", ["revoked", "left"])
async def test_who_has_lost_his_role_gives_none_away_while_others_still_remember_it(tenancy: Any, how: str) -> None:
    """What he made of himself in these seconds would hold for ever."""
    tenant = await tenancy.tenant()
    project = (await tenancy.project(tenant.id)).id
    await tenancy.join("alice", OWNER, project=project)
    alice = await tenancy.token("alice")
    await tenancy.join("bob", VIEWER, project=project, as_=alice.secret)
    if how == "revoked":
        await revoke(tenancy, alice.token)
    else:
        await tenancy.projects().RemoveProjectMember(
            project_pb2.RemoveProjectMemberRequest(project=project, user="alice")
        )
    assert isinstance(
        await refused(tenancy.join("mallory", OWNER, project=project, as_=alice.secret)), Unauthenticated | NotFound
    )
    members = await tenancy.projects().ListProjectMembers(project_pb2.ListProjectMembersRequest(project=project))
    assert "mallory" not in {member.user for member in members.members}


async def test_a_role_that_was_lost_is_not_granted_while_it_is_still_remembered(tenancy: Any) -> None:
    tenant = await tenancy.tenant()
    project = await tenancy.project(tenant.id)
    alice = await tenancy.person("alice", OWNER, project=project.id)
    assert (await tenancy.tokens(alice).WhoAmI(token_pb2.WhoAmIRequest())).name == "alice"
    await tenancy.projects().RemoveProjectMember(
        project_pb2.RemoveProjectMemberRequest(project=project.id, user="alice")
    )
    problem = await refused(tenancy.token(as_=alice, projects={project.id: VIEWER}))
    assert (type(problem), problem.field) == (PermissionDenied, "token.project_roles")


async def test_a_viewer_of_the_plane_grants_what_he_is_a_member_of_and_nothing_of_what_he_sees(tenancy: Any) -> None:
    tenant = await tenancy.tenant()
    mine, other = await tenancy.project(tenant.id, "mine"), await tenancy.project(tenant.id, "other")
    await tenancy.join("vera", OWNER, project=mine.id)
    vera = (await tenancy.token("vera", plane=PLANE_VIEWER, projects={mine.id: EDITOR})).secret
    for wish in (
        {"projects": {other.id: VIEWER}}, {"tenants": {tenant.id: VIEWER}}, {"plane": PLANE_VIEWER}, {"user": "bob"},
        {"projects": {mine.id: OWNER}}, {},
    ):  # fmt: skip
        assert isinstance(await refused(tenancy.token(as_=vera, **wish)), PermissionDenied), wish
    made = await tenancy.token(as_=vera, projects={mine.id: EDITOR})
    checked = await tenancy.check(made.secret)
    assert (checked.plane_role, dict(checked.project_roles)) == (0, {mine.id: EDITOR})


async def test_an_operators_smaller_token_grants_no_more_than_it_says(tenancy: Any) -> None:
    tenant = await tenancy.tenant()
    project = await tenancy.project(tenant.id)
    small = (await tenancy.token(projects={project.id: EDITOR})).secret
    for wish in ({"plane": PLANE_VIEWER}, {"projects": {project.id: EDITOR}}, {"user": "bob"}, {}):
        assert isinstance(await refused(tenancy.token(as_=small, **wish)), PermissionDenied), wish


async def test_a_token_with_roles_of_its_own_ends_itself_and_no_other(tenancy: Any) -> None:
    """A script's token in a stranger's hands must not end all the others of its user."""
    tenant = await tenancy.tenant()
    project = await tenancy.project(tenant.id)
    await tenancy.join("alice", OWNER, project=project.id)
    alice = await tenancy.token("alice")
    script = await tenancy.token(as_=alice.secret, projects={project.id: VIEWER})
    problem = await refused(revoke(tenancy, alice.token, as_=script.secret))
    assert (type(problem), problem.reason) == (PermissionDenied, "NOT_YOUR_TOKEN")
    assert await revoked(tenancy) == set()
    await revoke(tenancy, script.token, as_=script.secret)
    assert await revoked(tenancy) == {script.token.id}
    other = await tenancy.token("alice", projects={project.id: VIEWER})
    await revoke(tenancy, other.token, as_=alice.secret)
    assert await revoked(tenancy) == {script.token.id, other.token.id}


async def test_all_that_was_made_with_a_token_ends_with_it_when_that_is_wanted(tenancy: Any) -> None:
    stolen = await tenancy.token("op", plane=OPERATOR)
    bystander = await tenancy.token("op", plane=OPERATOR)
    child = await tenancy.token("a", as_=stolen.secret, plane=OPERATOR)
    grandchild = await tenancy.token("b", as_=child.secret, plane=OPERATOR)
    assert (child.token.made_with, grandchild.token.made_with) == (stolen.token.id, child.token.id)
    await revoke(tenancy, child.token)
    assert await revoked(tenancy) == {child.token.id}, "not asked for"
    for _ in range(2):
        await revoke(tenancy, stolen.token, made_with_it=True)
        assert await revoked(tenancy) == {each.token.id for each in (stolen, child, grandchild)}, (
            "also what was made with one that had ended before"
        )
    for each in (stolen, child, grandchild):
        assert isinstance(await refused(tenancy.check(each.secret)), Unauthenticated)
    assert (await tenancy.check(bystander.secret)).plane_role == OPERATOR


async def test_nothing_slips_through_while_a_token_ends_with_all_that_came_of_it(tenancy: Any) -> None:
    stolen = await tenancy.token("op", plane=OPERATOR)
    makers = [tenancy.token(f"u{n}", as_=stolen.secret, plane=OPERATOR) for n in range(12)]
    outcomes = await asyncio.gather(
        *makers[:6], revoke(tenancy, stolen.token, made_with_it=True), *makers[6:], return_exceptions=True
    )
    made = {each.token.id for each in outcomes if isinstance(each, token_pb2.CreateTokenResponse)}
    assert all(
        each is None or isinstance(each, Unauthenticated | token_pb2.CreateTokenResponse) for each in outcomes
    ), outcomes
    assert await revoked(tenancy) == {stolen.token.id, *made}


async def test_a_user_has_so_many_tokens_and_no_more(tenancy: Any, tenancy_url: str, token_key: Path) -> None:
    bob = await tenancy.token("bob")
    connection = await asyncpg.connect(tenancy_url, server_settings={"search_path": "tenancy"})
    try:
        insert = """
            INSERT INTO token (id, username, by_operator, creator, expire_time)
            SELECT gen_random_uuid(), 'bob', false, 'bob', now() + interval '1 h' FROM generate_series(1, $1)
        """
        await connection.execute(insert, MOST_LIVING - 3)
        outcomes = await asyncio.gather(*(tenancy.token(as_=bob.secret) for _ in range(6)), return_exceptions=True)
        reasons = sorted(getattr(each, "reason", "made") for each in outcomes)
        assert reasons == [*["TOO_MANY_TOKENS"] * 4, "made", "made"]
        problem = await refused(tenancy.token("bob"))
        assert isinstance(problem, ResourceExhausted)
        assert "bob has 1000 tokens that hold; revoke some" in problem.message
        assert (await tenancy.token("carol")).token.user == "carol", "it is one user's limit"
        settings = Settings(database_url=tenancy_url, token_key=token_key)
        assert await operator_token(settings, user="bob", lifetime=timedelta(hours=1), description="rescue")
        await connection.execute(
            "UPDATE token SET revoke_time = now() WHERE id <> $1 AND username = 'bob'", bob.token.id
        )
        await tenancy.token(as_=bob.secret)
        await connection.execute(insert, MOST_LIVING)
        await connection.execute(
            "UPDATE token SET expire_time = now() WHERE id <> $1 AND username = 'bob'", bob.token.id
        )
        await tenancy.token(as_=bob.secret)
    finally:
        await connection.close()


async def test_what_others_were_made_with_is_remembered_as_long_as_they_are(tenancy: Any, tenancy_url: str) -> None:
    parent = await tenancy.token("op", plane=OPERATOR)
    child = await tenancy.token("a", as_=parent.secret, plane=OPERATOR)
    connection = await asyncpg.connect(tenancy_url, server_settings={"search_path": "tenancy"})
    try:
        old = "UPDATE token SET expire_time = now() - $2::interval WHERE id = $1"
        await connection.execute(old, parent.token.id, KEEP_EXPIRED * 2)
        await TokenStore().forget(connection, KEEP_EXPIRED)  # type: ignore[arg-type]
        await revoke(tenancy, parent.token, made_with_it=True)
        assert isinstance(await refused(tenancy.check(child.secret)), Unauthenticated)
        await connection.execute(old, child.token.id, KEEP_EXPIRED * 2)
        for _ in range(2):
            await TokenStore().forget(connection, KEEP_EXPIRED)  # type: ignore[arg-type]
        left = await connection.fetchval("SELECT count(*) FROM token WHERE username IN ('op', 'a')")
        assert left == 0
    finally:
        await connection.close()


async def test_a_token_that_is_deeper_than_any_parser_is_refused_like_every_other(tenancy: Any) -> None:
    nested = base64.urlsafe_b64encode(b"[" * 5000).decode().rstrip("=")
    for secret in (f"{nested}.e30.AA", f"eyJhbGciOiJFZDI1NTE5In0.{nested}.AA"):
        problem = await refused(tenancy.check(secret))
        assert (type(problem), problem.reason) == (Unauthenticated, "TOKEN_INVALID")
