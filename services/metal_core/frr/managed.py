"""Which part of a running FRR configuration is the agent's, and how it differs from what is wanted.

The agent manages: the default BGP instance, tenant VRFs and their instances, the lists and maps named by its own
scheme, router advertisements on the leaf's ports, and the routes to the management network that bear its mark. Inside a
BGP instance it manages the kinds of lines that it renders; what an operator or a newer FRR puts there besides is left
alone.
"""

from __future__ import annotations

import re
from collections.abc import Collection

from metal_core.frr.model import Block, Configuration

# How FRR begins the line that names its profile of defaults.
PROFILE = "frr defaults "

# How FRR begins the line that says by which map BGP routes go into the kernel. There is one at most.
PROTOCOL_MAP = "ip protocol bgp route-map "

# What ends each static route of the agent. The tag tells it from an operator's; it has no other meaning. FRR has one
# tag for all routes of a prefix and distance: with the usual distance, 1, an operator's would turn into the agent's.
ROUTE_MARK = "tag 4242 2 nexthop-vrf mgmt"

_FILTER_NAME = re.compile(r"DENY_MGMT|SET_SRC|(?:fw-|Vrf[1-9][0-9]*-)\S+-(?:in|in6|vni)(?:-prefixes)?")
_TENANT = re.compile(r"vrf Vrf[1-9][0-9]*")
_ROUTER = re.compile(r"router bgp \d+(?: vrf (\S+))?")
_RA_LINES = ("ipv6 nd ra-interval ", "no ipv6 nd suppress-ra")
_BGP_LINES = (
    "neighbor ",
    "no neighbor ",
    "redistribute ",
    "advertise ",
    "advertise-all-vni",
    "bgp router-id ",
    "bgp bestpath as-path multipath-relax",
    # What an instance has kept of another profile, under which it was made: it would exchange nothing.
    "bgp ebgp-requires-policy",
)


def managed(configuration: Configuration, ports: Collection[str]) -> Configuration:
    """The part of a configuration that the agent manages on a leaf with `ports`, without blocks that say nothing."""
    blocks = [ours for block in configuration.blocks if (ours := _managed_block(block, ports)) is not None]
    return Configuration(tuple(line for line in configuration.lines if _is_managed(line)), tuple(blocks))


def differences(running: Configuration, wanted: Configuration, ports: Collection[str]) -> list[str]:
    """What FRR lacks (`+`) and has too much (`-`), a line each; empty when it has exactly what is wanted."""
    have, want = _facts(managed(running, ports)), _facts(managed(wanted, ports))
    if not profile_of(running):
        want -= {f"{PROFILE}{profile_of(wanted)}"}
    return sorted([f"- {fact}" for fact in have - want] + [f"+ {fact}" for fact in want - have])


def profile_of(configuration: Configuration) -> str:
    """The profile of defaults that a configuration names; empty where it names none, as parts of one do."""
    return next((line.removeprefix(PROFILE) for line in configuration.lines if line.startswith(PROFILE)), "")


def is_list(line: str) -> bool:
    """Whether a line is an entry of a prefix list."""
    return line.split()[1:2] == ["prefix-list"]


def routers(configuration: Configuration) -> list[Block]:
    """The BGP instances that the agent manages."""
    return [block for block in configuration.blocks if _is_router(block.header)]


def vrf_of(router: Block) -> str:
    """The VRF of a BGP instance, empty for the default one."""
    found = _ROUTER.fullmatch(router.header)
    return (found[1] or "") if found else ""


def dispensable_vrfs(running: Configuration, wanted: Configuration) -> tuple[str, ...]:
    """Tenant VRFs that FRR still lists though nothing is said about them. It forgets them only once the kernel has."""
    named = {block.header for block in wanted.blocks}
    return tuple(
        block.header.split()[1]
        for block in running.blocks
        if _TENANT.fullmatch(block.header) and block.empty and block.header not in named
    )


def _managed_block(block: Block, ports: Collection[str]) -> Block | None:
    words = block.header.split()
    if words[0] == "route-map":
        return block if _FILTER_NAME.fullmatch(words[1]) else None
    if words[0] == "interface":
        ours = _only(block, _RA_LINES) if words[1] in ports else Block(block.header)
    elif words[0] == "vrf":
        ours = _only(block, ("vni ",)) if _TENANT.fullmatch(block.header) else Block(block.header)
    elif _is_router(block.header):
        # How often a connection is tried is an operator's, or FRR's, which cannot be brought to print it no more.
        mine = tuple(line for line in block.lines if line.split()[2:4] != ["timers", "connect"])
        return _only(Block(block.header, mine, block.children), _BGP_LINES)
    else:
        return None
    return None if ours.empty else ours


def _only(block: Block, prefixes: tuple[str, ...]) -> Block:
    return Block(
        block.header,
        tuple(line for line in block.lines if line.startswith(prefixes)),
        tuple(_only(child, prefixes) for child in block.children),
    )


def _is_router(header: str) -> bool:
    found = _ROUTER.fullmatch(header)
    return found is not None and (found[1] is None or _TENANT.fullmatch(f"vrf {found[1]}") is not None)


def _is_managed(line: str) -> bool:
    words = line.split()
    if is_list(line):
        return len(words) > 3 and _FILTER_NAME.fullmatch(words[2]) is not None
    if line.startswith("ip route "):
        return line.endswith(f" {ROUTE_MARK}")
    if line.startswith(PROTOCOL_MAP):
        return _FILTER_NAME.fullmatch(words[-1]) is not None
    return line.startswith(PROFILE)


def _facts(configuration: Configuration) -> set[str]:
    facts = set(configuration.lines)
    for block in configuration.blocks:
        facts.add(block.header)
        facts.update(f"{block.header} / {line}" for line in block.lines)
        facts.update(f"{block.header} / {child.header} / {line}" for child in block.children for line in child.lines)
    return facts
