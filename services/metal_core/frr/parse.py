"""Reads what `show running-config` prints into the model of `metal_core.frr.model`.

The reader goes by indentation alone and keeps contexts that it does not know, so a newer FRR or an operator's additions
do not make it fail. It does not judge them; `delta` leaves alone what the agent does not manage.
"""

from __future__ import annotations

from metal_core.frr.dialect import VrfBackend
from metal_core.frr.model import Block, Configuration

_NOISE = ("Building configuration", "Current configuration", "frr version", "end")


def parse(text: str, backend: VrfBackend = VrfBackend.LITE) -> Configuration:
    """The configuration that `text` describes. Comments, separators and closing lines carry no meaning."""
    lines: list[str] = []
    blocks: list[Block] = []
    for depth, line in _meaningful(text, backend):
        if depth == 0:
            if _opens(line):
                blocks.append(Block(line))
            else:
                lines.append(line)
        elif blocks:
            blocks[-1] = _inserted(blocks[-1], depth, line)
    return Configuration(tuple(lines), tuple(_merged(blocks)))


def _meaningful(text: str, backend: VrfBackend) -> list[tuple[int, str]]:
    found = []
    for raw in text.splitlines():
        line = raw.strip()
        if not line or line.startswith(("!", "#", "exit")) or line.startswith(_NOISE):
            continue
        found.append((min(len(raw) - len(raw.lstrip(" ")), 2), _canonical(line, backend)))
    return found


def _opens(line: str) -> bool:
    words = line.split()
    return words[0] in {"vrf", "interface", "router", "route-map", "line", "bfd", "key", "nexthop-group", "pbr-map"}


def _canonical(line: str, backend: VrfBackend) -> str:
    """Where VRFs are devices, `interface X vrf V` and `interface X` are the same interface (see `dialect`)."""
    words = line.split()
    if backend is VrfBackend.LITE and words[0] == "interface" and len(words) == 4 and words[2] == "vrf":
        return f"interface {words[1]}"
    return " ".join(words)


def _inserted(block: Block, depth: int, line: str) -> Block:
    if depth == 1 and line.startswith("address-family "):
        return Block(block.header, block.lines, (*block.children, Block(line)))
    if depth == 1 or not block.children:
        return Block(block.header, (*block.lines, line), block.children)
    last = block.children[-1]
    children = (*block.children[:-1], Block(last.header, (*last.lines, line)))
    return Block(block.header, block.lines, children)


def _merged(blocks: list[Block]) -> list[Block]:
    """vtysh collects from several daemons, so one interface or VRF can be printed more than once."""
    merged: dict[str, Block] = {}
    for block in blocks:
        known = merged.get(block.header, Block(block.header))
        merged[block.header] = Block(
            block.header,
            known.lines + tuple(line for line in block.lines if line not in known.lines),
            (*known.children, *block.children),
        )
    return list(merged.values())
