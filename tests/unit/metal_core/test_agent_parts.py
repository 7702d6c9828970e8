"""The agent's memory and judgement without a switch or a plane: observations, reports, messages, following."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from fake_applier import FakeApplier, report
from metal_core.apply import Outcome, Standing
from metal_core.compare import Differences, RowDifference
from metal_core.databases import DatabaseConfigError, defaults, read
from metal_core.desired import Admin, Desired, DriftPolicy, Fec, Port, PortRole, Vrf
from metal_core.following import Following
from metal_core.identity import IdentityError, Told, identify, sonic_version
from metal_core.known_good import KnownGood
from metal_core.observe import REPEAT, Announcement, Observer, Seen, announced_machine, neighbours_of
from metal_core.plane import PlaneStream
from metal_core.reports import BATCH, RESEND, Reports
from metal_core.wire import UnknownState, desired_of, hello_of
from metal_kit import validation
from metal_kit.backoff import Backoff
from metal_kit.errors import ResourceExhausted
from metalplane.fabric.v1.agent_pb2 import DesiredPort, DesiredState, DesiredVrf
from metalplane.fabric.v1.settings_pb2 import DriftPolicy as WirePolicy
from metalplane.fabric.v1.settings_pb2 import PortFec
from metalplane.fabric.v1.switch_pb2 import PortRole as WireRole
from metalplane.fabric.v1.switch_pb2 import PortState as WireState

MACHINE = "4c4c4544-0042-4b10-8031-b9c04f4b3533"
STATE = Desired("leaf01", 5, "five", 4200000011, "10.0.0.11", 4000, (Port("Ethernet120", PortRole.UPLINK),))
ROWS = {
    "DEVICE_METADATA|localhost": {"hostname": "leaf01", "bgp_asn": "4200000011"},
    "LOOPBACK_INTERFACE|Loopback0": {},
    "LOOPBACK_INTERFACE|Loopback0|2001:db8::1/128": {},
    "LOOPBACK_INTERFACE|Loopback0|10.0.0.11/32": {},
    "LOOPBACK_INTERFACE|Loopback0|garbage": {},
    "PORT|Ethernet12": {"alias": "Eth4"},
    "PORT|Ethernet4": {"alias": "Eth2"},
    "PORT|Ethernet120": {},
}
TOLD = Told("fra1", "rack1", ("Ethernet120",))


def entry(name: str = MACHINE, description: str = "Debian 12, provisioned by metalplane") -> dict[str, str]:
    """A row of LLDP_ENTRY_TABLE."""
    return {"lldp_rem_sys_name": name, "lldp_rem_sys_desc": description, "lldp_rem_chassis_id": "00:11:22:33:44:55"}


@pytest.mark.parametrize(
    ("row", "machine"),
    [
        (entry(), MACHINE),
        (entry(name=MACHINE.upper()), MACHINE),
        (entry(description="metal-hammer"), ""),
        (entry(name="spine01"), ""),
        (entry(name=""), ""),
        (entry(name=MACHINE.replace("-", "")), ""),
        (entry(name="{" + MACHINE + "}"), ""),
        ({}, ""),
        ({"lldp_rem_sys_desc": "provisioned"}, ""),
    ],
)
def test_only_a_provisioned_system_with_a_machines_uuid_is_an_announcement(row: dict[str, str], machine: str) -> None:
    (neighbour,) = neighbours_of({"Ethernet0": row})
    assert announced_machine(neighbour) == machine


def test_only_changed_port_states_are_reported() -> None:
    observer = Observer()
    assert observer.look({"Ethernet0": "down", "Ethernet4": "up"}, {}, 0).states == {
        "Ethernet0": "down",
        "Ethernet4": "up",
    }
    assert observer.look({"Ethernet0": "up", "Ethernet4": "up"}, {}, 1).states == {"Ethernet0": "up"}
    assert observer.look({"Ethernet0": "up", "Ethernet4": "up"}, {}, 2).states == {}


def test_an_announcement_is_reported_at_once_and_repeated_while_it_is_seen() -> None:
    observer = Observer()
    seen = {"Ethernet0": entry()}
    assert len(observer.look({}, seen, 1000).announcements) == 1
    assert observer.look({}, seen, 1000 + REPEAT - 1).announcements == ()
    assert len(observer.look({}, seen, 1000 + REPEAT).announcements) == 1
    assert observer.look({}, {}, 1000 + REPEAT + 1).announcements == ()
    assert len(observer.look({}, seen, 1000 + REPEAT + 2).announcements) == 1
    assert len(observer.look({}, seen, 10).announcements) == 1, "a clock that was set back must not silence a machine"


class Time:
    """A clock for reports."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_report_is_sent_again_until_it_is_acknowledged_and_keeps_its_id() -> None:
    clock = Time()
    reports = Reports(clock)
    reports.ended(5, "five", Outcome(True))
    reports.seen(Seen({"Ethernet0": "up"}, ()))
    first = reports.due()
    assert [request.WhichOneof("message") for request in first] == ["apply_report", "observations"]
    assert reports.due() == []
    clock.now = RESEND
    assert reports.due() == first
    reports.reconnected()
    assert reports.due() == first
    reports.acknowledged(first[0].apply_report.id)
    reports.acknowledged(first[1].observations.id)
    reports.acknowledged("never sent")
    clock.now = 10 * RESEND
    assert reports.due() == []


