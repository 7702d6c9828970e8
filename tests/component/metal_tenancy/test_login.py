"""Logging in at an identity provider: what an ID token is exchanged for, and what is refused."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from metal_kit import identity
from metal_kit.ca import Authority
from metal_kit.errors import (
    FailedPrecondition,
    InvalidArgument,
    PermissionDenied,
    Problem,
    Unauthenticated,
    Unavailable,
)
from metal_kit.process import StartError
from metal_kit.runtime import RunningService
from metal_tenancy.issuing import MOST_LIVING
from metal_tenancy.oidc import fetch
from metal_tenancy.oidc.keys import ProviderError
from metal_tenancy.service import SPEC
from metal_tenancy.store import TokenStore
from metalplane.common.v1.access_pb2 import PlaneRole, Role
from metalplane.tenancy.v1 import project_pb2, token_pb2
from metalplane.tenancy.v1.token_pb2_grpc import TokenServiceStub
from oidc_provider import CLIENT, OidcProvider, new_key, serving

ANNA = "oidc:anna@example.org"
TOOL = identity.client_id("tool")
HOUR = 3600


async def exchange(tenancy: Any, id_token: str, nonce: str = "n-1") -> token_pb2.ExchangeIdTokenResponse:
    """As somebody who has nothing but the ID token."""
    request = token_pb2.ExchangeIdTokenRequest(id_token=id_token, nonce=nonce)
    answer: token_pb2.ExchangeIdTokenResponse = await tenancy.tokens(as_=TOOL).ExchangeIdToken(request)
    return answer


async def refused(call: Awaitable[Any]) -> Problem:
    with pytest.raises(Problem) as caught:
        await call
    return caught.value


async def living(url: str) -> int:
    connection = await asyncpg.connect(url)
    try:
        return int(await connection.fetchval("SELECT count(*) FROM tenancy.token"))
    finally:
        await connection.close()


async def test_people_are_told_where_to_log_in_before_they_are_anybody(login_tenancy: Any, provider: Any) -> None:
    answer = await login_tenancy.tokens(as_=TOOL).GetLoginMethods(token_pb2.GetLoginMethodsRequest())
    assert (answer.oidc.issuer, answer.oidc.client_id) == (provider.issuer, CLIENT)
    assert list(answer.oidc.scopes) == ["openid", "email", "profile"]


async def test_a_plane_without_a_provider_says_so(tenancy: Any) -> None:
    answer = await tenancy.tokens(as_=TOOL).GetLoginMethods(token_pb2.GetLoginMethodsRequest())
    assert not answer.HasField("oidc")
    assert isinstance(await refused(exchange(tenancy, "a.b.c")), FailedPrecondition)


async def test_a_login_is_worth_its_users_memberships_at_each_use(login_tenancy: Any, provider: Any) -> None:
    tenant = await login_tenancy.tenant()
    project = await login_tenancy.project(tenant.id)
    made = await exchange(login_tenancy, provider.id_token())
    assert (made.token.user, made.token.login, made.token.plane_role) == (ANNA, True, 0)
    assert made.token.expire_time.seconds - made.token.create_time.seconds == 8 * HOUR
    assert dict((await login_tenancy.check(made.secret)).project_roles) == {}
    await login_tenancy.join(ANNA, Role.ROLE_EDITOR, project=project.id)
    assert dict((await login_tenancy.check(made.secret)).project_roles) == {project.id: Role.ROLE_EDITOR}
    await login_tenancy.projects().RemoveProjectMember(
        project_pb2.RemoveProjectMemberRequest(project=project.id, user=ANNA)
    )
    assert dict((await login_tenancy.check(made.secret)).project_roles) == {}


async def test_a_name_of_the_provider_is_never_one_of_the_plane(login_tenancy: Any, provider: Any) -> None:
    """`root` has memberships and operator's tokens here; who registers as root there has neither."""
    tenant = await login_tenancy.tenant()
    for user in ("root", "root@example.org"):
        await login_tenancy.join(user, Role.ROLE_OWNER, tenant=tenant.id)
    for email in ("root", "root@example.org"):
        made = await exchange(login_tenancy, provider.id_token(email=email))
        assert made.token.user == f"oidc:{email}"
        checked = await login_tenancy.check(made.secret)
        assert (dict(checked.tenant_roles), checked.plane_role) == ({}, 0)
        mine = await login_tenancy.tokens(made.secret).ListTokens(token_pb2.ListTokensRequest())
        assert [token.id for token in mine.tokens] == [made.token.id], "and sees none of root's tokens"


