"""Ranges of addresses that are looked through, and the ping that is sent there."""

from __future__ import annotations

import contextlib
import re
from ipaddress import IPv4Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st
from metal_bmc.sources.ranges import MOST_ADDRESSES, parse_ranges


def shown(*texts: str) -> list[str]:
    return [str(each) for each in parse_ranges(texts)]


def test_networks_ranges_and_single_addresses_are_read_each_address_once() -> None:
    assert shown("10.1.0.0/30", "10.1.0.2-10.1.0.4", "10.1.0.9") == [
        "10.1.0.1", "10.1.0.2", "10.1.0.3", "10.1.0.4", "10.1.0.9",
    ]  # fmt: skip
    assert shown("10.1.0.8/31", "10.1.0.9/32") == ["10.1.0.8", "10.1.0.9"]
    assert shown("2001:db8::/127", "2001:db8::5 - 2001:db8::6") == [
        "2001:db8::", "2001:db8::1", "2001:db8::5", "2001:db8::6",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("10.0.0.0/8", "10.0.0.0/8: 16777214 addresses make it more than 65536 in all"),
        ("2001:db8::/64", "2001:db8::/64: 18446744073709551616 addresses make it more than 65536 in all"),
        ("0.0.0.0-255.255.255.255", "4294967296 addresses make it more than 65536 in all"),
        ("10.1.0.5/24", "10.1.0.5/24: 10.1.0.5/24 has host bits set"),
        ("10.1.0.9-10.1.0.5", "the second address has to follow the first"),
        ("10.1.0.9-2001:db8::1", "the second address has to follow the first"),
        ("bmc-1", "bmc-1: write a range as 10.1.0.0/24, as 10.1.0.5-10.1.0.20, or one address"),
        ("10.1.0.5-", "write a range as"),
    ],
)
def test_what_is_no_range_or_too_large_a_one_is_refused_by_name(text: str, error: str) -> None:
    with pytest.raises(ValueError, match=re.escape(error)):
        parse_ranges(["10.9.0.1", text])


def test_ranges_count_together() -> None:
    assert len(parse_ranges(["10.1.0.0-10.1.255.255"])) == MOST_ADDRESSES
    with pytest.raises(ValueError, match=r"^10\.2\.0\.1: 1 addresses make it more"):
        parse_ranges(["10.1.0.0-10.1.255.255", "10.2.0.1"])


@given(st.integers(0, 2**32 - 300), st.integers(0, 299))
def test_a_range_has_its_ends_and_all_between(first: int, more: int) -> None:
    ends = IPv4Address(first), IPv4Address(first + more)
    found = parse_ranges([f"{ends[0]}-{ends[1]}"])
    assert (found[0], found[-1], len(found)) == (*ends, more + 1)
    assert all(ip_address(str(each)) == each for each in found)


@given(st.text(max_size=40))
def test_any_text_is_read_or_refused(text: str) -> None:
    with contextlib.suppress(ValueError):
        assert parse_ranges([text])
