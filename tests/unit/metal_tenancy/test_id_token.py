"""ID tokens: what holds, and every way in which one must not."""

from __future__ import annotations

import base64
import hmac
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from joserfc import jws
from joserfc.jwk import RSAKey
from metal_kit.errors import PermissionDenied, Unauthenticated
from metal_tenancy.oidc.id_token import ALGORITHMS, LEEWAY, OLDEST, IdToken, read_header, verify
from metal_tenancy.oidc.keys import read_keys
from metal_tenancy.oidc.provider import Provider, check_url, discovery_url
from oidc_provider import new_key, signed

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
T = int(NOW.timestamp())
ISSUER = "https://id.example.org/realms/plane"
KEYS = {kind: new_key(kind) for kind in ("RSA", "EC", "OKP")}
KEY = KEYS["EC"]
CLAIMS: dict[str, Any] = {
    "iss": ISSUER, "aud": "metalctl", "sub": "u-1", "iat": T - 5, "exp": T + 300, "nonce": "n-1",
    "email": "anna@example.org", "email_verified": True,
}  # fmt: skip


def provider(**changes: Any) -> Provider:
    values: dict[str, Any] = {
        "issuer": ISSUER, "client_id": "metalctl", "audiences": frozenset({"metalctl"}), "scopes": ("openid",),
        "user_claim": "email", "user_prefix": "oidc:", "groups_claim": "groups",
        "operator_groups": frozenset({"plane-ops"}), "viewer_groups": frozenset({"plane-look"}),
    }  # fmt: skip
    return Provider(**values | changes)


def checked(token: str, *, nonce: str = "n-1", keys: Any = None, **changes: Any) -> IdToken:
    return verify(token, list(KEYS.values()) if keys is None else keys, provider(**changes), nonce=nonce, now=NOW)


def claims(**changes: Any) -> dict[str, Any]:
    return {name: value for name, value in (CLAIMS | changes).items() if value is not None}


