"""Which methods erase which kind of disk, best first. Pure data; `erase.py` carries them out.

A disk that does not support a method fails its probe or its command, and the next method is tried; the last one for
every kind is the full overwrite, which every disk supports. A quick `mkfs` is deliberately not among them: it leaves
the data where it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

HOUR = 3600.0
PASSWORD = "metalplane"  # noqa: S105 - not a secret: ATA wants one to be set before it erases, and clears it by erasing


class After(StrEnum):
    """What the disk reads as after a method that worked."""

    ZEROS = "zeros"
    """All zeros."""
    UNDEFINED = "undefined"
    """Anything but the old data: a changed encryption key leaves noise behind, for instance."""


@dataclass(frozen=True, slots=True)
class Command:
    """One external program. `deadline` is in seconds."""

    argv: tuple[str, ...]
    deadline: float


@dataclass(frozen=True, slots=True)
class Probe:
    """A question to the disk: its output must hold each of `present` and none of `absent`."""

    command: Command
    present: tuple[str, ...]
    absent: tuple[str, ...] = ()

    def holds(self, said: str) -> bool:
        """Whether the answer, its white space squeezed to single blanks, is the wanted one."""
        return all(each in said for each in self.present) and not any(each in said for each in self.absent)


@dataclass(frozen=True, slots=True)
class Method:
    """One way to erase a disk. No commands means that the installer overwrites the disk by itself.

    `undo` runs when a command failed, to leave the disk usable for the next method.
    """

    name: str
    after: After
    commands: tuple[Command, ...] = ()
    probe: Probe | None = None
    undo: tuple[Command, ...] = ()


OVERWRITE = Method("overwrite", After.ZEROS)


def methods(*, kind: str, device: str) -> Sequence[Method]:
    """The methods for a disk of `kind` (`nvme`, `ssd`, `hdd`; anything else is treated as `hdd`), best first."""
    if kind == "nvme":
        return (_nvme_format(device, 2), _nvme_format(device, 1), _zeroout(device), OVERWRITE)
    if kind == "ssd":
        return (_ata_erase(device, enhanced=True), _ata_erase(device, enhanced=False), _zeroout(device), OVERWRITE)
    return (_ata_erase(device, enhanced=False), OVERWRITE)


def _nvme_format(device: str, setting: int) -> Method:
    """NVM Express, Format NVM: secure erase setting 2 throws the media key away, 1 erases all user data."""
    name = {1: "nvme-format-erase", 2: "nvme-format-crypto"}[setting]
    command = Command(("nvme", "format", device, f"--ses={setting}", "--force"), HOUR)
    return Method(name, After.UNDEFINED, (command,))


def _ata_erase(device: str, *, enhanced: bool) -> Method:
    """ATA security erase (ACS-3, 7.42). A drive whose security firmware has frozen refuses it until a power cycle.

    The erase needs a password to be set first. When the erase then fails, the password has to go again: a drive that
    keeps it is locked after its next power cycle.
    """
    identify = Command(("hdparm", "-I", device), 30.0)
    present = ("Security:", "not frozen", *(("supported: enhanced erase",) if enhanced else ()))
    erase = "--security-erase-enhanced" if enhanced else "--security-erase"
    return Method(
        "ata-secure-erase-enhanced" if enhanced else "ata-secure-erase",
        After.UNDEFINED,
        (
            Command(("hdparm", "--user-master", "u", "--security-set-pass", PASSWORD, device), 30.0),
            Command(("hdparm", "--user-master", "u", erase, PASSWORD, device), 24 * HOUR),
        ),
        probe=Probe(identify, present=present, absent=("not supported: enhanced erase",) if enhanced else ()),
        undo=(Command(("hdparm", "--user-master", "u", "--security-disable", PASSWORD, device), 30.0),),
    )


def _zeroout(device: str) -> Method:
    """Zeros through the block layer, which hands them to the disk as one operation where the disk can."""
    return Method("zero-out", After.ZEROS, (Command(("blkdiscard", "--zeroout", "--force", device), 12 * HOUR),))
