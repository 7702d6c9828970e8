"""Grants: nobody gives what he does not hold, and no token is worth more than its user."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from metal_kit.errors import PermissionDenied
from metal_tenancy.roles import OPERATOR, Grants, check_grantable, check_personal, check_plane_until, effective

if TYPE_CHECKING:
    from collections.abc import Mapping

VIEWER, EDITOR, OWNER = 1, 2, 3
TENANT_OF = {"p1": "t1", "p2": "t1", "p3": "t2"}

projects = st.sampled_from(["p1", "p2", "p3", "gone"])
tenants = st.sampled_from(["t1", "t2"])
roles = st.integers(VIEWER, OWNER)
grants = st.builds(
    Grants,
    projects=st.dictionaries(projects, roles, max_size=4),
    tenants=st.dictionaries(tenants, roles, max_size=2),
)


def worth(held: Grants, project: str) -> int:
    """The role on an existing project, by the project itself or by its tenant."""
    return max(held.projects.get(project, 0), held.tenants.get(TENANT_OF[project], 0))


@given(token=grants, memberships=grants)
def test_a_token_is_never_worth_more_than_its_users_memberships_nor_than_what_it_says(
    token: Grants, memberships: Grants
) -> None:
    got = effective(token, memberships, TENANT_OF, by_operator=False)
    assert got.plane == 0
    for project, role in got.projects.items():
        assert 0 < role <= worth(memberships, project)
        assert token.personal or role <= worth(token, project)
    for tenant, role in got.tenants.items():
        assert 0 < role <= memberships.tenants[tenant]
        assert token.personal or role <= token.tenants[tenant]


@given(token=grants, memberships=grants)
def test_a_token_is_worth_all_that_both_it_and_its_user_hold(token: Grants, memberships: Grants) -> None:
    got = effective(token, memberships, TENANT_OF, by_operator=False)
    for project in TENANT_OF:
        held = worth(memberships, project)
        assert got.projects.get(project, 0) == (held if token.personal else min(held, worth(token, project)))


@given(wanted=grants, maker=grants, memberships=grants)
def test_what_is_grantable_is_worth_what_it_says_and_no_more_than_the_maker_has(
    wanted: Grants, maker: Grants, memberships: Grants
) -> None:
    tenant_of = {project: tenant for project, tenant in TENANT_OF.items() if project in wanted.projects}
    try:
        check_grantable(wanted, maker, memberships, tenant_of)
    except PermissionDenied:
        return
    if wanted.personal:
        return
    got = effective(wanted, memberships, TENANT_OF, by_operator=False)
    for project in TENANT_OF:
        assert got.projects.get(project, 0) == worth(wanted, project), "nothing was promised that does not hold"
        assert worth(wanted, project) <= worth(maker, project)


@given(token=grants, memberships=grants)
def test_what_an_operator_granted_holds_without_memberships(token: Grants, memberships: Grants) -> None:
    got = effective(token, memberships, TENANT_OF, by_operator=True)
    for project in TENANT_OF:
        assert got.projects.get(project, 0) == worth(memberships if token.personal else token, project)


@pytest.mark.parametrize("by_operator", [False, True])
def test_a_role_on_a_project_that_is_gone_is_worth_nothing(by_operator: bool) -> None:
    held = Grants(projects={"gone": OWNER})
    assert effective(held, held, TENANT_OF, by_operator=by_operator).projects == {}


def test_a_plane_role_holds_for_a_token_of_an_operator() -> None:
    assert effective(Grants(plane=OPERATOR), Grants(), {}, by_operator=True).plane == OPERATOR
    assert effective(Grants(plane=OPERATOR), Grants(), {}, by_operator=False).plane == 0


def test_a_plane_viewer_cannot_grant_his_role() -> None:
    with pytest.raises(PermissionDenied, match="only plane operators") as refused:
        check_grantable(Grants(plane=1), Grants(plane=1), Grants(), {})
    assert refused.value.field == "token.plane_role"


def maker_with(*, project: int = 0, tenant: int = 0) -> Grants:
    return Grants({"p1": project} if project else {}, {"t1": tenant} if tenant else {})


@pytest.mark.parametrize(
    ("wanted", "maker", "memberships", "field"),
    [
        (maker_with(project=EDITOR), maker_with(project=VIEWER), maker_with(project=OWNER), "token.project_roles"),
        (maker_with(project=EDITOR), maker_with(project=OWNER), maker_with(), "token.project_roles"),
        (maker_with(tenant=VIEWER), maker_with(project=OWNER), maker_with(project=OWNER), "token.tenant_roles"),
        (maker_with(tenant=EDITOR), maker_with(tenant=VIEWER), maker_with(tenant=OWNER), "token.tenant_roles"),
        (Grants({"unknown": VIEWER}), maker_with(tenant=OWNER), maker_with(tenant=OWNER), "token.project_roles"),
    ],
)
def test_more_than_the_maker_holds_is_refused_with_the_field(
    wanted: Grants, maker: Grants, memberships: Grants, field: str
) -> None:
    with pytest.raises(PermissionDenied) as refused:
        check_grantable(wanted, maker, memberships, TENANT_OF)
    assert (refused.value.reason, refused.value.field) == ("GRANT_TOO_LARGE", field)


@pytest.mark.parametrize("wanted", [maker_with(project=OWNER), maker_with(tenant=OWNER), Grants({"p2": OWNER})])
def test_an_owner_of_a_tenant_grants_what_lies_in_it(wanted: Grants) -> None:
    held = maker_with(tenant=OWNER)
    check_grantable(wanted, held, held, TENANT_OF)


@pytest.mark.parametrize(("own", "login"), [(Grants(), False), (Grants(), True), (Grants(plane=1), True)])
def test_a_token_with_all_of_its_users_roles_makes_another_one(own: Grants, login: bool) -> None:
    check_personal(own, login=login)


@pytest.mark.parametrize("own", [Grants({"p1": VIEWER}), Grants(tenants={"t1": OWNER}), Grants(plane=1)])
def test_a_token_with_roles_of_its_own_makes_none_that_has_all(own: Grants) -> None:
    with pytest.raises(PermissionDenied, match="name the roles"):
        check_personal(own)


@given(memberships=grants, plane=st.integers(0, 2))
def test_a_logins_token_has_its_users_memberships_and_the_role_of_his_group(memberships: Grants, plane: int) -> None:
    got = effective(Grants(plane=plane), memberships, TENANT_OF, by_operator=False, login=True)
    assert got.plane == plane
    for project in TENANT_OF:
        assert got.projects.get(project, 0) == worth(memberships, project)
    assert dict(got.tenants) == dict(memberships.tenants)


def test_a_role_on_the_plane_does_not_outlast_the_login_that_it_comes_from() -> None:
    end = datetime(2026, 1, 1, 8, tzinfo=UTC)
    check_plane_until(None, end + timedelta(days=300))
    check_plane_until(end, end)
    with pytest.raises(PermissionDenied, match="ends with your login at 2026-01-01 08:00:00Z") as refused:
        check_plane_until(end, end + timedelta(seconds=1))
    assert refused.value.field == "lifetime"


def test_grants_do_not_change_under_their_owner() -> None:
    held: Mapping[str, int] = {"p1": VIEWER}
    effective(Grants(held), Grants({"p1": OWNER}, {"t1": OWNER}), TENANT_OF, by_operator=True)
    assert held == {"p1": VIEWER}
