"""Every RPC of every service refuses whom it has to: those there are now, and those that are added later.

The RPCs come from the contracts, and must be what the running servers say of themselves by reflection. For each one a
request is made that the rightful caller is let through with; the same bytes are then sent by everybody else. Who has to
be refused, and how, is said here in words of its own, from the access option: not by the code that decides.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import access_requests as requests
import grpc
import pytest
from access_callers import OLD_BOOT, ROLES, SERVICES, TOOL, Answer, Cast, Who, agents, make_cast
from access_objects import LEAVES
from access_plane import ELSEWHERE, PARTITION, AccessPlane, access_plane
from access_requests import View, in_scope, name_of, request_for, unfiltered
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.message import Message
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from metal_kit import identity, logs
from metal_kit.access import Rule, read_rule
from metalplane.common.v1.access_pb2 import Effect, PlaneRole, Role, ScopeKind
from metalplane.inventory.v1.machine_pb2 import Machine
from metalplane.ipam.v1 import ip_pb2

Code = grpc.StatusCode
METHODS = {name_of(method): method for method in requests.methods()}
RULES = {name: read_rule(method) for name, method in METHODS.items()}
NOBODY = {Code.UNAUTHENTICATED}
DENIED = {Code.PERMISSION_DENIED}
HIDDEN = {Code.NOT_FOUND}
# How a call may end that was let in and found its object, when what it wants cannot be done (a second time).
TOO_LATE = {Code.ALREADY_EXISTS, Code.FAILED_PRECONDITION, Code.ABORTED, Code.RESOURCE_EXHAUSTED}
# What also asks a BMC, of which there is none here that answers.
ASKS_BMC = {"BmcService.Console"}
# How a call about somebody else's objects in one's own scope may end.
NOT_SO = {*HIDDEN, *DENIED, Code.FAILED_PRECONDITION, Code.INVALID_ARGUMENT, Code.ABORTED}
# What belongs to nobody and is shown to every user.
CATALOGUE = {
    "FilesystemLayoutService.GetFilesystemLayout", "FilesystemLayoutService.ListFilesystemLayouts",
    "ImageService.GetImage", "ImageService.ListImages", "ImageService.ResolveImage",
    "PartitionService.GetPartition", "PartitionService.ListPartitions",
    "SizeService.GetSize", "SizeService.ListSizes",
}  # fmt: skip
# Calls that may be made although something of A's is in the request: it is left out, or named as refused. That nothing
# comes of it is looked at in the end.
HARMLESS = {"ProjectService.UpdateProject", "MachineService.ReportBmcs"}
# Lists of things that also change by themselves here: BMCs that do not answer, commands to them, leases.
_LIVELY = {
    "AllocationService.ListAllocations", "BmcService.ListBmcs", "BmcService.ListCommands",
    "MachineService.ListMachineIssues", "MachineService.ListMachineEvents", "MachineService.ListMachines",
    "SwitchService.ListSwitches",
}  # fmt: skip
# Lists of what was called, refusals included.
_OF_CALLS = {"AuditService.ListAuditRecords"}
_UUID = re.compile(rb"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
# On the wire, with the byte before it that has its length: both grow as transactions are counted.
_POSITION = re.compile(rb".\d+:\d+", re.DOTALL)
# Services of the RPCs that belong to everybody's connection and have no access rule.
_COMMON = {"grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"}


@cache
def bytes_for(name: str, view: View) -> bytes:
    """The good request of an RPC, made once: the same bytes come from everybody."""
    return request_for(METHODS[name], RULES[name], view).SerializeToString()


@dataclass
class World:
    """The plane, everybody who calls it, and whose objects it is about."""

    plane: AccessPlane
    cast: Cast
    view: View
    served: dict[str, bytes]
    """What reflection says: each RPC's descriptor."""
    before: dict[str, Any] = field(default_factory=dict)
    """What `state` said at first."""

    def servers(self, name: str) -> range:
        """Numbers of those that serve an RPC."""
        return range(len(self.cast.servers[METHODS[name].containing_service.full_name]))

    async def call(self, name: str, who: Who, view: View | None = None, server: int = 0) -> Answer:
        return await self.cast.call(METHODS[name], who, bytes_for(name, view or self.view), server)

    async def check(self, name: str, who: Who, codes: set[Code], view: View | None = None) -> list[str]:
        """What is wrong with the answers of all that serve an RPC; nothing when each is one of those."""
        return [
            f"server {server}: {wrong}"
            for server in self.servers(name)
            for wrong in _unlike(who, await self.call(name, who, view, server), codes)
        ]

    async def bytes(self, name: str, who: Who, request: Message) -> Answer:
        return await self.cast.call(METHODS[name], who, request.SerializeToString())

    async def state(self) -> dict[str, Any]:
        """What an operator sees in all lists: everything of what stays as it is, of the rest which ids there are."""
        found: dict[str, Any] = {}
        for name, method in METHODS.items():
            if method.name.startswith("List") and name not in _OF_CALLS:
                request = request_for(method, RULES[name], self.view)
                answer = await self.bytes(name, self.cast.user("plane operator"), request)
                assert answer.ok, f"{name}: {answer.status}"
                found[name] = sorted(set(_UUID.findall(answer.messages[0]))) if name in _LIVELY else answer.messages
        answer = await self.call("MachineService.GetMachine", self.cast.user("plane operator"))
        machine = Machine.FromString(answer.messages[0])
        found["machine"] = (machine.partition, machine.generation, machine.state, machine.disks_clean, machine.waiting)
        found["what is in it"] = (str(machine.hardware), str(machine.links), str(machine.binding))
        return found


