"""What is refused before anything is touched, each with a message that names the place."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
from metal_core.checks import check_desired, check_frr, check_leaf, check_running
from metal_core.configdb import owned
from metal_core.configdb import render as render_rows
from metal_core.desired import Admin, Desired, Fec, Port, PortRole, Vrf, from_json, to_json
from metal_core.frr.parse import parse
from metal_core.frr.render import render

GOOD = Desired(
    "leaf01",
    1,
    "a",
    4200000011,
    "10.0.0.11",
    4000,
    (
        Port("Ethernet0", PortRole.UPLINK),
        Port("Ethernet4", PortRole.UNPROVISIONED),
        Port("Ethernet8", PortRole.MACHINE, vrf="Vrf2000", allowed_prefixes=("10.1.0.0/16",)),
        Port("Ethernet12", PortRole.FIREWALL, vnis=(2000,)),
    ),
    (Vrf("Vrf2000", 2000, 1001),),
)
ROWS = {
    "PORT|Ethernet0": {},
    "PORT|Ethernet4": {},
    "PORT|Ethernet8": {},
    "PORT|Ethernet12": {},
    "VLAN|Vlan4000": {"vlanid": "4000"},
    "VXLAN_TUNNEL|vtep": {"src_ip": "10.0.0.11"},
}


def with_port(**changes: object) -> Desired:
    """GOOD with its machine port changed."""
    return replace(GOOD, ports=(*GOOD.ports[:2], replace(GOOD.ports[2], **changes), GOOD.ports[3]))  # type: ignore[arg-type]


def test_a_consistent_state_passes_all_checks() -> None:
    assert check_desired(GOOD) == []
    assert check_leaf(GOOD, ROWS) == []
    assert check_frr(render(GOOD)) == []


@pytest.mark.parametrize(
    ("bad", "place"),
    [
        (replace(GOOD, vrfs=(*GOOD.vrfs, Vrf("Vrf2000", 2000, 1002))), "vrfs.vni: 2000"),
        (replace(GOOD, vrfs=(*GOOD.vrfs, Vrf("Vrf2001", 2001, 1001))), "vrfs.vlan: 1001"),
        (replace(GOOD, vrfs=(*GOOD.vrfs, Vrf("Vrf2001", 2001, 999))), "vrfs.vlan: 999"),
        (replace(GOOD, vrfs=(*GOOD.vrfs, Vrf("vrf2001", 2001, 1002))), "vrfs.name: 'vrf2001'"),
        (replace(GOOD, vrfs=(*GOOD.vrfs, Vrf("Vrf16777216", 1 << 24, 1002))), "vrfs.vni: 16777216"),
        (replace(GOOD, ports=(*GOOD.ports, Port("Ethernet0", PortRole.DOWN))), "ports: Ethernet0"),
        (replace(GOOD, asn=0), "asn: 0"),
        (replace(GOOD, loopback="leaf"), "loopback: 'leaf'"),
        (replace(GOOD, pxe_vlan=1500), "pxe_vlan: 1500"),
        (replace(GOOD, ports=GOOD.ports[1:]), "ports: none has the role uplink"),
        (replace(GOOD, ports=(), vrfs=()), "ports: none has the role uplink"),
        (with_port(vrf="Vrf2001"), ".vrf: 'Vrf2001'"),
        (with_port(vrf=""), ".vrf: ''"),
        (with_port(role=PortRole.UPLINK), ".vrf: only machine ports"),
        (with_port(vnis=(2000,)), ".vnis: only firewalls"),
        (with_port(speed=1_600_001), ".speed: 1600001 must be"),
        (with_port(speed=-1), ".speed: -1 must be"),
        (with_port(speed=25), ".speed: 25 must be in Mbit/s"),
        (with_port(allowed_prefixes=("10.0.0.1/8",)), ".allowed_prefixes: 10.0.0.1/8"),
        (with_port(allowed_prefixes=("10.0.0.0/33",)), ".allowed_prefixes"),
        (with_port(mtu=9217), ".mtu: 9217"),
        (with_port(name="Ethernet8\nno router bgp 4200000011"), ".name"),
        (with_port(name=""), ".name"),
        (with_port(role=PortRole.ADDITIONAL, vrf="", allowed_prefixes=(), mtu=1500), ".mtu: only the administrative"),
        (replace(GOOD, management_gateway="2001:db8::1"), "management_gateway: '2001:db8::1'"),
        (replace(GOOD, management_gateway="gateway"), "management_gateway: 'gateway'"),
        (replace(GOOD, management_routes=("10.0.0.0/8",)), "management_routes: they need"),
        (replace(GOOD, management_gateway="192.0.2.1", management_routes=("10.0.0.1/8",)), "management_routes: 10.0"),
        (replace(GOOD, management_gateway="192.0.2.1", management_routes=("2001:db8::/32",)), "management_routes"),
        (replace(GOOD, bgp_keepalive=3), "bgp_hold: 0"),
        (replace(GOOD, bgp_hold=9), "bgp_keepalive, 0"),
        (replace(GOOD, bgp_keepalive=4, bgp_hold=9), "bgp_keepalive, 4"),
    ],
)
def test_a_contradiction_is_found_and_its_place_is_named(bad: Desired, place: str) -> None:
    found = check_desired(bad)
    assert any(place in finding for finding in found), found


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"PORT|Ethernet8": None}, "PORT|Ethernet8"),
        ({"VXLAN_TUNNEL|vtep": None}, "it has 0"),
        ({"VXLAN_TUNNEL|other": {}}, "it has 2"),
        ({"VLAN|Vlan4000": None}, "VLAN|Vlan4000"),
        ({"VLAN_MEMBER|Vlan100|Ethernet8": {"tagging_mode": "tagged"}}, "VLAN_MEMBER|Vlan100|Ethernet8"),
        ({"VLAN_MEMBER|Vlan1700|Ethernet99": {"tagging_mode": "tagged"}}, "VLAN_MEMBER|Vlan1700|Ethernet99"),
        ({"VLAN_INTERFACE|Vlan1700|10.0.0.1/24": {}}, "VLAN_INTERFACE|Vlan1700|10.0.0.1/24"),
        ({"INTERFACE|Ethernet4|10.0.0.1/31": {}}, "INTERFACE|Ethernet4|10.0.0.1/31"),
        ({"VRF|Vrf_blue": {"vni": "2000"}}, "row VRF|Vrf_blue has VNI 2000, so Vrf2000 cannot have it"),
        ({"VRF|Vrf7": {"vni": "2000"}}, "row VRF|Vrf7 has VNI 2000"),
        ({"VXLAN_TUNNEL_MAP|vtep|blue": {"vni": "2000", "vlan": "Vlan100"}}, "vtep|blue has VNI 2000"),
        ({"VXLAN_TUNNEL_MAP|vtep|map_2000_Vlan100": {"vni": "2000", "vlan": "Vlan100"}}, "Vlan100 has VNI 2000"),
        ({"VXLAN_TUNNEL_MAP|vtep|blue": {"vni": "7", "vlan": "Vlan1001"}}, "vtep|blue maps Vlan1001, so Vrf2000"),
    ],
)
def test_rows_that_are_missing_or_in_the_way_are_named(change: dict[str, dict[str, str] | None], place: str) -> None:
    rows = {key: fields for key, fields in (ROWS | change).items() if fields is not None}
    found = check_leaf(GOOD, rows)
    assert len(found) == 1
    assert place in found[0]


def test_the_leaf_must_have_the_address_that_its_packets_shall_come_from() -> None:
    """FRR takes any address, and the kernel refuses each route whose source it does not have."""
    wanted = replace(GOOD, source_loopback=True)
    for rows in (ROWS, ROWS | {"LOOPBACK_INTERFACE|Loopback0": {}, "LOOPBACK_INTERFACE|Loopback0|10.0.0.1/32": {}}):
        (found,) = check_leaf(wanted, rows)
        assert "source_loopback: CONFIG_DB has no row LOOPBACK_INTERFACE|...|10.0.0.11/32" in found
    assert check_leaf(wanted, ROWS | {"LOOPBACK_INTERFACE|Loopback0|10.0.0.11/32": {}}) == []


def test_what_the_agent_has_written_itself_does_not_stand_in_its_way() -> None:
    assert check_leaf(GOOD, ROWS | render_rows(GOOD, "vtep")) == []
    assert check_running(GOOD, render(GOOD)) == []
    # A tenant's VRF with another one's VNI is repaired like any other change by hand.
    assert check_running(GOOD, parse("vrf Vrf7\n vni 2000\nexit-vrf\n")) == []


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("router bgp 65000\nexit\n", "asn: FRR runs `router bgp 65000`, the state says 4200000011"),
        ("frr defaults traditional\nrouter bgp 4200000011\nexit\n", "the profile traditional"),
        ("vni 2000\n", "FRR has `vni 2000` in the default VRF, so Vrf2000 cannot have it"),
        ("vrf blue\n vni 2000\nexit-vrf\n", "FRR has `vni 2000` in VRF blue"),
        ("ip protocol bgp route-map blue\n", "source_loopback: FRR has `ip protocol bgp route-map blue`"),
    ],
)
def test_a_running_frr_that_would_lose_its_sessions_is_left_alone(text: str, place: str) -> None:
    (found,) = check_running(replace(GOOD, source_loopback=True), parse(text))
    assert place in found


@pytest.mark.parametrize(
    "text",
    [
        "frr defaults traditional\n",
        "frr defaults datacenter\nrouter bgp 4200000011\nexit\n",
        "router bgp 65000 vrf blue\nexit\nvrf blue\n vni 7\nexit-vrf\n",
        "",
    ],
)
def test_a_running_frr_without_anything_to_lose_is_no_obstacle(text: str) -> None:
    assert check_running(GOOD, parse(text)) == []


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("router bgp 1\n neighbor X route-map nowhere in\nexit\n", "route-map nowhere"),
        ("router bgp 1\n address-family ipv4 unicast\n  redistribute kernel route-map R\n exit\nexit\n", "route-map R"),
        ("ip protocol bgp route-map nowhere\n", "ip protocol bgp route-map nowhere: the route-map is not defined"),
        ("route-map a permit 10\n match ip address prefix-list nowhere\nexit\n", "prefix-list nowhere"),
        ("router bgp 1\n neighbor Ethernet0 interface peer-group G\nexit\n", "peer-group G"),
        ("router bgp 1\nexit\nrouter bgp 2 vrf Vrf1\nexit\n", "more than one ASN: 1, 2"),
        ("vrf Vrf1\n vni 7\nexit-vrf\nvrf Vrf2\n vni 7\nexit-vrf\n", "vni 7 is there 2 times"),
        ("ip prefix-list a seq 5 permit 10.0.0.0/24 le 12\n", "le 12 is below the prefix length 24"),
        ("ip prefix-list a seq 5 permit 10.0.0.0/24 ge 12 le 32\n", "ge 12 is below"),
    ],
)
def test_what_vtysh_would_accept_but_not_mean_is_found(text: str, place: str) -> None:
    found = check_frr(parse(text))
    assert len(found) == 1
    assert place in found[0]


def test_an_operators_own_port_stays_as_it_is_but_for_its_administrative_state() -> None:
    own = Port("Ethernet16", PortRole.ADDITIONAL, admin=Admin.UP)
    wanted = replace(GOOD, ports=(*GOOD.ports, own))
    rows = ROWS | {
        "PORT|Ethernet16": {"mtu": "1500", "admin_status": "down"},
        "VLAN_MEMBER|Vlan300|Ethernet16": {"tagging_mode": "untagged"},
    }
    assert check_desired(wanted) == []
    assert check_leaf(wanted, rows) == []
    assert owned(rows, wanted)["PORT|Ethernet16"] == {"admin_status": "down"}
    assert "VLAN_MEMBER|Vlan300|Ethernet16" not in owned(rows, wanted)
    assert render_rows(wanted, "vtep")["PORT|Ethernet16"] == {"admin_status": "up"}
    for change, field in (({"speed": 1000}, "speed"), ({"fec": Fec.AUTO}, "fec"), ({"mtu": 1500}, "mtu")):
        (found,) = check_desired(replace(wanted, ports=(*GOOD.ports, replace(own, **change))))  # type: ignore[arg-type]
        assert f".{field}: only the administrative state" in found
    left_alone = replace(wanted, ports=(*GOOD.ports, replace(own, admin=Admin.KEEP)))
    assert "PORT|Ethernet16" not in owned(rows, left_alone)
    assert "PORT|Ethernet16" not in render_rows(left_alone, "vtep")
    assert "Ethernet16" not in render(wanted).text()
    (found,) = check_leaf(wanted, rows | {"INTERFACE|Ethernet16": {}})
    assert "INTERFACE|Ethernet16 keeps the port routed, so it cannot be additional" in found


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"asn": None}, "asn: is missing"),
        ({"asn": "4200000011"}, "asn: '4200000011' must be a whole number"),
        ({"source_loopback": 1}, "source_loopback: 1 must be true or false"),
        ({"ports": {}}, "ports: must be a list"),
        ({"ports": [7]}, "ports[0]: must be an object"),
        ({"ports": [{"name": "Ethernet0", "role": "spine"}]}, "ports[0].role: 'spine' is not one of 'uplink', "),
        ({"ports": [{"name": "Ethernet0", "role": "uplink", "lanes": 1}]}, "ports[0].lanes: there is no such field"),
        ({"vrfs": [{"name": "Vrf1", "vni": 1}]}, "vrfs[0].vlan_id: is missing"),
    ],
)
def test_a_state_written_by_hand_is_refused_with_the_place_of_the_mistake(change: dict[str, Any], place: str) -> None:
    data = {name: value for name, value in (to_json(GOOD) | change).items() if value is not None}
    with pytest.raises(ValueError, match=re.escape(place)):
        from_json(data, strict=True)


def test_a_file_of_an_older_or_a_newer_agent_is_read() -> None:
    data = to_json(GOOD)
    assert from_json({k: v for k, v in data.items() if k not in {"source_loopback", "drift_policy"}}) == GOOD
    assert from_json(data | {"of_a_newer_agent": 1}) == GOOD
