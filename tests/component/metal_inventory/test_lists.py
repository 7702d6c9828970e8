"""Lists, exports, issues, and who sees what."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from metal_inventory.issues import IDS
from metal_inventory.liveliness import SILENCE_LIMIT
from metal_inventory.store.sweeps import LIVELINESS
from metal_kit.errors import InvalidArgument, NotFound, PermissionDenied
from metal_kit.identity import partition_agent_id, service_id
from metalplane.inventory.v1 import hardware_pb2 as hw
from metalplane.inventory.v1 import machine_pb2 as pb

PROJECT = "0198c1d2-0000-7000-8000-000000000001"
OTHER = "0198c1d2-0000-7000-8000-000000000002"


async def listed(inventory: Any, *, token: str = "operator", as_: str = "", **filter_: Any) -> list[str]:
    request, ids = pb.ListMachinesRequest(filter=pb.MachineFilter(**filter_), page_size=2), []
    while True:
        page = await inventory.machines(as_, token=token).ListMachines(request)
        ids += [machine.id for machine in page.machines]
        if not page.next_page_token:
            return ids
        request.page_token = page.next_page_token


async def test_each_filter_selects_and_pages_by_id(inventory: Any) -> None:
    ids = [inventory.machine_id(number) for number in range(1, 8)]
    for id_ in ids[:5]:
        await inventory.report(id_, "PXE_BOOTING")
    await inventory.waiting(ids[5])
    bound = await inventory.waiting(ids[6])
    await inventory.bind(ids[6], str(uuid4()), PROJECT)
    await inventory.set_state(ids[0], "TAINTED", "odd noises")
    label = pb.UpdateMachineRequest(machine=pb.Machine(id=ids[1], labels={"room": "a", "row": "1"}))
    await inventory.machines().UpdateMachine(label)

    assert await listed(inventory) == ids
    assert await listed(inventory, partition="mini") == ids
    assert await listed(inventory, partition="other") == []
    assert await listed(inventory, rack="rack-1") == ids[5:]
    assert await listed(inventory, size="unknown") == ids[:5]
    assert await listed(inventory, project=PROJECT) == [ids[6]]
    assert await listed(inventory, state=pb.MACHINE_STATE_TAINTED) == [ids[0]]
    assert await listed(inventory, state=pb.MACHINE_STATE_AVAILABLE) == ids[1:]
    assert await listed(inventory, lifecycle=pb.LIFECYCLE_STATE_WAITING) == ids[5:]
    assert await listed(inventory, allocated=True) == [ids[6]]
    assert await listed(inventory, allocated=False) == ids[:6]
    assert await listed(inventory, waiting=True) == [ids[5]]
    assert await listed(inventory, labels={"room": "a"}) == [ids[1]]
    assert await listed(inventory, labels={"room": "b"}) == []
    assert await listed(inventory, mac=bound.hardware.nics[0].mac) == [ids[6]]
    assert await listed(inventory, size="unknown", state=pb.MACHINE_STATE_TAINTED) == [ids[0]]


async def test_a_token_of_another_filter_is_refused(inventory: Any) -> None:
    for number in range(1, 4):
        await inventory.report(inventory.machine_id(number), "PXE_BOOTING")
    first = await inventory.machines().ListMachines(pb.ListMachinesRequest(page_size=1))
    request = pb.ListMachinesRequest(page_token=first.next_page_token, filter=pb.MachineFilter(size="unknown"))
    with pytest.raises(InvalidArgument) as refused:
        await inventory.machines().ListMachines(request)
    assert refused.value.field == "page_token"


async def test_people_see_the_machines_of_their_projects_and_no_others(inventory: Any) -> None:
    mine, free = inventory.machine_id(1), inventory.machine_id(2)
    await inventory.waiting(mine)
    await inventory.waiting(free)
    await inventory.bind(mine, str(uuid4()), PROJECT)
    assert await listed(inventory, token=f"member {PROJECT}") == [mine]
    assert await listed(inventory, token=f"member {OTHER}") == []
    assert (await inventory.get(mine, token=f"member {PROJECT}")).id == mine
    for token, id_ in ((f"member {OTHER}", mine), (f"member {PROJECT}", free)):
        with pytest.raises(NotFound):
            await inventory.get(id_, token=token)
        with pytest.raises(NotFound):
            await inventory.machines(token=token).ListMachineEvents(pb.ListMachineEventsRequest(machine=id_))
    with pytest.raises(PermissionDenied):
        await inventory.machines(token=f"member {PROJECT}").ListMachineIssues(pb.ListMachineIssuesRequest())


async def test_agents_see_the_machines_of_their_partition(inventory: Any) -> None:
    id_ = inventory.machine_id(1)
    await inventory.report(id_, "PXE_BOOTING")
    assert await listed(inventory, as_=partition_agent_id("mini", "boot")) == [id_]
    assert await listed(inventory, as_=partition_agent_id("other", "boot")) == []
    with pytest.raises(NotFound):
        await inventory.get(id_, as_=partition_agent_id("other", "bmc"))


async def test_an_export_has_every_machine_once_in_batches(inventory: Any) -> None:
    await inventory.sql(
        "INSERT INTO machine (id, partition) SELECT gen_random_uuid(), 'mini' FROM generate_series(1, 650)"
    )
    await inventory.sql("INSERT INTO lifecycle (machine) SELECT id FROM machine")
    batches = [
        batch async for batch in inventory.machines(service_id("allocation")).StreamMachines(pb.StreamMachinesRequest())
    ]
    assert [len(batch.machines) for batch in batches] == [0, *[100] * 6, 50]
    ids = [machine.id for batch in batches for machine in batch.machines]
    assert ids == sorted(set(ids))
    assert [bool(batch.watch_position) for batch in batches] == [True, *[False] * 7]


async def test_an_export_of_nothing_still_says_from_where_to_watch(inventory: Any) -> None:
    call = inventory.machines().StreamMachines(pb.StreamMachinesRequest())
    batches = [batch async for batch in call]
    assert len(batches) == 1
    assert batches[0].watch_position


# -- liveliness


async def test_the_sweep_judges_as_the_rule_does(inventory: Any) -> None:
    """The rule exists twice, in Python and in SQL."""
    cases = [(None, False), ("0 s", False), ("299 s", True), ("301 s", True), ("299 s", False), ("301 s", False)]
    expected = ["NOT_AVAILABLE", "ALIVE", "ALIVE", "UNKNOWN", "ALIVE", "DEAD"]
    sql = f"""
        SELECT {LIVELINESS} FROM (SELECT clock_timestamp() - $2::text::interval AS last_event_at) AS l,
            (SELECT CASE WHEN $3::boolean THEN gen_random_uuid() END AS allocation_id) AS m
    """
    got = [(await inventory.sql(sql, SILENCE_LIMIT, *case))[0][0] for case in cases]
    assert got == expected


@pytest.mark.parametrize(("bound", "expected"), [(False, pb.LIVELINESS_DEAD), (True, pb.LIVELINESS_UNKNOWN)])
async def test_silence_is_noticed_told_once_and_ended_by_the_next_event(
    inventory: Any, eventually: Any, bound: bool, expected: int
) -> None:
    id_, quiet = inventory.machine_id(1), inventory.machine_id(2)
    await inventory.waiting(id_)
    await inventory.report(quiet, "PXE_BOOTING")
    if bound:
        await inventory.bind(id_, str(uuid4()), PROJECT)
    before = await inventory.get(quiet)
    await inventory.silent_for(id_, "5 minutes 1 second")

    async def noticed() -> bool:
        return bool((await inventory.get(id_)).lifecycle.liveliness == expected)

    await eventually(noticed)
    [told] = await inventory.sql("SELECT count(*) AS n FROM change WHERE entity_id = $1", id_)
    # Two more passes of the sweep: the lease of a second machine ends in one.
    assert (await inventory.get(quiet)).etag == before.etag
    await inventory.report(id_, "ALIVE")
    assert (await inventory.get(id_)).lifecycle.liveliness == pb.LIVELINESS_ALIVE
    [after] = await inventory.sql("SELECT count(*) AS n FROM change WHERE entity_id = $1", id_)
    assert after["n"] == told["n"] + 1


# -- BMCs and issues


def bmc_reports(**addresses: str) -> pb.ReportBmcsRequest:
    observed = Timestamp()
    observed.GetCurrentTime()
    request = pb.ReportBmcsRequest(partition="mini")
    for number, (id_, address) in enumerate(addresses.items()):
        request.reports.add(
            machine=id_,
            bmc=hw.BmcInfo(
                address=address, mac=f"02:00:00:00:00:{number:02x}", power=hw.POWER_STATE_ON, observed_time=observed
            ),
        )
    return request


async def test_a_bmc_report_from_beyond_the_calendar_is_refused_by_its_field(inventory: Any) -> None:
    request = bmc_reports(**{inventory.machine_id(1): "10.0.0.1:623"})
    request.reports[0].bmc.observed_time.seconds = 1 << 60
    with pytest.raises(InvalidArgument) as refused:
        await inventory.machines(partition_agent_id("mini", "bmc")).ReportBmcs(request)
    assert refused.value.field == "reports[0].bmc.observed_time"


async def test_bmc_reports_create_machines_and_repeat_without_events(inventory: Any) -> None:
    bmc = inventory.machines(partition_agent_id("mini", "bmc"))
    one, two = inventory.machine_id(1), inventory.machine_id(2)
    request = bmc_reports(**{one: "10.0.0.1:623", two: "10.0.0.2:623"})
    assert sorted((await bmc.ReportBmcs(request)).created) == [one, two]
    machine = await inventory.get(one)
    assert (machine.bmc.address, machine.bmc.power) == ("10.0.0.1:623", hw.POWER_STATE_ON)
    assert await bmc.ReportBmcs(request) == pb.ReportBmcsResponse()
    assert (await inventory.get(one)).etag == machine.etag
    request.reports[0].bmc.power = hw.POWER_STATE_OFF
    request.reports[0].bmc.mac = ""
    await bmc.ReportBmcs(request)
    changed = await inventory.get(one)
    assert (changed.bmc.power, changed.bmc.mac) == (hw.POWER_STATE_OFF, machine.bmc.mac)
    assert int(changed.etag) == int(machine.etag) + 1


async def test_a_fault_of_a_bmc_is_an_issue_until_a_report_comes_without_it(inventory: Any) -> None:
    bmc, id_ = inventory.machines(partition_agent_id("mini", "bmc")), inventory.machine_id(1)
    await inventory.report(id_, "PXE_BOOTING")
    await inventory.set_state(id_, "TAINTED", "fan is loud")
    request = bmc_reports(**{id_: "10.0.0.1:623"})
    request.reports[0].bmc.fault.reason = "UNREACHABLE"
    request.reports[0].bmc.fault.message = "the BMC does not answer"
    request.reports[0].bmc.fault.since.seconds = 1_700_000_000
    wanted = pb.ListMachineIssuesRequest(only=["bmc-fault"])
    for _ in range(2):
        await bmc.ReportBmcs(request)
        [issue] = (await inventory.machines().ListMachineIssues(wanted)).issues
        assert "UNREACHABLE, the BMC does not answer" in issue.message
    assert (await inventory.get(id_)).bmc.fault == request.reports[0].bmc.fault
    told = (await inventory.get(id_)).etag
    request.reports[0].bmc.ClearField("fault")
    await bmc.ReportBmcs(request)
    assert not (await inventory.machines().ListMachineIssues(wanted)).issues
    machine = await inventory.get(id_)
    assert not machine.bmc.HasField("fault")
    assert int(machine.etag) == int(told) + 1
    # What an operator has decided is nobody else's to take back.
    assert (machine.state, machine.state_description) == (pb.MACHINE_STATE_TAINTED, "fan is loud")
    request.reports[0].bmc.fault.reason = "UNREACHABLE"
    request.reports[0].bmc.fault.since.seconds = 1 << 60
    with pytest.raises(InvalidArgument) as refused:
        await bmc.ReportBmcs(request)
    assert refused.value.field == "reports[0].bmc.fault.since"


async def test_a_machine_of_another_partition_is_refused_to_a_bmc_agent(inventory: Any) -> None:
    await inventory.sql("INSERT INTO partition (id, body) VALUES ('other', '')")
    id_ = inventory.machine_id(1)
    await inventory.report(id_, "PXE_BOOTING")
    request = bmc_reports(**{id_: "10.0.0.1:623"})
    request.partition = "other"
    response = await inventory.machines(partition_agent_id("other", "bmc")).ReportBmcs(request)
    assert (list(response.created), list(response.refused)) == ([], [id_])
    assert not (await inventory.get(id_)).HasField("bmc")


async def test_a_machine_twice_in_one_report_is_refused(inventory: Any) -> None:
    request = bmc_reports(**{inventory.machine_id(1): "10.0.0.1:623"})
    request.reports.append(request.reports[0])
    with pytest.raises(InvalidArgument) as refused:
        await inventory.machines(partition_agent_id("mini", "bmc")).ReportBmcs(request)
    assert refused.value.field == "reports"


async def test_a_shared_bmc_address_is_seen_through_a_filter_that_hides_the_other_machine(inventory: Any) -> None:
    """L32."""
    bmc = inventory.machines(partition_agent_id("mini", "bmc"))
    one, two = inventory.machine_id(1), inventory.machine_id(2)
    await bmc.ReportBmcs(bmc_reports(**{one: "10.0.0.1:623", two: "10.0.0.1:623"}))
    await inventory.report(one, "PXE_BOOTING")
    await inventory.set_state(one, "LOCKED", "evidence")
    request = pb.ListMachineIssuesRequest(
        filter=pb.MachineFilter(state=pb.MACHINE_STATE_LOCKED), only=["bmc-no-distinct-ip"]
    )
    [issue] = (await inventory.machines().ListMachineIssues(request)).issues
    assert issue.machine == one
    assert two in issue.message


async def test_issues_are_chosen_by_rule_and_severity_and_page_by_machine(inventory: Any) -> None:
    ids = [inventory.machine_id(number) for number in range(1, 4)]
    for id_ in ids:
        await inventory.report(id_, "CRASHED")
    request, seen = pb.ListMachineIssuesRequest(page_size=1), []
    while True:
        page = await inventory.machines().ListMachineIssues(request)
        seen += [(issue.machine, issue.rule) for issue in page.issues]
        if not page.next_page_token:
            break
        request.page_token = page.next_page_token
    rules = ["crashloop", "last-event-error", "bmc-without-mac", "bmc-without-ip", "bmc-info-outdated"]
    assert seen == [(id_, rule) for id_ in ids for rule in rules]
    request = pb.ListMachineIssuesRequest(min_severity=pb.ISSUE_SEVERITY_MAJOR, omit=["bmc-without-mac"])
    found = (await inventory.machines().ListMachineIssues(request)).issues
    assert {issue.rule for issue in found} == {"crashloop", "bmc-without-ip", "bmc-info-outdated"}
    with pytest.raises(InvalidArgument) as refused:
        await inventory.machines().ListMachineIssues(pb.ListMachineIssuesRequest(omit=["nonsense"]))
    assert refused.value.field == "omit"
    assert IDS[0] in refused.value.message
