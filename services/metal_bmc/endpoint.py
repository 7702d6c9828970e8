"""The BMC of a machine as this service knows it: address, login, wish and observation. Plain data and its rules."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

MAX_REFUSED_LOGINS = 2
"""BMCs lock an account after three to five wrong passwords, and some count logins of other tools too."""

_SUPERMICRO_DISK = 0x24
_DISK = 0x08
# Boards of these makers ignore the plain disk selector; they want the one of the first remote disk.
_REMOTE_DISK_MAKERS = ("supermicro", "novarion")


@dataclass(frozen=True, slots=True)
class Observation:
    """What the BMC said, and how the last exchange ended."""

    powered: bool | None = None
    observed_at: datetime | None = None
    reason: str = ""
    error: str = ""
    failures: int = 0
    firmware: str = ""
    fru: Mapping[str, str] = field(default_factory=dict)
    inspected_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Configuration:
    """What people decide about a BMC. `sealed` is its encrypted password; `desired_on` None leaves power to others."""

    machine: str
    partition: str
    host: str
    port: int
    mac: str
    login: str
    sealed: bytes | None = field(repr=False)
    desired_on: bool | None


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
    observation: Observation
    refused_logins: int
    revision: int
    version: int
    created_at: datetime
    updated_at: datetime

    @property
    def blocked(self) -> bool:
        """Whether logins have stopped until the credentials change."""
        return self.refused_logins >= MAX_REFUSED_LOGINS

    def same_way_in(self, other: Endpoint) -> bool:
        """Whether both name the same address and credentials."""
        mine = (self.host, self.port, self.login, self.sealed)
        return mine == (other.host, other.port, other.login, other.sealed)

    @property
    def wants_power_change(self) -> bool:
        """Whether the power that was last seen, or never seen, is not the one that is wanted."""
        return self.desired_on is not None and self.observation.powered != self.desired_on

    @property
    def disk_selector(self) -> int:
        """The IPMI boot device byte that means "disk" to this machine's board."""
        makers = f"{self.observation.fru.get('Board manufacturer', '')} {self.observation.fru.get('Manufacturer', '')}"
        return _SUPERMICRO_DISK if any(maker in makers.lower() for maker in _REMOTE_DISK_MAKERS) else _DISK