async def test_an_id_token_is_good_for_one_exchange(login_tenancy: Any, provider: Any, tenancy_url: str) -> None:
    before = await living(tenancy_url)
    id_token = provider.id_token()
    outcomes = await asyncio.gather(*(exchange(login_tenancy, id_token) for _ in range(5)), return_exceptions=True)
    reasons = sorted(getattr(each, "reason", "made") for each in outcomes)
    assert reasons == [*["ID_TOKEN_USED"] * 4, "made"]
    assert await living(tenancy_url) == before + 1


async def test_what_does_not_hold_makes_no_token(login_tenancy: Any, provider: Any, tenancy_url: str) -> None:
    await exchange(login_tenancy, provider.id_token())
    before = await living(tenancy_url)
    head, payload, signature = provider.id_token().split(".")
    stranger = new_key()
    for id_token, nonce in (
        (provider.id_token(), "n-2"), (provider.id_token(), ""), (provider.id_token(nonce=None), "n-1"),
        (provider.id_token(aud="another"), "n-1"), (provider.id_token(iss="http://127.0.0.1:1"), "n-1"),
        (provider.id_token(exp=1), "n-1"), (provider.id_token(iat=4_000_000_000, exp=4_000_000_300), "n-1"),
        (provider.id_token(key=stranger), "n-1"),
        (provider.id_token(key=stranger, header={"kid": provider.key.kid}), "n-1"),
        (f"eyJhbGciOiJub25lIn0.{payload}.", "n-1"), (f"{head}.{payload}.{signature[:-8]}AAAAAAAA", "n-1"),
        ("nonsense", "n-1"), (login_tenancy.operator, "n-1"),
    ):  # fmt: skip
        problem = await refused(exchange(login_tenancy, id_token, nonce))
        assert (type(problem), problem.reason) == (Unauthenticated, "ID_TOKEN_INVALID"), id_token
    unverified = await refused(exchange(login_tenancy, provider.id_token(email_verified=False)))
    assert (type(unverified), unverified.reason) == (PermissionDenied, "EMAIL_NOT_VERIFIED")
    assert isinstance(await refused(exchange(login_tenancy, "x" * 16385)), InvalidArgument)
    assert isinstance(await refused(exchange(login_tenancy, "")), InvalidArgument)
    assert await living(tenancy_url) == before


async def test_an_id_token_is_no_bearer_token(login_tenancy: Any, provider: Any) -> None:
    whoami = login_tenancy.tokens(provider.id_token()).WhoAmI(token_pb2.WhoAmIRequest())
    assert (await refused(whoami)).reason == "TOKEN_INVALID"


@pytest.mark.parametrize(("groups", "role"), [(["plane-ops"], 2), (["plane-look"], 1), (["staff"], 0)])
async def test_a_group_gives_a_role_on_the_plane_beside_the_memberships(
    login_tenancy: Any, provider: Any, groups: list[str], role: int
) -> None:
    tenant = await login_tenancy.tenant()
    project = await login_tenancy.project(tenant.id)
    await login_tenancy.join(ANNA, Role.ROLE_EDITOR, project=project.id)
    secret = (await exchange(login_tenancy, provider.id_token(groups=groups))).secret
    checked = await login_tenancy.check(secret)
    assert (checked.plane_role, dict(checked.project_roles)) == (role, {project.id: Role.ROLE_EDITOR})
    personal = await login_tenancy.token(as_=secret)
    again = await login_tenancy.check(personal.secret)
    assert (again.plane_role, dict(again.project_roles)) == (0, {project.id: Role.ROLE_EDITOR})


