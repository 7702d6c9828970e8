from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from metal_fabric.attachment import HeldPorts
from metal_fabric.cabling import Cable
from metal_fabric.ports import AdminState, LinkState, SwitchOs
from metal_fabric.problems import Refused
from metal_fabric.replace import check_migration, successor, translated
from metal_fabric.switch import Port, Switch, SwitchFacts, SwitchKind, SwitchMode
from metal_fabric.vlans import Vlan

FACTS = {os: SwitchFacts("mini", "r1", os, asn=7, pxe_vlan=4000) for os in SwitchOs}
SONIC = ("Ethernet0", "Ethernet4", "Ethernet6", "Ethernet120")
CUMULUS = ("swp1", "swp2s0", "swp2s1", "swp31")


def leaf(os: SwitchOs, *, name: str = "leaf01", down: str = "", **more: Any) -> Switch:
    names = {SwitchOs.SONIC: SONIC, SwitchOs.CUMULUS: CUMULUS, SwitchOs.OTHER: ("a", "b", "c", "u")}[os]
    ports = {
        each: Port(each, f"{os.value}-{each}", each == names[-1], AdminState(LinkState.DOWN if each == down else None))
        for each in names
    }
    return Switch(name, FACTS[os], ports, **more)


def test_ports_of_another_system_are_found_by_their_lanes() -> None:
    there = translated(leaf(SwitchOs.SONIC), leaf(SwitchOs.CUMULUS), SONIC[:3])
    assert there == dict(zip(SONIC[:3], CUMULUS[:3], strict=True))
    back = translated(leaf(SwitchOs.CUMULUS), leaf(SwitchOs.SONIC), CUMULUS[:3])
    assert back == dict(zip(CUMULUS[:3], SONIC[:3], strict=True))
    assert translated(leaf(SwitchOs.OTHER), leaf(SwitchOs.OTHER), ["a"]) == {"a": "a"}


def test_a_port_without_a_counterpart_is_refused() -> None:
    whole = replace(leaf(SwitchOs.CUMULUS), ports={name: Port(name) for name in ("swp1", "swp2")})
    cases = [
        (leaf(SwitchOs.SONIC), whole, "Ethernet6", "PORT_NOT_TRANSLATABLE"),
        (whole, leaf(SwitchOs.SONIC), "swp9", "PORT_NOT_TRANSLATABLE"),
        (leaf(SwitchOs.SONIC), leaf(SwitchOs.OTHER), "Ethernet0", "PORT_NOT_TRANSLATABLE"),
        (leaf(SwitchOs.SONIC), leaf(SwitchOs.SONIC), "Ethernet120", "PORT_IS_UPLINK"),
    ]
    for old, new, port, reason in cases:
        with pytest.raises(Refused) as caught:
            translated(old, new, [port])
        assert (caught.value.reason, caught.value.field) == (reason, "hello.ports")
        assert port in caught.value.message


def test_a_successor_has_the_new_boxs_ports_and_the_old_ones_wishes() -> None:
    known = leaf(SwitchOs.SONIC, down="Ethernet6", description="left", mode=SwitchMode.REPLACE)
    merged, names = successor(known, leaf(SwitchOs.CUMULUS), connected={"Ethernet0"})
    assert names == {"Ethernet0": "swp1"}
    assert (merged.facts.os, merged.description, merged.mode) == (SwitchOs.CUMULUS, "left", SwitchMode.OPERATIONAL)
    assert {name: port.admin.wish for name, port in merged.ports.items() if port.admin.wish} == {
        "swp2s1": LinkState.DOWN
    }
    assert merged.ports["swp1"].alias == "cumulus-swp1"


def test_a_successor_keeps_to_the_rules_of_every_registration() -> None:
    known = leaf(SwitchOs.SONIC, mode=SwitchMode.REPLACE)
    elsewhere = replace(leaf(SwitchOs.SONIC), facts=replace(FACTS[SwitchOs.SONIC], rack="r2"))
    with pytest.raises(Refused) as caught:
        successor(known, elsewhere, connected={"Ethernet0"})
    assert caught.value.reason == "CONNECTED_SWITCH_MOVED"


OLD, NEW = leaf(SwitchOs.SONIC), leaf(SwitchOs.SONIC, name="leaf03")
GOOD: dict[str, Any] = {
    "cables": [Cable("leaf01", "Ethernet0", "m", "mac")],
    "new_vlans": [Vlan(20, 1001, released=3)],
    "new_applied": 3,
    "pinned": [],
    "leaving": [],
    "held": [],
}


@pytest.mark.parametrize(
    ("new", "change", "reason"),
    [
        (OLD, {}, "MIGRATION_TO_ITSELF"),
        (replace(NEW, kind=SwitchKind.SPINE), {}, "SWITCH_IS_NO_LEAF"),
        (replace(NEW, facts=replace(NEW.facts, partition="other")), {}, "SWITCH_IN_OTHER_PARTITION"),
        (replace(NEW, facts=replace(NEW.facts, rack="r2")), {}, "SWITCH_IN_OTHER_RACK"),
        (NEW, {"cables": [Cable("leaf03", "Ethernet0", "m", "mac")]}, "MIGRATION_TARGET_IN_USE"),
        (NEW, {"new_vlans": [Vlan(20, 1001)]}, "MIGRATION_TARGET_BEHIND"),
        (NEW, {"new_applied": 2}, "MIGRATION_TARGET_BEHIND"),
        (NEW, {"held": [HeldPorts("m", ("Ethernet0",), 4)]}, "MIGRATION_TARGET_BEHIND"),
        (NEW, {"pinned": ["leaf01"]}, "SWITCH_PINNED"),
        (NEW, {"leaving": ["m"]}, "DETACHMENT_UNCONFIRMED"),
    ],
)
def test_each_reason_against_a_migration_has_its_name(new: Switch, change: dict[str, Any], reason: str) -> None:
    check_migration(OLD, NEW, **GOOD)
    with pytest.raises(Refused) as caught:
        check_migration(OLD, new, **(GOOD | change))
    assert caught.value.reason == reason
