"""One caller cannot starve the others: floods against a real server, and who is served meanwhile."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import prometheus_client
import pytest
import structlog
from metal_kit import identity
from metal_kit.client import Peers
from metal_kit.errors import Problem, ResourceExhausted, Unauthenticated
from metal_kit.identity import Caller, current_caller
from metal_kit.limits import Allowance
from metal_kit.server import Limits

WIDE = Allowance(rate=0, burst=1, calls=10_000, streams=10_000)
FLOODERS = 40


def _limits(**callers: Allowance) -> Limits:
    return Limits(callers=callers)  # type: ignore[arg-type]


def _person(plane: Any, name: str, token: str = "") -> Any:
    token = token or f"token of {name}"
    plane.tokens.known[token] = Caller("user", name, token_id=token)
    return plane.stub(token=token)


def _counted(reason: str, kind: str) -> float:
    labels = {"reason": reason, "kind": kind}
    return prometheus_client.REGISTRY.get_sample_value("metalplane_rpc_limited_total", labels) or 0.0


class Pool:
    """Four workers in a handler, as a pool of connections would be, and how long the queue before the victim was."""

    def __init__(self, plane: Any, message: Any) -> None:
        self._workers = asyncio.Semaphore(4)
        self._message = message
        self.done = 0
        self.waited: list[int] = []
        plane.servicer._act = self._act

    async def _act(self, request: Any) -> Any:
        before = self.done
        async with self._workers:
            if current_caller().name == "victim":
                self.waited.append(self.done - before)
            await asyncio.sleep(0.02)
            self.done += 1
        return self._message(count=request.count)


async def _flood(
    stub: Any, message: Any, ended: asyncio.Event, *, width: int = FLOODERS
) -> tuple[int, list[ResourceExhausted]]:
    """Call without a pause; how many calls were served, and the refusals."""
    served, refusals = 0, []

    async def one() -> None:
        nonlocal served
        while not ended.is_set():
            try:
                await stub.Whoever(message())
                served += 1
            except ResourceExhausted as problem:
                refusals.append(problem)

    await asyncio.gather(*(one() for _ in range(width)))
    return served, refusals


async def _beside_a_flood(plane: Any, message: Any) -> tuple[Pool, int, list[ResourceExhausted]]:
    pool = Pool(plane, message)
    victim, flooder = _person(plane, "victim"), _person(plane, "flooder")
    await victim.Whoever(message())
    ended = asyncio.Event()
    flood = asyncio.create_task(_flood(flooder, message, ended))
    try:
        async with asyncio.timeout(60):
            while pool.done < FLOODERS:  # the flood has begun
                await victim.Whoever(message())
            pool.waited.clear()
            for number in range(30):
                assert (await victim.Whoever(message(count=number))).count == number
    finally:
        ended.set()
        served, refusals = await flood
    return pool, served, refusals


async def test_a_flood_does_not_queue_in_front_of_the_others(start_plane: Any, message: Any) -> None:
    calls = 6
    before = _counted("TOO_MANY_CALLS", "user")
    pool, served, refusals = await _beside_a_flood(
        await start_plane(_limits(user=Allowance(rate=0, burst=1, calls=calls, streams=1))), message
    )
    # Every call of the victim was served, and none of them behind more than the flooder may have running.
    assert len(pool.waited) == 30
    assert max(pool.waited) <= calls
    assert served > 0
    assert {problem.reason for problem in refusals} == {"TOO_MANY_CALLS"}
    assert _counted("TOO_MANY_CALLS", "user") - before == len(refusals)


async def test_without_the_limit_the_flood_would_queue_there(start_plane: Any, message: Any) -> None:
    pool, _, refusals = await _beside_a_flood(await start_plane(_limits(user=WIDE)), message)
    assert not refusals
    assert max(pool.waited) > 6


async def test_a_caller_gets_his_rate_and_the_others_all_they_ask_for(start_plane: Any, message: Any) -> None:
    allowance = Allowance(rate=20, burst=40, calls=1000, streams=1)
    plane = await start_plane(_limits(user=allowance))
    ended, began = asyncio.Event(), time.monotonic()
    flooding = [
        asyncio.create_task(_flood(_person(plane, "flooder", token), message, ended, width=8))
        for token in ("first", "second")
    ]
    victim = _person(plane, "victim")
    await victim.Whoever(message())
    for _ in range(39):
        await victim.Whoever(message())
    ended.set()
    outcomes = await asyncio.gather(*flooding)
    elapsed = time.monotonic() - began
    served, refusals = sum(each[0] for each in outcomes), [problem for each in outcomes for problem in each[1]]
    # Two tokens of one user share what the user may.
    assert served <= allowance.burst + allowance.rate * elapsed + 1
    assert refusals
    for problem in refusals:
        assert problem.reason == "RATE_LIMITED"
        assert "20 calls a second and 40 at once" in problem.message
        assert problem.retry_after is not None
        assert 0 < problem.retry_after.total_seconds() <= 1 / 20 + 1e-6


async def test_who_waits_as_long_as_he_was_told_is_served(start_plane: Any, message: Any) -> None:
    plane = await start_plane(_limits(user=Allowance(rate=4, burst=1, calls=10, streams=1)))
    anna = _person(plane, "anna")
    await anna.Whoever(message())
    with pytest.raises(ResourceExhausted) as caught:
        await anna.Whoever(message())
    assert caught.value.retry_after is not None
    await asyncio.sleep(caught.value.retry_after.total_seconds())
    await anna.Whoever(message())


async def test_open_streams_are_counted_until_they_end(start_plane: Any, message: Any, eventually: Any) -> None:
    plane = await start_plane(_limits(user=Allowance(rate=0, burst=1, calls=10, streams=2)))
    anna, otto = _person(plane, "anna"), _person(plane, "otto")
    open_ = [anna.Follow(message(count=2)) for _ in range(2)]
    for each in open_:
        await each.read()
    with pytest.raises(ResourceExhausted) as caught:
        await anna.Follow(message(count=2)).read()
    assert (caught.value.reason, caught.value.metadata["limit"]) == ("TOO_MANY_STREAMS", "2 open streams")
    assert caught.value.retry_after is not None
    await anna.Whoever(message())
    await otto.Follow(message(count=2)).read()
    open_[0].cancel()

    async def let_in() -> bool:
        try:
            await anna.Follow(message(count=2)).read()
        except ResourceExhausted:
            return False
        return True

    await eventually(let_in)


async def test_calls_that_end_in_any_way_are_counted_no_longer(start_plane: Any, message: Any) -> None:
    plane = await start_plane(_limits(service=Allowance(rate=0, burst=1, calls=1, streams=1)))
    stub = plane.stub()
    for text in ("problem", "boom", "badreply", "longer than ten", ""):
        for _ in range(2):
            try:
                await stub.Unary(message(text=text))
            except ResourceExhausted:
                pytest.fail(f"the call before is still counted, which was {text!r}")
            except Problem:
                continue
    with pytest.raises(Problem):
        await stub.Unary(message(text="slow"), timeout=0.2)
    assert (await stub.Unary(message(count=7))).count == 7


async def test_guessed_tokens_are_refused_by_address_before_anybody_is_asked(
    start_plane: Any, message: Any, eventually: Any
) -> None:
    plane = await start_plane(_limits(stranger=Allowance(rate=0.001, burst=5, calls=50, streams=1)))
    anna = _person(plane, "anna")
    # Anna's token holds: it takes nothing from the address that she shares with whoever guesses.
    await anna.Whoever(message())
    asked = plane.tokens.asked
    reasons = []
    for number in range(12):
        try:
            await (
                plane.peers(plane.identity(identity.client_id("tool")), f"guess {number}")
                .stub(type(plane).stub_class, "echo")
                .Whoever(message())
            )
        except (Unauthenticated, ResourceExhausted) as problem:
            reasons.append(problem.reason)
    assert reasons == ["TOKEN_INVALID"] * 5 + ["RATE_LIMITED"] * 7
    assert plane.tokens.asked == asked + 5
    # Hers is asked about again, once its answer is too old, whatever else comes from there.
    plane.tokens.known["token of anna"] = Caller("user", "anna", token_id="renewed")

    async def asked_anew() -> bool:
        await anna.Whoever(message())
        return bool(plane.tokens.asked > asked + 5)

    await eventually(asked_anew)


async def test_who_shows_no_token_at_all_is_limited_by_address(start_plane: Any, message: Any) -> None:
    plane = await start_plane(_limits(stranger=Allowance(rate=0.001, burst=3, calls=50, streams=1)))
    stub = plane.stub(identity.client_id("tool"))
    for _ in range(3):
        await stub.Open(message())
    with pytest.raises(ResourceExhausted, match="RATE_LIMITED"):
        await stub.Open(message())
    await plane.stub(identity.service_id("tester")).Open(message())


@pytest.mark.parametrize(
    ("who", "header", "reason"),
    [
        (identity.client_id("tool"), "Basic eA==", "AUTHORIZATION_MALFORMED"),
        (identity.service_id("tester"), "Bearer x", "TWO_IDENTITIES"),
        ("spiffe://elsewhere/x", "", "CERTIFICATE_UNKNOWN_IDENTITY"),
    ],
)
async def test_credentials_that_are_no_good_are_limited_by_address(
    start_plane: Any, message: Any, who: str, header: str, reason: str
) -> None:
    plane = await start_plane(_limits(stranger=Allowance(rate=0.001, burst=3, calls=50, streams=1)))
    stub = plane.stub(who)
    metadata = (("authorization", header),) if header else None
    reasons = []
    for _ in range(5):
        with pytest.raises((Unauthenticated, ResourceExhausted)) as caught:
            await stub.Unary(message(), metadata=metadata)
        reasons.append(caught.value.reason)
    assert reasons == [reason] * 3 + ["RATE_LIMITED"] * 2
    await plane.stub().Unary(message())


async def test_a_flood_of_refusals_is_one_log_line_a_second(start_plane: Any, message: Any) -> None:
    plane = await start_plane(_limits(user=Allowance(rate=0.001, burst=1, calls=50, streams=1)))
    anna = _person(plane, "anna")
    await anna.Whoever(message())
    with structlog.testing.capture_logs() as lines:
        began = time.monotonic()
        for _ in range(20):
            with pytest.raises(ResourceExhausted):
                await anna.Whoever(message())
        seconds = time.monotonic() - began
    told = [line for line in lines if line["event"] == "rpc" and line.get("reason") == "RATE_LIMITED"]
    assert 1 <= len(told) <= 1 + seconds
    assert told[0]["caller"] == "user:anna"


async def test_a_message_that_is_too_large_says_how_large_it_may_be(start_plane: Any, message: Any) -> None:
    limit = 64 * 1024
    plane = await start_plane(Limits(max_message_bytes=limit))
    stub = plane.stub()
    with pytest.raises(ResourceExhausted) as caught:
        await stub.Unary(message(blob=b"x" * 100_000))
    assert caught.value.reason == "REQUEST_TOO_LARGE"
    assert f"the limit is {limit}" in caught.value.message
    assert (await stub.Unary(message(count=1))).count == 1


@pytest.mark.parametrize("kind", ["Unary", "Down"])
async def test_an_answer_that_is_too_large_says_what_to_do(start_plane: Any, message: Any, kind: str) -> None:
    limit = 64 * 1024
    plane = await start_plane(Limits(max_message_bytes=limit))

    async def answer(request: Any) -> Any:
        return message(blob=b"x" * (limit + 1 if request.text else 10))

    plane.servicer._act = answer
    stub = plane.stub()
    call = stub.Unary(message(text="large")) if kind == "Unary" else stub.Down(message(text="large")).read()
    with pytest.raises(ResourceExhausted) as caught:
        await call
    assert caught.value.reason == "ANSWER_TOO_LARGE"
    assert f"the limit is {limit}" in caught.value.message
    assert "page_size" in caught.value.message
    await stub.Unary(message())


async def test_a_client_that_takes_less_than_the_server_sends_says_so(plane: Any, message: Any) -> None:
    peers = Peers({"echo": plane.server.address}, plane.identity(identity.service_id("tester")), max_message_bytes=1000)

    async def answer(request: Any) -> Any:
        return message(blob=b"x" * 5000)

    plane.servicer._act = answer
    try:
        with pytest.raises(ResourceExhausted) as caught:
            await peers.stub(type(plane).stub_class, "echo").Unary(message())
    finally:
        await peers.close()
    assert caught.value.reason == "ANSWER_TOO_LARGE"
    assert "the limit is 1000" in caught.value.message
