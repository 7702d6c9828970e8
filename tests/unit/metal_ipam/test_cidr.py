"""Reading prefixes and addresses: strict, and with the probable meaning in the error."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st
from metal_ipam.cidr import contains, overlaps, parse_address, parse_prefix, parse_prefixes, probable_prefix
from metal_kit.errors import InvalidArgument

networks = st.one_of(
    st.builds(
        lambda address, length: ipaddress.IPv4Network((address, length), strict=False),
        st.integers(0, 2**32 - 1),
        st.integers(0, 32),
    ),
    st.builds(
        lambda address, length: ipaddress.IPv6Network((address, length), strict=False),
        st.integers(0, 2**128 - 1),
        st.integers(0, 128),
    ),
)
near = st.builds(
    lambda address, length: ipaddress.IPv4Network((0x0A000000 + address, length), strict=False),
    st.integers(0, 255),
    st.integers(24, 32),
)


@given(networks)
def test_the_canonical_form_is_read_as_it_is(network: ipaddress.IPv4Network | ipaddress.IPv6Network) -> None:
    assert parse_prefix(str(network), field="f") == network


@given(networks, st.integers(0, 2**128 - 1))
def test_host_bits_are_refused_with_the_prefix_they_lie_in(
    network: ipaddress.IPv4Network | ipaddress.IPv6Network, offset: int
) -> None:
    inside = network[offset % network.num_addresses]
    text = f"{inside}/{network.prefixlen}"
    if inside == network.network_address:
        return
    with pytest.raises(InvalidArgument) as error:
        parse_prefix(text, field="network.prefixes[0]")
    assert error.value.reason == "PREFIX_NOT_CANONICAL"
    assert error.value.metadata == {"canonical": str(network)}
    assert error.value.field == "network.prefixes[0]"


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("10.1.2.3/8", "10.0.0.0/8"),
        ("10.0.0.0/255.0.0.0", "10.0.0.0/8"),
        ("10.0.0.0/0.255.255.255", "10.0.0.0/8"),
        (" 10.0.0.0/8", "10.0.0.0/8"),
        ("10.000.000.000/8", "10.0.0.0/8"),
        ("10.0.0.1", "10.0.0.1/32"),
        ("2001:DB8:0:0::/32", "2001:db8::/32"),
        ("2001:db8::", "2001:db8::/128"),
    ],
)
def test_sloppy_spellings_are_understood_and_refused(text: str, meant: str) -> None:
    assert str(probable_prefix(text)) == meant
    with pytest.raises(InvalidArgument, match=f"probably {meant} was meant"):
        parse_prefix(text, field="f")


@pytest.mark.parametrize(
    "text", ["", "/", "10/8", "10.0.0.0/33", "::/129", "10.0.0.0/-1", "fe80::%eth0/64", "a", "1.2.3.256/8"]
)
def test_what_means_nothing_is_refused_as_such(text: str) -> None:
    with pytest.raises(InvalidArgument) as error:
        parse_prefix(text, field="f")
    assert error.value.reason == "PREFIX_INVALID"


@given(st.text(max_size=60))
def test_no_text_is_read_as_anything_but_its_own_canonical_form(text: str) -> None:
    try:
        prefix = parse_prefix(text, field="f")
    except InvalidArgument:
        return
    assert str(prefix) == text


def test_the_index_of_a_bad_prefix_is_named() -> None:
    with pytest.raises(InvalidArgument) as error:
        parse_prefixes(["10.0.0.0/8", "10.0.0.1/8"], field="network.prefixes")
    assert error.value.field == "network.prefixes[1]"


def test_addresses_are_read_in_any_spelling_but_without_mask_or_zone() -> None:
    assert str(parse_address("2001:DB8:0::1", field="f")) == "2001:db8::1"
    for text in ("10.0.0.1/24", "fe80::1%eth0", "10.0.0.01", "10.0.0", ""):
        with pytest.raises(InvalidArgument) as error:
            parse_address(text, field="f")
        assert error.value.reason == "ADDRESS_INVALID"


@given(st.lists(near, max_size=8))
def test_overlaps_are_found_exactly_when_there_is_one(prefixes: list[ipaddress.IPv4Network]) -> None:
    any_pair = any(a.overlaps(b) for i, a in enumerate(prefixes) for b in prefixes[i + 1 :])
    found = overlaps(prefixes)
    assert bool(found) == any_pair
    assert all(a.overlaps(b) for a, b in found if isinstance(a, ipaddress.IPv4Network))


def test_prefixes_of_both_families_never_overlap_and_contain_their_own() -> None:
    v4, v6 = ipaddress.ip_network("0.0.0.0/0"), ipaddress.ip_network("::/0")
    assert overlaps([v4, v6]) == []
    assert contains(v4, ipaddress.ip_address("10.0.0.1"))
    assert not contains(v6, ipaddress.ip_address("10.0.0.1"))
