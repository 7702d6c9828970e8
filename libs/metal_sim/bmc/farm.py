"""Thousands of simulated BMCs in one process: each has a loopback address of its own, and all share one UDP socket.

The socket is bound to every address of the host, and IP_PKTINFO tells which one a datagram was for: neither a file
descriptor nor a transport a BMC. What was not sent to a BMC's address is dropped, so that nothing outside of the host
reaches a farm. Linux only, whose loopback interface takes all of 127.0.0.0/8.

A BMC takes about 4 KB, and 3 KB more while somebody is logged in (bench/bmc.py measures it); there is no thread and no
task a BMC.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import uuid
from collections.abc import Iterable, Iterator
from ipaddress import IPv4Address, IPv4Network
from typing import Any

from metal_sim.bmc.endpoint import SimulatedBmc

_Address = tuple[str, int]
_LOOPBACK = IPv4Network("127.0.0.0/8")
NETWORK = IPv4Network("127.16.0.0/12")
"""Where a farm is by default: a million addresses that nothing else uses."""
# Interface 0, the address that it is (to be) sent from, the address in the packet's header.
_PACKET_INFO = struct.Struct("=I4s4s")
_BUFFER = 4 << 20
_LARGEST = 2048
_AT_ONCE = 64
_ANCILLARY = socket.CMSG_SPACE(_PACKET_INFO.size)
_PKTINFO = getattr(socket, "IP_PKTINFO", 8)


class BmcFarm:
    """Add BMCs with `add` or `fill`, before or after `start`. `dropped` counts datagrams that were for no BMC.

    Raises ValueError for a network outside of 127.0.0.0/8.
    """

    def __init__(self, network: IPv4Network = NETWORK) -> None:
        if not network.subnet_of(_LOOPBACK):
            raise ValueError(f"a farm is on the loopback interface, in a part of {_LOOPBACK}, not in {network}")
        self.network = network
        self.port = 0
        self.dropped = 0
        self._bmcs: dict[bytes, SimulatedBmc] = {}
        self._socket: socket.socket | None = None

    def __len__(self) -> int:
        return len(self._bmcs)

    def __iter__(self) -> Iterator[SimulatedBmc]:
        return iter(self._bmcs.values())

    def add(self, bmc: SimulatedBmc) -> _Address:
        """Give a BMC the next address; its port is 0 until the farm is started. Raises ValueError: no room."""
        if len(self._bmcs) >= self.network.num_addresses - 2:
            raise ValueError(f"{self.network} has no address left")
        host = self.network[len(self._bmcs) + 1]
        self._bmcs[host.packed] = bmc
        bmc.attach(_Port(self, host), (str(host), self.port))
        return bmc.address

    def fill(self, count: int, **options: Any) -> None:
        """Add so many BMCs with these options of `SimulatedBmc`; their machines' UUIDs follow from their addresses."""
        for _ in range(count):
            address = self.network[len(self._bmcs) + 1]
            self.add(SimulatedBmc(machine_uuid(address), **options))

    def start(self, port: int = 0) -> int:
        """Listen on one port of all addresses; 0 picks a free one. Returns it. Raises OSError when it is taken."""
        loop = asyncio.get_running_loop()
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        try:
            made.setsockopt(socket.IPPROTO_IP, _PKTINFO, 1)
            # The system grants as much of it as it allows; what does not fit in a burst is lost, as on a real network.
            made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
            made.bind(("0.0.0.0", port))
        except OSError:
            made.close()
            raise
        self._socket, self.port = made, int(made.getsockname()[1])
        for host, bmc in self._bmcs.items():
            bmc.address = (str(IPv4Address(host)), self.port)
        loop.add_reader(made.fileno(), self._readable)
        return self.port

    def stop(self) -> None:
        """Fall silent for good; may be called twice."""
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket.fileno())
            self._socket.close()
            self._socket = None
        for bmc in self:
            bmc.stop()

    def send(self, data: bytes, ancillary: Iterable[tuple[int, int, bytes]], address: _Address) -> None:
        """Send once; what cannot be sent now is as good as lost."""
        if self._socket is not None:
            try:
                self._socket.sendmsg([data], ancillary, 0, address)
            except OSError:
                return

    def _readable(self) -> None:
        # Not until it is empty: others share the loop.
        for _ in range(_AT_ONCE):
            if self._socket is None:
                return
            try:
                data, ancillary, _flags, address = self._socket.recvmsg(_LARGEST, _ANCILLARY)
            except BlockingIOError:
                return
            except OSError:
                # The answer to one before went to a port that is closed.
                continue
            bmc = self._bmcs.get(ancillary[0][2][8:12]) if ancillary else None
            if bmc is None:
                self.dropped += 1
            else:
                bmc.datagram_received(data, address)


class _Port:
    """One address of a farm."""

    __slots__ = ("_ancillary", "_farm")

    def __init__(self, farm: BmcFarm, host: IPv4Address) -> None:
        self._farm: BmcFarm | None = farm
        info = _PACKET_INFO.pack(0, host.packed, bytes(4))
        self._ancillary = ((socket.IPPROTO_IP, _PKTINFO, info),)

    def sendto(self, data: bytes, addr: _Address, /) -> None:
        """Send from this address."""
        if self._farm is not None:
            self._farm.send(data, self._ancillary, addr)

    def close(self) -> None:
        """Send nothing more."""
        self._farm = None


def machine_uuid(address: IPv4Address) -> str:
    """The UUID of the machine behind an address of a farm: the same in each run."""
    return str(uuid.UUID(int=0x6D65_7461_6C00_4000_8000_0000_0000_0000 | int(address)))
