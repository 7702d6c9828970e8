"""Writing the token of a context: the rest of the file stays, and at no moment is there half a file."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from pathlib import Path

from metalctl.context import ContextError

MODE = 0o600


def set_token(path: Path, token: str) -> None:
    """Put a token into a context file, or take it out (empty). Nobody else can read the file afterwards.

    Raises ContextError when the file cannot be read or replaced.
    """
    # The file itself, not the link that leads to it.
    target = path.resolve()
    try:
        content = json.loads(target.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ContextError(f"{path}: has to be a JSON object")
        content.pop("token", None)
        if token:
            content["token"] = token
        replace_file(target, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    except OSError as error:
        raise ContextError(f"{path}: cannot be written: {error.strerror}") from None
    except ValueError:
        raise ContextError(f"{path}: is not JSON") from None


def replace_file(target: Path, text: str) -> None:
    """Put a file that only its owner can read in the place of another one, or of none. Raises OSError."""
    # mkstemp makes it readable for its owner only, from its first moment on.
    descriptor, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            os.fchmod(file.fileno(), MODE)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(target)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(name).unlink()
        raise
