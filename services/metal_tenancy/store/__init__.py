"""SQL of tenancy, one class an aggregate; every method joins the caller's connection."""

from __future__ import annotations

from metal_tenancy.store.members import MemberStore
from metal_tenancy.store.projects import NewProject, ProjectRow, ProjectStore, Visible
from metal_tenancy.store.tenants import TenantRow, TenantStore
from metal_tenancy.store.tokens import TokenRow, TokenStore

__all__ = [
    "MemberStore",
    "NewProject",
    "ProjectRow",
    "ProjectStore",
    "TenantRow",
    "TenantStore",
    "TokenRow",
    "TokenStore",
    "Visible",
]
