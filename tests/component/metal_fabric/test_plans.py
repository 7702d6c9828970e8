"""Statements of fabric over many switches, ports, cables and attachments."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from datetime import timedelta
from functools import partial
from uuid import UUID, uuid4

import pytest
from metal_fabric.attachment import Attachment
from metal_fabric.cabling import Cable
from metal_fabric.filters import PortRole, Wish
from metal_fabric.health import Code, Finding, SessionCount
from metal_fabric.ports import LinkState
from metal_fabric.settings import Settings
from metal_fabric.store import (
    AttachmentStore,
    CableStore,
    FindingStore,
    FormerLeaf,
    FormerPlace,
    GenerationStore,
    Made,
    PartitionSettings,
    PinStore,
    ReportStore,
    SettingsStore,
    SourceStore,
    SwitchStore,
    SyncStore,
    ViewStore,
    VniStore,
)
from metal_fabric.vlans import Vlan
from metal_lab.servers import Postgres
from plans import Call, Plans, measured

SWITCHES, CABLES, ATTACHMENTS, SYNCS = SwitchStore(), CableStore(), AttachmentStore(), SyncStore()
GENERATIONS, VIEWS, PINS, SETTINGS = GenerationStore(), ViewStore(), PinStore(), SettingsStore()
REPORTS, FINDINGS, VNIS, SOURCES = ReportStore(), FindingStore(), VniStore(), SourceStore()
# 20,000 leaves, of which the first half has 4 ports each, and three machines on them that are attached.
FILL = (
    """
    INSERT INTO switch (id, host_key, partition, rack, os, os_version, core_version, management_address, loopback, asn,
        pxe_vlan, desired_generation)
    SELECT 'leaf' || lpad(n::text, 5, '0'), 'leaf' || n, CASE WHEN n % 100 = 7 THEN 'rare' ELSE 'mini' END,
        'rack' || n / 2, 'sonic', '', '', '', '', 65000, 1000, 30
    FROM generate_series(1, 20000) AS n
    """,
    "INSERT INTO port SELECT id, 'Ethernet' || p, 'Eth' || p, false, NULL, 'up' "
    "FROM switch, generate_series(1, 4) AS p WHERE id < 'leaf10000'",
    "INSERT INTO leaf_sync (switch_id, session, seen_time) SELECT id, gen_random_uuid(), now() FROM switch",
    "INSERT INTO switch_generation SELECT id, g, 'h', 's' FROM switch, generate_series(25, 30) AS g "
    "WHERE id < 'leaf10000'",
    "INSERT INTO fabric_settings (partition, content, version, rolling) VALUES ('mini', '{}', 1, true)",
    "INSERT INTO switch_pin (switch_id, generation, state, reason) SELECT id, 3, 's', '' FROM switch",
    "INSERT INTO vlan SELECT id, v, 1000 + v FROM switch, generate_series(1, 3) AS v WHERE id < 'leaf10000'",
    "INSERT INTO cable SELECT switch_id, name, md5(substr(switch_id, 1, 8) || (right(switch_id, 1)::int / 2) || name)"
    "::uuid, 'mac' FROM port WHERE name <> 'Ethernet4'",
    "INSERT INTO attachment (machine, owner, role, vrf, allowed_prefixes, vnis, leaving, announced) "
    "SELECT machine, machine, 'machine', 1000 + row_number() OVER () / 8, '{}', '{}', false, random() > 0.001 "
    "FROM cable GROUP BY machine",
    "UPDATE attachment SET role = 'firewall', vrf = 0, vnis = ARRAY[vrf] WHERE vrf % 20 = 0",
    "INSERT INTO attachment_leaf SELECT machine, switch_id, 20 FROM cable",
    "INSERT INTO attachment_leaf SELECT DISTINCT ON (machine) machine, 'leaf' || 10000 + right(switch_id, 5)::int, 20, "
    "'{Ethernet1}'::text[] FROM cable ORDER BY machine",
    "INSERT INTO vni_network SELECT v, 'net' || v FROM generate_series(1, 20000) AS v",
    "INSERT INTO ended_allocation SELECT gen_random_uuid(), machine FROM attachment",
    "INSERT INTO leaf_report (switch_id, generation, apply, bgp, lldp) SELECT id, 30, 'a', 'b', 'l' FROM switch",
    "INSERT INTO finding (switch_id, source, code, subject, message) "
    "SELECT id, 'lldp', 'CABLE_MOVED', 'p' || n, 'moved' FROM switch, generate_series(1, 2) AS n",
    "UPDATE cable SET nic_mac = 'aa:' || right(switch_id, 5)",
    "INSERT INTO sighting SELECT machine, now() FROM attachment",
)
LEAF, MACHINE = "leaf00042", str(UUID(hashlib.md5(b"leaf00041Ethernet1").hexdigest()))


@pytest.fixture(scope="module")
async def plans(postgres: Postgres) -> AsyncIterator[Plans]:
    async with measured(postgres, "fabric", "metal_fabric", FILL) as made:
        async with made.db.connection() as conn:
            assert await conn.fetchval("SELECT count(*) FROM cable WHERE machine = $1", MACHINE) > 0
        yield made


async def test_lists_read_what_they_show(plans: Plans) -> None:
    cases: dict[str, Call] = {}
    for place, after in (("first", ""), ("later", "leaf05000")):
        for partition, rack in (("", ""), ("mini", ""), ("rare", ""), ("none", ""), ("mini", "rack21"), ("", "rack21")):
            cases[f"switches of {partition or 'all'} {rack}, {place} page"] = partial(
                VIEWS.page, after=after, partition=partition, rack=rack, limit=51
            )
        for switch, machine in (("", None), (LEAF, None), ("", MACHINE), (LEAF, MACHINE), ("none", None)):
            cases[f"cables of {switch} {machine}, {place} page"] = partial(
                CABLES.page, after=(after, ""), switch_id=switch, machine=machine, limit=51
            )
    await plans.check(cases)


async def test_one_leaf_costs_the_same_in_a_large_plane(plans: Plans) -> None:
    session, hour = str(uuid4()), timedelta(hours=1)
    cables = [Cable(LEAF, "Ethernet4", MACHINE, "mac")]
    attachment = Attachment(MACHINE, str(uuid4()), Wish(PortRole.MACHINE, 7))
    vlans = [Vlan(7, 1007, 0)]
    place, left = FormerPlace(LEAF, [(MACHINE, "Ethernet1")], 31), FormerLeaf("leaf00043", ["Ethernet1"], 31)
    await plans.check(
        {
            "load": partial(SWITCHES.load, ids=[LEAF, "leaf00043"]),
            "by host": partial(SWITCHES.by_host, names=["leaf42", "leaf43"]),
            "lock": partial(SWITCHES.lock, ids=[LEAF]),
            "report": partial(SWITCHES.report, switch_id=LEAF, states={"Ethernet1": LinkState.DOWN}),
            "touch": partial(SWITCHES.touch, switch_id=LEAF),
            "delete": partial(SWITCHES.delete, switch_id="leaf15000"),
            "cables of a machine": partial(CABLES.of_machine, machine=MACHINE),
            "cables of announced": partial(CABLES.of_announced, macs=["aa:00042"], machines=[MACHINE]),
            "cable neighbours": partial(CABLES.neighbours, switch_id=LEAF),
            "put cables of a switch": partial(CABLES.put_of_switch, switch_id=LEAF, cables=[]),
            "leavers": partial(ATTACHMENTS.unconfirmed_leavers, switch_id=LEAF),
            "move leaf": partial(ATTACHMENTS.move_leaf, old=place, new_id="leaf15000", generation=9),
            "machines of a leaf": partial(ATTACHMENTS.lock_of_leaf, switch_id=LEAF),
            "held ports": partial(ATTACHMENTS.held, switch_ids=[LEAF, "leaf00043"]),
            "former leaves": partial(ATTACHMENTS.former_leaves, machines=[MACHINE]),
            "unconfirmed leaves": partial(ATTACHMENTS.unconfirmed_leaves, machine=MACHINE),
            "version": partial(ATTACHMENTS.version, machine=MACHINE),
            "inherit": partial(SETTINGS.inherit, switch_id=LEAF, partition="mini"),
            "settings": partial(SETTINGS.get, partition="mini", lock=True),
            "put settings": partial(SETTINGS.put, partition="mini", settings=Settings(pxe_vlan=7)),
            "rolling": SETTINGS.rolling,
            "progress of a rack": partial(SETTINGS.progress, partition="mini", rack="rack21"),
            "give": partial(SETTINGS.give, switch_id=LEAF, newest=PartitionSettings("mini", version=3)),
            "cabled": partial(SETTINGS.cabled, partition="rare", ports=["Ethernet1"]),
            "cables of switches": partial(CABLES.of_switches, switch_ids=[LEAF]),
            "put cables": partial(CABLES.put, machine=MACHINE, cables=cables),
            "attachment": partial(ATTACHMENTS.get, machine=MACHINE, lock=True),
            "put attachment": partial(ATTACHMENTS.put, attachment=attachment),
            "put leaves": partial(ATTACHMENTS.put_leaves, machine=MACHINE, wanted={LEAF: 30}, left=[left]),
            "delete attachment": partial(ATTACHMENTS.delete, machine=MACHINE),
            "sources": partial(SOURCES.of, switch_ids=[LEAF, "leaf00043"]),
            "unannounced": partial(ATTACHMENTS.lock_unannounced, switch_id=LEAF, applied=30),
            "ended": partial(ATTACHMENTS.ended, machine=MACHINE, allocation=MACHINE),
            "newest": partial(GENERATIONS.newest, switch_id=LEAF),
            "made": partial(GENERATIONS.made, switch_id=LEAF, generation=29, digest="h"),
            "add": partial(
                GENERATIONS.add,
                made=[Made(LEAF, 31, "h", b"", 0, (Vlan(7, 1007),), (2,)), Made("leaf00043", 31, "h", b"")],
            ),
            "content": partial(GENERATIONS.state, switch_id=LEAF, generation=29),
            "first page of generations": partial(GENERATIONS.page, switch_id=LEAF, before=1 << 60, limit=51),
            "later page of generations": partial(GENERATIONS.page, switch_id=LEAF, before=28, limit=3),
            "pin": partial(PINS.state, switch_id=LEAF),
            "put pin": partial(PINS.put, switch_id=LEAF, generation=3, state=b"", reason=""),
            "unpin": partial(PINS.delete, switch_id=LEAF),
            "postpone": partial(ATTACHMENTS.postpone, switch_id=LEAF, ports=["Ethernet1"], generation=31),
            "vlans": partial(GENERATIONS.vlans, switch_id=LEAF),
            "put vlans": partial(GENERATIONS.put_vlans, switch_id=LEAF, vlans=vlans),
            "open": partial(SYNCS.open, switch_id=LEAF, session=session, applied=3, digest="h", chassis="c"),
            "chassis": partial(SYNCS.chassis, switch_id=LEAF),
            "has": partial(SYNCS.applied_generation, switch_id=LEAF),
            "stand": partial(SYNCS.stand, switch_id=LEAF, generation=2, digest="h"),
            "retract": partial(ATTACHMENTS.retract, switch_id=LEAF, applied=19),
            "positions": partial(SYNCS.positions, switch_ids=[LEAF, "leaf00043"]),
            "seen": partial(SYNCS.seen, heard={LEAF: session, "leaf00043": session}),
            "rack": partial(PINS.rack_of, switch_id=LEAF),
            "returning": partial(PINS.returning, switch_id=LEAF),
            "same network": partial(VNIS.claim, networks={7: "net7"}, machine=MACHINE),
            "another network, nobody attached": partial(VNIS.claim, networks={77: "other"}, machine=MACHINE),
            "a new number": partial(VNIS.claim, networks={30000: "other"}, machine=MACHINE),
            "hold": partial(SYNCS.hold, switch_ids=[LEAF]),
            "sight": partial(SYNCS.sight, machine=MACHINE, every=hour),
        }
    )


async def test_what_leaves_tell_costs_the_same_in_a_large_plane(plans: Plans) -> None:
    finding, count = Finding(Code.CABLE_MOVED, "Ethernet1", "moved"), SessionCount(2, 2, 9, 8)
    page = [f"leaf{n:05d}" for n in range(5000, 5050)]
    await plans.check(
        {
            "apply": partial(REPORTS.put_apply, switch_id=LEAF, generation=3, phase="", quarantine="", report=b"r"),
            "bgp": partial(REPORTS.put_bgp, switch_id=LEAF, report=b"r", count=count),
            "lldp": partial(REPORTS.put_lldp, switch_id=LEAF, report=b"r"),
            "drift": partial(REPORTS.put_drift, switch_id=LEAF, report=b"r"),
            "told": partial(REPORTS.told, switch_id=LEAF),
            "findings": partial(FINDINGS.put, switch_id=LEAF, source="lldp", findings=[finding]),
            "no findings": partial(FINDINGS.put, switch_id=LEAF, source="lldp", findings=[]),
            "forget a finding": partial(FINDINGS.drop, switch_id=LEAF, source="lldp", subject="p1"),
            "ids": partial(FINDINGS.ids, after="leaf05000", limit=50),
            "facts of one": partial(FINDINGS.facts, ids=[LEAF]),
            "facts of a page": partial(FINDINGS.facts, ids=page),
        }
    )
