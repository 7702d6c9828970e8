"""Signatures of tokens: whatever is wrong with one, the answer is the same."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st
from joserfc import jwt
from joserfc.jwk import OctKey, OKPKey
from metal_kit.errors import Unauthenticated
from metal_tenancy.signing import Claims, Signer

NOW = datetime(2026, 11, 1, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
PEM = serialization.Encoding.PEM
PKCS8 = serialization.PrivateFormat.PKCS8
OPEN = serialization.NoEncryption()
REFUSAL = "TOKEN_INVALID: the token does not hold; log in again"


def pem() -> bytes:
    return Ed25519PrivateKey.generate().private_bytes(PEM, PKCS8, OPEN)


OURS, THEIRS = OKPKey.import_key(pem()), OKPKey.import_key(pem())
OURS.ensure_kid()
THEIRS.ensure_kid()
SIGNER = Signer([OURS])
GOOD = SIGNER.sign(Claims("token-id", "alice"), issued=NOW, expires=NOW + HOUR)
HEADER, PAYLOAD, SIGNATURE = GOOD.split(".")
LATER = int((NOW + HOUR).timestamp())
CLAIMS = {"iss": "metalplane", "exp": LATER, "jti": "x", "sub": "mallory"}


def part(content: Any) -> str:
    raw = content if isinstance(content, bytes) else json.dumps(content).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def signed(claims: dict[str, Any], key: Any = OURS, **header: Any) -> str:
    algorithm = header.setdefault("alg", "Ed25519")
    return jwt.encode({"kid": OURS.kid} | header, claims, key, algorithms=[algorithm])


def public_secret() -> OctKey:
    """The public key as an HMAC secret: the classic confusion of algorithms."""
    return OctKey.import_key(base64.urlsafe_b64decode(OURS.as_dict(private=False)["x"] + "=="))


BAD = {
    "alg none": f"{part({'alg': 'none'})}.{PAYLOAD}.",
    "alg none with our key's id": f"{part({'alg': 'none', 'kid': OURS.kid})}.{PAYLOAD}.",
    "alg None with the signature kept": f"{part({'alg': 'None', 'kid': OURS.kid})}.{PAYLOAD}.{SIGNATURE}",
    "hmac with the public key": signed(CLAIMS, public_secret(), alg="HS256"),
    "a foreign key": signed(CLAIMS, THEIRS, kid=THEIRS.kid),
    "a foreign key under our key's id": signed(CLAIMS, THEIRS),
    "a foreign key in the header": signed(CLAIMS, THEIRS, jwk=THEIRS.as_dict(private=False)),
    "expired": SIGNER.sign(Claims("x", "alice"), issued=NOW - 2 * HOUR, expires=NOW - HOUR),
    "expired just now": SIGNER.sign(Claims("x", "alice"), issued=NOW - HOUR, expires=NOW),
    "another issuer": signed(CLAIMS | {"iss": "elsewhere"}),
    "no end": signed({name: value for name, value in CLAIMS.items() if name != "exp"}),
    "an end that is text": signed(CLAIMS | {"exp": str(LATER)}),
    "no id": signed({name: value for name, value in CLAIMS.items() if name != "jti"}),
    "other claims": f"{HEADER}.{part(CLAIMS)}.{SIGNATURE}",
    "a claim that is no object": f"{HEADER}.{part([1])}.{SIGNATURE}",
    "no signature": f"{HEADER}.{PAYLOAD}.",
    "two parts": f"{HEADER}.{PAYLOAD}",
    "encrypted": f"{part({'alg': 'dir', 'enc': 'A128GCM'})}..{PAYLOAD}.{PAYLOAD}.{SIGNATURE}",
    "a critical extension": f"{part({'alg': 'Ed25519', 'kid': OURS.kid, 'crit': ['x'], 'x': 1})}.{PAYLOAD}.{SIGNATURE}",
    "a header that is a list": f"{part([1])}.{PAYLOAD}.{SIGNATURE}",
    "a key id that is a list": f"{part({'alg': 'Ed25519', 'kid': [1]})}.{PAYLOAD}.{SIGNATURE}",
    "a header that is nested deeply": f"{part(b'[' * 4000)}.{PAYLOAD}.{SIGNATURE}",
    "no text": f"{part(bytes([255, 254]))}.{PAYLOAD}.{SIGNATURE}",
    "other alphabets": "\u00fc.\u00e4.\u00f6",
    "dots": "..",
    "a password": "correct horse battery staple",
}


def test_what_was_signed_is_read_back() -> None:
    assert SIGNER.verify(GOOD, now=NOW) == Claims("token-id", "alice")
    assert SIGNER.verify(GOOD, now=NOW + HOUR - timedelta(seconds=1)) == Claims("token-id", "alice")


@pytest.mark.parametrize("secret", BAD.values(), ids=BAD.keys())
def test_each_bad_token_is_refused_with_the_same_words(secret: str) -> None:
    with pytest.raises(Unauthenticated) as refused:
        SIGNER.verify(secret, now=NOW)
    assert str(refused.value) == REFUSAL
    assert refused.value.metadata == {}
    assert refused.value.__cause__ is None


@given(st.integers(0, len(GOOD) - 1), st.sampled_from("ABCabc019_-.="))
def test_a_token_with_one_other_character_is_refused(position: int, character: str) -> None:
    other = GOOD[:position] + character + GOOD[position + 1 :]
    # The last character of each part carries unused bits: the same bytes, so the same token.
    if [_bytes(each) for each in other.split(".")] == [_bytes(each) for each in GOOD.split(".")]:
        return
    with pytest.raises(Unauthenticated):
        SIGNER.verify(other, now=NOW)


@given(st.text(max_size=200))
def test_any_text_is_refused(text: str) -> None:
    with pytest.raises(Unauthenticated) as refused:
        SIGNER.verify(text, now=NOW)
    assert str(refused.value) == REFUSAL


def test_tokens_of_an_earlier_key_hold_after_a_rotation_and_new_ones_are_signed_with_the_new(tmp_path: Path) -> None:
    old, new = tmp_path / "old.pem", tmp_path / "new.pem"
    old.write_bytes(pem())
    new.write_bytes(pem())
    before, after = Signer.load(old), Signer.load(new, [old])
    early = before.sign(Claims("1", "alice"), issued=NOW, expires=NOW + HOUR)
    late = after.sign(Claims("2", "alice"), issued=NOW, expires=NOW + HOUR)
    assert after.verify(early, now=NOW).id == "1"
    assert after.verify(late, now=NOW).id == "2"
    with pytest.raises(Unauthenticated):
        before.verify(late, now=NOW)
    with pytest.raises(Unauthenticated):
        Signer.load(new).verify(early, now=NOW)


def test_the_published_keys_are_public_and_verify_a_token(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    path.write_bytes(pem())
    signer = Signer.load(path)
    published = json.loads(signer.jwks())["keys"]
    assert [sorted(key) for key in published] == [["crv", "kid", "kty", "x"]], "no `d`: nothing private"
    secret = signer.sign(Claims("1", "alice"), issued=NOW, expires=NOW + HOUR)
    assert jwt.decode(secret, OKPKey.import_key(published[0]), algorithms=["Ed25519"]).claims["sub"] == "alice"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not a key",
        Ed25519PrivateKey.generate().public_key().public_bytes(PEM, serialization.PublicFormat.SubjectPublicKeyInfo),
        ec.generate_private_key(ec.SECP256R1()).private_bytes(PEM, PKCS8, OPEN),
        Ed25519PrivateKey.generate().private_bytes(PEM, PKCS8, serialization.BestAvailableEncryption(b"secret")),
    ],
    ids=["empty", "text", "public", "another curve", "with a passphrase"],
)
def test_a_file_without_a_usable_key_is_named_and_not_quoted(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "key.pem"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is not an Ed25519 private key") as refused:
        Signer.load(path)
    assert str(path) in str(refused.value)
    assert refused.value.__cause__ is None


def _bytes(text: str) -> bytes:
    try:
        return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except ValueError:
        return text.encode()
