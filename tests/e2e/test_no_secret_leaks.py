"""No secret that was in play in a full run of a lab is in its logs, events, tables or metrics.

Every secret is known: planted, read from where it is kept, or noted when it was made. What a table has to hold in the
clear is named here with its reason; nothing of the kind is in an audit log, an outbox or a change log.
"""

from __future__ import annotations

import asyncio
import base64
import json
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO
from urllib.parse import quote
from uuid import uuid4

import asyncpg
import leaks
import nats
import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from leaks import Haystack, Secrets
from metal_boot.tokens import RamdiskTokens
from metal_kit import logs
from metal_kit.client import Peers
from metal_kit.errors import Problem
from metal_kit.logs import get_logger
from metal_kit.tls import Identity
from metal_lab.lab import DATABASE, Lab
from metal_lab.pki import LabPki
from metal_lab.rack.model import load
from metal_lab.state import State
from metal_tenancy.signing import Signer
from metalplane.bmc.v1 import bmc_pb2
from metalplane.bmc.v1.bmc_pb2_grpc import BmcServiceStub
from metalplane.inventory.v1.machine_pb2 import ListMachinesRequest
from metalplane.inventory.v1.machine_pb2_grpc import MachineServiceStub
from metalplane.tenancy.v1 import token_pb2
from metalplane.tenancy.v1.token_pb2_grpc import TokenServiceStub
from prometheus_client import REGISTRY, Counter

if TYPE_CHECKING:
    from tests.e2e.conftest import Cloud

pytestmark = pytest.mark.timeout(240)
EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
USERDATA = b"#cloud-config\npassword: planted-user-data-of-a-tenant\n"
# Where a secret has to be in the clear, and why.
IN_THE_CLEAR = {
    "table allocation.allocation.userdata": "the installer is given it; it is gone with the allocation",
}
NewCloud = Callable[[Any], Awaitable["Cloud"]]


@contextmanager
def logging_to(stream: TextIO) -> Iterator[None]:
    """Every line of this process goes there meanwhile, also those of the lab that other tests share."""
    logs.configure("debug", stream=stream)
    try:
        yield
    finally:
        logs.configure(stream=sys.__stderr__)


@contextmanager
def noted(monkeypatch: pytest.MonkeyPatch, secrets: Secrets) -> Iterator[None]:
    """Notes every bearer token and every ramdisk token that is made."""
    sign, issue = Signer.sign, RamdiskTokens.issue

    def signed(self: Signer, *args: Any, **named: Any) -> str:
        made = sign(self, *args, **named)
        secrets.add("bearer token", made, made.rpartition(".")[2])
        return made

    def issued(self: RamdiskTokens, *args: Any, **named: Any) -> str:
        made = issue(self, *args, **named)
        secrets.add("ramdisk token", made, made.rpartition(".")[2])
        return made

    with monkeypatch.context() as patched:
        patched.setattr(Signer, "sign", signed)
        patched.setattr(RamdiskTokens, "issue", issued)
        yield


def of_lab(lab: Lab, secrets: Secrets) -> None:
    """The secrets that a lab keeps in files."""
    for name, secret in lab.state.secrets().items():
        secrets.add(name, secret)
        if name.endswith("_key"):
            secrets.add(name, bytes.fromhex(secret))
    pki = lab.state.path("pki")
    for path in (*pki.glob("*.key"), *pki.glob("*.pem")):
        secrets.add_private_key(path.name, path)
    # Those that are made in memory: any at all.
    secrets.add("a private key", b"PRIVATE KEY-----")


