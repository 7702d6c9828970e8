from __future__ import annotations

import asyncio
import time
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID
from metal_boot.tokens import RamdiskTokens
from metal_hammer.enrol import parse_command_line
from metal_kit import identity
from metal_kit.ca import Authority
from metal_kit.client import Peers
from metal_kit.errors import PermissionDenied, Unavailable
from metal_kit.tls import Identity
from metal_sim.machine.firmware import read_script
from metalplane.allocation.v1 import installation_pb2
from metalplane.boot.v1 import boot_pb2, boot_pb2_grpc
from metalplane.inventory.v1 import hardware_pb2, machine_pb2

from .conftest import TOKEN_KEY, World

MACHINE = "4c4c4544-0051-3510-8052-b4c04f4e3132"


def csr(key: Any = None) -> str:
    key = key or ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "somebody else")])
    request = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    return request.public_bytes(serialization.Encoding.PEM).decode()


async def exchange(world: World, **body: Any) -> tuple[int, Any]:
    async with world.session.post(f"{world.url}/v1/certificate", json=body) as response:
        return response.status, await response.json()


async def token_of(world: World, machine: str) -> str:
    found = read_script(await world.script(machine))
    return parse_command_line(found.command_line).token


async def test_an_unknown_machine_is_discovered_and_its_boot_is_reported(world: World, eventually: Any) -> None:
    machine = str(uuid4())
    found = read_script(await world.script(machine.upper()))
    assert "metal.mode=discover" in found.command_line
    assert f"metal.machine={machine}" in found.command_line
    assert "console=ttyS1,115200n8 quiet" in found.command_line
    await eventually(lambda: world.inventory.events.get(machine) == ["PXE_BOOTING"])
    assert "unknown machine" in world.inventory.messages[machine][0]


async def test_an_installed_machine_gets_its_local_disk(world: World, eventually: Any) -> None:
    machine = str(uuid4())
    world.inventory.machine(machine)
    world.allocate(machine)
    for state in ("INSTALLED", "START", "RUNNING"):
        world.want(machine, installation_pb2.InstallationState.Value(f"INSTALLATION_STATE_{state}"))
        assert read_script(await world.script(machine)).command_line == ""
    # Not PXE Booting: a phone-home after that would be taken for a stale one, and the machine never for running.
    await eventually(lambda: world.inventory.events[machine] == ["ALIVE"] * 3)
    assert "local-disk: allocated" in world.inventory.messages[machine][0]


async def test_a_machine_without_a_uuid_is_known_by_its_mac(world: World) -> None:
    machine = str(uuid4())
    nic = hardware_pb2.Nic(name="eth0", mac="02:00:00:00:00:42")
    world.inventory.machine(machine).hardware.nics.append(nic)
    nil = "00000000-0000-0000-0000-000000000000"
    assert f"metal.machine={machine}" in await world.script(nil, "?mac=02-00-00-00-00-42")
    assert read_script(await world.script(nil)).command_line == ""


@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("not-a-uuid", "uuid"),
        ("4c4c454400513510", "uuid"),
        ("4d6a2bc0-2127-4ed9-b4fd-9bf232b985a4?mac=02:00", "mac"),
        ("4d6a2bc0-2127-4ed9-b4fd-9bf232b985a4?mac=zz", "mac"),
    ],
)
async def test_bad_requests_name_the_field_and_report_nothing(world: World, path: str, field: str) -> None:
    async with world.session.get(f"{world.url}/v1/boot/{path}") as response:
        assert response.status == 400
        assert (await response.json())["field"] == field
    assert world.inventory.events == {}


async def test_without_the_plane_the_last_answer_stands_and_others_get_their_local_disk(world: World) -> None:
    free, running, stranger = (str(uuid4()) for _ in range(3))
    for machine in (free, running):
        world.inventory.machine(machine)
    world.allocate(running)
    world.want(running, installation_pb2.INSTALLATION_STATE_RUNNING)
    for machine in (free, running):
        await world.script(machine)
    world.inventory.problem = world.allocation.problem = Unavailable("DOWN", "down")
    assert read_script(await world.script(free)).command_line
    assert not read_script(await world.script(running)).command_line
    assert not read_script(await world.script(stranger)).command_line