async def test_a_role_from_a_group_ends_with_the_login_in_every_token_that_came_of_it(
    login_tenancy: Any, provider: Any
) -> None:
    login = await exchange(login_tenancy, provider.id_token(groups=["plane-ops"]))
    left = login.token.expire_time.seconds - login.token.create_time.seconds
    operator = {"plane": PlaneRole.PLANE_ROLE_OPERATOR}
    too_long = await refused(login_tenancy.token(as_=login.secret, **operator, seconds=left + 60))
    assert (type(too_long), too_long.reason, too_long.field) == (PermissionDenied, "GRANT_TOO_LONG", "lifetime")
    child = await login_tenancy.token("robot", as_=login.secret, **operator, seconds=HOUR)
    for maker in (child.secret, login.secret):
        for plane in (PlaneRole.PLANE_ROLE_VIEWER, PlaneRole.PLANE_ROLE_OPERATOR):
            problem = await refused(login_tenancy.token("r2", as_=maker, plane=plane, seconds=30 * 24 * HOUR))
            assert problem.reason == "GRANT_TOO_LONG"
    tenant = await login_tenancy.tenant()
    longer = await login_tenancy.token(
        "ci", as_=child.secret, tenants={tenant.id: Role.ROLE_EDITOR}, seconds=30 * 24 * HOUR
    )
    assert (await login_tenancy.check(longer.secret)).plane_role == 0


async def test_new_keys_of_the_provider_are_taken_up(login_tenancy: Any, provider: Any) -> None:
    provider.rotate()
    await exchange(login_tenancy, provider.id_token())
    assert provider.asked.count("/keys") == 1
    assert provider.asked.count("/.well-known/openid-configuration") == 1
    await exchange(login_tenancy, provider.id_token(sub="2"))
    assert provider.asked.count("/keys") == 1, "known keys are not asked for again"


async def test_the_known_keys_do_while_the_provider_is_away_and_unknown_ones_never(
    login_tenancy: Any, provider: Any
) -> None:
    await exchange(login_tenancy, provider.id_token())
    provider.away = True
    assert (await exchange(login_tenancy, provider.id_token(jti="2"))).token.user == ANNA
    provider.rotate()
    assert isinstance(await refused(exchange(login_tenancy, provider.id_token())), Unauthenticated)


@pytest.mark.parametrize(
    "fault",
    [{"away": True}, {"redirect": True}, {"issuer_said": "https://id.example.org"}, {"padding": fetch.MOST_BYTES},
     {"published": []}],
    ids=str,
)  # fmt: skip
async def test_a_provider_that_does_not_answer_as_it_should_lets_nobody_in(
    login_tenancy: Any, provider: Any, fault: dict[str, Any]
) -> None:
    for name, value in fault.items():
        setattr(provider, name, value)
    problem = await refused(exchange(login_tenancy, provider.id_token()))
    assert (type(problem), problem.reason) == (Unavailable, "PROVIDER_UNREACHABLE")
    assert problem.retry_after is not None
    assert problem.retry_after > timedelta(seconds=1)


async def test_a_provider_that_does_not_answer_in_time_is_given_up(
    provider: OidcProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch, "DEADLINE", 0.2)
    provider.slow = True
    fetcher = fetch.Fetcher()
    try:
        with pytest.raises(ProviderError):
            await fetcher.get(f"{provider.issuer}/keys")
    finally:
        await fetcher.close()


async def test_used_id_tokens_are_forgotten_when_they_are_useless(
    login_tenancy: Any, provider: Any, tenancy_url: str
) -> None:
    await exchange(login_tenancy, provider.id_token())
    await exchange(login_tenancy, provider.id_token(jti="2"))
    connection = await asyncpg.connect(tenancy_url, server_settings={"search_path": "tenancy"})
    try:
        await connection.execute(
            "UPDATE exchanged_id_token SET useless_after = now() - interval '61 min' "
            "WHERE digest = (SELECT min(digest::text)::bytea FROM exchanged_id_token)"
        )
        await TokenStore().forget_exchanged(connection)  # type: ignore[arg-type]
        assert await connection.fetchval("SELECT count(*) FROM exchanged_id_token") == 1
    finally:
        await connection.close()


