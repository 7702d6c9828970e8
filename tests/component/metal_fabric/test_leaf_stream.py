"""The stream of a leaf: who may speak, what it gets, and what becomes of what it says."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest
from metal_fabric.leaves import Leaves
from metal_kit import identity
from metal_kit.errors import Aborted, FailedPrecondition, InvalidArgument, PermissionDenied, Problem
from metal_kit.ids import uuid7
from metalplane.fabric.v1 import switch_pb2
from metalplane.fabric.v1.agent_pb2 import Heartbeat
from metalplane.fabric.v1.switch_pb2 import GetSwitchRequest


async def refused(leaf: Any, eventually: Any) -> Problem:
    """The failure of a stream that must not be served.

    grpcio gives INTERNAL for a write that the refusal overtook, whatever the refusal said; then the leaf asks again.
    """

    async def told() -> bool:
        await leaf.open()
        await eventually(lambda: leaf.ended)
        assert not leaf.states
        assert isinstance(leaf.failure, Problem)
        return leaf.failure.reason != "TRANSPORT_INTERNAL"

    await eventually(told)
    return leaf.failure


async def test_a_leaf_registers_and_gets_its_whole_desired_state(fabric: Any, eventually: Any) -> None:
    leaf = await fabric.leaf("leaf01").open()
    await eventually(lambda: leaf.states)
    state = leaf.states[0]
    assert (state.switch_id, state.generation, state.asn, state.pxe_vlan) == ("leaf01", 1, 4200000011, 4000)
    roles = {port.name: port.role for port in state.ports}
    assert roles["Ethernet0"] == switch_pb2.PORT_ROLE_UNPROVISIONED
    assert roles["Ethernet196"] == switch_pb2.PORT_ROLE_UPLINK
    shown = await fabric.switches().GetSwitch(GetSwitchRequest(id="leaf01"))
    assert shown.sync.connected
    assert (shown.sync.desired_generation, shown.sync.applied_generation) == (1, 0)
    assert [port.name for port in shown.ports][:3] == ["Ethernet0", "Ethernet4", "Ethernet8"]


async def test_a_leaf_speaks_only_for_itself(fabric: Any, eventually: Any) -> None:
    other = fabric.leaf("leaf02", certificate=identity.leaf_id("mini", "leaf01"))
    problem = await refused(other, eventually)
    assert (type(problem), problem.reason) == (PermissionDenied, "NOT_YOUR_SCOPE")
    elsewhere = fabric.leaf("leaf01", certificate=identity.leaf_id("other", "leaf01"))
    problem = await refused(elsewhere, eventually)
    assert (type(problem), problem.reason) == (PermissionDenied, "NOT_THIS_PARTITION")
    assert not await fabric.rows("SELECT 1 FROM switch")


@pytest.mark.parametrize(
    "certificate",
    [
        identity.service_id("allocation"),
        identity.machine_id("4c4c4544-0051-3510-8052-b4c04f4e3132"),
        identity.partition_agent_id("mini", "boot"),
        identity.client_id("tool"),
    ],
)
async def test_nobody_but_a_leaf_opens_a_stream(fabric: Any, eventually: Any, certificate: str) -> None:
    problem = await refused(fabric.leaf("leaf01", certificate=certificate), eventually)
    assert problem.code.name in {"PERMISSION_DENIED", "UNAUTHENTICATED"}
    assert not await fabric.rows("SELECT 1 FROM switch")


@pytest.mark.parametrize(
    ("hello", "reason", "field"),
    [
        ({"pxe_vlan": 1500}, "PXE_VLAN_RESERVED", "hello.pxe_vlan"),
        ({"asn": 0}, "INVALID_FIELD", "hello.asn"),
        ({"loopback": "nowhere"}, "INVALID_FIELD", "hello.loopback"),
        ({"loopback": "2001:db8::11"}, "LOOPBACK_NOT_IPV4", "hello.loopback"),
        ({"applied_generation": 1 << 60}, "GENERATION_INVALID", "hello.applied_generation"),
    ],
)
async def test_a_bad_hello_is_named_and_changes_nothing(
    fabric: Any, eventually: Any, hello: dict[str, Any], reason: str, field: str
) -> None:
    problem = await refused(fabric.leaf("leaf01", **hello), eventually)
    assert (type(problem), problem.reason, problem.field) == (InvalidArgument, reason, field)
    assert not await fabric.rows("SELECT 1 FROM switch")


async def test_a_stream_begins_with_a_hello_and_has_only_one(fabric: Any, eventually: Any) -> None:
    leaf = await fabric.leaf("leaf01").open()
    await eventually(lambda: leaf.states)
    await leaf.send(hello=leaf.hello)
    await eventually(lambda: leaf.ended)
    assert leaf.failure.reason == "HELLO_TWICE"


async def test_what_is_wrong_is_told_whenever_it_is_found(
    fabric: Any, eventually: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when it is found while the stream looks for something to send."""
    look, looking = Leaves.wanted, asyncio.Event()

    async def look_until_the_end(*args: Any, **more: Any) -> Any:
        found = await look(*args, **more)
        if more["after"]:
            looking.set()
            await asyncio.wait([task for task in asyncio.all_tasks() if task.get_name() == "leaf leaf01"])
        return found

    monkeypatch.setattr(Leaves, "wanted", look_until_the_end)
    # A few times: grpcio makes INTERNAL of whatever the server said when the end of the stream overtakes a write.
    for _ in range(5):
        looking.clear()
        leaf = await fabric.leaf("leaf01").open()
        await eventually(looking.is_set)
        await leaf.send(hello=leaf.hello)
        await eventually(lambda leaf=leaf: leaf.ended)
        assert leaf.failure is not None
        if leaf.failure.reason != "INTERNAL":
            break
    assert leaf.failure.reason == "HELLO_TWICE"