def test_while_the_plane_is_away_each_port_and_each_machine_is_kept_once() -> None:
    reports = Reports(Time())
    reports.seen(Seen({"Ethernet0": "up"}, ()))
    reports.due()
    for second in range(100):
        announcement = Announcement("Ethernet0", MACHINE, "provisioned", float(second))
        reports.seen(Seen({"Ethernet0": "down" if second % 2 else "up", "Ethernet4": "up"}, (announcement,)))
    assert reports.due() == [], "one batch is on its way"
    reports.reconnected()
    (again,) = reports.due()
    reports.acknowledged(again.observations.id)
    (batch,) = reports.due()
    assert {port.name: port.state for port in batch.observations.ports} == {
        "Ethernet0": WireState.PORT_STATE_DOWN,
        "Ethernet4": WireState.PORT_STATE_UP,
    }
    (home,) = batch.observations.phone_homes
    assert (home.machine, home.port, home.time.seconds) == (MACHINE, "Ethernet0", 99)


def test_reports_are_bounded_and_keep_the_newest() -> None:
    reports = Reports(Time())
    announcements = tuple(Announcement(f"Ethernet{n}", MACHINE, "provisioned", float(n)) for n in range(BATCH + 10))
    reports.seen(Seen({}, announcements))
    (request,) = reports.due()
    assert len(request.observations.phone_homes) == BATCH
    assert request.observations.phone_homes[-1].port == f"Ethernet{BATCH + 9}"


def test_texts_are_cut_to_what_the_contract_takes() -> None:
    reports = Reports(Time())
    reports.ended(5, "five", Outcome(False, "x" * 10_000, tuple("n" for _ in range(100))))
    reports.seen(Seen({}, (Announcement("Ethernet0", MACHINE, "provisioned" * 1000, 0.0),)))
    report, observations = reports.due()
    assert len(report.apply_report.error) == 4096
    assert len(report.apply_report.notes) == 32
    assert len(observations.observations.phone_homes[0].message) == 1024


def test_a_failed_run_is_reported_with_where_it_failed_what_differed_and_what_the_leaf_has() -> None:
    rows = (RowDifference("VRF", "Vrf2000", "", "vni=2000", None), RowDifference("VLAN", "Vlan1001", "vlanid", "", "7"))
    lines = tuple(f"+line {n}" for n in range(250))
    outcome = Outcome(
        False,
        "no",
        phase="verify",
        differences=Differences(rows, lines),
        quarantined="failed 5 times",
        is_at=Standing(4, "four"),
    )
    reports = Reports()
    reports.ended(5, "five", outcome)
    (request,) = reports.due()
    report = request.apply_report
    assert (report.phase, report.quarantine, report.standing_generation, report.standing_hash) == (
        "verify",
        "failed 5 times",
        4,
        "four",
    )
    assert [(row.table, row.key, row.field) for row in report.differences.rows] == [
        ("VRF", "Vrf2000", ""),
        ("VLAN", "Vlan1001", "vlanid"),
    ]
    assert [row.HasField("found") for row in report.differences.rows] == [False, True]
    assert len(report.differences.frr_lines) == 100
    assert (report.differences.row_count, report.differences.frr_line_count) == (2, 250)
    validation.check(request, field="request")


def test_a_leaf_that_does_not_know_what_it_has_does_not_say_that_it_has_nothing() -> None:
    reports = Reports()
    reports.ended(5, "five", Outcome(False, "no"))
    (request,) = reports.due()
    assert not request.apply_report.HasField("standing_generation")
    assert not request.apply_report.HasField("differences")


