"""Statements of bmc over many endpoints and commands: lists, due polls and reports, upkeep."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from functools import partial
from uuid import UUID

import pytest
from metal_bmc.command import Finish, State
from metal_bmc.drivers.interface import DriverKind
from metal_bmc.endpoint import Configuration
from metal_bmc.sharing import Tenure
from metal_bmc.store import (
    CommandStore,
    ConsoleStore,
    EndpointStore,
    ExpectedStore,
    ScheduleStore,
    SightingStore,
    TaskStore,
    Unchanged,
)
from metal_kit.db import Connection
from metal_lab.servers import Postgres
from plans import MIDDLE, Call, Plans, measured

ENDPOINTS, COMMANDS, SCHEDULE, SIGHTINGS = EndpointStore(), CommandStore(), ScheduleStore(), SightingStore()
TASKS = TaskStore()
CONSOLES = ConsoleStore()
EXPECTED = ExpectedStore()
MINUTE, DAY = timedelta(minutes=1), timedelta(days=1)
# Four partitions: in `idle` nothing is due while many are in the others; `rare` has twenty endpoints.
FILL = (
    """
    INSERT INTO endpoint (machine, partition, host, port, mac, login, sealed, desired_on, reported_on, observed_at,
        refused_logins, failures, poll_at, report_at)
    SELECT md5('m' || n)::uuid, partition, 'host' || n, 623, 'mac' || n, 'admin', repeat('s', 80)::bytea,
        CASE WHEN n % 10 = 0 THEN true END, n % 2000 <> 0, now(), CASE WHEN n % 20 = 1 THEN 2 ELSE 0 END,
        CASE WHEN n % 6 = 0 THEN 3 ELSE 0 END,
        now() + CASE WHEN partition = 'busy' AND n % 2 = 0 THEN '-1 min' ELSE '1 h' END::interval,
        CASE WHEN partition = 'busy' THEN now() - interval '1 min' WHEN n % 2 = 0 THEN 'infinity' ELSE now() + '1 h' END
    FROM (
        SELECT n, CASE WHEN n % 1000 = 7 THEN 'rare' WHEN n % 4 = 0 THEN 'busy' ELSE 'idle' END AS partition
        FROM generate_series(1, 20000) AS n
    ) AS numbers
    """,
    """
    INSERT INTO command (id, machine, partition, action, state, requester, deadline, ended_at)
    SELECT lpad(to_hex(n), 32, '0')::uuid, md5('m' || CASE WHEN n % 4 = 0 THEN 8 ELSE n END)::uuid,
        CASE WHEN n % 3 = 0 THEN 'idle' ELSE 'busy' END, 'power_on',
        CASE WHEN n > 19900 AND n % 3 > 0 THEN 'pending' ELSE 'succeeded' END, 'r',
        now() + CASE WHEN n % 10 = 0 THEN '-1 h' ELSE '1 h' END::interval,
        CASE WHEN n <= 19900 OR n % 3 = 0 THEN now() - (20000 - n) * interval '1 min' END
    FROM generate_series(1, 20000) AS n
    """,
    # Tasks: a few of a thousand machines are open, half of them in `busy`.
    """
    INSERT INTO manual_task (id, machine, partition, command, action, instruction, state, revision, remind_at, ended_at)
    SELECT lpad(to_hex(n), 32, '0')::uuid, md5('m' || n % 1000)::uuid,
        CASE WHEN n % 1000 = 7 THEN 'rare' WHEN n % 4 = 0 THEN 'busy' ELSE 'idle' END,
        CASE WHEN n % 5 > 0 THEN md5('c' || n)::uuid END, 'power_on', 'switch the machine on',
        CASE WHEN n > 19900 THEN 'open' ELSE 'confirmed' END, 1,
        now() + CASE WHEN n % 8 = 0 THEN '-1 h' ELSE '1 h' END::interval,
        CASE WHEN n <= 19900 THEN now() - (20000 - n) * interval '1 min' END
    FROM generate_series(1, 20000) AS n
    """,
    """
    INSERT INTO console (machine, partition, holder, expires_at, idle)
    SELECT machine, partition, 'h' || substr(machine::text, 1, 1), now() + interval '1 h', false FROM endpoint
    """,
    """
    INSERT INTO sighting (partition, mac, host, reason)
    SELECT 'busy', 'mac' || n, 'h', CASE WHEN n % 1000 = 0 THEN 'NOT_EXPECTED' ELSE '' END
    FROM generate_series(1, 20000) AS n
    """,
    """
    INSERT INTO expected_machine (id, partition, mac, serial, machine)
    SELECT lpad(to_hex(n), 32, '0')::uuid,
        CASE WHEN n % 1000 = 7 THEN 'rare' WHEN n % 4 = 0 THEN 'busy' ELSE 'idle' END,
        'mac' || n, 's' || n, CASE WHEN n % 1000 <> 7 AND n % 500 <> 0 THEN md5('m' || n)::uuid END
    FROM generate_series(1, 20000) AS n
    """,
    """
    INSERT INTO expected_difference (expected, field, wanted, seen)
    SELECT id, 'serial', 'a', 'b' FROM expected_machine WHERE machine IS NULL
    """,
    "UPDATE endpoint SET discovered_at = now() WHERE partition = 'rare'",
)


@pytest.fixture(scope="module")
async def plans(postgres: Postgres) -> AsyncIterator[Plans]:
    async with measured(postgres, "bmc", "metal_bmc", FILL) as made:
        yield made


def machine(number: int) -> str:
    return str(UUID(hashlib.md5(f"m{number}".encode()).hexdigest()))


def commands(of: str = "", before: str | None = None) -> Call:
    return partial(COMMANDS.page, machine=of, before=before, limit=51)


async def test_lists_read_what_they_show(plans: Plans) -> None:
    cases: dict[str, Call] = {
        f"endpoints of {partition or 'all'}, {place} page": partial(
            ENDPOINTS.page, partition=partition, after=after, limit=51
        )
        for place, after in (("first", None), ("later", MIDDLE))
        for partition in ("", "idle", "busy", "rare", "none")
    }
    middle = str(UUID(int=10000))
    for name, of in {"all": "", "a busy machine": machine(8), "a machine": machine(7), "none": MIDDLE}.items():
        cases[f"commands of {name}, first page"] = commands(of)
        cases[f"commands of {name}, later page"] = commands(of, middle)
    await plans.check(cases)


async def test_expected_machines_are_found_by_what_they_are_known_by(plans: Plans) -> None:
    middle, macs = str(UUID(int=10000)), [f"mac{number}" for number in range(20)]
    cases: dict[str, Call] = {
        f"expected of {partition or 'all'}, {place} page": partial(
            EXPECTED.page, partition=partition, after=after, limit=51
        )
        for place, after in (("first", None), ("later", middle))
        for partition in ("", "idle", "busy")
    }
    for partition in ("busy", "idle", "rare", "none"):
        cases |= {
            f"by MAC in {partition}": partial(EXPECTED.by_mac, partition=partition, mac="mac8"),
            f"by serial in {partition}": partial(EXPECTED.by_serials, partition=partition, serials=["s500", "s8"]),
            f"open in {partition}": partial(EXPECTED.unmatched, partition=partition, limit=50),
            f"asked in vain in {partition}": partial(EXPECTED.attempts, partition=partition, macs=macs),
            f"left alone in {partition}": partial(EXPECTED.left_alone, partition=partition, limit=50),
            f"unexpected in {partition}": partial(EXPECTED.unexpected, partition=partition, limit=50),
        }
    cases["different"] = partial(EXPECTED.different, partition="busy", limit=50)
    machines = [machine(number) for number in range(20)]
    cases["which are expected"] = partial(EXPECTED.expected_of, machines=machines)
    cases["endpoints of machines"] = partial(ENDPOINTS.of_machines, machines=machines)
    cases["match"] = partial(EXPECTED.match, expected=str(UUID(int=500)), machine=machine(500))
    cases["known hosts"] = partial(SIGHTINGS.known_hosts, partition="busy", hosts=["host8", "host9"], port=623)
    cases["reopen"] = partial(SIGHTINGS.reopen, partition="busy", reason="NOT_EXPECTED")
    await plans.check(cases)


@pytest.mark.parametrize("partition", ["busy", "idle", "rare", "none"])
async def test_schedules_read_what_is_due(plans: Plans, partition: str) -> None:
    end = Finish(State.EXPIRED, "R", "m")
    await plans.check(
        {
            **{
                f"polls of {name}": partial(
                    SCHEDULE.claim_polls, partition=partition, buckets=buckets, most=32, hold=MINUTE
                )
                for name, buckets in (("all", range(256)), ("every other", range(0, 256, 2)))
            },
            "reports": partial(SCHEDULE.due_reports, partition=partition, most=32),
            "unsettled": partial(ENDPOINTS.unsettled, partition=partition),
            "other machines": partial(ENDPOINTS.of_other_machines, partition=partition, most=500),
            "open": partial(COMMANDS.machines_with_open, partition=partition),
            "expired": partial(COMMANDS.expire_waiting, partition=partition, end=end),
        }
    )


async def test_old_commands_are_removed_by_age(plans: Plans) -> None:
    now = datetime.now(UTC)
    await plans.check(
        {
            f"older than {age}": partial(COMMANDS.forget_ended, before=now - age, most=500)
            for age in (timedelta(0), 13 * DAY, 100 * DAY)
        }
    )


async def test_one_bmc_costs_the_same_in_a_large_plane(plans: Plans) -> None:
    wanted = Configuration(MIDDLE, "busy", "new", 623, "new", "admin", b"s", None, DriverKind.IPMI, "")
    end = Finish(State.FAILED, "R", "m")

    async def reported(conn: Connection) -> None:
        found = await SCHEDULE.due_reports(conn, "busy", most=32)
        await SCHEDULE.reported(conn, [(each.machine, each.observation.observed_at) for each in found], MINUTE)  # type: ignore[misc]

    async def unchanged(conn: Connection) -> None:
        found = await ENDPOINTS.page(conn, partition="busy", after=None, limit=32)
        await SCHEDULE.unchanged(conn, [Unchanged(each, Tenure(1, 1), datetime.now(UTC), MINUTE) for each in found])

    await plans.check(
        {
            "by MAC": partial(ENDPOINTS.by_mac, partition="busy", mac="mac8"),
            "insert": partial(ENDPOINTS.insert, wanted=wanted),
            "known": partial(ENDPOINTS.known, machines=[machine(8), MIDDLE]),
            "free address": partial(ENDPOINTS.free_address, partition="busy", host="host8", port=623, but=MIDDLE),
            "delete": partial(ENDPOINTS.delete, machine=machine(8)),
            "reported": reported,
            "unchanged": unchanged,
            "oldest open": partial(COMMANDS.oldest_open, machine=machine(8)),
            "none open": partial(COMMANDS.oldest_open, machine=machine(7)),
            "open count": partial(COMMANDS.open_count, machine=machine(8)),
            "finish all": partial(COMMANDS.finish_all, machine=machine(8), end=end),
            "claim a console": partial(CONSOLES.claim, machine=machine(8), partition="busy", holder="new", ttl=MINUTE),
            "renew consoles": partial(
                CONSOLES.renew, machines={machine(n): False for n in range(8, 16)}, holder="h1", ttl=MINUTE
            ),
            "open a console": partial(CONSOLES.opened, machine=machine(8), holder="h1", session=b"1234"),
            "release a console": partial(CONSOLES.release, machine=machine(8), holder="h1"),
            "sighting": partial(SIGHTINGS.see, partition="busy", mac="mac7", host="h"),
        }
    )


async def test_tasks_read_what_they_show(plans: Plans) -> None:
    middle = str(UUID(int=10000))
    cases: dict[str, Call] = {
        f"tasks of {of or 'all'} in {partition or 'all'}, {'all' if ended else 'open'}, {place} page": partial(
            TASKS.page, machine=machine(8) if of else "", partition=partition, ended=ended, after=after, limit=51
        )
        for of, partition in (("", ""), ("", "busy"), ("", "rare"), ("", "none"), ("a machine", ""))
        for ended in (True, False)
        for place, after in (("first", None), ("later", middle))
    }
    await plans.check(
        cases
        | {
            "of a command": partial(TASKS.of_command, command=MIDDLE),
            "last wish": partial(TASKS.last_wish, machine=machine(8)),
            "due": partial(TASKS.due, partition="busy", most=32),
            "none due": partial(TASKS.due, partition="none", most=32),
            "declined": partial(TASKS.declined_wishes, partition="busy", most=32),
            "withdraw of a command": partial(TASKS.withdraw_of, command=MIDDLE, note="n"),
            "withdraw a wish": partial(TASKS.withdraw_wish, machine=machine(8), note="n"),
            "withdraw all": partial(TASKS.withdraw_all, machine=machine(8), note="n"),
            "old": partial(TASKS.forget_ended, before=datetime.now(UTC) - 13 * DAY, most=500),
        }
    )
