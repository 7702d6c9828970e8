"""Statements of allocation over many allocations, claims and machines to choose from."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from functools import partial

import pytest
from metal_allocation.placement import Choice
from metal_allocation.store import AllocationStore, CandidateFacts, ListFilter, PlacementStore
from metal_lab.servers import Postgres
from plans import FIRST, MIDDLE, Call, Plans, measured, uuid_of

ALLOCATIONS, PLACEMENTS = AllocationStore(), PlacementStore()


BIG, SMALL = uuid_of("big"), uuid_of("small")
# 20,000 allocations, most of them released, half of one project; 20,000 machines of which a fifth are of the class
# that is asked for, in 200 racks; every second of these is claimed.
FILL = (
    """
    INSERT INTO allocation (id, project, creator, name, role, spec, userdata, phase, machine, partition, rack, size,
        image, layout, update_time)
    SELECT md5('a' || n)::uuid,
        md5(CASE WHEN n % 1000 = 3 THEN 'small' WHEN n % 2 = 0 THEN 'big' ELSE 'p' || n % 100 END)::uuid,
        'c', 'n', 'machine', '', repeat('s', 300)::bytea,
        CASE WHEN n % 500 = 1 THEN 'installing' WHEN n % 10 < 2 THEN 'running' ELSE 'released' END,
        md5('m' || n % 5000)::uuid, 'mini', 'rack', 'c1', '', '', now() - n * interval '1 min'
    FROM generate_series(1, 20000) AS n
    """,
    "INSERT INTO timeline (allocation, phase, reason, message) "
    "SELECT id, 'running', '', '' FROM allocation, generate_series(1, 3)",
    """
    INSERT INTO candidate
    SELECT md5('m' || n)::uuid, 'mini', CASE WHEN n % 5 = 0 THEN 'c1' ELSE 'c2' END, 'rack' || n % 200, 'available',
        n % 10 < 8, true, true, true, false, 1, now() - n * interval '1 s', false
    FROM generate_series(1, 20000) AS n
    """,
    """
    INSERT INTO claim (machine, allocation, project, role, partition, size, rack)
    SELECT machine, id, project, 'machine', 'mini', 'c1', 'rack' FROM (
        SELECT DISTINCT ON (machine) machine, id, project FROM allocation WHERE phase <> 'released'
    ) AS present
    """,
)


@pytest.fixture(scope="module")
async def plans(postgres: Postgres) -> AsyncIterator[Plans]:
    async with measured(postgres, "allocation", "metal_allocation", FILL) as made:
        yield made


def page(after: str, **filters: object) -> Call:
    return partial(ALLOCATIONS.page, which=ListFilter(**filters), after=after, limit=51)  # type: ignore[arg-type]


FILTERS: dict[str, dict[str, object]] = {
    "all": {},
    "project of many": {"projects": [BIG]},
    "project of few": {"projects": [SMALL]},
    "two projects": {"projects": [BIG, SMALL]},
    "machine": {"machine": uuid_of("m7")},
    "phase of many": {"phase": "running"},
    "project and phase": {"projects": [BIG], "phase": "running"},
}


async def test_lists_read_what_they_show(plans: Plans) -> None:
    await plans.check(
        {
            f"{name}, {place} page, released {released}": page(after, **filters, released=released)
            for place, after in (("first", FIRST), ("later", MIDDLE))
            for released in (False, True)
            for name, filters in FILTERS.items()
        }
    )


@pytest.mark.parametrize(("released", "names"), [
    (False, ["phase of many", "phase of few", "phase of none"]),
    (True, ["two projects", "small projects", "no project"]),
])  # fmt: skip
async def test_lists_of_few_among_many_read_what_they_show(plans: Plans, released: bool, names: list[str]) -> None:
    few = {"phase of few": {"phase": "installing"}, "phase of none": {"phase": "unbinding"}}
    few |= {"small projects": {"projects": [SMALL, uuid_of("p7")]}, "no project": {"projects": []}}  # type: ignore[dict-item]
    await plans.check({name: page(FIRST, **(FILTERS | few)[name], released=released) for name in names})


async def test_choosing_a_machine_reads_no_more_than_its_class(plans: Plans) -> None:
    place = {"partition": "mini", "size": "c1"}
    racks = frozenset(f"rack{n}" for n in range(0, 200, 5))
    facts = [CandidateFacts(uuid_of("m7"), "mini", "c1", "r", "available", *[True] * 4, False, False, 2)]
    await plans.check(
        {
            "lock": partial(PLACEMENTS.lock_class, **place),
            "quota": partial(PLACEMENTS.lock_project, project=SMALL),
            "held": partial(PLACEMENTS.held, project=SMALL, **place, role="machine"),
            "unclaim": partial(PLACEMENTS.unclaim, allocation=uuid_of("a10")),
            "upsert": partial(PLACEMENTS.upsert, facts=facts),
            "forget": partial(PLACEMENTS.forget, machine=uuid_of("m7")),
        }
    )
    # After a comparison that has just written every row.
    unseen = {"forget unseen": partial(PLACEMENTS.forget_unseen, since=datetime.now(UTC) - timedelta(days=1))}
    await plans.check(unseen, scans=["candidate"])
    # 4,000 of the class, each looked up among the claims.
    await plans.check(
        {
            "free": partial(PLACEMENTS.free, **place, but=[]),
            "pick": partial(PLACEMENTS.pick, **place, choice=Choice(racks, 3), but=[uuid_of("m5")]),
            "counts": partial(PLACEMENTS.counts, **place),
        },
        reads=9000,
        scans=["claim"],
    )


async def test_what_one_allocation_does_costs_the_same_in_a_large_plane(plans: Plans) -> None:
    some = [uuid_of(f"a{n}") for n in range(1, 51)]
    await plans.check(
        {
            "get": partial(ALLOCATIONS.get, allocation=some[0], lock=True),
            "of machine": partial(ALLOCATIONS.of_machine, machine=uuid_of("m10")),
            "phases": partial(ALLOCATIONS.phases, allocations=some),
            "unsettled": ALLOCATIONS.unsettled,
            "running": partial(ALLOCATIONS.running, after=some[0], limit=50),
            "timelines": partial(ALLOCATIONS.timelines, allocations=some),
        }
    )


@pytest.mark.parametrize("days", [0, 7, 100])
async def test_old_allocations_are_forgotten_by_age(plans: Plans, days: int) -> None:
    before = datetime.now(UTC) - timedelta(days=days)
    await plans.check({"forget": partial(ALLOCATIONS.forget_released, before=before)}, reads=1000)
