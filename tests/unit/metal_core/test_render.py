"""Golden files: a leaf's CONFIG_DB rows and its FRR configuration, line by line.

After a wanted change of the rendering run the tests once with METALPLANE_ACCEPT_GOLDEN=1 and review the difference.
"""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from metal_core.checks import check_desired, check_frr
from metal_core.configdb import owned, render
from metal_core.desired import Admin, Desired, Fec, Port, PortRole, Vrf, split_families
from metal_core.frr import parse as frr_parse
from metal_core.frr import render as frr_render

GOLDEN = Path(__file__).parent / "golden"

UPLINKS = (Port("Ethernet120", PortRole.UPLINK), Port("Ethernet124", PortRole.UPLINK))
MIXED = ("10.0.0.0/8", "2001:db8:7::/48", "192.168.178.0/24", "2001:db8:2::/48")
EMPTY = Desired("leaf01", 1, "a", 4200000011, "10.0.0.11", 4000, UPLINKS)
TENANT = replace(
    EMPTY,
    generation=2,
    ports=(
        *UPLINKS,
        Port("Ethernet0", PortRole.FIREWALL, allowed_prefixes=("10.0.2.1/32",), vnis=(104010, 104001, 104009)),
        Port("Ethernet4", PortRole.UNPROVISIONED),
        Port("Ethernet8", PortRole.UNPROVISIONED, admin=Admin.DOWN),
        Port("Ethernet12", PortRole.MACHINE, vrf="Vrf104001", allowed_prefixes=("10.240.0.0/12",)),
        Port("Ethernet16", PortRole.MACHINE, vrf="Vrf104001", allowed_prefixes=("10.250.0.7/32", "2001:db8:7::/64")),
        Port("Ethernet20", PortRole.DOWN),
    ),
    vrfs=(Vrf("Vrf104001", 104001, 1001),),
)
DUAL_STACK = replace(
    EMPTY,
    generation=3,
    ports=(
        *UPLINKS,
        Port(
            "Ethernet0",
            PortRole.FIREWALL,
            admin=Admin.UP,
            allowed_prefixes=("2001:db8:ff::1/128", "2001:db8:f0::/44"),
            vnis=(104001,),
        ),
        Port("Ethernet4", PortRole.FIREWALL),
        Port("Ethernet8", PortRole.MACHINE, mtu=1500, vrf="Vrf104002", allowed_prefixes=("2001:db8:2::/48",)),
        Port("Ethernet12", PortRole.MACHINE, vrf="Vrf104003"),
    ),
    vrfs=(Vrf("Vrf104003", 104003, 1002), Vrf("Vrf104002", 104002, 1007)),
)
# All settings of a partition at once, two tenants with the same prefixes, and an operator's own port.
ALL_SETTINGS = replace(
    EMPTY,
    generation=4,
    ports=(
        replace(UPLINKS[0], speed=100_000, fec=Fec.RS),
        UPLINKS[1],
        Port(
            "Ethernet0",
            PortRole.FIREWALL,
            allowed_prefixes=("10.0.2.1/32", "2001:db8:ff::1/128"),
            vnis=(3981, 104001, 104009),
        ),
        Port("Ethernet4", PortRole.MACHINE, vrf="Vrf3981", allowed_prefixes=MIXED, speed=25_000, fec=Fec.NONE),
        Port("Ethernet8", PortRole.MACHINE, vrf="Vrf3982", allowed_prefixes=MIXED),
        Port("Ethernet12", PortRole.ADDITIONAL, admin=Admin.UP),
        Port("Ethernet16", PortRole.ADDITIONAL),
    ),
    vrfs=(Vrf("Vrf3981", 3981, 1001), Vrf("Vrf3982", 3982, 1002)),
    management_gateway="192.0.2.1",
    management_routes=("198.51.100.0/24", "10.255.0.0/16"),
    source_loopback=True,
    bgp_keepalive=3,
    bgp_hold=9,
)
LEAVES = {"no-tenants": EMPTY, "one-tenant": TENANT, "dual-stack": DUAL_STACK, "all-settings": ALL_SETTINGS}


def golden(name: str, text: str) -> None:
    """Compare with the golden file, or accept `text` as the new one."""
    path = GOLDEN / name
    if os.environ.get("METALPLANE_ACCEPT_GOLDEN") == "1":
        path.write_text(text)
    assert text == path.read_text()


@pytest.mark.parametrize("name", LEAVES)
def test_config_db_rows_are_exactly_the_golden_ones(name: str) -> None:
    golden(f"{name}.configdb.json", json.dumps(render(LEAVES[name], "vtep"), indent=1) + "\n")


@pytest.mark.parametrize("name", LEAVES)
def test_the_frr_configuration_is_exactly_the_golden_one(name: str) -> None:
    golden(f"{name}.frr.conf", frr_render.render(LEAVES[name]).text())


@pytest.mark.parametrize("name", LEAVES)
def test_what_is_rendered_has_no_dangling_reference(name: str) -> None:
    assert check_desired(LEAVES[name]) == []
    assert check_frr(frr_render.render(LEAVES[name])) == []


@pytest.mark.parametrize("name", LEAVES)
def test_the_text_reads_back_as_the_same_configuration(name: str) -> None:
    wanted = frr_render.render(LEAVES[name])
    assert frr_parse.parse(wanted.text()) == wanted


