"""JSON of a BMC, read with suspicion: every value has the type that it should have, or it is a failure that names it.

Pure: no I/O. Paths that BMCs hand out are followed only when they are plain paths on the same BMC.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import TypeVar
from urllib.parse import urlsplit

from metal_bmc.redfish.failures import BadAnswer

_PATH = re.compile(r"/redfish/v1(?:/[A-Za-z0-9._~!$&'()*+,;=:@%\[\]{}|-]*)*(?:\?[A-Za-z0-9._~!$&'()*+,;=:@%/?-]*)?")
_MESSAGE_ID = re.compile(r"[A-Za-z][A-Za-z0-9_.]{0,127}", re.ASCII)
_LONGEST_PATH = 512
_LONGEST_TEXT = 4096
_SHOWN = 96

_T = TypeVar("_T")


class Document:
    """An object of JSON and the path that it came from. `etag` is for If-Match, empty when there is none."""

    __slots__ = ("_data", "etag", "path")

    def __init__(self, path: str, data: Mapping[str, object], etag: str = "") -> None:
        self.path, self._data, self.etag = path, data, etag

    def __contains__(self, name: str) -> bool:
        """Whether there is a value, which null is not."""
        return self._data.get(name) is not None

    def text(self, name: str) -> str:
        """A text that must be there. Raises BadAnswer."""
        value = self._data.get(name)
        if not isinstance(value, str):
            raise self._bad(name, "a text")
        return _short(value)

    def optional_text(self, name: str) -> str:
        """A text, empty when there is none. Raises BadAnswer for anything else."""
        return self.text(name) if name in self else ""

    def flag(self, name: str) -> bool:
        """True or false, which must be there. Raises BadAnswer."""
        value = self._data.get(name)
        if not isinstance(value, bool):
            raise self._bad(name, "true or false")
        return value

    def number(self, name: str) -> float | None:
        """A finite number, None when there is none. Raises BadAnswer for anything else."""
        value = self._data.get(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self._bad(name, "a number")
        try:
            number = float(value)
        except OverflowError:
            raise self._bad(name, "a number of sensible size") from None
        if not math.isfinite(number):
            raise self._bad(name, "a finite number")
        return number

    def inner(self, name: str) -> Document:
        """An object that must be there. Raises BadAnswer."""
        value = self._data.get(name)
        if not isinstance(value, dict):
            raise self._bad(name, "an object")
        return Document(f"{self.path}#{name}", value)

    def optional_inner(self, name: str) -> Document | None:
        """An object, None when there is none. Raises BadAnswer for anything else."""
        return self.inner(name) if name in self else None

    def inners(self, name: str) -> list[Document]:
        """A list of objects, empty when there is none. Raises BadAnswer for anything else."""
        return [Document(f"{self.path}#{name}", each) for each in self._members(name, dict, "objects")]

    def texts(self, name: str) -> frozenset[str] | None:
        """A list of texts, None when there is none. Raises BadAnswer for anything else."""
        return frozenset(self._members(name, str, "texts")) if name in self else None

    def link(self, name: str) -> str:
        """The path that a reference leads to. Raises BadAnswer."""
        return self.inner(name).target()

    def optional_link(self, name: str) -> str:
        """The path that a reference leads to, empty when there is none. Raises BadAnswer for anything else."""
        return self.link(name) if name in self else ""

    def links(self, name: str) -> list[str]:
        """The paths that a list of references leads to. Raises BadAnswer."""
        return [each.target() for each in self.inners(name)]

    def target(self) -> str:
        """The path that this reference leads to. Raises BadAnswer."""
        return checked_path(self.text("@odata.id"))

    def _members(self, name: str, kind: type[_T], words: str) -> Iterator[_T]:
        value = self._data.get(name)
        if value is None:
            return
        if not isinstance(value, list):
            raise self._bad(name, f"a list of {words}")
        for each in value:
            if not isinstance(each, kind):
                raise self._bad(name, f"a list of {words}")
            yield each

    def _bad(self, name: str, wanted: str) -> BadAnswer:
        value = self._data.get(name)
        got = "missing" if value is None else f"{_NAMES.get(type(value), 'something else')}"
        return BadAnswer(f"{self.path[-_SHOWN:]}: {name} should be {wanted} and is {got}")


_NAMES: dict[type, str] = {
    bool: "true or false",
    str: "a text",
    int: "a number",
    float: "a number",
    list: "a list",
    dict: "an object",
}


def parse(path: str, body: bytes, etag: str = "") -> Document:
    """The object that a body holds. Raises BadAnswer."""
    try:
        data = json.loads(body)
    except (ValueError, RecursionError):
        raise BadAnswer(f"{path[-_SHOWN:]}: the answer is no JSON") from None
    if not isinstance(data, dict):
        raise BadAnswer(f"{path[-_SHOWN:]}: the answer is no JSON object")
    return Document(path, data, etag or _own_etag(data))


def checked_path(text: str) -> str:
    """A path that may be asked for. Raises BadAnswer for whatever leads away from the BMC's Redfish service."""
    parts = text.split("?", maxsplit=1)[0].split("/")
    if len(text) > _LONGEST_PATH or not _PATH.fullmatch(text) or ".." in parts or "" in parts[1:-1]:
        raise BadAnswer("the BMC refers to a path that is none")
    return text


def location_path(value: str) -> str:
    """The path of a Location header, which may be a whole URL. Raises BadAnswer."""
    try:
        parts = urlsplit(value)
    except ValueError:
        raise BadAnswer("the BMC refers to a path that is none") from None
    return checked_path(f"{parts.path}?{parts.query}" if parts.query else parts.path)


def message_ids(body: bytes) -> tuple[str, ...]:
    """The last parts of the message ids in an error's body (DSP0266 §8.6), empty for a body that has none."""
    try:
        data = json.loads(body)
        told = data["error"]
        found = [told.get("code"), *(each.get("MessageId") for each in told.get("@Message.ExtendedInfo", []))]
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
        return ()
    fit = [each for each in found if isinstance(each, str) and _MESSAGE_ID.fullmatch(each)]
    return tuple(dict.fromkeys(each.rpartition(".")[2] for each in fit))


def _own_etag(data: Mapping[str, object]) -> str:
    value = data.get("@odata.etag")
    return value if isinstance(value, str) and fit_for_header(value) else ""


def fit_for_header(value: str) -> bool:
    """Whether a text may be sent back in a header."""
    return 0 < len(value) <= 256 and value.isascii() and value.isprintable()


def _short(value: str) -> str:
    return value[:_LONGEST_TEXT]
