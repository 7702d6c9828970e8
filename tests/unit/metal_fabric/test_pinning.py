from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from metal_fabric.desired import DesiredState, desired_state
from metal_fabric.differences import Difference, differences
from metal_fabric.filters import TENANT_ROLES, PortRole, Wish
from metal_fabric.pinning import check_return, held, lacking
from metal_fabric.ports import AdminState, LinkState, SwitchOs
from metal_fabric.problems import Refused
from metal_fabric.settings import Settings
from metal_fabric.switch import Port, Switch, SwitchFacts

NAMES = ("Ethernet0", "Ethernet4", "Ethernet8", "Ethernet120")
VLANS = {20: 1001, 30: 1002}
MACHINE = Wish(PortRole.MACHINE, vrf=20, allowed_prefixes=("10.0.0.0/22",))
FIREWALL = Wish(PortRole.FIREWALL, allowed_prefixes=("10.1.0.1/32",), vnis=(20, 30))
WISHES = st.dictionaries(
    st.sampled_from(NAMES[:3]),
    st.sampled_from(
        [MACHINE, FIREWALL, Wish(), replace(MACHINE, vrf=30), replace(MACHINE, allowed_prefixes=("10.0.1.0/24",)),
         replace(FIREWALL, vnis=(20,))]
    ),
)  # fmt: skip


def state(wishes: dict[str, Wish], *, down: frozenset[str] = frozenset(), asn: int = 7, **more: object) -> DesiredState:
    ports = {
        name: Port(name, uplink=name == "Ethernet120", admin=AdminState(LinkState.DOWN if name in down else None))
        for name in NAMES
    }
    facts = SwitchFacts("mini", "r1", SwitchOs.SONIC, asn=asn, pxe_vlan=4000)
    return desired_state(Switch("leaf01", facts, ports), wishes, VLANS, occupied=wishes, settings=Settings(**more))  # type: ignore[arg-type]


@settings(max_examples=60)
@given(WISHES, WISHES, st.frozensets(st.sampled_from(NAMES[:3])))
def test_a_pin_gives_no_port_more_of_a_tenants_network_than_is_wanted_now(
    before: dict[str, Wish], now: dict[str, Wish], down: frozenset[str]
) -> None:
    old, live = state(before, down=down), state(now)
    pinned = held(old, live, VLANS)
    for port, wanted in zip(pinned.ports, live.ports, strict=True):
        if port.role in TENANT_ROLES:
            assert (port.role, port.vrf) == (wanted.role, wanted.vrf)
            assert set(port.vnis) <= set(wanted.vnis)
        if wanted.role not in TENANT_ROLES:
            assert port.name not in lacking(pinned, live), "a machine that was freed is confirmed"
    assert {vrf.name for vrf in pinned.vrfs} == {port.vrf for port in pinned.ports if port.vrf}
    try:
        check_return(old, live, VLANS)
    except Refused:
        assert pinned.ports != old.ports
    else:
        assert (pinned.ports, pinned.vrfs) == (old.ports, old.vrfs), "what is allowed is had exactly"


@settings(max_examples=30)
@given(WISHES)
def test_a_pin_to_what_is_wanted_anyway_changes_nothing_and_withholds_nothing(wishes: dict[str, Wish]) -> None:
    live = state(wishes)
    check_return(live, live, VLANS)
    assert held(live, live, VLANS) == live
    assert not lacking(live, live)
    assert not differences(live, live)


def test_settings_are_held_and_the_leafs_own_facts_are_not() -> None:
    old = state({}, asn=7, management_gateway="192.0.2.1", bgp_keepalive=2, bgp_hold=8)
    live = state({}, asn=8, management_gateway="192.0.2.9")
    pinned = held(old, live, VLANS)
    assert (pinned.asn, pinned.management_gateway, pinned.bgp_hold) == (8, "192.0.2.1", 8)


def test_ports_that_have_come_since_follow_the_plane_and_those_that_are_gone_are_gone() -> None:
    live = state({"Ethernet4": MACHINE})
    old = replace(live, ports=(live.ports[0]._replace(name="Ethernet99"), live.ports[3]), vrfs=())
    assert held(old, live, VLANS) == live


def test_a_tenant_that_the_old_content_lacks_is_withheld() -> None:
    old, live = state({}), state({"Ethernet4": MACHINE})
    pinned = held(old, live, VLANS)
    assert (pinned.ports[1].role, pinned.vrfs) == (PortRole.UNPROVISIONED, ())
    assert lacking(pinned, live) == {"Ethernet4"}


@pytest.mark.parametrize(
    ("before", "now"),
    [
        (MACHINE, Wish()),
        (MACHINE, replace(MACHINE, vrf=30)),
        (MACHINE, FIREWALL),
        (MACHINE, replace(MACHINE, allowed_prefixes=("10.0.1.0/24",))),
        (replace(MACHINE, allowed_prefixes=("2001:db8::/32",)), MACHINE),
        (FIREWALL, replace(FIREWALL, vnis=(20,))),
    ],
)
def test_a_content_that_would_give_a_machine_more_than_is_wanted_is_refused(before: Wish, now: Wish) -> None:
    with pytest.raises(Refused) as caught:
        check_return(state({"Ethernet4": before}), state({"Ethernet4": now}), VLANS)
    assert (caught.value.reason, caught.value.field) == ("ROLLBACK_CROSSES_TENANTS", "generation")
    assert "Ethernet4" in caught.value.message
    check_return(state({"Ethernet4": now}), state({"Ethernet4": now}), VLANS)


@pytest.mark.parametrize("vlans", [{20: 1002}, {20: 1002, 30: 1001}, {30: 1001}])
def test_a_vlan_has_to_be_its_own_still(vlans: dict[int, int]) -> None:
    content = state({"Ethernet4": MACHINE})
    with pytest.raises(Refused) as caught:
        check_return(content, content, vlans)
    assert caught.value.reason == "VLAN_NOT_ITS_OWN"


def test_differences_name_what_comes_goes_and_changes() -> None:
    old, new = state({}, down=frozenset({"Ethernet8"})), state({"Ethernet4": MACHINE}, bgp_keepalive=3, bgp_hold=9)
    found = differences(old, new)
    assert found[:2] == [Difference("switch", "bgp_keepalive", "", "3"), Difference("switch", "bgp_hold", "", "9")]
    assert Difference("port Ethernet4", "allowed_prefixes", "", "10.0.0.0/22") in found
    assert Difference("port Ethernet8", "role", "unused", "unprovisioned") in found
    assert found[-1] == Difference("vrf Vrf20", "", "", "vni 20, vlan 1001")
    assert differences(new, old)[-1] == Difference("vrf Vrf20", "", "vni 20, vlan 1001", "")


def test_everything_is_new_where_nothing_was() -> None:
    live = state({"Ethernet4": MACHINE})
    assert [each.object for each in differences(None, live)] == [*(f"port {name}" for name in NAMES), "vrf Vrf20"]
