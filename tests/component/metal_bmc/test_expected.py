"""Machines that are expected: declared, found with their initial credential, and compared with what is there."""

from __future__ import annotations

import socket
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from metal_kit.errors import Aborted, AlreadyExists, InvalidArgument, NotFound, PermissionDenied
from metal_sim.bmc import FruInfo, SimulatedBmc
from metalplane.bmc.v1 import bmc_pb2
from metalplane.bmc.v1 import expected_pb2 as pb
from metalplane.bmc.v1.expected_pb2_grpc import ExpectedMachineServiceStub
from metalplane.plane.v1 import issue_pb2
from metalplane.plane.v1.issue_pb2_grpc import IssueServiceStub

NewBmc = Callable[..., Awaitable[SimulatedBmc]]
Eventually = Callable[..., Awaitable[None]]
FACTORY, INITIAL = "factory-secret", "on-the-label-1"
MAC = "0c:c4:7a:00:00:{:02x}"


@pytest.fixture
def port() -> int:
    """A UDP port that is free on the loopback addresses."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("0.0.0.0", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def leases(tmp_path: Path) -> Path:
    file = tmp_path / "dhcpd.leases"
    file.write_text("")
    return file


@pytest.fixture
def options(leases: Path, port: int) -> dict[str, Any]:
    return {
        "lease_file": str(leases), "lease_seconds": 0.1, "expected_seconds": 0.1,
        "factory_user": "ADMIN", "factory_password": FACTORY, "factory_port": port,
    }  # fmt: skip


def show(file: Path, **places: int) -> None:
    """Write leases, by the last part of the address and the MAC address; a few hundred bytes."""
    text = "lease 127.9.2.{} {{\n ends never;\n hardware ethernet {};\n}}\n"
    file.write_text("".join(text.format(name[1:], MAC.format(number)) for name, number in places.items()))


def fru(serial: str) -> FruInfo:
    board = {"board_manufacturer": "", "board_name": "", "board_part": ""}
    maker = "Supermicro Inc."
    return FruInfo(product_manufacturer=maker, product_name="SYS-1", product_part="", product_serial=serial, **board)


async def expect(plane: Any, **fields: Any) -> pb.ExpectedMachine:
    message = pb.ExpectedMachine(partition="fra1", **fields)
    request = pb.CreateExpectedMachineRequest(expected_machine=message)
    made: pb.ExpectedMachine = await plane.stub("operator", ExpectedMachineServiceStub).CreateExpectedMachine(request)
    return made


async def update(plane: Any, id_: str, **fields: Any) -> pb.ExpectedMachine:
    message, mask = pb.ExpectedMachine(id=id_, **fields), FieldMask(paths=[*fields])
    request = pb.UpdateExpectedMachineRequest(expected_machine=message, update_mask=mask)
    made: pb.ExpectedMachine = await plane.stub("operator", ExpectedMachineServiceStub).UpdateExpectedMachine(request)
    return made


async def get(plane: Any, id_: str) -> pb.ExpectedMachine:
    stub = plane.stub("viewer", ExpectedMachineServiceStub)
    found: pb.ExpectedMachine = await stub.GetExpectedMachine(pb.GetExpectedMachineRequest(id=id_))
    return found


async def differences(plane: Any, id_: str) -> dict[str, tuple[str, str]]:
    return {each.field: (each.expected, each.seen) for each in (await get(plane, id_)).differences}


async def issues(plane: Any) -> dict[str, str]:
    answer = await plane.stub("viewer", IssueServiceStub).ListPlaneIssues(issue_pb2.ListPlaneIssuesRequest())
    return {each.id: each.details for each in answer.issues if each.id.startswith("discovery/")}


async def test_an_expected_bmc_is_found_with_its_initial_credential_which_is_then_erased(
    plane: Any, new_bmc: NewBmc, leases: Path, port: int, options: dict[str, Any], eventually: Eventually
) -> None:
    bmc = await new_bmc("127.9.2.1", port, user="root", password=INITIAL, fru_info=fru("S1"), powered=True)
    await plane.start(**options)
    made = await expect(plane, mac=MAC.format(1), serial="S1", user="root", password=INITIAL, vendor="Supermicro")
    assert (made.password, made.has_password, made.machine) == ("", True, "")
    show(leases, a1=1)
    await eventually(lambda: plane.inventory.reports.get(bmc.machine), seconds=30)
    found = await get(plane, made.id)
    assert (found.machine, found.has_password, found.user) == (bmc.machine, False, "root")
    assert found.HasField("found_time")
    assert not found.differences
    assert (await plane.rows("SELECT sealed FROM expected_machine"))[0]["sealed"] is None
    assert (await plane.command(bmc, "POWER_OFF")).state == bmc_pb2.COMMAND_STATE_SUCCEEDED
    assert bmc.logins.started >= 1


async def test_a_refused_initial_credential_is_an_issue_and_is_not_tried_again_until_it_changes(
    plane: Any, new_bmc: NewBmc, leases: Path, port: int, options: dict[str, Any], eventually: Eventually
) -> None:
    bmc = await new_bmc("127.9.2.1", port, user="root", password=INITIAL)
    other = await new_bmc("127.9.2.2", port, user="ADMIN", password=FACTORY)
    await plane.start(**options)
    made = await expect(plane, mac=MAC.format(1), user="root", password="smudged-label")
    show(leases, a1=1)

    async def refused() -> bool:
        return await differences(plane, made.id) == {
            "login": ("user root with the initial password", "refused at 127.9.2.1")
        }

    await eventually(refused)
    show(leases, a1=1, a2=2)
    await eventually(lambda: plane.rows("SELECT FROM endpoint WHERE machine = $1", other.machine))
    assert bmc.logins.started == 1
    assert (
        "expected user root with the initial password" in (await issues(plane))[f"discovery/expected/{made.id}/login"]
    )
    await update(plane, made.id, password=INITIAL)

    async def well() -> bool:
        return (await get(plane, made.id)).machine == bmc.machine and not await issues(plane)

    await eventually(well)


async def test_what_is_not_as_ordered_is_an_issue_that_names_both_and_ends_with_the_difference(
    plane: Any, new_bmc: NewBmc, leases: Path, port: int, options: dict[str, Any], eventually: Eventually
) -> None:
    bmc = await new_bmc("127.9.2.1", port, user="ADMIN", password=FACTORY, fru_info=fru("S1"))
    await plane.start(**options)
    made = await expect(plane, mac=MAC.format(1), serial="S2", vendor="Dell", model="R650", rack="r7")
    show(leases, a1=1)
    wanted = {"serial": ("S2", "S1"), "vendor": ("Dell", "Supermicro Inc."), "model": ("R650", "SYS-1")}

    async def different() -> bool:
        return set(wanted.items()) <= set((await differences(plane, made.id)).items())

    await eventually(lambda: plane.inventory.reports.get(bmc.machine), seconds=30)
    await eventually(different)
    details = (await issues(plane))[f"discovery/expected/{made.id}/serial"]
    assert details.startswith(f"serial of machine {bmc.machine}: expected S2, seen S1; is it the machine")
    since = (await get(plane, made.id)).differences[0].since
    await update(plane, made.id, vendor="supermicro")

    async def two_left() -> bool:
        return {"serial", "model"} == set(await differences(plane, made.id))

    await eventually(two_left)
    assert (await get(plane, made.id)).differences[0].since == since
    await update(plane, made.id, serial="s1 ".strip(), model="sys 1")

    async def none_left() -> bool:
        return not await issues(plane) and (await get(plane, made.id)).machine == bmc.machine

    await eventually(none_left)


async def test_a_machine_is_matched_by_serial_where_its_mac_is_not_known(
    plane: Any, new_bmc: NewBmc, leases: Path, port: int, options: dict[str, Any], eventually: Eventually
) -> None:
    bmc = await new_bmc("127.9.2.1", port, user="ADMIN", password=FACTORY, fru_info=fru("S1"))
    await plane.start(**{**options, "unexpected_bmcs": "leave"})
    made = await expect(plane, serial="S1")
    show(leases, a1=1)

    async def matched() -> bool:
        return (await get(plane, made.id)).machine == bmc.machine

    await eventually(matched, seconds=30)


async def test_bmcs_that_nobody_expects_are_left_alone_where_the_policy_says_so(
    plane: Any, new_bmc: NewBmc, leases: Path, port: int, options: dict[str, Any], eventually: Eventually
) -> None:
    bmc = await new_bmc("127.9.2.1", port, user="ADMIN", password=FACTORY)
    await plane.start(**{**options, "unexpected_bmcs": "leave"})
    show(leases, a1=1)
    name = f"discovery/unexpected/{MAC.format(1)}"

    async def told() -> bool:
        return "found at 127.9.2.1, not among the expected machines, and left alone" in (await issues(plane)).get(
            name, ""
        )

    await eventually(told)
    assert bmc.logins.started == 0
    await expect(plane, mac=MAC.format(1))

    async def well() -> bool:
        return bool(await plane.rows("SELECT FROM endpoint")) and not await issues(plane)

    await eventually(well)


async def test_bmcs_that_nobody_expects_are_registered_and_reported_where_the_policy_says_so(
    plane: Any, new_bmc: NewBmc, leases: Path, port: int, options: dict[str, Any], eventually: Eventually
) -> None:
    bmc = await new_bmc("127.9.2.1", port, user="ADMIN", password=FACTORY)
    await plane.start(**{**options, "unexpected_bmcs": "report"})
    show(leases, a1=1)

    async def told() -> bool:
        return list(await issues(plane)) == [f"discovery/unexpected/{bmc.machine}"]

    await eventually(told)
    await plane.stub().DeleteBmc(bmc_pb2.DeleteBmcRequest(machine=bmc.machine))
    show(leases)

    async def well() -> bool:
        return not await issues(plane)

    await eventually(well)


async def test_a_machine_that_does_not_come_is_missing_after_the_time_that_is_set(
    plane: Any, options: dict[str, Any], eventually: Eventually
) -> None:
    await plane.start(**options)
    made = await expect(plane, mac=MAC.format(1), rack="r7")

    async def missing() -> bool:
        return "presence" in await differences(plane, made.id)

    assert not await missing()
    await plane.rows("UPDATE expected_machine SET created_at = now() - interval '25 hours'")
    await eventually(missing)
    (details,) = (await issues(plane)).values()
    assert details.startswith("presence: expected a BMC that is found, seen none since ")
    await plane.stub("operator", ExpectedMachineServiceStub).DeleteExpectedMachine(
        pb.DeleteExpectedMachineRequest(id=made.id)
    )
    assert await issues(plane) == {}


async def test_a_second_bmc_that_names_a_machine_whose_bmc_answers_does_not_take_its_place(
    plane: Any, new_bmc: NewBmc, leases: Path, port: int, options: dict[str, Any], eventually: Eventually
) -> None:
    first = await new_bmc("127.9.2.1", port, user="ADMIN", password=FACTORY)
    await new_bmc("127.9.2.2", port, user="ADMIN", password=FACTORY, machine=first.machine)
    await plane.start(**options)
    show(leases, a1=1)
    await eventually(lambda: plane.inventory.reports.get(first.machine), seconds=30)
    show(leases, a1=1, a2=2)
    await eventually(lambda: plane.rows("SELECT FROM sighting WHERE reason = 'DUPLICATE_MACHINE'"))
    (row,) = await plane.rows("SELECT host, mac FROM endpoint")
    assert (row["host"], row["mac"]) == ("127.9.2.1", MAC.format(1))


@pytest.mark.parametrize(
    ("fields", "field", "reason"),
    [
        ({"mac": ""}, "expected_machine.mac", "NOT_RECOGNIZABLE"),
        ({"mac": "0C-C4"}, "expected_machine.mac", ""),
        ({"serial": " S1"}, "expected_machine.serial", "INVALID_SERIAL"),
        ({"driver": bmc_pb2.DRIVER_KIND_MANUAL}, "expected_machine.driver", "DRIVER_NOT_THERE"),
        ({"password": "x"}, "expected_machine.user", "USER_MISSING"),
        ({"user": "root"}, "expected_machine.password", "PASSWORD_MISSING"),
        ({"mac": "", "serial": "S1", "user": "root", "password": "x"}, "expected_machine.mac", "MAC_MISSING"),
        ({"user": "root", "password": "é" * 11}, "expected_machine.password", "INVALID_PASSWORD"),
        ({"partition": "ams1"}, "expected_machine.partition", "WRONG_PARTITION"),
    ],
)
async def test_bad_expectations_are_refused_with_the_field_and_nothing_is_written(
    plane: Any, fields: dict[str, Any], field: str, reason: str
) -> None:
    await plane.start()
    message = pb.ExpectedMachine(**{"partition": "fra1", "mac": MAC.format(1), **fields})
    request = pb.CreateExpectedMachineRequest(expected_machine=message)
    with pytest.raises(InvalidArgument) as refused:
        await plane.stub("operator", ExpectedMachineServiceStub).CreateExpectedMachine(request)
    assert [each.field for each in refused.value.violations] == [field]
    assert reason in ("", refused.value.reason)
    assert await plane.rows("SELECT FROM expected_machine") == []


async def test_expectations_are_unique_guarded_by_etags_and_listed_by_pages(plane: Any) -> None:
    await plane.start()
    first = await expect(plane, mac=MAC.format(1), serial="S1", user="root", password=INITIAL)
    for fields, reason in (({"mac": MAC.format(1)}, "MAC_TAKEN"), ({"serial": "s1"}, "SERIAL_TAKEN")):
        with pytest.raises(AlreadyExists) as taken:
            await expect(plane, **fields)
        assert taken.value.reason == reason
    second = await expect(plane, serial="S2")
    stub = plane.stub("operator", ExpectedMachineServiceStub)
    seen, token = [], ""
    for _ in range(2):
        page = await stub.ListExpectedMachines(pb.ListExpectedMachinesRequest(page_size=1, page_token=token))
        seen, token = [*seen, *page.expected_machines], page.next_page_token
    assert ([each.id for each in seen], token) == ([first.id, second.id], "")
    assert not any(each.password for each in seen)
    stale = pb.UpdateExpectedMachineRequest(
        expected_machine=pb.ExpectedMachine(id=first.id, rack="r1", etag="99"), update_mask=FieldMask(paths=["rack"])
    )
    with pytest.raises(Aborted):
        await stub.UpdateExpectedMachine(stale)
    with pytest.raises(NotFound):
        await get(plane, str(uuid.uuid4()))
    viewer = plane.stub("viewer", ExpectedMachineServiceStub)
    with pytest.raises(PermissionDenied):
        await viewer.DeleteExpectedMachine(pb.DeleteExpectedMachineRequest(id=first.id))


async def test_a_retry_of_a_creation_gets_the_first_answer(plane: Any) -> None:
    await plane.start()
    message = pb.ExpectedMachine(partition="fra1", mac=MAC.format(1), user="root", password=INITIAL)
    request = pb.CreateExpectedMachineRequest(request_id=str(uuid.uuid4()), expected_machine=message)
    stub = plane.stub("operator", ExpectedMachineServiceStub)
    assert await stub.CreateExpectedMachine(request) == await stub.CreateExpectedMachine(request)
    request.expected_machine.password = "another"
    with pytest.raises(InvalidArgument):
        await stub.CreateExpectedMachine(request)
    assert INITIAL.encode() not in b"".join(
        row["r"] for row in await plane.rows("SELECT response AS r FROM idempotency")
    )


async def test_initial_passwords_are_counted_and_sealed_anew_with_the_others(
    plane: Any, eventually: Eventually
) -> None:
    await plane.start()
    await expect(plane, mac=MAC.format(1), user="root", password=INITIAL)
    keys = await plane.stub("viewer").GetCredentialKeys(bmc_pb2.GetCredentialKeysRequest())
    assert {key.id: key.passwords for key in keys.keys} == {"k1": 1}
    await plane.running.stop(0)
    newer = "k2:" + "A" * 43 + "="
    await plane.start(credential_keys=f"{newer},{plane.keys}")
    answer = await plane.stub().ResealCredentials(bmc_pb2.ResealCredentialsRequest())
    assert {key.id: key.passwords for key in answer.keys.keys} == {"k2": 1, "k1": 0}
    assert answer.keys.unusable_count == 0
