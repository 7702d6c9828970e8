"""The cache in front of the token check: short, bounded, and closed when tenancy cannot be asked."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest
from metal_kit import tokens
from metal_kit.errors import NotFound, Unauthenticated, Unavailable
from metal_kit.identity import Caller
from metal_kit.tokens import RemoteTokenChecker, TokenVerifier, bearer, caller_of
from metalplane.common.v1.access_pb2 import PlaneRole, Role
from metalplane.tenancy.v1.token_pb2 import CheckTokenRequest, CheckTokenResponse, Token


class Checker:
    """Knows what it is told, and counts."""

    def __init__(self) -> None:
        self.known: dict[str, Caller] = {}
        self.asked: list[str] = []
        self.begun = asyncio.Event()
        self.gate = asyncio.Event()
        self.gate.set()

    async def check(self, secret: str) -> Caller:
        self.asked.append(secret)
        self.begun.set()
        await self.gate.wait()
        if secret not in self.known:
            raise Unauthenticated("TOKEN_INVALID", "no")
        return self.known[secret]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The monotonic clock of the cache, as a one-element list."""
    now = [1000.0]
    monkeypatch.setattr(tokens, "time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


async def test_a_token_is_asked_for_once_in_five_seconds(clock: list[float]) -> None:
    checker = Checker()
    checker.known["t"] = Caller("user", "u")
    verifier = TokenVerifier(checker)
    for _ in range(10):
        assert (await verifier.verify("t")).name == "u"
    clock[0] += 4.9
    await verifier.verify("t")
    assert checker.asked == ["t"]
    clock[0] += 0.2
    checker.known.clear()
    with pytest.raises(Unauthenticated):
        await verifier.verify("t")
    assert checker.asked == ["t", "t"]


async def test_no_setting_makes_the_cache_live_longer(clock: list[float]) -> None:
    checker = Checker()
    checker.known["t"] = Caller("user", "u")
    verifier = TokenVerifier(checker, max_age=3600)
    await verifier.verify("t")
    clock[0] += 5.1
    assert verifier.known("t") is None


async def test_the_age_counts_from_the_question(clock: list[float]) -> None:
    checker = Checker()
    checker.known["t"] = Caller("user", "u")
    checker.gate.clear()
    verifier = TokenVerifier(checker)
    asking = asyncio.create_task(verifier.verify("t"))
    await checker.begun.wait()
    clock[0] += 4
    checker.gate.set()
    await asking
    clock[0] += 1.5
    assert verifier.known("t") is None


async def test_a_refusal_is_remembered_too() -> None:
    checker = Checker()
    verifier = TokenVerifier(checker)
    for _ in range(5):
        with pytest.raises(Unauthenticated):
            await verifier.verify("bad")
    assert checker.asked == ["bad"]


async def test_the_cache_is_bounded_and_holds_no_token() -> None:
    checker = Checker()
    checker.known = {f"token-{n}": Caller("user", f"u{n}") for n in range(50)}
    verifier = TokenVerifier(checker, max_entries=10)
    for secret in checker.known:
        await verifier.verify(secret)
    assert len(verifier._known) == 10
    assert "token-" not in repr(list(verifier._known))
    assert verifier.known("token-49") is not None
    assert verifier.known("token-0") is None


async def test_one_check_serves_all_who_ask_at_once_even_when_the_first_hangs_up() -> None:
    checker = Checker()
    checker.known["t"] = Caller("user", "u")
    checker.gate.clear()
    verifier = TokenVerifier(checker)
    asking = [asyncio.create_task(verifier.verify("t")) for _ in range(5)]
    await checker.begun.wait()
    asking[0].cancel()
    checker.gate.set()
    results = await asyncio.gather(*asking, return_exceptions=True)
    assert isinstance(results[0], asyncio.CancelledError)
    assert [caller.name for caller in results[1:] if isinstance(caller, Caller)] == ["u"] * 4
    assert checker.asked == ["t"]


class Tenancy:
    """A stub of TokenService."""

    def __init__(self, answer: CheckTokenResponse | Exception) -> None:
        self._answer = answer

    async def CheckToken(self, request: CheckTokenRequest, timeout: float) -> CheckTokenResponse:
        if isinstance(self._answer, Exception):
            raise self._answer
        return self._answer


async def test_a_checked_token_becomes_a_caller_with_its_roles() -> None:
    token = Token(
        id="7", user="ada", project_roles={"p": Role.ROLE_EDITOR}, tenant_roles={"t": Role.ROLE_OWNER},
        plane_role=PlaneRole.PLANE_ROLE_VIEWER,
    )  # fmt: skip
    caller = await RemoteTokenChecker(Tenancy(CheckTokenResponse(token=token))).check("x")
    assert caller == caller_of(token)
    assert (caller.kind, caller.name, caller.token_id) == ("user", "ada", "7")
    assert caller.projects == {"p": Role.ROLE_EDITOR}
    assert caller.tenants == {"t": Role.ROLE_OWNER}


@pytest.mark.parametrize("trouble", [Unavailable("X", "away"), NotFound("X", "odd")])
async def test_nothing_is_trusted_while_tenancy_cannot_be_asked(trouble: Exception) -> None:
    verifier = TokenVerifier(RemoteTokenChecker(Tenancy(trouble)))
    for _ in range(2):
        with pytest.raises(Unavailable, match="cannot be checked"):
            await verifier.verify("t")


async def test_a_refusal_of_tenancy_is_passed_on() -> None:
    with pytest.raises(Unauthenticated, match="EXPIRED"):
        await RemoteTokenChecker(Tenancy(Unauthenticated("TOKEN_EXPIRED", "over"))).check("t")


@pytest.mark.parametrize("header", ["", "Basic abc", "Bearer", "Bearer ", "Bearer " + "x" * 9000, "bearerx"])
def test_other_authorization_headers_are_refused(header: str) -> None:
    with pytest.raises(Unauthenticated):
        bearer(header)


@pytest.mark.parametrize("header", ["Bearer abc", "bearer abc", "BEARER  abc "])
def test_the_scheme_is_read_in_any_case(header: str) -> None:
    assert bearer(header) == "abc"
