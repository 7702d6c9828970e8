"""Where the state of a command comes from: the leaf's own memory, or a file that a person has written."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from metal_core.checks import check_desired
from metal_core.cli.failure import MISSING, USAGE, CommandFailed
from metal_core.desired import Desired, from_json, to_json
from metal_core.known_good import KnownGood, KnownGoodFile
from metal_core.records import BadRecord

# More than a leaf's state can be; what is longer is another file.
MAX_BYTES = 4 << 20
_LOCAL = "local-"


@dataclass(frozen=True, slots=True)
class Wish:
    """A state and, in words, where it is from."""

    desired: Desired
    origin: str


async def remembered(memory: KnownGoodFile, what: str = "last known good state") -> Wish:
    """What the file of a known good state says. Raises CommandFailed when there is none that can be used."""
    good = await memory.load()
    if good is None:
        raise CommandFailed(
            f"{memory.path}: there is no {what} that can be read; name a state by --wish FILE, or check "
            "METALPLANE_STATE_DIRECTORY",
            MISSING,
        )
    return Wish(good.desired, f"the {what} ({told(good)})")


def read_file(path: Path, memory: KnownGood | None) -> Wish:
    """The state in a file, as the leaf's own. Raises CommandFailed naming file, field and what is wrong. Blocking."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise CommandFailed(f"{path}: longer than {MAX_BYTES} bytes; this is not the state of one leaf", USAGE)
        data: Any = json.loads(content)
    except OSError as error:
        raise CommandFailed(f"{path}: {error.strerror}", USAGE) from error
    except ValueError as error:
        raise CommandFailed(f"{path}: not JSON: {error}", USAGE) from error
    if isinstance(data, dict) and "desired" in data:
        data = data["desired"]
    try:
        desired = from_json(data, strict=True)
    except BadRecord as error:
        raise CommandFailed(f"{path}: {error}", USAGE) from error
    if findings := check_desired(desired):
        raise CommandFailed(f"{path}: {'; '.join(findings)}", USAGE)
    return Wish(_as_local(desired, memory), str(path))


def is_local(desired: Desired) -> bool:
    """Whether the state is a person's on the leaf and none of the plane's."""
    return desired.digest.startswith(_LOCAL)


def told(good: KnownGood) -> str:
    """Which state it is and since when, for people."""
    return f"{name_of(good.desired)} of {_time(good.applied_at)}"


def name_of(desired: Desired) -> str:
    """What to call a state: its generation, and whether it is the plane's."""
    return f"generation {desired.generation}{', changed by hand' if is_local(desired) else ''}"


def _as_local(desired: Desired, memory: KnownGood | None) -> Desired:
    """The same content with a name of its own.

    Under the generation and the hash of the plane's the agent would later say that the plane's state is applied. With a
    hash that the plane has never made, it makes a new generation above this one, and so takes the leaf back.
    """
    if memory is not None and desired == memory.desired:
        return desired
    generation = max(memory.desired.generation if memory else 0, 1)
    content = json.dumps(to_json(replace(desired, generation=0, digest="")), sort_keys=True)
    return replace(desired, generation=generation, digest=_LOCAL + hashlib.sha256(content.encode()).hexdigest()[:32])


def _time(seconds: float) -> str:
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (OverflowError, ValueError, OSError):
        return "an unknown time"
