"""What discovery wants of a place where BMCs may be found, whatever it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from metal_bmc.sources.lease import Place


@dataclass(frozen=True, slots=True)
class Trouble:
    """Something that a source could not read: in which file, on which line (0: the file as a whole), and why.

    With `lost` nothing of the source could be used, so that what it does not show may be there all the same.
    """

    where: str
    line: int
    reason: str
    lost: bool = False


@dataclass(frozen=True, slots=True)
class Look:
    """What a source shows at a moment: where BMCs are, by MAC address, and what it had trouble with.

    `trouble_count` counts those too that `troubles` leaves out.
    """

    places: Mapping[str, Place] = field(default_factory=dict)
    troubles: Sequence[Trouble] = ()
    trouble_count: int = 0


class Source(Protocol):
    """Looked at again and again; holds nothing open in between."""

    @property
    def name(self) -> str:
        """What people know it by, such as the name of its file."""
        ...

    async def look(self, now: datetime) -> Look:
        """Look. Raises nothing for what it reads: trouble is part of the answer."""
        ...