class Planted:
    """Secrets that are brought into play, by calls that succeed and by calls that are refused."""

    def __init__(self, lab: Lab, secrets: Secrets) -> None:
        self._lab, self._secrets = lab, secrets
        context = lab.state.context()
        assert context is not None
        self._endpoints = dict(context["endpoints"])
        self._identity = Identity(context["ca"], context["cert"], context["key"])
        self._operator = str(context["token"])
        self._number = 0

    def _new(self, name: str, length: int = 16) -> str:
        self._number += 1
        made = f"Pl4nted-{self._number:02d}-{uuid4().hex}{uuid4().hex}"[:length]
        self._secrets.add(f"planted {name}", made)
        return made

    def _peers(self, token: str = "", identity: Identity | None = None) -> Peers:
        return Peers(self._endpoints, identity or self._identity, token=(lambda: token) if token else None)

    async def refused_calls(self) -> None:
        """Bearer tokens and metadata that nobody accepts, and tokens that are asked about."""
        parts = [self._new("part of a token", 40) for _ in range(3)]
        for token in (self._new("token", 60), ".".join(parts)):
            peers = self._peers(token)
            for stub, service in ((MachineServiceStub, "inventory"), (TokenServiceStub, "tenancy")):
                method = "ListMachines" if service == "inventory" else "ListTokens"
                request: Any = ListMachinesRequest() if service == "inventory" else token_pb2.ListTokensRequest()
                await _refused(getattr(peers.stub(stub, service), method)(request))  # type: ignore[arg-type]
            await peers.close()
        peers = self._peers()
        stub: Any = peers.stub(MachineServiceStub, "inventory")
        scheme = (("authorization", f"Basic {self._new('scheme', 40)}"),)
        await _refused(stub.ListMachines(ListMachinesRequest(), metadata=scheme))
        tokens: Any = peers.stub(TokenServiceStub, "tenancy")
        await _refused(tokens.ExchangeIdToken(token_pb2.ExchangeIdTokenRequest(id_token=self._new("ID token", 60))))
        await peers.close()
        service = self._peers(identity=LabPki(self._lab.state.path("pki")).service("allocation", "mini"))
        checking: Any = service.stub(TokenServiceStub, "tenancy")
        await _refused(checking.CheckToken(token_pb2.CheckTokenRequest(secret=self._new("token", 60))))
        await service.close()

    async def bmc_passwords(self, machine: str) -> None:
        """Passwords of BMCs: one that is kept, one that is changed, ones that are refused, and one that is wrong."""
        peers = self._peers(self._operator)
        stub: Any = peers.stub(BmcServiceStub, "bmc")
        bmc = bmc_pb2.Bmc(machine=str(uuid4()), partition="mini", address="127.0.0.1:9", user="metal")
        bmc.password = self._new("password")
        request = bmc_pb2.RegisterBmcRequest(request_id=str(uuid4()), bmc=bmc)
        await stub.RegisterBmc(request)
        await stub.RegisterBmc(request)  # the same again, remembered
        bmc.password = self._new("password")
        mask = FieldMask(paths=["password"])
        await stub.UpdateBmc(bmc_pb2.UpdateBmcRequest(bmc=bmc, update_mask=mask))
        bmc.password, bmc.partition = self._new("password", 18), "elsewhere"
        await _refused(stub.RegisterBmc(bmc_pb2.RegisterBmcRequest(bmc=bmc)))
        bmc.password, bmc.partition = self._new("password", 60), "mini"
        await _refused(stub.RegisterBmc(bmc_pb2.RegisterBmcRequest(bmc=bmc)))
        await _refused(stub.UpdateBmc(bmc_pb2.UpdateBmcRequest(bmc=bmc, update_mask=mask)))
        known = await stub.GetBmc(bmc_pb2.GetBmcRequest(machine=machine))
        known.password = self._new("password")
        await stub.UpdateBmc(bmc_pb2.UpdateBmcRequest(bmc=known, update_mask=mask))
        command = await stub.CreateCommand(
            bmc_pb2.CreateCommandRequest(machine=machine, action=bmc_pb2.COMMAND_ACTION_IDENTIFY_ON)
        )
        async with asyncio.timeout(60):
            while command.state in (bmc_pb2.COMMAND_STATE_PENDING, bmc_pb2.COMMAND_STATE_RUNNING):
                await asyncio.sleep(0.1)
                command = await stub.GetCommand(bmc_pb2.GetCommandRequest(id=command.id))
        assert command.state == bmc_pb2.COMMAND_STATE_FAILED, "the BMC took a wrong password"
        await stub.ResealCredentials(bmc_pb2.ResealCredentialsRequest())
        await peers.close()


async def _refused(call: Awaitable[Any]) -> None:
    with pytest.raises(Problem):
        await call


def lab_database(lab: Lab) -> str:
    """The database of a lab, for its owner."""
    secrets, ports = lab.state.secrets(), lab.state.known_ports()
    return f"postgresql://postgres:{secrets['postgres_password']}@127.0.0.1:{ports['postgres']}/{DATABASE}"


