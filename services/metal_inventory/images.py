"""Images: ids, and which image a name stands for.

An id is ``<os>-<major>.<minor>[.<patch>]`` with the build date YYYYMMDD as patch, for example
``debian-12.0.20250101``. With a patch it means exactly that image; without, the newest *supported* and unexpired one
of the range. Nothing here looks at an image's content.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum

from metal_inventory.versions import Version, VersionRange, parse_version, spanned

DEFAULT_LIFETIME = timedelta(days=90)
"""How long an image may be used for new installations when its creator gives no expiry."""

_ID = re.compile(r"(?P<os>[a-z][a-z0-9]*(?:[-_][a-z0-9]+)*)-(?P<version>\d[\d.]*)")


class Classification(Enum):
    """How far an image can be trusted."""

    PREVIEW = "preview"
    SUPPORTED = "supported"
    DEPRECATED = "deprecated"


class Unusable(Enum):
    """Why an image must not be installed now."""

    EXPIRED = "IMAGE_EXPIRED"
    DEPRECATED = "IMAGE_DEPRECATED"


@dataclass(frozen=True, slots=True)
class ImageName:
    """What an id or a shorthand says: the operating system, and one version or a range of versions."""

    os: str
    version: Version
    versions: VersionRange
    exact: bool


@dataclass(frozen=True, slots=True)
class Image:
    """What resolution needs to know of an image."""

    id: str
    classification: Classification
    expires: datetime

    @property
    def name(self) -> ImageName:
        """The parsed id."""
        return parse_name(self.id)


def parse_name(text: str) -> ImageName:
    """The parsed id or shorthand (``debian-12``, ``debian-12.0``); ValueError says what an id looks like."""
    found = _ID.fullmatch(text)
    if found is None:
        raise ValueError(f"{text!r} is not an image id like debian-12.0.20250101 or a shorthand like debian-12.0")
    version, given = parse_version(found["version"])
    return ImageName(found["os"], version, spanned(found["version"]), exact=given == 3 and version[2] > 0)


def parse_id(text: str) -> ImageName:
    """The parsed id of an image to create: at least major and minor, and a patch that is a date."""
    name = parse_name(text)
    if text.count(".") < 1:
        raise ValueError(f"{text!r} lacks the minor version: an image id is <os>-<major>.<minor>[.<YYYYMMDD>]")
    if name.exact and not _is_date(name.version[2]):
        raise ValueError(f"the patch version of {text!r} must be the build date as YYYYMMDD")
    return name


def resolve(text: str, images: Iterable[Image], *, now: datetime) -> Image | None:
    """The image that an id or a shorthand stands for, None when there is none; ValueError on a malformed name.

    A full id is taken at its word, whatever its classification: :func:`unusable` says whether it may be installed.
    """
    name = parse_name(text)
    if name.exact:
        return next((image for image in images if image.id == text), None)
    candidates = [
        image
        for image in images
        if image.classification is Classification.SUPPORTED
        and image.expires > now
        and image.name.os == name.os
        and image.name.version in name.versions
    ]
    return max(candidates, key=lambda image: image.name.version, default=None)


def unusable(image: Image, *, now: datetime) -> Unusable | None:
    """Why the image must not be used for a new installation; None when it may."""
    if image.expires <= now:
        return Unusable.EXPIRED
    if image.classification is Classification.DEPRECATED:
        return Unusable.DEPRECATED
    return None


def _is_date(patch: int) -> bool:
    try:
        datetime.strptime(f"{patch:08d}", "%Y%m%d")  # noqa: DTZ007 - a calendar check, no point in time
    except ValueError:
        return False
    return True
