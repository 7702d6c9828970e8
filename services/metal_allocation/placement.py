"""Which of the machines that could be taken is taken: rack spreading. Pure.

Among the racks that have candidates, P are those with the fewest machines that the project already has (same role,
partition and size), T those with the fewest of these that carry one of the wanted placement labels. A rack of both is
best, then one of T: labels are somebody's explicit wish, the project's spread is only a default. Claims in flight count
like allocations, or parallel requests of one project would land in one rack.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Candidate:
    """A machine that could be taken."""

    machine: str
    rack: str


@dataclass(frozen=True, slots=True)
class Held:
    """A machine that the project holds, by its rack and its allocation's placement labels."""

    rack: str
    labels: Mapping[str, str] = field(default_factory=dict)


def best_racks(candidates: Sequence[Candidate], held: Sequence[Held], labels: Mapping[str, str]) -> set[str]:
    """The racks to choose from; empty only when there are no candidates."""
    racks = {candidate.rack for candidate in candidates}
    if not racks:
        return set()
    by_project = Counter(each.rack for each in held)
    wanted = set(labels.items())
    by_label = Counter(each.rack for each in held if wanted & set(each.labels.items()))
    spread = _fewest(racks, by_project)
    tagged = _fewest(racks, by_label)
    return (spread & tagged) or tagged


def choose(
    candidates: Sequence[Candidate], held: Sequence[Held], labels: Mapping[str, str], rng: random.Random
) -> Candidate | None:
    """One machine, uniformly among the machines of the best racks; None without candidates."""
    racks = best_racks(candidates, held, labels)
    pool = [candidate for candidate in candidates if candidate.rack in racks]
    return rng.choice(pool) if pool else None


def _fewest(racks: set[str], counts: Counter[str]) -> set[str]:
    least = min(counts[rack] for rack in racks)
    return {rack for rack in racks if counts[rack] == least}
