"""Machines without a BMC: an order becomes a task for a person, and what the person says is what is known."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from metal_kit.errors import FailedPrecondition, InvalidArgument, NotFound, PermissionDenied, Unimplemented
from metalplane.bmc.v1 import bmc_pb2 as pb
from metalplane.bmc.v1.events_pb2 import ManualTaskChanged
from metalplane.inventory.v1.hardware_pb2 import POWER_STATE_ON
from metalplane.plane.v1 import issue_pb2
from metalplane.plane.v1.issue_pb2_grpc import IssueServiceStub

Eventually = Callable[..., Awaitable[None]]
OPEN, CONFIRMED = pb.MANUAL_TASK_STATE_OPEN, pb.MANUAL_TASK_STATE_CONFIRMED
DECLINED, WITHDRAWN = pb.MANUAL_TASK_STATE_DECLINED, pb.MANUAL_TASK_STATE_WITHDRAWN


class Site:
    """A machine without a BMC, and the person who stands in front of it."""

    def __init__(self, plane: Any, eventually: Eventually) -> None:
        self.plane, self.eventually = plane, eventually
        self.machine = str(uuid.uuid4())
        self.stub = plane.stub()

    async def register(self, **more: Any) -> pb.Bmc:
        message = pb.Bmc(machine=self.machine, partition="fra1", driver=pb.DRIVER_KIND_MANUAL, **more)
        registered: pb.Bmc = await self.stub.RegisterBmc(pb.RegisterBmcRequest(bmc=message))
        return registered

    async def want(self, power: pb.Power.ValueType) -> None:
        bmc = pb.Bmc(machine=self.machine, desired_power=power)
        await self.stub.UpdateBmc(pb.UpdateBmcRequest(bmc=bmc, update_mask=FieldMask(paths=["desired_power"])))

    async def order(self, name: str, **more: Any) -> str:
        action = pb.CommandAction.Value(f"COMMAND_ACTION_{name}")
        given = await self.stub.CreateCommand(pb.CreateCommandRequest(machine=self.machine, action=action, **more))
        return str(given.id)

    async def tasks(self, **more: Any) -> list[pb.ManualTask]:
        answer = await self.stub.ListManualTasks(pb.ListManualTasksRequest(machine=self.machine, **more))
        return list(answer.tasks)

    async def history(self) -> list[tuple[pb.CommandAction.ValueType, pb.ManualTaskState.ValueType]]:
        return [(task.action, task.state) for task in await self.tasks(include_ended=True)]

    async def task(self, action: str) -> pb.ManualTask:
        """The one open task, once it is for this."""
        wanted = pb.CommandAction.Value(f"COMMAND_ACTION_{action}")

        async def there() -> bool:
            return [task.action for task in await self.tasks()] == [wanted]

        await self.eventually(there)
        (task,) = await self.tasks()
        return task

    async def say(self, task: pb.ManualTask, **more: Any) -> pb.ManualTask:
        answer: pb.ManualTask = await self.stub.ConfirmManualTask(pb.ConfirmManualTaskRequest(id=task.id, **more))
        return answer

    async def shown(self) -> pb.Bmc:
        bmc: pb.Bmc = await self.stub.GetBmc(pb.GetBmcRequest(machine=self.machine))
        return bmc

    async def look_often(self, times: int = 5) -> None:
        """Have the machine reconciled again and again."""
        for _ in range(times):
            await self.plane.rows(
                "INSERT INTO reconcile_queue (kind, key, ready_at) VALUES ('bmc/fra1', $1, now()) "
                "ON CONFLICT (kind, key) DO UPDATE SET ready_at = now()",
                self.machine,
            )
            await self.eventually(self._idle)

    async def _idle(self) -> bool:
        return not await self.plane.rows("SELECT FROM reconcile_queue WHERE ready_at <= now() OR holder IS NOT NULL")


def seconds(count: float) -> Duration:
    duration = Duration()
    duration.FromTimedelta(timedelta(seconds=count))
    return duration


def outcome(command: pb.Command) -> tuple[str, str]:
    return pb.CommandState.Name(command.state).removeprefix("COMMAND_STATE_"), command.reason


@pytest.fixture
async def site(plane: Any, eventually: Eventually) -> Site:
    """At a running service, with a registered machine."""
    await plane.start()
    made = Site(plane, eventually)
    await made.register()
    return made


async def test_a_machine_without_a_bmc_needs_neither_address_nor_login(site: Site) -> None:
    bmc = await site.shown()
    assert (bmc.driver, bmc.address, bmc.user, bmc.has_password) == (pb.DRIVER_KIND_MANUAL, "", "", False)
    assert {pb.CAPABILITY_POWER_ON, pb.CAPABILITY_BOOT_ONCE} <= set(bmc.capabilities)
    assert bmc.reported_power == pb.POWER_UNSPECIFIED
    for field, value in (("address", "10.0.0.1"), ("user", "admin"), ("password", "p"), ("mac", "02:00:00:00:00:01")):
        with pytest.raises(InvalidArgument, match="NO_BMC") as caught:
            await site.register(**{field: value})
        assert caught.value.field == f"bmc.{field}"
    for field, more in (("address", {"user": "admin"}), ("user", {"address": "10.0.0.1"})):
        other = pb.Bmc(machine=site.machine, partition="fra1", **more)
        with pytest.raises(InvalidArgument) as caught:
            await site.stub.RegisterBmc(pb.RegisterBmcRequest(bmc=other))
        assert caught.value.field == f"bmc.{field}"
    assert (await site.shown()).etag == bmc.etag


@pytest.mark.parametrize(
    ("action", "power", "words"),
    [
        ("POWER_ON", pb.POWER_ON, "switch the machine on"),
        ("SOFT_OFF", pb.POWER_OFF, "shut the machine down"),
        ("PXE_CYCLE", pb.POWER_ON, "boot from the network from now on, then switch the machine off and on again"),
        ("BOOT_DISK", pb.POWER_UNSPECIFIED, "let the machine boot from its disk from now on"),
    ],
)
async def test_an_order_is_a_task_and_done_when_a_person_says_so(
    action: str, power: pb.Power.ValueType, words: str, site: Site
) -> None:
    command = await site.order(action)
    task = await site.task(action)
    assert (task.command, task.state, task.machine, task.partition) == (command, OPEN, site.machine, "fra1")
    assert words in task.instruction

    async def waits() -> bool:
        return outcome(await site.stub.GetCommand(pb.GetCommandRequest(id=command))) == (
            "RUNNING",
            "WAITING_FOR_PERSON",
        )

    await site.eventually(waits)
    waiting = await site.stub.GetCommand(pb.GetCommandRequest(id=command))
    assert waiting.deadline.seconds - waiting.create_time.seconds == 24 * 3600
    assert (await site.shown()).reported_power == pb.POWER_UNSPECIFIED
    ended = await site.say(task, note="done, the fan is loud")
    assert (ended.state, ended.person, ended.note) == (CONFIRMED, "user:operator", "done, the fan is loud")
    assert outcome(await site.plane.ended(command)) == ("SUCCEEDED", "")
    assert (await site.shown()).reported_power == power
    assert await site.tasks() == []


async def test_what_a_person_confirms_is_told_to_everybody(site: Site) -> None:
    command = await site.order("POWER_ON")
    task = await site.task("POWER_ON")
    await site.say(task)
    await site.plane.ended(command)

    async def reported() -> bool:
        reports = site.plane.inventory.reports.get(site.machine, [])
        return [(report.bmc.power, report.bmc.address) for report in reports] == [(POWER_STATE_ON, "")]

    await site.eventually(reported)
    rows = await site.plane.rows("SELECT payload FROM change WHERE entity = 'manual_task' ORDER BY version")
    told = [ManualTaskChanged.FromString(row["payload"]).task for row in rows]
    assert [each.state for each in told] == [OPEN, CONFIRMED]
    assert {each.id for each in told} == {task.id}


async def test_a_reboot_by_hand_is_announced_when_the_task_is_opened(site: Site) -> None:
    await site.order("CYCLE")
    task = await site.task("CYCLE")
    assert [machine for machine, _ in site.plane.inventory.events] == [site.machine]
    await site.say(task)


async def test_a_person_may_decline_with_a_reason(site: Site) -> None:
    command = await site.order("POWER_OFF")
    task = await site.task("POWER_OFF")
    with pytest.raises(InvalidArgument, match="NOTE_EMPTY") as caught:
        await site.say(task, decline=True, note="  ")
    assert caught.value.field == "note"
    assert (await site.say(task, decline=True, note="it is on fire")).state == DECLINED
    ended = await site.plane.ended(command)
    assert outcome(ended) == ("FAILED", "DECLINED")
    assert ended.error == "user:operator: it is on fire"
    assert (await site.shown()).reported_power == pb.POWER_UNSPECIFIED


async def test_the_same_answer_twice_does_no_harm_and_another_one_is_refused(site: Site) -> None:
    await site.order("POWER_ON")
    task = await site.task("POWER_ON")
    first, second = await site.say(task), await site.say(task)
    assert first == second
    with pytest.raises(FailedPrecondition, match="TASK_ENDED"):
        await site.say(task, decline=True, note="no")
    with pytest.raises(NotFound, match="TASK_NOT_FOUND"):
        await site.say(pb.ManualTask(id=str(uuid.uuid4())))
    with pytest.raises(PermissionDenied):
        await site.plane.stub("viewer").ConfirmManualTask(pb.ConfirmManualTaskRequest(id=task.id))


async def test_a_command_waits_within_its_deadline_and_withdraws_its_task(site: Site) -> None:
    command = await site.order("POWER_ON", timeout=seconds(1))
    task = await site.task("POWER_ON")
    assert outcome(await site.plane.ended(command, 10)) == ("EXPIRED", "DEADLINE")
    assert await site.history() == [(pb.COMMAND_ACTION_POWER_ON, WITHDRAWN)]
    with pytest.raises(FailedPrecondition, match=r"TASK_ENDED.*expired"):
        await site.say(task)
    assert outcome(await site.plane.ended(await site.order("POWER_ON", timeout=seconds(1)), 10))[0] == "EXPIRED"


@pytest.mark.parametrize("action", ["IDENTIFY_ON", "NMI"])
async def test_what_a_person_cannot_do_is_unimplemented(action: str, site: Site) -> None:
    with pytest.raises(Unimplemented, match="BMC_CANNOT"):
        await site.order(action)


async def test_commands_become_tasks_one_after_the_other(site: Site) -> None:
    first, second = await site.order("POWER_OFF"), await site.order("BOOT_PXE", boot_lasting=pb.BOOT_LASTING_ONCE)
    await site.say(await site.task("POWER_OFF"))
    task = await site.task("BOOT_PXE")
    assert "at the next boot only" in task.instruction
    await site.say(task)
    ended = [await site.plane.ended(each) for each in (first, second)]
    assert [outcome(each)[0] for each in ended] == ["SUCCEEDED", "SUCCEEDED"]


async def test_a_service_that_was_killed_finds_its_task_again(site: Site) -> None:
    command = await site.order("CYCLE")
    task = await site.task("CYCLE")
    await site.plane.running.stop(0)
    await site.plane.rows("UPDATE reconcile_queue SET ready_at = now(), holder = NULL")
    await site.plane.start()
    site.stub = site.plane.stub()
    await site.look_often(2)
    assert [each.id for each in await site.tasks()] == [task.id]
    await site.say(task)
    assert outcome(await site.plane.ended(command)) == ("SUCCEEDED", "")
    assert len(site.plane.inventory.events) == 1


async def test_a_wanted_power_is_one_task_however_often_it_is_looked_at(site: Site) -> None:
    await site.want(pb.POWER_ON)
    task = await site.task("POWER_ON")
    assert not task.command
    assert not task.HasField("deadline")
    await site.look_often()
    assert [each.id for each in await site.tasks(include_ended=True)] == [task.id]
    await site.say(task)
    await site.look_often(1)
    assert (await site.shown()).reported_power == pb.POWER_ON
    assert await site.history() == [(pb.COMMAND_ACTION_POWER_ON, CONFIRMED)]


async def test_a_wish_that_changes_withdraws_its_task(site: Site) -> None:
    await site.want(pb.POWER_ON)
    await site.task("POWER_ON")
    await site.want(pb.POWER_OFF)
    await site.task("POWER_OFF")
    await site.want(pb.POWER_UNSPECIFIED)
    await site.eventually(lambda: _none(site))
    assert [state for _, state in await site.history()] == [WITHDRAWN, WITHDRAWN]


async def test_a_declined_wish_is_no_task_again_until_somebody_changes_something(site: Site) -> None:
    await site.want(pb.POWER_ON)
    task = await site.task("POWER_ON")
    await site.say(task, decline=True, note="waiting for a part")
    await site.look_often()
    assert [each.id for each in await site.tasks(include_ended=True)] == [task.id]
    (issue,) = await issues(site)
    assert (issue.id, issue.severity) == (f"manual-task/{task.id}", issue_pb2.PLANE_ISSUE_SEVERITY_MAJOR)
    assert "waiting for a part" in issue.details
    await site.register(desired_power=pb.POWER_ON)
    assert (await site.task("POWER_ON")).id != task.id


async def test_a_command_goes_before_the_wish_and_moves_it_only_when_it_is_done(site: Site) -> None:
    await site.want(pb.POWER_ON)
    await site.task("POWER_ON")
    command = await site.order("POWER_OFF")
    task = await site.task("POWER_OFF")
    assert task.command == command
    assert (await site.shown()).desired_power == pb.POWER_ON
    await site.say(task)
    await site.plane.ended(command)
    await site.look_often(1)
    bmc = await site.shown()
    assert (bmc.desired_power, bmc.reported_power) == (pb.POWER_OFF, pb.POWER_OFF)
    assert await site.tasks() == []


async def test_people_are_reminded_and_it_is_an_issue(plane: Any, eventually: Eventually) -> None:
    await plane.start(remind_seconds=0.5)
    site = Site(plane, eventually)
    await site.register()
    await site.order("POWER_ON")
    task = await site.task("POWER_ON")
    (issue,) = await issues(site)
    assert (issue.id, issue.subject) == (f"manual-task/{task.id}", f"machine {site.machine}")
    assert "switch the machine on" in issue.details
    assert task.id in issue.details

    async def reminded() -> bool:
        (now,) = await site.tasks()
        return bool(now.reminders >= 2)

    await eventually(reminded)
    (issue,) = await issues(site)
    assert issue.severity == issue_pb2.PLANE_ISSUE_SEVERITY_MAJOR
    rows = await plane.rows("SELECT payload FROM change WHERE entity = 'manual_task' ORDER BY version")
    assert [ManualTaskChanged.FromString(row["payload"]).task.reminders for row in rows][:3] == [0, 1, 2]
    await site.say(task)
    assert await issues(site) == []


async def test_a_machine_that_gets_a_bmc_has_no_tasks_any_more(site: Site) -> None:
    command = await site.order("POWER_ON")
    await site.task("POWER_ON")
    bmc = pb.Bmc(machine=site.machine, partition="fra1", address="127.0.0.1:1", user="metal", password="p")
    await site.stub.RegisterBmc(pb.RegisterBmcRequest(bmc=bmc))
    assert outcome(await site.plane.ended(command)) == ("FAILED", "DRIVER_CHANGED")
    assert await site.history() == [(pb.COMMAND_ACTION_POWER_ON, WITHDRAWN)]
    shown = await site.shown()
    assert (shown.driver, shown.has_password, list(shown.capabilities)) == (pb.DRIVER_KIND_IPMI, True, [])
    back = await site.register()
    assert (back.driver, back.has_password, back.address) == (pb.DRIVER_KIND_MANUAL, False, "")


async def test_a_machine_that_is_forgotten_has_no_tasks_any_more(site: Site) -> None:
    command = await site.order("POWER_ON")
    await site.task("POWER_ON")
    await site.stub.DeleteBmc(pb.DeleteBmcRequest(machine=site.machine))
    assert outcome(await site.plane.ended(command)) == ("FAILED", "BMC_DELETED")
    assert await site.history() == [(pb.COMMAND_ACTION_POWER_ON, WITHDRAWN)]


async def test_tasks_are_listed_page_by_page_oldest_first(plane: Any, eventually: Eventually) -> None:
    await plane.start()
    sites = [Site(plane, eventually) for _ in range(3)]
    for site in sites:
        await site.register()
        await site.order("POWER_ON")
        await site.task("POWER_ON")
    stub, seen, token = plane.stub("viewer"), [], ""
    while True:
        request = pb.ListManualTasksRequest(partition="fra1", page_size=2, page_token=token)
        page = await stub.ListManualTasks(request)
        seen += [task.machine for task in page.tasks]
        token = page.next_page_token
        if not token:
            break
    assert seen == [site.machine for site in sites]
    assert not (await stub.ListManualTasks(pb.ListManualTasksRequest(partition="elsewhere"))).tasks


async def test_two_replicas_open_one_task(site: Site, plane: Any) -> None:
    first = plane.running
    await plane.start()
    orders = await asyncio.gather(*(site.order("POWER_ON") for _ in range(3)))
    for _ in orders:
        await site.say(await site.task("POWER_ON"))
    assert {outcome(await plane.ended(each))[0] for each in orders} == {"SUCCEEDED"}
    assert len(await site.tasks(include_ended=True)) == 3
    await first.stop(0)


async def issues(site: Site) -> list[issue_pb2.PlaneIssue]:
    """What the service says is wrong with it, as far as it is about tasks."""
    stub = site.plane.stub("viewer", IssueServiceStub)
    answer = await stub.ListPlaneIssues(issue_pb2.ListPlaneIssuesRequest())
    return [issue for issue in answer.issues if issue.id.startswith("manual-task/")]


async def _none(site: Site) -> bool:
    return not await site.tasks()
