"""What fields of ports were before the plane's wishes for them, kept on the leaf's disk for the way back.

Of a port's speed and error correction a state usually says nothing, and then they are the hardware description's. So
when a wish for one is carried out the value that it replaces is noted here before anything is touched, with the states
that the leaf could go back to at that time. Whoever goes back to one of them, the agent or a person, after a trial, a
crash or a confirmation, brings the field back as well. A newer state that no longer mentions the field leaves it.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from metal_kit import logs

from metal_core.configdb import Former, Rows, former, name_of
from metal_core.desired import Desired
from metal_core.known_good import replace_file
from metal_core.outcome import Standing
from metal_core.plan import Condition, Fact

FORMAT = 1
_FACTS: Mapping[str, Fact] = {"speed": Fact.SPEED, "fec": Fact.FEC}
_log = logs.get_logger("metal_core.former")


@dataclass(frozen=True, slots=True)
class FormerField:
    """A field of a row of CONFIG_DB that `was` otherwise, None for not there, before the values that are `ours`.

    `before` are the states under which it was so. `proven`: the switch was seen to have taken the value.
    """

    row: str
    field: str
    was: str | None
    ours: tuple[str, ...]
    before: tuple[Standing, ...]
    proven: bool = False


class FormerFields:
    """The fields, in one file; `load` comes before everything else."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fields: tuple[FormerField, ...] | None = None

    async def load(self) -> None:
        """Read the file; only the first call does. One that cannot be read counts as empty, and says why."""
        if self._fields is None:
            self._fields = await asyncio.to_thread(_read, self._path)

    def back(self, desired: Desired, rows: Rows) -> Former:
        """The fields that the way to `desired` brings back on a leaf whose CONFIG_DB has `rows`.

        What somebody else has changed since is theirs.
        """
        found: dict[str, dict[str, str | None]] = {}
        for each in self._fields or ():
            if standing_of(desired) in each.before and rows.get(each.row, {}).get(each.field) in each.ours:
                found.setdefault(each.row, {})[each.field] = each.was
        return found

    async def note(self, desired: Desired, before: Rows, target: Rows, back: Collection[Standing]) -> None:
        """A run is about to lead from `before` to `target`; from there one can go `back` to those states.

        Raises OSError when that cannot be noted.
        """
        known = {(each.row, each.field): each for each in self._fields or ()}
        for row, fields in former(before, target).items():
            for name, was in fields.items():
                value, last = target[row][name], known.get((row, name))
                states = tuple(each for each in back if each != standing_of(desired))
                if last is not None and was in last.ours:
                    # It was ours already; what was before that counts.
                    known[row, name] = replace(last, ours=(*last.ours, value), proven=False)
                else:
                    known[row, name] = FormerField(row, name, was, (value,), states)
        await self._keep(tuple(known.values()))

    def unproven(self, target: Rows) -> tuple[Condition, ...]:
        """What the switch has to show of the fields in `target` that have been changed and were not seen to work."""
        return tuple(
            Condition(_FACTS[each.field], name_of(each.row), target[each.row][each.field])
            for each in self._fields or ()
            if not each.proven and each.field in _FACTS and each.field in target.get(each.row, {})
        )

    async def settle(self, target: Rows, returned: Former, back: Collection[Standing]) -> None:
        """The leaf has `target`, to which the run has `returned` fields, and from there one can go `back` to those
        states: what none of them needs is forgotten."""
        kept = []
        for each in self._fields or ():
            value = target.get(each.row, {}).get(each.field)
            if each.field not in returned.get(each.row, {}) and set(each.before) & set(back):
                kept.append(replace(each, ours=each.ours if value is None else (value,), proven=True))
        try:
            await self._keep(tuple(kept))
        except OSError as error:
            # The next run settles it. Until then there is more to go back to than is needed.
            _log.error("former.not_settled", path=str(self._path), error=repr(error))

    async def _keep(self, fields: tuple[FormerField, ...]) -> None:
        if fields == (self._fields or ()):
            return
        if fields:
            text = json.dumps({"format": FORMAT, "fields": [asdict(each) for each in fields]}, indent=1) + "\n"
            await asyncio.to_thread(replace_file, self._path, text)
        else:
            await asyncio.to_thread(self._path.unlink, missing_ok=True)
        self._fields = fields


def standing_of(desired: Desired) -> Standing:
    """What a state is called."""
    return Standing(desired.generation, desired.digest)


def _read(path: Path) -> tuple[FormerField, ...]:
    try:
        return _from_json(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return ()
    except (OSError, ValueError, KeyError, TypeError) as error:
        # Then the fields stay as they are.
        _log.error("former.unreadable", path=str(path), error=repr(error))
        return ()


def _from_json(data: Mapping[str, Any]) -> tuple[FormerField, ...]:
    if data["format"] != FORMAT:
        raise ValueError(f"format {data['format']!r} is not {FORMAT}")
    return tuple(
        FormerField(
            row=str(each["row"]),
            field=str(each["field"]),
            was=None if each["was"] is None else str(each["was"]),
            ours=tuple(str(value) for value in each["ours"]),
            before=tuple(Standing(int(generation), str(digest)) for generation, digest in each["before"]),
            proven=bool(each["proven"]),
        )
        for each in data["fields"]
    )
