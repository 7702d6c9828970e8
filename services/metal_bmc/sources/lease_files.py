"""The lease files of ISC dhcpd and of Kea as sources. A file that did not change is not read again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from metal_bmc.sources import isc, kea, textfile
from metal_bmc.sources.lease import Lease, LeaseFile, Network, Place, Problems, current
from metal_bmc.sources.source import Look, Trouble
from metal_bmc.sources.textfile import Stamp, Unreadable

_TRIES = 3

Parser = Callable[[Iterable[str]], LeaseFile]
Files = Callable[[Path], Sequence[Path]]


@dataclass(frozen=True, slots=True)
class Filter:
    """Which leases are of BMCs: those inside of one of `networks` (none: any), without `ignored_macs`."""

    networks: Sequence[Network] = ()
    ignored_macs: Collection[str] = ()


@dataclass(slots=True)
class _Content:
    """What was read of all files of a source, the latest record of each address."""

    stamps: Sequence[Stamp | None]
    leases: list[Lease] = field(default_factory=list)
    troubles: list[Trouble] = field(default_factory=list)
    trouble_count: int = 0


def isc_file(path: Path, which: Filter) -> LeaseFileSource:
    """dhcpd.leases of ISC dhcpd."""
    return LeaseFileSource(path, which, isc.parse, lambda each: (each,))


def kea_file(path: Path, which: Filter) -> LeaseFileSource:
    """kea-leases4.csv or kea-leases6.csv, with what Kea's clean-up of the file leaves beside it."""
    return LeaseFileSource(path, which, kea.parse, kea_parts)


def kea_parts(path: Path) -> Sequence[Path]:
    """The files that together are the log, in its order.

    As Kea reads them: `.completed` is a clean-up that ended and has all that is before the file itself; without it
    that is `.2`, the result of the clean-up before, and `.1`, what was to be cleaned up (Kea ARM, "kea-lfc").
    """
    done = path.with_name(path.name + ".completed")
    if done.exists():
        return (done, path)
    before = (path.with_name(path.name + ending) for ending in (".2", ".1"))
    return (*(each for each in before if each.exists()), path)


class LeaseFileSource:
    """A `Source`. Reading goes on in a thread, since a file may have hundreds of thousands of lines."""

    def __init__(self, path: Path, which: Filter, parser: Parser, files: Files) -> None:
        self._path, self._which, self._parser, self._files = path, which, parser, files
        self._content: _Content | None = None

    @property
    def name(self) -> str:
        """The file's name."""
        return self._path.name

    async def look(self, now: datetime) -> Look:
        """See `Source`."""
        return await asyncio.to_thread(self._look, now)

    def _look(self, now: datetime) -> Look:
        try:
            content = self._read()
        except Unreadable as error:
            self._content = None
            return Look(troubles=[Trouble(str(self._path), 0, f"cannot be read: {error}", lost=True)], trouble_count=1)
        return Look(self._places(content, now), content.troubles, content.trouble_count)

    def _places(self, content: _Content, now: datetime) -> dict[str, Place]:
        return current(content.leases, now, networks=self._which.networks, ignored_macs=self._which.ignored_macs)

    def _read(self) -> _Content:
        """All files, as they were at one moment: a clean-up that renames them meanwhile has them read again."""
        for _ in range(_TRIES):
            files = self._existing()
            stamps = [textfile.stamp(each) for each in files]
            if self._content is not None and self._content.stamps == stamps:
                return self._content
            content = self._parsed(files, stamps)
            again = self._existing()
            if again == files and _same_files(stamps, [textfile.stamp(each) for each in again]):
                self._content = content
                return content
        raise Unreadable("the files were renamed while they were read, again and again")

    def _existing(self) -> Sequence[Path]:
        try:
            return self._files(self._path)
        except (OSError, ValueError):
            return (self._path,)

    def _parsed(self, files: Sequence[Path], stamps: Sequence[Stamp | None]) -> _Content:
        content = _Content(stamps)
        last: dict[object, Lease] = {}
        for path in files:
            problems = Problems()
            file = self._parser(textfile.lines(path, problems))
            # The later record of an address is the right one, also of a later file; so the order is kept.
            for lease in file.leases:
                last.pop(lease.address, None)
                last[lease.address] = lease
            found = sorted([*problems.noted, *file.problems], key=lambda each: each.line)
            content.troubles += [Trouble(str(path), each.line, each.reason) for each in found]
            content.trouble_count += problems.count + file.problem_count
        content.leases = list(last.values())
        return content


def _same_files(before: Sequence[Stamp | None], after: Sequence[Stamp | None]) -> bool:
    """Whether these are the same files, though they may have grown."""
    return [each and each[:2] for each in before] == [each and each[:2] for each in after]
