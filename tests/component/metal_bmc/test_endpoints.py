"""Endpoints: registration, secrets, polls, reports, desired power."""

from __future__ import annotations

import base64
import io
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import nats
import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.json_format import MessageToJson
from metal_bmc.credentials import KeyRing
from metal_bmc.resealing import Resealing
from metal_kit import logs
from metal_kit.errors import Aborted, AlreadyExists, InvalidArgument, NotFound, PermissionDenied
from metal_kit.process import StartError
from metal_sim.bmc import PowerAction, SimulatedBmc
from metalplane.bmc.v1 import bmc_pb2 as pb
from metalplane.bmc.v1.events_pb2 import BmcChanged
from metalplane.common.v1.event_pb2 import Event
from metalplane.inventory.v1 import hardware_pb2

NewBmc = Callable[..., Awaitable[SimulatedBmc]]
Eventually = Callable[..., Awaitable[None]]
PASSWORD = "pw-Tr0ub4dor-do-leak"
OTHER_PASSWORD = "pw-0ther-secret-leak"
KEY_2 = "k2:" + base64.b64encode(bytes(range(100, 132))).decode()

CHASSIS_STATUS = (0, 1)


def bmc_of(**more: Any) -> pb.Bmc:
    values: dict[str, Any] = {
        "machine": str(uuid.uuid4()), "partition": "fra1", "address": "192.0.2.1", "user": "metal", "password": PASSWORD
    }  # fmt: skip
    return pb.Bmc(**{**values, **more})


async def register(plane: Any, **more: Any) -> pb.Bmc:
    answer: pb.Bmc = await plane.stub().RegisterBmc(pb.RegisterBmcRequest(bmc=bmc_of(**more)))
    return answer


async def get(plane: Any, machine: str) -> pb.Bmc:
    answer: pb.Bmc = await plane.stub("viewer").GetBmc(pb.GetBmcRequest(machine=machine))
    return answer


async def test_a_registered_bmc_is_shown_without_its_password(plane: Any) -> None:
    await plane.start()
    made = await register(plane, mac="0c:c4:7a:00:00:01", desired_power=pb.POWER_UNSPECIFIED)
    assert (made.address, made.has_password, made.password) == ("192.0.2.1:623", True, "")
    assert await get(plane, made.machine) == made
    listed = await plane.stub("viewer").ListBmcs(pb.ListBmcsRequest(partition="fra1"))
    assert list(listed.bmcs) == [made]


async def test_lists_page_and_filter(plane: Any) -> None:
    await plane.start()
    made = sorted([(await register(plane, address=f"192.0.2.{n}")).machine for n in range(1, 6)])
    stub, found, token = plane.stub("viewer"), [], ""
    while True:
        page = await stub.ListBmcs(pb.ListBmcsRequest(page_size=2, page_token=token))
        found += [bmc.machine for bmc in page.bmcs]
        token = page.next_page_token
        if not token:
            break
    assert found == made
    assert not (await stub.ListBmcs(pb.ListBmcsRequest(partition="elsewhere"))).bmcs
    first = await stub.ListBmcs(pb.ListBmcsRequest(page_size=2))
    with pytest.raises(InvalidArgument, match="INVALID_PAGE_TOKEN"):
        await stub.ListBmcs(pb.ListBmcsRequest(partition="fra1", page_token=first.next_page_token))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("address", "300.1.1.1"),
        ("address", "192.0.2.1:70000"),
        ("address", "[2001:db8::1"),
        ("machine", "4c4c4544"),
        ("mac", "0C-C4-7A-00-00-01"),
        ("user", "a-user-name-of-more-than-sixteen"),
        ("password", "ü" * 11),
        ("partition", "ams1"),
        ("desired_power", 7),
    ],
)
async def test_a_bad_registration_names_its_field_and_writes_nothing(field: str, value: Any, plane: Any) -> None:
    await plane.start()
    with pytest.raises(InvalidArgument) as caught:
        await register(plane, **{field: value})
    assert caught.value.field == f"bmc.{field}"
    assert PASSWORD not in str(caught.value)
    assert await plane.rows("SELECT FROM endpoint") == []


async def test_two_machines_never_share_an_address_or_a_mac(plane: Any) -> None:
    await plane.start()
    await register(plane, mac="0c:c4:7a:00:00:01")
    with pytest.raises(AlreadyExists, match="ADDRESS_TAKEN"):
        await register(plane)
    with pytest.raises(AlreadyExists, match="MAC_TAKEN"):
        await register(plane, address="192.0.2.2", mac="0c:c4:7a:00:00:01")


