"""Interfaces of VRFs as FRR names them, by what its VRFs are."""

from __future__ import annotations

from metal_core.desired import Desired, Port, PortRole, Vrf
from metal_core.frr.delta import converge
from metal_core.frr.dialect import VrfBackend, spelled
from metal_core.frr.managed import differences
from metal_core.frr.parse import parse
from metal_core.frr.render import render

PORTS = {"Ethernet0", "Ethernet120"}
WANTED = render(
    Desired(
        switch_id="leaf01",
        generation=1,
        digest="",
        asn=4200000011,
        loopback="10.0.0.1",
        pxe_vlan=4000,
        ports=(
            Port("Ethernet0", PortRole.MACHINE, vrf="Vrf2000", allowed_prefixes=("10.1.0.1/32",)),
            Port("Ethernet120", PortRole.UPLINK),
        ),
        vrfs=(Vrf("Vrf2000", 2000, 1001),),
    )
)
BARE = render(Desired("leaf01", 2, "", 4200000011, "10.0.0.1", 4000, (Port("Ethernet120", PortRole.UPLINK),)))


def test_with_vrf_devices_an_interface_is_named_alone_however_frr_printed_it() -> None:
    assert spelled(WANTED, VrfBackend.LITE) == WANTED
    printed = spelled(WANTED, VrfBackend.NETNS).text()
    assert "interface Ethernet0 vrf Vrf2000\n" in printed
    assert parse(printed).headers("interface ") == ("interface Ethernet0", "interface Ethernet120")


def test_with_namespaces_a_port_is_named_with_its_vrf_and_found_again() -> None:
    wanted = spelled(WANTED, VrfBackend.NETNS)
    assert wanted.headers("interface ") == ("interface Ethernet0 vrf Vrf2000", "interface Ethernet120")
    running = parse(wanted.text(), VrfBackend.NETNS)
    assert differences(running, wanted, PORTS) == []
    assert converge(running, wanted, PORTS) == ""


def test_with_namespaces_the_lines_of_a_port_are_taken_away_in_the_vrf_where_they_are() -> None:
    running = parse(spelled(WANTED, VrfBackend.NETNS).text(), VrfBackend.NETNS)
    commands = converge(running, spelled(BARE, VrfBackend.NETNS), PORTS)
    assert "interface Ethernet0 vrf Vrf2000\n no ipv6 nd ra-interval 6\n" in commands