@pytest.fixture(autouse=True)
def _quiet(_logs: None) -> None:
    """Thousands of lines that nobody reads would be a good part of the time."""
    logs.configure("error")


@pytest.fixture(scope="module")
async def world(server_directory: Path, postgres: Any) -> AsyncIterator[World]:
    directory = server_directory / "access"
    directory.mkdir()
    async with access_plane(directory, postgres) as plane:
        servers: dict[str, list[str]] = {}
        served: dict[str, bytes] = {}
        probe = await make_cast(plane, servers)
        for service in plane.services:
            address = f"{service.address}|{service.name}.metalplane"
            async for full_name, methods in _reflected(probe.channel(address, TOOL)):
                servers.setdefault(full_name, []).append(address)
                assert all(served.get(name, described) == described for name, described in methods.items())
                served |= methods
        view = View(plane.objects.a, PARTITION, LEAVES[0], plane.objects.secret)
        made = World(plane, probe, view, served)
        made.before = await made.state()
        yield made
        await probe.close()


async def _reflected(channel: grpc.aio.Channel) -> AsyncIterator[tuple[str, dict[str, bytes]]]:
    """The services of a running server, with their RPCs."""
    stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)

    async def ask(**question: str) -> Any:
        async for answer in stub.ServerReflectionInfo(
            iter([reflection_pb2.ServerReflectionRequest(**question)]), timeout=10
        ):
            return answer
        raise AssertionError("reflection did not answer")

    listed = await ask(list_services="")
    for service in listed.list_services_response.service:
        if service.name in _COMMON:
            continue
        found = await ask(file_containing_symbol=service.name)
        file = FileDescriptorProto.FromString(found.file_descriptor_response.file_descriptor_proto[0])
        short = service.name.rpartition(".")[2]
        described = next(each for each in file.service if each.name == short)
        yield service.name, {f"{short}.{each.name}": each.SerializeToString() for each in described.method}


def test_the_running_servers_serve_what_the_contracts_say_and_nothing_else(world: World) -> None:
    contracts = {}
    for name, method in METHODS.items():
        file = FileDescriptorProto()
        method.containing_service.file.CopyToProto(file)
        described = next(each for each in file.service if each.name == method.containing_service.name)
        contracts[name] = next(each for each in described.method if each.name == method.name).SerializeToString()
    assert world.served == contracts


@pytest.mark.parametrize("name", METHODS)
async def test_whoever_is_nobody_is_refused(name: str, world: World) -> None:
    cast = world.cast
    # Every service asks tenancy about tokens: what could be wrong with one is tried at length with an RPC of each.
    more = cast.worse_tokens if METHODS[name].index == 0 else ()
    cases = [(who, NOBODY) for who in (*cast.bad_tokens, *more, *cast.bad_certificates)]
    cases += [(who, {Code.UNAVAILABLE}) for who in cast.no_connection]
    if not RULES[name].public:
        cases.append((Who("a client's certificate alone"), NOBODY))
    await _all_refused(name, world, cases)


@pytest.mark.parametrize("name", METHODS)
async def test_whoever_may_not_is_refused(name: str, world: World) -> None:
    cases = list(_refused(RULES[name], world))
    if "machine" in RULES[name].agents and "session" in METHODS[name].input_type.fields_by_name:
        cases.append((Who(OLD_BOOT, OLD_BOOT), DENIED))
    await _all_refused(name, world, cases)


