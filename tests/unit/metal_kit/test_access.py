"""The decision who may call, for each kind of caller and rule; and that every contract declares a rule that works."""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any
from uuid import uuid4

import metalplane
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool
from metal_kit.access import AccessRuleError, Rule, decide, read_rule, rules_of, service_descriptor
from metal_kit.errors import InvalidArgument, NotFound, PermissionDenied, Problem, Unauthenticated
from metal_kit.identity import ANONYMOUS, Caller
from metalplane.common.v1 import access_pb2
from metalplane.common.v1.access_pb2 import Effect, PlaneRole, Role, ScopeKind
from metalplane.ipam.v1.network_pb2 import CreateNetworkRequest, Network

PROJECT = "0198c1d2-0000-7000-8000-000000000001"
MACHINE = "4c4c4544-0051-3510-8052-b4c04f4e3132"
DEFAULTS: dict[str, Any] = {
    "public": False, "authenticated": False, "users": False, "role": 0, "plane_role": 0, "services": frozenset(),
    "agents": frozenset(), "scope": ScopeKind.SCOPE_KIND_UNSPECIFIED, "scope_path": (),
}  # fmt: skip
CALLERS = {
    "anonymous": ANONYMOUS,
    "client": Caller("client", "tool"),
    "ipam": Caller("service", "ipam"),
    "leaf": Caller("leaf", "leaf1", partition="p1"),
    "machine": Caller("machine", MACHINE, machine=MACHINE),
    "bmc": Caller("bmc", "p1", partition="p1"),
    "boot": Caller("boot", "p1", partition="p1"),
    "stranger": Caller("user", "s"),
    "viewer": Caller("user", "v", projects={PROJECT: Role.ROLE_VIEWER}),
    "editor": Caller("user", "e", projects={PROJECT: Role.ROLE_EDITOR}),
    "plane viewer": Caller("user", "pv", plane_role=PlaneRole.PLANE_ROLE_VIEWER),
    "operator": Caller("user", "op", plane_role=PlaneRole.PLANE_ROLE_OPERATOR),
}
PEOPLE = {"stranger", "viewer", "editor", "plane viewer", "operator"}
AUTHENTICATED = set(CALLERS) - {"anonymous", "client"}


def _rule(**values: Any) -> Rule:
    return Rule(**DEFAULTS | values)


def _request(scope: str = PROJECT) -> CreateNetworkRequest:
    return CreateNetworkRequest(network=Network(project=scope))


def _let_in(rule: Rule, request: Any = None) -> set[str]:
    allowed = set()
    for name, caller in CALLERS.items():
        try:
            decide(rule, caller, request)
        except Problem:
            continue
        allowed.add(name)
    return allowed


@pytest.mark.parametrize(
    ("rule", "allowed"),
    [
        (_rule(public=True), set(CALLERS)),
        (_rule(authenticated=True), AUTHENTICATED),
        (_rule(users=True), PEOPLE),
        (_rule(users=True, services=frozenset({"ipam"})), {*PEOPLE, "ipam"}),
        (_rule(services=frozenset({"ipam"})), {"ipam"}),
        (_rule(services=frozenset({"fabric"})), set()),
        (_rule(services=frozenset({"boot", "bmc"})), {"boot", "bmc"}),
        (_rule(plane_role=PlaneRole.PLANE_ROLE_VIEWER), {"plane viewer", "operator"}),
        (_rule(plane_role=PlaneRole.PLANE_ROLE_OPERATOR), {"operator"}),
        (_rule(plane_role=PlaneRole.PLANE_ROLE_OPERATOR, services=frozenset({"ipam"})), {"operator", "ipam"}),
        (_rule(agents=frozenset({"leaf"}), scope=ScopeKind.SCOPE_KIND_OBJECT), {"leaf"}),
        (_rule(role=Role.ROLE_VIEWER, scope=ScopeKind.SCOPE_KIND_OBJECT), PEOPLE),
    ],
)
def test_who_is_let_in_without_a_look_at_the_request(rule: Rule, allowed: set[str]) -> None:
    assert _let_in(rule) == allowed


@pytest.mark.parametrize(
    ("role", "allowed"),
    [
        (Role.ROLE_VIEWER, {"viewer", "editor", "plane viewer", "operator"}),
        (Role.ROLE_EDITOR, {"editor", "operator"}),
        (Role.ROLE_OWNER, {"operator"}),
    ],
)
def test_roles_count_on_the_project_of_the_request(role: Role.ValueType, allowed: set[str]) -> None:
    rule = _rule(role=role, scope=ScopeKind.SCOPE_KIND_PROJECT, scope_path=("network", "project"))
    assert _let_in(rule, _request()) == allowed
    assert _let_in(rule, _request("another")) == allowed & {"plane viewer", "operator"}
    assert _let_in(rule, CreateNetworkRequest()) == set()