def lab_bus(lab: Lab) -> str:
    """NATS of a lab, for its owner."""
    secrets, ports = lab.state.secrets(), lab.state.known_ports()
    return f"nats://metalplane:{secrets['nats_password']}@127.0.0.1:{ports['nats']}"


async def everything(lab: Lab, log: Path) -> list[Haystack]:
    """All that the lab has written and told."""
    found = [Haystack("log of the lab", await asyncio.to_thread(log.read_bytes)), *leaks.of_metrics()]
    found += await asyncio.to_thread(leaks.of_files, lab.state.directory, "*.log")
    return [*found, *await leaks.of_database(lab_database(lab)), *await leaks.of_streams(lab_bus(lab))]


async def test_no_secret_is_in_logs_events_tables_or_metrics(
    server_directory: Path,
    tmp_path: Path,
    new_cloud: NewCloud,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    rack, log, secrets = tmp_path / "rack.yaml", tmp_path / "lab.log", Secrets()
    rack.write_text((EXAMPLES / "mini-rack.yaml").read_text().replace("count: 4", "count: 2"))
    secrets.add("user data", USERDATA, b"planted-user-data-of-a-tenant")
    with log.open("w", buffering=1) as stream, logging_to(stream), noted(monkeypatch, secrets):
        async with Lab(State(server_directory / "leaks"), load(rack)) as lab:
            of_lab(lab, secrets)
            cloud = await new_cloud(lab.state.context())
            first, second = (machine.placed.uuid for machine in lab.machines.values())
            planted = Planted(lab, secrets)
            await planted.refused_calls()
            await cloud.until_waiting(first)
            made = await cloud.allocate(machine=first, userdata=USERDATA)
            await planted.bmc_passwords(second)
            await cloud.until_phase(made.id, "RUNNING")
            running = await everything(lab, log)
            await cloud.free(made.id)
            await cloud.until_phase(made.id, "RELEASED")
            await cloud.until_waiting(first)
            freed = await everything(lab, log)
            await _looks_closely(lab, log)
            await cloud.close()
    printed = capfd.readouterr()
    ended = [
        Haystack("log of the lab", log.read_bytes()),
        Haystack("standard output", printed.out.encode()),
        Haystack("standard error", printed.err.encode()),
    ]

    assert {"bearer token 1", "ramdisk token 1", "bmc_password 1", "tokens.pem 1"} <= secrets.known.keys()
    assert {place for place, _ in secrets.found_in(running)} == IN_THE_CLEAR.keys()
    assert not secrets.found_in([*freed, *ended])


async def _looks_closely(lab: Lab, log: Path) -> None:
    """What is planted in each kind of place is found there, however it is spelt."""
    canary, secret = Secrets(), b"Pl4nted canary/that is found+where it sits"
    canary.add("canary", secret)
    assert not canary.found_in(await everything(lab, log))
    counter = Counter("metalplane_test_canary", "Planted.", ["text"])
    counter.labels(secret.hex()).inc()
    get_logger("test").info("canary", text=f"a {quote(secret)} b")
    (lab.state.path("log") / "canary.log").write_bytes(b"x" + base64.b64encode(b"y" + secret + b"z"))
    bus = await nats.connect(lab_bus(lab))
    await bus.jetstream().publish("metalplane.test.canary", b"x" + secret)
    await bus.close()
    connection = await asyncpg.connect(lab_database(lab))
    await connection.execute("CREATE SCHEMA canary")
    await connection.execute("CREATE TABLE canary.cage (as_text text, as_json jsonb, as_bytes bytea)")
    inner = base64.urlsafe_b64encode(b"yz" + secret)
    await connection.execute("INSERT INTO canary.cage (as_text) VALUES ($1)", secret.hex().upper())
    await connection.execute("INSERT INTO canary.cage (as_json) VALUES ($1)", json.dumps({"a": [secret.decode()]}))
    await connection.execute("INSERT INTO canary.cage (as_bytes) VALUES ($1)", inner)
    await connection.close()
    places = {place for place, _ in canary.found_in(await everything(lab, log))}
    REGISTRY.unregister(counter)
    assert {place.partition(" /")[0] for place in places} == {
        "metrics", "log of the lab", "file", "table canary.cage.as_text", "table canary.cage.as_json",
        "table canary.cage.as_bytes", "stream METALPLANE, subject metalplane.test.canary",
    }  # fmt: skip
