"""Composition of metal-bmc: settings, and which part gets which."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from datetime import timedelta
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Any

from metal_kit.controller import Controller
from metal_kit.issues import Source as IssueSource
from metal_kit.logs import get_logger
from metal_kit.process import StartError
from metal_kit.runtime import Background, Parts, Runtime, Servicer, ServiceSpec
from metal_kit.settings import ServiceSettings
from metalplane.bmc.v1.bmc_pb2_grpc import add_BmcServiceServicer_to_server
from metalplane.bmc.v1.expected_pb2_grpc import add_ExpectedMachineServiceServicer_to_server
from metalplane.inventory.v1.machine_pb2_grpc import MachineServiceStub
from pydantic import Field, SecretStr, field_validator
from pydantic_settings import NoDecode

from metal_bmc.announcer import Announcer
from metal_bmc.api import BmcApi
from metal_bmc.api.console import ConsoleApi
from metal_bmc.api.expected import SERVICE as EXPECTED_SERVICE
from metal_bmc.api.expected import ExpectedMachineApi
from metal_bmc.api.service import SERVICE
from metal_bmc.command import Patience
from metal_bmc.console.hub import ConsoleHub, HubPlan
from metal_bmc.console.machine import ConsolePlan
from metal_bmc.console.recording import Recorder
from metal_bmc.contact import Contact, ContactPlan
from metal_bmc.controller import BmcReconciler
from metal_bmc.credentials import KeyRing
from metal_bmc.desk import TaskDesk
from metal_bmc.discovery import Discovery, DiscoveryPlan
from metal_bmc.doors import Doors
from metal_bmc.drivers.interface import DriverKind
from metal_bmc.drivers.ipmi import IpmiDriver
from metal_bmc.drivers.pool import WorkerPool
from metal_bmc.drivers.pyghmi import PyghmiFru
from metal_bmc.drivers.redfish import RedfishDriver
from metal_bmc.drivers.router import DriverSet
from metal_bmc.drivers.sol import SolConsoles
from metal_bmc.enforcement import PowerOns, Stagger
from metal_bmc.exchange import BmcExchange, reconcile_kind
from metal_bmc.expectations import ExpectationPlan, Expectations, Unknowns
from metal_bmc.mixups import Mixups
from metal_bmc.ownership import Ownership
from metal_bmc.pacing import PollPlan
from metal_bmc.poller import Poller
from metal_bmc.redfish.client import RedfishClient, SessionLife
from metal_bmc.registry import Registry
from metal_bmc.reporter import Reporter
from metal_bmc.resealing import Resealing
from metal_bmc.rmcp.client import Keeping, RmcpClient
from metal_bmc.rmcp.pace import LoginPace
from metal_bmc.scan import Scan, ScanPlan
from metal_bmc.sources.lease_files import Filter, isc_file, kea_file
from metal_bmc.sources.ranges import parse_ranges
from metal_bmc.sources.source import Source
from metal_bmc.upkeep import Upkeep
from metal_bmc.whose import Whose

log = get_logger(__name__)

Names = Annotated[tuple[str, ...], NoDecode]


class Settings(ServiceSettings):
    """Settings of metal-bmc beyond the common ones. Seconds unless the name says otherwise."""

    partition: str = Field(min_length=1, max_length=63, description="the partition whose BMCs this service reaches")
    credential_keys: SecretStr = Field(
        description="key ring for BMC passwords, `id:base64-of-32-bytes,…`; the first seals, all open"
    )
    polls_at_once: int = Field(64, ge=1, le=1000, description="BMCs whose state is read at once, slow ones aside")
    commands_at_once: int = Field(32, ge=1, le=1000, description="BMCs that carry out commands at once")
    gap_seconds: float = Field(0.1, ge=0, le=60, description="pause between two exchanges with one BMC")
    rack_exchanges: int = Field(20, ge=1, le=1000, description="exchanges with BMCs of one rack at once, a replica")
    rack_power_ons: int = Field(4, ge=1, le=1000, description="machines of a rack switched on in rack_power_seconds")
    rack_power_seconds: float = Field(2.0, ge=0.1, le=600, description="span for that, over all replicas")
    logins_per_second: float = Field(100.0, gt=0, le=10000, description="logins at BMCs, a replica")
    sessions: int = Field(2500, ge=1, le=20000, description="BMCs that stay logged in to at once")
    owner_seconds: float = Field(
        15.0, ge=1, le=300, description="how long a replica that died keeps its BMCs; a third more until they are taken"
    )
    session_seconds: float = Field(90.0, gt=0, description="how long a session that nobody uses is kept")
    driver_processes: int = Field(2, ge=1, le=64, description="processes that read FRU, one BMC at a time each")
    exchange_seconds: float = Field(20.0, gt=0, le=50, description="limit of one exchange with a BMC")
    confirm_seconds: float = Field(30.0, gt=0, le=600, description="time for a machine to show the power ordered")
    rest_seconds: float = Field(1.0, ge=0, le=60, description="time without power in a power cycle")
    announce_seconds: float = Field(5.0, gt=0, le=60, description="time for inventory to hear of a reboot beforehand")
    poll_seconds: float = Field(60.0, gt=0, description="interval of power readings, with 20 % jitter")
    inspect_seconds: float = Field(6 * 3600.0, gt=0, description="interval of identity readings")
    report_seconds: float = Field(300.0, gt=0, description="inventory hears of an unchanged BMC this often")
    remind_seconds: float = Field(3600.0, gt=0, description="people are first reminded of a task after this long")
    keep_commands_days: float = Field(30.0, gt=0, description="how long ended commands and tasks are kept")
    lease_file: str = Field("", description="lease file of ISC dhcpd to discover BMCs from; empty: none")
    kea_lease_files: Names = Field((), description="lease files of Kea: `…/kea-leases4.csv,…/kea-leases6.csv`")
    lease_seconds: float = Field(30.0, gt=0, description="interval of looks at the lease files")
    lease_networks: Names = Field((), description="networks that BMCs are in, `10.1.0.0/16,…`; empty: any")
    lease_ignored_macs: Names = Field((), description="MAC addresses in lease files that are no BMCs")
    scan_ranges: Names = Field(
        (), description="addresses to look for BMCs at: `10.1.0.0/24,10.1.4.5-10.1.4.20,…`, 65,536 in all at most"
    )
    scan_seconds: float = Field(3600.0, gt=0, description="interval of looks through these, with 20 % jitter")
    scan_rate: float = Field(50.0, gt=0, le=1000, description="addresses of these that are asked a second")
    expected_seconds: float = Field(60.0, gt=0, description="interval of comparisons with expected machines")
    expected_missing_hours: float = Field(
        24.0, gt=0, description="an expected machine that was not found, or does not answer, for so long is an issue"
    )
    unexpected_bmcs: Unknowns = Field(
        Unknowns.REGISTER,
        description="BMCs that are found and not expected: `register`, `report` (and an issue), or `leave` alone",
    )
    factory_user: str = Field("", description="factory login for BMCs that nobody registered; empty: none is asked")
    factory_password: SecretStr = Field(SecretStr(""), description="its password")
    factory_redfish_port: int = Field(443, ge=1, le=65535, description="HTTPS port of those expected to speak Redfish")
    factory_port: int = Field(623, ge=1, le=65535, description="RMCP port of BMCs that nobody registered")

    consoles: int = Field(64, ge=1, le=1000, description="serial consoles that are open at once")
    console_linger_seconds: float = Field(60.0, ge=0, le=3600, description="a console without readers is closed then")
    console_idle_seconds: float = Field(
        4 * 3600.0, gt=0, description="a console is closed when nothing was typed or printed for so long"
    )
    console_reopen_seconds: float = Field(
        900.0, gt=0, description="a BMC that is lost has so long to come back before its readers are let go"
    )
    console_recordings: str = Field("", description="directory to record what consoles print in; empty: no recording")
    console_recording_bytes: int = Field(10 << 20, ge=4096, description="a recording is turned over at that size")
    console_recording_files: int = Field(4, ge=1, le=100, description="files a machine, the present one included")

    @field_validator("lease_networks", "lease_ignored_macs", "kea_lease_files", "scan_ranges", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @field_validator("lease_ignored_macs")
    @classmethod
    def _lower(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(text.lower() for text in value)

    @field_validator("scan_ranges")
    @classmethod
    def _check_ranges(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        parse_ranges(value)
        return value

    @field_validator("lease_networks")
    @classmethod
    def _check_networks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for text in value:
            ip_network(text)
        return value


def _key_ring(settings: Settings) -> KeyRing:
    try:
        return KeyRing.parse(settings.credential_keys.get_secret_value())
    except ValueError as error:
        raise StartError(f"METALPLANE_CREDENTIAL_KEYS: {error}") from None


def _sources(settings: Settings) -> list[Source]:
    which = Filter(
        networks=tuple(ip_network(text) for text in settings.lease_networks),
        ignored_macs=frozenset(settings.lease_ignored_macs),
    )
    isc = [isc_file(Path(settings.lease_file), which)] if settings.lease_file else []
    return [*isc, *(kea_file(Path(name), which) for name in settings.kea_lease_files)]


def _contact_plan(settings: Settings) -> ContactPlan:
    return ContactPlan(
        port=settings.factory_port,
        redfish_port=settings.factory_redfish_port,
        user=settings.factory_user,
        password=settings.factory_password.get_secret_value(),
        deadline=settings.exchange_seconds,
        unknowns=settings.unexpected_bmcs,
    )


def _console_plan(settings: Settings) -> HubPlan:
    console = ConsolePlan(
        linger=settings.console_linger_seconds,
        idle=settings.console_idle_seconds,
        reopen=settings.console_reopen_seconds,
    )
    return HubPlan(most=settings.consoles, open_seconds=settings.exchange_seconds, console=console)


def _recorder(settings: Settings) -> Recorder | None:
    if not settings.console_recordings:
        return None
    directory = Path(settings.console_recordings)
    if not directory.is_dir() or not os.access(directory, os.W_OK | os.X_OK):
        raise StartError("METALPLANE_CONSOLE_RECORDINGS: has to be a directory that this service may write to")
    return Recorder(directory, most_bytes=settings.console_recording_bytes, files=settings.console_recording_files)


def _finding(
    settings: Settings, rt: Runtime, contact: Contact, ownership: Ownership
) -> tuple[list[Background], list[tuple[str, IssueSource]]]:
    """What looks for BMCs and compares them with those that are expected, and what is wrong there."""
    db, partition = rt.require_db(), settings.partition
    plan = DiscoveryPlan(interval=timedelta(seconds=settings.lease_seconds), at_once=settings.polls_at_once)
    discovery = Discovery(db, contact, rt.clock, ownership, partition=partition, sources=_sources(settings), plan=plan)
    wanted = ExpectationPlan(
        interval=timedelta(seconds=settings.expected_seconds),
        missing=timedelta(hours=settings.expected_missing_hours),
        unknowns=settings.unexpected_bmcs,
    )
    expectations = Expectations(db, rt.clock, partition=partition, plan=wanted)
    tasks = [
        Background("discovery", lambda: discovery.run(rt.stopping)),
        Background("expectations", lambda: expectations.run(rt.stopping)),
    ]
    if settings.scan_ranges:
        scan_plan = ScanPlan(
            addresses=parse_ranges(settings.scan_ranges),
            port=settings.factory_port,
            rate=settings.scan_rate,
            interval=timedelta(seconds=settings.scan_seconds),
        )
        scan = Scan(db, contact, ownership, partition=partition, plan=scan_plan)
        tasks.append(Background("scan", lambda: scan.run(rt.stopping)))
    return tasks, [("discovery", discovery.issues), ("expectations", expectations.issues)]


def _controller(
    settings: Settings,
    rt: Runtime,
    exchange: BmcExchange,
    announcer: Announcer | None,
    registry: Registry,
    desk: TaskDesk,
) -> Controller:
    db = rt.require_db()
    patience = Patience(
        confirm=timedelta(seconds=settings.confirm_seconds),
        rest=timedelta(seconds=settings.rest_seconds),
        announce=timedelta(seconds=settings.announce_seconds),
    )
    reconciler = BmcReconciler(
        db,
        exchange,
        announcer,
        registry,
        desk,
        PowerOns(db, Stagger(settings.rack_power_ons, timedelta(seconds=settings.rack_power_seconds))),
        partition=settings.partition,
        patience=patience,
        step_seconds=settings.exchange_seconds,
    )
    drain = timedelta(seconds=settings.drain_seconds)
    return Controller(
        reconciler,
        db,
        workers=settings.commands_at_once,
        # What a dead replica was at waits for this beside the ownership.
        lease=timedelta(seconds=settings.owner_seconds),
        drain=drain,
        shards=exchange.ownership.buckets,
    )


async def compose(rt: Runtime) -> Parts:
    """Wire driver, exchange, reconciler, poller, reporter and discovery."""
    settings = rt.settings
    if not isinstance(settings, Settings):
        raise TypeError("metal-bmc needs its own settings")
    db, ring, partition = rt.require_db(), _key_ring(settings), settings.partition
    client = RmcpClient(
        Keeping(most=settings.sessions, unused=settings.session_seconds), LoginPace(settings.logins_per_second)
    )
    ipmi = IpmiDriver(client, PyghmiFru(WorkerPool(size=settings.driver_processes)))
    redfish = RedfishDriver(RedfishClient(SessionLife(most=settings.sessions, unused=settings.session_seconds)))
    driver = DriverSet({DriverKind.IPMI: ipmi, DriverKind.REDFISH: redfish})
    ownership = Ownership(
        db,
        partition=partition,
        lease=timedelta(seconds=settings.owner_seconds),
        wakes=[f"reconcile:{reconcile_kind(partition)}"],
    )
    exchange = BmcExchange(
        db,
        driver,
        ring,
        rt.clock,
        ownership,
        doors=Doors(gap=settings.gap_seconds, per_rack=settings.rack_exchanges),
        interval=timedelta(seconds=settings.poll_seconds),
    )
    # What a person does needs no driver.
    registry = Registry(ring, partition=partition, kinds=driver.kinds | {DriverKind.MANUAL})
    desk = TaskDesk(db, rt.clock, partition=partition, remind=timedelta(seconds=settings.remind_seconds))
    plan = PollPlan(
        interval=timedelta(seconds=settings.poll_seconds),
        inspect_every=timedelta(seconds=settings.inspect_seconds),
        parallel=settings.polls_at_once,
        deadline=settings.exchange_seconds,
    )
    poller = Poller(db, exchange, rt.clock, partition=partition, plan=plan)
    resealing = Resealing(db, ring, partition=partition)
    upkeep = Upkeep(db, resealing, rt.clock, keep=timedelta(days=settings.keep_commands_days))
    background = [
        Background("owner", lambda: ownership.run(rt.stopping)),
        Background("poller", lambda: poller.run(rt.stopping)),
        Background("upkeep", lambda: upkeep.run(rt.stopping)),
        Background("tasks", lambda: desk.run(rt.stopping)),
    ]
    announcer: Announcer | None = None
    machines: Any = None
    if rt.peers.has("inventory"):
        machines = rt.peers.stub(MachineServiceStub, "inventory")
        announcer = Announcer(machines, partition=partition)
        reporter = Reporter(db, machines, partition=partition, again=timedelta(seconds=settings.report_seconds))
        background.append(Background("reporter", lambda: reporter.run(rt.stopping)))
    else:
        log.warning("bmc.no_inventory", cause="METALPLANE_PEERS names no inventory; nothing is reported")
    contact = Contact(
        db,
        driver,
        ring,
        rt.clock,
        registry,
        Whose(db, machines),
        partition=partition,
        plan=_contact_plan(settings),
    )
    finding, issues = _finding(settings, rt, contact, ownership)
    background += finding
    expected = ExpectedMachineApi(db, ring, rt.paging, partition=partition, kinds=driver.kinds)
    await ownership.start()
    recorder = _recorder(settings)
    hub = ConsoleHub(
        db, exchange, SolConsoles(client), partition=partition, plan=_console_plan(settings), recorder=recorder
    )
    background.append(Background("consoles", lambda: hub.run(rt.stopping)))
    closing: list[Callable[[], Awaitable[None]]] = [ownership.release, driver.close]
    if recorder is not None:
        background.append(Background("recorder", lambda: recorder.run(rt.stopping)))
        closing.append(recorder.close)
    api = BmcApi(db, registry, resealing, desk, rt.paging, ConsoleApi(hub), rt.stopping)
    return Parts(
        servicers=[
            Servicer(add_BmcServiceServicer_to_server, api, SERVICE),
            Servicer(add_ExpectedMachineServiceServicer_to_server, expected, EXPECTED_SERVICE),
        ],
        controllers=[_controller(settings, rt, exchange, announcer, registry, desk)],
        issues=[("manual tasks", desk.issues), ("identities", Mixups(db, partition=partition).issues), *issues],
        background=background,
        # In reverse: it logs out everywhere, and then the others may log in.
        close=[*closing, hub.close],
    )


SPEC = ServiceSpec(name="bmc", settings=Settings, package="metal_bmc", compose=compose)
