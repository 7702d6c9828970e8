"""The tree of an FRR configuration and its text in FRR's canonical running-config form.

Canonical means: one space of indentation a level, blocks closed by `exit`, `exit-vrf` or `exit-address-family`,
explicit sequence numbers, `ipv6 prefix-list` for IPv6, and interface names without a VRF suffix (the form of FRR's
vrf-lite backend, which SONiC uses; `dialect` has the other). Text that differs from FRR's own would be deleted and
added again on each comparison.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Block:
    """A context: its opening line, its own lines, and contexts inside it (address families)."""

    header: str
    lines: tuple[str, ...] = ()
    children: tuple[Block, ...] = ()

    @property
    def empty(self) -> bool:
        """Whether the context says nothing. FRR prints such blocks for objects that merely exist."""
        return not self.lines and all(child.empty for child in self.children)

    def child(self, header: str) -> Block:
        """The inner context called `header`, an empty one when there is none."""
        return next((child for child in self.children if child.header == header), Block(header))


@dataclass(frozen=True, slots=True)
class Configuration:
    """A whole configuration: lines outside of any context, and the contexts, in the order in which they are printed."""

    lines: tuple[str, ...] = ()
    blocks: tuple[Block, ...] = ()

    def block(self, header: str) -> Block:
        """The context called `header`, an empty one when there is none."""
        return next((block for block in self.blocks if block.header == header), Block(header))

    def headers(self, prefix: str) -> tuple[str, ...]:
        """The headers of all contexts that start with `prefix`, in order."""
        return tuple(block.header for block in self.blocks if block.header.startswith(prefix))

    def text(self) -> str:
        """The configuration as FRR prints it, with a line feed at the end."""
        return "\n".join(self._printed()) + "\n"

    def _printed(self) -> Iterator[str]:
        yield from self.lines
        yield "!"
        for block in self.blocks:
            yield block.header
            yield from (f" {line}" for line in block.lines)
            for child in block.children:
                yield " !"
                yield f" {child.header}"
                yield from (f"  {line}" for line in child.lines)
                yield " exit-address-family"
            yield closing(block.header)
            yield "!"
        yield "end"


def closing(header: str) -> str:
    """The line that leaves the context called `header`."""
    if header.startswith("vrf "):
        return "exit-vrf"
    if header.startswith("address-family "):
        return "exit-address-family"
    return "exit"
