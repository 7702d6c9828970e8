"""Who may grant what, and what a token is worth when it is used. Pure.

Roles are numbers of the contract's enums: 1 viewer, 2 editor, 3 owner on a project or tenant; 1 viewer, 2 operator on
the plane. A higher one includes the lower ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from metal_kit.errors import PermissionDenied

OPERATOR = 2


@dataclass(frozen=True, slots=True)
class Grants:
    """Roles by project id and by tenant id, and on the plane."""

    projects: Mapping[str, int] = field(default_factory=dict)
    tenants: Mapping[str, int] = field(default_factory=dict)
    plane: int = 0


def check_grantable(wanted: Grants, maker: Grants, tenant_of: Mapping[str, str]) -> None:
    """Raise PermissionDenied when `wanted` holds anything that its maker does not.

    `tenant_of` names the tenant of each wanted project: a role on a tenant is one on its projects too.
    """
    if maker.plane >= OPERATOR:
        return
    if wanted.plane > maker.plane:
        raise _more("plane_role", "the plane")
    for project, role in wanted.projects.items():
        held = max(maker.projects.get(project, 0), maker.tenants.get(tenant_of.get(project, ""), 0))
        if role > held:
            raise _more("project_roles", f"project {project}")
    for tenant, role in wanted.tenants.items():
        if role > maker.tenants.get(tenant, 0):
            raise _more("tenant_roles", f"tenant {tenant}")


def effective(token: Grants, memberships: Grants, tenant_of: Mapping[str, str], *, by_operator: bool) -> Grants:
    """What a token is worth now.

    A token without any role stands for its user and has his memberships. A token with roles has these, cut to the
    user's memberships unless a plane operator made it. Tenant roles are expanded over `tenant_of` (project → tenant).
    """
    if not token.projects and not token.tenants and not token.plane:
        return _expanded(memberships, tenant_of)
    if by_operator:
        return _expanded(token, tenant_of)
    held = _expanded(memberships, tenant_of)
    wanted = _expanded(token, tenant_of)
    return Grants(
        projects=_cut(wanted.projects, held.projects),
        tenants=_cut(wanted.tenants, held.tenants),
        plane=min(token.plane, memberships.plane),
    )


def _expanded(grants: Grants, tenant_of: Mapping[str, str]) -> Grants:
    projects = dict(grants.projects)
    for project, tenant in tenant_of.items():
        role = grants.tenants.get(tenant, 0)
        if role > projects.get(project, 0):
            projects[project] = role
    return Grants(projects, grants.tenants, grants.plane)


def _cut(wanted: Mapping[str, int], held: Mapping[str, int]) -> dict[str, int]:
    cut = {scope: min(role, held.get(scope, 0)) for scope, role in wanted.items()}
    return {scope: role for scope, role in cut.items() if role}


def _more(field_name: str, where: str) -> PermissionDenied:
    return PermissionDenied(
        "GRANT_TOO_LARGE", f"you cannot grant a role on {where} that you do not hold", field=f"token.{field_name}"
    )
