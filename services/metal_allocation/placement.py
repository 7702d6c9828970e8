"""Which of the machines that could be taken is taken: rack spreading. Pure.

Among the racks that have candidates, P are those with the fewest machines that the project already has (same role,
partition and size), T those with the fewest of these that carry one of the wanted placement labels. A rack of both is
best, then one of T: labels are somebody's explicit wish, the project's spread is only a default. Claims in flight count
like allocations, or parallel requests of one project would land in one rack.

Candidates come as a number a rack, not as a list: a partition may have thousands, and only one is wanted.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Held:
    """A machine that the project holds, by its rack and its allocation's placement labels."""

    rack: str
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Choice:
    """The machine that is number `position` (from 0, by id) among the candidates of `racks`."""

    racks: frozenset[str]
    position: int


def best_racks(free: Mapping[str, int], held: Sequence[Held], labels: Mapping[str, str]) -> frozenset[str]:
    """The racks to choose from; `free` is the number of candidates a rack. Empty only when there are none."""
    racks = {rack for rack, count in free.items() if count > 0}
    if not racks:
        return frozenset()
    by_project = Counter(each.rack for each in held)
    wanted = set(labels.items())
    by_label = Counter(each.rack for each in held if wanted & set(each.labels.items()))
    spread = _fewest(racks, by_project)
    tagged = _fewest(racks, by_label)
    return frozenset((spread & tagged) or tagged)


def choose(
    free: Mapping[str, int], held: Sequence[Held], labels: Mapping[str, str], rng: random.Random
) -> Choice | None:
    """One machine, uniformly among the machines of the best racks; None without candidates.

    Among machines, not among racks: a rack with more candidates is likelier, which levels the racks.
    """
    racks = best_racks(free, held, labels)
    return Choice(racks, rng.randrange(sum(free[rack] for rack in racks))) if racks else None


def _fewest(racks: set[str], counts: Counter[str]) -> set[str]:
    least = min(counts[rack] for rack in racks)
    return {rack for rack in racks if counts[rack] == least}