async def _all_refused(name: str, world: World, cases: list[tuple[Who, set[Code]]]) -> None:
    """All at once, since each waits for its services most of the time."""
    wrong = await asyncio.gather(*(world.check(name, who, codes) for who, codes in cases))
    assert not any(wrong), f"{name}: " + "; ".join(each for several in wrong for each in several)


@pytest.mark.parametrize("name", METHODS)
async def test_a_stranger_learns_nothing_of_what_is_there(name: str, world: World) -> None:
    """What exists and is hidden gets the same answer as what does not exist, but for the ids that were asked about."""
    wrong = []
    missing = world.view.missing()
    for (who, codes), server in product(_strangers(RULES[name], world), world.servers(name)):
        answer = await world.call(name, who, server=server)
        other = await world.call(name, who, missing, server)
        wrong += _unlike(who, answer, codes)
        told = answer.tells(world.view.owned.secret - _asked(name, world.view))
        if told:
            wrong.append(f"{who.name} is told {told}")
        # His own project tells a member of A's tenant that the tenant is there.
        sibling = who.name == "owner of a sibling project" and answer.ok and other.ok
        if not sibling and (answer.code, _neutral(answer, world.view)) != (other.code, _neutral(other, missing)):
            wrong.append(f"{who.name} can tell: {answer.code} {answer.status} is not {other.code} {other.status}")
    assert not wrong, f"{name}: " + "; ".join(wrong)


@pytest.mark.parametrize("name", [name for name, rule in RULES.items() if rule.scope_path])
async def test_nobody_reaches_others_things_by_naming_his_own_scope(name: str, world: World) -> None:
    """The scope of a request is the caller's own, and everything else in it is A's."""
    rule, wrong, b = RULES[name], [], world.plane.objects.b
    scopes: list[tuple[Who, str]] = []
    if rule.role:
        tenant = rule.scope == ScopeKind.SCOPE_KIND_TENANT
        scopes.append((world.cast.user("owner elsewhere"), b.tenant if tenant else b.project))
    own = {"machine": b.machine, "leaf": LEAVES[1], "boot": ELSEWHERE, "bmc": ELSEWHERE}
    scopes += [(agents(world.plane)[kind][1][0], own[kind]) for kind in sorted(rule.agents)]
    for who, scope in scopes:
        request = in_scope(METHODS[name], rule, world.view, scope)
        content = request.SerializeToString()
        theirs = {each for each in world.view.owned.secret if each.encode() in content}
        # Names of users are nobody's.
        if not theirs - {world.view.owned.user, *world.view.owned.members}:
            continue
        answer = await world.bytes(name, who, request)
        told = answer.tells(world.view.owned.secret - theirs)
        if told:
            wrong.append(f"{who.name} is told {told}")
        if rule.effect != Effect.EFFECT_READ and name not in HARMLESS:
            wrong += _unlike(who, _of_its_change(name, answer), NOT_SO)
    assert not wrong, f"{name}: " + "; ".join(wrong)


def _of_its_change(name: str, answer: Answer) -> Answer:
    """The answer to the one change of a stream that answers each of its changes; of other methods the answer itself."""
    if name != "IpService.ExchangeIps" or not answer.messages:
        return answer
    [change] = ip_pb2.ExchangeIpsResponse.FromString(answer.messages[0]).answers
    return replace(answer, code=next(code for code in Code if code.value[0] == change.error.code))


@pytest.mark.parametrize(
    "name",
    [
        name
        for name, rule in RULES.items()
        if rule.users and rule.effect == Effect.EFFECT_READ and name.partition(".")[2].startswith("List")
    ],
)
async def test_a_list_shows_only_what_the_caller_may_see(name: str, world: World) -> None:
    request = unfiltered(METHODS[name])
    # A member of another project of A's tenant knows which tenant that is.
    for who, known in (("owner elsewhere", set[str]()), ("owner of a sibling project", {world.view.owned.tenant})):
        answer = await world.bytes(name, world.cast.user(who), request)
        assert answer.ok
        told = answer.tells(world.view.owned.secret - known)
        assert not told, f"{name}: {who} is told {told}"
    if name not in CATALOGUE:
        mine = [await world.bytes(name, world.cast.user(f"{each} viewer"), request) for each in ("project", "tenant")]
        assert any(answer.tells(world.view.owned.secret) for answer in mine), f"{name}: A does not see his own"


async def test_nothing_has_changed_by_all_that_was_refused(world: World) -> None:
    """Runs after the refusals and before anything is changed on purpose: a module's tests run in their order."""
    after = await world.state()
    changed = [name for name, content in world.before.items() if after[name] != content]
    assert not changed