@pytest.mark.parametrize(
    ("kind", "scope", "own"),
    [
        ("machine", ScopeKind.SCOPE_KIND_MACHINE, MACHINE),
        ("leaf", ScopeKind.SCOPE_KIND_LEAF, "leaf1"),
        ("leaf", ScopeKind.SCOPE_KIND_PARTITION, "p1"),
        ("bmc", ScopeKind.SCOPE_KIND_PARTITION, "p1"),
        ("boot", ScopeKind.SCOPE_KIND_PARTITION, "p1"),
    ],
)
def test_an_agent_speaks_for_itself_only(kind: str, scope: ScopeKind.ValueType, own: str) -> None:
    rule = _rule(agents=frozenset({kind}), scope=scope, scope_path=("network", "project"))
    assert _let_in(rule, _request(own)) == {kind}
    for other in ("", "p2", own.upper() if own.upper() != own else "x"):
        assert _let_in(rule, _request(other)) == set()


def test_the_line_for_an_agent_comes_before_the_line_for_its_service() -> None:
    rule = _rule(
        agents=frozenset({"boot"}), services=frozenset({"boot"}), scope=ScopeKind.SCOPE_KIND_PARTITION,
        scope_path=("network", "project"),
    )  # fmt: skip
    with pytest.raises(PermissionDenied):
        decide(rule, CALLERS["boot"], _request("p2"))


@pytest.mark.parametrize(
    ("caller", "request_", "error"),
    [
        ("anonymous", _request(), Unauthenticated),
        ("client", _request(), Unauthenticated),
        ("stranger", _request(), NotFound),
        ("viewer", _request(), PermissionDenied),
        ("editor", CreateNetworkRequest(), InvalidArgument),
        ("leaf", _request(), PermissionDenied),
    ],
)
def test_a_refusal_says_what_the_caller_may_know(caller: str, request_: Any, error: type[Problem]) -> None:
    rule = _rule(role=Role.ROLE_EDITOR, scope=ScopeKind.SCOPE_KIND_PROJECT, scope_path=("network", "project"))
    with pytest.raises(error):
        decide(rule, CALLERS[caller], request_)


def _services() -> list[str]:
    for module in pkgutil.walk_packages(metalplane.__path__, "metalplane."):
        if module.name.endswith("_pb2"):
            importlib.import_module(module.name)
    names = []
    for module in pkgutil.walk_packages(metalplane.__path__, "metalplane."):
        if module.name.endswith("_pb2"):
            file = descriptor_pool.Default().FindFileByName(module.name[:-4].replace(".", "/") + ".proto")
            names += [service.full_name for service in file.services_by_name.values()]
    return names


def test_every_rpc_of_the_contracts_declares_who_may_call_it() -> None:
    rules = rules_of(_services())
    assert len(rules) > 50
    public = {name for name, rule in rules.items() if rule.public}
    assert public == {
        f"/metalplane.tenancy.v1.TokenService/{method}"
        for method in ("GetSigningKeys", "GetLoginMethods", "ExchangeIdToken")
    }
    for name, rule in rules.items():
        if not rule.public:
            with pytest.raises(Unauthenticated):
                decide(rule, CALLERS["client"], None)
            assert _strangers_are_kept_out(rule), name


def _strangers_are_kept_out(rule: Rule) -> bool:
    """A service that no rule names gets in nowhere but where everybody does."""
    try:
        decide(rule, Caller("service", "unheard-of"), None)
    except PermissionDenied:
        return True
    return rule.authenticated


def _described(**option: Any) -> Any:
    """A method with this option, as protoc would describe it."""
    file = descriptor_pb2.FileDescriptorProto(name=f"lone/{uuid4()}.proto", package=f"lone{uuid4().hex}")
    file.dependency.append("metalplane/common/v1/access.proto")
    file.message_type.add(name="Empty")
    name = f".{file.package}.Empty"
    method = file.service.add(name="Lone").method.add(name="Call", input_type=name, output_type=name)
    method.options.Extensions[access_pb2.access].CopyFrom(access_pb2.Access(**option))
    descriptor_pool.Default().Add(file)  # type: ignore[no-untyped-call]
    return service_descriptor(f"{file.package}.Lone").methods[0]


@pytest.mark.parametrize(
    ("option", "complaint"),
    [
        ({"public": True}, "set effect"),
        ({"effect": Effect.EFFECT_READ}, "lets nobody in"),
        ({"users": True, "effect": Effect.EFFECT_READ, "routine": True}, "not audited"),
        ({"role": Role.ROLE_VIEWER, "effect": Effect.EFFECT_READ}, "needs a project"),
        ({"users": True, "effect": Effect.EFFECT_READ, "scope": ScopeKind.SCOPE_KIND_PROJECT}, "do not fit"),
    ],
)
def test_a_rule_that_cannot_work_keeps_the_server_from_starting(option: dict[str, Any], complaint: str) -> None:
    with pytest.raises(AccessRuleError, match=complaint):
        read_rule(_described(**option))


def test_a_refusal_names_what_would_have_opened() -> None:
    operate = _rule(plane_role=PlaneRole.PLANE_ROLE_OPERATOR, services=frozenset({"allocation"}))
    with pytest.raises(PermissionDenied) as refused:
        decide(operate, CALLERS["editor"], None)
    assert "the plane role operator" in refused.value.message
    assert "the service allocation" in refused.value.message
    change = _rule(role=Role.ROLE_EDITOR, scope=ScopeKind.SCOPE_KIND_PROJECT, scope_path=("network", "project"))
    with pytest.raises(PermissionDenied) as too_small:
        decide(change, CALLERS["viewer"], _request())
    assert "needs the role editor on the project" in too_small.value.message
    assert "you have the role viewer there" in too_small.value.message