async def test_a_storm_of_boots_does_not_wait_for_a_report(world: World) -> None:
    machines = [str(uuid4()) for _ in range(60)]
    for machine in machines:
        await world.script(machine)
    world.inventory.stalled = asyncio.Event()
    began = time.monotonic()
    try:
        scripts = await asyncio.gather(*(world.script(machine) for machine in machines))
    finally:
        world.inventory.stalled.set()
    assert all(read_script(text).command_line for text in scripts)
    # One bound of the answer path, and not sixty of them one after the other.
    assert time.monotonic() - began < 8


async def test_a_token_buys_one_certificate_for_this_machine_only(world: World) -> None:
    machine, other = str(uuid4()), str(uuid4())
    token = await token_of(world, machine)
    assert (await exchange(world, machine=other, token=token, csr=csr()))[0] == 401
    key = ec.generate_private_key(ec.SECP256R1())
    status, answer = await exchange(world, machine=machine, token=token, csr=csr(key))
    assert status == 200
    leaf = x509.load_pem_x509_certificates(answer["certificate"].encode())[0]
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == [identity.machine_id(machine)]
    assert leaf.public_key() == key.public_key()
    assert answer["endpoint"] == world.grpc
    assert (await exchange(world, machine=machine, token=token, csr=csr()))[0] == 401


async def test_a_renewed_authority_signs_the_next_machine_without_a_restart(world: World, authority: Any) -> None:
    async def issuer() -> str:
        machine = str(uuid4())
        status, answer = await exchange(world, machine=machine, token=await token_of(world, machine), csr=csr())
        assert status == 200
        return x509.load_pem_x509_certificates(answer["certificate"].encode())[0].issuer.rfc4514_string()

    assert "boot mini" in await issuer()
    renewed = authority.machine_intermediate("boot renewed")
    renewed.save(world.directory, "renewed")
    (world.directory / "machines.key").write_bytes((world.directory / "renewed.key").read_bytes())
    assert "boot mini" in await issuer(), "half a renewal is none"
    (world.directory / "machines.crt").write_bytes((world.directory / "renewed.crt").read_bytes())
    assert "boot renewed" in await issuer()


async def test_machines_are_told_to_trust_what_boot_trusts_now(world: World, authority: Any) -> None:
    successor = Authority.create("successor")
    bundle = authority.cert + successor.cert
    (world.directory / "ca.crt").write_bytes(bundle)
    machine = str(uuid4())
    status, answer = await exchange(world, machine=machine, token=await token_of(world, machine), csr=csr())
    assert (status, answer["ca"]) == (200, bundle.decode())


async def test_a_machines_certificate_ends_no_later_than_its_authority(world: World, authority: Any) -> None:
    short = authority.machine_intermediate("boot short", ttl=timedelta(hours=5))
    short.save(world.directory, "machines")
    machine = str(uuid4())
    status, answer = await exchange(world, machine=machine, token=await token_of(world, machine), csr=csr())
    assert status == 200
    leaf = x509.load_pem_x509_certificates(answer["certificate"].encode())[0]
    assert leaf.not_valid_after_utc <= short.ends


async def test_a_broken_request_does_not_use_the_token_up(world: World) -> None:
    machine = str(uuid4())
    token = await token_of(world, machine)
    for bad in ("", "-----BEGIN CERTIFICATE REQUEST-----\n", csr(rsa.generate_private_key(65537, 2048))):
        status, answer = await exchange(world, machine=machine, token=token, csr=bad)
        assert (status, answer["field"]) == (400, "csr")
    assert (await exchange(world, machine=machine, token=token, csr=csr()))[0] == 200


