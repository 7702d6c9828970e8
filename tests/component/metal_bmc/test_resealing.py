"""Keys of BMC passwords: which seals what, and the command that moves all passwords to the newest."""

from __future__ import annotations

import base64
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from metal_bmc.credentials import KeyRing
from metal_kit.errors import PermissionDenied
from metalplane.bmc.v1 import bmc_pb2 as pb

Eventually = Callable[..., Awaitable[None]]
PASSWORD = "pw-Tr0ub4dor-do-leak"
LOST, NEW = (f"{name}:{base64.b64encode(bytes(range(at, at + 32))).decode()}" for name, at in (("k0", 9), ("k2", 100)))


async def _register(plane: Any, number: int) -> str:
    machine = str(uuid.uuid4())
    bmc = pb.Bmc(machine=machine, partition="fra1", address=f"192.0.2.{number}", user="metal", password=PASSWORD)
    await plane.stub().RegisterBmc(pb.RegisterBmcRequest(bmc=bmc))
    return machine


async def _seal(plane: Any, machine: str, sealed: bytes) -> None:
    await plane.rows("UPDATE endpoint SET sealed = $2 WHERE machine = $1", machine, sealed)


async def _sealed(plane: Any, machine: str) -> bytes:
    return bytes((await plane.rows("SELECT sealed FROM endpoint WHERE machine = $1", machine))[0]["sealed"])


async def _keys(plane: Any) -> pb.CredentialKeys:
    found: pb.CredentialKeys = await plane.stub("viewer").GetCredentialKeys(pb.GetCredentialKeysRequest())
    return found


def _counts(found: pb.CredentialKeys) -> dict[str, int]:
    return {key.id: key.passwords for key in found.keys}


@pytest.fixture
async def machines(plane: Any, eventually: Eventually) -> list[str]:
    """Four BMCs in a service that has just been given a new key, and has sealed what it found with that."""
    await plane.start()
    made = [await _register(plane, number) for number in range(1, 5)]
    assert _counts(await _keys(plane)) == {"k1": 4}
    await plane.running.stop(0)
    await plane.start(credential_keys=f"{NEW},{plane.keys}")

    async def moved() -> bool:
        return _counts(await _keys(plane)) == {"k2": 4, "k1": 0}

    await eventually(moved)
    return made


async def test_after_the_command_no_password_needs_the_old_key(plane: Any, machines: list[str]) -> None:
    old = KeyRing.parse(plane.keys)
    for machine in machines[:2]:  # as a replica seals that has not got the new key yet
        await _seal(plane, machine, old.seal(machine, PASSWORD))
    assert _counts(await _keys(plane)) == {"k2": 2, "k1": 2}
    done = await plane.stub().ResealCredentials(pb.ResealCredentialsRequest())
    assert (done.resealed, done.keys.partition, done.keys.unusable_count) == (2, "fra1", 0)
    assert [(key.id, key.passwords, key.current, key.in_ring) for key in done.keys.keys] == [
        ("k2", 4, True, True), ("k1", 0, False, True),
    ]  # fmt: skip
    new = KeyRing.parse(NEW)
    assert [new.open(machine, await _sealed(plane, machine)) for machine in machines] == [PASSWORD] * 4
    again = await plane.stub().ResealCredentials(pb.ResealCredentialsRequest())
    assert again.resealed == 0
    await plane.running.stop(0)
    await plane.start(credential_keys=NEW)
    found = await _keys(plane)
    assert (_counts(found), found.unusable_count) == ({"k2": 4}, 0)


async def test_what_does_not_open_is_named_by_its_machine_and_stays(plane: Any, machines: list[str]) -> None:
    of_another, lost, damaged, good = machines
    old = KeyRing.parse(plane.keys)
    rows = {
        of_another: old.seal(good, PASSWORD),
        lost: KeyRing.parse(LOST).seal(lost, PASSWORD),
        damaged: b"\x07garbage",
    }
    for machine, sealed in rows.items():
        await _seal(plane, machine, sealed)
    done = await plane.stub().ResealCredentials(pb.ResealCredentialsRequest())
    assert (done.resealed, done.keys.unusable_count) == (0, 3)
    assert _counts(done.keys) == {"k2": 1, "k1": 1, "k0": 1, "": 1}
    assert {key.id for key in done.keys.keys if not key.in_ring} == {"k0", ""}
    assert {each.machine: (each.key, each.cause) for each in done.keys.unusable} == {
        of_another: ("k1", "key 'k1' does not open it: damaged, or of another machine"),
        lost: ("k0", "sealed with key 'k0', which is not in the key ring"),
        damaged: ("", "not a sealed password"),
    }
    assert {machine: await _sealed(plane, machine) for machine in rows} == rows
    content = done.SerializeToString()
    keys = [ring.partition(":")[2] for ring in (LOST, NEW, plane.keys)]
    secrets = [PASSWORD.encode(), *(key.encode() for key in keys), *(base64.b64decode(key) for key in keys)]
    assert not [secret for secret in secrets if secret in content]


async def test_only_an_operator_has_passwords_sealed_anew(plane: Any, machines: list[str]) -> None:
    with pytest.raises(PermissionDenied):
        await plane.stub("viewer").ResealCredentials(pb.ResealCredentialsRequest())
    for method, request in (
        ("ResealCredentials", pb.ResealCredentialsRequest()),
        ("GetCredentialKeys", pb.GetCredentialKeysRequest()),
    ):
        with pytest.raises(PermissionDenied):
            await getattr(plane.stub(""), method)(request)  # a service has no business with it
