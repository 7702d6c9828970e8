from __future__ import annotations

import json
from dataclasses import replace

import pytest
from metal_fabric.desired import desired_state
from metal_fabric.filters import PortRole, Wish
from metal_fabric.messages import desired_message, desired_of, digest_of
from metal_fabric.pinning import held
from metal_fabric.ports import AdminState, Fec, LinkState, SwitchOs
from metal_fabric.problems import Invalid
from metal_fabric.settings import (
    NOTHING_SET,
    DriftPolicy,
    PortSettings,
    Settings,
    canonical_ports,
    canonical_routes,
    check,
    ignored,
    of_stored,
    stored,
)
from metal_fabric.switch import Port, Switch, SwitchFacts

EVERYTHING = Settings(
    pxe_vlan=3000,
    management_gateway="192.0.2.1",
    management_routes=("10.1.0.0/16",),
    additional_bridge_ports=("Ethernet8",),
    source_loopback=True,
    bgp_keepalive=2,
    bgp_hold=8,
    drift_policy=DriftPolicy.REPORT,
    confirm_seconds=60,
    ports=(PortSettings("Ethernet0", 25_000), PortSettings("Ethernet120", fec=Fec.RS)),
)
NAMES = ("Ethernet0", "Ethernet4", "Ethernet8", "Ethernet120")
LEAF = Switch(
    "leaf01",
    SwitchFacts("mini", "r1", SwitchOs.SONIC, asn=7, pxe_vlan=4000),
    {name: Port(name, uplink=name == "Ethernet120") for name in NAMES},
)


def test_settings_are_stored_as_what_is_set() -> None:
    assert stored(NOTHING_SET) == {}
    for each in (NOTHING_SET, EVERYTHING, Settings(bgp_hold=9, bgp_keepalive=3)):
        assert of_stored(json.loads(json.dumps(stored(each)))) == each


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"pxe_vlan": 1001}, "PXE_VLAN_RESERVED"),
        ({"pxe_vlan": 2000}, "PXE_VLAN_RESERVED"),
        ({"management_gateway": ""}, "GATEWAY_MISSING"),
        ({"bgp_keepalive": 0}, "BGP_TIMERS_INVALID"),
        ({"bgp_hold": 0}, "BGP_TIMERS_INVALID"),
        ({"bgp_keepalive": 3}, "BGP_TIMERS_INVALID"),
        ({"bgp_keepalive": 1, "bgp_hold": 2}, "BGP_TIMERS_INVALID"),
        ({"ports": (PortSettings("Ethernet8", 1000),)}, "PORT_IS_ADDITIONAL"),
        ({"ports": (PortSettings("Ethernet4", 1000), PortSettings("Ethernet4", fec=Fec.RS))}, "PORT_NAMED_TWICE"),
        ({"ports": (PortSettings("Ethernet4", 25),)}, "PORT_SPEED_UNKNOWN"),
    ],
)
def test_settings_that_contradict_themselves_are_refused(change: dict[str, object], reason: str) -> None:
    check(EVERYTHING)
    with pytest.raises(Invalid) as caught:
        check(replace(EVERYTHING, **change))  # type: ignore[arg-type]
    assert caught.value.reason == reason
    assert caught.value.field.startswith("settings.")


@pytest.mark.parametrize("port", [PortSettings("Ethernet4", 25), PortSettings("Ethernet8", 1000)])
def test_what_was_stored_before_it_was_refused_leaves_the_port_alone_and_nothing_else(port: PortSettings) -> None:
    good = PortSettings("Ethernet120", 100_000, Fec.RS)
    settings = replace(EVERYTHING, ports=(port, good))
    state = desired_state(LEAF, {}, {}, settings=settings)
    shapes = {each.name: (each.speed, each.fec) for each in state.ports}
    assert (shapes[port.name], shapes["Ethernet120"]) == ((0, Fec.UNSET), (100_000, Fec.RS))
    told = ignored(port, settings.additional_bridge_ports, "mini")
    assert all(word in told for word in (port.name, "metalctl switch set mini --port"))
    assert not ignored(good, settings.additional_bridge_ports, "mini")


def test_an_old_content_with_a_speed_that_no_port_has_is_held_without_it() -> None:
    live = desired_state(LEAF, {}, {}, settings=replace(EVERYTHING, ports=()))
    port = next(each for each in live.ports if each.name == "Ethernet4")
    old = replace(live, ports=tuple(each._replace(speed=25) if each is port else each for each in live.ports))
    assert held(old, live, {}) == live


