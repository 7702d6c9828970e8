"""Hearing LLDP on real interfaces: one packet socket each, until enough have heard something."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable, Sequence

from metal_kit.logs import get_logger

from metal_hammer import lldp
from metal_hammer.hardware.facts import Neighbour

log = get_logger(__name__)

# From <linux/if_packet.h>; the socket module does not know them.
_SOL_PACKET = 263
_PACKET_ADD_MEMBERSHIP = 1
_PACKET_MR_MULTICAST = 0
_MAX_FRAME = 2048
_MAX_NEIGHBOURS = 16


async def hear(interfaces: Sequence[str], *, within: float, enough: int) -> dict[str, list[Neighbour]]:
    """Neighbours by interface. Returns once `enough` interfaces have heard one, or after `within` seconds.

    An interface that cannot be listened on hears nothing; that is logged, not raised.
    """
    heard: dict[str, dict[tuple[str, str], Neighbour]] = {name: {} for name in interfaces}
    satisfied = asyncio.Event()

    def take(name: str, packet: bytes) -> None:
        try:
            frame = lldp.parse(packet)
        except lldp.LldpError as error:
            log.info("lldp.garbage", interface=name, error=str(error))
            return
        key = (frame.chassis_id, frame.port_id)
        if frame.ttl == 0:  # the neighbour says goodbye
            heard[name].pop(key, None)
        elif key in heard[name] or len(heard[name]) < _MAX_NEIGHBOURS:
            heard[name][key] = Neighbour(
                frame.chassis_id, frame.port_id, frame.port_description, frame.system_name, frame.system_description
            )
        if sum(bool(found) for found in heard.values()) >= enough:
            satisfied.set()

    listeners = [asyncio.create_task(_listen(name, take), name=f"lldp-{name}") for name in interfaces]
    try:
        async with asyncio.timeout(within):
            await satisfied.wait()
    except TimeoutError:
        pass
    finally:
        for listener in listeners:
            listener.cancel()
        await asyncio.gather(*listeners, return_exceptions=True)
    return {name: list(found.values()) for name, found in heard.items()}


async def _listen(name: str, take: Callable[[str, bytes], None]) -> None:
    loop = asyncio.get_running_loop()
    try:
        receiver = _open(name)
    except OSError as error:
        log.warning("lldp.not_listening", interface=name, error=error.strerror)
        return
    with receiver:
        while True:
            take(name, await loop.sock_recv(receiver, _MAX_FRAME))


def _open(name: str) -> socket.socket:
    receiver = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.htons(lldp.ETHERTYPE))
    try:
        receiver.bind((name, lldp.ETHERTYPE))
        # Without the membership the NIC's filter drops frames to the LLDP group address.
        request = struct.pack("iHH8s", socket.if_nametoindex(name), _PACKET_MR_MULTICAST, 6, lldp.MULTICAST)
        receiver.setsockopt(_SOL_PACKET, _PACKET_ADD_MEMBERSHIP, request)
    except OSError:
        receiver.close()
        raise
    return receiver
