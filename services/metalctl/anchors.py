"""Anchors: the heads of the audit chains, noted outside of the plane whose databases keep the chains.

A chain by itself shows edits and gaps. That its end was cut off, or all of it written anew, shows only to somebody who
remembers where it ended. The file is a JSON object: by service, `sequence` and `hash` of the last entry and the `time`
at which that was noted.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from metal_kit.audit.chain import Anchor

from metalctl.context_file import replace_file


class AnchorError(Exception):
    """The file cannot be read, written or understood; the text says which and why."""


def load(path: Path) -> dict[str, Anchor]:
    """The anchors by service; none when there is no file yet. Raises AnchorError."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return {
            str(service): Anchor(
                int(noted["sequence"]),
                bytes.fromhex(noted["hash"]),
                datetime.fromisoformat(noted["time"]).astimezone(UTC),
            )
            for service, noted in content.items()
        }
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise AnchorError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, TypeError, KeyError, AttributeError):
        raise AnchorError(f"{path}: holds no anchors of audit chains") from None


def save(path: Path, anchors: Mapping[str, Anchor]) -> None:
    """Replace the file. Raises AnchorError."""
    content = {
        service: {"sequence": anchor.sequence, "hash": anchor.hash.hex(), "time": anchor.time.isoformat()}
        for service, anchor in sorted(anchors.items())
    }
    try:
        replace_file(path.resolve(), json.dumps(content, indent=2) + "\n")
    except OSError as error:
        raise AnchorError(f"{path}: cannot be written: {error.strerror}") from None
