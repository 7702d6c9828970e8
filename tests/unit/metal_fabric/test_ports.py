from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from metal_fabric.ports import AdminState, LinkState, SwitchOs, counterparts, sort_key


@pytest.mark.parametrize(
    "name",
    ["", "Ethernet", "Ethernet01", "ethernet0", "Ethernet0 ", "Eth1/1", "eth0", "Ethernet\N{ARABIC-INDIC DIGIT ONE}"],
)
def test_a_name_outside_sonics_scheme_has_no_counterpart(name: str) -> None:
    assert counterparts([name], SwitchOs.SONIC, ["swp1"], SwitchOs.CUMULUS) == {}


@pytest.mark.parametrize("name", ["swp0", "swp1s8", "swp1s", "swp", "Ethernet0", "swp01"])
def test_a_name_outside_cumulus_scheme_has_no_counterpart(name: str) -> None:
    assert counterparts([name], SwitchOs.CUMULUS, ["Ethernet0"], SwitchOs.SONIC) == {}


# Ports of both systems at the same places: of four lanes, and of eight.
ALIKE = [
    ("Ethernet0 Ethernet4 Ethernet8", "swp1 swp2 swp3"),
    ("Ethernet0 Ethernet4 Ethernet6 Ethernet8", "swp1 swp2s0 swp2s1 swp3"),
    ("Ethernet0 Ethernet4 Ethernet5 Ethernet6 Ethernet7", "swp1 swp2s0 swp2s1 swp2s2 swp2s3"),
    ("Ethernet0 Ethernet8 Ethernet16", "swp1 swp2 swp3"),
    ("Ethernet0 Ethernet8 Ethernet12 Ethernet16", "swp1 swp2s0 swp2s1 swp3"),
    ("Ethernet0 Ethernet2 Ethernet4 Ethernet6 Ethernet8 Ethernet16", "swp1s0 swp1s1 swp1s2 swp1s3 swp2 swp3"),
    (
        "Ethernet0 " + " ".join(f"Ethernet{lane}" for lane in range(8, 16)),
        "swp1 " + " ".join(f"swp2s{part}" for part in range(8)),
    ),
    # One half, and the other one in halves again.
    ("Ethernet0 Ethernet8 Ethernet12 Ethernet14", "swp1 swp2s0 swp2s2 swp2s3"),
]


@pytest.mark.parametrize(("sonic", "cumulus"), [(one.split(), other.split()) for one, other in ALIKE])
def test_ports_that_are_broken_out_alike_are_found_on_both_systems(sonic: list[str], cumulus: list[str]) -> None:
    there = counterparts(sonic, SwitchOs.SONIC, cumulus, SwitchOs.CUMULUS)
    assert there == dict(zip(sonic, cumulus, strict=True))
    back = counterparts(cumulus, SwitchOs.CUMULUS, sonic, SwitchOs.SONIC)
    assert back == dict(zip(cumulus, sonic, strict=True))


def _named(cages: list[int], width: int) -> tuple[list[str], list[str]]:
    """Names of ports that are in so many parts, on a box with so many lanes a port: SONiC's and Cumulus'."""
    sonic, cumulus = [], []
    for cage, parts in enumerate(cages):
        for part in range(parts):
            sonic.append(f"Ethernet{cage * width + part * width // parts}")
            cumulus.append(f"swp{cage + 1}s{part}" if parts > 1 else f"swp{cage + 1}")
    return sonic, cumulus


@given(st.lists(st.sampled_from([1, 2, 4]), min_size=1), st.sampled_from([4, 8]))
def test_every_port_of_two_boxes_that_are_alike_has_its_counterpart(cages: list[int], width: int) -> None:
    sonic, cumulus = _named(cages, width)
    assert counterparts(sonic, SwitchOs.SONIC, cumulus, SwitchOs.CUMULUS) == dict(zip(sonic, cumulus, strict=True))


def test_ports_that_are_not_broken_out_alike_have_no_counterpart() -> None:
    names = ["Ethernet0", "Ethernet4", "Ethernet6"]
    for others in (["swp1", "swp2"], ["swp1", "swp2s0", "swp2s1", "swp2s2", "swp2s3"]):
        assert counterparts(names, SwitchOs.SONIC, others, SwitchOs.CUMULUS) == {"Ethernet0": "swp1"}


def test_a_port_that_may_be_one_or_the_other_has_no_counterpart() -> None:
    """Of four lanes a port, Ethernet8 is the third one; of eight, the second."""
    there = counterparts(["Ethernet0", "Ethernet8"], SwitchOs.SONIC, ["swp1", "swp2", "swp3"], SwitchOs.CUMULUS)
    assert there == {"Ethernet0": "swp1"}


def test_a_name_of_no_scheme_stays_within_its_system() -> None:
    assert counterparts(["Ethernet0"], SwitchOs.SONIC, ["Ethernet0"], SwitchOs.OTHER) == {}
    assert counterparts(["Eth1/1"], SwitchOs.SONIC, [], SwitchOs.SONIC) == {"Eth1/1": "Eth1/1"}


def test_ports_sort_by_lane_and_not_by_letter() -> None:
    names = ["Loopback0", "Ethernet8", "Ethernet12", "Ethernet0"]
    ordered = sorted(names, key=lambda name: sort_key(name, SwitchOs.SONIC))
    assert ordered == ["Ethernet0", "Ethernet8", "Ethernet12", "Loopback0"]
    parts = ["swp10", "swp2s10", "swp2s1", "swp2s0", "swp1"]
    assert sorted(parts, key=lambda name: sort_key(name, SwitchOs.CUMULUS)) == [
        "swp1", "swp2s0", "swp2s1", "swp10", "swp2s10",
    ]  # fmt: skip


def test_a_wish_is_outstanding_until_it_came_true_and_again_when_the_port_strays() -> None:
    port = AdminState(actual=LinkState.UP).wanted(LinkState.DOWN)
    assert port.outstanding is LinkState.DOWN
    port = port.reported(LinkState.DOWN)
    assert port.outstanding is None
    assert port.wish is LinkState.DOWN
    assert port.reported(LinkState.UP).outstanding is LinkState.DOWN


def test_wishing_for_what_is_leaves_nothing_outstanding() -> None:
    port = AdminState(wish=LinkState.DOWN, actual=LinkState.UP).wanted(LinkState.UP)
    assert port.outstanding is None


def test_only_up_and_down_can_be_wanted() -> None:
    with pytest.raises(ValueError, match="up and down"):
        AdminState().wanted(LinkState.UNKNOWN)
