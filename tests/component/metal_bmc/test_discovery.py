"""Discovery from a lease file: BMCs on loopback addresses of their own, one common port."""

from __future__ import annotations

import asyncio
import socket
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, cast

import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from metal_bmc.contact import Contact, ContactPlan
from metal_bmc.credentials import KeyRing
from metal_bmc.discovery import Discovery
from metal_bmc.drivers.interface import BmcDriver, DeviceInfo, Target
from metal_bmc.ownership import Ownership
from metal_bmc.registry import Registry
from metal_bmc.sources.lease_files import Filter, isc_file
from metal_bmc.whose import Whose
from metal_kit.clock import Clock
from metal_sim.bmc import SimulatedBmc
from metalplane.bmc.v1 import bmc_pb2 as pb

NewBmc = Callable[..., Awaitable[SimulatedBmc]]
Eventually = Callable[..., Awaitable[None]]
FACTORY = "factory-secret"
MAC = "0c:c4:7a:00:00:{:02x}"


def lease(address: str, number: int, *, ends: str = "never", start: int = 10) -> str:
    return (
        f"lease {address} {{\n  starts 0 2026/03/01 {start}:00:00;\n  ends {ends};\n  binding state active;\n"
        f"  hardware ethernet {MAC.format(number)};\n}}\n"
    )


def show(file: Path, *leases: str) -> None:
    """Write the lease file, a few hundred bytes."""
    file.write_text("".join(leases))