async def test_an_update_changes_what_its_mask_names(plane: Any) -> None:
    await plane.start()
    made, stub = await register(plane), plane.stub()
    wanted = pb.Bmc(machine=made.machine, etag=made.etag, address="bmc7.example.org:6230", user="root")
    moved = await stub.UpdateBmc(pb.UpdateBmcRequest(bmc=wanted, update_mask=FieldMask(paths=["address"])))
    assert (moved.address, moved.user, moved.has_password) == ("bmc7.example.org:6230", "metal", True)
    with pytest.raises(Aborted, match="ETAG_MISMATCH"):
        await stub.UpdateBmc(pb.UpdateBmcRequest(bmc=wanted, update_mask=FieldMask(paths=["user"])))
    wanted.etag = ""
    with pytest.raises(InvalidArgument, match="PASSWORD_EMPTY"):
        await stub.UpdateBmc(pb.UpdateBmcRequest(bmc=wanted, update_mask=FieldMask(paths=["password"])))
    wanted.partition = "ams1"
    with pytest.raises(InvalidArgument, match="IMMUTABLE_FIELD"):
        await stub.UpdateBmc(pb.UpdateBmcRequest(bmc=wanted, update_mask=FieldMask(paths=["partition"])))
    wanted.address = "not an address"
    with pytest.raises(InvalidArgument) as caught:
        await stub.UpdateBmc(pb.UpdateBmcRequest(bmc=wanted, update_mask=FieldMask(paths=["address"])))
    assert caught.value.field == "bmc.address"


async def test_a_repeated_registration_answers_the_same_and_tells_passwords_apart(plane: Any) -> None:
    await plane.start()
    stub, request = plane.stub(), pb.RegisterBmcRequest(request_id=str(uuid.uuid4()), bmc=bmc_of())
    assert await stub.RegisterBmc(request) == await stub.RegisterBmc(request)
    request.bmc.password = OTHER_PASSWORD
    with pytest.raises(InvalidArgument, match="REQUEST_ID_REUSED"):
        await stub.RegisterBmc(request)


async def test_a_deleted_bmc_is_gone_and_its_commands_fail(plane: Any, new_bmc: NewBmc) -> None:
    await plane.start()
    bmc = await new_bmc()
    bmc.faults.switch_on("hang")
    await plane.register(bmc)
    stub = plane.stub()
    given = await stub.CreateCommand(pb.CreateCommandRequest(machine=bmc.machine, action=pb.COMMAND_ACTION_RESET))
    with pytest.raises(Aborted, match="ETAG_MISMATCH"):
        await stub.DeleteBmc(pb.DeleteBmcRequest(machine=bmc.machine, etag="99"))
    await stub.DeleteBmc(pb.DeleteBmcRequest(machine=bmc.machine))
    assert (await plane.ended(given.id)).reason == "BMC_DELETED"
    with pytest.raises(NotFound):
        await get(plane, bmc.machine)
    with pytest.raises(NotFound):
        await stub.DeleteBmc(pb.DeleteBmcRequest(machine=bmc.machine))
    assert await plane.rows("SELECT FROM endpoint") == []


async def test_versions_go_on_after_a_deletion(plane: Any) -> None:
    await plane.start()
    made = await register(plane)
    await plane.stub().DeleteBmc(pb.DeleteBmcRequest(machine=made.machine))
    await register(plane, machine=made.machine)
    rows = await plane.rows("SELECT version, deleted FROM change WHERE entity = 'bmc' ORDER BY id")
    versions = [row["version"] for row in rows]
    assert versions == sorted(set(versions))
    assert [row["deleted"] for row in rows] == [False, True, False]


async def test_only_operators_may_register(plane: Any) -> None:
    await plane.start()
    for token in ("viewer", ""):
        with pytest.raises(PermissionDenied):
            await plane.stub(token).RegisterBmc(pb.RegisterBmcRequest(bmc=bmc_of()))


@pytest.fixture
async def bus(nats_url: str) -> AsyncIterator[list[bytes]]:
    """Every message on the bus."""
    client = await nats.connect(nats_url)
    messages: list[bytes] = []

    async def keep(message: Any) -> None:
        messages.append(message.data)

    await client.subscribe("metalplane.bmc.>", cb=keep)
    await client.flush()
    yield messages
    await client.close()


