"""What counts as a difference between a desired state and a leaf, and what does not."""

from __future__ import annotations

from dataclasses import replace

import pytest
from metal_core.compare import Differences, LeafFacts, RowDifference, compare
from metal_core.configdb import owned, render
from metal_core.desired import Admin, Desired, Fec, Port, PortRole, Vrf
from metal_core.frr.model import Configuration
from metal_core.frr.parse import parse
from metal_core.frr.render import render as render_frr

STATE = Desired(
    "leaf01",
    5,
    "five",
    4200000011,
    "10.0.0.11",
    4000,
    (
        Port("Ethernet120", PortRole.UPLINK),
        Port("Ethernet0", PortRole.MACHINE, vrf="Vrf2000", allowed_prefixes=("10.1.0.1/32",)),
        Port("Ethernet4", PortRole.UNPROVISIONED),
    ),
    (Vrf("Vrf2000", 2000, 1001),),
)
VTEP = {"VXLAN_TUNNEL|vtep": {"src_ip": "10.0.0.11"}}
ROWS = render(STATE, "vtep") | VTEP
RUNNING = parse(render_frr(STATE).text())


def test_a_leaf_that_is_where_it_should_be_differs_in_nothing() -> None:
    found = compare(STATE, LeafFacts(ROWS, RUNNING))
    assert found == Differences()
    assert not found


def test_speed_and_error_correction_count_where_they_are_wanted() -> None:
    wanted = replace(STATE, ports=tuple(replace(p, speed=25_000, fec=Fec.RS) if p.name == "Ethernet4" else p
                                        for p in STATE.ports))  # fmt: skip
    rows = ROWS | {"PORT|Ethernet4": {**ROWS["PORT|Ethernet4"], "speed": "10000"}}
    assert not compare(STATE, LeafFacts(rows, RUNNING)), "the hardware description's, while nobody wants another"
    assert compare(wanted, LeafFacts(rows, RUNNING)).rows == (
        RowDifference("PORT", "Ethernet4", "fec", "rs", None),
        RowDifference("PORT", "Ethernet4", "speed", "25000", "10000"),
    )
    assert owned(rows, wanted)["PORT|Ethernet4"]["speed"] == "10000", "a way back leads to what was there"


def test_what_belongs_to_others_is_no_difference() -> None:
    rows = ROWS | {
        "PORT|Ethernet0": {**ROWS["PORT|Ethernet0"], "fec": "rs", "admin_status": "up"},
        "VRF|Vrf_blue": {"vni": "7"},
        "VLAN|Vlan100": {"vlanid": "100"},
        "VRF|Vrf2000": {**ROWS["VRF|Vrf2000"], "field_of_a_newer_sonic": "x"},
    }
    running = parse(render_frr(STATE).text() + "hostname leaf01\nip prefix-list mine seq 5 permit 10.0.0.0/8\n")
    assert not compare(STATE, LeafFacts(rows, running))


@pytest.mark.parametrize(
    ("key", "row", "expected"),
    [
        (
            "VRF|Vrf2000",
            {"vni": "2000", "fallback": "true"},
            RowDifference("VRF", "Vrf2000", "fallback", "false", "true"),
        ),
        ("PORT|Ethernet4", {}, RowDifference("PORT", "Ethernet4", "mtu", "9000", None)),
        ("VRF|Vrf2000", None, RowDifference("VRF", "Vrf2000", "", "fallback=false, vni=2000", None)),
        ("PORT|Ethernet4", None, RowDifference("PORT", "Ethernet4", "", "mtu=9000", None)),
        (
            "VLAN_MEMBER|Vlan4000|Ethernet4",
            {"tagging_mode": "tagged"},
            RowDifference("VLAN_MEMBER", "Vlan4000|Ethernet4", "tagging_mode", "untagged", "tagged"),
        ),
        ("VLAN|Vlan1002", {"vlanid": "1002"}, RowDifference("VLAN", "Vlan1002", "", None, "vlanid=1002")),
    ],
)
def test_a_row_that_differs_is_told_with_both_values(
    key: str, row: dict[str, str] | None, expected: RowDifference
) -> None:
    rows = {name: fields for name, fields in ROWS.items() if name != key} | ({key: row} if row is not None else {})
    assert compare(STATE, LeafFacts(rows, RUNNING)).rows == (expected,)


def test_a_row_difference_reads_well() -> None:
    assert str(RowDifference("PORT", "Ethernet4", "mtu", "9000", None)) == (
        "PORT|Ethernet4 mtu: wanted '9000', found none"
    )


def test_lines_of_frr_differ_in_both_directions() -> None:
    other = replace(STATE, ports=tuple(replace(p, admin=Admin.UP) for p in STATE.ports), loopback="10.0.0.12")
    found = compare(other, LeafFacts(render(other, "vtep") | VTEP, RUNNING))
    assert found.rows == ()
    assert "+ router bgp 4200000011 / bgp router-id 10.0.0.12" in found.lines
    assert "- router bgp 4200000011 / bgp router-id 10.0.0.11" in found.lines


def test_without_frr_no_line_counts_and_with_an_empty_one_every_line_does() -> None:
    assert not compare(STATE, LeafFacts(ROWS, None))
    assert "+ router bgp 4200000011" in compare(STATE, LeafFacts(ROWS, Configuration())).lines
