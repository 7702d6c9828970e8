"""What was taken away ends in every service within the stated age, on a plane without NATS and while tenancy is away.

Three real services of one plane: tenancy, and two that ask it. The clock of their caches is moved by the test.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
from metal_inventory.service import SPEC as INVENTORY
from metal_ipam.service import SPEC as IPAM
from metal_kit import attendance, tokens
from metal_kit.errors import InvalidArgument, Problem, Unauthenticated, Unavailable
from metal_kit.runtime import RunningService
from metalplane.common.v1.access_pb2 import PlaneRole, Role
from metalplane.inventory.v1 import machine_pb2
from metalplane.inventory.v1.machine_pb2_grpc import MachineServiceStub
from metalplane.ipam.v1 import network_pb2
from metalplane.ipam.v1.network_pb2_grpc import NetworkServiceStub
from metalplane.tenancy.v1 import project_pb2, tenant_pb2, token_pb2

VIEWER, EDITOR, OWNER = Role.ROLE_VIEWER, Role.ROLE_EDITOR, Role.ROLE_OWNER
# What the kit promises: `metal_kit.tokens.MAX_AGE`, written out as its README and the documents have it.
AGE = 5.0
LET_IN = "let in"


@dataclass
class Plane:
    """tenancy, and two services that ask it."""

    tenancy: Any
    ipam: RunningService
    inventory: RunningService
    clock: list[float]

    async def edits(self, token: str, project: str) -> str:
        """What ipam says to somebody who wants to change the project: the reason of his refusal, or that he is let in.

        The network lacks everything else. Who is let in hears about that, and who is not does not.
        """
        stub = self.tenancy.make_stub(self.ipam, NetworkServiceStub, token=token)
        network = network_pb2.Network(project=project, name="x" * 1000)
        try:
            await stub.CreateNetwork(network_pb2.CreateNetworkRequest(network=network))
        except InvalidArgument:
            return LET_IN
        except Problem as problem:
            return problem.reason
        pytest.fail("a network of nothing was made")

    def watch(self, token: str) -> Any:
        """A watch over machines, of which there are none: it says its position and then nothing."""
        stub = self.tenancy.make_stub(self.inventory, MachineServiceStub, token=token)
        return aiter(stub.WatchMachines(machine_pb2.WatchMachinesRequest()))

    async def leave(self, user: str, *, project: str = "", tenant: str = "") -> None:
        if project:
            request = project_pb2.RemoveProjectMemberRequest(project=project, user=user)
            await self.tenancy.projects().RemoveProjectMember(request)
        else:
            await self.tenancy.tenants().RemoveTenantMember(
                tenant_pb2.RemoveTenantMemberRequest(tenant=tenant, user=user)
            )

    async def revoke(self, token: token_pb2.Token) -> None:
        await self.tenancy.tokens().RevokeToken(token_pb2.RevokeTokenRequest(id=token.id))


@pytest.fixture
async def plane(
    login_tenancy: Any, start_service: Callable[..., Awaitable[RunningService]], monkeypatch: pytest.MonkeyPatch
) -> Plane:
    clock = [time.monotonic()]
    monkeypatch.setattr(tokens, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    monkeypatch.setattr(attendance, "EVERY", 0.05)
    peers = {"tenancy": login_tenancy.running.address, "fabric": "127.0.0.1:1"}
    ipam = await start_service(IPAM, peers=peers)
    inventory = await start_service(INVENTORY, peers=peers)
    for running in (login_tenancy.running, ipam, inventory):
        assert running.runtime.bus is None, "nothing here can be told over NATS"
    return Plane(login_tenancy, ipam, inventory, clock)


@dataclass
class Case:
    """Somebody who may edit a project, and an act that takes that away."""

    token: token_pb2.CreateTokenResponse
    act: Callable[[], Awaitable[object]]
    reason: str


async def cases(plane: Plane) -> tuple[str, dict[str, Case]]:
    """Every way to lose a role on one project, each with a person of its own."""
    tenancy = plane.tenancy
    tenant = await tenancy.tenant()
    project = (await tenancy.project(tenant.id)).id
    for user, role in (("leaver", OWNER), ("demoted", EDITOR), ("revoked", EDITOR), ("script", EDITOR)):
        await tenancy.join(user, role, project=project)
    await tenancy.join("tenant-leaver", EDITOR, tenant=tenant.id)
    made = {user: await tenancy.token(user) for user in ("leaver", "demoted", "revoked", "tenant-leaver", "script")}
    cut = await tenancy.token(as_=made["script"].secret, projects={project: EDITOR})
    robot = await tenancy.token("robot", projects={project: EDITOR})
    return project, {
        "left the project": Case(
            made["leaver"], lambda: plane.leave("leaver", project=project), "NOT_FOUND"
        ),
        "left the tenant": Case(
            made["tenant-leaver"], lambda: plane.leave("tenant-leaver", tenant=tenant.id), "NOT_FOUND"
        ),
        "has a smaller role": Case(
            made["demoted"], lambda: tenancy.join("demoted", VIEWER, project=project), "ROLE_TOO_SMALL"
        ),
        "user of a token with roles left": Case(cut, lambda: plane.leave("script", project=project), "NOT_FOUND"),
        "token was revoked": Case(made["revoked"], lambda: plane.revoke(made["revoked"].token), "TOKEN_INVALID"),
        "operator's grant was revoked": Case(robot, lambda: plane.revoke(robot.token), "TOKEN_INVALID"),
    }  # fmt: skip


async def test_whatever_was_taken_away_is_gone_everywhere_after_five_seconds(plane: Plane) -> None:
    project, people = await cases(plane)
    stays = await plane.tenancy.person("stays", EDITOR, project=project)
    for name, case in people.items():
        assert await plane.edits(case.token.secret, project) == LET_IN, name
    assert await plane.edits(stays, project) == LET_IN
    for case in people.values():
        await case.act()
    plane.clock[0] += AGE - 0.5
    for name, case in people.items():
        assert await plane.edits(case.token.secret, project) == LET_IN, f"{name}: the clock of the test has no effect"
    plane.clock[0] += 0.5
    for name, case in people.items():
        assert await plane.edits(case.token.secret, project) == case.reason, name
    assert await plane.edits(stays, project) == LET_IN


async def test_a_project_that_is_deleted_takes_all_roles_on_it_along_and_a_tenant_too(plane: Plane) -> None:
    tenancy = plane.tenancy
    tenant = await tenancy.tenant()
    project = (await tenancy.project(tenant.id)).id
    member = await tenancy.person("member", OWNER, project=project)
    owner = await tenancy.person("owner", OWNER, tenant=tenant.id)
    granted = (await tenancy.token("robot", projects={project: EDITOR}, tenants={tenant.id: EDITOR})).secret
    for secret in (member, owner, granted):
        assert await plane.edits(secret, project) == LET_IN
    await tenancy.projects().DeleteProject(project_pb2.DeleteProjectRequest(id=project))
    plane.clock[0] += AGE
    for secret in (member, owner, granted):
        assert await plane.edits(secret, project) == "NOT_FOUND"
    await tenancy.tenants().DeleteTenant(tenant_pb2.DeleteTenantRequest(id=tenant.id))
    assert dict((await tenancy.check(owner)).tenant_roles) == {}
    plane.clock[0] += AGE
    mine = tenant_pb2.GetTenantRequest(id=tenant.id)
    for secret in (owner, granted):
        with pytest.raises(Problem) as refused:
            await tenancy.tenants(secret).GetTenant(mine)
        assert refused.value.reason == "NOT_FOUND"


async def test_while_tenancy_is_away_what_is_known_ends_and_nothing_unknown_is_let_in(plane: Plane) -> None:
    tenancy = plane.tenancy
    tenant = await tenancy.tenant()
    project = (await tenancy.project(tenant.id)).id
    known, unknown = [await tenancy.person(user, EDITOR, project=project) for user in ("known", "unknown")]
    assert await plane.edits(known, project) == LET_IN
    await tenancy.running.stop(0)
    assert await plane.edits(unknown, project) == "TOKEN_CHECK_UNAVAILABLE"
    assert await plane.edits("ey.no.token", project) == "TOKEN_CHECK_UNAVAILABLE"
    plane.clock[0] += AGE - 0.5
    assert await plane.edits(known, project) == LET_IN
    plane.clock[0] += 0.5
    assert await plane.edits(known, project) == "TOKEN_CHECK_UNAVAILABLE"


@pytest.mark.parametrize("how", ["revoked", "left"])
async def test_an_open_watch_that_has_nothing_to_say_ends_too(plane: Plane, how: str) -> None:
    tenancy = plane.tenancy
    tenant = await tenancy.tenant()
    project = (await tenancy.project(tenant.id)).id
    await tenancy.join("alice", VIEWER, project=project)
    token = await tenancy.token("alice")
    other = plane.watch(await tenancy.person("bob", VIEWER, project=project))
    stream = plane.watch(token.secret)
    for each in (stream, other):
        assert (await anext(each)).position
    if how == "revoked":
        await plane.revoke(token.token)
    else:
        await plane.leave("alice", project=project)
    silent, untouched = asyncio.ensure_future(anext(stream)), asyncio.ensure_future(anext(other))
    done, _ = await asyncio.wait({silent, untouched}, timeout=0.3)
    assert not done, "within the age"
    plane.clock[0] += AGE
    with pytest.raises(Unauthenticated if how == "revoked" else Unavailable) as ended:
        async with asyncio.timeout(10):
            await silent
    assert ended.value.reason == ("TOKEN_INVALID" if how == "revoked" else "ROLES_CHANGED")
    assert not untouched.done()
    untouched.cancel()


async def test_a_login_ends_like_every_token(plane: Plane, provider: Any) -> None:
    """With its plane role, and with all that was made with it when that is wanted."""
    tenancy = plane.tenancy
    tenant = await tenancy.tenant()
    project = (await tenancy.project(tenant.id)).id
    stub = tenancy.tokens(as_="spiffe://metalplane/client/tool")
    request = token_pb2.ExchangeIdTokenRequest(id_token=provider.id_token(groups=["plane-ops"]), nonce="n-1")
    login = await stub.ExchangeIdToken(request)
    child = await tenancy.token("robot", as_=login.secret, plane=PlaneRole.PLANE_ROLE_OPERATOR, seconds=600)
    for each in (login, child):
        assert await plane.edits(each.secret, project) == LET_IN
    await tenancy.tokens(login.secret).RevokeToken(token_pb2.RevokeTokenRequest(id=login.token.id, made_with_it=True))
    plane.clock[0] += AGE
    for each in (login, child):
        assert await plane.edits(each.secret, project) == "TOKEN_INVALID"


def test_the_age_is_the_one_that_is_written_down() -> None:
    assert tokens.MAX_AGE == AGE
