"""Where a BMC listens: `host`, `host:port` or `[v6]:port`, the port of its protocol when left out."""

from __future__ import annotations

import re
from ipaddress import IPv6Address, ip_address

RMCP_PORT = 623
"""IPMI 2.0 §13.1.2."""
HTTPS_PORT = 443
_NAME = re.compile(r"(?=.{1,253}$)[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*", re.ASCII)


def parse(text: str, default_port: int = RMCP_PORT) -> tuple[str, int]:
    """Host (canonical address or lower-case name) and port. Raises ValueError with the reason."""
    host, port = _split(text.strip(), str(default_port))
    if not port.isascii() or not port.isdigit() or not 1 <= int(port) <= 65535:
        raise ValueError("the port must be a number from 1 to 65535")
    try:
        return str(ip_address(host)), int(port)
    except ValueError:
        name = host.lower()
        # A name of digits and dots only is a mistyped address.
        if not _NAME.fullmatch(name) or name.replace(".", "").isdigit():
            raise ValueError("must be an IP address or a host name, with an optional :port") from None
        return name, int(port)


def show(host: str, port: int) -> str:
    """`host:port`, IPv6 in brackets; empty when there is no host."""
    if not host:
        return ""
    return f"[{host}]:{port}" if _is_v6(host) else f"{host}:{port}"


def _split(text: str, default: str) -> tuple[str, str]:
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise ValueError("an IPv6 address with a port is written [address]:port")
        return host, rest[1:] if rest else default
    if _is_v6(text):
        return text, default
    host, colon, port = text.partition(":")
    return host, port if colon else default


def _is_v6(text: str) -> bool:
    try:
        return isinstance(ip_address(text), IPv6Address)
    except ValueError:
        return False