async def _change_allocation(world: World, id_: str, text: str) -> None:
    name = "AllocationService.UpdateAllocation"
    request: Any = request_for(METHODS[name], RULES[name], world.view)
    request.allocation.id, request.allocation.spec.description = id_, text
    assert (await world.bytes(name, world.cast.user("plane operator"), request)).ok


async def _change_machine(world: World, id_: str, text: str) -> None:
    name = "MachineService.UpdateMachine"
    request: Any = request_for(METHODS[name], RULES[name], world.view)
    request.machine.id, request.machine.description = id_, text
    assert (await world.bytes(name, world.cast.user("plane operator"), request)).ok


async def _change_address(world: World, id_: str, text: str) -> None:
    name = "IpService.UpdateIp"
    request: Any = request_for(METHODS[name], RULES[name], world.view)
    request.ip.address, request.ip.network, request.ip.description = id_, "", text
    request.update_mask.paths[:] = ["description"]
    assert (await world.bytes(name, world.cast.user("plane operator"), request)).ok


async def _change_network(world: World, id_: str, text: str) -> None:
    name = "NetworkService.UpdateNetwork"
    request: Any = request_for(METHODS[name], RULES[name], world.view)
    request.network.id, request.network.description, request.update_mask.paths[:] = id_, text, ["description"]
    assert (await world.bytes(name, world.cast.user("plane operator"), request)).ok


# How to change a thing that a watch tells of, and which.
CHANGES: dict[str, tuple[Callable[[World, str, str], Awaitable[None]], str]] = {
    "AllocationService.WatchAllocations": (_change_allocation, "allocation"),
    "IpService.WatchIps": (_change_address, "address"),
    "MachineService.WatchMachines": (_change_machine, "machine"),
    "NetworkService.WatchNetworks": (_change_network, "network"),
}


@pytest.mark.parametrize(
    "name", [name for name, rule in RULES.items() if rule.users and METHODS[name].server_streaming]
)
async def test_a_watch_tells_of_what_the_caller_may_see_and_of_nothing_else(name: str, world: World) -> None:
    assert name in CHANGES, f"{name}: say in CHANGES how to change what it tells of"
    change, kind = CHANGES[name]
    theirs, own = (str(getattr(owned, kind)) for owned in (world.plane.objects.a, world.plane.objects.b))
    request = unfiltered(METHODS[name]).SerializeToString()
    stranger, viewer = world.cast.user("owner elsewhere"), world.cast.user("project viewer")
    heard: dict[str, bytes] = {}
    async with (
        world.cast.following(METHODS[name], stranger, request) as strangers,
        world.cast.following(METHODS[name], viewer, request) as viewers,
        asyncio.timeout(10),
    ):
        heard["stranger"], heard["viewer"] = await anext(strangers), await anext(viewers)
        await change(world, theirs, "changed for A")
        await change(world, own, "changed for B")
        while b"changed for B" not in heard["stranger"]:
            heard["stranger"] += await anext(strangers)
        while b"changed for A" not in heard["viewer"]:
            heard["viewer"] += await anext(viewers)
    secret = [*world.view.owned.secret, "changed for A"]
    assert not [each for each in secret if each.encode() in heard["stranger"]]


def _asked(name: str, view: View) -> frozenset[str]:
    """The ids that a request has in it: to get those back tells nothing."""
    request = bytes_for(name, view)
    return frozenset(each for each in view.owned.secret if each.encode() in request)


def _neutral(answer: Answer, view: View) -> bytes:
    """An answer with the ids that it was about taken out; both sides' ids have the same lengths but for addresses."""
    own = view.owned
    # The position of a watch counts the transactions of the whole service, whoever looks.
    content = str(answer.status) + repr([_POSITION.sub(b"<position>", message) for message in answer.messages])
    singles = (own.tenant, own.project, own.network, own.machine, own.allocation, own.address, own.token, own.command)
    spares = (own.spare_tenants, own.spare_projects, own.spare_networks, own.spare_addresses, own.spare_tokens)
    for number, each in enumerate((*singles, *(one for several in spares for one in several))):
        content = content.replace(each, f"<{number}>")
    return content.encode()