async def test_no_password_is_in_any_log_event_list_or_row(
    plane: Any, new_bmc: NewBmc, bus: list[bytes], eventually: Eventually
) -> None:
    out = io.StringIO()
    logs.configure("debug", stream=out)
    try:
        await plane.start(factory_user="ADMIN", factory_password=OTHER_PASSWORD)
        bmc = await new_bmc(powered=True)
        await plane.register(bmc)
        await plane.command(bmc, "POWER_OFF")
        for fault in ("wrong-password", "slots-full"):
            bmc.faults.switch_on(fault)
            await plane.command(bmc, "POWER_ON")
            bmc.faults.clear()
        await plane.register(bmc)
        await plane.command(bmc, "PXE_CYCLE")
        with pytest.raises(InvalidArgument):
            await register(plane, address="not an address")
        listed = await plane.stub("viewer").ListBmcs(pb.ListBmcsRequest())
        await eventually(lambda: sum(b"command.finished" in message for message in bus) >= 4)
        await plane.running.stop(5)
    finally:
        logs.configure()
    tables = await plane.rows("SELECT table_name FROM information_schema.tables WHERE table_schema = 'bmc'")
    rows = [repr(await plane.rows(f'SELECT * FROM "{table["table_name"]}"')) for table in tables]
    for secret in (PASSWORD, OTHER_PASSWORD, "AAECAwQFBgcICQ"):
        assert secret not in out.getvalue()
        assert secret not in MessageToJson(listed)
        assert not any(secret.encode() in message for message in bus)
        assert not any(secret in row for row in rows)
    assert "bmc.command.finished" in out.getvalue()
    # The search would find it: what is searched is not empty, nor encoded beyond recognition.
    assert any(bmc.machine.encode() in message for message in bus)
    assert any(bmc.machine in row for row in rows)


async def test_events_show_the_bmc_and_who_it_is(plane: Any, bus: list[bytes], eventually: Eventually) -> None:
    await plane.start()
    made = await register(plane)
    await eventually(lambda: any(made.machine.encode() in message for message in bus))
    event = Event.FromString(next(message for message in bus if made.machine.encode() in message))
    payload = BmcChanged()
    assert event.payload.Unpack(payload)
    assert (event.subject, event.entity_id, event.partition) == (
        "metalplane.bmc.endpoint.changed",
        made.machine,
        "fra1",
    )
    assert payload.bmc == made


async def test_polls_see_power_identity_and_faults(plane: Any, new_bmc: NewBmc, eventually: Eventually) -> None:
    await plane.start(poll_seconds=0.2, exchange_seconds=4)
    bmc = await new_bmc(powered=True, firmware=(3, 11))
    await plane.register(bmc)

    async def shows(power: pb.Power.ValueType, error: str = "") -> bool:
        seen = await get(plane, bmc.machine)
        return seen.reported_power == power and seen.error.startswith(error) and bool(seen.error) == bool(error)

    await eventually(lambda: shows(pb.POWER_ON))
    assert (await get(plane, bmc.machine)).version == "3.11"
    bmc.chassis.machine_powered_off()
    await eventually(lambda: shows(pb.POWER_OFF))
    bmc.faults.switch_on("hang")
    await eventually(lambda: shows(pb.POWER_OFF, "TIMEOUT"), seconds=30)
    bmc.faults.clear()
    await eventually(lambda: shows(pb.POWER_OFF), seconds=30)
    assert bmc.logins.failed == 0


async def test_an_unchanged_answer_is_no_event(plane: Any, new_bmc: NewBmc, eventually: Eventually) -> None:
    await plane.start(poll_seconds=0.1)
    bmc = await new_bmc()
    await plane.register(bmc)
    await eventually(lambda: bmc.seen[CHASSIS_STATUS] >= 4, seconds=30)
    assert len(await plane.rows("SELECT FROM change WHERE entity = 'bmc'")) == 2


async def test_inventory_hears_of_changes_and_that_a_bmc_still_answers(
    plane: Any, new_bmc: NewBmc, eventually: Eventually
) -> None:
    plane.inventory.away = True
    await plane.start(poll_seconds=0.2, report_seconds=1)
    bmc = await new_bmc(powered=True)
    await plane.register(bmc)
    await eventually(lambda: plane.rows("SELECT FROM endpoint WHERE observed_at IS NOT NULL"))
    assert plane.inventory.reports == {}
    plane.inventory.away = False
    await eventually(lambda: plane.inventory.reports.get(bmc.machine), seconds=30)
    info = plane.inventory.reports[bmc.machine][0].bmc
    assert info.power == hardware_pb2.POWER_STATE_ON
    assert info.address == f"{bmc.address[0]}:{bmc.address[1]}"
    assert info.fru.board_serial == bmc.fru_info.board_serial
    assert info.fru.product_part_number == bmc.fru_info.product_part
    await eventually(lambda: len(plane.inventory.reports[bmc.machine]) >= 2)
    bmc.chassis.machine_powered_off()
    await eventually(lambda: plane.inventory.reports[bmc.machine][-1].bmc.power == hardware_pb2.POWER_STATE_OFF)


