"""QuotaService."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from metal_kit.db import Database
from metal_kit.etag import check_etag
from metal_kit.paging import Paging
from metalplane.ipam.v1 import quota_pb2 as pb
from metalplane.ipam.v1.quota_pb2_grpc import QuotaServiceServicer

from metal_ipam.quotas import KINDS, Amounts, Quota
from metal_ipam.store import quotas


@dataclass(slots=True)
class QuotaApi(QuotaServiceServicer):
    """Quotas of projects."""

    db: Database
    paging: Paging

    async def GetQuota(self, request: pb.GetQuotaRequest, context: Any) -> pb.Quota:
        async with self.db.connection() as connection:
            quota = await quotas.get(connection, request.project)
            return _message(quota, await quotas.held(connection, request.project))

    async def ListQuotas(self, request: pb.ListQuotasRequest, context: Any) -> pb.ListQuotasResponse:
        page = self.paging.page(request.page_size, request.page_token, filter_key="quotas")
        async with self.db.connection() as connection:
            rows = await quotas.page(connection, after=page.after_text(), limit=page.limit)
        shown, token = page.cut(rows, lambda row: (row.project,))
        return pb.ListQuotasResponse(quotas=[_message(row) for row in shown], next_page_token=token)

    async def SetQuota(self, request: pb.SetQuotaRequest, context: Any) -> pb.Quota:
        wanted = request.quota
        limits = {each.name: value for each, value in wanted.ListFields() if each.name in KINDS}
        async with self.db.transaction(purpose="set a quota") as connection:
            await quotas.ensure(connection, wanted.project)
            before = await quotas.hold(connection, wanted.project)
            assert before is not None  # Just made, and never deleted: its version only rises.
            check_etag(wanted.etag, before.version, what=f"quota of project {wanted.project}")
            after = await quotas.put(connection, Quota(wanted.project, **limits))
            held = await quotas.held(connection, wanted.project)
        return _message(after, held)


def _message(quota: Quota, held: Amounts | None = None) -> pb.Quota:
    message = pb.Quota(
        project=quota.project,
        ipv4_addresses=quota.ipv4_addresses,
        ipv6_addresses=quota.ipv6_addresses,
        prefixes=quota.prefixes,
        etag=str(quota.version),
    )
    if held is not None:
        message.used.CopyFrom(pb.QuotaUse(**{kind: getattr(held, kind) for kind in KINDS}))
    return message
