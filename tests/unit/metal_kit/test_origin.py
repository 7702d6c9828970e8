"""Where a call comes from, and whose word is taken for it."""

from __future__ import annotations

import pytest
from metal_kit.identity import ANONYMOUS, Caller
from metal_kit.origin import EDGE, neighbourhood, origin

TOOL = Caller("client", "anna")


@pytest.mark.parametrize(
    ("peer", "address"),
    [
        ("ipv4:192.0.2.1:5000", "192.0.2.1"),
        ("ipv6:%5B2001:db8::1%5D:5000", "2001:db8::1"),
        ("ipv6:[fe80::1%eth0]:5000", "fe80::1"),
        ("unix:/run/socket", "unix"),
        ("ipv4:nonsense:1", "unknown"),
        ("", "unknown"),
    ],
)
def test_the_address_of_the_other_end_is_read_from_what_grpc_calls_it(peer: str, address: str) -> None:
    assert origin(peer, TOOL) == address


def test_only_the_edge_is_believed_where_a_call_came_from() -> None:
    assert origin("ipv4:192.0.2.1:5000", EDGE, "203.0.113.7") == "203.0.113.7"
    assert origin("ipv4:192.0.2.1:5000", EDGE, "not an address") == "unknown"
    assert origin("ipv4:192.0.2.1:5000", EDGE) == "192.0.2.1"
    for liar in (TOOL, ANONYMOUS, Caller("service", "edge"), Caller("user", "edge")):
        assert origin("ipv4:192.0.2.1:5000", liar, "203.0.113.7") == "192.0.2.1"


def test_a_host_counts_once_whatever_address_of_its_network_it_takes() -> None:
    assert neighbourhood("2001:db8::1") == neighbourhood("2001:db8::ffff:1") == "2001:db8::/64"
    assert neighbourhood("2001:db8:0:1::1") != neighbourhood("2001:db8::1")
    assert neighbourhood("192.0.2.1") != neighbourhood("192.0.2.2")
    assert neighbourhood("::ffff:192.0.2.1") == "192.0.2.1"
    assert neighbourhood("unix") == "unix"
