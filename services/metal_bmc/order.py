"""What a caller asks for with a command, and what may be asked for. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from metal_kit.errors import InvalidArgument

from metal_bmc.drivers.interface import BootMode
from metal_bmc.plan import Action, sets_boot

_DEFAULT = timedelta(minutes=1)
# What an operating system may need to stop its services and databases.
_SOFT_OFF = timedelta(minutes=10)
_BY_HAND = timedelta(hours=24)
_MOST = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class Order:
    """A command as it is asked for; None leaves the choice to the action. `hard_after` is what the system has for a
    soft off until the machine is switched off hard, None: never."""

    machine: str
    action: Action
    allocation: str = ""
    boot_persistent: bool | None = None
    boot_mode: BootMode | None = None
    hard_after: timedelta | None = None
    timeout: timedelta | None = None

    def check(self) -> None:
        """Raise InvalidArgument for options that the action does not have, or that leave it no time."""
        for field, value in (("boot_lasting", self.boot_persistent), ("boot_mode", self.boot_mode)):
            if value is not None and not sets_boot(self.action):
                raise InvalidArgument("NOT_OF_THE_ACTION", "only with an action that sets the boot device", field=field)
        if self.hard_after is None:
            return
        if self.action is not Action.SOFT_OFF:
            raise InvalidArgument("NOT_OF_THE_ACTION", "only with SOFT_OFF", field="hard_after")
        if self.timeout is not None and self.hard_after >= self.timeout:
            raise InvalidArgument(
                "NO_TIME_LEFT", "must be shorter than `timeout`, or the hard power off never comes", field="hard_after"
            )

    def time(self, *, by_hand: bool) -> timedelta:
        """How long it may take. Raises InvalidArgument for a time that only a person may take."""
        most = _BY_HAND if by_hand else _MOST
        if self.timeout is not None and self.timeout > most:
            text = f"at most {most.total_seconds() / 3600:g} h; more is for machines without a BMC"
            raise InvalidArgument("TIMEOUT_TOO_LONG", text, field="timeout")
        if self.timeout is not None:
            return self.timeout
        if by_hand:
            return _BY_HAND
        if self.action is not Action.SOFT_OFF:
            return _DEFAULT
        return _SOFT_OFF if self.hard_after is None else self.hard_after + _DEFAULT
