"""The whole way of a decision, from what is stored to yes or no, equals a model of a few plain lines.

The way: tenancy checks the signature and what it has on record (`Issuer.check`), says what the token is worth, every
service makes a caller of that (`caller_of`) and decides by the access option, and the handler asks about its object.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any, TypeVar

from hypothesis import given, settings
from hypothesis import strategies as st
from joserfc.jwk import OKPKey
from metal_kit.access import Rule, decide
from metal_kit.errors import NotFound, PermissionDenied, Unauthenticated
from metal_kit.identity import Caller, parse_spiffe
from metal_kit.tokens import caller_of
from metal_tenancy.api.messages import token_message
from metal_tenancy.issuing import Issuer
from metal_tenancy.roles import OPERATOR, VIEWER, Grants, check_grantable, check_personal
from metal_tenancy.signing import Claims, Signer
from metal_tenancy.store import TokenRow
from metalplane.common.v1.access_pb2 import ScopeKind

T = TypeVar("T")
NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
SIGNER = Signer([OKPKey.generate_key("Ed25519", auto_kid=True)])
PROJECTS, TENANTS, USERS = ("p1", "p2", "p3"), ("t1", "t2"), ("anna", "bert")
GONE = "gone"
MACHINES = ("00000001-0051-3510-8052-b4c04f4e3132", "00000002-0051-3510-8052-b4c04f4e3132")
CERTIFICATES = (
    "service/allocation", "service/ipam", "client/tool", "partition/fra1/boot", "partition/fra2/boot",
    "partition/fra1/bmc", "partition/fra1/leaf/leaf1", "partition/fra1/leaf/leaf2",
    *(f"machine/{each}" for each in MACHINES),
)  # fmt: skip
SCOPES = {
    ScopeKind.SCOPE_KIND_PROJECT: (*PROJECTS, GONE),
    ScopeKind.SCOPE_KIND_OBJECT: (*PROJECTS, GONE),
    ScopeKind.SCOPE_KIND_TENANT: TENANTS,
    ScopeKind.SCOPE_KIND_MACHINE: MACHINES,
    ScopeKind.SCOPE_KIND_LEAF: ("leaf1", "leaf2"),
    ScopeKind.SCOPE_KIND_PARTITION: ("fra1", "fra2"),
    ScopeKind.SCOPE_KIND_UNSPECIFIED: ("",),
}
OF_ROLES = (ScopeKind.SCOPE_KIND_PROJECT, ScopeKind.SCOPE_KIND_TENANT, ScopeKind.SCOPE_KIND_OBJECT)


@dataclass
class World:
    """What is on record: whose member is who, and which project is which tenant's."""

    tenant_of: Mapping[str, str]
    memberships: Mapping[str, Grants]
    tokens: dict[str, TokenRow] = field(default_factory=dict)

    # As the stores say it

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[None]:
        yield

    def now(self) -> datetime:
        return NOW

    async def get(self, _: object, token: str) -> TokenRow | None:
        return self.tokens.get(token)

    async def of_user(self, _: object, user: str) -> Grants:
        return self.memberships[user]

    async def tenants(self, _: object, projects: Any, tenants: Any) -> dict[str, str]:
        return {each: owner for each, owner in self.tenant_of.items() if each in projects or owner in tenants}

    @property
    def issuer(self) -> Issuer:
        return Issuer(self, SIGNER, self, self, self, self)  # type: ignore[arg-type]


def at_once(coroutine: Coroutine[Any, Any, T]) -> T:
    """What a coroutine gives that waits for nothing."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        return done.value  # type: ignore[no-any-return]
    raise AssertionError("it waits for something")


# The model


def has(world: World, token: TokenRow, scope: str) -> tuple[int, int]:
    """The role of a token's bearer at a project or tenant, and on the plane."""

    def on(roles: Grants) -> int:
        owner = world.tenant_of.get(scope, scope)
        return max(roles.tenants.get(owner, 0), roles.projects.get(scope, 0) if scope in world.tenant_of else 0)

    member, said = on(world.memberships[token.username]), on(token.grants)
    if token.login or token.grants.personal:
        return member, token.plane_role if token.login else 0
    return (said, token.plane_role) if token.by_operator else (min(said, member), 0)