def test_bytes_that_are_no_text_do_not_keep_a_report_from_being_sent() -> None:
    """Redis gives them as surrogates, which no message can carry, and a tenant chooses what its machine announces."""
    reports = Reports()
    garbage = b"provisioned \xff".decode(errors="surrogateescape")
    reports.ended(5, "five", Outcome(False, garbage, (garbage,)))
    reports.seen(Observer().look({}, {"Ethernet0": entry(description=garbage)}, 0))
    report, observations = reports.due()
    assert (report.apply_report.error, list(report.apply_report.notes)) == ("provisioned ?", ["provisioned ?"])
    assert observations.observations.phone_homes[0].message == "provisioned ?"


def test_a_leaf_knows_itself_from_sonic() -> None:
    leaf = identify(TOLD, ROWS)
    assert (leaf.switch_id, leaf.asn, leaf.loopback) == ("leaf01", 4200000011, "10.0.0.11")
    assert list(leaf.ports.items()) == [("Ethernet4", "Eth2"), ("Ethernet12", "Eth4"), ("Ethernet120", "")]
    hello = hello_of(leaf, {"Ethernet4": "up", "Ethernet12": "unknown"}, STATE)
    assert [(port.name, port.uplink, port.state) for port in hello.ports] == [
        ("Ethernet4", False, WireState.PORT_STATE_UP),
        ("Ethernet12", False, WireState.PORT_STATE_UNSPECIFIED),
        ("Ethernet120", True, WireState.PORT_STATE_UNSPECIFIED),
    ]
    assert (hello.applied_generation, hello.applied_hash) == (5, "five")


def test_the_base_mac_address_tells_a_box_from_another_one_of_its_name() -> None:
    device = {"DEVICE_METADATA|localhost": ROWS["DEVICE_METADATA|localhost"] | {"mac": " 52:54:00:AB:CD:EF"}}
    assert hello_of(identify(TOLD, ROWS | device), {}, None).chassis_id == "52:54:00:ab:cd:ef"
    assert hello_of(identify(TOLD, ROWS), {}, None).chassis_id == ""


def test_settings_win_over_sonic() -> None:
    leaf = identify(replace(TOLD, switch_id="leaf02", asn=65000, loopback="10.0.0.12"), ROWS)
    assert (leaf.switch_id, leaf.asn, leaf.loopback) == ("leaf02", 65000, "10.0.0.12")


@pytest.mark.parametrize(
    ("told", "missing", "message"),
    [
        (TOLD, "DEVICE_METADATA|localhost", "METALPLANE_SWITCH_ID"),
        (replace(TOLD, switch_id="leaf01"), "DEVICE_METADATA|localhost", "METALPLANE_ASN"),
        (TOLD, "LOOPBACK_INTERFACE|Loopback0|10.0.0.11/32", "METALPLANE_LOOPBACK"),
        (replace(TOLD, uplinks=("Ethernet120", "Ethernet124")), "", "Ethernet124"),
        (replace(TOLD, uplinks=()), "", "METALPLANE_UPLINKS"),
    ],
)
def test_a_leaf_that_does_not_know_itself_says_which_setting_would_help(told: Told, missing: str, message: str) -> None:
    with pytest.raises(IdentityError, match=message.replace("|", r"\|")):
        identify(told, {key: row for key, row in ROWS.items() if key != missing})


def test_the_version_of_sonic_is_read_from_its_file(tmp_path: Any) -> None:
    path = tmp_path / "sonic_version.yml"
    path.write_text("---\nbuild_version: '202405.1-abc'\ndebian_version: '12.4'\n")
    assert sonic_version(path) == "202405.1-abc"
    assert sonic_version(tmp_path / "missing.yml") == ""


def test_database_numbers_come_from_sonics_file_and_defaults_only_without_one(tmp_path: Any) -> None:
    assert read(tmp_path / "missing.json") == defaults("/var/run/redis/redis.sock")
    broken = tmp_path / "database_config.json"
    for text in ("", "[]", '{"INSTANCES": {}, "DATABASES": {}}'):
        broken.write_text(text)
        with pytest.raises(DatabaseConfigError, match="not a SONiC database configuration"):
            read(broken)


