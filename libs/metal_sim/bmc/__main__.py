"""`python -m metal_sim.bmc`: a farm of simulated BMCs for people to try clients on, until it is interrupted."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
from ipaddress import AddressValueError, IPv4Network, NetmaskValueError

from metal_sim.bmc.farm import NETWORK, BmcFarm
from metal_sim.bmc.faults import Faults, table

_PASSWORD = "METAL_SIM_BMC_PASSWORD"  # noqa: S105 - the name of a variable


def _network(text: str) -> IPv4Network:
    try:
        return IPv4Network(text)
    except (AddressValueError, NetmaskValueError, ValueError) as error:
        raise argparse.ArgumentTypeError(f"{error}; it looks like {NETWORK}") from None


def _fault(text: str) -> tuple[str, float | None, int | None]:
    """NAME[=VALUE][:COUNT]."""
    fault, _, count = text.partition(":")
    name, _, value = fault.partition("=")
    try:
        parsed = name, float(value) if value else None, int(count) if count else None
        Faults().switch_on(*parsed[:2])
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{error}; a fault is NAME, NAME=VALUE or NAME:COUNT") from None
    return parsed


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m metal_sim.bmc",
        description="Simulated BMCs that speak RMCP+ (cipher suites 3 and 17), each on a loopback address of its own.",
        epilog="faults:\n" + table(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--count", type=int, default=10, help="how many BMCs (10)")
    parser.add_argument("--network", type=_network, default=NETWORK, help=f"where, in 127.0.0.0/8 ({NETWORK})")
    parser.add_argument("--port", type=int, default=6230, help="the UDP port of all of them, 0: any (6230)")
    parser.add_argument("--user", default="metal", help="the administrator's name (metal)")
    parser.add_argument("--powered", action="store_true", help="the machines are on")
    parser.add_argument("--slots", type=int, default=16, help="sessions that a BMC takes at once (16)")
    parser.add_argument(
        "--fault", type=_fault, action="append", default=[], metavar="NAME[=VALUE][:COUNT]",
        help="a fault that the first COUNT of the BMCs have, or all; may be given several times",
    )  # fmt: skip
    return parser.parse_args()


async def _serve(options: argparse.Namespace, password: str) -> None:
    farm = BmcFarm(options.network)
    farm.fill(options.count, user=options.user, password=password, powered=options.powered, session_slots=options.slots)
    for name, value, count in options.fault:
        for bmc in list(farm)[:count]:
            bmc.faults.switch_on(name, value)
    farm.start(options.port)
    stopping = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    addresses = [bmc.address[0] for bmc in farm]
    sys.stdout.write(
        f"{len(farm)} BMCs on UDP port {farm.port}: {addresses[0]} to {addresses[-1]}\n"
        f"ipmitool -I lanplus -H {addresses[0]} -p {farm.port} -U {options.user} -P … power status\n"
    )
    sys.stdout.flush()
    await stopping.wait()
    farm.stop()


def main() -> int:
    """The command. The administrator's password is in the environment, as command lines are for everybody to read."""
    options = _arguments()
    try:
        if options.count < 1:
            raise ValueError("--count has to be 1 or more")
        asyncio.run(_serve(options, os.environ.get(_PASSWORD, "metal")))
    except (ValueError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
