"""Composition of the tenancy service."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path

from metal_kit.backoff import pause
from metal_kit.db import Database
from metal_kit.errors import Problem
from metal_kit.identity import Caller
from metal_kit.logs import get_logger
from metal_kit.process import StartError
from metal_kit.runtime import Background, Parts, Runtime, Servicer, ServiceSpec
from metal_kit.tokens import caller_of
from metalplane.tenancy.v1.project_pb2_grpc import add_ProjectServiceServicer_to_server
from metalplane.tenancy.v1.tenant_pb2_grpc import add_TenantServiceServicer_to_server
from metalplane.tenancy.v1.token_pb2_grpc import add_TokenServiceServicer_to_server
from pydantic import Field

from metal_tenancy.api.messages import token_message
from metal_tenancy.api.projects import ProjectApi
from metal_tenancy.api.tenants import TenantApi
from metal_tenancy.api.tokens import TokenApi
from metal_tenancy.issuing import Issuer
from metal_tenancy.login import Login
from metal_tenancy.oidc.fetch import Fetcher
from metal_tenancy.oidc.keys import ProviderKeys
from metal_tenancy.oidc.settings import LoginSettings
from metal_tenancy.signing import Signer
from metal_tenancy.store import TokenStore

log = get_logger(__name__)
# Long enough to see in a list that a token has just expired.
KEEP_EXPIRED = timedelta(days=30)
SWEEP_EVERY = timedelta(hours=1)


class Settings(LoginSettings):
    """Settings of tenancy beyond the common ones."""

    token_key: Path = Field(description="Ed25519 private key, PEM, that new tokens are signed with")
    token_old_keys: tuple[Path, ...] = Field((), description="earlier keys, whose tokens still hold")


async def compose(rt: Runtime) -> Parts:
    """Wire stores and servicers. Tenancy checks tokens itself: it has nobody to ask."""
    settings = rt.settings
    if not isinstance(settings, Settings):
        raise TypeError("tenancy needs its own settings")
    db = rt.require_db()
    issuer = Issuer(db, load_signer(settings), rt.clock)
    tenants, projects = TenantApi(db, rt.paging), ProjectApi(db, rt.paging)
    login, close = _login(settings, issuer)
    tokens = TokenApi(db, rt.paging, issuer, login)
    return Parts(
        servicers=[
            Servicer(add_TenantServiceServicer_to_server, tenants, "metalplane.tenancy.v1.TenantService"),
            Servicer(add_ProjectServiceServicer_to_server, projects, "metalplane.tenancy.v1.ProjectService"),
            Servicer(add_TokenServiceServicer_to_server, tokens, "metalplane.tenancy.v1.TokenService"),
        ],
        token_checker=LocalChecker(issuer),
        token_age=0,
        background=[Background("forget expired tokens", lambda: forget_expired(db, rt.stopping))],
        close=close,
    )


def _login(settings: Settings, issuer: Issuer) -> tuple[Login | None, list[Callable[[], Awaitable[None]]]]:
    """The login at the provider of the settings, if there is one, and what is to be closed with it. The provider may be
    away: it is asked when somebody logs in."""
    provider = settings.provider()
    if provider is None:
        return None, []
    try:
        fetcher = Fetcher(settings.oidc_ca)
    except OSError as error:  # ssl.SSLError is one
        raise StartError(f"METALPLANE_OIDC_CA: {settings.oidc_ca}: {error.strerror or error}") from error
    keys = ProviderKeys(provider.issuer, fetcher.get)
    return Login(issuer, provider, keys, timedelta(hours=settings.oidc_token_hours)), [fetcher.close]


class LocalChecker:
    """What `metal_kit.tokens` asks, answered without a call."""

    def __init__(self, issuer: Issuer) -> None:
        self._issuer = issuer

    async def check(self, secret: str) -> Caller:
        """The caller behind the token; Unauthenticated when it does not hold."""
        row, grants = await self._issuer.check(secret)
        return caller_of(token_message(row, grants))


def load_signer(settings: Settings) -> Signer:
    """The keys of the settings. Raises StartError that names the file which is none."""
    try:
        return Signer.load(settings.token_key, settings.token_old_keys)
    except OSError as error:
        raise StartError(f"METALPLANE_TOKEN_KEY: {error.filename}: {error.strerror}") from error
    except ValueError as error:
        raise StartError(f"METALPLANE_TOKEN_KEY: {error}") from error


async def forget_expired(db: Database, stopping: asyncio.Event) -> None:
    """Drop tokens that expired long ago and ID tokens that are of no use, now and every hour.

    While the database is away they stay for another hour.
    """
    while not stopping.is_set():
        try:
            async with db.transaction(purpose="forget expired tokens") as conn:
                await TokenStore().forget(conn, KEEP_EXPIRED)
                await TokenStore().forget_exchanged(conn)
        except Problem as problem:
            log.warning("tokens.not_forgotten", reason=problem.reason)
        await pause(stopping, SWEEP_EVERY)


SPEC = ServiceSpec(name="tenancy", settings=Settings, package="metal_tenancy", compose=compose)