def model(world: World, rule: Rule, token: TokenRow, scope: str) -> str:
    """yes, no, hidden (from who may not even see it), or nobody."""
    if token.revoke_time or token.expire_time <= NOW:
        return "nobody"
    role, plane = has(world, token, scope)
    by_role = rule.role and (role >= rule.role or plane == OPERATOR or (plane and rule.role == VIEWER))
    if rule.users or by_role or (rule.plane_role and plane >= rule.plane_role):
        return "yes"
    return "hidden" if rule.role and not (role or plane) else "no"


def model_of_certificates(rule: Rule, certificate: str, scope: str) -> str:
    kind, name, partition = read(certificate)
    if kind == "client":
        return "nobody"
    if kind in rule.agents:
        own = partition if kind in ("boot", "bmc") else name
        return "yes" if rule.scope == ScopeKind.SCOPE_KIND_UNSPECIFIED or scope == own else "no"
    return "yes" if (name if kind == "service" else kind) in rule.services else "no"


def read(certificate: str) -> tuple[str, str, str]:
    """Kind, name and partition of a certificate."""
    parts = certificate.split("/")
    if parts[0] != "partition":
        return parts[0], parts[1], ""
    return parts[2], parts[-1], parts[1]


# The real thing


def caller_by(world: World, token: TokenRow) -> Caller:
    """Whom a token speaks for. Raises Unauthenticated."""
    world.tokens[token.id] = token
    secret = SIGNER.sign(Claims(token.id, token.username), issued=NOW - timedelta(days=2), expires=token.expire_time)
    row, worth = at_once(world.issuer.check(secret))
    return caller_of(token_message(row, worth))


def real(rule: Rule, caller: Caller | None, scope: str) -> str:
    """What comes of a call; of nobody's without a caller."""
    if caller is None:
        return "nobody"
    try:
        decide(rule, caller, SimpleNamespace(scope=scope))  # type: ignore[arg-type]
        by_plane = rule.plane_role and caller.plane_role >= rule.plane_role
        # What `access.settled` demands of a handler.
        asks = rule.scope == ScopeKind.SCOPE_KIND_OBJECT and rule.role and caller.kind == "user"
        if asks and not (rule.users or by_plane):
            caller.require_project(scope, rule.role, what="the thing")
    except Unauthenticated:
        return "nobody"
    except NotFound:
        return "hidden"
    except PermissionDenied:
        return "no"
    return "yes"


# Any world, any rule, any caller

roles = st.integers(1, 3)
grants = st.builds(
    Grants,
    projects=st.dictionaries(st.sampled_from((*PROJECTS, GONE)), roles, max_size=3),
    tenants=st.dictionaries(st.sampled_from(TENANTS), roles, max_size=2),
    plane=st.sampled_from((0, 0, 1, 2)),
)
memberships = grants.map(
    lambda found: Grants({each: role for each, role in found.projects.items() if each != GONE}, found.tenants)
)
worlds = st.builds(
    World,
    tenant_of=st.fixed_dictionaries({each: st.sampled_from(TENANTS) for each in PROJECTS}),
    memberships=st.fixed_dictionaries(dict.fromkeys(USERS, memberships)),
)


@st.composite
def tokens(draw: st.DrawFn) -> TokenRow:
    by_operator, login = draw(st.sampled_from([(False, False), (True, False), (False, True)]))
    said = draw(grants)
    if login:
        said = Grants(plane=said.plane)
    elif not by_operator:
        said = replace(said, plane=0)
    hours = draw(st.sampled_from((-1, 0, 1, 1, 1, 1)))
    return TokenRow(
        id="token", username=draw(st.sampled_from(USERS)), description="", project_roles=said.projects,
        tenant_roles=said.tenants, plane_role=said.plane, by_operator=by_operator, login=login, creator="user:x",
        create_time=NOW - timedelta(days=2), expire_time=NOW + timedelta(hours=hours),
        revoke_time=draw(st.sampled_from((None, None, None, NOW))),
    )  # fmt: skip


