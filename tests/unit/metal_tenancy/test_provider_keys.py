"""The provider's keys: kept, asked for anew when an unknown one is named, and not at everybody's will."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest
from metal_kit.errors import Unavailable
from metal_tenancy.oidc.id_token import Header
from metal_tenancy.oidc.keys import EVERY, FRESH, STALE, ProviderError, ProviderKeys
from oidc_provider import Key, new_key

ISSUER = "https://id.example.org"


class Answers:
    """A provider, and a clock that only the test moves."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.keys: list[Key] = [new_key()]
        self.away = False
        self.asked = 0
        self.document: dict[str, Any] = {"issuer": ISSUER, "jwks_uri": f"{ISSUER}/keys"}
        self.provided = ProviderKeys(ISSUER, self.fetch, monotonic=lambda: self.now)

    async def fetch(self, url: str) -> Mapping[str, Any]:
        await asyncio.sleep(0)
        if self.away:
            self.asked += 1
            raise ProviderError("away")
        if url == f"{ISSUER}/.well-known/openid-configuration":
            self.asked += 1
            return self.document
        assert url == f"{ISSUER}/keys"
        return {"keys": [key.as_dict(private=False) for key in self.keys]}

    async def find(self, key: Key | None = None, kind: str = "ES256") -> list[str]:
        found = await self.provided.meant_by(Header(kind, "" if key is None else key.kid))
        return [each.kid for each in found]


@pytest.fixture
def answers() -> Answers:
    return Answers()


async def test_keys_are_fetched_once_and_kept(answers: Answers) -> None:
    [key] = answers.keys
    assert [await answers.find(key) for _ in range(3)] == [[key.kid]] * 3
    assert answers.asked == 1
    answers.now += FRESH + 1
    assert await answers.find(key) == [key.kid]
    assert answers.asked == 2, "also known keys are looked at again: one that was withdrawn must not count for ever"


async def test_those_who_ask_at_the_same_time_share_one_answer(answers: Answers) -> None:
    [key] = answers.keys
    assert await asyncio.gather(*(answers.find(key) for _ in range(20))) == [[key.kid]] * 20
    assert answers.asked == 1


async def test_an_unknown_key_is_a_reason_to_look_again_but_not_at_every_call(answers: Answers) -> None:
    [old] = answers.keys
    await answers.find(old)
    new = new_key()
    answers.keys = [new]
    assert await answers.find(new) == [], "asked a moment ago"
    answers.now += EVERY
    assert await answers.find(new) == [new.kid]
    assert await answers.find(old) == [], "what is not published any more does not count"
    for _ in range(50):
        assert await answers.find(new_key()) == []
    assert answers.asked == 2
    assert await answers.find(new) == [new.kid], "what strangers ask for disturbs nobody"


async def test_known_keys_outlive_an_outage_for_a_day(answers: Answers) -> None:
    [key] = answers.keys
    await answers.find(key)
    answers.away = True
    answers.now += STALE - 1
    assert await answers.find(key) == [key.kid]
    answers.now += EVERY
    with pytest.raises(Unavailable) as refused:
        await answers.find(key)
    assert refused.value.reason == "PROVIDER_UNREACHABLE"
    assert refused.value.retry_after is not None
    answers.away = False
    answers.now += EVERY
    assert await answers.find(key) == [key.kid]


async def test_a_provider_that_is_away_from_the_start_is_asked_now_and_then(answers: Answers) -> None:
    answers.away = True
    for _ in range(10):
        with pytest.raises(Unavailable):
            await answers.find(answers.keys[0])
    assert answers.asked == 1
    answers.away = False
    answers.now += EVERY
    assert await answers.find(answers.keys[0]) == [answers.keys[0].kid]


@pytest.mark.parametrize(
    "document",
    [
        {"issuer": f"{ISSUER}/"}, {"issuer": "https://evil.example.org"}, {"issuer": None}, {"jwks_uri": ""},
        {"jwks_uri": "http://id.example.org/keys"}, {"jwks_uri": 7},
    ],
)  # fmt: skip
async def test_a_document_of_another_issuer_or_with_an_unsafe_address_gives_no_keys(
    answers: Answers, document: dict[str, Any]
) -> None:
    answers.document |= document
    with pytest.raises(Unavailable):
        await answers.find(answers.keys[0])


async def test_a_token_that_names_no_key_means_the_only_one_of_its_kind(answers: Answers) -> None:
    rsa, first = new_key("RSA"), answers.keys[0]
    answers.keys = [rsa, first]
    assert await answers.find() == [first.kid]
    assert await answers.find(kind="RS256") == [rsa.kid]
    assert await answers.find(first, kind="RS256") == [], "an id is one of a kind of key"
    answers.keys = [rsa, first, new_key()]
    answers.now += FRESH + 1
    assert await answers.find() == [], "which of two is meant nobody knows"
