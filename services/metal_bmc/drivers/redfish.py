"""The driver on Redfish: power, boot override, identify light, identity, and what the BMC can do.

Orders state a goal and are read back; what the BMC does not list as known is not sent to it.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from metal_kit import guard

from metal_bmc.drivers import abilities, redfish_readings
from metal_bmc.drivers.errors import (
    BmcAuthFailed,
    BmcBadAnswer,
    BmcBusy,
    BmcError,
    BmcRefused,
    BmcSessionsFull,
    BmcTimeout,
    BmcUnsupported,
    BmcUntrusted,
    DriverBusy,
)
from metal_bmc.drivers.interface import BootMode, BootSetting, BootTarget, BootWish, DeviceInfo, Target
from metal_bmc.drivers.telemetry import Cursor, LogEntry, PowerDraw, Reading
from metal_bmc.redfish import failures, identity, system
from metal_bmc.redfish.client import RedfishClient
from metal_bmc.redfish.document import Document, checked_path
from metal_bmc.redfish.session import Login
from metal_bmc.redfish.visit import Visit

_SOURCES = {BootTarget.PXE: "Pxe", BootTarget.DISK: "Hdd", BootTarget.BIOS: "BiosSetup"}
_TARGETS = {source: target for target, source in _SOURCES.items()}
_MODES = {True: BootMode.UEFI, False: BootMode.BIOS, None: None}
_SYSTEM, _LIGHT = "system", "light"


class RedfishDriver:
    """Implements `BmcDriver`."""

    def __init__(self, client: RedfishClient) -> None:
        self._client = client

    async def close(self) -> None:
        """See `BmcDriver`."""
        await self._client.close()

    async def powered(self, target: Target, *, deadline: float) -> bool:
        """See `BmcDriver`."""
        async with self._visit(target, deadline) as visit:
            return system.powered(await _system(visit))

    async def set_power(self, target: Target, *, on: bool, deadline: float) -> None:
        """See `BmcDriver`."""
        async with self._visit(target, deadline) as visit:
            machine = await _system(visit)
            if system.powered(machine) == on:
                # BMCs answer what is so already with an error.
                return
            wanted = (target.quirks.power_on_reset_type, *system.ON) if on else system.OFF
            # The button switches on what is off, and asks what is on to shut down; so it is no way to cut the power.
            await _order(visit, machine, wanted, f"switch {'on' if on else 'off'}", button=on)

    async def soft_off(self, target: Target, *, deadline: float) -> None:
        """See `BmcDriver`."""
        async with self._visit(target, deadline) as visit:
            machine = await _system(visit)
            if system.powered(machine):
                await _order(visit, machine, system.SOFT_OFF, "ask for a shutdown", button=True)

    async def reset(self, target: Target, *, deadline: float) -> None:
        """See `BmcDriver`."""
        await self._shoot(target, system.RESTART, "reset", deadline)

    async def interrupt(self, target: Target, *, deadline: float) -> None:
        """See `BmcDriver`."""
        await self._shoot(target, system.NMI, "interrupt", deadline)

    async def set_boot(self, target: Target, wish: BootWish, *, deadline: float) -> BootSetting:
        """See `BmcDriver`."""
        source, uefi = _SOURCES[wish.target], wish.mode is not BootMode.BIOS
        async with self._visit(target, deadline) as visit:
            machine = await _system(visit)
            refused = system.cannot_boot(machine, source, persistent=wish.persistent)
            if wish.mode is not None and system.override(machine).uefi is None:
                refused = refused or "the BMC cannot choose between UEFI and BIOS"
            if refused:
                raise BmcUnsupported(refused)
            change = system.boot_change(machine, source, persistent=wish.persistent, uefi=uefi)
            await visit.patch(machine.path, change, etag=machine.etag)
            if target.quirks.settle_seconds:
                await asyncio.sleep(target.quirks.settle_seconds)
            return _setting(await _system(visit))

    async def boot(self, target: Target, *, deadline: float) -> BootSetting:
        """See `BmcDriver`."""
        async with self._visit(target, deadline) as visit:
            return _setting(await _system(visit))

    async def set_identify(self, target: Target, *, on: bool, deadline: float) -> bool | None:
        """See `BmcDriver`."""
        async with self._visit(target, deadline) as visit:
            document = await _light(visit)
            await visit.patch(document.path, system.light_change(document, on=on), etag=document.etag)
            return system.light(await visit.get(document.path))

    async def inspect(self, target: Target, *, deadline: float) -> DeviceInfo:
        """See `BmcDriver`."""
        async with self._visit(target, deadline) as visit:
            machine = await _system(visit)
            types = await _reset_types(visit, machine)
            found = await identity.identify(visit, machine)
            lit = system.light(machine) is not None or any(system.light(each) is not None for each in found.chassis)
            return DeviceInfo(
                machine=found.machine,
                firmware=found.firmware,
                manufacturer_id=0,
                product_id=0,
                powered=system.powered(machine),
                fru=found.fru,
                guid=uuid.UUID(found.machine).bytes if found.machine else b"",
                mac=found.mac,
                capabilities=abilities.of(await visit.root(), machine, found, types, await _updates(visit), lit=lit),
                fingerprint=visit.fingerprint,
            )

    async def sensors(self, target: Target, *, deadline: float) -> list[Reading]:
        """Read all sensors. Raises BmcError; BmcUnsupported when the BMC shows none."""
        async with self._visit(target, deadline) as visit:
            return await redfish_readings.sensors(visit, await identity.cases(visit, await _system(visit)))

    async def power_draw(self, target: Target, *, deadline: float) -> PowerDraw:
        """Read what the machine draws. Raises BmcError; BmcUnsupported when the BMC does not measure it."""
        async with self._visit(target, deadline) as visit:
            return await redfish_readings.power_draw(visit, await identity.cases(visit, await _system(visit)))

    async def event_log(self, target: Target, *, since: Cursor, deadline: float) -> list[LogEntry]:
        """The entries of the system event log beyond `since`, the oldest first. Raises BmcError."""
        async with self._visit(target, deadline) as visit:
            machine = await _system(visit)
            owner = machine if "LogServices" in machine else await identity.manager_of(visit, machine)
            return await redfish_readings.event_log(visit, owner or machine, since)

    @asynccontextmanager
    async def events(
        self, target: Target, *, deadline: float, silence: float = 120.0
    ) -> AsyncIterator[AsyncIterator[LogEntry]]:
        """What the BMC tells by itself, as it happens, until it ends the stream. Other exchanges may go on beside it.

        Begins within `deadline` seconds. Raises BmcError: BmcUnsupported when the BMC has no event stream, BmcTimeout
        after `silence` seconds without a sign of life. What happened before, or between two streams, is in the log.
        """
        guard.refuse_in_transaction("a BMC exchange")
        give_up = asyncio.get_running_loop().time() + deadline
        try:
            async with self._client.listen(_login(target), give_up=give_up, silence=silence) as stream:
                yield redfish_readings.events(stream)
        except failures.RedfishFailure as failure:
            raise _error(failure) from None

    async def _shoot(self, target: Target, wanted: Sequence[str], name: str, deadline: float) -> None:
        async with self._visit(target, deadline) as visit:
            # Whoever does not answer this got no order, so a dead BMC leaves no doubt about the outcome.
            machine = await _system(visit)
            if not system.powered(machine):
                raise BmcRefused(f"the BMC cannot {name} a machine that is off")
            try:
                await _order(visit, machine, wanted, name, once=True)
            except failures.NoAnswer:
                raise BmcTimeout(f"the BMC did not confirm the {name}; it may have carried it out") from None

    @asynccontextmanager
    async def _visit(self, target: Target, deadline: float) -> AsyncIterator[Visit]:
        guard.refuse_in_transaction("a BMC exchange")
        give_up = asyncio.get_running_loop().time() + deadline
        try:
            async with self._client.visit(_login(target), give_up=give_up) as visit:
                yield visit
        except failures.RedfishFailure as failure:
            raise _error(failure) from None


def _login(target: Target) -> Login:
    return Login(target.host, target.port, target.user, target.password, target.fingerprint)


async def _system(visit: Visit) -> Document:
    """The machine's document. Where it is, is looked up once a session."""
    path = visit.known.get(_SYSTEM)
    if path is not None:
        try:
            return await visit.get(path)
        except failures.NotThere:
            # Its name changed, with a firmware update for example.
            del visit.known[_SYSTEM]
    members = await visit.members((await visit.root()).link("Systems"))
    found = [await visit.get(member) for member in members[:_MOST_SYSTEMS]]
    # Beside the machine there may be its network cards (DPU) or virtual ones.
    physical = [each for each in found if each.optional_text("SystemType") in ("", "Physical")]
    if len(physical) != 1:
        count = "no machine" if not physical else "several machines"
        raise BmcUnsupported(f"the BMC manages {count}; one BMC a machine is what this service knows")
    visit.known[_SYSTEM] = physical[0].path
    return physical[0]