async def test_desired_power_is_enforced(plane: Any, new_bmc: NewBmc, eventually: Eventually) -> None:
    await plane.start(poll_seconds=0.2)
    bmc = await new_bmc()
    await plane.register(bmc, desired_power=pb.POWER_ON)
    await eventually(lambda: bmc.chassis.powered)
    bmc.chassis.machine_powered_off()
    await eventually(lambda: bmc.chassis.powered)
    assert bmc.chassis.history == [PowerAction.ON, PowerAction.ON]


async def test_a_machine_that_never_follows_is_ordered_less_and_less_often(
    plane: Any, new_bmc: NewBmc, eventually: Eventually
) -> None:
    await plane.start(poll_seconds=0.2)
    bmc = await new_bmc()
    bmc.faults.switch_on("does-nothing")
    await plane.register(bmc, desired_power=pb.POWER_ON)
    # What the attempts and the polls read is known by then, and is no reason to look sooner.
    at_rest = "SELECT FROM reconcile_queue WHERE holder IS NULL AND attempts >= 3 AND ready_at > updated_at"
    await eventually(lambda: plane.rows(at_rest), seconds=60)


async def test_a_power_command_takes_the_desired_power_along(
    plane: Any, new_bmc: NewBmc, eventually: Eventually
) -> None:
    await plane.start(poll_seconds=0.2)
    bmc = await new_bmc(powered=True)
    await plane.register(bmc, desired_power=pb.POWER_ON)
    await plane.command(bmc, "POWER_OFF")
    assert (await get(plane, bmc.machine)).desired_power == pb.POWER_OFF
    readings = bmc.seen[CHASSIS_STATUS]
    await eventually(lambda: bmc.seen[CHASSIS_STATUS] > readings + 2)
    assert bmc.chassis.history == [PowerAction.OFF]


async def test_power_that_nobody_wants_is_left_alone(plane: Any, new_bmc: NewBmc, eventually: Eventually) -> None:
    await plane.start(poll_seconds=0.1)
    bmc = await new_bmc()
    await plane.register(bmc)
    await eventually(lambda: bmc.seen[CHASSIS_STATUS] >= 3, seconds=30)
    assert bmc.chassis.history == []


async def test_keys_are_rotated_without_a_new_password(plane: Any, new_bmc: NewBmc, eventually: Eventually) -> None:
    await plane.start()
    bmc = await new_bmc(powered=True)
    await plane.register(bmc)
    await plane.running.stop(0)
    await plane.start(credential_keys=f"{KEY_2},{plane.keys}")
    await eventually(lambda: plane.rows("SELECT FROM endpoint WHERE substring(sealed FROM 3 FOR 2) = 'k2'::bytea"))
    await plane.running.stop(0)
    await plane.start(credential_keys=KEY_2)
    assert (await plane.command(bmc, "POWER_OFF")).state == pb.COMMAND_STATE_SUCCEEDED


async def test_keys_are_rotated_in_ones_own_partition_only(plane: Any, new_bmc: NewBmc, eventually: Eventually) -> None:
    await plane.start()
    here, elsewhere = await new_bmc(powered=True), await new_bmc(powered=True)
    await plane.register(here)
    await plane.register(elsewhere)
    await plane.rows("UPDATE endpoint SET partition = 'fra2' WHERE machine = $1", elsewhere.machine)
    await plane.running.stop(0)
    running = await plane.start(credential_keys=f"{KEY_2},{plane.keys}")
    sealed_by_new = "SELECT machine::text FROM endpoint WHERE substring(sealed FROM 3 FOR 2) = 'k2'::bytea"
    await eventually(lambda: plane.rows(sealed_by_new))
    ring = KeyRing.parse(f"{KEY_2},{plane.keys}")
    assert await Resealing(running.runtime.db, ring, partition="fra1").reseal() == 0
    assert [row["machine"] for row in await plane.rows(sealed_by_new)] == [here.machine]


async def test_a_lost_key_is_named_on_the_bmc_and_nothing_is_sent(plane: Any, new_bmc: NewBmc) -> None:
    await plane.start()
    bmc = await new_bmc(powered=True)
    await plane.register(bmc)
    await plane.running.stop(0)
    logins = bmc.logins.started
    await plane.start(credential_keys=KEY_2)
    command = await plane.command(bmc, "POWER_OFF")
    assert (command.state, command.reason) == (pb.COMMAND_STATE_FAILED, "NO_CREDENTIALS")
    assert (await get(plane, bmc.machine)).error.startswith("NO_CREDENTIALS")
    assert bmc.logins.started == logins


async def test_a_bad_key_ring_stops_the_start_with_one_line(plane: Any) -> None:
    with pytest.raises(StartError, match="METALPLANE_CREDENTIAL_KEYS: key 'k1' is not base64"):
        await plane.start(credential_keys="k1:!")
