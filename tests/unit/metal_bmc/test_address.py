from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from metal_bmc import address


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("192.0.2.7", ("192.0.2.7", 623)),
        ("192.0.2.7:6230", ("192.0.2.7", 6230)),
        ("2001:DB8::7", ("2001:db8::7", 623)),
        ("[2001:db8:0::7]:6230", ("2001:db8::7", 6230)),
        ("[2001:db8::7]", ("2001:db8::7", 623)),
        ("BMC7.example.org", ("bmc7.example.org", 623)),
        ("bmc7:1623", ("bmc7", 1623)),
    ],
)
def test_addresses_are_read_in_their_canonical_form(text: str, expected: tuple[str, int]) -> None:
    assert address.parse(text) == expected
    assert address.parse(address.show(*expected)) == expected


@pytest.mark.parametrize(
    "text",
    ["", ":623", "192.0.2.300", "192.0.2", "192.0.2.7:", "192.0.2.7:0", "192.0.2.7:65536", "192.0.2.7:-1", "[::1",
     "[::1]x",
     "a b", "-bmc", "bmc..example", "user@bmc", "bmc/path", "bmc:1:2", "٣.2.2.2", "bmc:٦٢٣"],
)  # fmt: skip
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"must be|is written"):
        address.parse(text)


@given(st.ip_addresses(), st.integers(1, 65535))
def test_every_address_and_port_is_shown_and_read_back(ip: object, port: int) -> None:
    assert address.parse(address.show(str(ip), port)) == (str(ip), port)


@given(st.text(max_size=40))
def test_any_text_is_an_address_or_a_value_error(text: str) -> None:
    try:
        host, port = address.parse(text)
    except ValueError:
        return
    assert address.parse(address.show(host, port)) == (host, port)
