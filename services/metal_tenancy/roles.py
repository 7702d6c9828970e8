"""Who may grant what, and what a token is worth when it is used. Pure.

Roles are numbers of the contract's enums: 1 viewer, 2 editor, 3 owner on a project or tenant; 1 viewer, 2 operator on
the plane. A higher one includes the lower ones.

Three kinds of tokens: what a plane operator grants holds as it is written; the token of a login has its user's
memberships and, besides, the plane role that a group gave; everybody else's tokens are cut to their user's memberships.
That is done each time they are used, so that leaving a project ends what one could do there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime

from metal_kit.errors import PermissionDenied

VIEWER = 1
OPERATOR = 2


@dataclass(frozen=True, slots=True)
class Grants:
    """Roles by project id and by tenant id, and on the plane."""

    projects: Mapping[str, int] = field(default_factory=dict)
    tenants: Mapping[str, int] = field(default_factory=dict)
    plane: int = 0

    @property
    def personal(self) -> bool:
        """Whether no role is named. A token of that kind stands for its user, with all of his memberships."""
        return not (self.projects or self.tenants or self.plane)

    def on_project(self, project: str, tenant: str) -> int:
        """The role on a project of that tenant: a role on a tenant is one on its projects too."""
        return max(self.projects.get(project, 0), self.tenants.get(tenant, 0))


def check_grantable(wanted: Grants, maker: Grants, memberships: Grants, tenant_of: Mapping[str, str]) -> None:
    """Raise PermissionDenied when `wanted` holds anything that its maker, who is no plane operator, cannot give.

    He can give what he holds now (`maker`) and by membership: the new token is worth no more than his memberships, and
    one that looks larger than it is would only confuse. `tenant_of` names the tenant of each wanted project.
    """
    if wanted.plane:
        raise PermissionDenied(
            "GRANT_TOO_LARGE", "only plane operators grant a role on the plane", field="token.plane_role"
        )
    for project, role in wanted.projects.items():
        tenant = tenant_of.get(project, "")
        if role > min(maker.on_project(project, tenant), memberships.on_project(project, tenant)):
            raise _more("project_roles", f"project {project}")
    for tenant, role in wanted.tenants.items():
        if role > min(maker.tenants.get(tenant, 0), memberships.tenants.get(tenant, 0)):
            raise _more("tenant_roles", f"tenant {tenant}")


def check_personal(token: Grants, *, login: bool = False) -> None:
    """Raise PermissionDenied unless a token without roles can be made with this one, of a `login` or not.

    It would have all memberships of the user; whoever found a token that has some of them must not come by the rest.
    """
    if not (token.personal or login):
        raise PermissionDenied(
            "GRANT_TOO_LARGE",
            "a token without roles has all of its user's, and yours has not: name the roles that it shall have",
            field="token",
        )


def check_plane_until(until: datetime | None, expires: datetime) -> None:
    """Raise PermissionDenied when a role on the plane would outlast (`expires`) the login that it comes from (`until`).

    Who has left the group does not have it at his next login; a token that he left behind must not have it either.
    """
    if until is not None and expires > until:
        raise PermissionDenied(
            "GRANT_TOO_LONG",
            f"your role on the plane comes from a group and ends with your login at {until:%Y-%m-%d %H:%M:%SZ}; a role "
            "on the plane cannot be granted for longer",
            field="lifetime",
        )


def effective(
    token: Grants, memberships: Grants, tenant_of: Mapping[str, str], *, by_operator: bool, login: bool = False
) -> Grants:
    """What a token is worth now.

    A token without any role stands for its user and has his memberships; that of a `login` has its plane role too. A
    token with roles has these, cut to the user's memberships unless a plane operator made it. Tenant roles are expanded
    over `tenant_of` (project → tenant); a project that is not in it does not exist any more.
    """
    held = _expanded(memberships, tenant_of)
    if login:
        return replace(held, plane=token.plane)
    if token.personal:
        return held
    wanted = _expanded(token, tenant_of)
    if by_operator:
        return wanted
    return Grants(projects=_cut(wanted.projects, held.projects), tenants=_cut(wanted.tenants, held.tenants))


def _expanded(grants: Grants, tenant_of: Mapping[str, str]) -> Grants:
    roles = {project: grants.on_project(project, tenant) for project, tenant in tenant_of.items()}
    return Grants({project: role for project, role in roles.items() if role}, grants.tenants, grants.plane)


def _cut(wanted: Mapping[str, int], held: Mapping[str, int]) -> dict[str, int]:
    cut = {scope: min(role, held.get(scope, 0)) for scope, role in wanted.items()}
    return {scope: role for scope, role in cut.items() if role}


def _more(field_name: str, where: str) -> PermissionDenied:
    return PermissionDenied(
        "GRANT_TOO_LARGE",
        f"you cannot grant a role on {where} that you do not hold by membership and with this token",
        field=f"token.{field_name}",
    )
