"""Where a call comes from: the address of the connection, or the one that the edge says it came to the edge from.

Only the edge is believed (`spiffe://metalplane/client/edge`, which `metal-init` hands to nobody else): it overwrites
what a client wrote into the header.
"""

from __future__ import annotations

import ipaddress
from functools import lru_cache
from urllib.parse import unquote

from metal_kit.identity import Caller

FORWARDED_FOR = "x-forwarded-for"
EDGE = Caller("client", "edge")
UNKNOWN = "unknown"


def origin(peer: str, connection: Caller, forwarded: str = "") -> str:
    """The address that a call comes from, without a port.

    `peer` is what gRPC calls the other end (`ipv4:192.0.2.1:5000`), `connection` whom its certificate names.
    """
    if forwarded and connection == EDGE:
        return _address(forwarded.strip()) or UNKNOWN
    return _of_peer(peer)


@lru_cache(maxsize=4096)
def _of_peer(peer: str) -> str:
    """Of a connection, which mostly has many calls."""
    kind, _, rest = unquote(peer).partition(":")
    if kind not in {"ipv4", "ipv6"}:
        return kind or UNKNOWN
    return _address(rest.rpartition(":")[0].strip("[]").partition("%")[0]) or UNKNOWN


def neighbourhood(address: str) -> str:
    """What counts as one source: an IPv4 address, or the /64 that an IPv6 host may choose its addresses from."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv4Address):
        return address
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.ip_network((parsed, 64), strict=False))


def _address(text: str) -> str:
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        return ""
