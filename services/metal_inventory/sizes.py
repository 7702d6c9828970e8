"""Sizes: which hardware is which size, and whether two sizes could claim the same machine.

A size matches hardware if every constraint is satisfied *and* every part of the machine is covered by some
constraint of its kind. The second half is why a machine with a GPU never matches a size that says nothing of GPUs.

The overlap test asks whether hardware could exist that both sizes match. It proves disjointness where it can and
calls everything else an overlap, so it has no blind spot: neither an exact copy nor two different globs that match
the same disks pass.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from metal_inventory.globs import glob
from metal_inventory.hardware import Hardware

UNKNOWN_SIZE = "unknown"
"""The size of a machine that no size, or more than one, matches."""


class ConstraintType(Enum):
    """What a constraint counts."""

    CORES = "cores"
    MEMORY = "memory"
    STORAGE = "storage"
    GPU = "gpu"


@dataclass(frozen=True, slots=True)
class Constraint:
    """``min <= value <= max``; bytes for memory and storage, a count for cores and GPUs.

    ``identifier`` is a glob over CPU models, disk names or GPU models; empty matches all.
    """

    type: ConstraintType
    min: int
    max: int
    identifier: str = ""


@dataclass(frozen=True, slots=True)
class Size:
    """A size with what makes a machine one."""

    id: str
    constraints: tuple[Constraint, ...]


@dataclass(frozen=True, slots=True)
class _Item:
    name: str
    amount: int


def validate(constraints: Sequence[Constraint]) -> list[tuple[str, str]]:
    """What is wrong with the constraints, as (field path, message with the fix); empty when all is well."""
    problems: list[tuple[str, str]] = []
    seen: set[ConstraintType] = set()
    for at, constraint in enumerate(constraints):
        where = f"constraints[{at}]"
        if constraint.min < 0:
            problems.append((f"{where}.min", "must not be negative"))
        if constraint.max < constraint.min:
            problems.append((f"{where}.max", f"must be at least min ({constraint.min})"))
        try:
            glob(constraint.identifier)
        except ValueError as error:
            problems.append((f"{where}.identifier", str(error)))
        if constraint.type is ConstraintType.GPU and not constraint.identifier:
            problems.append((f"{where}.identifier", "a gpu constraint needs a model glob, for example `NVIDIA*`"))
        if constraint.type is ConstraintType.MEMORY and constraint.identifier:
            problems.append((f"{where}.identifier", "a memory constraint takes no identifier: leave it empty"))
        if constraint.type in (ConstraintType.MEMORY, ConstraintType.CORES) and constraint.type in seen:
            problems.append((f"{where}.type", f"only one {constraint.type.value} constraint is possible"))
        seen.add(constraint.type)
    return problems


def matches(size: Size, hardware: Hardware) -> bool:
    """Whether the hardware is of this size: every constraint holds and every item is covered by one."""
    for kind, items in _items(hardware).items():
        constraints = [c for c in size.constraints if c.type is kind]
        for constraint in constraints:
            pattern = glob(constraint.identifier)
            value = sum(item.amount for item in items if pattern.matches(item.name))
            if not constraint.min <= value <= constraint.max:
                return False
        patterns = [glob(constraint.identifier) for constraint in constraints]
        if any(not any(pattern.matches(item.name) for pattern in patterns) for item in items):
            return False
    return True


def match(sizes: Iterable[Size], hardware: Hardware) -> list[Size]:
    """All sizes that match; a machine has a size only if there is exactly one."""
    return [size for size in sizes if matches(size, hardware)]


def overlapping(size: Size, others: Iterable[Size]) -> list[Size]:
    """The other sizes that could match the same hardware as ``size``."""
    return [other for other in others if other.id != size.id and overlap(size, other)]


def overlap(left: Size, right: Size) -> bool:
    """Whether hardware could exist that both sizes match, or the two are exact copies.

    Sizes without constraints match nothing and never overlap.
    """
    if not left.constraints or not right.constraints:
        return False
    if sorted(map(_key, left.constraints)) == sorted(map(_key, right.constraints)):
        return True
    return not any(
        _disjoint(
            [c for c in left.constraints if c.type is kind],
            [c for c in right.constraints if c.type is kind],
            always_present=kind is ConstraintType.MEMORY,
        )
        for kind in ConstraintType
    )


def _key(constraint: Constraint) -> tuple[str, str, int, int]:
    return constraint.type.value, constraint.identifier, constraint.min, constraint.max


def _items(hardware: Hardware) -> Mapping[ConstraintType, Sequence[_Item]]:
    return {
        ConstraintType.CORES: [_Item(cpu.model, cpu.cores) for cpu in hardware.cpus],
        ConstraintType.MEMORY: [_Item("", hardware.memory_bytes)],
        ConstraintType.STORAGE: [_Item(disk.name, disk.size_bytes) for disk in hardware.disks],
        ConstraintType.GPU: [_Item(gpu.model, 1) for gpu in hardware.gpus],
    }


def _disjoint(left: Sequence[Constraint], right: Sequence[Constraint], *, always_present: bool) -> bool:
    """Whether no set of items of one kind can satisfy and be covered by both lists."""
    if not left or not right:
        # Without a constraint of this kind only a machine without such items matches.
        return always_present or any(c.min > 0 for c in (*left, *right))
    if _total_range_apart(left, right) or _total_range_apart(right, left):
        return True
    if any(a.identifier == b.identifier and (a.max < b.min or b.max < a.min) for a in left for b in right):
        return True
    # Items that count for one list's minimum must be covered by the other list.
    return _unreachable(left, right) or _unreachable(right, left)


def _total_range_apart(left: Sequence[Constraint], right: Sequence[Constraint]) -> bool:
    """Every item is covered, so the total of all items is at most the sum of one side's maxima, and at least each of
    the other side's minima."""
    return sum(c.max for c in left) < max(c.min for c in right)


def _unreachable(needed: Sequence[Constraint], cover: Sequence[Constraint]) -> bool:
    return any(
        c.min > 0 and not any(glob(c.identifier).intersects(glob(other.identifier)) for other in cover) for c in needed
    )