async def test_a_leaf_that_falls_silent_loses_its_stream(
    fabric: Any, eventually: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("metal_fabric.stream.SILENCE", timedelta(seconds=0.5))
    leaf = await fabric.leaf("leaf01").open(silent=True)
    await eventually(lambda: leaf.ended)
    assert leaf.states
    assert (leaf.failure.code.name, leaf.failure.reason) == ("DEADLINE_EXCEEDED", "LEAF_SILENT")


async def test_a_stream_without_a_hello_is_not_kept(
    fabric: Any, eventually: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("metal_kit.interceptor.FIRST_MESSAGE", 0.2)
    leaf = fabric.leaf("leaf01")
    leaf.hello = None
    await leaf.open()
    await eventually(lambda: leaf.ended)
    assert leaf.failure.code.name == "DEADLINE_EXCEEDED"


async def test_a_stream_begins_with_its_hello(fabric: Any, eventually: Any) -> None:
    leaf = fabric.leaf("leaf01")
    leaf.hello = None
    await leaf.open()
    await leaf.send(heartbeat={})
    await eventually(lambda: leaf.ended)
    assert (type(leaf.failure), leaf.failure.field) == (PermissionDenied, "hello.switch_id")


async def test_an_idle_stream_carries_signs_of_life(
    fabric: Any, eventually: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("metal_fabric.stream.HEARTBEAT_SECONDS", 0.1)
    leaf = await fabric.leaf("leaf01").open()
    await eventually(lambda: leaf.heartbeats >= 2)


async def test_an_applied_generation_is_shown_and_acknowledged(fabric: Any, pair: Any) -> None:
    shown = await fabric.switches().GetSwitch(GetSwitchRequest(id="leaf01"))
    assert shown.sync.applied_generation == shown.sync.desired_generation == 1
    assert shown.sync.applied_hash == pair[0].states[0].hash


async def test_a_failed_attempt_is_shown_until_one_succeeds(fabric: Any, eventually: Any) -> None:
    leaf = await fabric.leaf("leaf01").open()
    await eventually(lambda: leaf.states)
    report = await leaf.apply(error="vtysh says\0no")
    await eventually(lambda: report in leaf.acks)
    shown = await fabric.switches().GetSwitch(GetSwitchRequest(id="leaf01"))
    assert (shown.sync.applied_generation, shown.sync.error) == (0, "vtysh says\ufffdno")
    report = await leaf.apply()
    await eventually(lambda: report in leaf.acks)
    shown = await fabric.switches().GetSwitch(GetSwitchRequest(id="leaf01"))
    assert (shown.sync.applied_generation, shown.sync.error) == (1, "")


async def test_a_leaf_that_cannot_keep_to_what_it_has_applied_is_shown_with_the_reason(
    fabric: Any, pair: Any, eventually: Any
) -> None:
    report = await pair[0].apply(error="FRR does not answer")
    await eventually(lambda: report in pair[0].acks)
    shown = await fabric.switches().GetSwitch(GetSwitchRequest(id="leaf01"))
    assert (shown.sync.applied_generation, shown.sync.error) == (1, "FRR does not answer")
    report = await pair[0].apply()
    await eventually(lambda: report in pair[0].acks)
    shown = await fabric.switches().GetSwitch(GetSwitchRequest(id="leaf01"))
    assert (shown.sync.applied_generation, shown.sync.error) == (1, "")


@pytest.mark.parametrize(("generation", "digest"), [(1, "0" * 64), (1, ""), (7, "0" * 64), (7, "")])
async def test_a_report_about_what_was_never_sent_confirms_nothing(
    fabric: Any, eventually: Any, generation: int, digest: str
) -> None:
    leaf = await fabric.leaf("leaf01").open()
    await eventually(lambda: leaf.states)
    forged = type(leaf.states[0])(generation=generation, hash=digest)
    report = await leaf.apply(forged)
    await eventually(lambda: report in leaf.acks, what="the leaf may forget the report all the same")
    shown = await fabric.switches().GetSwitch(GetSwitchRequest(id="leaf01"))
    assert shown.sync.applied_generation == 0


async def test_reports_that_arrive_late_do_not_take_a_generation_back(fabric: Any, pair: Any, eventually: Any) -> None:
    leaf, other = pair
    machine = await fabric.machine()
    await fabric.switches().AttachMachine(fabric.attaching(machine, "0198c1d2-0000-7000-8000-000000000001"))
    await eventually(lambda: leaf.generation == 2)
    await leaf.apply()
    late = await leaf.apply(leaf.states[0])
    await eventually(lambda: late in leaf.acks)
    shown = await fabric.switches().GetSwitch(GetSwitchRequest(id="leaf01"))
    assert shown.sync.applied_generation == 2
    assert other.generation >= 1


async def test_a_leaf_that_reconnects_gets_its_state_again_and_the_same_generation(
    fabric: Any, pair: Any, eventually: Any
) -> None:
    leaf = pair[0]
    before = leaf.states[-1]
    await leaf.close()
    leaf.states.clear()
    await leaf.open()
    await eventually(lambda: leaf.states)
    assert leaf.states[-1] == before
    shown = await fabric.switches().GetSwitch(GetSwitchRequest(id="leaf01"))
    assert shown.sync.applied_generation == 1


async def test_a_leaf_that_lost_its_state_has_applied_nothing(fabric: Any, pair: Any, eventually: Any) -> None:
    leaf = pair[0]
    await leaf.close()
    leaf.hello.applied_generation, leaf.hello.applied_hash = 0, ""
    leaf.states.clear()
    await leaf.open()
    await eventually(lambda: leaf.states)
    shown = await fabric.switches().GetSwitch(GetSwitchRequest(id="leaf01"))
    assert shown.sync.applied_generation == 0


async def test_a_leaf_ahead_of_a_restored_database_gets_a_later_generation(fabric: Any, eventually: Any) -> None:
    leaf = await fabric.leaf("leaf01", applied_generation=57, applied_hash="0" * 64).open()
    await eventually(lambda: leaf.states)
    assert leaf.generation == 58
    shown = await fabric.switches().GetSwitch(GetSwitchRequest(id="leaf01"))
    assert (shown.sync.desired_generation, shown.sync.applied_generation) == (58, 0)


async def test_a_newer_stream_ends_the_older_one_on_another_replica(fabric: Any, pair: Any, eventually: Any) -> None:
    await fabric.replica()
    newer = await fabric.leaf("leaf01", replica=1).open()
    await eventually(lambda: newer.states)
    await eventually(lambda: pair[0].ended)
    assert (type(pair[0].failure), pair[0].failure.reason) == (Aborted, "STREAM_SUPERSEDED")
    shown = await fabric.switches().GetSwitch(GetSwitchRequest(id="leaf01"))
    assert shown.sync.connected


@pytest.mark.parametrize("what", ["applied", "observed"])
async def test_what_an_older_stream_left_behind_does_not_count_against_a_newer_one(
    fabric: Any, pair: Any, eventually: Any, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """A replica may be about to store it, or wait behind the registration, when the leaf introduces itself anew."""
    take, reading, go_on = getattr(Leaves, what), asyncio.Event(), asyncio.Event()

    async def stall(*args: Any, **more: Any) -> None:
        reading.set()
        # Too late for the end of the stream to cut it off.
        await asyncio.shield(finish(*args, **more))

    async def finish(*args: Any, **more: Any) -> None:
        await go_on.wait()
        finished.append(await asyncio.gather(take(*args, **more), return_exceptions=True))

    finished: list[Any] = []
    monkeypatch.setattr(Leaves, what, stall)
    old = pair[0]
    await (old.apply() if what == "applied" else old.observe(down=["Ethernet0"]))
    await eventually(reading.is_set)
    newer = await fabric.leaf("leaf01").open()
    await eventually(lambda: newer.states)
    go_on.set()
    await eventually(lambda: finished)
    shown = await fabric.switches().GetSwitch(GetSwitchRequest(id="leaf01"))
    assert shown.sync.applied_generation == 0
    assert shown.ports[0].reported_state == switch_pb2.PORT_STATE_UP


async def test_a_leaf_that_hangs_up_is_shown_as_such(fabric: Any, pair: Any, eventually: Any) -> None:
    await pair[0].close()

    async def gone() -> bool:
        shown = await fabric.switches().GetSwitch(GetSwitchRequest(id="leaf01"))
        return not shown.sync.connected and shown.sync.HasField("seen_time")

    await eventually(gone)


async def test_a_stream_whose_replica_died_does_not_count_as_open(fabric: Any, pair: Any, eventually: Any) -> None:
    await pair[0].close()

    async def closed() -> bool:
        return bool(await fabric.rows("SELECT 1 FROM leaf_sync WHERE switch_id = 'leaf01' AND session IS NULL"))

    await eventually(closed)
    # What a replica leaves behind that had no time to say goodbye.
    died = (
        "UPDATE leaf_sync SET session = gen_random_uuid(), seen_time = now() - $1::interval WHERE switch_id = 'leaf01'"
    )
    await fabric.rows(died, timedelta(seconds=14))
    assert (await fabric.switches().GetSwitch(GetSwitchRequest(id="leaf01"))).sync.connected
    await fabric.rows("UPDATE leaf_sync SET seen_time = now() - interval '16 seconds' WHERE switch_id = 'leaf01'")
    assert not (await fabric.switches().GetSwitch(GetSwitchRequest(id="leaf01"))).sync.connected
    machine = await fabric.machine()
    attachment = await fabric.switches().AttachMachine(fabric.attaching(machine, uuid7()))
    assert [leaf.connected for leaf in attachment.leaves] == [False, True]


async def test_a_stopping_replica_sends_its_leaves_elsewhere(fabric: Any, pair: Any, eventually: Any) -> None:
    await fabric.replicas[0].stop()
    await eventually(lambda: pair[0].ended and pair[1].ended)
    assert pair[0].failure.code.name == "UNAVAILABLE"
    rows = await fabric.rows("SELECT session FROM leaf_sync")
    assert [row["session"] for row in rows] == [None, None]


async def test_a_registration_without_a_connected_port_is_refused_and_says_why(
    fabric: Any, pair: Any, eventually: Any
) -> None:
    await fabric.machine("Ethernet0")
    leaf = pair[0]
    await leaf.close()
    del leaf.hello.ports[0]
    leaf.states.clear()
    problem = await refused(leaf, eventually)
    assert (type(problem), problem.reason) == (FailedPrecondition, "CONNECTED_PORT_REMOVED")
    shown = await fabric.switches().GetSwitch(GetSwitchRequest(id="leaf01"))
    assert shown.sync.error.startswith("CONNECTED_PORT_REMOVED")
    assert shown.ports[0].machine


async def test_only_real_changes_make_a_generation(fabric: Any, pair: Any, eventually: Any) -> None:
    leaf = pair[0]
    await leaf.send(heartbeat=Heartbeat())
    report = await leaf.observe(down=["Ethernet0"], up=["Ethernet4"])
    await eventually(lambda: report in leaf.acks)
    shown = await fabric.switches().GetSwitch(GetSwitchRequest(id="leaf01"))
    assert shown.sync.desired_generation == 1
    assert shown.ports[0].reported_state == switch_pb2.PORT_STATE_DOWN
    leaf.hello.loopback = "10.0.0.99"
    await leaf.close()
    await leaf.open()
    await eventually(lambda: leaf.generation == 2)
    assert leaf.states[-1].loopback == "10.0.0.99"


async def test_two_leaves_cannot_share_a_name_in_other_letters(fabric: Any, pair: Any, eventually: Any) -> None:
    problem = await refused(fabric.leaf("Leaf01"), eventually)
    assert problem.reason == "HOST_NAME_TAKEN"