def _refused(rule: Rule, world: World) -> Iterator[tuple[Who, set[Code]]]:
    """Everybody who is somebody and may not, with the ways in which he has to be refused."""
    if rule.public or rule.authenticated:
        return
    cast = world.cast
    if not rule.users:
        if rule.role > Role.ROLE_VIEWER:
            tenant = rule.scope == ScopeKind.SCOPE_KIND_TENANT
            small = next(word for word, role in ROLES.items() if role == rule.role - 1)
            yield cast.user(f"{'tenant' if tenant else 'project'} {small}"), DENIED
        elif not rule.role:
            yield cast.user("project owner"), DENIED
            yield cast.user("tenant owner"), DENIED
        if rule.plane_role != PlaneRole.PLANE_ROLE_VIEWER:
            yield cast.user("plane viewer"), DENIED
        if not rule.plane_role:
            yield cast.user("plane operator"), DENIED
    for service in SERVICES:
        if service not in rule.services:
            yield Who(f"service {service}", identity.service_id(service)), DENIED
    for kind, (own, others) in agents(world.plane).items():
        if kind in rule.agents:
            if rule.scope not in (ScopeKind.SCOPE_KIND_OBJECT, ScopeKind.SCOPE_KIND_UNSPECIFIED):
                yield from ((who, DENIED) for who in others)
        elif kind not in rule.services:
            yield from ((who, DENIED) for who in (own, *others))


def _strangers(rule: Rule, world: World) -> Iterator[tuple[Who, set[Code]]]:
    """Those who may make the call, but not about A's objects."""
    if rule.public or rule.authenticated:
        return
    codes = DENIED
    if rule.role:
        codes = HIDDEN
    elif rule.users:
        codes = {Code.OK, *HIDDEN, *DENIED} if rule.effect == Effect.EFFECT_READ else {*HIDDEN, *DENIED}
    yield world.cast.user("owner elsewhere"), codes
    yield world.cast.user("owner of a sibling project"), codes
    for kind, (_, others) in agents(world.plane).items():
        if kind in rule.agents and rule.scope == ScopeKind.SCOPE_KIND_OBJECT:
            yield from ((who, HIDDEN) for who in others)
        elif kind in rule.agents and rule.scope == ScopeKind.SCOPE_KIND_UNSPECIFIED:
            yield from ((who, {Code.OK, *HIDDEN, *DENIED}) for who in others)


def _unlike(who: Who, answer: Answer, codes: set[Code]) -> list[str]:
    """What is wrong with an answer; nothing when it is one of those."""
    if answer.code in codes:
        return []
    return [f"{who.name} got {answer.code.name} ({answer.status.message}), not {'/'.join(each.name for each in codes)}"]


def _rightful(rule: Rule, world: World) -> list[Who]:
    """One caller for each way in that an access option opens."""
    plane, found = world.plane, []
    if rule.public:
        found.append(Who("anybody with a connection"))
    if rule.role:
        tenant = rule.scope == ScopeKind.SCOPE_KIND_TENANT
        word = next(word for word, role in ROLES.items() if role == rule.role)
        found.append(world.cast.user(f"{'tenant' if tenant else 'project'} {word}"))
    if rule.plane_role:
        word = "viewer" if rule.plane_role == PlaneRole.PLANE_ROLE_VIEWER else "operator"
        found.append(world.cast.user(f"plane {word}"))
    if rule.users or rule.authenticated:
        found += [world.cast.user("user himself" if rule.effect == Effect.EFFECT_WRITE else "project viewer")]
    found += [Who(f"service {name}", identity.service_id(name)) for name in sorted(rule.services)]
    found += [agents(plane)[kind][0] for kind in sorted(rule.agents)]
    return found


# Calls that take something away come last, and what others stand on comes after these.
_LAST = ("Unbind", "Disconnect", "Detach", "Free", "Revoke", "Release", "Remove", "Delete")
_VERY_LAST = ("DeleteMachine", "DeleteBmc", "DeleteNetwork", "DeleteProject", "DeleteTenant", "DeletePartition")


def _order(name: str) -> tuple[int, int]:
    method = name.partition(".")[2]
    kind = next((number for number, word in enumerate(_LAST, start=1) if method.startswith(word)), 0)
    writes = RULES[name].effect == Effect.EFFECT_WRITE
    return kind or (0 if writes else -1), _VERY_LAST.index(method) if method in _VERY_LAST else -1


@pytest.mark.parametrize("name", sorted(METHODS, key=_order))
async def test_the_same_request_by_the_rightful_is_let_through(name: str, world: World) -> None:
    """Without this, a request that is wrong in itself would pass for a refusal."""
    rule, wrong = RULES[name], []
    codes = {Code.OK} if rule.effect != Effect.EFFECT_WRITE else {Code.OK, *TOO_LATE}
    codes |= {Code.UNAVAILABLE} if name in ASKS_BMC else set()
    ways = _rightful(rule, world)
    assert ways, "nobody may call it, or this test does not know who"
    for turn, who in enumerate(ways):
        wrong += await world.check(name, who, codes, replace(world.view, turn=turn))
    assert not wrong, f"{name}: " + "; ".join(wrong)
