from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from metal_fabric.cabling import Cable, Cabling, Neighbour, host_key, survey
from metal_fabric.ports import SwitchOs
from metal_fabric.problems import Refused
from metal_fabric.switch import Port, Switch, SwitchFacts

MACHINE = "00000000-0000-0000-0000-000000000001"
OTHER = "00000000-0000-0000-0000-000000000002"


def leaf(name: str, rack: str = "r1", *, partition: str = "mini", os: SwitchOs = SwitchOs.SONIC) -> Switch:
    names = ["Ethernet0", "Ethernet4", "Ethernet8"] if os is SwitchOs.SONIC else ["swp1", "swp2", "swp3"]
    ports = [Port(each, f"Eth{index}") for index, each in enumerate(names)]
    ports.append(Port("Ethernet120" if os is SwitchOs.SONIC else "swp31", "up", uplink=True))
    return Switch(name, SwitchFacts(partition, rack, os), {port.name: port for port in ports})


LEAVES = (leaf("leaf01"), leaf("leaf02"), leaf("leaf03", "r2"), leaf("leaf04", "r2"))


def nic(index: int) -> str:
    return f"aa:aa:aa:aa:aa:{index:02x}"


def seen(*places: tuple[str, str]) -> list[Neighbour]:
    return [Neighbour(nic(index), host, port) for index, (host, port) in enumerate(places)]


def look(
    neighbours: Iterable[Neighbour],
    *,
    leaves: Iterable[Switch] = LEAVES,
    before: Iterable[Cable] = (),
    taken: dict[tuple[str, str], str] | None = None,
) -> Cabling:
    every = list(leaves)
    return survey(
        MACHINE,
        "mini",
        neighbours,
        leaves=every,
        before=list(before),
        racks={each.id: each.facts.rack for each in every},
        taken=taken or {},
    )


def refusal(neighbours: Iterable[Neighbour], **kwargs: object) -> Refused:
    with pytest.raises(Refused) as caught:
        look(neighbours, **kwargs)  # type: ignore[arg-type]
    return caught.value


PAIR = seen(("leaf01", "Ethernet4"), ("leaf02", "Ethernet4"))


def test_two_leaves_of_a_rack_on_mirrored_ports_are_a_cabling() -> None:
    assert look(PAIR) == Cabling(
        rack="r1",
        cables=(Cable("leaf01", "Ethernet4", MACHINE, nic(0)), Cable("leaf02", "Ethernet4", MACHINE, nic(1))),
    )


def test_several_cables_to_each_leaf_are_a_cabling() -> None:
    four = [("leaf01", "Ethernet4"), ("leaf02", "Ethernet4"), ("leaf01", "Ethernet8"), ("leaf02", "Ethernet8")]
    assert len(look(seen(*four)).cables) == 4


def test_a_port_may_be_announced_by_its_alias_and_a_host_with_its_domain() -> None:
    cabling = look(seen(("LEAF01.example.com", "Eth1"), ("leaf02", "Ethernet4")))
    assert [cable.port for cable in cabling.cables] == ["Ethernet4", "Ethernet4"]


def test_ports_are_mirrored_across_operating_systems() -> None:
    mixed = (leaf("leaf01"), leaf("leaf02", os=SwitchOs.CUMULUS))
    cabling = look(seen(("leaf01", "Ethernet4"), ("leaf02", "swp2")), leaves=mixed)
    assert [cable.port for cable in cabling.cables] == ["Ethernet4", "swp2"]
    wrong = seen(("leaf01", "Ethernet4"), ("leaf02", "swp3"))
    assert refusal(wrong, leaves=mixed).reason == "PORTS_NOT_MIRRORED"


def test_neighbours_that_are_no_leaves_are_passed_over() -> None:
    assert look([*PAIR, Neighbour(nic(9), "mgmt-switch", "1/0/7"), Neighbour(nic(8), "", "")]) == look(PAIR)


