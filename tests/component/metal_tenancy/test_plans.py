"""Statements of tenancy over many tenants, projects, members and tokens."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from functools import partial

import pytest
from metal_lab.servers import Postgres
from metal_tenancy.store import MemberStore, ProjectStore, TenantStore, TokenStore, Visible
from plans import FIRST, MIDDLE, Plans, measured, uuid_of

TENANTS, PROJECTS, MEMBERS, TOKENS = TenantStore(), ProjectStore(), MemberStore(), TokenStore()


# 20,000 projects: half of them of one tenant. Every thousandth user is the same one, every second member another.
BIG, SMALL = uuid_of("t0"), uuid_of("t7")
FILL = (
    "INSERT INTO tenant (id, name) SELECT md5('t' || n)::uuid, 't' || n FROM generate_series(0, 20000) AS n",
    """
    INSERT INTO project (id, tenant, name)
    SELECT md5('p' || n)::uuid, md5('t' || CASE WHEN n % 2 = 0 THEN 0 ELSE n % 2000 END)::uuid,
        CASE WHEN n % 1000 = 1 THEN 'rare' WHEN n % 20000 > 10000 AND n % 2 = 1 THEN 'usual' ELSE 'p' END
        || CASE WHEN n % 2 = 0 THEN n::text ELSE '' END
    FROM generate_series(1, 20000) AS n ON CONFLICT DO NOTHING
    """,
    """
    INSERT INTO project (id, tenant, name)
    SELECT md5('q' || n)::uuid, md5('t' || n)::uuid, 'common' FROM generate_series(1, 10000) AS n
    """,
    """
    INSERT INTO tenant_member SELECT md5('t' || CASE WHEN n % 2 = 0 THEN 0 ELSE n END)::uuid,
        CASE WHEN n % 1000 = 1 THEN 'anna' ELSE 'u' || n END, 1 FROM generate_series(1, 20000) AS n
    """,
    """
    INSERT INTO project_member SELECT id, name, 1 FROM (
        SELECT id, 'v' || row_number() OVER () AS name FROM project UNION ALL
        SELECT id, 'berta' FROM project WHERE id < '01000000-0000-0000-0000-000000000000'
    ) AS members
    """,
    """
    INSERT INTO token (id, username, by_operator, creator, expire_time, made_with)
    SELECT md5('k' || n)::uuid, CASE WHEN n % 1000 = 0 THEN 'anna' WHEN n % 2 = 0 THEN 'robot' ELSE 'u' || n END, false,
        'u', now() + (n - 100) * interval '1 h', CASE WHEN n > 3000 AND n % 3 > 0 THEN md5('k' || n / 10)::uuid END
    FROM generate_series(1, 20000) AS n
    """,
    """
    INSERT INTO exchanged_id_token
    SELECT decode(md5('d' || n), 'hex'), now() + (n - 100) * interval '1 min' FROM generate_series(1, 20000) AS n
    """,
)
SOON = datetime(2100, 1, 1, tzinfo=UTC)


@pytest.fixture(scope="module")
async def plans(postgres: Postgres) -> AsyncIterator[Plans]:
    async with measured(postgres, "tenancy", "metal_tenancy", FILL) as made:
        yield made


async def test_tenants_are_read_by_page(plans: Plans) -> None:
    some = [uuid_of(f"t{n}") for n in range(0, 2000, 10)]
    await plans.check(
        {
            f"{name}, {place} page": partial(TENANTS.page, only=only, after=after, limit=51)
            for place, after in (("first", FIRST), ("later", MIDDLE))
            for name, only in {"all": None, "two hundred": some, "one": some[:1], "none": []}.items()
        }
        | {"existing": partial(TENANTS.existing, tenants=some)}
    )


async def test_projects_are_read_by_page(plans: Plans) -> None:
    mine = [uuid_of(f"p{n}") for n in range(0, 400, 2)]
    seen = {
        "all": None,
        "a few": Visible(mine[:3], []),
        "two hundred": Visible(mine, []),
        "a small tenant's": Visible([], [SMALL]),
        "a big tenant's": Visible(mine[:3], [BIG]),
        "tenants'": Visible(mine[:3], [BIG, SMALL]),
        "nothing": Visible([], []),
    }
    filters = {
        "any": ("", ""),
        "a big tenant": (BIG, ""),
        "a small tenant": (SMALL, ""),
        "a common name": ("", "common"),
        "a rare name": ("", "rare"),
        "no such name": ("", "nobody"),
        "tenant and name": (BIG, "p4"),
    }
    await plans.check(
        {
            f"{what} of {who}, {place} page": partial(
                PROJECTS.page, seen=visible, tenant=tenant, name=name, after=after, limit=51
            )
            for place, after in (("first", FIRST), ("later", MIDDLE))
            for who, visible in seen.items()
            for what, (tenant, name) in filters.items()
        },
        reads=2 * len(mine),  # those that somebody may see one by one are looked at one by one
    )


async def test_members_and_tokens_are_read_by_page(plans: Plans) -> None:
    await plans.check(
        {
            "members of a big tenant": partial(MEMBERS.page, scope="tenant", scope_id=BIG, after="", limit=51),
            "more of them": partial(MEMBERS.page, scope="tenant", scope_id=BIG, after="u5", limit=51),
            "members of a project": partial(MEMBERS.page, scope="project", scope_id=uuid_of("p2"), after="", limit=51),
        }
        | {
            f"tokens of {user}, {place} page": partial(TOKENS.page, user=user, after=after, limit=51)
            for place, after in (("first", FIRST), ("later", MIDDLE))
            for user in (None, "anna", "robot", "nobody")
        }
    )


async def test_a_token_is_checked_by_keys(plans: Plans) -> None:
    await plans.check(
        {
            "token": partial(TOKENS.get, token=uuid_of("k7")),
            "memberships of a few": partial(MEMBERS.of_user, user="anna"),
            "memberships of many": partial(MEMBERS.of_user, user="berta"),
            "memberships of nobody": partial(MEMBERS.of_user, user="nobody"),
            "tenants of projects": partial(PROJECTS.tenants, projects=[uuid_of("p2"), uuid_of("p3")], tenants=[SMALL]),
            "tenants of nothing": partial(PROJECTS.tenants, projects=[], tenants=[]),
        }
    )


async def test_making_and_revoking_tokens_reads_what_it_is_about(plans: Plans) -> None:
    await plans.check(
        {
            "held": partial(TOKENS.hold, token=uuid_of("k7")),
            "locked": partial(TOKENS.lock, token=uuid_of("k7")),
            "made with one": partial(TOKENS.lock_made_with, tokens=[uuid_of("k700")]),
            "made with several": partial(TOKENS.lock_made_with, tokens=[uuid_of(f"k{n}") for n in range(700, 750)]),
            "made with none": partial(TOKENS.lock_made_with, tokens=[uuid_of("nothing")]),
            "exchanged before": partial(TOKENS.exchange, digest=bytes.fromhex(uuid_of("d7").replace("-", "")),
                                        useless_after=SOON),
            "exchanged": partial(TOKENS.exchange, digest=b"new", useless_after=SOON),
        }
    )  # fmt: skip
    await plans.check(
        {
            f"living tokens of {user}": partial(TOKENS.count_living, user=user, login=False, limit=1000)
            for user in ("anna", "robot", "nobody")
        },
        reads=1000,  # a count reads what it counts
    )


async def test_deleting_and_pruning_cost_what_goes(plans: Plans) -> None:
    await plans.check(
        {
            "a tenant without projects": partial(TENANTS.delete, tenant=uuid_of("t19998")),
            "a project": partial(PROJECTS.delete, project=uuid_of("p2")),
            "a member": partial(MEMBERS.remove, scope="project", scope_id=uuid_of("p2"), user="v2"),
            "revoked": partial(TOKENS.revoke, tokens=[uuid_of("k7")]),
            "some tokens": partial(TOKENS.forget, older_than=timedelta(0)),
            "no tokens": partial(TOKENS.forget, older_than=timedelta(days=100)),
            "some ID tokens": TOKENS.forget_exchanged,
        }
    )
