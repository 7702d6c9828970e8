from __future__ import annotations

from dataclasses import replace

import pytest
from metal_fabric.ports import AdminState, LinkState, SwitchOs
from metal_fabric.problems import Refused
from metal_fabric.switch import Port, Switch, SwitchFacts, merge, merge_ports, ports_by_name

FACTS = SwitchFacts(partition="mini", rack="rack-1", os=SwitchOs.SONIC, pxe_vlan=4000, asn=4200000011)


def leaf(*ports: Port, facts: SwitchFacts = FACTS, description: str = "") -> Switch:
    return Switch("leaf01", facts, {port.name: port for port in ports}, description)


E0 = Port("Ethernet0", "Eth1/1")
E4 = Port("Ethernet4", "Eth2/1")


def refusal(known: Switch | None, reported: Switch, *connected: str) -> str:
    with pytest.raises(Refused) as caught:
        merge(known, reported, connected=connected)
    return caught.value.reason


def test_an_unknown_switch_is_taken_as_it_reports_itself() -> None:
    assert merge(None, leaf(E0, E4), connected=()) == leaf(E0, E4)


def test_facts_are_replaced_while_description_wishes_and_states_stay() -> None:
    wished = replace(E0, admin=AdminState(wish=LinkState.DOWN, actual=LinkState.UP))
    merged = merge(leaf(wished, description="left"), leaf(E0, E4, facts=replace(FACTS, os_version="2")), connected=())
    assert merged.description == "left"
    assert merged.facts.os_version == "2"
    assert merged.ports["Ethernet0"].admin == wished.admin
    assert merged.ports["Ethernet4"].admin == AdminState()


def test_a_reported_state_replaces_the_known_one_but_never_the_wish() -> None:
    wished = replace(E0, admin=AdminState(wish=LinkState.DOWN, actual=LinkState.UP))
    merged = merge_ports({"Ethernet0": wished}, [replace(E0, admin=AdminState(actual=LinkState.DOWN))], connected=())
    assert merged["Ethernet0"].admin == AdminState(wish=LinkState.DOWN, actual=LinkState.DOWN)


def test_a_free_port_may_vanish_and_be_renamed_and_keeps_its_wish_by_alias() -> None:
    wished = replace(E0, admin=AdminState(wish=LinkState.DOWN))
    merged = merge(leaf(wished, E4), leaf(Port("Ethernet100", "Eth1/1")), connected=())
    assert list(merged.ports) == ["Ethernet100"]
    assert merged.ports["Ethernet100"].admin.wish is LinkState.DOWN


def test_a_connected_port_may_not_vanish() -> None:
    assert refusal(leaf(E0, E4), leaf(E4), "Ethernet0") == "CONNECTED_PORT_REMOVED"


def test_a_connected_port_may_not_be_renamed() -> None:
    assert refusal(leaf(E0, E4), leaf(Port("Ethernet100", "Eth1/1"), E4), "Ethernet0") == "CONNECTED_PORT_RENAMED"


def test_two_connected_ports_may_not_swap_names() -> None:
    swapped = leaf(Port("Ethernet0", "Eth2/1"), Port("Ethernet4", "Eth1/1"))
    assert refusal(leaf(E0, E4), swapped, "Ethernet0", "Ethernet4") == "CONNECTED_PORT_RENAMED"


def test_a_connected_port_may_get_another_alias_under_its_name() -> None:
    merged = merge(leaf(E0), leaf(Port("Ethernet0", "etp1")), connected=["Ethernet0"])
    assert merged.ports["Ethernet0"].alias == "etp1"


def test_a_connected_port_may_not_become_an_uplink() -> None:
    assert refusal(leaf(E0), leaf(replace(E0, uplink=True)), "Ethernet0") == "CONNECTED_PORT_IS_UPLINK"


@pytest.mark.parametrize("loopback", ["2001:db8::11", "::ffff:10.0.0.11"])
def test_a_loopback_that_is_no_router_id_is_refused(loopback: str) -> None:
    for known in (None, leaf(E0)):
        with pytest.raises(Refused, match=loopback) as caught:
            merge(known, leaf(E0, facts=replace(FACTS, loopback=loopback)), connected=())
        assert (caught.value.reason, caught.value.field) == ("LOOPBACK_NOT_IPV4", "hello.loopback")


def test_two_ports_with_one_alias_are_refused() -> None:
    assert refusal(None, leaf(E0, Port("Ethernet4", "Eth1/1"))) == "PORT_ALIAS_TWICE"


def test_two_ports_with_one_name_are_refused() -> None:
    with pytest.raises(Refused, match="Ethernet0"):
        ports_by_name([E0, Port("Ethernet0", "other")])


def test_a_switch_never_changes_its_partition() -> None:
    assert refusal(leaf(E0), leaf(E0, facts=replace(FACTS, partition="other"))) == "SWITCH_IN_OTHER_PARTITION"


def test_a_switch_moves_racks_only_without_machines() -> None:
    moved = leaf(E0, facts=replace(FACTS, rack="rack-2"))
    assert merge(leaf(E0), moved, connected=()).facts.rack == "rack-2"
    assert refusal(leaf(E0), moved, "Ethernet0") == "CONNECTED_SWITCH_MOVED"


@pytest.mark.parametrize("vlan", [1001, 2000])
def test_the_pxe_vlan_may_not_lie_among_the_tenants(vlan: int) -> None:
    assert refusal(None, leaf(E0, facts=replace(FACTS, pxe_vlan=vlan))) == "PXE_VLAN_RESERVED"


@pytest.mark.parametrize("vlan", [1000, 2001])
def test_the_pxe_vlan_may_lie_beside_the_tenants(vlan: int) -> None:
    assert merge(None, leaf(E0, facts=replace(FACTS, pxe_vlan=vlan)), connected=()).facts.pxe_vlan == vlan