@pytest.fixture
def port() -> int:
    """A UDP port that is free on the loopback addresses."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("0.0.0.0", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def lease_file(tmp_path: Path) -> Path:
    file = tmp_path / "dhcpd.leases"
    show(file, "")
    return file


@pytest.fixture
def options(lease_file: Path, port: int) -> dict[str, Any]:
    return {
        "lease_file": str(lease_file),
        "lease_seconds": 0.2,
        "lease_networks": "127.9.0.0/16",
        "factory_user": "ADMIN",
        "factory_password": FACTORY,
        "factory_port": port,
    }


async def listed(plane: Any) -> dict[str, pb.Bmc]:
    answer = await plane.stub("viewer").ListBmcs(pb.ListBmcsRequest())
    return {bmc.machine: bmc for bmc in answer.bmcs}


async def test_a_bmc_in_the_lease_file_is_registered_and_reported(
    plane: Any, new_bmc: NewBmc, lease_file: Path, port: int, options: dict[str, Any], eventually: Eventually
) -> None:
    bmc = await new_bmc("127.9.0.1", port, user="ADMIN", password=FACTORY, powered=True)
    broken = "lease 127.9.0.99 {\n  hardware ethernet nonsense;\n"
    show(lease_file, broken + lease("127.9.0.1", 1) + lease("127.8.0.1", 2))
    await plane.start(**options)
    await eventually(lambda: plane.inventory.reports.get(bmc.machine), seconds=30)
    (found,) = (await listed(plane)).values()
    assert (found.machine, found.address, found.mac) == (bmc.machine, f"127.9.0.1:{port}", MAC.format(1))
    assert (await plane.command(bmc, "POWER_OFF")).state == pb.COMMAND_STATE_SUCCEEDED


async def test_a_bmc_that_refuses_the_factory_login_is_asked_once(
    plane: Any, new_bmc: NewBmc, lease_file: Path, port: int, options: dict[str, Any], eventually: Eventually
) -> None:
    stranger = await new_bmc("127.9.0.1", port, user="ADMIN", password="somebody-elses")
    friend = await new_bmc("127.9.0.2", port, user="ADMIN", password=FACTORY)
    show(lease_file, lease("127.9.0.1", 1))
    await plane.start(**options)
    await eventually(lambda: plane.rows("SELECT FROM sighting WHERE refused"))
    # A later look at the file that is known to have been taken, because it found something new.
    show(lease_file, lease("127.9.0.1", 1) + lease("127.9.0.2", 2))
    await eventually(lambda: plane.rows("SELECT FROM endpoint"))
    assert stranger.logins.started == 1
    assert list(await listed(plane)) == [friend.machine]


async def test_a_silent_bmc_is_asked_again_later(
    plane: Any, new_bmc: NewBmc, lease_file: Path, port: int, options: dict[str, Any], eventually: Eventually
) -> None:
    bmc = await new_bmc("127.9.0.1", port, user="ADMIN", password=FACTORY)
    bmc.faults.switch_on("hang")
    show(lease_file, lease("127.9.0.1", 1))
    await plane.start(**{**options, "exchange_seconds": 4})
    await eventually(lambda: plane.rows("SELECT FROM sighting WHERE tries = 1 AND NOT refused"))
    bmc.faults.clear()
    await plane.rows("UPDATE sighting SET try_at = now()")
    await eventually(lambda: plane.rows("SELECT FROM endpoint"))
    assert await plane.rows("SELECT FROM sighting") == []


async def test_a_bmc_that_moved_is_followed_with_its_own_login(
    plane: Any, new_bmc: NewBmc, lease_file: Path, port: int, options: dict[str, Any], eventually: Eventually
) -> None:
    await plane.start(**options)
    bmc = await new_bmc("127.9.0.7", port, powered=True)
    old = pb.Bmc(machine=bmc.machine, partition="fra1", address=f"127.9.0.6:{port}", user="metal", mac=MAC.format(7))
    old.password = "pw-Tr0ub4dor-do-leak"
    await plane.stub().RegisterBmc(pb.RegisterBmcRequest(bmc=old))
    show(lease_file, lease("127.9.0.6", 7) + lease("127.9.0.7", 7, start=11))
    await eventually(lambda: plane.rows("SELECT FROM endpoint WHERE host = '127.9.0.7'"))
    assert (await plane.command(bmc, "POWER_OFF")).state == pb.COMMAND_STATE_SUCCEEDED


async def test_a_bmc_that_moved_and_refuses_its_login_is_asked_once(
    plane: Any, new_bmc: NewBmc, lease_file: Path, port: int, options: dict[str, Any], eventually: Eventually
) -> None:
    await plane.start(**options)
    bmc = await new_bmc("127.9.0.7", port, password="changed")
    friend = await new_bmc("127.9.0.2", port, user="ADMIN", password=FACTORY)
    old = pb.Bmc(machine=bmc.machine, partition="fra1", address=f"127.9.0.6:{port}", user="metal", mac=MAC.format(7))
    old.password = "pw-Tr0ub4dor-do-leak"
    await plane.stub().RegisterBmc(pb.RegisterBmcRequest(bmc=old))
    show(lease_file, lease("127.9.0.7", 7))
    await eventually(lambda: plane.rows("SELECT FROM sighting WHERE refused"))
    show(lease_file, lease("127.9.0.7", 7), lease("127.9.0.2", 2))
    await eventually(lambda: plane.rows("SELECT FROM endpoint WHERE machine = $1", friend.machine))
    assert bmc.logins.started == 1
    assert (await listed(plane))[bmc.machine].address == f"127.9.0.6:{port}"


async def test_an_address_that_another_machine_got_is_taken_from_its_old_owner(
    plane: Any, new_bmc: NewBmc, lease_file: Path, port: int, options: dict[str, Any], eventually: Eventually
) -> None:
    await plane.start(**options)
    newcomer = await new_bmc("127.9.0.8", port, user="ADMIN", password=FACTORY, powered=True)
    gone = pb.Bmc(
        machine="11111111-2222-4333-8444-555555555555", partition="fra1", address=f"127.9.0.8:{port}", user="metal",
        mac=MAC.format(9), password="x",
    )  # fmt: skip
    await plane.stub().RegisterBmc(pb.RegisterBmcRequest(bmc=gone))
    show(lease_file, lease("127.9.0.8", 8))
    await eventually(lambda: plane.rows("SELECT FROM endpoint WHERE host = ''"))
    bmcs = await listed(plane)
    assert bmcs[gone.machine].address == ""
    assert bmcs[gone.machine].error.startswith("ADDRESS_TAKEN")
    assert bmcs[newcomer.machine].address == f"127.9.0.8:{port}"


async def test_a_missing_lease_file_is_waited_for(
    plane: Any, new_bmc: NewBmc, lease_file: Path, port: int, options: dict[str, Any], eventually: Eventually
) -> None:
    options["lease_file"] = str(lease_file.with_name("later.leases"))
    bmc = await new_bmc("127.9.0.1", port, user="ADMIN", password=FACTORY)
    await plane.start(**options)
    show(lease_file.with_name("later.leases"), lease("127.9.0.1", 1))
    await eventually(lambda: plane.rows("SELECT FROM endpoint"))
    assert list(await listed(plane)) == [bmc.machine]


class SlowBmc:
    """A BMC that says which machine it belongs to, and takes so long that `meanwhile` happens."""

    def __init__(self, machine: str, meanwhile: Callable[[], Awaitable[Any]]) -> None:
        self._machine, self._meanwhile = machine, meanwhile

    async def inspect(self, _target: Target, *, deadline: float) -> DeviceInfo:
        await self._meanwhile()
        return DeviceInfo(self._machine, "1.0", 0, 0, True, {})


class Owner(Ownership):
    """Owns every BMC, beside the service under test."""

    def __init__(self) -> None:
        """Without a database."""

    def owns(self, machine: str) -> bool:
        return True


@pytest.mark.parametrize("deleted", [False, True])
async def test_what_is_changed_while_a_bmc_that_moved_is_asked_stays_changed(
    plane: Any, lease_file: Path, deleted: bool
) -> None:
    running = await plane.start()
    old = pb.Bmc(machine=str(uuid.uuid4()), partition="fra1", address="127.9.0.6", user="metal", mac=MAC.format(7))
    old.password, old.desired_power = "pw-Tr0ub4dor-do-leak", pb.POWER_ON
    await plane.stub().RegisterBmc(pb.RegisterBmcRequest(bmc=old))

    async def meanwhile() -> None:
        if deleted:
            await plane.stub().DeleteBmc(pb.DeleteBmcRequest(machine=old.machine))
            return
        wanted = pb.Bmc(machine=old.machine, desired_power=pb.POWER_OFF)
        mask = FieldMask(paths=["desired_power"])
        await plane.stub().UpdateBmc(pb.UpdateBmcRequest(bmc=wanted, update_mask=mask))

    show(lease_file, lease("127.9.0.7", 7))
    driver = cast("BmcDriver", SlowBmc(old.machine, meanwhile))
    db, ring = running.runtime.require_db(), KeyRing.parse(plane.keys)
    sources = [isc_file(lease_file, Filter())]
    registry, whose = Registry(ring, partition="fra1"), Whose(db, None)
    contact = Contact(db, driver, ring, Clock(), registry, whose, partition="fra1", plan=ContactPlan())
    discovery = Discovery(db, contact, Clock(), Owner(), partition="fra1", sources=sources)
    await discovery.look(asyncio.Event())
    found = [(bmc.address, bmc.desired_power) for bmc in (await listed(plane)).values()]
    assert found == ([] if deleted else [("127.9.0.7:623", pb.POWER_OFF)])


@pytest.mark.parametrize("known_to", ["inventory", "us"])
async def test_a_bmc_with_swapped_bytes_is_taken_in_as_the_machine_that_is_known(
    known_to: str,
    plane: Any,
    new_bmc: NewBmc,
    lease_file: Path,
    port: int,
    options: dict[str, Any],
    eventually: Eventually,
) -> None:
    machine = uuid.uuid4()
    await new_bmc("127.9.0.1", port, machine=str(machine), guid=machine.bytes, user="ADMIN", password=FACTORY)
    await plane.start(**options)
    if known_to == "inventory":
        plane.inventory.machines.add(str(machine))
    else:
        by_hand = pb.Bmc(machine=str(machine), partition="fra1", driver=pb.DRIVER_KIND_MANUAL)
        await plane.stub().RegisterBmc(pb.RegisterBmcRequest(bmc=by_hand))
    show(lease_file, lease("127.9.0.1", 1))
    await eventually(lambda: plane.rows("SELECT FROM endpoint WHERE host <> ''"))
    (found,) = (await listed(plane)).values()
    assert (found.machine, found.mac, found.driver) == (str(machine), MAC.format(1), pb.DRIVER_KIND_IPMI)
