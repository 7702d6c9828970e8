"""What differs between a desired state and a leaf: the rows of CONFIG_DB and the lines of FRR, as a pure function.

The answer is the same whoever asks: the applier that finds nothing to do, the look for changes made by hand, and the
operator's `diff`. Only what the agent owns is compared; rows, fields and lines of others never count as differences.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from metal_core.configdb import Fields, Former, Rows, name_of, owned, render, table_of, the_vtep, with_former
from metal_core.desired import Desired
from metal_core.frr.dialect import VrfBackend
from metal_core.frr.managed import differences
from metal_core.frr.model import Configuration
from metal_core.frr.render import render as render_frr


@dataclass(frozen=True, slots=True)
class LeafFacts:
    """What was read from a leaf: `rows` of CONFIG_DB (`configdb.READ_TABLES`), and what FRR runs.

    `running` is None on a leaf that has no FRR, and then no line of it counts as missing. `backend` is what VRFs are
    to it. `abilities` are rows of STATE_DB's PORT_TABLE by port, of those of which something is wanted.
    """

    rows: Rows
    running: Configuration | None
    backend: VrfBackend = VrfBackend.LITE
    abilities: Rows = field(default_factory=dict)


@dataclass(frozen=True, slots=True, order=True)
class RowDifference:
    """One field of a row, or with an empty `field` a whole row, that is not as it should be.

    `wanted` and `found` are values, None where there is none. Of a whole row they give the fields in their order,
    `fallback=false, vni=2000`, and are empty for a row without any.
    """

    table: str
    key: str
    field: str
    wanted: str | None
    found: str | None

    def __str__(self) -> str:
        where = f"{self.table}|{self.key}" + (f" {self.field}" if self.field else "")
        return f"{where}: wanted {_shown(self.wanted)}, found {_shown(self.found)}"


@dataclass(frozen=True, slots=True)
class Differences:
    """Everything that differs; true when something does. `lines` begin with `+` (FRR lacks it) or `-` (too much)."""

    rows: tuple[RowDifference, ...] = ()
    lines: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.rows or self.lines)


def compare(desired: Desired, facts: LeafFacts, back: Former | None = None) -> Differences:
    """What a leaf with `facts` lacks for `desired` and what it has too much, in a fixed order; `back` are fields that
    `desired` does not mention and that are to be as they were."""
    wanted, absent = with_former(render(desired, the_vtep(facts.rows)), back or {})
    rows = row_differences(owned(facts.rows, desired, back), wanted, absent)
    if facts.running is None:
        return Differences(rows)
    return Differences(rows, tuple(differences(facts.running, render_frr(desired, facts.backend), desired.own_ports)))


def row_differences(
    found: Rows, wanted: Rows, absent: Mapping[str, frozenset[str]] | None = None
) -> tuple[RowDifference, ...]:
    """The differences between two sets of owned rows, sorted.

    Of a PORT row only the fields that are wanted, or to be `absent`, count: the others are the hardware description's
    or an operator's.
    """
    gone = absent or {}
    differing: list[RowDifference] = []
    for key in sorted(found.keys() | wanted.keys()):
        have, want = found.get(key), wanted.get(key)
        table, name = table_of(key), name_of(key)
        if key in gone:
            want = want or {}
        if have is None or want is None:
            if table != "PORT" or have is None:
                differing.append(RowDifference(table, name, "", _whole(want), _whole(have)))
            continue
        fields = want.keys() | gone.get(key, frozenset()) if table == "PORT" else have.keys() | want.keys()
        differing += [
            RowDifference(table, name, each, want.get(each), have.get(each))
            for each in sorted(fields)
            if want.get(each) != have.get(each)
        ]
    return tuple(differing)


def _whole(row: Fields | None) -> str | None:
    return None if row is None else ", ".join(f"{name}={value}" for name, value in sorted(row.items()))


def _shown(value: str | None) -> str:
    return "none" if value is None else repr(value)
