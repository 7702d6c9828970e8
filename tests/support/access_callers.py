"""Callers of every kind, good and bad, and calls of any RPC as one of them, down at the bytes."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import grpc
from access_objects import LEAVES, make_token
from access_plane import ELSEWHERE, PARTITION, AccessPlane
from access_requests import SESSION
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from google.protobuf.descriptor import MethodDescriptor
from google.rpc import status_pb2
from joserfc.jwk import OKPKey
from metal_kit import identity
from metal_kit.ca import Authority
from metal_kit.tls import Identity
from metal_tenancy.signing import Claims, Signer
from metalplane.common.v1.access_pb2 import PlaneRole, Role
from metalplane.tenancy.v1.token_pb2 import RevokeTokenRequest
from metalplane.tenancy.v1.token_pb2_grpc import TokenServiceStub

LIMIT = 10.0
OLD_BOOT = "the machine itself, of another boot"
TOOL = identity.client_id("tool")
SERVICES = ("tenancy", "inventory", "ipam", "allocation", "fabric", "bmc", "boot", "stranger")
ROLES = {"viewer": Role.ROLE_VIEWER, "editor": Role.ROLE_EDITOR, "owner": Role.ROLE_OWNER}


@dataclass(frozen=True)
class Who:
    """A caller: the certificate of the connection (a key of `Cast.identities`) and the `authorization` of the call."""

    name: str
    certificate: str = TOOL
    authorization: str = ""


@dataclass(frozen=True)
class Answer:
    """How a call ended, and what it had answered until then."""

    code: grpc.StatusCode
    status: status_pb2.Status
    messages: tuple[bytes, ...]

    @property
    def ok(self) -> bool:
        """Whether the caller was let through and served."""
        return self.code is grpc.StatusCode.OK

    def tells(self, ids: frozenset[str]) -> list[str]:
        """Which of these ids the answer has in it."""
        everything = b"".join(self.messages) + self.status.SerializeToString()
        return sorted(each for each in ids if each.encode() in everything)


@dataclass
class Cast:
    """All callers. Bad tokens are as good as the operator's in everything but the one thing that is wrong."""

    plane: AccessPlane
    servers: Mapping[str, list[str]]
    """Addresses and DNS names (`address|name`) by the full name of a gRPC service: some are served by all processes."""
    bad_tokens: tuple[Who, ...] = ()
    worse_tokens: tuple[Who, ...] = ()
    bad_certificates: tuple[Who, ...] = ()
    no_connection: tuple[Who, ...] = ()
    tokens: dict[str, str] = field(default_factory=dict)
    identities: dict[str, Identity | grpc.ChannelCredentials] = field(default_factory=dict)
    _channels: dict[tuple[str, str], grpc.aio.Channel] = field(default_factory=dict)

    def user(self, name: str) -> Who:
        """A person with one of the tokens that hold."""
        return Who(name, TOOL, f"Bearer {self.tokens[name]}")

    def channel(self, address: str, certificate: str) -> grpc.aio.Channel:
        """A connection with a certificate."""
        key = (address, certificate)
        if key not in self._channels:
            mine = self.identities.get(certificate)
            if mine is None:
                machine = certificate.removeprefix(identity.machine_id(""))
                known = self.plane.installer(machine, SESSION) if machine != certificate else None
                mine = self.identities[certificate] = known or self.plane.identity(certificate)
            credentials = mine.channel_credentials() if isinstance(mine, Identity) else mine
            endpoint, _, name = address.partition("|")
            options = [("grpc.ssl_target_name_override", name)]
            self._channels[key] = grpc.aio.secure_channel(endpoint, credentials, options=options)
        return self._channels[key]

    async def close(self) -> None:
        """Close the connections."""
        for channel in self._channels.values():
            await channel.close()

    @asynccontextmanager
    async def following(
        self, method: MethodDescriptor, who: Who, request: bytes
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """The messages of a stream from the server, which is cut at the end."""
        service = method.containing_service.full_name
        channel = self.channel(self.servers[service][0], who.certificate)
        metadata = (("authorization", who.authorization),) if who.authorization else ()
        stream: Any = channel.unary_stream(f"/{service}/{method.name}")(request, timeout=LIMIT, metadata=metadata)
        try:
            yield aiter(stream)
        finally:
            stream.cancel()

    async def call(self, method: MethodDescriptor, who: Who, request: bytes, server: int = 0) -> Answer:
        """Make a call to one of those that serve it. Of a stream the first message is waited for; then it is cut."""
        service = method.containing_service.full_name
        channel = self.channel(self.servers[service][server], who.certificate)
        path = f"/{service}/{method.name}"
        metadata = (("authorization", who.authorization),) if who.authorization else ()
        messages: list[bytes] = []
        try:
            async with asyncio.timeout(LIMIT):
                if not method.server_streaming:
                    messages.append(await channel.unary_unary(path)(request, timeout=LIMIT, metadata=metadata))
                else:
                    open_ = channel.stream_stream if method.client_streaming else channel.unary_stream
                    stream: Any = open_(path)(
                        _once(request) if method.client_streaming else request, timeout=LIMIT, metadata=metadata
                    )
                    async for message in stream:
                        messages.append(message)
                        break
                    stream.cancel()
        except grpc.aio.AioRpcError as error:
            return Answer(error.code(), _status(error), tuple(messages))
        return Answer(grpc.StatusCode.OK, status_pb2.Status(), tuple(messages))


async def _once(message: bytes) -> AsyncIterator[bytes]:
    yield message
    await asyncio.sleep(LIMIT)  # the half-closed stream would end by itself


def _status(error: grpc.aio.AioRpcError) -> status_pb2.Status:
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            return status_pb2.Status.FromString(value if isinstance(value, bytes) else value.encode())
    return status_pb2.Status(code=error.code().value[0], message=error.details() or "")


async def make_cast(plane: AccessPlane, servers: Mapping[str, list[str]]) -> Cast:
    """All callers of a plane."""
    cast = Cast(plane, servers)
    a, b = plane.objects.a, plane.objects.b
    for word, role in ROLES.items():
        projects = dict.fromkeys((a.project, *a.spare_projects), role)
        tenants = dict.fromkeys((a.tenant, *a.spare_tenants), role)
        cast.tokens[f"project {word}"] = (await make_token(plane, a.user, project_roles=projects))[1]
        cast.tokens[f"tenant {word}"] = (await make_token(plane, a.user, tenant_roles=tenants))[1]
    # A token without roles stands for its user; one with roles ends no other token, and he may.
    cast.tokens["user himself"] = (await make_token(plane, a.user))[1]
    owner = Role.ROLE_OWNER
    everything: dict[str, Any] = {"project_roles": {b.project: owner}, "tenant_roles": {b.tenant: owner}}
    cast.tokens["owner elsewhere"] = (await make_token(plane, b.user, **everything))[1]
    cast.tokens["owner of a sibling project"] = (
        await make_token(plane, "sibling", project_roles={plane.objects.sibling: owner})
    )[1]
    for word, plane_role in (("viewer", PlaneRole.PLANE_ROLE_VIEWER), ("operator", PlaneRole.PLANE_ROLE_OPERATOR)):
        cast.tokens[f"plane {word}"] = (await make_token(plane, f"plane-{word}", plane_role=plane_role))[1]
    cast.bad_tokens, cast.worse_tokens = await _bad_tokens(plane)
    _bad_certificates(cast)
    return cast


async def _bad_tokens(plane: AccessPlane) -> tuple[tuple[Who, ...], tuple[Who, ...]]:
    """Those that every RPC has to be tried with, and more."""
    operator: dict[str, Any] = {"plane_role": PlaneRole.PLANE_ROLE_OPERATOR}
    good_id, good = await make_token(plane, "root", **operator)
    revoked_id, revoked = await make_token(plane, "root", **operator)
    stub: Any = plane.peers().stub(TokenServiceStub, "tenancy")
    await stub.RevokeToken(RevokeTokenRequest(id=revoked_id))
    signer = Signer.load(plane.pki.token_key)
    stranger = Signer([OKPKey.generate_key("Ed25519", auto_kid=True)])
    now = plane.services[0].runtime.clock.now()
    hour = timedelta(hours=1)
    header, body, signature = good.split(".")
    public = _public_key(plane)
    same_key_id = {**json.loads(_decoded(header)), "alg": "HS256"}
    bad = {
        "an expired token": signer.sign(Claims(good_id, "root"), issued=now - 2 * hour, expires=now - hour),
        "a revoked token": revoked,
        "a token of another key": _signed_by_stranger(header, body),
        "a token with alg none": _unsigned({"alg": "none", "typ": "JWT"}, body, ""),
        "a token with alg HS256 and the public key for its secret": _hs256(same_key_id, body, public[0]),
        "a token whose claims were changed": _changed(header, body, signature, sub="somebody"),
    }
    worse = {
        "a token of another key under its own name": stranger.sign(
            Claims(good_id, "root"), issued=now, expires=now + hour
        ),
        "a token with alg None and the old signature": _unsigned({"alg": "None", "typ": "JWT"}, body, signature),
        "a token with alg HS256 and the public key's bytes for its secret": _hs256(same_key_id, body, public[1]),
        "a token whose end was moved": _changed(header, body, signature, exp=4102444800),
        "a token for another user than its own": signer.sign(Claims(good_id, "boss"), issued=now, expires=now + hour),
        "a token that nobody made": signer.sign(
            Claims("01900000-0000-7000-8000-000000000000", "root"), issued=now, expires=now + hour
        ),
        "a token without its signature": f"{header}.{body}.",
        "something that is no token": "operator",
    }
    two = Who("a service that also shows a token", identity.service_id("allocation"), f"Bearer {good}")
    scheme = Who("a good token under another scheme", TOOL, f"Basic {good}")
    return (
        (*(Who(name, TOOL, f"Bearer {token}") for name, token in bad.items()), two),
        (*(Who(name, TOOL, f"Bearer {token}") for name, token in worse.items()), scheme),
    )


def _bad_certificates(cast: Cast) -> None:
    plane = cast.plane
    foreign = Authority.create("foreign")
    machine = plane.objects.a.machine
    wrong_issuer = {
        "a service by the machines' authority": identity.service_id("allocation"),
        "a leaf by the machines' authority": identity.leaf_id(PARTITION, LEAVES[0]),
        "a boot service by the machines' authority": identity.partition_agent_id(PARTITION, "boot"),
    }
    for name, spiffe_id in wrong_issuer.items():
        cast.identities[name] = plane.identity(spiffe_id, by=plane.machines)
    cast.identities["a certificate of another plane's name"] = plane.identity("spiffe://elsewhere/service/allocation")
    cast.bad_certificates = tuple(Who(name, name) for name in (*wrong_issuer, "a certificate of another plane's name"))
    cast.identities["a service by a foreign authority"] = plane.identity(identity.service_id("allocation"), by=foreign)
    cast.identities["a machine by a foreign authority"] = plane.identity(identity.machine_id(machine), by=foreign)
    expired = plane.identity(identity.service_id("allocation"), ttl=timedelta(seconds=-1))
    cast.identities["a service whose certificate has expired"] = expired
    cast.identities["nobody, without a certificate"] = grpc.ssl_channel_credentials(plane.pki.ca.read_bytes())
    old_boot = "5e55104e-0000-4000-8000-000000000000"
    cast.identities[OLD_BOOT] = plane.installer(machine, old_boot)
    cast.no_connection = tuple(
        Who(name, name)
        for name in (
            "a service by a foreign authority", "a machine by a foreign authority",
            "a service whose certificate has expired", "nobody, without a certificate",
        )
    )  # fmt: skip


def agents(plane: AccessPlane) -> dict[str, tuple[Who, list[Who]]]:
    """By kind of agent: the rightful one for A's objects, and others of the kind."""
    a, b = plane.objects.a, plane.objects.b

    def leaf(partition: str, host: str) -> Who:
        return Who(f"leaf {host} of {partition}", identity.leaf_id(partition, host))

    def machine(uuid: str) -> Who:
        # As installers have them: by the machines' authority.
        return Who(f"machine {uuid}", identity.machine_id(uuid))

    def boot(partition: str) -> Who:
        return Who(f"boot of {partition}", identity.partition_agent_id(partition, "boot"))

    def bmc(partition: str) -> Who:
        return Who(f"bmc of {partition}", identity.partition_agent_id(partition, "bmc"))

    return {
        "leaf": (leaf(PARTITION, LEAVES[0]), [leaf(PARTITION, LEAVES[1]), leaf(ELSEWHERE, LEAVES[0])]),
        "machine": (machine(a.machine), [machine(b.machine)]),
        "boot": (boot(PARTITION), [boot(ELSEWHERE)]),
        "bmc": (bmc(PARTITION), [bmc(ELSEWHERE)]),
    }


def _public_key(plane: AccessPlane) -> tuple[bytes, bytes]:
    key = serialization.load_pem_private_key(plane.pki.token_key.read_bytes(), password=None)
    assert isinstance(key, Ed25519PrivateKey)
    public = key.public_key()
    pem = public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    return pem, public.public_bytes_raw()


def _encoded(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


def _decoded(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def _unsigned(header: Mapping[str, str], body: str, signature: str) -> str:
    return f"{_encoded(json.dumps(dict(header)).encode())}.{body}.{signature}"


def _hs256(header: Mapping[str, str], body: str, secret: bytes) -> str:
    head = _encoded(json.dumps(dict(header)).encode())
    return f"{head}.{body}.{_encoded(hmac.digest(secret, f'{head}.{body}'.encode(), hashlib.sha256))}"


def _signed_by_stranger(header: str, body: str) -> str:
    return f"{header}.{body}.{_encoded(Ed25519PrivateKey.generate().sign(f'{header}.{body}'.encode()))}"


def _changed(header: str, body: str, signature: str, **claims: Any) -> str:
    changed = {**json.loads(_decoded(body)), **claims}
    return f"{header}.{_encoded(json.dumps(changed).encode())}.{signature}"
