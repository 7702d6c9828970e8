"""Who may call which RPC: the `(metalplane.common.v1.access)` option of each method, read once and decided per call.

`decide` is pure. Rules whose scope is a property of a stored object (SCOPE_KIND_OBJECT) let every caller in who could
possibly be right; the handler then asks `Caller.require_project` and its like, and hides the object from the rest. That
it did is checked too: `settled` refuses the answer of a handler that has not asked.

A partition's bmc and boot services hold an agent's certificate. Where a rule lists their kind under `agents`, that line
and its scope apply to them; otherwise `bmc` and `boot` under `services` mean them too.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from google.protobuf import descriptor_pool
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message
from metalplane.common.v1 import access_pb2
from metalplane.common.v1.access_pb2 import (
    ROLE_UNSPECIFIED,
    ROLE_VIEWER,
    SCOPE_KIND_LEAF,
    SCOPE_KIND_MACHINE,
    SCOPE_KIND_OBJECT,
    SCOPE_KIND_PARTITION,
    SCOPE_KIND_PROJECT,
    SCOPE_KIND_TENANT,
    SCOPE_KIND_UNSPECIFIED,
    Agent,
    Effect,
    PlaneRole,
    Role,
    ScopeKind,
)

from metal_kit.errors import InvalidArgument, PermissionDenied, Unauthenticated
from metal_kit.identity import Caller, PlaneRoleValue, RoleValue, Settled, missing

_AGENT_KINDS = {
    Agent.AGENT_LEAF: "leaf",
    Agent.AGENT_MACHINE: "machine",
    Agent.AGENT_BMC: "bmc",
    Agent.AGENT_BOOT: "boot",
}
_HANDLER_DECIDES = (SCOPE_KIND_UNSPECIFIED, SCOPE_KIND_OBJECT)
_ROLE_SCOPES = (SCOPE_KIND_PROJECT, SCOPE_KIND_TENANT, SCOPE_KIND_OBJECT)


class AccessRuleError(Exception):
    """A method declares no access rule, or one that cannot work. The server must not start."""


@dataclass(frozen=True, slots=True)
class Rule:
    """The access option of one method, ready to be decided by."""

    public: bool
    authenticated: bool
    users: bool
    role: RoleValue
    plane_role: PlaneRoleValue
    services: frozenset[str]
    agents: frozenset[str]
    scope: ScopeKind.ValueType
    scope_path: tuple[str, ...]
    effect: Effect.ValueType = Effect.EFFECT_READ
    routine: bool = False

    @property
    def audited(self) -> bool:
        """Whether calls leave a trace in the audit log."""
        return self.effect != Effect.EFFECT_READ

    @property
    def scope_field(self) -> str:
        """The path of the scope field as callers know it."""
        return ".".join(self.scope_path)

    @property
    def needs_request(self) -> bool:
        """Whether the rule looks into the request."""
        return bool(self.scope_path) and not self.public

    def scope_of(self, request: Message | None) -> str:
        """The scope that a request names; empty when it names none."""
        value: Any = request
        for name in self.scope_path:
            value = getattr(value, name)
        return value if isinstance(value, str) else ""


def decide(rule: Rule, caller: Caller, request: Message | None) -> None:
    """Return when the caller may make this call, else raise.

    Unauthenticated: nobody in particular asks. NotFound: a user asks about a project or tenant that he may not see.
    InvalidArgument: the request leaves the scope open and the caller's rights depend on it. PermissionDenied: the rest.
    """
    if rule.public:
        return
    if not caller.authenticated:
        raise Unauthenticated("CREDENTIALS_MISSING", "this needs a bearer token (metadata `authorization: Bearer …`)")
    kind = caller.kind
    if kind in rule.agents:
        _decide_agent(rule, caller, request)
        return
    if kind == "user":
        if rule.users or (rule.plane_role and caller.plane_role >= rule.plane_role):
            return
        if rule.role:
            _decide_role(rule, caller, request)
            return
    elif (caller.name if kind == "service" else kind) in rule.services:
        return
    if rule.authenticated:
        return
    raise PermissionDenied("NOT_ALLOWED", f"a {kind} may not call this: it {_opened_by(rule)}")


def settled(rule: Rule, caller: Caller, found: Settled) -> bool:
    """Whether the handler has asked what it had to before it answered.

    Only rules whose scope is the object's own leave anything to it. A handler that forgot would show and change the
    objects of strangers; its answer is refused as a defect instead.
    """
    if rule.scope != SCOPE_KIND_OBJECT or rule.users:
        return True
    if caller.kind == "user":
        by_plane = rule.plane_role and caller.plane_role >= rule.plane_role
        return bool(by_plane or not rule.role or found.role >= rule.role)
    return caller.kind not in rule.agents or found.partition == caller.partition


def _opened_by(rule: Rule) -> str:
    """What would have let the caller in, for the one who wonders why it did not."""
    ways = []
    if rule.role:
        scope = {SCOPE_KIND_TENANT: "tenant"}.get(rule.scope, "project")
        ways.append(f"the role {role_word(rule.role)} on the {scope}")
    if rule.plane_role:
        ways.append(f"the plane role {plane_role_word(rule.plane_role)}")
    if rule.users:
        ways.append("a user's token")
    ways += [f"the certificate of the service {name}" for name in sorted(rule.services)]
    ways += [f"the certificate of a {kind}" for kind in sorted(rule.agents)]
    return f"needs {' or '.join(ways)}"


def role_word(role: RoleValue) -> str:
    """A role as people say it: viewer, editor, owner."""
    return Role.Name(role).removeprefix("ROLE_").lower()


def plane_role_word(role: PlaneRoleValue) -> str:
    """A role on the plane as people say it: viewer, operator."""
    return PlaneRole.Name(role).removeprefix("PLANE_ROLE_").lower()


def _decide_agent(rule: Rule, caller: Caller, request: Message | None) -> None:
    """An agent speaks for itself only: its machine, its host, its partition."""
    if rule.scope in _HANDLER_DECIDES:
        return
    own = {
        SCOPE_KIND_MACHINE: caller.machine,
        SCOPE_KIND_LEAF: caller.name if caller.kind == "leaf" else "",
        SCOPE_KIND_PARTITION: caller.partition,
    }.get(rule.scope, "")
    if not own or rule.scope_of(request) != own:
        raise PermissionDenied(
            "NOT_YOUR_SCOPE",
            f"{caller.label} may speak for itself only; set {rule.scope_field}",
            field=rule.scope_field,
        )


def _decide_role(rule: Rule, caller: Caller, request: Message | None) -> None:
    if rule.scope == SCOPE_KIND_OBJECT:
        return
    scope = rule.scope_of(request)
    if not scope:
        raise InvalidArgument("SCOPE_MISSING", f"{rule.scope_field}: must be set", field=rule.scope_field)
    tenant = rule.scope == SCOPE_KIND_TENANT
    may = caller.may_tenant if tenant else caller.may_project
    if may(scope, rule.role):
        return
    if not may(scope, ROLE_VIEWER):
        raise missing(f"{'tenant' if tenant else 'project'} {scope[:64]}")
    held = (caller.tenants if tenant else caller.projects).get(scope, ROLE_UNSPECIFIED)
    raise PermissionDenied(
        "ROLE_TOO_SMALL",
        f"this {_opened_by(rule)}; you have {f'the role {role_word(held)} there' if held else 'none of them'}",
    )


def rules_of(services: Iterable[str]) -> dict[str, Rule]:
    """The rule of each method of the named services, by full method name (`/package.Service/Method`).

    Raises AccessRuleError that lists every method without a rule, or with one that cannot work.
    """
    rules: dict[str, Rule] = {}
    defects: list[str] = []
    for service in services:
        for method in service_descriptor(service).methods:
            try:
                rules[f"/{service}/{method.name}"] = read_rule(method)
            except AccessRuleError as error:
                defects.append(str(error))
    if defects:
        raise AccessRuleError("; ".join(defects))
    return rules


def service_descriptor(full_name: str) -> ServiceDescriptor:
    """The descriptor of a service. Raises AccessRuleError when no imported contract has it."""
    try:
        return descriptor_pool.Default().FindServiceByName(full_name)
    except KeyError as error:
        raise AccessRuleError(f"no contract describes the service {full_name}") from error


def read_rule(method: MethodDescriptor) -> Rule:
    """The access option of a method. Raises AccessRuleError when it is absent, opens nothing or is contradictory."""
    options = method.GetOptions()
    if not options.HasExtension(access_pb2.access):
        raise AccessRuleError(f"{method.full_name} declares no access rule")
    option = options.Extensions[access_pb2.access]
    unknown = [number for number in option.agents if number not in _AGENT_KINDS]
    if unknown:
        raise AccessRuleError(f"{method.full_name}: unknown kind of agent {unknown}")
    rule = Rule(
        public=option.public,
        authenticated=option.authenticated,
        users=option.users,
        role=option.role,
        plane_role=option.plane_role,
        services=frozenset(option.services),
        agents=frozenset(_AGENT_KINDS[number] for number in option.agents),
        scope=option.scope,
        scope_path=tuple(option.scope_field.split(".")) if option.scope_field else (),
        effect=option.effect,
        routine=option.routine,
    )
    ways = (rule.public, rule.authenticated, rule.users, rule.role, rule.plane_role, rule.services, rule.agents)
    if not any(ways):
        raise AccessRuleError(f"{method.full_name}: the access rule lets nobody in")
    if rule.effect == Effect.EFFECT_UNSPECIFIED:
        raise AccessRuleError(f"{method.full_name}: the access rule does not say what a call does: set effect")
    if rule.routine and not rule.audited:
        raise AccessRuleError(f"{method.full_name}: routine is about the audit, and this method is not audited")
    if rule.role and rule.scope not in _ROLE_SCOPES:
        raise AccessRuleError(f"{method.full_name}: a role needs a project, a tenant or an object as its scope")
    if (rule.scope in _HANDLER_DECIDES) != (not rule.scope_path):
        raise AccessRuleError(f"{method.full_name}: scope and scope_field do not fit together")
    _check_path(method, rule.scope_path)
    return rule


def _check_path(method: MethodDescriptor, path: tuple[str, ...]) -> None:
    descriptor: Descriptor | None = method.input_type
    field: FieldDescriptor | None = None
    for name in path:
        field = descriptor.fields_by_name.get(name) if descriptor is not None else None
        if field is None:
            raise AccessRuleError(f"{method.full_name}: {method.input_type.name} has no field {'.'.join(path)}")
        descriptor = field.message_type
    if field is not None and (field.type != FieldDescriptor.TYPE_STRING or field.is_repeated):
        raise AccessRuleError(f"{method.full_name}: the scope field {'.'.join(path)} must be a single string")