def test_a_message_becomes_the_state_that_it_describes() -> None:
    message = DesiredState(
        switch_id="leaf01",
        generation=7,
        hash="seven",
        asn=4200000011,
        loopback="10.0.0.11",
        pxe_vlan=4000,
        ports=[
            DesiredPort(
                name="Ethernet0",
                role=WireRole.PORT_ROLE_MACHINE,
                mtu=9000,
                vrf="Vrf2000",
                speed=25_000,
                fec=PortFec.PORT_FEC_RS,
            ),
            DesiredPort(name="Ethernet4", admin_state=WireState.PORT_STATE_DOWN),
            DesiredPort(
                name="Ethernet8", role=WireRole.PORT_ROLE_FIREWALL, vnis=[2000], allowed_prefixes=["10.0.0.1/32"]
            ),
            DesiredPort(name="Ethernet12", role=WireRole.PORT_ROLE_UNUSED, admin_state=WireState.PORT_STATE_DOWN),
            DesiredPort(name="Ethernet16", role=WireRole.PORT_ROLE_ADDITIONAL),
        ],
        vrfs=[DesiredVrf(name="Vrf2000", vni=2000, vlan=1001)],
        management_gateway="192.0.2.1",
        management_routes=["198.51.100.0/24"],
        source_loopback=True,
        bgp_keepalive=3,
        bgp_hold=9,
        drift_policy=WirePolicy.DRIFT_POLICY_REPORT,
        confirm_seconds=60,
    )
    assert desired_of(message) == Desired(
        "leaf01",
        7,
        "seven",
        4200000011,
        "10.0.0.11",
        4000,
        (
            Port("Ethernet0", PortRole.MACHINE, mtu=9000, vrf="Vrf2000", speed=25_000, fec=Fec.RS),
            Port("Ethernet4", PortRole.DOWN, Admin.DOWN),
            Port("Ethernet8", PortRole.FIREWALL, allowed_prefixes=("10.0.0.1/32",), vnis=(2000,)),
            Port("Ethernet12", PortRole.DOWN, Admin.DOWN),
            Port("Ethernet16", PortRole.ADDITIONAL),
        ),
        (Vrf("Vrf2000", 2000, 1001),),
        "192.0.2.1",
        ("198.51.100.0/24",),
        True,
        3,
        9,
        DriftPolicy.REPORT,
        60,
    )


@pytest.mark.parametrize(
    "port",
    [
        DesiredPort(name="Ethernet0"),
        DesiredPort(name="Ethernet0", role=99),  # type: ignore[arg-type]
        DesiredPort(role=2, admin_state=9),  # type: ignore[arg-type]
        DesiredPort(role=2, fec=9),  # type: ignore[arg-type]
    ],
)
def test_a_role_of_a_newer_contract_is_not_guessed_at(port: DesiredPort) -> None:
    with pytest.raises(UnknownState, match="is not known here"):
        desired_of(DesiredState(ports=[port]))


def test_a_policy_of_a_newer_contract_is_not_guessed_at() -> None:
    with pytest.raises(UnknownState, match="drift_policy: 99"):
        desired_of(DesiredState(drift_policy=99))  # type: ignore[arg-type]


@pytest.fixture
def fake() -> FakeApplier:
    return FakeApplier()


def following_of(fake: FakeApplier, reports: Reports, compare_every: float = 3600) -> Following:
    """A Following that tries again at once."""
    retry = Backoff(first=timedelta(milliseconds=1), most=timedelta(milliseconds=2), least=timedelta(milliseconds=1))
    return Following(fake, reports, switch_id="leaf01", compare_every=compare_every, retry=retry)  # type: ignore[arg-type]


Until = Callable[[Following, Callable[[], bool]], Awaitable[None]]


@pytest.fixture
def until(eventually: Callable[..., Awaitable[None]]) -> Until:
    """Runs the loop until the condition holds, and then lets it end."""

    async def run(following: Following, condition: Callable[[], bool]) -> None:
        stopping = asyncio.Event()
        loop = asyncio.create_task(following.run(stopping))
        try:
            await eventually(condition)
        finally:
            stopping.set()
            await loop

    return run


async def test_an_older_generation_is_ignored(fake: FakeApplier, until: Until) -> None:
    reports = Reports()
    following = following_of(fake, reports)
    following.want(STATE)
    following.want(replace(STATE, generation=4, ports=()))
    await until(following, lambda: following.applied is not None)
    assert following.applied == STATE
    assert fake.calls == [("apply", 5)]
    assert report(reports).generation == 5


async def test_the_generation_in_memory_counts_when_older_ones_arrive(fake: FakeApplier, until: Until) -> None:
    following = following_of(fake, Reports())
    following.resume(KnownGood(STATE, 0.0), Outcome(True))
    following.want(replace(STATE, generation=4))
    await until(following, lambda: bool(fake.calls))
    assert fake.calls == [("restore", 5)]


