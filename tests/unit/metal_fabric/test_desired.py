from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st
from metal_fabric.desired import DesiredVrf, desired_state, vnis_needed
from metal_fabric.filters import PortRole, Wish
from metal_fabric.ports import AdminState, LinkState, SwitchOs
from metal_fabric.switch import Port, Switch, SwitchFacts

FACTS = SwitchFacts("mini", "r1", SwitchOs.SONIC, asn=4200000011, loopback="10.0.0.11", pxe_vlan=4000)
NAMES = [f"Ethernet{line}" for line in (0, 4, 8, 12, 120)]


def leaf(names: list[str] = NAMES) -> Switch:
    ports = {name: Port(name, uplink=name == "Ethernet120") for name in names}
    return Switch("leaf01", FACTS, ports)


MACHINE = Wish(PortRole.MACHINE, vrf=20, allowed_prefixes=("10.0.0.0/22",))
FIREWALL = Wish(PortRole.FIREWALL, allowed_prefixes=("10.1.0.1/32",), vnis=(20, 104009))
WISHES = st.dictionaries(
    st.sampled_from([*NAMES, "Ethernet99"]),
    st.sampled_from([MACHINE, FIREWALL, Wish(), replace(MACHINE, vrf=30)]),
)


def test_every_port_has_its_role_and_its_mtu() -> None:
    state = desired_state(leaf(), {"Ethernet0": MACHINE, "Ethernet4": FIREWALL}, {20: 1001})
    assert [(port.name, port.role, port.mtu, port.vrf) for port in state.ports] == [
        ("Ethernet0", PortRole.MACHINE, 9000, "Vrf20"),
        ("Ethernet4", PortRole.FIREWALL, 9216, ""),
        ("Ethernet8", PortRole.UNPROVISIONED, 9000, ""),
        ("Ethernet12", PortRole.UNPROVISIONED, 9000, ""),
        ("Ethernet120", PortRole.UPLINK, 9216, ""),
    ]
    assert state.ports[1].vnis == (20, 104009)
    assert state.vrfs == (DesiredVrf("Vrf20", 20, 1001),)


def test_a_firewalls_vnis_make_no_vrf_on_its_leaf() -> None:
    assert desired_state(leaf(), {"Ethernet4": FIREWALL}, {}).vrfs == ()


def test_an_uplink_is_never_shut_and_never_in_a_vrf() -> None:
    switch = leaf()
    shut = replace(switch.ports["Ethernet120"], admin=AdminState(wish=LinkState.DOWN))
    switch = replace(switch, ports={**switch.ports, "Ethernet120": shut})
    uplink = desired_state(switch, {"Ethernet120": MACHINE}, {}).ports[-1]
    assert (uplink.role, uplink.admin, uplink.vrf) == (PortRole.UPLINK, None, "")


def test_what_a_leaf_reports_of_its_links_does_not_change_what_it_shall_have() -> None:
    switch = leaf()
    ports = {name: replace(port, admin=AdminState(actual=LinkState.DOWN)) for name, port in switch.ports.items()}
    assert desired_state(replace(switch, ports=ports), {}, {}) == desired_state(switch, {}, {})


@given(WISHES, st.permutations(NAMES))
def test_the_state_depends_on_nothing_but_its_input(wishes: dict[str, Wish], names: list[str]) -> None:
    vlans = {20: 1001, 30: 1002}
    state = desired_state(leaf(), wishes, vlans)
    assert state == desired_state(leaf(names), dict(reversed(wishes.items())), vlans)
    assert {vrf.name for vrf in state.vrfs} == {port.vrf for port in state.ports if port.vrf}
    assert {vrf.vni for vrf in state.vrfs} <= vnis_needed(wishes)
