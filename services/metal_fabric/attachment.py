"""A machine's ports going in and out of a tenant's network, and when that counts as done.

Pure state machine. An attachment belongs to one allocation. It is confirmed when each leaf involved has applied a
generation that contains it; which allocation comes next, and what to do about a dead leaf, is decided elsewhere.

    nobody ──attach(A)──► held by A ──detach(A)──► leaving A ──every leaf confirmed──► nobody
                             │  ▲                      │
                             └──┘ attach(A) again      └── attach(A): only when A said that it will come back
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from datetime import datetime

from metal_fabric.filters import UNPROVISIONED, Wish
from metal_fabric.problems import Refused


@dataclass(frozen=True)
class Leaf:
    """How far one leaf is with a machine's attachment.

    `wanted` is the generation that contains the wish, `applied` the one that the leaf has. `connected` tells whether
    its stream is open, `seen` when it was last heard of, `error` why its last attempt failed.

    A `former` leaf is one that the machine hung on before: the wish is that its port there is out of every tenant's
    network. A leaf that is silent may still forward; so only its word counts, or that an operator has deleted it.
    """

    switch_id: str
    ports: tuple[str, ...]
    wanted: int
    applied: int
    connected: bool = False
    seen: datetime | None = None
    error: str = ""
    former: bool = False

    @property
    def confirmed(self) -> bool:
        """Whether the leaf has applied a generation that contains the wish."""
        return self.applied >= self.wanted


@dataclass(frozen=True)
class HeldPorts:
    """Ports that a leaf has yet to let go of: `machine`, which hung there, hangs on another leaf by now; `wanted` is
    the generation in which they are out of its network."""

    machine: str
    ports: tuple[str, ...]
    wanted: int


@dataclass(frozen=True)
class Attachment:
    """What the ports of `machine` shall be. `owner` is the allocation that asked last, empty when none ever did.

    `leaving` tells that the owner wants out, `announced` that its confirmation has been published.
    """

    machine: str
    owner: str = ""
    wish: Wish = UNPROVISIONED
    leaving: bool = False
    announced: bool = True
    leaves: tuple[Leaf, ...] = ()

    @property
    def confirmed(self) -> bool:
        """Whether every leaf involved has applied the wish; a machine without cabling has none that could."""
        return bool(self.present) and all(leaf.confirmed for leaf in self.leaves)

    @property
    def present(self) -> tuple[Leaf, ...]:
        """The leaves that the machine hangs on."""
        return tuple(leaf for leaf in self.leaves if not leaf.former)

    @property
    def outstanding(self) -> tuple[Leaf, ...]:
        """The leaves that have not confirmed; each tells since when it has not been seen."""
        return tuple(leaf for leaf in self.leaves if not leaf.confirmed)

    @property
    def held_by(self) -> str:
        """The allocation that still has a claim: until its detachment is confirmed."""
        return "" if self.leaving and self.confirmed else self.owner


def attach(current: Attachment, allocation: str, wish: Wish, *, ended: Collection[str]) -> Attachment:
    """The attachment after `allocation` asked for `wish`; `ended` are allocations that can never come back.

    The same wish again changes nothing; another wish of the same owner replaces it.

    Raises Refused: `MACHINE_NOT_CABLED`, `ALLOCATION_ENDED`, `ATTACHED_TO_OTHER`, `DETACHMENT_UNCONFIRMED`.
    """
    if allocation in ended:
        raise Refused("ALLOCATION_ENDED", f"allocation {allocation} has detached machine {current.machine} for good")
    if not current.present:
        raise Refused("MACHINE_NOT_CABLED", f"machine {current.machine} hangs on no leaf; it has to register first")
    if current.owner != allocation:
        if current.owner and not current.leaving:
            raise Refused("ATTACHED_TO_OTHER", f"machine {current.machine} is attached for allocation {current.owner}")
        if current.leaving and not current.confirmed:
            names = ", ".join(leaf.switch_id for leaf in current.outstanding)
            raise Refused(
                "DETACHMENT_UNCONFIRMED",
                f"machine {current.machine} is still leaving allocation {current.owner}; {names} has not confirmed",
            )
    elif not current.leaving and current.wish == wish:
        return current
    return replace(current, owner=allocation, wish=wish, leaving=False, announced=False)


def detach(current: Attachment, allocation: str) -> Attachment:
    """The attachment after `allocation` wants out: unchanged when another one holds it, or when it is on its way."""
    if current.owner != allocation or current.leaving:
        return current
    return replace(current, wish=UNPROVISIONED, leaving=True, announced=False)
