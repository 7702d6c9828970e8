"""The BMC of a machine as this service knows it: address, login, wish and observation. Plain data and its rules."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum

from metal_bmc.drivers.interface import Capability, DriverKind
from metal_bmc.drivers.quirks import Board, Quirks, quirks_of
from metal_bmc.identity import Match, judge, serials

MAX_REFUSED_LOGINS = 2
"""BMCs lock an account after three to five wrong passwords, and some count logins of other tools too."""

# The names of pyghmi's FRU parser.
_MAKERS = ("Board manufacturer", "Manufacturer")
_MODELS = ("Board model", "Board product name", "Model", "Product name")


WISH_SPAN = timedelta(minutes=10)
"""How long a machine may take to get the power that is wanted; later it is tried on, and counts as overdue."""


class Policy(StrEnum):
    """What is done about a machine whose power is not the wanted one: bring it about; nothing; or nothing, and nobody
    may switch it on either, since somebody works on it."""

    ENFORCE = "enforce"
    OBSERVE = "observe"
    MAINTENANCE = "maintenance"


@dataclass(frozen=True, slots=True)
class PowerWish:
    """How it goes with the power that is wanted. The generation rises with each change of the wish; the observed one is
    that under which the power was last seen as wanted. `reason` and `error` are of the last attempt."""

    policy: Policy = Policy.ENFORCE
    generation: int = 0
    observed_generation: int = 0
    deadline: datetime | None = None
    attempts: int = 0
    reason: str = ""
    error: str = ""


@dataclass(frozen=True, slots=True)
class Observation:
    """What the BMC said, and how the last exchange ended. `capabilities` is empty as long as nothing is known of them;
    `guid`, `manufacturer` and `said_mac` are as in `DeviceInfo`."""

    powered: bool | None = None
    observed_at: datetime | None = None
    reason: str = ""
    error: str = ""
    failures: int = 0
    firmware: str = ""
    fru: Mapping[str, str] = field(default_factory=dict)
    inspected_at: datetime | None = None
    capabilities: frozenset[Capability] = frozenset()
    guid: bytes = b""
    manufacturer: int = 0
    said_mac: str = ""


@dataclass(frozen=True, slots=True)
class Configuration:
    """What people decide about a BMC. `sealed` is its encrypted password; `desired_on` None leaves power to others.

    `serial` is a serial number of the machine, its board or its chassis, where somebody knows one.
    """

    machine: str
    partition: str
    host: str
    port: int
    mac: str
    login: str
    sealed: bytes | None = field(repr=False)
    desired_on: bool | None
    driver: DriverKind
    serial: str
    rack: str = ""
    policy: Policy = Policy.ENFORCE


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One BMC. `sealed` is its encrypted password; `desired_on` None leaves the power to others."""

    machine: str
    partition: str
    host: str
    port: int
    mac: str
    login: str
    sealed: bytes | None = field(repr=False)
    desired_on: bool | None
    driver: DriverKind
    serial: str
    observation: Observation
    refused_logins: int
    revision: int
    version: int
    created_at: datetime
    updated_at: datetime
    # Machines of one rack share a power feed. Empty: not known.
    rack: str = ""
    # Since when the BMC has been unreachable (`metal_bmc.pacing.opens`); None while it is not.
    silent_since: datetime | None = None
    next_look_at: datetime | None = None
    wish: PowerWish = PowerWish()

    @property
    def blocked(self) -> bool:
        """Whether logins have stopped until the credentials change."""
        return self.refused_logins >= MAX_REFUSED_LOGINS

    @property
    def unreachable(self) -> bool:
        """Whether it has been silent for so long that only probes and people's orders are tried."""
        return self.silent_since is not None

    def same_way_in(self, other: Endpoint) -> bool:
        """Whether both name the same address and credentials."""
        return self._way_in() == other._way_in()

    def _way_in(self) -> tuple[object, ...]:
        return (self.driver, self.host, self.port, self.login, self.sealed)

    @property
    def calm(self) -> bool:
        """Whether it answered the last time, without a trace of trouble: the next answer is probably the same."""
        seen = self.observation
        well = seen.observed_at is not None and not seen.reason and not seen.failures
        return well and not self.refused_logins and self.sealed is not None and self.host != ""

    @property
    def wants_power_change(self) -> bool:
        """Whether the power that was last seen, or never seen, is not the one that is wanted."""
        enforced = self.wish.policy is Policy.ENFORCE
        return enforced and self.desired_on is not None and self.observation.powered != self.desired_on

    @property
    def by_hand(self) -> bool:
        """Whether there is no BMC, and a person does what is ordered."""
        return self.driver is DriverKind.MANUAL

    def lacks(self, needed: Iterable[Capability]) -> list[Capability]:
        """Which of the capabilities the BMC is known not to have; none as long as nothing is known."""
        able = self.observation.capabilities
        return [each for each in needed if each not in able] if able else []

    @property
    def match(self) -> Match:
        """Whether the BMC that answers is the machine's own, by all that is known and all that it says."""
        seen = self.observation
        return judge(
            self.machine,
            guid=seen.guid,
            order=self.quirks.guid_order,
            serial=self.serial,
            said_serials=serials(seen.fru),
            mac=self.mac,
            said_mac=seen.said_mac,
        )

    @property
    def quirks(self) -> Quirks:
        """How this machine's board wants to be treated."""
        seen = self.observation
        makers, models = (tuple(filter(None, map(seen.fru.get, names))) for names in (_MAKERS, _MODELS))
        return quirks_of(Board(makers, models, seen.firmware, seen.manufacturer))