@pytest.mark.parametrize(
    "body", ["", "[]", "{", '"x"', '{"machine": 1}', '{"machine": "m", "token": "\\ud800", "csr": ""}', "[" * 20_000]
)
async def test_a_body_that_is_none_is_a_bad_request(world: World, body: str) -> None:
    async with world.session.post(f"{world.url}/v1/certificate", data=body) as response:
        assert response.status == 400
        assert "Traceback" not in await response.text()


async def test_a_body_without_end_is_refused(world: World) -> None:
    async with world.session.post(f"{world.url}/v1/certificate", data=b"x" * 100_000) as response:
        assert response.status == 413


async def test_a_made_up_token_is_refused_without_saying_why(world: World) -> None:
    machine = str(uuid4())
    forged = RamdiskTokens(b"not the partition's key", time.time).issue(machine, "s")
    expired = RamdiskTokens(TOKEN_KEY.encode(), lambda: time.time() - 3600).issue(machine, "s")
    answers = [await exchange(world, machine=machine, token=each, csr=csr()) for each in (forged, expired, "x.y")]
    assert [status for status, _ in answers] == [401, 401, 401]
    assert len({answer["message"] for _, answer in answers}) == 1


async def certified(world: World, machine: str) -> Peers:
    key = ec.generate_private_key(ec.SECP256R1())
    status, answer = await exchange(world, machine=machine, token=await token_of(world, machine), csr=csr(key))
    assert status == 200
    directory = world.directory / machine
    directory.mkdir()
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    for name, content in (("ca", answer["ca"].encode()), ("cert", answer["certificate"].encode()), ("key", pem)):
        (directory / name).write_bytes(content)
    files = Identity(directory / "ca", directory / "cert", directory / "key")
    return Peers({"boot": world.grpc}, files)


async def test_a_machine_speaks_for_itself_only(world: World) -> None:
    machine, other = str(uuid4()), str(uuid4())
    peers = await certified(world, machine)
    boot: Any = peers.stub(boot_pb2_grpc.BootServiceStub, "boot")
    event = machine_pb2.ReportedEvent(type=machine_pb2.PROVISIONING_EVENT_TYPE_PREPARING)
    hardware = hardware_pb2.Hardware(memory_bytes=1)
    try:
        await boot.ReportEvents(boot_pb2.ReportEventsRequest(machine=machine, events=[event]))
        with pytest.raises(PermissionDenied):
            await boot.ReportEvents(boot_pb2.ReportEventsRequest(machine=other, events=[event]))
        with pytest.raises(PermissionDenied):
            await boot.Register(boot_pb2.RegisterRequest(machine=other, session=str(uuid4()), hardware=hardware))
        with pytest.raises(PermissionDenied):
            async for _ in boot.Work(boot_pb2.WorkRequest(machine=other, session=str(uuid4()), generation=1)):
                pass
    finally:
        await peers.close()
    assert other not in world.inventory.events
    assert other not in world.inventory.sessions


async def test_a_certificate_speaks_for_the_boot_that_it_was_made_for(world: World) -> None:
    machine = str(uuid4())
    peers = await certified(world, machine)
    boot: Any = peers.stub(boot_pb2_grpc.BootServiceStub, "boot")
    try:
        with pytest.raises(PermissionDenied) as registering:
            await boot.Register(
                boot_pb2.RegisterRequest(
                    machine=machine, session=str(uuid4()), hardware=hardware_pb2.Hardware(memory_bytes=1)
                )
            )
        with pytest.raises(PermissionDenied) as following:
            async for _ in boot.Work(boot_pb2.WorkRequest(machine=machine, session=str(uuid4()), generation=1)):
                pass
    finally:
        await peers.close()
    assert registering.value.reason == following.value.reason == "NOT_YOUR_SESSION"
    assert machine not in world.inventory.sessions


async def test_health_is_answered_without_the_plane(world: World) -> None:
    world.inventory.problem = Unavailable("DOWN", "down")
    async with world.session.get(f"{world.url}/healthz") as response:
        assert (response.status, await response.json()) == (200, {"status": "serving"})
