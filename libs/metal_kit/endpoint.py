"""Addresses as people write them. Apart from the settings, whose library takes a tenth of a second to load."""

from __future__ import annotations


def parse_endpoint(text: str) -> tuple[str, int]:
    """Host and port of `host:port` or `[v6]:port`; ValueError says what is wrong. Port 0 means "any free one"."""
    host, colon, port = text.rpartition(":")
    if not colon or not host or (":" in host and not (host.startswith("[") and host.endswith("]"))):
        raise ValueError(f"{text!r} must be host:port or [v6-address]:port")
    if not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ValueError(f"port of {text!r} must be a number from 0 to 65535")
    return host.strip("[]"), int(port)
