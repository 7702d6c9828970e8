"""Replacing the plane's authority while it runs: first everybody trusts both, then the new one signs, and at last the
old one is forgotten. Each step changes the authority's folder only; what everybody has follows with `metal-init plane`.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path

from metal_kit.ca import Authority

from metal_init import files
from metal_init.certificates import AUTHORITY, NEXT, PREVIOUS


class Step(StrEnum):
    """The steps, in order."""

    NEXT = "next"
    SWITCH = "switch"
    RETIRE = "retire"


class OutOfOrder(Exception):
    """The step cannot be taken now; the text says which one can."""


def take(step: Step, root: Path) -> str:
    """Take one step; what it means for whoever runs it. Raises OutOfOrder, and changes nothing then.

    A step that was cut off by a crash is taken again: whatever it has done before is left as it is.
    """
    folder = root / AUTHORITY
    coming, gone = (folder / f"{name}.crt" for name in (NEXT, PREVIOUS))
    match step:
        case Step.NEXT:
            if gone.exists():
                raise OutOfOrder("the roll-over before has not ended: metal-init authority retire")
            if not coming.exists():
                Authority.create("metalplane").save(folder, NEXT)
            return "a new authority is there and signs nothing yet; let everybody trust it, then: authority switch"
        case Step.SWITCH:
            if not coming.exists():
                raise OutOfOrder("there is no new authority: metal-init authority next")
            _switch(folder)
            return "the new authority signs; let everybody have a certificate of it, then: authority retire"
        case Step.RETIRE:
            if coming.exists() or not gone.exists():
                raise OutOfOrder("no authority waits to be retired: metal-init authority next, and then switch")
            gone.unlink()
            return "the old authority is trusted no longer, once everybody has taken that up"


def _switch(folder: Path) -> None:
    """The new pair takes the place of the old one, in an order in which a crash leaves nothing that cannot go on.

    The old certificate is kept first. For as long as the new one's is there, the step is not done, and is done again
    with the same result; so its key goes after it.
    """
    successor = Authority.load(folder, NEXT)
    present = (folder / "ca.crt").read_bytes()
    if present != successor.cert:
        files.write_if_changed(folder / f"{PREVIOUS}.crt", present)
    successor.save(folder)
    (folder / f"{NEXT}.crt").unlink()
    (folder / f"{NEXT}.key").unlink()
