from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from metal_fabric.ports import AdminState, LinkState, SwitchOs, lanes_of, line_of, names_of, sort_key, translate


@pytest.mark.parametrize(
    ("name", "os", "line"),
    [
        ("Ethernet0", SwitchOs.SONIC, 0),
        ("Ethernet124", SwitchOs.SONIC, 124),
        ("swp1", SwitchOs.CUMULUS, 0),
        ("swp2", SwitchOs.CUMULUS, 4),
        ("swp1s0", SwitchOs.CUMULUS, 0),
        ("swp2s3", SwitchOs.CUMULUS, 7),
    ],
)
def test_the_line_number_follows_the_naming_scheme(name: str, os: SwitchOs, line: int) -> None:
    assert line_of(name, os) == line


@pytest.mark.parametrize(
    "name", ["", "Ethernet", "Ethernet01", "ethernet4", "Ethernet4 ", "Eth1/1", "eth0", "Ethernet٤"]
)
def test_a_name_outside_sonics_scheme_has_no_line(name: str) -> None:
    assert line_of(name, SwitchOs.SONIC) is None


@pytest.mark.parametrize("name", ["swp0", "swp1s4", "swp1s", "swp", "Ethernet0", "swp01"])
def test_a_name_outside_cumulus_scheme_has_no_line(name: str) -> None:
    assert line_of(name, SwitchOs.CUMULUS) is None


@pytest.mark.parametrize(
    ("sonic", "cumulus"),
    [
        (["Ethernet0", "Ethernet4", "Ethernet8"], ["swp1", "swp2", "swp3"]),
        (["Ethernet0", "Ethernet4", "Ethernet6", "Ethernet8"], ["swp1", "swp2s0", "swp2s1", "swp3"]),
        (
            ["Ethernet0", "Ethernet4", "Ethernet5", "Ethernet6", "Ethernet7"],
            ["swp1", "swp2s0", "swp2s1", "swp2s2", "swp2s3"],
        ),
    ],
)
def test_whole_halved_and_quartered_ports_have_names_on_both_systems(sonic: list[str], cumulus: list[str]) -> None:
    there = [translate(name, SwitchOs.SONIC, SwitchOs.CUMULUS, names=sonic) for name in sonic]
    back = [translate(name, SwitchOs.CUMULUS, SwitchOs.SONIC, names=cumulus) for name in cumulus]
    assert (there, back) == (cumulus, sonic)


def test_a_part_that_stands_alone_keeps_its_number() -> None:
    assert names_of([5], SwitchOs.CUMULUS) == {5: "swp2s1"}
    assert lanes_of(["swp2s1", "eth0"], SwitchOs.CUMULUS) == {"swp2s1": 5}


# A front-panel port is whole, in two parts, or in four.
BREAKOUTS = st.dictionaries(st.integers(0, 255), st.sampled_from([(0,), (0, 2), (0, 1, 2, 3)]), min_size=1)


@given(BREAKOUTS)
def test_names_survive_the_way_to_the_other_system_and_back(breakouts: dict[int, tuple[int, ...]]) -> None:
    sonic = [f"Ethernet{4 * group + offset}" for group, offsets in breakouts.items() for offset in offsets]
    cumulus = [translate(name, SwitchOs.SONIC, SwitchOs.CUMULUS, names=sonic) for name in sonic]
    names = [name for name in cumulus if name is not None]
    assert len(set(names)) == len(sonic)
    assert [translate(name, SwitchOs.CUMULUS, SwitchOs.SONIC, names=names) for name in names] == sonic


def test_a_name_of_no_scheme_translates_to_nothing_but_stays_within_its_system() -> None:
    assert translate("Eth1/1", SwitchOs.SONIC, SwitchOs.CUMULUS, names=["Eth1/1"]) is None
    assert translate("Ethernet0", SwitchOs.SONIC, SwitchOs.OTHER, names=[]) is None
    assert translate("Eth1/1", SwitchOs.SONIC, SwitchOs.SONIC, names=[]) == "Eth1/1"


def test_a_name_needs_a_lane_and_a_scheme() -> None:
    with pytest.raises(ValueError, match="negative"):
        names_of([4, -1], SwitchOs.SONIC)
    with pytest.raises(ValueError, match="naming scheme"):
        names_of([0], SwitchOs.OTHER)


def test_ports_sort_by_lane_and_not_by_letter() -> None:
    names = ["Loopback0", "Ethernet8", "Ethernet12", "Ethernet0"]
    ordered = sorted(names, key=lambda name: sort_key(name, SwitchOs.SONIC))
    assert ordered == ["Ethernet0", "Ethernet8", "Ethernet12", "Loopback0"]


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
