"""Ranges of addresses that BMCs may be in, as somebody lists them. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from ipaddress import ip_address, ip_network

from metal_bmc.sources.lease import Address

MOST_ADDRESSES = 65536
"""Of all ranges together: at 50 a second one pass takes 22 minutes. Whoever lists more means something else."""


def parse_ranges(texts: Iterable[str]) -> Sequence[Address]:
    """The addresses of `10.1.0.0/24`, `10.1.0.5-10.1.0.20` and single ones, each once, in the order of the list.

    A network's own and its broadcast address are left out. Raises ValueError that names the range and what to do.
    """
    found: dict[Address, None] = {}
    for text in texts:
        first, last = _bounds(text)
        count = int(last) - int(first) + 1
        if len(found) + count > MOST_ADDRESSES:
            raise ValueError(
                f"{text}: {count} addresses make it more than {MOST_ADDRESSES} in all; list only networks of BMCs"
            )
        kind = type(first)
        found.update(dict.fromkeys(kind(number) for number in range(int(first), int(last) + 1)))
    return tuple(found)


def _bounds(text: str) -> tuple[Address, Address]:
    if "/" in text:
        try:
            network = ip_network(text)
        except ValueError as error:
            raise ValueError(f"{text}: {error}") from None
        first, last = network[0], network[-1]
        if network.version == 4 and network.prefixlen < 31:
            return first + 1, last - 1
        return first, last
    begin, dash, end = (part.strip() for part in text.partition("-"))
    try:
        first, last = ip_address(begin), ip_address(end if dash else begin)
    except ValueError:
        raise ValueError(f"{text}: write a range as 10.1.0.0/24, as 10.1.0.5-10.1.0.20, or one address") from None
    if type(first) is not type(last) or int(first) > int(last):
        raise ValueError(f"{text}: the second address has to follow the first")
    return first, last