@pytest.mark.parametrize(
    ("places", "reason"),
    [
        ([], "NO_NEIGHBOURS"),
        ([("leaf01", "Ethernet4")], "NOT_TWO_LEAVES"),
        ([("nobody", "Ethernet4"), ("leaf01", "Ethernet4")], "NOT_TWO_LEAVES"),
        ([("leaf01", "Ethernet4"), ("leaf02", "Ethernet4"), ("leaf03", "Ethernet4")], "NOT_TWO_LEAVES"),
        ([("leaf02", "Ethernet4"), ("leaf03", "Ethernet4")], "LEAVES_IN_TWO_RACKS"),
        ([("leaf01", "Ethernet4"), ("leaf02", "Ethernet8")], "PORTS_NOT_MIRRORED"),
        ([("leaf01", "Ethernet4"), ("leaf01", "Ethernet8"), ("leaf02", "Ethernet4")], "UNEQUAL_CABLES"),
        ([("leaf01", "Ethernet4"), ("leaf02", "Ethernet4"), ("leaf01", "Ethernet4")], "LEAF_PORT_TWICE"),
        ([("leaf01", "Ethernet44"), ("leaf02", "Ethernet44")], "LEAF_PORT_UNKNOWN"),
        ([("leaf01", ""), ("leaf02", "")], "LEAF_PORT_UNKNOWN"),
        ([("leaf01", "Ethernet120"), ("leaf02", "Ethernet120")], "LEAF_PORT_IS_UPLINK"),
    ],
)
def test_any_other_cabling_is_refused(places: list[tuple[str, str]], reason: str) -> None:
    assert refusal(seen(*places)).reason == reason


def test_a_nic_that_sees_two_ports_is_refused() -> None:
    two = [Neighbour(nic(0), "leaf01", "Ethernet4"), Neighbour(nic(0), "leaf02", "Ethernet4")]
    assert refusal(two).reason == "NIC_ON_TWO_PORTS"


def test_the_same_sighting_twice_is_one_cable() -> None:
    assert look([*PAIR, *PAIR]) == look(PAIR)


def test_a_leaf_of_another_partition_is_refused() -> None:
    leaves = (leaf("leaf01"), leaf("leaf02", partition="other"))
    assert refusal(PAIR, leaves=leaves).reason == "LEAF_IN_OTHER_PARTITION"


def test_a_machine_that_moved_names_the_switches_it_left() -> None:
    before = [Cable("leaf03", "Ethernet0", MACHINE, nic(0)), Cable("leaf04", "Ethernet0", MACHINE, nic(1))]
    refused = refusal(PAIR, before=before)
    assert refused.reason == "MACHINE_MOVED"
    assert "leaf03, leaf04" in refused.message


def test_a_machine_may_change_ports_within_its_rack() -> None:
    before = [Cable("leaf01", "Ethernet0", MACHINE, nic(0)), Cable("leaf02", "Ethernet0", MACHINE, nic(1))]
    assert look(PAIR, before=before) == look(PAIR)


def test_another_machines_port_is_never_taken_over() -> None:
    refused = refusal(PAIR, taken={("leaf02", "Ethernet4"): OTHER})
    assert refused.reason == "PORT_TAKEN"
    assert OTHER in refused.message
    assert look(PAIR, taken={("leaf02", "Ethernet4"): MACHINE}) == look(PAIR)


def test_garbage_in_lldp_stays_out_of_messages() -> None:
    refused = refusal([Neighbour(nic(0), "\x1b[2J" + "x" * 300, "\x00")])
    assert "\x1b" not in refused.message
    assert len(refused.message) < 400


@given(
    st.lists(
        st.builds(
            Neighbour,
            st.integers(0, 9).map(nic),
            st.one_of(st.sampled_from([each.id for each in LEAVES]), st.text(max_size=20)),
            st.one_of(st.sampled_from(["Ethernet0", "Ethernet4", "Eth1", "Ethernet120"]), st.text(max_size=20)),
        )
    )
)
def test_whatever_is_accepted_keeps_the_rules(neighbours: list[Neighbour]) -> None:
    try:
        cabling = look(neighbours)
    except Refused:
        return
    by_leaf = {cable.switch_id: set[str]() for cable in cabling.cables}
    for cable in cabling.cables:
        by_leaf[cable.switch_id].add(cable.port)
    first, second = by_leaf.values()
    assert first == second
    assert set(by_leaf) in ({"leaf01", "leaf02"}, {"leaf03", "leaf04"})
    assert cabling == look(reversed(neighbours))


def test_host_names_compare_by_their_first_label() -> None:
    assert host_key("Leaf01.rack.example.") == host_key(" leaf01 ") == "leaf01"


@pytest.mark.parametrize("name", ["", ".", "leaf\x0001", "-leaf", "leaf-", "l\u00e9af", "\u0130", "x" * 64, "a b"])
def test_what_is_no_host_name_has_no_key(name: str) -> None:
    assert host_key(name) == ""
