"""Sessions with Redfish BMCs: few, kept, never left behind; and whom a password is told to."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from metal_bmc.drivers import errors
from metal_bmc.drivers.redfish import RedfishDriver
from metal_bmc.redfish.client import RedfishClient, SessionLife
from metal_bmc.redfish.session import Login
from metal_sim.redfish import SimulatedRedfish
from redfish_targets import redfish_target

NewRedfish = Callable[..., Awaitable[SimulatedRedfish]]
Eventually = Callable[..., Awaitable[None]]
SESSIONS = "/redfish/v1/SessionService/Sessions"
LOG_IN = ("POST", SESSIONS)


class Book:
    """Remembers what the ledger is told."""

    def __init__(self) -> None:
        self.open: set[str] = set()
        self.ever: list[str] = []

    def opened(self, login: Login, location: str) -> None:
        self.open.add(location)
        self.ever.append(location)

    def closed(self, login: Login, location: str) -> None:
        self.open.discard(location)


async def test_a_wrong_password_costs_one_attempt(new_redfish: NewRedfish, redfish: RedfishDriver) -> None:
    bmc = await new_redfish()
    with pytest.raises(errors.BmcAuthFailed):
        await redfish.powered(redfish_target(bmc, password="guess"), deadline=20)
    assert (bmc.logins.started, bmc.logins.failed, len(bmc.sessions)) == (1, 1, 0)


async def test_a_wrong_password_costs_one_attempt_without_sessions(
    new_redfish: NewRedfish, redfish: RedfishDriver
) -> None:
    bmc = await new_redfish("basic")
    with pytest.raises(errors.BmcAuthFailed):
        await redfish.powered(redfish_target(bmc, password="guess"), deadline=20)
    assert (bmc.logins.started, bmc.logins.failed) == (1, 1)


async def test_a_password_that_changed_is_noticed_with_one_attempt(
    new_redfish: NewRedfish, redfish: RedfishDriver
) -> None:
    bmc = await new_redfish()
    await redfish.powered(redfish_target(bmc), deadline=20)
    bmc.faults.switch_on("wrong-password")
    bmc.forget_sessions()
    with pytest.raises(errors.BmcAuthFailed):
        await redfish.powered(redfish_target(bmc), deadline=20)
    assert bmc.logins.failed == 1


async def test_another_password_gets_a_session_of_its_own(new_redfish: NewRedfish, redfish: RedfishDriver) -> None:
    bmc = await new_redfish(session_limit=1)
    await redfish.powered(redfish_target(bmc), deadline=20)
    with pytest.raises(errors.BmcAuthFailed):
        await redfish.powered(redfish_target(bmc, password="guess"), deadline=20)
    # The old session was closed before: nobody may use one that another password opened.
    assert len(bmc.sessions) == 0
    assert bmc.seen[("DELETE", f"{SESSIONS}/1")] == 1


async def test_a_session_that_is_over_is_opened_again(new_redfish: NewRedfish, redfish: RedfishDriver) -> None:
    bmc = await new_redfish()
    for _ in range(3):
        assert not await redfish.powered(redfish_target(bmc), deadline=20)
        bmc.forget_sessions()
    assert (bmc.logins.started, bmc.logins.failed) == (3, 0)


async def test_a_bmc_that_refuses_its_own_tokens_keeps_no_session(
    new_redfish: NewRedfish, redfish: RedfishDriver
) -> None:
    bmc = await new_redfish()
    bmc.faults.switch_on("refuses-tokens")
    with pytest.raises(errors.BmcBadAnswer, match="token"):
        await redfish.powered(redfish_target(bmc), deadline=20)
    # One login, and one by password that closed what the token could not.
    assert bmc.seen[LOG_IN] == 1
    assert len(bmc.sessions) == 0


async def test_a_full_session_table_is_told_as_that(new_redfish: NewRedfish, redfish: RedfishDriver) -> None:
    bmc = await new_redfish(session_limit=2)
    others = [bmc.sessions.open(), bmc.sessions.open()]
    with pytest.raises(errors.BmcSessionsFull):
        await redfish.powered(redfish_target(bmc), deadline=20)
    assert list(bmc.sessions) == [each.id for each in others]
    bmc.sessions.close(others[0].id)
    assert not await redfish.powered(redfish_target(bmc), deadline=20)


async def test_a_session_of_a_process_that_died_is_deleted_when_slots_are_full(new_redfish: NewRedfish) -> None:
    bmc = await new_redfish(session_limit=1)
    book, target = Book(), redfish_target(bmc)
    login = Login(target.host, target.port, target.user, target.password, target.fingerprint)
    died = RedfishClient(ledger=book)
    await RedfishDriver(died).powered(target, deadline=20)
    assert len(bmc.sessions) == 1
    client = RedfishClient(ledger=book)
    for location in sorted(book.open):
        client.left_behind(login, location)
    assert not await RedfishDriver(client).powered(target, deadline=20)
    assert (list(bmc.sessions), book.open) == (["2"], {f"{SESSIONS}/2"})
    await client.close()
    assert (len(bmc.sessions), book.open) == (0, set())
    await died.close()


async def test_a_session_that_could_not_be_closed_is_deleted_at_the_next_login(
    new_redfish: NewRedfish, eventually: Eventually
) -> None:
    bmc = await new_redfish()
    client = RedfishClient(SessionLife(unused=0.05, look=0.01))
    driver, target = RedfishDriver(client), redfish_target(bmc)
    await driver.powered(target, deadline=20)
    # It refuses to close the session, and keeps it.
    bmc.faults.switch_on("busy")
    await eventually(lambda: bmc.seen[("DELETE", f"{SESSIONS}/1")] and not client.sessions)
    bmc.faults.clear()
    assert list(bmc.sessions) == ["1"]
    await driver.powered(target, deadline=20)
    assert "1" not in list(bmc.sessions)
    await client.close()
    assert len(bmc.sessions) == 0


async def test_sessions_that_nobody_uses_are_closed(new_redfish: NewRedfish, eventually: Eventually) -> None:
    bmcs = [await new_redfish() for _ in range(3)]
    client = RedfishClient(SessionLife(unused=0.05, look=0.01))
    driver = RedfishDriver(client)
    await asyncio.gather(*(driver.powered(redfish_target(bmc), deadline=20) for bmc in bmcs))

    def closed() -> bool:
        return not any(len(bmc.sessions) for bmc in bmcs) and client.sessions == 0

    await eventually(closed)
    await client.close()


async def test_there_are_never_more_sessions_than_there_may_be(new_redfish: NewRedfish, eventually: Eventually) -> None:
    bmcs = [await new_redfish() for _ in range(4)]
    client = RedfishClient(SessionLife(most=2))
    driver = RedfishDriver(client)
    for bmc in bmcs:
        await driver.powered(redfish_target(bmc), deadline=20)
        assert client.sessions <= 2

    await eventually(lambda: sum(len(bmc.sessions) for bmc in bmcs) == 2)
    await client.close()
    assert not any(len(bmc.sessions) for bmc in bmcs)


async def test_who_gives_up_during_the_login_leaves_no_session_behind(new_redfish: NewRedfish) -> None:
    bmc = await new_redfish()
    client = RedfishClient()
    driver = RedfishDriver(client)
    bmc.faults.switch_on("slow", 0.4)
    with pytest.raises(errors.BmcTimeout):
        await driver.powered(redfish_target(bmc), deadline=0.6)
    bmc.faults.clear()
    assert not await driver.powered(redfish_target(bmc), deadline=20)
    assert (bmc.seen[LOG_IN], len(bmc.sessions)) == (1, 1)
    await client.close()
    assert len(bmc.sessions) == 0


async def test_closing_during_a_login_leaves_no_session_behind(new_redfish: NewRedfish, eventually: Eventually) -> None:
    bmc = await new_redfish()
    client = RedfishClient()
    bmc.faults.switch_on("slow", 0.3)
    asking = asyncio.create_task(RedfishDriver(client).powered(redfish_target(bmc), deadline=0.2))
    await eventually(lambda: bmc.requests > 0)
    bmc.faults.clear()
    await client.close()
    with pytest.raises(errors.BmcError):
        await asking
    assert len(bmc.sessions) == 0


@pytest.mark.parametrize("fault", ["huge", "drip", "truncated", "half", "html", "wrong-types", "deep", "compressed"])
async def test_a_login_whose_answer_has_a_bad_body_counts_all_the_same(
    fault: str, new_redfish: NewRedfish, redfish_client: RedfishClient, redfish: RedfishDriver
) -> None:
    bmc = await new_redfish()
    bmc.faults.switch_on(fault, only=f"POST {SESSIONS}")
    assert not await redfish.powered(redfish_target(bmc), deadline=20)
    await redfish_client.close()
    assert (bmc.seen[LOG_IN], len(bmc.sessions)) == (1, 0)


async def test_nothing_is_told_to_who_shows_another_certificate(
    new_redfish: NewRedfish, redfish: RedfishDriver
) -> None:
    bmc, other = await new_redfish(), await new_redfish()
    with pytest.raises(errors.BmcUntrusted):
        await redfish.powered(redfish_target(other, fingerprint=bmc.fingerprint), deadline=20)
    assert other.requests == 0


async def test_a_certificate_that_changes_within_a_session_is_told_once(
    new_redfish: NewRedfish, redfish: RedfishDriver
) -> None:
    bmc = await new_redfish()
    anyone = redfish_target(bmc, fingerprint=b"")
    await redfish.powered(anyone, deadline=20)
    await bmc.renew()
    before = bmc.requests
    with pytest.raises(errors.BmcUntrusted):
        await redfish.powered(anyone, deadline=20)
    assert bmc.requests == before
    # Who pins nothing trusts whoever answers first, with a session of its own.
    assert not await redfish.powered(anyone, deadline=20)
    assert (await redfish.inspect(anyone, deadline=20)).fingerprint == bmc.fingerprint


async def test_requests_to_one_bmc_go_one_after_the_other(new_redfish: NewRedfish, redfish: RedfishDriver) -> None:
    bmc = await new_redfish()
    await asyncio.gather(*(redfish.powered(redfish_target(bmc), deadline=20) for _ in range(8)))
    assert bmc.logins.started == 1
    bmc.faults.switch_on("hang")
    first = asyncio.create_task(redfish.powered(redfish_target(bmc), deadline=1.0))
    await asyncio.sleep(0)
    with pytest.raises(errors.DriverBusy):
        await redfish.powered(redfish_target(bmc), deadline=0.2)
    with pytest.raises(errors.BmcTimeout):
        await first
    bmc.faults.clear()
