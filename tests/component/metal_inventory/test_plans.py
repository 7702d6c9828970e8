"""Statements of inventory over many machines: lists, sweeps, leases, events, deletions."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import timedelta
from functools import partial
from uuid import UUID, uuid4

import pytest
from metal_inventory.lifecycle import EventType, State
from metal_inventory.state import AdminState
from metal_inventory.store.bindings import BindingStore
from metal_inventory.store.bmcs import BmcStore
from metal_inventory.store.catalog import IMAGES, PARTITIONS, SIZES, machines_of
from metal_inventory.store.events import EventStore, Report
from metal_inventory.store.leases import Claim, LeaseStore
from metal_inventory.store.machines import MachineStore
from metal_inventory.store.queries import FIRST, Filter, QueryStore, Visible
from metal_inventory.store.registration import Cabling, Registration, RegistrationStore
from metal_inventory.store.sweeps import SweepStore
from metal_kit.db import Connection
from metal_lab.servers import Postgres
from metalplane.inventory.v1.hardware_pb2 import POWER_STATE_ON, Bios, BmcInfo, Hardware, Nic
from metalplane.inventory.v1.machine_pb2 import Machine
from plans import MIDDLE, Call, Plans, measured, uuid_of

MACHINES = MachineStore()
EVENTS = EventStore(MACHINES)
QUERIES = QueryStore()
BIG, SMALL = "0198c1d2-0000-7000-8000-000000000001", "0198c1d2-0000-7000-8000-000000000002"
ALLOCATION = str(UUID(hashlib.md5(b"a11").hexdigest()))
EVERYTHING = Visible(everything=True)
REPORT = (
    Machine(hardware=Hardware(nics=[Nic(name=f"eth{n}", mac=f"02:00:00:00:00:0{n}") for n in range(6)]))
    .SerializeToString()
    .hex()
)
# Of 20,000 machines: a fifth allocated, two fifths waiting, twenty of each rare kind.
FILL = (
    "INSERT INTO partition (id, body) SELECT 'p' || n, '' FROM generate_series(1, 2000) AS n",
    "INSERT INTO size (id, body) SELECT 's' || n, '' FROM generate_series(1, 2000) AS n",
    "INSERT INTO image (id, body, os, classification, expires_at) "
    "SELECT 'i' || n, '', 'os' || n % 200, 'SUPPORTED', now() FROM generate_series(1, 2000) AS n",
    f"""
    INSERT INTO machine (id, partition, rack, cabled, size, labels, state, state_description, waiting, disks_clean,
        allocation_id, project_id, bound_at, generation, report)
    SELECT md5(n::text)::uuid, CASE WHEN n % 1000 = 1 THEN 'p2' ELSE 'p1' END, 'rack-' || n / 20, true,
        CASE WHEN n % 1000 = 2 THEN 's2' ELSE 's1' END,
        CASE WHEN n % 1000 = 3 THEN '{{"room": "b"}}'::jsonb ELSE '{{"room": "a"}}' END,
        CASE WHEN n % 1000 = 4 THEN 'LOCKED' WHEN n % 20 = 4 THEN 'TAINTED' ELSE 'AVAILABLE' END,
        CASE WHEN n % 20 = 4 THEN 'x' ELSE '' END,
        n % 2 = 0 AND n % 5 <> 1, n % 2 = 0,
        CASE WHEN n % 5 = 1 THEN md5('a' || n)::uuid END,
        CASE WHEN n % 1000 = 6 THEN '{SMALL}'::uuid WHEN n % 5 = 1 THEN '{BIG}'::uuid END,
        CASE WHEN n % 5 = 1 THEN now() END, 1, decode('{REPORT}', 'hex')
    FROM generate_series(1, 20000) AS n
    """,
    "INSERT INTO lifecycle (machine, sequence, state, last_event_at, liveliness) "
    "SELECT id, 2, CASE WHEN random() < 0.001 THEN 'CRASHING' ELSE 'WAITING' END, now(), 'ALIVE' FROM machine",
    "INSERT INTO machine_part SELECT id, 'nic_mac', 'mac ' || n || id FROM machine, generate_series(1, 2) AS n",
    "INSERT INTO bmc (machine, address, mac) SELECT id, 'address ' || id, 'mac' FROM machine",
    "INSERT INTO waiting_lease SELECT id, id, 1, clock_timestamp() + interval '1 hour' FROM machine WHERE waiting",
    "INSERT INTO provisioning_event (machine, sequence, type, received_at, message) "
    "SELECT id, n, 'ALIVE', now(), '' FROM machine, generate_series(1, 2) AS n",
    "INSERT INTO received_event (machine, id, verdict, received_at) SELECT id, id, 'STORED', "
    "clock_timestamp() - CASE WHEN random() < 0.01 THEN interval '2 days' ELSE '0' END FROM machine",
)


@pytest.fixture(scope="module")
async def plans(postgres: Postgres) -> AsyncIterator[Plans]:
    async with measured(postgres, "inventory", "metal_inventory", FILL) as made:
        yield made


def page(wanted: Filter, visible: Visible = EVERYTHING, after: str = FIRST) -> Call:
    return partial(QUERIES.page, wanted=wanted, visible=visible, after=after, limit=51)


FILTERS = {
    "none": Filter(),
    "partition of few": Filter(partition="p2"),
    "partition of many": Filter(partition="p1"),
    "rack": Filter(rack="rack-7"),
    "size of few": Filter(size="s2"),
    "size of many": Filter(size="s1"),
    "project of few": Filter(project=SMALL),
    "project of many": Filter(project=BIG),
    "locked": Filter(state=AdminState.LOCKED),
    "tainted": Filter(state=AdminState.TAINTED),
    "available": Filter(state=AdminState.AVAILABLE),
    "life cycle of few": Filter(lifecycle=State.CRASHING),
    "life cycle of many": Filter(lifecycle=State.WAITING),
    "allocated": Filter(allocated=True),
    "not allocated": Filter(allocated=False),
    "waiting": Filter(waiting=True),
    "not waiting": Filter(waiting=False),
    "labels of few": Filter(labels={"room": "b"}),
    "labels of many": Filter(labels={"room": "a"}),
    "labels of none": Filter(labels={"room": "c"}),
    "MAC": Filter(mac=f"mac 1{uuid_of(7)}"),
    "two": Filter(partition="p1", size="s2"),
}


async def test_lists_read_what_they_show(plans: Plans) -> None:
    cases = {f"{name}, first page": page(wanted) for name, wanted in FILTERS.items()}
    cases |= {f"{name}, later page": page(wanted, after=MIDDLE) for name, wanted in FILTERS.items()}
    for name, visible in {
        "one project": Visible(projects=[BIG]),
        "two projects": Visible(projects=[BIG, SMALL]),
        "a small project": Visible(projects=[SMALL]),
        "no project": Visible(),
        "partition": Visible(partition="p1"),
        "a small partition": Visible(partition="p2"),
    }.items():
        cases[f"seen by {name}"] = page(Filter(), visible)
        cases[f"seen by {name}, later"] = page(Filter(), visible, MIDDLE)
    await plans.check(cases)


@pytest.mark.parametrize(("free", "waiting", "state", "wanted"), [
    ("few", "false", "TAINTED", (Filter(allocated=False), Filter(state=AdminState.AVAILABLE))),
    ("all", "n > 20", "AVAILABLE", (Filter(waiting=False), Filter(allocated=True))),
])  # fmt: skip
async def test_lists_read_what_they_show_where_the_usual_is_rare(
    postgres: Postgres, free: str, waiting: str, state: str, wanted: Sequence[Filter]
) -> None:
    """A full plane under suspicion, and one where nearly all machines wait."""
    bound = {"few": "n > 20", "all": "n BETWEEN 2 AND 20"}[free]
    fill = (
        "INSERT INTO partition (id, body) VALUES ('p1', 'x')",
        f"""
        INSERT INTO machine (id, partition, state, state_description, waiting, allocation_id, project_id, bound_at)
        SELECT md5(n::text)::uuid, 'p1', CASE WHEN n > 20 THEN '{state}' ELSE 'AVAILABLE' END,
            CASE WHEN n > 20 AND '{state}' <> 'AVAILABLE' THEN 'x' ELSE '' END, {waiting},
            CASE WHEN {bound} THEN gen_random_uuid() END, CASE WHEN {bound} THEN '{BIG}'::uuid END,
            CASE WHEN {bound} THEN now() END
        FROM generate_series(1, 20000) AS n
        """,
        "INSERT INTO lifecycle (machine) SELECT id FROM machine",
    )
    async with measured(postgres, "inventory", "metal_inventory", fill) as plans:
        await plans.check({str(each): page(each) for each in wanted})


WAITING, ALLOCATED, FREE = uuid_of(2), uuid_of(11), uuid_of(3)


async def locked(conn: Connection, machine: str, call: Callable[..., Awaitable[object]], **arguments: object) -> None:
    row = await MACHINES.lock(conn, machine)
    await call(conn, row, **arguments)


async def silent(conn: Connection, call: Call) -> None:
    """Ten machines fell silent, ten leases ran out."""
    for change in (
        "UPDATE lifecycle SET last_event_at = clock_timestamp() - interval '1 hour' WHERE machine = ANY ($1)",
        "UPDATE waiting_lease SET expires_at = clock_timestamp() - interval '1 s' WHERE machine = ANY ($1)",
    ):
        await conn.execute(change, [uuid_of(number) for number in range(10, 110, 10)])
    await call(conn)


async def test_what_one_machine_does_costs_the_same_in_a_large_plane(plans: Plans) -> None:
    leases, bindings = LeaseStore(MACHINES, EVENTS), BindingStore(MACHINES)
    registration = Registration(
        session=str(uuid4()),
        hardware=Hardware(nics=[Nic(name="eth0", mac="02:00:00:00:00:01")]),
        bios=Bios(),
        bmc=BmcInfo(address="a", mac="m"),
        installer_version="1",
        cabling=Cabling(rack="rack-1"),
    )
    reports = {uuid_of(number): BmcInfo(address=f"b{number}", power=POWER_STATE_ON) for number in range(1, 21)}
    claim = Claim(holder=WAITING, generation=1, ttl=timedelta(seconds=20))
    events = [Report(EventType.ALIVE, id=str(uuid4())), Report(EventType.CRASHED, id=str(uuid4()))]
    await plans.check(
        {
            "get": partial(MACHINES.get, id_=FREE),
            "create": partial(MACHINES.lock_or_create, id_=str(uuid4()), partition="p1"),
            "delete": partial(locked, machine=FREE, call=MACHINES.delete),
            "register": partial(
                locked, machine=FREE, call=RegistrationStore(MACHINES, EVENTS).register, found=registration
            ),
            "events": partial(locked, machine=FREE, call=EVENTS.record, reports=events),
            "history": partial(EVENTS.page, machine=FREE, before=1 << 40, limit=51),
            "renew": partial(leases.renew, machine=WAITING, partition="p1", claim=claim),
            "take": partial(locked, machine=WAITING, call=leases.take, claim=claim),
            "end": partial(locked, machine=WAITING, call=leases.end),
            "bind": partial(
                locked, machine=WAITING, call=bindings.bind, allocation=str(uuid4()), project=BIG, allow_tainted=True
            ),
            "unbind": partial(locked, machine=ALLOCATED, call=bindings.unbind, allocation=ALLOCATION),
            "BMC reports": partial(BmcStore(MACHINES).report, partition="p1", reports=reports),
            "shared BMC addresses": partial(QUERIES.shared_bmc_addresses, addresses=["address 1", "address 2"]),
        }
    )


async def test_the_catalogue_is_read_by_page_and_deleted_by_index(plans: Plans) -> None:
    await plans.check(
        {
            "page": partial(SIZES.page, after="s1500", limit=51),
            "images of an OS": partial(IMAGES.of_os, os="os7"),
            "machines of a partition": partial(machines_of, column="partition", value="p1"),
            "machines of a rare size": partial(machines_of, column="size", value="s2"),
            "machines of no size": partial(machines_of, column="size", value="s7"),
            "deletion of a partition": partial(PARTITIONS.delete, id_="p1999"),
        }
    )


async def test_sweeps_cost_what_they_change(plans: Plans) -> None:
    sweeps = SweepStore(MACHINES)
    await plans.check(
        {
            "old ids of events": partial(EVENTS.forget_ids, older_than=timedelta(days=1)),
            "no old ids of events": partial(EVENTS.forget_ids, older_than=timedelta(days=3)),
        }
    )
    # Narrow rows without an index on the time, which every sign of life would have to move: read as a whole.
    leases = {"leases that ran out": partial(silent, call=sweeps.leases), "no lease ran out": sweeps.leases}
    await plans.check(leases, scans=["waiting_lease"])
    machines = {"silent machines": partial(silent, call=sweeps.liveliness), "nobody silent": sweeps.liveliness}
    await plans.check(machines, scans=["lifecycle", "machine"])