@st.composite
def rules(draw: st.DrawFn) -> Rule:
    scope = draw(st.sampled_from([*SCOPES, *OF_ROLES]))
    # As contracts have it: agents are bound to what names them, roles to projects, tenants and objects.
    agents = {
        ScopeKind.SCOPE_KIND_MACHINE: ("machine",),
        ScopeKind.SCOPE_KIND_LEAF: ("leaf",),
        ScopeKind.SCOPE_KIND_PARTITION: ("boot", "bmc"),
        ScopeKind.SCOPE_KIND_UNSPECIFIED: ("leaf", "machine", "boot", "bmc"),
    }.get(scope, ())
    return Rule(
        public=False,
        authenticated=False,
        users=draw(st.sampled_from((False, False, False, True))),
        role=draw(st.integers(0, 3)) if scope in OF_ROLES else 0,  # type: ignore[arg-type]
        plane_role=draw(st.integers(0, 2)),  # type: ignore[arg-type]
        services=draw(st.frozensets(st.sampled_from(("allocation", "ipam", "boot", "bmc")), max_size=2)),
        agents=draw(st.frozensets(st.sampled_from(agents), max_size=2)) if agents else frozenset(),
        scope=scope,
        scope_path=() if scope in (ScopeKind.SCOPE_KIND_UNSPECIFIED, ScopeKind.SCOPE_KIND_OBJECT) else ("scope",),
    )


@settings(max_examples=80)
@given(
    world=worlds, some_rules=st.lists(rules(), min_size=1, max_size=4), some=st.lists(tokens(), min_size=1, max_size=2)
)
def test_what_a_token_may_equals_the_model(world: World, some_rules: list[Rule], some: list[TokenRow]) -> None:
    for token in some:
        try:
            caller = caller_by(world, token)
        except Unauthenticated:
            caller = None
        for rule in some_rules:
            for scope in SCOPES[rule.scope]:
                assert real(rule, caller, scope) == model(world, rule, token, scope), (rule, token, scope)


@given(rule=rules(), certificate=st.sampled_from(CERTIFICATES))
def test_what_a_certificate_may_equals_the_model(rule: Rule, certificate: str) -> None:
    caller = parse_spiffe(f"spiffe://metalplane/{certificate}")
    for scope in SCOPES[rule.scope]:
        assert real(rule, caller, scope) == model_of_certificates(rule, certificate, scope), scope


# Tokens that are made with tokens


def narrower(held: Grants) -> st.SearchStrategy[Grants]:
    """Some of what is held, or less of it."""

    def some(of: Mapping[str, int]) -> st.SearchStrategy[dict[str, int]]:
        return st.fixed_dictionaries({}, optional={each: st.integers(1, role) for each, role in of.items()})

    return st.builds(Grants, some(held.projects), some(held.tenants), st.integers(0, held.plane))


def made_with(world: World, maker: TokenRow, held: Grants, wanted: Grants) -> TokenRow | None:
    """A token for oneself, as CreateToken grants it; None when it refuses."""
    operator = held.plane >= OPERATOR
    try:
        if not operator:
            if wanted.personal:
                check_personal(maker.grants, login=maker.login)
            tenant_of = at_once(world.tenants(None, wanted.projects, []))
            check_grantable(wanted, held, world.memberships[maker.username], tenant_of)
    except PermissionDenied:
        return None
    return replace(
        maker, project_roles=wanted.projects, tenant_roles=wanted.tenants, plane_role=wanted.plane,
        by_operator=operator, login=False,
    )  # fmt: skip


@given(world=worlds, first=tokens(), later=worlds, data=st.data())
def test_a_token_made_with_tokens_may_nothing_that_the_first_one_may_not(
    world: World, first: TokenRow, later: World, data: st.DataObject
) -> None:
    """Neither when it is made nor after memberships have changed."""
    first = last = replace(first, expire_time=NOW + timedelta(hours=1), revoke_time=None)
    for _ in range(3):
        caller = caller_by(world, last)
        held = Grants(caller.projects, caller.tenants, caller.plane_role)
        # Some of what the token has, of what its user has, or anything.
        wanted = data.draw(st.one_of(narrower(held), narrower(world.memberships[last.username]), grants))
        last = made_with(world, last, held, wanted) or last
    later.tenant_of = world.tenant_of
    for at in (world, later):
        for scope in (*PROJECTS, *TENANTS):
            (role, plane), (most, most_plane) = has(at, last, scope), has(at, first, scope)
            assert plane <= most_plane
            assert role <= most or most_plane == OPERATOR
