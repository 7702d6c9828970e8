from __future__ import annotations

from ipaddress import ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st
from metal_fabric.filters import MAX_VNI, PortRole, minimal, wish
from metal_fabric.problems import Refused

# Few addresses, so that prefixes meet, nest and are siblings.
V4 = st.builds(lambda n, bits: str(ip_network((0x0A000000 + (n << 4), bits), strict=False)), *[st.integers(0, 31)] * 1,
               st.integers(24, 32))  # fmt: skip
V6 = st.builds(lambda n, bits: str(ip_network(((0xFD << 120) + n, bits), strict=False)), st.integers(0, 255),
               st.integers(120, 128))  # fmt: skip


def addresses(prefixes: list[str] | tuple[str, ...]) -> set[str]:
    return {str(address) for prefix in prefixes for address in ip_network(prefix)}


@given(st.lists(st.one_of(V4, V6), max_size=12))
def test_the_minimal_set_covers_the_same_addresses_with_no_more_prefixes(prefixes: list[str]) -> None:
    compact = minimal(prefixes)
    assert addresses(compact) == addresses(prefixes)
    assert len(compact) <= len(set(prefixes))
    assert sum(ip_network(each).num_addresses for each in compact) == len(addresses(compact))


@given(st.lists(st.one_of(V4, V6), max_size=12), st.randoms())
def test_the_order_of_prefixes_does_not_matter(prefixes: list[str], random: object) -> None:
    shuffled = list(prefixes)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert minimal(shuffled) == minimal(prefixes) == minimal(minimal(prefixes))


def test_siblings_merge_and_nested_prefixes_vanish() -> None:
    prefixes = ["fd00::1/128", "10.0.0.128/25", "10.0.0.0/25", "10.0.0.7/32", "192.168.0.1/32", "fd00::/128"]
    assert minimal(prefixes) == ("10.0.0.0/24", "192.168.0.1/32", "fd00::/127")


@pytest.mark.parametrize(
    "text", ["", "10.0.0.1/24", "10.0.0.0", "10.0.0.0/33", "fe80::%eth0/64", "x", "10.0.0.0/255.0.0.0x"]
)
def test_what_is_no_canonical_prefix_is_named(text: str) -> None:
    with pytest.raises(Refused) as caught:
        minimal(["10.0.0.0/8", text])
    assert caught.value.reason == "PREFIX_INVALID"
    assert caught.value.field == "allowed_prefixes[1]"


@pytest.mark.parametrize(
    ("role", "vrf", "vnis", "reason"),
    [
        (PortRole.MACHINE, 0, [], "VRF_MISSING"),
        (PortRole.MACHINE, MAX_VNI + 1, [], "VRF_MISSING"),
        (PortRole.MACHINE, 7, [7], "VNIS_UNEXPECTED"),
        (PortRole.FIREWALL, 7, [], "VRF_UNEXPECTED"),
        (PortRole.FIREWALL, 0, [0], "VNI_INVALID"),
        (PortRole.FIREWALL, 0, [MAX_VNI + 1], "VNI_INVALID"),
        (PortRole.UPLINK, 0, [], "ROLE_INVALID"),
        (PortRole.UNPROVISIONED, 0, [], "ROLE_INVALID"),
    ],
)
def test_a_wish_that_makes_no_sense_is_refused(role: PortRole, vrf: int, vnis: list[int], reason: str) -> None:
    with pytest.raises(Refused) as caught:
        wish(role, vrf, [], vnis)
    assert caught.value.reason == reason


def test_equal_wishes_have_one_form() -> None:
    one = wish(PortRole.FIREWALL, 0, ["10.0.0.1/32", "10.0.0.0/32"], [9, 3, 9])
    assert one == wish(PortRole.FIREWALL, 0, ["10.0.0.0/31"], [3, 9])
    assert one.vnis == (3, 9)
