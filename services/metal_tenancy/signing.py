"""The signature of tokens: JWTs (RFC 7519) signed with Ed25519 (RFC 8037), and nothing else accepted.

What a token permits is in the store, not in the token: so that it can be revoked, and so that it shows nothing.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import KeySet, OKPKey
from metal_kit.errors import Unauthenticated

ISSUER = "metalplane"
ALGORITHM = "Ed25519"


@dataclass(frozen=True, slots=True)
class Claims:
    """What a valid token says."""

    id: str
    user: str


class Signer:
    """Signs with the first key, verifies with any: keys are rotated by putting a new one first."""

    def __init__(self, keys: Sequence[OKPKey]) -> None:
        self._keys = KeySet(list(keys))
        self._current = keys[0]

    @classmethod
    def load(cls, current: Path, older: Sequence[Path] = ()) -> Signer:
        """Read Ed25519 private keys in PEM form. Raises OSError or ValueError for a file that holds none."""
        return cls([_key(path) for path in (current, *older)])

    def sign(self, claims: Claims, *, issued: datetime, expires: datetime) -> str:
        """The bearer token."""
        header = {"alg": ALGORITHM, "typ": "JWT", "kid": self._current.kid}
        body = {
            "iss": ISSUER,
            "sub": claims.user,
            "jti": claims.id,
            "iat": int(issued.timestamp()),
            "exp": int(expires.timestamp()),
        }
        return str(jwt.encode(header, body, self._current, algorithms=[ALGORITHM]))

    def verify(self, secret: str, *, now: datetime) -> Claims:
        """The claims of a token. Raises Unauthenticated, whatever is wrong with it, with the same words."""
        try:
            token = jwt.decode(secret, self._keys, algorithms=[ALGORITHM])
            claims = token.claims
            good = claims["iss"] == ISSUER and claims["exp"] > now.timestamp()
            result = Claims(id=str(claims["jti"]), user=str(claims["sub"]))
        except (JoseError, KeyError, TypeError, ValueError, RecursionError):
            raise invalid() from None
        if not good:
            raise invalid()
        return result

    def jwks(self) -> str:
        """The public keys as a JWK set (RFC 7517)."""
        return json.dumps(self._keys.as_dict(private=False), sort_keys=True)


def invalid() -> Unauthenticated:
    """The refusal of every token that does not hold; says nothing about why."""
    return Unauthenticated("TOKEN_INVALID", "the token does not hold; log in again")


def _key(path: Path) -> OKPKey:
    try:
        key = OKPKey.import_key(path.read_bytes())
        usable = key.curve_name == "Ed25519" and key.is_private
    except (JoseError, ValueError, TypeError):  # what the libraries below say may quote the key
        usable = False
    if not usable:
        raise ValueError(f"{path}: is not an Ed25519 private key in PEM form, without a passphrase")
    key.ensure_kid()
    return key