@pytest.mark.parametrize("name", LEAVES)
def test_all_rows_that_are_rendered_are_owned(name: str) -> None:
    rows = render(LEAVES[name], "vtep")
    assert owned(rows, LEAVES[name]) == rows


def test_rows_of_an_operator_are_not_owned() -> None:
    theirs = {
        "VLAN|Vlan100": {"vlanid": "100"},
        "VLAN_MEMBER|Vlan100|Ethernet4": {"tagging_mode": "tagged"},
        "VLAN_MEMBER|Vlan4000|Ethernet112": {"tagging_mode": "untagged"},
        "VLAN_INTERFACE|Vlan4000": {"NULL": "NULL"},
        "VLAN_INTERFACE|Vlan4000|10.255.1.1/24": {"NULL": "NULL"},
        "VRF|Vrf_blue": {"vni": "7"},
        "VRF|Vrf55": {"vni": "56"},
        "VRF|mgmt": {},
        "INTERFACE|Ethernet112": {"vrf_name": "Vrf_blue"},
        "INTERFACE|Ethernet120|10.1.0.1/31": {"NULL": "NULL"},
        "PORT|Ethernet112": {"mtu": "1500"},
        "VXLAN_TUNNEL|vtep": {"src_ip": "10.0.0.11"},
        "VXLAN_TUNNEL_MAP|vtep|map_100_Vlan100": {"vlan": "Vlan100", "vni": "100"},
        "VXLAN_TUNNEL_MAP|vtep|blue": {"vlan": "Vlan1001", "vni": "100"},
        "DEVICE_METADATA|localhost": {"hostname": "leaf01"},
    }
    assert owned(theirs, TENANT) == {}


def test_a_stray_port_in_a_tenant_vrf_is_owned_and_so_taken_out() -> None:
    rows = {"INTERFACE|Ethernet200": {"vrf_name": "Vrf104001", "mpls": "enable"}}
    assert owned(rows, EMPTY) == {"INTERFACE|Ethernet200": {"vrf_name": "Vrf104001"}}


def test_fields_of_others_in_owned_rows_are_not_owned() -> None:
    rows = {"PORT|Ethernet4": {"mtu": "9100", "speed": "25000", "fec": "rs", "alias": "Eth2"}}
    assert owned(rows, TENANT) == {"PORT|Ethernet4": {"mtu": "9100"}}


def test_a_vrf_without_prefixes_denies_both_families_explicitly() -> None:
    text = frr_render.render(DUAL_STACK).text()
    assert "route-map Vrf104003-Ethernet12-in deny 10\nexit\n" in text
    assert "route-map Vrf104003-Ethernet12-in6 deny 10\nexit\n" in text
    assert "  neighbor Ethernet12 route-map Vrf104003-Ethernet12-in in\n" in text
    assert "  neighbor Ethernet12 route-map Vrf104003-Ethernet12-in6 in\n" in text


def test_a_firewall_is_filtered_in_both_families_and_both_evpn_directions() -> None:
    underlay = frr_render.render(DUAL_STACK).block("router bgp 4200000011")
    assert "neighbor Ethernet0 route-map fw-Ethernet0-in in" in underlay.child("address-family ipv4 unicast").lines
    assert "neighbor Ethernet0 route-map fw-Ethernet0-in6 in" in underlay.child("address-family ipv6 unicast").lines
    evpn = underlay.child("address-family l2vpn evpn").lines
    assert {
        "neighbor Ethernet0 route-map fw-Ethernet0-vni in",
        "neighbor Ethernet0 route-map fw-Ethernet0-vni out",
    } <= {*evpn}


def test_a_machine_may_announce_only_its_own_prefixes() -> None:
    text = frr_render.render(TENANT).text()
    assert "ip prefix-list Vrf104001-Ethernet16-in-prefixes seq 5 permit 10.250.0.7/32\n" in text
    assert "ip prefix-list Vrf104001-Ethernet12-in-prefixes seq 5 permit 10.240.0.0/12 le 32\n" in text
    assert "Vrf104001-Ethernet16-in-prefixes seq 10" not in text


def test_prefixes_are_split_by_family_and_merged_with_nothing() -> None:
    v4, v6 = split_families((*MIXED, *reversed(MIXED)))
    assert [str(network) for network in v4] == ["10.0.0.0/8", "192.168.178.0/24"]
    assert [str(network) for network in v6] == ["2001:db8:2::/48", "2001:db8:7::/48"]


def test_without_a_gateway_the_management_network_is_left_alone() -> None:
    assert "ip route" not in frr_render.render(TENANT).text()
    text = frr_render.render(ALL_SETTINGS).text()
    for prefix in ("0.0.0.0/0", "10.255.0.0/16", "198.51.100.0/24"):
        assert f"ip route {prefix} 192.0.2.1 tag 4242 2 nexthop-vrf mgmt\n" in text


def test_the_loopback_is_the_source_of_the_leafs_own_packets_only_where_that_is_set() -> None:
    assert "SET_SRC" not in frr_render.render(TENANT).text()
    text = frr_render.render(ALL_SETTINGS).text()
    assert "route-map SET_SRC permit 10\n set src 10.0.0.11\nexit\n" in text
    assert "ip protocol bgp route-map SET_SRC\n" in text


def test_timers_are_the_partitions_in_every_group() -> None:
    text = frr_render.render(ALL_SETTINGS).text()
    for group in ("FABRIC", "FIREWALL", "MACHINE"):
        assert f" neighbor {group} timers 3 9\n" in text
    assert "timers 2 8" not in text
