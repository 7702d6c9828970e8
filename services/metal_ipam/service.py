"""Composition of the IPAM service."""

from __future__ import annotations

from datetime import timedelta

from metal_kit.db import Database
from metal_kit.runtime import Background, Parts, Runtime, Servicer, ServiceSpec, StartError
from metal_kit.settings import ServiceSettings
from metalplane.ipam.v1.ip_pb2_grpc import add_IpServiceServicer_to_server
from metalplane.ipam.v1.namespace_pb2_grpc import add_NamespaceServiceServicer_to_server
from metalplane.ipam.v1.network_pb2_grpc import add_NetworkServiceServicer_to_server
from metalplane.ipam.v1.pool_pb2_grpc import add_PoolServiceServicer_to_server
from metalplane.ipam.v1.prefix_pb2_grpc import add_PrefixServiceServicer_to_server
from metalplane.ipam.v1.quota_pb2_grpc import add_QuotaServiceServicer_to_server
from pydantic import Field

from metal_ipam import quarantine
from metal_ipam.acquisition import Acquisition
from metal_ipam.api.ips import IpApi
from metal_ipam.api.namespaces import NamespaceApi
from metal_ipam.api.networks import NetworkApi
from metal_ipam.api.pools import PoolApi
from metal_ipam.api.prefixes import PrefixApi
from metal_ipam.api.quotas import QuotaApi
from metal_ipam.coalescer import Coalescer
from metal_ipam.family import Family
from metal_ipam.store import numbers

# RFC 6996 sets 4200000000 to 4294967294 aside for private use; the offset leaves the beginning of it to others.
ASN_BASE = 4_210_000_000
ASN_LAST = 4_294_967_294
VNI_LAST = 16_777_215
ACTOR = "service:ipam"


class Settings(ServiceSettings):
    """Settings of IPAM beyond the common ones. Pools grow when a maximum is raised; they never shrink."""

    vrf_max: int = Field(131_072, ge=1, le=VNI_LAST, description="greatest VRF number, which is the VNI too")
    asn_base: int = Field(ASN_BASE, ge=0, le=ASN_LAST, description="what the numbers of the ASN pool are added to")
    asn_max: int = Field(131_072, ge=1, le=ASN_LAST, description="greatest number of the ASN pool, without the base")
    address_quarantine_seconds: float = Field(
        0, ge=0, le=86_400 * 30, description="how long released addresses of networks created from now on rest"
    )


async def compose(rt: Runtime) -> Parts:
    """Wire stores, servicers and the end of quarantines; create the pools."""
    settings = rt.settings
    if not isinstance(settings, Settings):
        raise TypeError("ipam needs its own settings")
    db = rt.require_db()
    await _ensure_pools(db, settings)
    coalescer = Coalescer(db)
    acquisition = Acquisition(db, coalescer)
    family = Family(db)
    rest = timedelta(seconds=settings.address_quarantine_seconds)
    return Parts(
        servicers=[
            Servicer(
                add_NetworkServiceServicer_to_server,
                NetworkApi(db, rt.paging, rt.stopping, rest),
                "metalplane.ipam.v1.NetworkService",
            ),
            Servicer(
                add_NamespaceServiceServicer_to_server,
                NamespaceApi(db, rt.paging),
                "metalplane.ipam.v1.NamespaceService",
            ),
            Servicer(
                add_PrefixServiceServicer_to_server,
                PrefixApi(db, rt.paging, acquisition.known, family),
                "metalplane.ipam.v1.PrefixService",
            ),
            Servicer(
                add_IpServiceServicer_to_server,
                IpApi(db, rt.paging, acquisition, rt.stopping),
                "metalplane.ipam.v1.IpService",
            ),
            Servicer(add_PoolServiceServicer_to_server, PoolApi(db, rt.paging), "metalplane.ipam.v1.PoolService"),
            Servicer(add_QuotaServiceServicer_to_server, QuotaApi(db, rt.paging), "metalplane.ipam.v1.QuotaService"),
        ],
        background=[Background("end quarantines", lambda: quarantine.run(db, rt.stopping))],
        close=[coalescer.close, family.close],
    )


async def _ensure_pools(db: Database, settings: Settings) -> None:
    if settings.asn_base + settings.asn_max > ASN_LAST:
        raise StartError(f"METALPLANE_ASN_BASE + METALPLANE_ASN_MAX must be at most {ASN_LAST} (RFC 6996)")
    try:
        async with db.transaction(purpose="create the number pools") as connection:
            await numbers.ensure(connection, numbers.VRF_POOL, base=0, lo=1, hi=settings.vrf_max, actor=ACTOR)
            await numbers.ensure(
                connection, numbers.ASN_POOL, base=settings.asn_base, lo=1, hi=settings.asn_max, actor=ACTOR
            )
    except ValueError as error:
        raise StartError(str(error)) from error


SPEC = ServiceSpec(name="ipam", settings=Settings, package="metal_ipam", compose=compose)
