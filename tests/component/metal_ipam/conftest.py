"""ipam as it runs, with a tenancy that knows a few tokens; and its bare schema for tests of the SQL functions."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import pytest
from metal_ipam.service import SPEC
from metal_kit.db import Database
from metal_kit.errors import Unauthenticated
from metal_kit.identity import service_id
from metal_kit.runtime import RunningService
from metalplane.common.v1.access_pb2 import PlaneRole, Role
from metalplane.ipam.v1 import ip_pb2, namespace_pb2, network_pb2, prefix_pb2
from metalplane.ipam.v1.ip_pb2_grpc import IpServiceStub
from metalplane.ipam.v1.namespace_pb2_grpc import NamespaceServiceStub
from metalplane.ipam.v1.network_pb2_grpc import NetworkServiceStub
from metalplane.ipam.v1.pool_pb2_grpc import PoolServiceStub
from metalplane.ipam.v1.prefix_pb2_grpc import PrefixServiceStub
from metalplane.ipam.v1.quota_pb2_grpc import QuotaServiceStub
from metalplane.tenancy.v1.token_pb2 import CheckTokenRequest, CheckTokenResponse
from metalplane.tenancy.v1.token_pb2_grpc import TokenServiceServicer, add_TokenServiceServicer_to_server

OPERATOR, VIEWER = "operator", "viewer"
PROJECT = "0198c1d2-0000-7000-8000-00000000000a"
OTHER_PROJECT = "0198c1d2-0000-7000-8000-00000000000b"
_PLANE_ROLES = {OPERATOR: PlaneRole.PLANE_ROLE_OPERATOR, VIEWER: PlaneRole.PLANE_ROLE_VIEWER}
_PROJECT_ROLES = {"editor": Role.ROLE_EDITOR, "member": Role.ROLE_VIEWER}


class Tokens(TokenServiceServicer):
    """Tokens `operator`, `viewer`, `editor <project>` and `member <project>` hold."""

    async def CheckToken(self, request: CheckTokenRequest, context: Any) -> CheckTokenResponse:
        answer = CheckTokenResponse()
        answer.token.id = request.secret
        answer.token.user = request.secret.replace(" ", "-")
        kind, _, project = request.secret.partition(" ")
        if kind in _PLANE_ROLES:
            answer.token.plane_role = _PLANE_ROLES[kind]
        elif kind in _PROJECT_ROLES:
            answer.token.project_roles[project] = _PROJECT_ROLES[kind]
        else:
            raise Unauthenticated("TOKEN_INVALID", "the token does not hold")
        return answer


@dataclass
class Ipam:
    """One or more replicas of ipam on one database, called as an operator, a project or a service."""

    replicas: list[RunningService]
    make_stub: Callable[..., Any]
    start_replica: Callable[[], Awaitable[RunningService]]
    database_url: str

    def networks(self, token: str = OPERATOR) -> Any:
        return self.make_stub(self.replicas[0], NetworkServiceStub, token=token)

    def prefixes(self, token: str = OPERATOR) -> Any:
        return self.make_stub(self.replicas[0], PrefixServiceStub, token=token)

    def ips(self, token: str = f"editor {PROJECT}", *, replica: int = 0) -> Any:
        return self.make_stub(self.replicas[replica], IpServiceStub, token=token)

    def ips_as_allocation(self, *, replica: int = 0) -> Any:
        return self.make_stub(self.replicas[replica], IpServiceStub, as_=service_id("allocation"))

    def pools_as_allocation(self) -> Any:
        return self.make_stub(self.replicas[0], PoolServiceStub, as_=service_id("allocation"))

    def pools(self, token: str = OPERATOR) -> Any:
        return self.make_stub(self.replicas[0], PoolServiceStub, token=token)

    def quotas(self, token: str = OPERATOR) -> Any:
        return self.make_stub(self.replicas[0], QuotaServiceStub, token=token)

    def namespaces(self, token: str = OPERATOR) -> Any:
        return self.make_stub(self.replicas[0], NamespaceServiceStub, token=token)

    async def namespace(self, name: str, project: str = "") -> str:
        """A namespace of this name."""
        wanted = namespace_pb2.Namespace(id=name, project=project)
        await self.namespaces().CreateNamespace(namespace_pb2.CreateNamespaceRequest(namespace=wanted))
        return name

    async def prefix(self, cidr: str, namespace: str = "", **fields: Any) -> prefix_pb2.Prefix:
        """A root prefix on its own, a leaf unless told otherwise."""
        request = prefix_pb2.CreatePrefixRequest(request_id=fields.pop("request_id", ""))
        request.prefix.CopyFrom(prefix_pb2.Prefix(cidr=cidr, namespace=namespace, **fields))
        answer: prefix_pb2.Prefix = await self.prefixes().CreatePrefix(request)
        return answer

    async def container(self, cidr: str, namespace: str = "", **fields: Any) -> prefix_pb2.Prefix:
        """A root prefix on its own that children are cut from."""
        return await self.prefix(cidr, namespace, kind=prefix_pb2.PREFIX_KIND_CONTAINER, **fields)

    async def cut(self, parent: str, length: int = 0, namespace: str = "", **fields: Any) -> prefix_pb2.Prefix:
        """A child of a container."""
        request = prefix_pb2.AcquireChildPrefixRequest(parent=parent, length=length, namespace=namespace, **fields)
        answer: prefix_pb2.Prefix = await self.prefixes().AcquireChildPrefix(request)
        return answer

    async def get_prefix(self, cidr: str, namespace: str = "") -> prefix_pb2.Prefix:
        request = prefix_pb2.GetPrefixRequest(cidr=cidr, namespace=namespace)
        answer: prefix_pb2.Prefix = await self.prefixes().GetPrefix(request)
        return answer

    async def list_prefixes(self, **filters: Any) -> list[str]:
        answer = await self.prefixes().ListPrefixes(prefix_pb2.ListPrefixesRequest(page_size=500, **filters))
        return [each.cidr for each in answer.prefixes]

    async def drop(self, cidr: str, namespace: str = "") -> None:
        await self.prefixes().DeletePrefix(prefix_pb2.DeletePrefixRequest(cidr=cidr, namespace=namespace))

    async def take(self, prefix: str, namespace: str = "", *, count: int = 1, **wish: Any) -> list[str]:
        """Addresses of a prefix on its own, for PROJECT, by the operator."""
        wanted = ip_pb2.IpWish(prefix=prefix, namespace=namespace, count=count, **wish)
        return [ip.address for ip in await self.acquire(wanted, stub=self.ips(OPERATOR))]

    async def give_back(self, address: str, namespace: str = "") -> None:
        await self.ips(OPERATOR).ReleaseIp(ip_pb2.ReleaseIpRequest(address=address, namespace=namespace))

    async def add_replica(self) -> None:
        self.replicas.append(await self.start_replica())

    async def create(self, token: str = OPERATOR, **fields: Any) -> network_pb2.Network:
        """A network; `length` is a (v4, v6) pair."""
        request = network_pb2.CreateNetworkRequest()
        if length := fields.pop("length", None):
            request.length.CopyFrom(network_pb2.PrefixLengths(ipv4=length[0], ipv6=length[1]))
        for name in ("default_child_prefix_length", "min_child_prefix_length"):
            if name in fields:
                fields[name] = network_pb2.PrefixLengths(ipv4=fields[name][0], ipv6=fields[name][1])
        request.request_id = fields.pop("request_id", "")
        request.network.CopyFrom(network_pb2.Network(**fields))
        answer: network_pb2.Network = await self.networks(token).CreateNetwork(request)
        return answer

    async def external(self, network_id: str, *prefixes: str, vrf: int = 0) -> network_pb2.Network:
        """An external network; its VRF number is made up unless given."""
        number = vrf or 1000 + sum(network_id.encode())
        return await self.create(id=network_id, type=network_pb2.NETWORK_TYPE_EXTERNAL, prefixes=prefixes, vrf=number)

    async def super(self, network_id: str = "super", **fields: Any) -> network_pb2.Network:
        """A super network, dual stack unless told otherwise."""
        fields.setdefault("prefixes", ["10.0.0.0/16", "fd00::/32"])
        fields.setdefault("default_child_prefix_length", (22, 64))
        return await self.create(id=network_id, type=network_pb2.NETWORK_TYPE_SUPER, **fields)

    async def child(self, parent: str = "super", project: str = PROJECT, **fields: Any) -> network_pb2.Network:
        """A child network of the project."""
        return await self.create(
            f"editor {project}",
            type=fields.pop("type", network_pb2.NETWORK_TYPE_CHILD),
            parent=parent,
            project=project,
            **fields,
        )

    async def acquire(self, *wishes: ip_pb2.IpWish, stub: Any = None, **fields: Any) -> list[ip_pb2.Ip]:
        """Addresses for PROJECT."""
        request = ip_pb2.AcquireIpsRequest(project=fields.pop("project", PROJECT), wishes=wishes, **fields)
        answer = await (stub or self.ips()).AcquireIps(request)
        return list(answer.ips)

    async def list_ips(self, **fields: Any) -> list[ip_pb2.Ip]:
        answer = await self.ips(OPERATOR).ListIps(ip_pb2.ListIpsRequest(page_size=500, **fields))
        return list(answer.ips)

    async def clean(self) -> None:
        """The accounts of every prefix and pool are right."""
        answer = await self.prefixes().VerifyPrefixes(prefix_pb2.VerifyPrefixesRequest(), timeout=60)
        assert list(answer.findings) == []

    async def get(self, network_id: str, token: str = OPERATOR) -> network_pb2.Network:
        answer: network_pb2.Network = await self.networks(token).GetNetwork(
            network_pb2.GetNetworkRequest(id=network_id)
        )
        return answer

    async def delete(self, network_id: str, token: str = OPERATOR) -> None:
        await self.networks(token).DeleteNetwork(network_pb2.DeleteNetworkRequest(id=network_id))


@pytest.fixture
async def start_ipam(
    start_service: Callable[..., Any], start_peer: Callable[..., Any], stub: Callable[..., Any], new_database: Any
) -> Callable[..., Awaitable[Ipam]]:
    """`await start_ipam(**settings)`: the service with these settings; everything about it is verified by the test."""

    async def start_one(url: str = "", **settings: Any) -> Ipam:
        tenancy = await start_peer(
            "tenancy", (add_TokenServiceServicer_to_server, Tokens(), "metalplane.tenancy.v1.TokenService")
        )
        database_url = url or await new_database("ipam", "metal_ipam")

        async def start_replica() -> RunningService:
            running: RunningService = await start_service(
                SPEC, peers={"tenancy": tenancy}, database_url=database_url, **settings
            )
            return running

        return Ipam([await start_replica()], stub, start_replica, database_url)

    return start_one


@pytest.fixture
async def ipam(start_ipam: Callable[..., Awaitable[Ipam]]) -> AsyncIterator[Ipam]:
    """The service with its default settings; whatever a test did, its accounts are right afterwards."""
    service = await start_ipam()
    yield service
    await service.clean()


@pytest.fixture
async def ipam_url(new_database: Callable[..., Awaitable[str]]) -> str:
    """URL of a database with the service's schema `ipam`."""
    return await new_database("ipam", "metal_ipam")


@pytest.fixture
async def db(ipam_url: str) -> AsyncIterator[Database]:
    """The service's view of that database, with connections enough for a crowd."""
    database = await Database.open(ipam_url, "ipam", max_size=34)
    yield database
    await database.close()


def new_id() -> str:
    """A request id."""
    return str(uuid4())
