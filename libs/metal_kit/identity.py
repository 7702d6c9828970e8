"""Who calls: certificate identities (SPIFFE ids, spiffe.io "SPIFFE-ID" section 2) and the roles of bearer tokens.

`current_caller()` is set by the interceptor for the length of a call. What a caller may do with which RPC is decided in
`metal_kit.access`; this module answers the questions that handlers ask about objects they have loaded.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from metalplane.common.v1.access_pb2 import (
    PLANE_ROLE_OPERATOR,
    PLANE_ROLE_UNSPECIFIED,
    PLANE_ROLE_VIEWER,
    ROLE_UNSPECIFIED,
    ROLE_VIEWER,
    PlaneRole,
    Role,
)

from metal_kit.errors import NotFound, PermissionDenied

Kind = Literal["service", "leaf", "machine", "bmc", "boot", "user", "client", "anonymous"]
RoleValue: TypeAlias = Role.ValueType
PlaneRoleValue: TypeAlias = PlaneRole.ValueType

TRUST_DOMAIN = "metalplane"
_SEGMENT = r"[A-Za-z0-9._-]{1,128}"
_UUID = r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
_SPIFFE = re.compile(
    rf"spiffe://{TRUST_DOMAIN}/(?:"
    rf"service/(?P<service>{_SEGMENT})"
    rf"|client/(?P<client>{_SEGMENT})"
    rf"|machine/(?P<machine>{_UUID})"
    rf"|partition/(?P<partition>{_SEGMENT})/(?:leaf/(?P<leaf>{_SEGMENT})|(?P<agent>bmc|boot))"
    r")",
    re.ASCII,
)


@dataclass(slots=True)
class Settled:
    """What the handler of one call has found the caller to have: the largest role that it asked for and that he has,
    the project that it asked about last, and the partition that he is an agent of."""

    role: RoleValue = ROLE_UNSPECIFIED
    project: str = ""
    partition: str = ""

    def note(self, scope: str, role: RoleValue, *, project: bool) -> None:
        """Remember that the caller has a role."""
        self.role = max(self.role, role)
        if project:
            self.project = scope


# Shared by the tasks of one call: what a handler asks in a task of its own counts too.
_settled: ContextVar[Settled] = ContextVar("metalplane_settled", default=Settled())  # noqa: B039 - outside of a call


@dataclass(frozen=True, slots=True)
class Caller:
    """The bearer of a call's credentials.

    `name` is unique within `kind`: the service's name, the leaf's host name, the machine's UUID, the partition of a bmc
    or boot agent, the user. `session` is the boot that a machine's certificate was made for. `client` is a certificate
    that opens a connection and authorises nothing by itself.
    """

    kind: Kind
    name: str = ""
    partition: str = ""
    machine: str = ""
    session: str = ""
    token_id: str = ""
    projects: Mapping[str, RoleValue] = field(default_factory=dict, hash=False)
    tenants: Mapping[str, RoleValue] = field(default_factory=dict, hash=False)
    plane_role: PlaneRoleValue = PLANE_ROLE_UNSPECIFIED

    @property
    def label(self) -> str:
        """`kind:name`, as logs, timelines and idempotency keys show a caller; a bare connection is `anonymous`."""
        return f"{self.kind}:{self.name}" if self.name else self.kind

    @property
    def authenticated(self) -> bool:
        """Whether the caller has proved to be somebody; a client certificate alone does not."""
        return self.kind not in {"anonymous", "client"}

    @property
    def is_service(self) -> bool:
        """Whether the caller is a service of the plane."""
        return self.kind == "service"

    def may_plane(self, role: PlaneRoleValue) -> bool:
        """Whether the caller has at least this role on the whole plane; services have every one."""
        return self.kind == "service" or (self.plane_role >= role and self.plane_role > 0)

    def may_project(self, project_id: str, role: RoleValue) -> bool:
        """Whether the caller has at least `role` on the project, by the project, the plane, or being a service."""
        return self._may(self.projects, project_id, role)

    def projects_with(self, role: RoleValue) -> list[str]:
        """Projects on which the caller has at least `role` by themselves, sorted; what the plane lends is not there."""
        return sorted(project for project, held in self.projects.items() if held >= role)

    def may_tenant(self, tenant_id: str, role: RoleValue) -> bool:
        """Whether the caller has at least `role` on the tenant, by the tenant, the plane, or being a service."""
        return self._may(self.tenants, tenant_id, role)

    def may_partition(self, partition: str) -> bool:
        """Whether the caller is of the plane (service, viewer) or an agent of this partition."""
        if self.partition and self.partition == partition:
            _settled.get().partition = partition
            return True
        return self.may_plane(PLANE_ROLE_VIEWER)

    def covers(self, other: Caller) -> bool:
        """Whether the caller has every role that `other` has."""
        return self.plane_role >= other.plane_role and all(
            mine.get(scope, 0) >= role
            for mine, theirs in ((self.projects, other.projects), (self.tenants, other.tenants))
            for scope, role in theirs.items()
        )

    def require_project(self, project_id: str, role: RoleValue, *, what: str) -> None:
        """Raise NotFound when the caller may not even see the project, PermissionDenied when he may only see it.

        `what` names the object of the request ("allocation 0198…"); the NotFound is the one of a missing object, so
        that a stranger learns nothing from it.
        """
        self._require(self.projects, project_id, role, what)

    def require_tenant(self, tenant_id: str, role: RoleValue, *, what: str) -> None:
        """The same for a tenant."""
        self._require(self.tenants, tenant_id, role, what)

    def require_partition(self, partition: str, *, what: str) -> None:
        """Raise NotFound unless `may_partition`."""
        if not self.may_partition(partition):
            raise missing(what)

    def _may(self, roles: Mapping[str, RoleValue], scope: str, role: RoleValue) -> bool:
        if not self._has(roles, scope, role):
            return False
        _settled.get().note(scope, max(role, ROLE_VIEWER), project=roles is self.projects)
        return True

    def _has(self, roles: Mapping[str, RoleValue], scope: str, role: RoleValue) -> bool:
        if self.kind == "service":
            return True
        if self.kind != "user":
            return False
        wanted = max(role, ROLE_VIEWER)
        if roles.get(scope, 0) >= wanted:
            return True
        if wanted == ROLE_VIEWER:
            return self.plane_role >= PLANE_ROLE_VIEWER
        return self.plane_role >= PLANE_ROLE_OPERATOR

    def _require(self, roles: Mapping[str, RoleValue], scope: str, role: RoleValue, what: str) -> None:
        if not self._may(roles, scope, ROLE_VIEWER):
            raise missing(what)
        if not self._may(roles, scope, role):
            needed = Role.Name(role).removeprefix("ROLE_").lower()
            raise PermissionDenied("ROLE_TOO_SMALL", f"this needs the role {needed} where {what} belongs")


ANONYMOUS = Caller("anonymous")
_current: ContextVar[Caller] = ContextVar("metalplane_caller", default=ANONYMOUS)


def current_caller() -> Caller:
    """The caller of the RPC that is running; ANONYMOUS outside of one."""
    return _current.get()


def set_current_caller(caller: Caller) -> Settled:
    """Set the caller for the present context; the interceptor does, and tests of domain code may. Answers what will be
    settled about him from now on."""
    _current.set(caller)
    found = Settled()
    _settled.set(found)
    return found


def require_project(project_id: str, role: RoleValue, *, what: str) -> None:
    """`Caller.require_project` for the current caller."""
    current_caller().require_project(project_id, role, what=what)


def require_tenant(tenant_id: str, role: RoleValue, *, what: str) -> None:
    """`Caller.require_tenant` for the current caller."""
    current_caller().require_tenant(tenant_id, role, what=what)


def missing(what: str) -> NotFound:
    """The NotFound for an object that does not exist; handlers use it so that hidden and missing look the same."""
    return NotFound("NOT_FOUND", f"{what} does not exist")


def parse_spiffe(uri: str) -> Caller | None:
    """The caller that a SPIFFE id of this plane names; None for any other URI."""
    match = _SPIFFE.fullmatch(uri)
    if match is None:
        return None
    part = match.groupdict()
    if part["service"]:
        return Caller("service", part["service"])
    if part["client"]:
        return Caller("client", part["client"])
    if part["machine"]:
        return Caller("machine", part["machine"], machine=part["machine"])
    if part["leaf"]:
        return Caller("leaf", part["leaf"], partition=part["partition"])
    return Caller("bmc" if part["agent"] == "bmc" else "boot", part["partition"], partition=part["partition"])


def service_id(name: str) -> str:
    """SPIFFE id of a service."""
    return f"spiffe://{TRUST_DOMAIN}/service/{name}"


def client_id(name: str) -> str:
    """SPIFFE id of a tool that connects and brings its authority as a bearer token."""
    return f"spiffe://{TRUST_DOMAIN}/client/{name}"


def machine_id(uuid: str) -> str:
    """SPIFFE id of the installer on a machine."""
    return f"spiffe://{TRUST_DOMAIN}/machine/{uuid}"


def leaf_id(partition: str, host: str) -> str:
    """SPIFFE id of the agent on a leaf switch."""
    return f"spiffe://{TRUST_DOMAIN}/partition/{partition}/leaf/{host}"


def partition_agent_id(partition: str, agent: Literal["bmc", "boot"]) -> str:
    """SPIFFE id of a partition's bmc or boot service."""
    return f"spiffe://{TRUST_DOMAIN}/partition/{partition}/{agent}"
