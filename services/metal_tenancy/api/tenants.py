"""TenantService."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from google.protobuf.empty_pb2 import Empty
from metal_kit import idempotency, validation
from metal_kit.db import Connection, Database
from metal_kit.etag import check_etag
from metal_kit.fieldmask import apply_update
from metal_kit.identity import current_caller, missing
from metal_kit.ids import parse_uuid, uuid7
from metal_kit.outbox import emit
from metal_kit.paging import Paging
from metalplane.common.v1.access_pb2 import PlaneRole
from metalplane.tenancy.v1 import tenant_pb2 as pb
from metalplane.tenancy.v1.events_pb2 import TenantChanged, TenantDeleted
from metalplane.tenancy.v1.tenant_pb2_grpc import TenantServiceServicer

from metal_tenancy.api.membership import Membership
from metal_tenancy.api.messages import tenant_message
from metal_tenancy.store import TenantRow, TenantStore

MUTABLE = ("name", "description", "labels")
FIRST_ID = "00000000-0000-0000-0000-000000000000"
CREATE = "/metalplane.tenancy.v1.TenantService/CreateTenant"


@dataclass(slots=True)
class TenantApi(TenantServiceServicer):
    """Tenants and their members."""

    db: Database
    paging: Paging
    tenants: TenantStore = field(default_factory=TenantStore)
    _membership: Membership = field(init=False)

    def __post_init__(self) -> None:
        self._membership = Membership("tenant", self.db, self.paging, self._exists)

    async def CreateTenant(self, request: pb.CreateTenantRequest, context: Any) -> pb.Tenant:
        call = {"caller": current_caller().label, "method": CREATE, "request_id": request.request_id}
        async with self.db.transaction(purpose="create a tenant") as conn:
            known = await idempotency.remembered(conn, **call, request=request, response_type=pb.Tenant)
            if known is not None:
                return known
            wanted = request.tenant
            row = await self.tenants.insert(conn, uuid7(), wanted.name, wanted.description, wanted.labels)
            message = await _changed(conn, row)
            await idempotency.remember(conn, **call, request=request, response=message)
        return message

    async def GetTenant(self, request: pb.GetTenantRequest, context: Any) -> pb.Tenant:
        async with self.db.connection() as conn:
            row = await self.tenants.get(conn, request.id)
        if row is None:
            raise missing(f"tenant {request.id}")
        return tenant_message(row)

    async def ListTenants(self, request: pb.ListTenantsRequest, context: Any) -> pb.ListTenantsResponse:
        caller = current_caller()
        only = None if caller.may_plane(PlaneRole.PLANE_ROLE_VIEWER) else sorted(caller.tenants)
        filter_key = f"tenants:{caller.label if only is not None else ''}"
        page = self.paging.page(request.page_size, request.page_token, filter_key=filter_key)
        async with self.db.connection() as conn:
            rows = await self.tenants.page(conn, only, after=page.after_text(FIRST_ID), limit=page.limit)
        shown, token = page.cut(rows, lambda row: (row.id,))
        return pb.ListTenantsResponse(
            tenants=[tenant_message(row) for row in shown],
            next_page_token=token,
        )

    async def UpdateTenant(self, request: pb.UpdateTenantRequest, context: Any) -> pb.Tenant:
        wanted = request.tenant
        id_ = parse_uuid(wanted.id, field="tenant.id")
        async with self.db.transaction(purpose="update a tenant") as conn:
            row = await self._locked(conn, id_, wanted.etag)
            target = tenant_message(row)
            apply_update(target, wanted, request.update_mask, mutable=MUTABLE)
            validation.check(target, field="tenant")
            new = replace(row, name=target.name, description=target.description, labels=dict(target.labels))
            return await _changed(conn, await self.tenants.update(conn, new))

    async def DeleteTenant(self, request: pb.DeleteTenantRequest, context: Any) -> Empty:
        async with self.db.transaction(purpose="delete a tenant") as conn:
            row = await self._locked(conn, request.id, request.etag)
            await self.tenants.delete(conn, row.id)
            await emit(
                conn,
                subject="metalplane.tenancy.tenant.deleted",
                entity="tenant",
                entity_id=row.id,
                version=row.version + 1,
                payload=TenantDeleted(tenant=tenant_message(row)),
                deleted=True,
            )
        return Empty()

    async def SetTenantMember(self, request: pb.SetTenantMemberRequest, context: Any) -> pb.Member:
        return await self._membership.set(request.tenant, request.member)

    async def RemoveTenantMember(self, request: pb.RemoveTenantMemberRequest, context: Any) -> Empty:
        return await self._membership.remove(request.tenant, request.user)

    async def ListTenantMembers(
        self, request: pb.ListTenantMembersRequest, context: Any
    ) -> pb.ListTenantMembersResponse:
        members, token = await self._membership.page(request.tenant, request.page_size, request.page_token)
        return pb.ListTenantMembersResponse(members=members, next_page_token=token)

    async def _exists(self, conn: Connection, tenant: str) -> bool:
        return await self.tenants.get(conn, tenant) is not None

    async def _locked(self, conn: Connection, tenant: str, etag: str) -> TenantRow:
        row = await self.tenants.get(conn, tenant, lock=True)
        if row is None:
            raise missing(f"tenant {tenant}")
        check_etag(etag, row.version, what=f"tenant {tenant}")
        return row


async def _changed(conn: Connection, row: TenantRow) -> pb.Tenant:
    message = tenant_message(row)
    await emit(
        conn,
        subject="metalplane.tenancy.tenant.changed",
        entity="tenant",
        entity_id=row.id,
        version=row.version,
        payload=TenantChanged(tenant=message),
    )
    return message