_MOST_SYSTEMS = 8


async def _light(visit: Visit) -> Document:
    """The document with the identify light: the machine's, or that of its case."""
    path = visit.known.get(_LIGHT)
    if path is not None:
        return await visit.get(path)
    machine = await _system(visit)
    for document in (machine, *await identity.cases(visit, machine)):
        if system.light(document) is not None:
            visit.known[_LIGHT] = document.path
            return document
    raise BmcUnsupported("the BMC has no identify light")


async def _reset_types(visit: Visit, machine: Document) -> frozenset[str]:
    actions = machine.optional_inner("Actions")
    action = actions.optional_inner(system.RESET) if actions is not None else None
    if action is None:
        return frozenset()
    info = action.optional_text("@Redfish.ActionInfo")
    return system.reset_types(action, await visit.get(checked_path(info)) if info else None)


async def _updates(visit: Visit) -> Document | None:
    path = (await visit.root()).optional_link("UpdateService")
    try:
        return await visit.get(path) if path else None
    except failures.NotThere:
        return None


async def _order(
    visit: Visit, machine: Document, wanted: Sequence[str], name: str, *, once: bool = False, button: bool = False
) -> None:
    known = await _reset_types(visit, machine)
    kind = system.choose(wanted, known)
    if not kind and button and system.BUTTON in known:
        # Pressed twice it undoes itself, so it is pressed once, on what was just seen.
        kind, once = system.BUTTON, True
    if not kind:
        raise BmcUnsupported(f"the BMC has no way to {name}")
    path = checked_path(machine.inner("Actions").inner(system.RESET).text("target"))
    await visit.post(path, {"ResetType": kind}, once=once)


def _setting(machine: Document) -> BootSetting:
    read = system.override(machine)
    return BootSetting(_TARGETS.get(read.source), read.persistent, _MODES[read.uefi])


_ERRORS: tuple[tuple[type[failures.RedfishFailure], type[BmcError]], ...] = (
    (failures.LoginRefused, BmcAuthFailed),
    (failures.SlotsFull, BmcSessionsFull),
    (failures.WrongCertificate, BmcUntrusted),
    (failures.NotThere, BmcUnsupported),
    (failures.BadAnswer, BmcBadAnswer),
    (failures.NoRoom, DriverBusy),
)


def _error(failure: failures.RedfishFailure) -> BmcError:
    message = str(failure)
    if isinstance(failure, failures.Busy):
        return BmcBusy(message, failure.after)
    if isinstance(failure, failures.Refused):
        return BmcRefused(message, failure.status)
    return next((error(message) for kind, error in _ERRORS if isinstance(failure, kind)), BmcTimeout(message))
