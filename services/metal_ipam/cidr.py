"""Prefixes and addresses as text, read strictly.

Only the canonical form of a prefix is accepted, so that one prefix has one spelling everywhere; the error names the
form that was probably meant. Nothing is corrected silently: 10.0.0.1/24 may be a slip in the length as well as in the
host bits. This module knows nothing of networks or of what is free.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Sequence
from typing import TypeAlias

from metal_kit.errors import InvalidArgument

Prefix: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network
Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address

_DECIMAL_V4 = re.compile(r"(\d{1,3})\.(\d{1,3})\.(\d{1,3})\.(\d{1,3})(/.*)?", re.ASCII)


def parse_prefix(text: str, *, field: str) -> Prefix:
    """The prefix that `text` spells canonically: RFC 4632 for IPv4, RFC 5952 for IPv6, with its length.

    Raises:
        InvalidArgument: reason PREFIX_NOT_CANONICAL with the probable form as metadata `canonical`, or PREFIX_INVALID.
    """
    canonical = probable_prefix(text)
    if canonical is None:
        raise InvalidArgument(
            "PREFIX_INVALID", f"{text!r} is no prefix; one looks like 10.1.0.0/16 or 2001:db8::/48", field=field
        )
    if text != str(canonical):
        raise InvalidArgument(
            "PREFIX_NOT_CANONICAL",
            f"{text!r} is not canonical; probably {canonical} was meant",
            field=field,
            metadata={"canonical": str(canonical)},
        )
    return canonical


def parse_prefixes(texts: Iterable[str], *, field: str) -> tuple[Prefix, ...]:
    """Each text by `parse_prefix`, with its index in the field's name."""
    return tuple(parse_prefix(text, field=f"{field}[{index}]") for index, text in enumerate(texts))


def probable_prefix(text: str) -> Prefix | None:
    """The prefix that sloppy text probably means, host bits cleared; None when it cannot be guessed.

    A netmask instead of a length, a missing length (one address), upper case, spaces and leading zeros are understood.
    """
    sloppy = _without_leading_zeros(text.strip())
    if "%" in sloppy:  # A zone (RFC 4007) belongs to an interface, never to a prefix.
        return None
    try:
        return ipaddress.ip_network(sloppy, strict=False)
    except ValueError:
        return None


def parse_address(text: str, *, field: str) -> Address:
    """The address that `text` spells; any spelling of IPv6 will do, a mask or a zone will not.

    Raises:
        InvalidArgument: reason ADDRESS_INVALID.
    """
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        address = None
    if address is None or (isinstance(address, ipaddress.IPv6Address) and address.scope_id is not None):
        raise InvalidArgument(
            "ADDRESS_INVALID", f"{text!r} is no address; one looks like 10.1.0.7 or 2001:db8::7", field=field
        )
    return address


def overlaps(prefixes: Sequence[Prefix]) -> list[tuple[Prefix, Prefix]]:
    """Pairs of neighbours among `prefixes` that overlap, sorted; equal ones count. Empty iff no two overlap at all."""
    pairs: list[tuple[Prefix, Prefix]] = []
    for family in (4, 6):
        # Sorted by address and then by length, an overlapping pair implies one between the outermost prefix so far and
        # the next: a prefix is inside another or apart from it, there is nothing in between.
        members = sorted((p for p in prefixes if p.version == family), key=_by_address)
        outer: Prefix | None = None
        for prefix in members:
            if outer is not None and int(prefix.network_address) <= int(outer.broadcast_address):
                pairs.append((outer, prefix))
            else:
                outer = prefix
    return pairs


def _by_address(prefix: Prefix) -> tuple[int, int]:
    return int(prefix.network_address), prefix.prefixlen


def place(prefix: Prefix) -> tuple[int, int, int]:
    """Sorts prefixes as the database does: IPv4 first, then by address, the shorter length first."""
    return (prefix.version, *_by_address(prefix))


def contains(prefix: Prefix, address: Address) -> bool:
    """Whether the address lies in the prefix; of different families it does not."""
    return prefix.version == address.version and address in prefix


def _without_leading_zeros(text: str) -> str:
    match = _DECIMAL_V4.fullmatch(text)
    if match is None:
        return text
    return ".".join(str(int(part)) for part in match.groups()[:4]) + (match.group(5) or "")