async def test_on_a_new_stream_only_what_is_applied_counts_when_older_ones_arrive(
    fake: FakeApplier, until: Until
) -> None:
    reports = Reports()
    following = following_of(fake, reports)
    following.want(STATE)
    await until(following, lambda: following.applied is not None)
    following.want(replace(STATE, generation=9))
    assert following.introduce() == STATE
    following.want(replace(STATE, generation=4))
    following.want(replace(STATE, generation=5, ports=()))
    assert "another content" in report(reports).error
    following.want(replace(STATE, generation=6))
    await until(following, lambda: following.applied == replace(STATE, generation=6))


async def test_a_state_for_another_switch_is_refused_and_nothing_is_applied(fake: FakeApplier) -> None:
    reports = Reports()
    following = following_of(fake, reports)
    following.want(replace(STATE, switch_id="leaf02"))
    assert "'leaf02'" in report(reports).error
    assert not report(reports).applied
    assert following.newest_generation == 0


async def test_a_generation_cannot_change_its_content(fake: FakeApplier, until: Until) -> None:
    reports = Reports()
    following = following_of(fake, reports)
    following.want(STATE)
    following.want(replace(STATE, ports=()))
    assert "another content" in report(reports).error
    await until(following, lambda: following.applied is not None)
    assert following.applied == STATE


async def test_a_failure_is_reported_and_tried_again_until_it_works(fake: FakeApplier, until: Until) -> None:
    reports = Reports()
    following = following_of(fake, reports)
    fake.outcomes = [Outcome(False, "Redis is away"), Outcome(False, "Redis is away"), Outcome(True)]
    errors: list[str] = []
    fake.on_call = lambda: errors.append(report(reports).error if report(reports) else "")
    following.want(STATE)
    await until(following, lambda: following.applied is not None)
    assert errors == ["", "Redis is away", "Redis is away"]
    assert report(reports).applied


async def test_a_newer_state_that_arrives_during_a_run_is_applied_next(fake: FakeApplier, until: Until) -> None:
    following = following_of(fake, Reports())
    newer = replace(STATE, generation=6)
    fake.on_call = lambda: following.want(newer)
    following.want(STATE)
    await until(following, lambda: following.applied == newer)
    assert fake.calls[:2] == [("apply", 5), ("apply", 6)]


async def test_a_state_that_is_sent_again_is_confirmed_again(fake: FakeApplier, until: Until) -> None:
    reports = Reports()
    following = following_of(fake, reports)
    following.want(STATE)
    await until(following, lambda: following.applied is not None)
    reports.acknowledged(report(reports).id)
    assert report(reports) is None
    following.want(replace(STATE))
    await until(following, lambda: len(fake.calls) == 2)
    assert report(reports).applied


async def test_what_drifts_is_corrected_and_said(fake: FakeApplier, until: Until) -> None:
    reports = Reports()
    following = following_of(fake, reports, compare_every=0.002)
    following.want(STATE)
    fake.outcomes = [Outcome(True, changed=9), Outcome(True), Outcome(True, changed=2)]
    await until(following, lambda: len(fake.calls) >= 4)
    assert "drift corrected: 2 rows" in report(reports).notes[0]


async def test_a_restoration_that_failed_is_tried_again_without_the_plane(fake: FakeApplier, until: Until) -> None:
    following = following_of(fake, Reports())
    following.resume(KnownGood(STATE, 0.0), Outcome(False, "bgpd is not there yet"))
    assert following.applied is None
    await until(following, lambda: following.applied is not None)
    assert fake.calls == [("restore", 5)]
    following.want(replace(STATE))
    await until(following, lambda: len(fake.calls) == 2)
    assert fake.calls[-1] == ("apply", 5), "what the plane says is applied without the caution of a memory"


async def test_a_leaf_that_is_told_to_wait_connects_no_sooner(monkeypatch: pytest.MonkeyPatch) -> None:
    stopping, waited = asyncio.Event(), []

    async def pause(_: asyncio.Event, span: timedelta) -> None:
        waited.append(span)
        stopping.set()

    async def refused(_: asyncio.Event) -> None:
        raise ResourceExhausted("TOO_MANY_STREAMS", "limited", retry_after=timedelta(seconds=9))

    monkeypatch.setattr("metal_core.plane.pause", pause)
    nothing: Any = None
    stream = PlaneStream(nothing, nothing, nothing, nothing, reconnect=Backoff(timedelta(0), timedelta(0)))
    monkeypatch.setattr(stream, "_session", refused)
    await stream.run(stopping)
    assert timedelta(seconds=9) <= waited[0] <= timedelta(seconds=12)
