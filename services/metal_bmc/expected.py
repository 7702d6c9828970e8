"""Machines that are expected, and what about a machine that was found is not as expected. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from metal_bmc.drivers.interface import DriverKind
from metal_bmc.endpoint import Endpoint

# The names on the right are those of pyghmi's FRU parser.
_SERIALS = ("Serial Number", "Board serial number", "Chassis serial number")
_VENDORS = ("Manufacturer", "Board manufacturer")
_MODELS = ("Model", "Product name", "Board model", "Board product name")
_NOT_A_WORD = re.compile(r"[^0-9a-z]+")


@dataclass(frozen=True, slots=True)
class Expectation:
    """What people say of a machine that is to come. `sealed` is the initial password, encrypted."""

    id: str
    partition: str
    mac: str
    serial: str
    login: str
    sealed: bytes | None = field(repr=False)
    vendor: str
    model: str
    driver: DriverKind
    rack: str

    @property
    def bound_to(self) -> str:
        """What its password is sealed for: it is no machine yet, and does not open as one's password."""
        return bound_to(self.id)

    @property
    def title(self) -> str:
        """What people know it by."""
        names = [f"serial {self.serial}" if self.serial else "", f"BMC {self.mac}" if self.mac else ""]
        return ", ".join(filter(None, [*names, f"rack {self.rack}" if self.rack else ""]))


def bound_to(expected: str) -> str:
    """What the initial password of the expected machine with that id is sealed for."""
    return f"expected {expected}"


@dataclass(frozen=True, slots=True)
class Difference:
    """Something that is not as expected."""

    field: str
    wanted: str
    seen: str


@dataclass(frozen=True, slots=True)
class KnownDifference:
    """A difference, and since when."""

    difference: Difference
    since: datetime


@dataclass(frozen=True, slots=True)
class ExpectedMachine:
    """An expectation and what became of it. `machine` is empty as long as none was found."""

    expectation: Expectation
    machine: str
    found_at: datetime | None
    revision: int
    created_at: datetime
    updated_at: datetime
    differences: tuple[KnownDifference, ...] = ()


@dataclass(frozen=True, slots=True)
class Attempt:
    """Where a BMC with the expected MAC address was asked in vain, and why it will not be asked again."""

    host: str
    reason: str


def comparable(serial: str) -> str:
    """A serial number without what people write differently."""
    return serial.strip().casefold()


def differences(
    expected: ExpectedMachine, found: Endpoint | None, attempt: Attempt | None, now: datetime, missing: timedelta
) -> list[Difference]:
    """What is not as expected; `missing` is how long a machine may be away before that is one.

    What a BMC does not tell is no difference.
    """
    wish = expected.expectation
    result = [*_presence(expected, found, now, missing)]
    if found is None:
        return [*result, *_in_vain(wish, attempt)]
    told = found.observation.fru
    if wish.mac:
        macs = [mac for mac in (found.mac, found.observation.said_mac) if mac]
        result += _unless(wish.mac in macs, "mac", wish.mac, macs)
    if wish.serial:
        names = _told(told, _SERIALS)
        result += _unless(comparable(wish.serial) in map(comparable, names), "serial", wish.serial, names)
    if wish.vendor:
        names = _told(told, _VENDORS)
        result += _unless(any(_fits(wish.vendor, name) for name in names), "vendor", wish.vendor, names)
    if wish.model:
        names = _told(told, _MODELS)
        result += _unless(_words(wish.model) in map(_words, names), "model", wish.model, names)
    return result + _unless(found.driver is wish.driver, "driver", wish.driver, [found.driver])


def _presence(
    expected: ExpectedMachine, found: Endpoint | None, now: datetime, missing: timedelta
) -> Iterable[Difference]:
    if found is None:
        if now - expected.created_at >= missing:
            yield Difference("presence", "a BMC that is found", f"none since {_minute(expected.created_at)}")
        return
    seen = [each for each in (found.observation.observed_at, expected.found_at, found.created_at) if each is not None]
    if now - max(seen) >= missing:
        yield Difference("presence", "a BMC that answers", f"no answer since {_minute(max(seen))}")


def _in_vain(wish: Expectation, attempt: Attempt | None) -> Iterable[Difference]:
    if attempt is None:
        return
    if attempt.reason == "AUTH_FAILED":
        login = f"user {wish.login} with the initial password" if wish.login else "the factory login"
        yield Difference("login", login, f"refused at {attempt.host}")
    else:
        yield Difference("onboarding", "a BMC that names its machine", f"{attempt.reason} at {attempt.host}")


def _unless(right: bool, name: str, wanted: str, seen: Iterable[str]) -> list[Difference]:
    names = list(dict.fromkeys(seen))
    return [] if right or not names else [Difference(name, wanted, ", ".join(names))]


def _told(fru: Mapping[str, str], names: Iterable[str]) -> list[str]:
    return [text for name in names if (text := fru.get(name, "").strip())]


def _words(text: str) -> str:
    return _NOT_A_WORD.sub("", text.lower())


def _fits(wanted: str, name: str) -> bool:
    """`Supermicro` is also `Super Micro Computer, Inc.`: makers write themselves in many ways."""
    one, other = _words(wanted), _words(name)
    return bool(one and other) and (one in other or other in one)


def _minute(at: datetime) -> str:
    return f"{at:%Y-%m-%d %H:%MZ}"
