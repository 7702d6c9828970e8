"""The last known good state on the leaf's own disk: what was applied and proven, for the next start.

The file is replaced atomically (written beside, synced, renamed, directory synced), so a crash at any moment leaves the
old one or the new one. A file that cannot be read counts as absent, and says why: a leaf without memory waits for the
control plane, it does not guess.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from metal_kit import logs

from metal_core.desired import Desired, from_json, to_json

FORMAT = 1
_log = logs.get_logger("metal_core.known_good")


@dataclass(frozen=True, slots=True)
class KnownGood:
    """A state that was applied and verified, and when (seconds since the epoch, by the leaf's clock)."""

    desired: Desired
    applied_at: float


class KnownGoodFile:
    """The file below the agent's state directory, and beside it the one with what was known to be good before."""

    def __init__(self, directory: Path, name: str = "last-known-good.json") -> None:
        self.path = directory / name

    @property
    def previous(self) -> KnownGoodFile:
        """The state before the last one that differs from it in more than its number."""
        return KnownGoodFile(self.path.parent, "previous-known-good.json")

    async def load(self) -> KnownGood | None:
        """What was stored last; None when there is nothing that can be used."""
        try:
            text = await asyncio.to_thread(self.path.read_text, encoding="utf-8")
            return _from_json(json.loads(text))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            _log.error("known_good.unreadable", path=str(self.path), error=repr(error))
            return None

    async def store(self, good: KnownGood) -> None:
        """Replace the file. Raises OSError when the disk refuses; the old file is then still there."""
        last = await self.load()
        if last is not None and _content(last.desired) != _content(good.desired):
            await self.previous._write(last)
        await self._write(good)

    async def _write(self, good: KnownGood) -> None:
        text = json.dumps(_to_json(good), indent=1, sort_keys=True) + "\n"
        await asyncio.to_thread(replace_file, self.path, text)


def replace_file(path: Path, text: str) -> None:
    """Write `text` to `path` so that a crash leaves either the old content or the new, complete one. Blocking."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".tmp")
    with beside.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _content(desired: Desired) -> Desired:
    return replace(desired, generation=0, digest="")


def _to_json(good: KnownGood) -> dict[str, Any]:
    return {"format": FORMAT, "applied_at": good.applied_at, "desired": to_json(good.desired)}


def _from_json(data: Mapping[str, Any]) -> KnownGood:
    if data["format"] != FORMAT:
        raise ValueError(f"format {data['format']!r} is not {FORMAT}")
    return KnownGood(from_json(data["desired"]), float(data["applied_at"]))