def segment(value: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


@pytest.mark.parametrize("algorithm", sorted({"RS256", "PS256", "ES256", "EdDSA", "Ed25519"}))
def test_a_token_with_a_signature_of_each_kind_of_key_holds(algorithm: str) -> None:
    token = signed(KEYS[ALGORITHMS[algorithm]], CLAIMS, alg=algorithm)
    assert checked(token).claims["email"] == "anna@example.org"


BAD_CLAIMS: list[tuple[dict[str, Any], str]] = [
    ({"iss": "https://id.example.org"}, "issuer"),
    ({"iss": ISSUER + "/"}, "issuer"),
    ({"iss": None}, "issuer"),
    ({"aud": "another"}, "not for the client"),
    ({"aud": None}, "not for the client"),
    ({"aud": []}, "not for the client"),
    ({"aud": {"metalctl": 1}}, "not for the client"),
    ({"aud": ["metalctl", "another"]}, "not for the client"),
    ({"aud": [["metalctl"]]}, "not for the client"),
    ({"azp": "another"}, "azp"),
    ({"azp": 7}, "azp"),
    ({"exp": T}, "expired"),
    ({"exp": None}, "no time exp"),
    ({"exp": "soon"}, "no time exp"),
    ({"exp": True}, "no time exp"),
    ({"exp": float("nan")}, "no time exp"),
    ({"exp": 1e300}, "no time exp"),
    ({"iat": None}, "no time iat"),
    ({"iat": T + LEEWAY.total_seconds() + 1}, "future"),
    ({"iat": T - OLDEST.total_seconds()}, "older than 10 minutes"),
    ({"nbf": T + LEEWAY.total_seconds() + 1}, "does not hold yet"),
    ({"nonce": "n-2"}, "nonce"),
    ({"nonce": None}, "nonce"),
    ({"nonce": ["n-1"]}, "nonce"),
    ({"sub": None}, "subject"),
    ({"sub": ""}, "subject"),
]


@pytest.mark.parametrize(("changes", "why"), BAD_CLAIMS, ids=lambda value: str(value)[:40])
def test_a_token_with_a_wrong_claim_is_refused(changes: dict[str, Any], why: str) -> None:
    with pytest.raises(Unauthenticated, match=why) as refused:
        checked(signed(KEY, claims(**changes)))
    assert refused.value.reason == "ID_TOKEN_INVALID"


def test_several_audiences_need_all_to_be_ours_and_the_one_that_asked_to_be_named() -> None:
    both = frozenset({"metalctl", "console"})
    token = signed(KEY, claims(aud=["metalctl", "console"], azp="console"))
    assert checked(token, audiences=both)
    with pytest.raises(Unauthenticated, match="azp"):
        checked(signed(KEY, claims(aud=["metalctl", "console"])), audiences=both)
    with pytest.raises(Unauthenticated, match="client"):
        checked(token)


def test_clocks_may_differ_a_little() -> None:
    ahead = T + LEEWAY.total_seconds()
    assert checked(signed(KEY, claims(iat=ahead, nbf=ahead))).useless_after > NOW + OLDEST


@pytest.mark.parametrize("nonce", ["", "n-2", "N-1"])
def test_the_nonce_of_another_login_is_refused(nonce: str) -> None:
    with pytest.raises(Unauthenticated, match="nonce"):
        checked(signed(KEY, CLAIMS), nonce=nonce)


def test_without_a_nonce_only_where_that_is_allowed_and_none_was_sent() -> None:
    bare = signed(KEY, claims(nonce=None))
    assert checked(bare, nonce="", without_nonce=True)
    for token, nonce, allowed in ((bare, "", False), (bare, "n-1", True), (signed(KEY, CLAIMS), "", True)):
        with pytest.raises(Unauthenticated, match="nonce"):
            checked(token, nonce=nonce, without_nonce=allowed)


def test_unsigned_and_secretly_signed_tokens_are_refused() -> None:
    good = signed(KEY, CLAIMS)
    _, payload, signature = good.split(".")
    public = KEYS["RSA"].as_pem(private=False)
    secretly = f"{segment({'alg': 'HS256', 'kid': KEYS['RSA'].kid})}.{payload}"
    mac = base64.urlsafe_b64encode(hmac.digest(public, secretly.encode(), "sha256")).rstrip(b"=").decode()
    for token in (
        f"{segment({'alg': 'none'})}.{payload}.",
        f"{segment({'alg': 'None', 'kid': KEY.kid})}.{payload}.{signature}",
        f"{segment({'kid': KEY.kid})}.{payload}.{signature}",
        f"{segment({'alg': ['ES256']})}.{payload}.{signature}",
        # The provider's public key taken for the secret of an HMAC.
        f"{secretly}.{mac}",
        f"{segment({'alg': 'ES256', 'crit': ['exp']})}.{payload}.{signature}",
        f"{segment({'alg': 'ES256', 'kid': 7})}.{payload}.{signature}",
        f"{payload}.{signature}", "", "....", "a.b.c", f"é.{payload}.{signature}", f"{good}.x.y",
        f"{base64.urlsafe_b64encode(b'[' * 9000).decode()}.{payload}.{signature}",
    ):  # fmt: skip
        with pytest.raises(Unauthenticated) as refused:
            checked(token)
        assert refused.value.reason == "ID_TOKEN_INVALID", token


def test_a_key_that_is_not_the_providers_does_not_count_wherever_the_header_takes_it_from() -> None:
    stranger = new_key()
    embedded = signed(stranger, CLAIMS, kid=KEY.kid, jwk=stranger.as_dict(private=False))
    for token in (signed(stranger, CLAIMS), signed(stranger, CLAIMS, kid=KEY.kid), embedded):
        with pytest.raises(Unauthenticated, match="not signed with a key of the provider"):
            checked(token)


def test_an_algorithm_of_another_kind_than_the_key_does_not_verify() -> None:
    described = KEY.as_dict(private=False) | {"alg": "ES384"}
    [(_, other)] = read_keys([described])
    for token, keys in ((signed(KEY, CLAIMS), [KEYS["RSA"]]), (signed(KEY, CLAIMS), [other])):
        with pytest.raises(Unauthenticated, match="not signed"):
            checked(token, keys=keys)


@pytest.mark.parametrize("payload", [b"", b"[]", b'"x"', b"{", b"[" * 9000, b"\xff"])
def test_a_signed_payload_that_is_no_object_is_refused(payload: bytes) -> None:
    token = jws.serialize_compact({"alg": "ES256", "kid": KEY.kid}, payload, KEY, algorithms=["ES256"])
    with pytest.raises(Unauthenticated):
        checked(token)


def test_a_token_is_known_again_also_with_another_signature_that_verifies() -> None:
    """The twin of an ECDSA signature (r, s) is (r, n - s): other bytes, the same ID token."""
    order = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
    token = signed(KEY, CLAIMS)
    head, _, signature = token.rpartition(".")
    raw = base64.urlsafe_b64decode(signature + "==")
    twin = raw[:32] + (order - int.from_bytes(raw[32:])).to_bytes(32)
    other = f"{head}.{base64.urlsafe_b64encode(twin).rstrip(b'=').decode()}"
    assert other != token
    assert checked(other).digest == checked(token).digest
    assert checked(signed(KEY, claims(nonce="n-1", jti="2"))).digest != checked(token).digest


def test_only_public_keys_for_signatures_that_are_long_enough_are_read() -> None:
    good = KEY.as_dict(private=False)
    described: list[Any] = [
        good | {"kid": "good"},
        good | {"kid": "sig", "use": "sig", "key_ops": ["verify"]},
        good | {"kid": "enc", "use": "enc"},
        good | {"kid": "ops", "key_ops": ["encrypt"]},
        good | {"kid": "ops2", "key_ops": 5},
        RSAKey.generate_key(1024).as_dict(private=False) | {"kid": "short"},
        {"kty": "oct", "kid": "secret", "k": "c2VjcmV0"},
        {"kty": "EC", "kid": "broken", "crv": "P-256", "x": "AA", "y": "AA"},
        {"kty": "new", "kid": "new"},
        {"kty": ["EC"]}, "x", None, {},
    ]  # fmt: skip
    assert [key_id for key_id, _ in read_keys(described)] == ["good", "sig"]


@given(text=st.text(max_size=200))
def test_nothing_that_is_said_instead_of_a_token_is_a_defect(text: str) -> None:
    with pytest.raises(Unauthenticated):
        checked(text)


def test_a_name_is_put_behind_the_prefix() -> None:
    assert provider().user(CLAIMS) == "oidc:anna@example.org"
    assert provider(user_claim="sub", user_prefix="corp:").user(CLAIMS) == "corp:u-1"
    assert provider(user_claim="name").user({"name": "admin"}) == "oidc:admin", "never the admin of this plane"


@pytest.mark.parametrize(
    "changes",
    [
        {"email_verified": False}, {"email_verified": None}, {"email_verified": "true"}, {"email_verified": 1},
        {"email": None}, {"email": ""}, {"email": ["a"]}, {"email": "a b"}, {"email": "a\u202eb"}, {"email": "a\x00"},
        {"email": "a" * 252}, {"email": "a\u00a0b"},
    ],
    ids=str,
)  # fmt: skip
def test_a_name_that_is_not_verified_or_not_usable_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(PermissionDenied):
        provider().user(claims(**changes))


@pytest.mark.parametrize(
    ("groups", "role"),
    [
        (["plane-ops"], 2), ("plane-ops", 2), (["plane-look"], 1), (["plane-look", "plane-ops"], 2), ([], 0), (None, 0),
        ([["plane-ops"]], 0), ({"plane-ops": True}, 0), (["PLANE-OPS", "plane-ops "], 0), (7, 0),
    ],
)  # fmt: skip
def test_groups_give_a_role_on_the_plane(groups: Any, role: int) -> None:
    assert provider().plane_role(claims(groups=groups)) == role


def test_no_group_gives_a_role_when_none_is_configured() -> None:
    bare = provider(operator_groups=frozenset(), viewer_groups=frozenset())
    assert bare.plane_role(claims(groups=["", "plane-ops"])) == 0


@pytest.mark.parametrize("url", ["https://id.example.org", "https://id:8443/x", "http://127.0.0.1:1", "http://[::1]:9"])
def test_a_url_that_can_be_trusted(url: str) -> None:
    assert check_url(url) == url


@pytest.mark.parametrize(
    "url",
    ["http://id.example.org", "http://127.0.0.1.example.org", "ftp://127.0.0.1", "https://", "https://u:p@id", "id",
     "https://id/?x=1", "https://id/#x", "", "file:///etc/passwd", "http://localhost@id.example.org"],
)  # fmt: skip
def test_a_url_that_anybody_could_answer_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="must be"):
        check_url(url)


def test_the_discovery_document_is_below_the_issuer() -> None:
    for issuer in ("https://id.example.org/a", "https://id.example.org/a/"):
        assert discovery_url(issuer) == "https://id.example.org/a/.well-known/openid-configuration"


def test_the_header_names_algorithm_and_key() -> None:
    header = read_header(signed(KEY, CLAIMS))
    assert (header.algorithm, header.key_id, header.key_type) == ("ES256", KEY.kid, "EC")
    assert timedelta(0) < LEEWAY < OLDEST
