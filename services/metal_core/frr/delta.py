"""The commands that lead from a running FRR configuration to another one, as one text for `vtysh -f`.

frr-reload would run one vtysh per removed line and has emptied lists on the way; one batch takes a fraction of a second
and touches only what differs. Three deltas serve the order in which a leaf has to change (see `metal_core.plan`):
`detach` before ports move, `retire` before VRFs go, `converge` at the end. What is not the agent's (`managed`) stays.

The time that a delta takes is that of FRR's transactions, each of which walks the whole configuration (FRR 8.4). Lists
and maps share one until vtysh is told `exit`; a VRF and an interface are one each. So no `exit` is said that the next
line says as well, and in an empty FRR the VRFs and interfaces come while there is little to walk: 200 tenants are there
after 4 s instead of 47 s.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from itertools import pairwise

from metal_core.frr.bgp import additions, in_context, is_session, negated, neighbour, removals
from metal_core.frr.managed import PROFILE, is_list, managed, profile_of, routers, vrf_of
from metal_core.frr.model import Block, Configuration

_CLOSINGS = frozenset({"exit", "exit-vrf"})
# What no context knows, so that FRR takes it for what it is. `ip route`, for one, is known inside of a VRF as well.
_OUTSIDE = (
    *("vrf ", "interface ", "router ", "route-map ", "ip prefix-list ", "ipv6 prefix-list "),
    *("no route-map ", "no ip prefix-list ", "no ipv6 prefix-list "),
)


def detach(running: Configuration, ports: Collection[str]) -> str:
    """Commands that end the BGP sessions on `ports` in whatever instance they are; empty when there are none."""
    commands: list[str] = []
    for block in routers(running):
        sessions = [line for line in block.lines if is_session(line) and neighbour(line) in ports]
        commands += in_context(block.header, [negated(line) for line in sessions])
    return _text(commands)


def retire(running: Configuration, vrfs: Collection[str]) -> str:
    """Commands that remove VNI and BGP instance of `vrfs`. The VNI goes first: FRR refuses the other order."""
    commands: list[str] = []
    for name in vrfs:
        commands += _without_vni(running.block(f"vrf {name}"))
    commands += [f"no {block.header}" for block in routers(running) if vrf_of(block) in vrfs]
    return _text(commands)


def converge(running: Configuration, wanted: Configuration, ports: Collection[str]) -> str:
    """Commands from `running` to `wanted` on a leaf with `ports`; empty when nothing that the agent manages differs.

    What ends sessions comes first; then VRFs and interfaces; then lists and maps, so that none is missing where it is
    used; then instances; what nothing refers to any more goes last.
    """
    have, want = managed(running, ports), managed(wanted, ports)
    known = _Index(have)
    wanted_routers = {block.header for block in routers(want)}
    gone = [block for block in routers(have) if block.header not in wanted_routers]
    unbound = {f"vrf {vrf_of(block)}" for block in gone}
    commands = _profile(running, wanted)
    for block in _of_kind(have, "vrf"):
        if block.header in unbound or block.lines != want.block(block.header).lines:
            commands += _without_vni(block)
            unbound.add(block.header)
    # The default instance goes last: FRR keeps it while instances of VRFs depend on it.
    commands += [f"no {block.header}" for block in sorted(gone, key=lambda block: vrf_of(block) == "")]
    for block in routers(want):
        commands += removals(known[block.header], block)
    for block in _of_kind(want, "vrf"):
        if block.header in unbound or known[block.header].empty:
            commands += in_context(block.header, list(block.lines))
    for block in _of_kind(want, "interface"):
        lines = known[block.header].lines
        commands += in_context(block.header, [line for line in block.lines if line not in lines])
    commands += _changed_lists(have, want) + _changed_maps(have, want)
    for block in routers(want):
        commands += additions(known[block.header], block)
    for block in _of_kind(have, "interface"):
        commands += _without_advertisements(block, want.block(block.header))
    return _text(commands + _changed_lines(have, want) + _leftovers(have, want))


class _Index(dict[str, Block]):
    """The blocks of a configuration by their headers; an empty one for each other header."""

    def __init__(self, configuration: Configuration) -> None:
        super().__init__((block.header, block) for block in configuration.blocks)

    def __missing__(self, header: str) -> Block:
        return Block(header)


def _profile(running: Configuration, wanted: Configuration) -> list[str]:
    """The command that sets FRR's profile, as long as there is no BGP instance that would keep the old one's values."""
    found, profile = profile_of(running), profile_of(wanted)
    routed = any(block.header.startswith("router bgp ") for block in running.blocks)
    return [f"{PROFILE}{profile}"] if found and profile and found != profile and not routed else []


def _changed_lines(have: Configuration, want: Configuration) -> list[str]:
    """Routes and the like. The new way to the management network is there before the old one goes."""
    mine = [line for line in have.lines if not is_list(line) and not line.startswith(PROFILE)]
    wanted = [line for line in want.lines if not is_list(line) and not line.startswith(PROFILE)]
    gone = [line for line in mine if line not in wanted]
    return [line for line in wanted if line not in mine] + [negated(line) for line in gone]


def _of_kind(configuration: Configuration, kind: str) -> list[Block]:
    return [block for block in configuration.blocks if block.header.startswith(f"{kind} ")]


def _without_vni(block: Block) -> list[str]:
    return in_context(block.header, [negated(line) for line in block.lines if line.startswith("vni ")])


def _without_advertisements(have: Block, want: Block) -> list[str]:
    if want.lines:
        # Both lines are wanted wherever one is, and a new interval has replaced the old one already.
        return []
    return in_context(have.header, [negated(line) for line in have.lines])


def _changed_lists(have: Configuration, want: Configuration) -> list[str]:
    """Entries that change their place or value are taken out first, since FRR refuses a prefix that is there twice."""
    old, new = _lists(have), _lists(want)
    names = {line.split()[2] for line in new}
    gone = [line for line in old if line not in new and line.split()[2] in names]
    return [negated(line) for line in gone] + [line for line in new if line not in old]


def _lists(configuration: Configuration) -> dict[str, None]:
    return dict.fromkeys(line for line in configuration.lines if is_list(line))


def _changed_maps(have: Configuration, want: Configuration) -> list[str]:
    known = {block.header: block for block in _of_kind(have, "route-map")}
    wanted = _of_kind(want, "route-map")
    headers = {block.header for block in wanted}
    names = {header.split()[1] for header in headers}
    # An entry whose action changes is another entry: entered over the old one it would keep the old conditions.
    commands = [f"no {header}" for header in known if header not in headers and header.split()[1] in names]
    for block in wanted:
        if block.header not in known:
            commands += [block.header, *(f" {line}" for line in block.lines), "exit"]
            continue
        old = known[block.header].lines
        stale = [negated(line) for line in old if line not in block.lines]
        commands += in_context(block.header, stale + [line for line in block.lines if line not in old])
    return commands


def _leftovers(have: Configuration, want: Configuration) -> list[str]:
    maps = {block.header.split()[1] for block in _of_kind(want, "route-map")}
    lists = {tuple(line.split()[:3]) for line in _lists(want)}
    old_maps = dict.fromkeys(block.header.split()[1] for block in _of_kind(have, "route-map"))
    old_lists = dict.fromkeys(tuple(line.split()[:3]) for line in _lists(have))
    return [
        *(f"no route-map {name}" for name in old_maps if name not in maps),
        *(f"no {' '.join(words)}" for words in old_lists if words not in lists),
    ]


def _text(commands: list[str]) -> str:
    return "\n".join(_without_needless_exits(commands)) + "\n" if commands else ""


def _without_needless_exits(commands: list[str]) -> Iterator[str]:
    """`commands` without the closing lines after which vtysh leaves the context anyway.

    Only those that are followed by what cannot be meant for the context. BGP instances are closed always: in them FRR
    takes `vrf` for short of `vrf-policy`, and if the next instance were refused its neighbours would become theirs.
    """
    header = ""
    for command, following in pairwise([*commands, ""]):
        if command in _CLOSINGS and following.startswith(_OUTSIDE) and not header.startswith("router "):
            continue
        if not command.startswith(" "):
            header = command
        yield command
