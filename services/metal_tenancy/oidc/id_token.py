"""Verifying ID tokens: OpenID Connect Core 1.0, section 3.1.3.7, with the choices that it leaves made strictly. Pure.

Only asymmetric algorithms count, whatever the provider says that it supports: with `none` anybody signs, and with HS*
whoever knows the client's secret, of which a public client has none.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from joserfc import jws
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, OKPKey, RSAKey
from joserfc.util import json_b64decode
from metal_kit.errors import Unauthenticated

from metal_tenancy.oidc.provider import Provider

# Kind of key by algorithm (RFC 7518, section 3.1; RFC 8037; RFC 9864).
ALGORITHMS = {
    **dict.fromkeys(("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"), "RSA"),
    **dict.fromkeys(("ES256", "ES384", "ES512"), "EC"),
    **dict.fromkeys(("EdDSA", "Ed25519"), "OKP"),
}
# Clocks of provider and plane may differ by this much.
LEEWAY = timedelta(seconds=30)
# A login takes a moment; an ID token that is much older was found somewhere.
OLDEST = timedelta(minutes=10)
LEAST_RSA_BITS = 2048

Key = RSAKey | ECKey | OKPKey


@dataclass(frozen=True, slots=True)
class Header:
    """What an ID token says of its signature; nothing of it is true yet."""

    algorithm: str
    key_id: str

    @property
    def key_type(self) -> str:
        """`kty` of the key that is needed."""
        return ALGORITHMS[self.algorithm]


@dataclass(frozen=True, slots=True)
class IdToken:
    """An ID token that holds. `digest` knows it again, until `useless_after`: from then on its age refuses it."""

    claims: Mapping[str, Any]
    digest: bytes
    useless_after: datetime


def read_header(token: str) -> Header:
    """The header of an ID token. Raises Unauthenticated for an algorithm that does not count and for what is no JWS."""
    parts = token.split(".")
    if len(parts) != 3 or not token.isascii():
        raise _refused("is not a signed JWT")
    try:
        header = json_b64decode(parts[0].encode())
    except (TypeError, ValueError, RecursionError):
        raise _refused("is not a signed JWT") from None
    if not isinstance(header, dict) or "crit" in header:
        raise _refused("has a header that is not understood")
    algorithm, key_id = header.get("alg"), header.get("kid", "")
    if not isinstance(algorithm, str) or algorithm not in ALGORITHMS:
        raise _refused(f"must be signed with one of {', '.join(ALGORITHMS)}")
    if not isinstance(key_id, str):
        raise _refused("has a header that is not understood")
    return Header(algorithm, key_id)


def verify(token: str, keys: Sequence[Key], provider: Provider, *, nonce: str, now: datetime) -> IdToken:
    """The ID token, when it holds for this plane and belongs to the login that has this nonce.

    `keys` are those of the provider that its header can mean. Raises Unauthenticated that says what is wrong.
    """
    header = read_header(token)
    claims = _signed(token, header, keys)
    if claims.get("iss") != provider.issuer:
        raise _refused(f"is not from the issuer {provider.issuer}")
    _check_audience(claims, provider)
    issued = _check_times(claims, now)
    _check_nonce(claims.get("nonce"), nonce, provider)
    if not isinstance(claims.get("sub"), str) or not claims["sub"]:
        raise _refused("has no subject")
    # Without the signature: that of an elliptic curve has a twin that verifies as well.
    digest = hashlib.sha256(token.rpartition(".")[0].encode()).digest()
    return IdToken(claims, digest, issued + OLDEST + LEEWAY)


def usable(key: Key, description: Mapping[str, Any]) -> bool:
    """Whether a published key may verify signatures here: meant for signatures, and not too short."""
    if description.get("use", "sig") != "sig":
        return False
    operations = description.get("key_ops", ["verify"])
    if not isinstance(operations, list) or "verify" not in operations:
        return False
    return not isinstance(key, RSAKey) or key.public_key.key_size >= LEAST_RSA_BITS


def _signed(token: str, header: Header, keys: Sequence[Key]) -> Mapping[str, Any]:
    for key in keys:
        if key.key_type != header.key_type or key.get("alg", header.algorithm) != header.algorithm:
            continue
        try:
            payload = jws.deserialize_compact(token, key, algorithms=[header.algorithm]).payload
            claims = json.loads(payload)
        except (JoseError, ValueError, TypeError, RecursionError):
            continue
        if isinstance(claims, dict):
            return claims
    raise _refused("is not signed with a key of the provider")


def _check_audience(claims: Mapping[str, Any], provider: Provider) -> None:
    """Steps 3 to 5: made for this plane, and for nobody else who could hand it on to us."""
    audience = claims.get("aud")
    named = [audience] if isinstance(audience, str) else audience
    if not isinstance(named, list) or not named or not all(_ours(each, provider) for each in named):
        raise _refused(f"is not for the client {provider.client_id}")
    party = claims.get("azp")
    if party is None and len(named) > 1:
        raise _refused("is for several clients and does not say which of them asked for it (azp)")
    if party is not None and not _ours(party, provider):
        raise _refused("was asked for by another client (azp)")


def _ours(client: Any, provider: Provider) -> bool:
    return isinstance(client, str) and client in provider.audiences


def _check_times(claims: Mapping[str, Any], now: datetime) -> datetime:
    """When it was issued, when neither that nor its end is against it."""
    issued, ends = _seconds(claims, "iat"), _seconds(claims, "exp")
    if ends <= now:
        raise _refused("has expired")
    if issued > now + LEEWAY:
        raise _refused("is from the future; compare the clocks of provider and plane")
    if issued <= now - OLDEST:
        raise _refused(f"is older than {OLDEST.total_seconds() / 60:.0f} minutes")
    if "nbf" in claims and _seconds(claims, "nbf") > now + LEEWAY:
        raise _refused("does not hold yet")
    return issued


def _seconds(claims: Mapping[str, Any], name: str) -> datetime:
    value = claims.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _refused(f"has no time {name}")
    try:
        return datetime.fromtimestamp(value, UTC)
    except (OverflowError, ValueError, OSError):
        raise _refused(f"has no time {name}") from None


def _check_nonce(claimed: Any, nonce: str, provider: Provider) -> None:
    if claimed is None and not nonce and provider.without_nonce:
        return
    if not nonce or claimed != nonce:
        raise _refused("does not belong to this login (nonce)")


def _refused(why: str) -> Unauthenticated:
    return Unauthenticated("ID_TOKEN_INVALID", f"the ID token {why}")
