"""An OpenID provider of the test's own, on a loopback port: what a plane and metalctl need of one, and its faults.

It keeps to OpenID Connect Core and Discovery 1.0, RFC 7636 (PKCE, S256 only) and RFC 8628 (device flow). The person who
logs in is `claims`; at the authorisation endpoint he agrees at once.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode
from uuid import uuid4

from aiohttp import web
from joserfc import jws
from joserfc.jwk import ECKey, OKPKey, RSAKey

CLIENT = "metalctl"
Key = RSAKey | ECKey | OKPKey


def new_key(kind: str = "EC") -> Key:
    """A signing key with an id."""
    key_id = {"kid": uuid4().hex}
    if kind == "RSA":
        return RSAKey.generate_key(2048, parameters=key_id)
    if kind == "OKP":
        return OKPKey.generate_key("Ed25519", parameters=key_id)
    return ECKey.generate_key("P-256", parameters=key_id)


ALGORITHM = {"RSA": "RS256", "EC": "ES256", "OKP": "Ed25519"}


def signed(key: Key, claims: dict[str, Any], **header: Any) -> str:
    """A JWT, with these changes to its header."""
    algorithm = header.setdefault("alg", ALGORITHM[key.key_type])
    whole = {"typ": "JWT", "kid": key.kid} | header
    return jws.serialize_compact(
        {name: value for name, value in whole.items() if value is not None},
        json.dumps(claims).encode(),
        key,
        algorithms=[algorithm],
    )


@dataclass
class OidcProvider:
    """A provider. `away` refuses everything, `slow` answers nobody; `issuer_said` stands in its discovery document;
    `changes` are put over the claims of each ID token, None takes one out."""

    issuer: str = ""
    key: Key = field(default_factory=new_key)
    claims: dict[str, Any] = field(
        default_factory=lambda: {"sub": "u-1", "email": "anna@example.org", "email_verified": True}
    )
    changes: dict[str, Any] = field(default_factory=dict)
    published: list[Key] | None = None
    away: bool = False
    slow: bool = False
    issuer_said: str = ""
    padding: int = 0
    redirect: bool = False
    refuses: str = ""
    device: bool = True
    device_nonce: bool = True
    pending: int = 1
    slow_downs: int = 0
    wrong_state: bool = False
    asked: list[str] = field(default_factory=list)
    _codes: dict[str, dict[str, str]] = field(default_factory=dict)
    _devices: dict[str, dict[str, Any]] = field(default_factory=dict)

    def rotate(self) -> None:
        """Sign with a new key from now on; the old one is not published any more."""
        self.key = new_key()

    def id_token(self, nonce: str | None = "n-1", *, key: Key | None = None, header: dict[str, Any] | None = None,
                 **changes: Any) -> str:  # fmt: skip
        """An ID token for the person who logs in; a change of None takes a claim out."""
        now = int(time.time())
        claims = {
            "iss": self.issuer, "aud": CLIENT, "iat": now, "exp": now + 300, "nonce": nonce, **self.claims,
            **self.changes, **changes,
        }  # fmt: skip
        kept = {name: value for name, value in claims.items() if value is not None}
        return signed(key or self.key, kept, **(header or {}))

    def app(self) -> web.Application:
        app = web.Application(middlewares=[self._faults])
        app.router.add_get("/.well-known/openid-configuration", self._discovery)
        app.router.add_get("/keys", self._keys)
        app.router.add_get("/authorize", self._authorize)
        app.router.add_post("/token", self._token)
        app.router.add_post("/device", self._device)
        return app

    @web.middleware
    async def _faults(self, request: web.Request, handler: Any) -> web.StreamResponse:
        self.asked.append(request.path)
        if self.slow:
            await asyncio.sleep(60)
        if self.away:
            return web.Response(status=503)
        if self.redirect:
            raise web.HTTPFound("/elsewhere")
        return await handler(request)

    async def _discovery(self, _: web.Request) -> web.Response:
        document = {
            "issuer": self.issuer_said or self.issuer,
            "authorization_endpoint": f"{self.issuer}/authorize",
            "token_endpoint": f"{self.issuer}/token",
            "jwks_uri": f"{self.issuer}/keys",
            "response_types_supported": ["code"],
            "padding": "x" * self.padding,
        }
        if self.device:
            document["device_authorization_endpoint"] = f"{self.issuer}/device"
        return web.json_response(document)

    async def _keys(self, _: web.Request) -> web.Response:
        keys = [self.key] if self.published is None else self.published
        return web.json_response({"keys": [key.as_dict(private=False) | {"use": "sig"} for key in keys]})

    async def _authorize(self, request: web.Request) -> web.Response:
        """The person agrees at once, or refuses as `refuses` says."""
        query = dict(request.query)
        good = (
            query.get("response_type") == "code"
            and query.get("client_id") == CLIENT
            and query.get("code_challenge_method") == "S256"
            and "openid" in query.get("scope", "").split()
            and query.get("redirect_uri", "").startswith("http://127.0.0.1:")
        )
        if not good:
            return web.Response(status=400, text="not a request that this provider understands")
        code = uuid4().hex
        self._codes[code] = query
        answer = {"error": self.refuses, "error_description": "no\x1b[31m"} if self.refuses else {"code": code}
        answer["state"] = "another" if self.wrong_state else query.get("state", "")
        raise web.HTTPFound(f"{query['redirect_uri']}?{urlencode(answer)}")

    async def _token(self, request: web.Request) -> web.Response:
        form = dict(await request.post())
        if form.get("grant_type") == "urn:ietf:params:oauth:grant-type:device_code":
            return self._device_token(form)
        asked = self._codes.pop(str(form.get("code")), None)
        challenge = base64.urlsafe_b64encode(hashlib.sha256(str(form.get("code_verifier")).encode()).digest())
        if (
            asked is None
            or form.get("grant_type") != "authorization_code"
            or form.get("client_id") != CLIENT
            or form.get("redirect_uri") != asked["redirect_uri"]
            or asked["code_challenge"] != challenge.rstrip(b"=").decode()
        ):
            return web.json_response({"error": "invalid_grant"}, status=400)
        return self._granted(asked.get("nonce"))

    async def _device(self, request: web.Request) -> web.Response:
        form = dict(await request.post())
        code = uuid4().hex
        self._devices[code] = {"nonce": form.get("nonce"), "pending": self.pending, "slow_downs": self.slow_downs}
        answer = {
            "device_code": code, "user_code": "WDJB-MJHT", "verification_uri": f"{self.issuer}/activate",
            "expires_in": 600, "interval": 0,
        }  # fmt: skip
        return web.json_response(answer)

    def _device_token(self, form: dict[str, Any]) -> web.Response:
        waiting = self._devices.get(str(form.get("device_code")))
        if waiting is None or form.get("client_id") != CLIENT:
            return web.json_response({"error": "invalid_grant"}, status=400)
        for kind, error in (("slow_downs", "slow_down"), ("pending", "authorization_pending")):
            if waiting[kind]:
                waiting[kind] -= 1
                return web.json_response({"error": error}, status=400)
        if self.refuses:
            return web.json_response({"error": self.refuses}, status=400)
        del self._devices[str(form["device_code"])]
        return self._granted(waiting["nonce"] if self.device_nonce else None)

    def _granted(self, nonce: str | None) -> web.Response:
        token = self.id_token(nonce)
        return web.json_response({"access_token": "a", "token_type": "Bearer", "id_token": token, "expires_in": 300})


@asynccontextmanager
async def serving(
    provider: OidcProvider | None = None, tls: ssl.SSLContext | None = None
) -> AsyncIterator[OidcProvider]:
    """The provider, served on a port of its own."""
    made = provider or OidcProvider()
    runner = web.AppRunner(made.app(), shutdown_timeout=0)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls)
        await site.start()
        made.issuer = f"{'https' if tls else 'http'}://127.0.0.1:{runner.addresses[0][1]}"
        yield made
    finally:
        await runner.cleanup()
