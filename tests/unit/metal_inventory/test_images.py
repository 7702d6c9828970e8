from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from metal_inventory.images import Classification, Image, Unusable, parse_id, parse_name, resolve, unusable

NOW = datetime(2026, 3, 1, tzinfo=UTC)
PREVIEW, SUPPORTED, DEPRECATED = Classification


def image(id_: str, classification: Classification = SUPPORTED, *, days: int = 30) -> Image:
    return Image(id_, classification, NOW + timedelta(days=days))


IMAGES = [
    image("debian-12.0.20250101"),
    image("debian-12.0.20250301"),
    image("debian-12.0.20250401", PREVIEW),
    image("debian-12.0.20250501", DEPRECATED),
    image("debian-12.0.20250601", days=-1),
    image("debian-12.1.20240101"),
    image("debian-13.0.20260101", PREVIEW),
    image("debian-nvidia-12.0.20260101"),
]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("debian-12.0", "debian-12.0.20250301"),
        ("debian-12", "debian-12.1.20240101"),
        ("debian-nvidia-12.0", "debian-nvidia-12.0.20260101"),
        ("debian-12.0.20250101", "debian-12.0.20250101"),
        ("debian-12.0.20250501", "debian-12.0.20250501"),
        ("debian-12.0.20250601", "debian-12.0.20250601"),
        ("debian-13.0", None),
        ("debian-12.0.20990101", None),
        ("ubuntu-24.4", None),
    ],
)
def test_a_name_stands_for_one_image(text: str, expected: str | None) -> None:
    found = resolve(text, IMAGES, now=NOW)
    assert (found.id if found else None) == expected


def test_an_image_expires_exactly_at_its_time() -> None:
    one = image("debian-12.0.20250101", days=0)
    assert unusable(one, now=NOW) is Unusable.EXPIRED
    assert unusable(one, now=NOW - timedelta(seconds=1)) is None
    assert resolve("debian-12.0", [one], now=NOW) is None


def test_a_deprecated_image_may_not_be_installed_but_a_preview_may() -> None:
    assert unusable(image("debian-12.0.20250501", DEPRECATED), now=NOW) is Unusable.DEPRECATED
    assert unusable(image("debian-12.0.20250401", PREVIEW), now=NOW) is None


def test_an_operating_system_may_contain_hyphens_and_digits() -> None:
    name = parse_name("firewall-ubuntu2-3.0.20250101")
    assert (name.os, name.version, name.exact) == ("firewall-ubuntu2", (3, 0, 20250101), True)


@pytest.mark.parametrize(
    "text", ["", "debian", "debian-", "-12.0", "debian-12.", "debian-12..1", "Debian-12.0", "d-1.2.3.4"]
)
def test_a_malformed_name_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"image id|version"):
        parse_name(text)


@pytest.mark.parametrize("text", ["debian-12", "debian-12.0.20251301", "debian-12.0.7"])
def test_an_id_to_create_needs_a_minor_version_and_a_date(text: str) -> None:
    with pytest.raises(ValueError, match=r"minor|YYYYMMDD"):
        parse_id(text)


@given(st.lists(st.sampled_from(IMAGES), unique=True), st.sampled_from(["debian-12", "debian-12.0", "debian-13"]))
def test_a_shorthand_never_gives_an_unusable_image_nor_an_older_one(images: list[Image], text: str) -> None:
    found = resolve(text, images, now=NOW)
    good = [
        one
        for one in images
        if one.classification is SUPPORTED
        and one.expires > NOW
        and one.name.os == "debian"
        and one.id.startswith((text + ".", text))
    ]
    assert (found is None) == (not good)
    if found is not None:
        assert found in good
        assert all(found.name.version >= one.name.version for one in good)
