"""Names instead of ids: people know a project as `demo`. The plane knows ids only, so its lists are searched here.

An id always goes before a name, and a name that several objects have is refused: nobody's choice of a name can make a
command reach another object than before.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any
from uuid import UUID

from metal_kit.client import Peers
from metal_kit.errors import FailedPrecondition, NotFound
from metalplane.allocation.v1 import allocation_pb2
from metalplane.allocation.v1.allocation_pb2_grpc import AllocationServiceStub
from metalplane.ipam.v1 import network_pb2
from metalplane.ipam.v1.network_pb2_grpc import NetworkServiceStub
from metalplane.tenancy.v1 import project_pb2, tenant_pb2
from metalplane.tenancy.v1.project_pb2_grpc import ProjectServiceStub
from metalplane.tenancy.v1.tenant_pb2_grpc import TenantServiceStub

PAGE = 500


async def tenant(peers: Peers, text: str) -> str:
    """Id of a tenant."""
    if is_uuid(text):
        return text
    method = peers.stub(TenantServiceStub, "tenancy").ListTenants
    found = [each.id async for each in pages(method, tenant_pb2.ListTenantsRequest(), "tenants") if each.name == text]
    return only("tenant", text, found)


async def project(peers: Peers, text: str) -> str:
    """Id of a project."""
    if is_uuid(text):
        return text
    method = peers.stub(ProjectServiceStub, "tenancy").ListProjects
    request = project_pb2.ListProjectsRequest(name=text)
    return only("project", text, [each.id async for each in pages(method, request, "projects")])


async def network(peers: Peers, text: str, project_id: str = "") -> str:
    """Id of a network; with `project_id`, a name is looked for in that project only."""
    if is_uuid(text):
        return text
    stub = peers.stub(NetworkServiceStub, "ipam")
    try:
        return (await stub.GetNetwork(network_pb2.GetNetworkRequest(id=text))).id
    except NotFound:
        request = network_pb2.ListNetworksRequest(project=project_id)
        named = [each.id async for each in pages(stub.ListNetworks, request, "networks") if each.name == text]
    return only("network", text, named)


async def allocation(peers: Peers, text: str) -> str:
    """Id of an allocation that is not gone."""
    if is_uuid(text):
        return text
    method = peers.stub(AllocationServiceStub, "allocation").ListAllocations
    request = allocation_pb2.ListAllocationsRequest()
    return only(
        "allocation", text, [each.id async for each in pages(method, request, "allocations") if each.spec.name == text]
    )


Resolver = Callable[[Peers, str], Awaitable[str]]
RESOLVERS: dict[str, Resolver] = {"tenant": tenant, "project": project, "network": network, "allocation": allocation}


async def pages(method: Callable[[Any], Awaitable[Any]], request: Any, items: str) -> AsyncIterator[Any]:
    """Everything that a list method has for a request."""
    request.page_size = PAGE
    while True:
        page = await method(request)
        for each in getattr(page, items):
            yield each
        request.page_token = page.next_page_token
        if not request.page_token:
            return


def only(kind: str, text: str, ids: list[str]) -> str:
    """The one id. Raises NotFound, or FailedPrecondition naming them when there are several."""
    if not ids:
        raise NotFound("NOT_FOUND", f"no {kind} that you may see has the id or name {text!r}")
    if len(ids) > 1:
        shown = ", ".join(ids[:5]) + (", …" if len(ids) > 5 else "")
        raise FailedPrecondition(
            "AMBIGUOUS_NAME", f"{len(ids)} {kind}s are named {text!r}: say which by its id: {shown}"
        )
    return ids[0]


def is_uuid(text: str) -> bool:
    """Whether the text is a UUID in the usual spelling."""
    try:
        return str(UUID(text)) == text.lower()
    except ValueError:
        return False
