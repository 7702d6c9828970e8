"""What boards do differently, as data: rows chosen by maker, model and firmware of the BMC. Pure.

A row is an observation of the field about a kind of board, never a guess; a board that no row fits is `PLAIN`. Rows add
up: later ones win where they speak of the same thing, so that a firmware range can take back what a maker's row says.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

_IPMI_DISK = 0x08
_IPMI_REMOTE_DISK = 0x24
"""Boot device selectors of IPMI 2.0 table 28-14: hard disk, and first remote hard disk."""


@dataclass(frozen=True, slots=True)
class Quirks:
    """How one BMC wants to be treated. The defaults are what the specifications say."""

    # IPMI boot device byte that means "disk" to the board.
    disk_selector: int = _IPMI_DISK
    # An override "once" reads back as persistent, though it holds for one boot.
    once_reads_persistent: bool = False
    # The byte order of the system GUID where it is known ("smbios", "rfc4122", "ipmi"); empty: all are tried.
    guid_order: str = ""
    # Time after a boot override or a power order before the BMC's next answer can be believed.
    settle_seconds: float = 0.0
    # Redfish ResetType that switches on a machine that is off.
    power_on_reset_type: str = "On"
    # Capabilities, by name, that the board claims and does not have.
    lacks: frozenset[str] = field(default_factory=frozenset)


PLAIN = Quirks()


@dataclass(frozen=True, slots=True)
class Board:
    """What a board is known by. `makers` and `models` are the names in its FRU, of board, chassis and product alike;
    `manufacturer` is the IANA enterprise number of the BMC's device id, 0 when it is not known."""

    makers: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    firmware: str = ""
    manufacturer: int = 0


@dataclass(frozen=True, slots=True)
class Row:
    """One row: which boards, and what is different there.

    `maker` and `model` are found anywhere in the board's names, without regard to case; an empty `model` fits all.
    `ids` are enterprise numbers that stand for the maker where a board has no FRU. The firmware range includes both of
    its ends; an empty end is open. A board whose firmware is not known does not fit a row with a range.
    """

    maker: str
    changes: Mapping[str, Any]
    ids: frozenset[int] = frozenset()
    model: str = ""
    since: str = ""
    until: str = ""

    def fits(self, board: Board) -> bool:
        """Whether the row speaks of the board."""
        named = _found(self.maker, board.makers)
        if not named and (board.makers or board.manufacturer not in self.ids):
            return False
        if self.model and not _found(self.model, board.models):
            return False
        if not (self.since or self.until):
            return True
        version = _version(board.firmware)
        return (
            bool(version)
            and (not self.since or version >= _version(self.since))
            and (not self.until or version <= _version(self.until))
        )


_SUPERMICRO = frozenset({10876, 47488})

TABLE: tuple[Row, ...] = (
    # They ignore the plain disk selector and want the one of the first remote disk.
    Row("supermicro", {"disk_selector": _IPMI_REMOTE_DISK}, ids=_SUPERMICRO),
    Row("novarion", {"disk_selector": _IPMI_REMOTE_DISK}),
)


def quirks_of(board: Board, table: Iterable[Row] = TABLE) -> Quirks:
    """The quirks of a board: all rows that fit, the later ones over the earlier ones."""
    found = PLAIN
    for row in table:
        if row.fits(board):
            found = replace(found, **row.changes)
    return found


def unknown_changes(table: Iterable[Row] = TABLE) -> list[str]:
    """Names in the table that are no quirk; empty in a table that can be used."""
    known = {each.name for each in fields(Quirks)}
    return [name for row in table for name in row.changes if name not in known]


def _found(word: str, names: Iterable[str]) -> bool:
    return any(word in name.lower() for name in names)


def _version(text: str) -> tuple[int, ...]:
    """The numbers of a version in their order; what else is in it says nothing about older and newer."""
    return tuple(int(number) for number in re.findall(r"\d+", text))
