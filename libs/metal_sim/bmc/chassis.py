"""The machine's side of a simulated BMC: power, boot override, identify light.

The lab's firmware simulation hangs on `on_power` and reads `boot_override()` at every boot. A hook is called after
the state has changed, from the event loop, and must not block; it starts or stops tasks and returns.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum

_VALID = 0x80
_PERSISTENT = 0x40
_UEFI = 0x20


class ChassisControl(IntEnum):
    """Chassis Control actions (IPMI 2.0 table 28-4)."""

    OFF = 0
    ON = 1
    CYCLE = 2
    RESET = 3
    NMI = 4
    SOFT_OFF = 5


class PowerAction(StrEnum):
    """What happened to the machine. A cycle shows as OFF and, a moment later, ON."""

    OFF = "off"
    ON = "on"
    RESET = "reset"
    NMI = "nmi"
    SOFT_OFF = "soft-off"


class BootDevice(IntEnum):
    """Boot device selector (IPMI 2.0 table 28-14, parameter 5 data 2 bits 5:2)."""

    NONE = 0
    PXE = 1
    DISK = 2
    SAFE_MODE = 3
    DIAGNOSTIC = 4
    CD = 5
    SETUP = 6
    REMOTE_MEDIA = 9
    FLOPPY = 15


@dataclass(frozen=True)
class BootOverride:
    """A valid boot override. `device` is the raw selector where no name is known."""

    device: int
    persistent: bool
    uefi: bool


PowerHook = Callable[[PowerAction], None]


@dataclass
class Chassis:
    """State of one machine as its BMC drives it. `cycle_seconds` is how long it stays off during a power cycle."""

    powered: bool = False
    cycle_seconds: float = 0.05
    on_power: PowerHook | None = None
    flags: bytes = b"\x00\x00\x00\x00\x00"
    identify_forced: bool = False
    identify_until: float = 0.0
    history: list[PowerAction] = field(default_factory=list)
    _pending_on: asyncio.TimerHandle | None = None

    def control(self, action: ChassisControl) -> bool:
        """Carry out a chassis control request; False when the present state does not allow it.

        Raises ValueError for a number that is no action.
        """
        action = ChassisControl(action)
        if action is ChassisControl.ON:
            self._switch(on=True)
        elif action is ChassisControl.OFF:
            self._switch(on=False)
        elif not self.powered:
            return False
        elif action is ChassisControl.CYCLE:
            self._switch(on=False)
            loop = asyncio.get_running_loop()
            self._pending_on = loop.call_later(self.cycle_seconds, self._switch_on_again)
        elif action is ChassisControl.RESET:
            self._happened(PowerAction.RESET)
        elif action is ChassisControl.NMI:
            self._happened(PowerAction.NMI)
        elif self.on_power is None:
            self._switch(on=False)
        else:
            # An operating system has to follow the request: the simulated one calls `machine_powered_off`.
            self._happened(PowerAction.SOFT_OFF)
        return True

    def machine_powered_off(self) -> None:
        """The machine switched itself off (its operating system halted)."""
        self.powered = False

    def boot_override(self) -> BootOverride | None:
        """What the firmware has to boot from, None for its own boot order."""
        if not self.flags[0] & _VALID:
            return None
        return BootOverride((self.flags[1] >> 2) & 0x0F, bool(self.flags[0] & _PERSISTENT), bool(self.flags[0] & _UEFI))

    def take_boot_override(self) -> BootOverride | None:
        """Read the override at power-on self-test: one that is not persistent is used up by this."""
        override = self.boot_override()
        if override is not None and not override.persistent:
            self.flags = bytes((self.flags[0] & ~_VALID & 0xFF,)) + self.flags[1:]
        return override

    def identify(self, *, seconds: int, forced: bool) -> None:
        """Chassis Identify: on for good, on for `seconds`, or (0, not forced) off."""
        self.identify_forced = forced
        self.identify_until = asyncio.get_running_loop().time() + seconds if not forced else 0.0

    def identify_state(self) -> int:
        """0 off, 1 on for a while, 2 on for good (IPMI 2.0 table 28-3)."""
        if self.identify_forced:
            return 2
        return 1 if asyncio.get_running_loop().time() < self.identify_until else 0

    def close(self) -> None:
        """Forget a power-on that is still to come."""
        if self._pending_on is not None:
            self._pending_on.cancel()
            self._pending_on = None

    def _switch_on_again(self) -> None:
        self._pending_on = None
        self._switch(on=True)

    def _switch(self, *, on: bool) -> None:
        self.close()
        if self.powered == on:
            return
        self.powered = on
        self._happened(PowerAction.ON if on else PowerAction.OFF)

    def _happened(self, action: PowerAction) -> None:
        self.history.append(action)
        if self.on_power is not None:
            self.on_power(action)