async def test_a_bundle_that_cannot_be_read_is_named(
    start_service: Callable[..., Awaitable[RunningService]], tenancy_url: str, token_key: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.pem"
    broken.write_text("no certificate")
    for path in (broken, tmp_path / "none.pem"):
        with pytest.raises(StartError, match=f"METALPLANE_OIDC_CA: {path}"):
            await start_service(
                SPEC, database_url=tenancy_url, token_key=token_key, oidc_issuer="https://id.example.org",
                oidc_client_id=CLIENT, oidc_ca=str(path),
            )  # fmt: skip


async def test_only_a_provider_that_its_authority_vouches_for_is_listened_to(tmp_path: Path) -> None:
    ours, others = Authority.create("ours"), Authority.create("others")
    ours.save(tmp_path, "ours")
    others.save(tmp_path, "others")
    cert, key = ours.issue("id", identity.service_id("id"), ips=["127.0.0.1"]).save(tmp_path, "id")
    named, named_key = ours.issue("x", identity.service_id("x"), dns=["id.example.org"]).save(tmp_path, "x")
    for files, bundle, trusted in (
        ((cert, key), "ours.crt", True), ((cert, key), "others.crt", False), ((cert, key), "", False),
        ((named, named_key), "ours.crt", False),
    ):  # fmt: skip
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*files)
        fetcher = fetch.Fetcher(str(tmp_path / bundle) if bundle else "")
        async with serving(tls=context) as provider:
            try:
                if trusted:
                    assert len((await fetcher.get(f"{provider.issuer}/keys"))["keys"]) == 1
                else:
                    with pytest.raises(ProviderError, match="CERTIFICATE_VERIFY_FAILED"):
                        await fetcher.get(f"{provider.issuer}/keys")
            finally:
                await fetcher.close()


async def test_a_nonce_can_be_done_without_where_the_plane_says_so(
    start_service: Callable[..., Awaitable[RunningService]], stub: Any, tenancy_url: str, token_key: Path, provider: Any
) -> None:
    running = await start_service(
        SPEC, database_url=tenancy_url, token_key=token_key, oidc_issuer=provider.issuer, oidc_client_id=CLIENT,
        oidc_without_nonce=True,
    )  # fmt: skip
    tokens = stub(running, TokenServiceStub, as_=TOOL)
    bare = token_pb2.ExchangeIdTokenRequest(id_token=provider.id_token(nonce=None))
    assert (await tokens.ExchangeIdToken(bare)).token.user == ANNA
    assert (await refused(tokens.ExchangeIdToken(bare))).reason == "ID_TOKEN_USED"
    left_out = token_pb2.ExchangeIdTokenRequest(id_token=provider.id_token("n-9"))
    assert (await refused(tokens.ExchangeIdToken(left_out))).reason == "ID_TOKEN_INVALID", "one that is there counts"


async def test_logins_have_a_limit_of_their_own(login_tenancy: Any, provider: Any, tenancy_url: str) -> None:
    login = await exchange(login_tenancy, provider.id_token())
    connection = await asyncpg.connect(tenancy_url, server_settings={"search_path": "tenancy"})
    try:
        await connection.execute(
            """
            INSERT INTO token (id, username, by_operator, creator, expire_time, login)
            SELECT gen_random_uuid(), $1, false, 'x', now() + interval '1 h', true FROM generate_series(1, $2)
            """,
            ANNA, MOST_LIVING - 1,
        )  # fmt: skip
        id_token = provider.id_token(jti="2")
        assert (await refused(exchange(login_tenancy, id_token))).reason == "TOO_MANY_TOKENS"
        assert (await login_tenancy.token(as_=login.secret)).token.user == ANNA
        await login_tenancy.tokens(login.secret).RevokeToken(token_pb2.RevokeTokenRequest(id=login.token.id))
        assert (await exchange(login_tenancy, id_token)).token.user == ANNA, "what was refused was not used up"
    finally:
        await connection.close()