def test_routes_are_sorted_and_named_once() -> None:
    assert canonical_routes(["10.2.0.0/16", "10.1.0.0/24", "10.2.0.0/16"]) == ("10.1.0.0/24", "10.2.0.0/16")
    for bad, reason in (("10.0.0.1/24", "PREFIX_INVALID"), ("2001:db8::/32", "PREFIX_INVALID"),
                        ("0.0.0.0/0", "ROUTE_IS_DEFAULT")):  # fmt: skip
        with pytest.raises(Invalid) as caught:
            canonical_routes(["10.0.0.0/8", bad])
        assert (caught.value.reason, caught.value.field) == (reason, "settings.management_routes[1]")


def test_what_is_not_set_takes_no_part_in_the_desired_state() -> None:
    """A plane that learns of settings makes no generation for leaves whose partition has none."""
    plain = desired_message(desired_state(LEAF, {}, {}))
    assert not [field.name for field, _ in plain.ListFields() if field.number > 8]
    repair = Settings(drift_policy=DriftPolicy.REPAIR)
    assert digest_of(desired_message(desired_state(LEAF, {}, {}, settings=repair))) == digest_of(plain)


def test_settings_reach_the_desired_state_and_its_message() -> None:
    state = desired_state(LEAF, {}, {}, settings=EVERYTHING)
    message = desired_message(state)
    assert (message.pxe_vlan, message.management_gateway, list(message.management_routes)) == (
        3000, "192.0.2.1", ["10.1.0.0/16"],
    )  # fmt: skip
    assert (message.source_loopback, message.bgp_keepalive, message.bgp_hold, message.confirm_seconds) == (
        True, 2, 8, 60,
    )  # fmt: skip
    assert desired_of(message) == state
    assert [port.role for port in state.ports] == [
        PortRole.UNPROVISIONED, PortRole.UNPROVISIONED, PortRole.ADDITIONAL, PortRole.UPLINK,
    ]  # fmt: skip


def test_speed_and_error_correction_reach_the_ports_of_that_name_whatever_they_are_for() -> None:
    ports = {port.name: port for port in desired_state(LEAF, {}, {}, settings=EVERYTHING).ports}
    assert (ports["Ethernet0"].speed, ports["Ethernet0"].fec) == (25_000, Fec.UNSET)
    assert (ports["Ethernet120"].role, ports["Ethernet120"].fec) == (PortRole.UPLINK, Fec.RS)
    assert (ports["Ethernet4"].speed, ports["Ethernet4"].fec) == (0, Fec.UNSET)
    elsewhere = Settings(ports=(PortSettings("Ethernet96", 1000),))
    assert desired_state(LEAF, {}, {}, settings=elsewhere) == desired_state(LEAF, {}, {})


def test_ports_are_sorted_and_only_those_about_which_something_is_set() -> None:
    said = [PortSettings("b", fec=Fec.AUTO), PortSettings("c"), PortSettings("a", 1000)]
    assert canonical_ports(said) == (PortSettings("a", 1000), PortSettings("b", fec=Fec.AUTO))


def test_an_additional_bridge_port_keeps_everything_but_its_administrative_state() -> None:
    shut = replace(LEAF.ports["Ethernet8"], admin=AdminState(wish=LinkState.DOWN))
    leaf = replace(LEAF, ports={**LEAF.ports, "Ethernet8": shut})
    port = desired_state(leaf, {}, {}, settings=EVERYTHING).ports[2]
    assert (port.role, port.admin, port.mtu) == (PortRole.ADDITIONAL, LinkState.DOWN, 0)


def test_an_additional_port_that_a_machine_hangs_on_is_the_machines() -> None:
    wish = Wish(PortRole.MACHINE, 20)
    state = desired_state(LEAF, {"Ethernet8": wish}, {20: 1001}, occupied={"Ethernet8"}, settings=EVERYTHING)
    assert state.ports[2].role is PortRole.MACHINE
    waiting = desired_state(LEAF, {}, {}, occupied={"Ethernet8"}, settings=EVERYTHING)
    assert waiting.ports[2].role is PortRole.UNPROVISIONED


def test_a_port_that_is_switched_off_is_out_of_use_only_while_no_machine_hangs_on_it() -> None:
    shut = replace(LEAF.ports["Ethernet4"], admin=AdminState(wish=LinkState.DOWN))
    leaf = replace(LEAF, ports={**LEAF.ports, "Ethernet4": shut})
    unused = desired_state(leaf, {}, {}).ports[1]
    assert (unused.role, unused.admin, unused.mtu) == (PortRole.UNUSED, LinkState.DOWN, 0)
    kept = desired_state(leaf, {}, {}, occupied={"Ethernet4"}).ports[1]
    assert (kept.role, kept.admin, kept.mtu) == (PortRole.UNPROVISIONED, LinkState.DOWN, 9000)
    tenant = desired_state(leaf, {"Ethernet4": Wish(PortRole.MACHINE, 20)}, {20: 1001}).ports[1]
    assert (tenant.role, tenant.admin) == (PortRole.MACHINE, LinkState.DOWN)
