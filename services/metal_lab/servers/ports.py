"""Free TCP ports on loopback.

The port is only free at the moment of asking: another process may take it before the server binds it. A caller that
starts a server therefore has to treat "address in use" as a reason to ask again; `Postgres` and `Nats` do. To make that
rare, ports come from below those that the kernel gives to outgoing connections, of which a plane opens hundreds.
"""

from __future__ import annotations

import random
import socket
from pathlib import Path

LOOPBACK = "127.0.0.1"
_EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")
_EPHEMERAL_BEGINS = 32768
_FIRST = 20000
_ROOM = 2000
_TRIES = 200


def free_port() -> int:
    """A TCP port on 127.0.0.1 that nothing listened on a moment ago."""
    return free_ports(1)[0]


def is_free(port: int, kind: socket.SocketKind = socket.SOCK_STREAM) -> bool:
    """Whether a server could bind `port` on 127.0.0.1 now (connections in TIME_WAIT do not count)."""
    with socket.socket(socket.AF_INET, kind) as probe:
        if kind == socket.SOCK_STREAM:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
        return True


def free_ports(count: int) -> list[int]:
    """Different free ports."""
    last = _ephemeral_begins() - 1
    found: set[int] = set()
    if last - _FIRST >= _ROOM:
        for _ in range(_TRIES + count):
            if len(found) == count:
                return list(found)
            port = random.randint(_FIRST, last)
            if port not in found and is_free(port):
                found.add(port)
    return [*found, *_any_ports(count - len(found))]


def _ephemeral_begins() -> int:
    try:
        return int(_EPHEMERAL.read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return _EPHEMERAL_BEGINS


def _any_ports(count: int) -> list[int]:
    """Whatever the kernel has; all are held until the last has been found, so that they differ."""
    probes = [socket.socket(socket.AF_INET, socket.SOCK_STREAM) for _ in range(count)]
    try:
        for probe in probes:
            probe.bind((LOOPBACK, 0))
        return [int(probe.getsockname()[1]) for probe in probes]
    finally:
        for probe in probes:
            probe.close()
