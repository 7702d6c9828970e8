"""Golden files: the desired state of whole leaves, field by field, as it goes over the wire.

After a wanted change of the desired state run the tests once with METALPLANE_ACCEPT_GOLDEN=1 and review the difference.
Every leaf gets a new generation by such a change.
"""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from google.protobuf.json_format import MessageToDict
from metal_fabric.desired import DesiredState, desired_state
from metal_fabric.filters import PortRole, Wish
from metal_fabric.messages import desired_message, desired_of, digest_of
from metal_fabric.pinning import held
from metal_fabric.ports import AdminState, Fec, LinkState, SwitchOs
from metal_fabric.settings import DriftPolicy, PortSettings, Settings
from metal_fabric.switch import Port, Switch, SwitchFacts

GOLDEN = Path(__file__).parent / "golden"
RED = Wish(PortRole.MACHINE, 104001, ("10.240.0.0/12", "2001:db8:7::/48"))
BLUE = Wish(PortRole.MACHINE, 104009, ("10.240.0.0/12",))
FIREWALL = Wish(PortRole.FIREWALL, 0, ("10.0.2.1/32",), (104001, 104009, 104010))
VLANS = {104001: 1001, 104009: 1003}
SETTINGS = Settings(
    pxe_vlan=3000,
    management_gateway="192.0.2.1",
    management_routes=("10.8.0.0/16", "10.9.0.0/16"),
    additional_bridge_ports=("Ethernet24",),
    source_loopback=True,
    bgp_keepalive=2,
    bgp_hold=8,
    drift_policy=DriftPolicy.REPORT,
    confirm_seconds=60,
    ports=(PortSettings("Ethernet0", 25_000, Fec.RS), PortSettings("Ethernet120", fec=Fec.NONE)),
)


def sonic() -> Switch:
    """Eight ports: one broken out in two, one switched off, one uplink."""
    names = [
        "Ethernet0",
        "Ethernet4",
        "Ethernet6",
        "Ethernet8",
        "Ethernet12",
        "Ethernet16",
        "Ethernet24",
        "Ethernet120",
    ]
    ports = {
        name: Port(
            name, uplink=name == "Ethernet120", admin=AdminState(LinkState.DOWN if name == "Ethernet16" else None)
        )
        for name in names
    }
    facts = SwitchFacts("mini", "r1", SwitchOs.SONIC, loopback="10.0.0.11", asn=4200000011, pxe_vlan=4000)
    return Switch("leaf01", facts, ports)


def cumulus() -> Switch:
    """The same places on the other system."""
    names = ["swp1", "swp2s0", "swp2s1", "swp3", "swp31"]
    facts = SwitchFacts("mini", "r1", SwitchOs.CUMULUS, loopback="10.0.0.12", asn=4200000012, pxe_vlan=4000)
    return Switch("leaf02", facts, {name: Port(name, uplink=name == "swp31") for name in names})


WISHES = {"Ethernet0": RED, "Ethernet4": RED, "Ethernet6": BLUE, "Ethernet8": FIREWALL, "Ethernet12": Wish()}
EVERYTHING = desired_state(sonic(), WISHES, VLANS, occupied=WISHES, settings=SETTINGS)
# A machine that waits, one of a tenant, a firewall, and nothing else but uplinks.
SMALL = {
    "Ethernet0": Wish(),
    "Ethernet4": replace(RED, allowed_prefixes=RED.allowed_prefixes[:1]),
    "Ethernet8": FIREWALL,
}
# Eight lanes a port, of which one is in two parts and one in eight.
WIDE = ("swp1", "swp2s0", "swp2s1", *(f"swp3s{part}" for part in range(8)), "swp31")


def small() -> Switch:
    """Three ports and two uplinks."""
    names = ("Ethernet0", "Ethernet4", "Ethernet8", "Ethernet120", "Ethernet124")
    return replace(sonic(), ports={name: Port(name, uplink=name in names[3:]) for name in names})


LEAVES: dict[str, DesiredState] = {
    "small": desired_state(small(), SMALL, VLANS, occupied=SMALL),
    "cumulus-wide": desired_state(
        replace(cumulus(), ports={name: Port(name, uplink=name == "swp31") for name in WIDE}),
        {"swp2s1": RED, "swp3s7": BLUE},
        VLANS,
        occupied={"swp2s1", "swp3s7"},
        settings=Settings(source_loopback=True, management_gateway="192.0.2.1", management_routes=("10.8.0.0/16",)),
    ),
    "no-tenants": desired_state(sonic(), {}, {}),
    "everything": EVERYTHING,
    "cumulus": desired_state(cumulus(), {"swp2s0": RED, "swp2s1": BLUE}, VLANS, occupied={"swp2s0", "swp2s1"}),
    # Red's second machine has gone and the firewall has come since; the settings are those of then.
    "pinned": held(
        EVERYTHING,
        desired_state(
            sonic(), {"Ethernet0": RED, "Ethernet6": BLUE, "Ethernet12": FIREWALL}, VLANS, settings=Settings()
        ),
        VLANS,
    ),
}


@pytest.mark.parametrize("name", LEAVES)
def test_a_leafs_desired_state_is_exactly_the_golden_one(name: str) -> None:
    message = desired_message(LEAVES[name])
    message.hash = digest_of(message)
    text = json.dumps(MessageToDict(message, preserving_proto_field_name=True), indent=1) + "\n"
    path = GOLDEN / f"{name}.json"
    if os.environ.get("METALPLANE_ACCEPT_GOLDEN") == "1":
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", LEAVES)
def test_a_desired_state_survives_its_message(name: str) -> None:
    assert desired_of(desired_message(LEAVES[name])) == LEAVES[name]
