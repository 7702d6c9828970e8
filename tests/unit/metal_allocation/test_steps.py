"""The rules inside the steps: addresses, announcements, dead leaves, pauses, silence."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest
from metal_allocation.api.allocations import MAX_PAGE_BYTES, fitting
from metal_allocation.api.installations import worth_telling
from metal_allocation.consumers import facts_of
from metal_allocation.steps.addressing import machine_network
from metal_allocation.steps.commands import MAX_BACKOFF, POLL, backoff
from metal_allocation.steps.free import DEAD_LEAF, dead_leaves
from metal_allocation.steps.install import SILENCE, trouble
from metal_allocation.steps.leaves import confirmations, outstanding
from metal_allocation.steps.start import allowed_prefixes, vrf_networks, vrf_of
from metalplane.allocation.v1.allocation_pb2 import Allocation, MachineNetwork
from metalplane.allocation.v1.installation_pb2 import RecordProgressRequest
from metalplane.fabric.v1.switch_pb2 import Attachment
from metalplane.inventory.v1.machine_pb2 import Liveliness, Machine, MachineState
from metalplane.ipam.v1.network_pb2 import NatType, Network, NetworkType


def net(kind: str, *, vrf: int = 0, ips: tuple[str, ...] = (), prefixes: tuple[str, ...] = ()) -> MachineNetwork:
    private = kind.startswith("child")
    return MachineNetwork(network=kind, type=kind, vrf=vrf, ips=ips, prefixes=prefixes, private=private)


CHILD = net("child", vrf=20, ips=("10.0.0.5", "2001:db8::5"), prefixes=("10.0.0.0/22", "2001:db8::/64"))
SHARED = net("child-shared", vrf=30, ips=("10.9.0.5",), prefixes=("10.9.0.0/24",))
EXTERNAL = net("external", vrf=40, ips=("192.0.2.7", "2001:db8:ffff::7"), prefixes=("192.0.2.0/24",))
UNDERLAY = net("underlay", ips=("10.255.0.9",), prefixes=("10.255.0.0/24",))


def test_the_unshared_private_network_gives_the_vrf(make_record: Any) -> None:
    assert vrf_of(make_record(networks=[EXTERNAL, SHARED, CHILD])) == 20
    assert vrf_of(make_record(networks=[EXTERNAL, SHARED])) == 30
    assert vrf_of(make_record(networks=[EXTERNAL])) == 0


def test_a_machine_announces_its_private_prefixes_and_its_own_addresses_elsewhere(make_record: Any) -> None:
    record = make_record(networks=[CHILD, EXTERNAL])
    assert allowed_prefixes(record) == ["10.0.0.0/22", "192.0.2.7/32", "2001:db8::/64", "2001:db8:ffff::7/128"]


def test_what_the_super_network_lets_its_children_announce_is_allowed(make_record: Any) -> None:
    more = MachineNetwork()
    more.CopyFrom(CHILD)
    more.additional_announcable_prefixes.append("10.244.0.0/16")
    assert "10.244.0.0/16" in allowed_prefixes(make_record(networks=[more]))


def test_a_firewall_announces_its_underlay_address_only(make_record: Any) -> None:
    record = make_record(role="firewall", networks=[CHILD, EXTERNAL, UNDERLAY])
    assert allowed_prefixes(record) == ["10.255.0.9/32"]


@pytest.mark.parametrize(
    ("kind", "name", "private"),
    [("CHILD", "child", True), ("CHILD_SHARED", "child-shared", True), ("EXTERNAL", "external", False)],
)
def test_a_network_as_the_machine_gets_it(kind: str, name: str, private: bool) -> None:
    network = Network(
        id="n", type=NetworkType.Value(f"NETWORK_TYPE_{kind}"), vrf=7, nat=NatType.NAT_TYPE_IPV4_MASQUERADE,
        prefixes=["10.0.0.0/8"], destination_prefixes=["0.0.0.0/0"],
    )  # fmt: skip
    parent = Network(id="super", additional_announcable_prefixes=["10.1.0.0/16"])
    got = machine_network(network, ips=["10.0.0.1"], asn=4210000001, parent=parent)
    assert list(got.additional_announcable_prefixes) == ["10.1.0.0/16"]
    assert (got.type, got.private, got.vrf, got.nat, got.asn) == (name, private, 7, True, 4210000001)
    assert list(got.destination_prefixes) == ["0.0.0.0/0"]


@pytest.mark.parametrize(("vrf", "of_parent", "owner"), [(7, 0, "n"), (7, 7, "super"), (7, 8, "n"), (0, 0, "")])
def test_a_vrf_is_the_networks_own_or_that_of_the_super_network_that_shares_it(
    vrf: int, of_parent: int, owner: str
) -> None:
    network = Network(id="n", type=NetworkType.NETWORK_TYPE_CHILD, vrf=vrf)
    got = machine_network(network, ips=[], asn=1, parent=Network(id="super", vrf=of_parent))
    assert got.vrf_network == owner


def test_fabric_is_told_whose_the_numbers_are(make_record: Any) -> None:
    child, external = MachineNetwork(), MachineNetwork()
    child.CopyFrom(CHILD)
    external.CopyFrom(EXTERNAL)
    child.vrf, child.vrf_network, external.vrf, external.vrf_network = 7, "n", 9, "internet"
    networks = [child, external, UNDERLAY]
    assert vrf_networks(make_record(networks=networks), 7) == {7: "n"}
    assert vrf_networks(make_record(role="firewall", networks=networks), 0) == {7: "n", 9: "internet"}
    # An allocation from before this was kept.
    child.ClearField("vrf_network")
    assert vrf_networks(make_record(networks=[child]), 7) == {}


# -- leaves


def attachment(now: datetime, **leaves: tuple[bool, bool, float | None]) -> Attachment:
    """(confirmed, connected, seconds since it was seen, None for never) by name."""
    made = Attachment(machine="m", allocation="a")
    for name, (confirmed, connected, ago) in leaves.items():
        leaf = made.leaves.add(
            switch_id=name, port="Ethernet0", confirmed=confirmed, connected=connected, wanted_generation=4,
            applied_generation=4 if confirmed else 3,
        )  # fmt: skip
        if ago is not None:
            leaf.seen_time.FromDatetime(now - timedelta(seconds=ago))
    return made


def test_a_leaf_is_dead_when_it_is_outstanding_cut_off_and_silent(now: datetime) -> None:
    long = DEAD_LEAF.total_seconds() + 1
    assert dead_leaves(attachment(now, a=(False, False, long), b=(True, True, 0)), now) == ["a"]
    assert dead_leaves(attachment(now, a=(True, False, long)), now) == []
    assert dead_leaves(attachment(now, a=(False, True, long)), now) == []
    assert dead_leaves(attachment(now, a=(False, False, long - 2)), now) == []


def test_a_leaf_that_was_never_heard_of_is_dead(now: datetime) -> None:
    assert dead_leaves(attachment(now, a=(False, False, None)), now) == ["a"]


def test_people_are_told_which_leaf_is_waited_for(now: datetime) -> None:
    made = attachment(now, a=(True, True, 0), b=(False, False, 9))
    made.leaves[1].error = "vtysh failed"
    text = outstanding(made)
    assert "b (not connected, generation 3 of 4, vtysh failed)" in text
    assert "a (" not in text
    assert confirmations(made) == "a Ethernet0"
    assert outstanding(Attachment()) == "waiting for the leaves"


# -- pauses and silence


def test_pauses_between_bmc_commands_double_and_end() -> None:
    pauses = [backoff(attempt) for attempt in range(1, 12)]
    assert pauses[:4] == [POLL, 2 * POLL, 4 * POLL, 8 * POLL]
    assert pauses[-1] == MAX_BACKOFF
    assert pauses == sorted(pauses)
    assert backoff(10**9) == MAX_BACKOFF


def test_an_installer_is_given_its_time_from_the_phase_or_its_last_word(make_record: Any, now: datetime) -> None:
    second = timedelta(seconds=1)
    record = make_record()
    assert trouble(record, now + SILENCE) == ""
    assert trouble(record, now + SILENCE + second) == "the installer fell silent"
    record.installer_time = now + SILENCE
    assert trouble(record, now + SILENCE + second) == ""
    record.installer_time = now - timedelta(days=1)  # of an earlier attempt: the phase began later
    assert trouble(record, now + SILENCE) == ""


def test_a_reported_failure_needs_no_silence(make_record: Any, now: datetime) -> None:
    assert trouble(make_record(install_error="image: hash mismatch"), now) == "image: hash mismatch"


def test_a_reboot_under_way_is_awaited_even_if_the_installer_speaks_again(make_record: Any, now: datetime) -> None:
    assert trouble(make_record(command="c", installer_time=now), now)


# -- progress


@pytest.mark.parametrize(
    ("step", "percent", "message", "told"),
    [
        ("image", 30, "", False),
        ("image", 39, "", False),
        ("image", 40, "", True),
        ("image", 20, "", True),
        ("image", 100, "", True),
        ("configure", 30, "", True),
        ("image", 30, "disk_touched: A", True),
    ],
)
def test_progress_is_told_when_it_is_news(make_record: Any, step: str, percent: int, message: str, told: bool) -> None:
    record = make_record(installer_step="image", installer_percent=30)
    assert worth_telling(record, RecordProgressRequest(step=step, percent=percent, message=message)) is told


def test_a_step_told_percent_by_percent_is_a_dozen_events(make_record: Any) -> None:
    record, told = make_record(), 0
    for percent in range(101):
        request = RecordProgressRequest(step="image", percent=percent)
        if worth_telling(record, request):
            told += 1
            record.installer_step, record.installer_percent = request.step, request.percent
    assert told <= 12


def test_the_end_of_a_step_is_told_once(make_record: Any) -> None:
    record = make_record(installer_step="image", installer_percent=100)
    assert not worth_telling(record, RecordProgressRequest(step="image", percent=100))


# -- projections and pages


def test_a_machine_of_a_newer_release_does_not_stop_the_service() -> None:
    facts = facts_of(Machine(id="m", state=99, etag="W/abc"))  # type: ignore[arg-type]
    assert (facts.state, facts.version, facts.alive, facts.cabled) == ("unknown", 0, False, False)


def test_what_choosing_knows_of_a_machine() -> None:
    machine = Machine(
        id="m", partition="p", size="s", rack="r", state=MachineState.MACHINE_STATE_AVAILABLE, waiting=True,
        disks_clean=True, etag="12",
    )  # fmt: skip
    machine.lifecycle.liveliness = Liveliness.LIVELINESS_ALIVE
    machine.links.add(nic_mac="02:00:00:00:00:01", switch_id="leaf1", port="Ethernet0")
    facts = facts_of(machine)
    assert facts.state == "available"
    assert facts.waiting
    assert facts.alive
    assert facts.clean
    assert facts.cabled
    assert not facts.bound
    assert not facts.reclaim_failed
    assert facts.version == 12
    machine.cabling_error = "one leaf only"
    machine.binding.allocation = "a"
    machine.lifecycle.failed_reclaim = True
    facts = facts_of(machine)
    assert not facts.cabled
    assert facts.bound
    assert facts.reclaim_failed


def test_a_page_of_large_allocations_ends_early_but_never_empty() -> None:
    large = Allocation(creator="x" * (MAX_PAGE_BYTES // 3))
    assert len(fitting([large] * 10)) == 2
    huge = Allocation(creator="x" * (MAX_PAGE_BYTES + 1))
    assert len(fitting([huge] * 10)) == 1
    assert fitting([]) == []
