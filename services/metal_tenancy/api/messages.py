"""Rows to messages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from metal_kit.identity import PlaneRoleValue, RoleValue
from metal_kit.timestamps import to_timestamp
from metalplane.tenancy.v1.project_pb2 import Project
from metalplane.tenancy.v1.tenant_pb2 import Tenant
from metalplane.tenancy.v1.token_pb2 import Token

from metal_tenancy.roles import Grants
from metal_tenancy.store import ProjectRow, TenantRow, TokenRow


def tenant_message(row: TenantRow) -> Tenant:
    """A tenant for clients."""
    return Tenant(
        id=row.id, name=row.name, description=row.description, labels=row.labels, etag=str(row.version),
        create_time=to_timestamp(row.create_time), update_time=to_timestamp(row.update_time),
    )  # fmt: skip


def project_message(row: ProjectRow) -> Project:
    """A project for clients."""
    return Project(
        id=row.id, tenant=row.tenant, name=row.name, description=row.description, labels=row.labels,
        machine_quota=row.machine_quota, etag=str(row.version),
        create_time=to_timestamp(row.create_time), update_time=to_timestamp(row.update_time),
    )  # fmt: skip


def token_message(row: TokenRow, grants: Grants | None = None) -> Token:
    """A token for clients, without its secret; with `grants` instead of the roles it was made with."""
    shown = grants or row.grants
    # Stored as numbers; the database's constraints and the contract's rules keep them within the enums.
    return Token(
        id=row.id,
        user=row.username,
        description=row.description,
        project_roles=cast("Mapping[str, RoleValue]", shown.projects),
        tenant_roles=cast("Mapping[str, RoleValue]", shown.tenants),
        plane_role=cast("PlaneRoleValue", shown.plane),
        create_time=to_timestamp(row.create_time),
        expire_time=to_timestamp(row.expire_time),
        revoke_time=to_timestamp(row.revoke_time),
        login=row.login,
        made_with=row.made_with or "",
    )
