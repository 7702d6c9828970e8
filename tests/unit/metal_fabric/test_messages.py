from __future__ import annotations

import pytest
from metal_fabric.attachment import Attachment, Leaf
from metal_fabric.desired import desired_state
from metal_fabric.filters import PortRole, Wish
from metal_fabric.messages import attachment_message, desired_message, digest_of, switch_of_hello
from metal_fabric.ports import LinkState, SwitchOs
from metal_fabric.problems import Exhausted, Invalid, Refused
from metal_fabric.refusals import answered, problem_of
from metal_fabric.switch import Port, Switch, SwitchFacts
from metal_kit.errors import FailedPrecondition, InvalidArgument, ResourceExhausted
from metalplane.fabric.v1 import agent_pb2, switch_pb2

LEAF = Switch("leaf01", SwitchFacts("mini", "r1", SwitchOs.SONIC, asn=7), {"Ethernet0": Port("Ethernet0")})


def test_the_digest_covers_the_state_and_not_its_number() -> None:
    message = desired_message(desired_state(LEAF, {}, {}))
    digest = digest_of(message)
    message.generation, message.hash = 9, digest
    assert digest_of(message) == digest
    assert len(bytes.fromhex(digest)) == 32
    message.ports[0].allowed_prefixes.append("10.0.0.0/8")
    assert digest_of(message) != digest


def test_a_desired_state_is_written_in_full() -> None:
    wishes = {"Ethernet0": Wish(PortRole.MACHINE, 20, ("10.0.0.0/8",))}
    message = desired_message(desired_state(LEAF, wishes, {20: 1001}))
    port = message.ports[0]
    assert (port.role, port.vrf, port.mtu, list(port.allowed_prefixes), port.admin_state) == (
        switch_pb2.PORT_ROLE_MACHINE, "Vrf20", 9000, ["10.0.0.0/8"], switch_pb2.PORT_STATE_UNSPECIFIED,
    )  # fmt: skip
    assert [(vrf.name, vrf.vni, vrf.vlan) for vrf in message.vrfs] == [("Vrf20", 20, 1001)]


def test_an_attachment_lists_each_cable_and_hides_an_owner_that_has_left() -> None:
    leaves = (Leaf("leaf01", ("Ethernet0", "Ethernet4"), 2, 2), Leaf("leaf02", ("Ethernet0", "Ethernet4"), 3, 3))
    message = attachment_message(Attachment("m", owner="a", leaving=True, leaves=leaves))
    assert (message.allocation, message.confirmed) == ("", True)
    assert [(leaf.switch_id, leaf.port, leaf.wanted_generation) for leaf in message.leaves] == [
        ("leaf01", "Ethernet0", 2), ("leaf01", "Ethernet4", 2), ("leaf02", "Ethernet0", 3), ("leaf02", "Ethernet4", 3),
    ]  # fmt: skip
    assert not message.leaves[0].HasField("seen_time")


def test_a_hello_becomes_a_switch() -> None:
    hello = agent_pb2.Hello(switch_id="leaf01", partition="mini", rack="r1", os=switch_pb2.SWITCH_OS_CUMULUS, asn=7)
    hello.ports.add(name="swp1", alias="one", uplink=True, state=switch_pb2.PORT_STATE_DOWN)
    switch = switch_of_hello(hello)
    assert switch.facts.os is SwitchOs.CUMULUS
    port = switch.ports["swp1"]
    assert (port.alias, port.uplink, port.admin.actual, port.admin.wish) == ("one", True, LinkState.DOWN, None)
    hello.ports.add(name="swp1")
    with pytest.raises(Invalid):
        switch_of_hello(hello)


@pytest.mark.parametrize(
    ("refused", "problem"),
    [(Refused, FailedPrecondition), (Invalid, InvalidArgument), (Exhausted, ResourceExhausted)],
)
def test_each_kind_of_refusal_has_its_code(refused: type[Refused], problem: type[Exception]) -> None:
    refusal = refused("NO_WAY", "because", field="port")
    assert (problem_of(refusal).reason, problem_of(refusal).field) == ("NO_WAY", "port")
    with pytest.raises(problem), answered():
        raise refusal
