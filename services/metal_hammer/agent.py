"""One run of the installer, from its start to the moment when another kernel takes over or the machine resets.

    PREPARE ── enrol ──► REGISTER ──► (WAIT ⇄ WIPE) ──► installation's steps ──► REPORT ──► KEXEC
                                 any failure ──► reported with step and code ──► Crashed ──► reboot

The control plane decides what happens next by work items; the agent does each order once, goes on with it when the
connection comes back, and never reboots before the reason has been reported or reporting has been tried long enough.
It keeps no state beyond its own life: whatever has to survive is in the control plane.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import suppress

from metal_kit.logs import get_logger

from metal_hammer.contact import Contact, Rules
from metal_hammer.failure import Code, Step, StepFailed
from metal_hammer.grant import GrantRefused, ambiguous, require
from metal_hammer.hardware.base import Disk, Facts, Hardware
from metal_hammer.install import Installation
from metal_hammer.wipe.erase import WipeResult, erase_all
from metal_hammer.work import (
    BootExisting,
    Event,
    Install,
    Item,
    Plane,
    PlaneError,
    Reboot,
    Registration,
    Start,
    Verdict,
    Wait,
    Wipe,
)

log = get_logger(__name__)


async def _close(stream: AsyncIterator[Item]) -> None:
    """End a stream at once instead of when the garbage collector finds it."""
    if isinstance(stream, AsyncGenerator):
        await stream.aclose()


def _unnamed(disk: Disk) -> WipeResult:
    error = "another disk has the same serial" if disk.serial else "the disk has no serial"
    return WipeResult(
        disk.serial or f"unknown:{disk.device}", disk.device, "", verified=False, duration=0.0, error=error
    )


class Agent:
    """The installer of one machine. `crashes` is the number of failures in a row before this run, for the back-off."""

    def __init__(
        self,
        hardware: Hardware,
        plane: Plane,
        *,
        machine_id: str,
        command_line: str = "",
        rules: Rules | None = None,
        crashes: int = 0,
    ) -> None:
        self._hardware = hardware
        self._plane = plane
        self._machine_id = machine_id
        self._command_line = command_line
        self._rules = rules or Rules()
        self._contact = Contact(hardware, plane, self._rules)
        self._crashes = crashes
        self._facts: Facts | None = None
        self._registration: Registration | None = None
        self._cabled: tuple[str, ...] = ()
        self._wiped: list[WipeResult] | None = None
        self._wipe_reported = False
        self._waiting_sent = False
        self._installation: Installation | None = None
        self._installed_reported = False
        self._idle_since = 0.0
        self.step = Step.PREPARE
        """Where the run is; goes out with every Alive."""

    async def run(self) -> None:
        """Run until the machine stops running this installer. Returns only when even the reboot failed."""
        alive = asyncio.create_task(self._contact.alive(lambda: self.step), name="alive")
        try:
            await self._run()
        except StepFailed as failure:
            await self._crash(failure)
        except PlaneError as error:
            code = Code.PLANE_UNREACHABLE if error.retry else Code.PLANE_REFUSED
            await self._crash(StepFailed(self.step, code, str(error)))
        except Exception as error:
            log.exception("installer.unexpected", machine=self._machine_id, step=self.step)
            await self._crash(StepFailed(self.step, Code.UNEXPECTED, type(error).__name__))
        finally:
            alive.cancel()
            with suppress(asyncio.CancelledError):
                await alive

    async def _run(self) -> None:
        self._enter(Step.PREPARE)
        await self._contact.event(Event.PREPARING)
        self._enter(Step.INSPECT)
        facts = await self._inspect()
        self._enter(Step.REGISTER)
        await self._contact.event(Event.REGISTERING)
        neighbours = await self._hardware.neighbours(
            within=self._rules.neighbours_within, enough=self._rules.neighbours_needed
        )
        heard = sum(bool(found) for found in neighbours.values())
        if heard < self._rules.neighbours_needed:
            # Registered all the same: inventory shows it as an issue, a reboot loop would show nothing.
            log.warning("neighbours.missing", heard=heard, needed=self._rules.neighbours_needed)
        self._cabled = tuple(nic.mac for nic in facts.nics if neighbours.get(nic.name))
        self._registration = await self._contact.retry("register", lambda: self._plane.register(facts, neighbours))
        log.info(
            "machine.registered",
            machine=self._machine_id,
            generation=self._registration.generation,
            verdict=self._registration.verdict,
        )
        if self._registration.verdict is Verdict.BOOT_EXISTING:
            await self._leave(Event.PLANNED_REBOOT, "the machine boots its local disk")
        self._enter(Step.WAIT)
        await self._follow()

    async def _inspect(self) -> Facts:
        try:
            facts = await self._hardware.facts()
        except OSError as error:
            raise StepFailed(Step.INSPECT, Code.INSPECT_FAILED, error.strerror or type(error).__name__) from error
        if facts.uuid != self._machine_id:
            detail = f"the firmware says {facts.uuid}, the boot said {self._machine_id}"
            raise StepFailed(Step.INSPECT, Code.INSPECT_FAILED, detail)
        if unnamed := [disk.device for disk in facts.disks if not disk.serial]:
            log.warning("disks.without_serial", disks=unnamed)
        self._facts = facts
        return facts

    async def _follow(self) -> None:
        """Do what the work stream says, over as many connections as it takes."""
        patience = self._rules.idle_reboot * random.uniform(1, 2)
        self._rests()
        attempt = 0
        while True:
            self._hardware.checkpoint()
            # Also between streams: when none can be opened any more, its certificate may be what has ended.
            await self._begin_anew_after(patience)
            stream = self._plane.work(self._registered().generation)
            told = 0.0
            try:
                async for item in stream:
                    attempt = 0
                    await self._do(item)
                    await self._begin_anew_after(patience)
            except PlaneError as error:
                if error.reason == "SUPERSEDED":
                    await self._leave(Event.PLANNED_REBOOT, "another registration of this machine came later")
                told = error.after
                log.info("work.interrupted", reason=error.reason, attempt=attempt)
            finally:
                with suppress(PlaneError):
                    await _close(stream)
            await self._contact.pause(attempt, told)
            attempt += 1

    def _rests(self) -> None:
        """From now on there is nothing to do: only that counts as having waited."""
        self._idle_since = asyncio.get_running_loop().time()

    async def _begin_anew_after(self, patience: float) -> None:
        if self._installation is None and asyncio.get_running_loop().time() > self._idle_since + patience:
            await self._leave(Event.PLANNED_REBOOT, "waited for long enough to start anew")

    async def _do(self, item: Item) -> None:
        self._hardware.checkpoint()
        match item:
            case Wait():
                await self._wait()
            case Wipe():
                await self._wipe(item)
            case Install():
                await self._install(item)
            case Start():
                await self._start(item)
            case BootExisting():
                await self._leave(Event.PLANNED_REBOOT, item.reason or "the machine boots its local disk")
            case Reboot():
                await self._leave(Event.PLANNED_REBOOT, item.reason or "told to begin anew")

    async def _wait(self) -> None:
        if self._installation is None:
            self._enter(Step.WAIT)
        clean = self._wiped is not None and not any(result.error for result in self._wiped)
        if clean and self._installation is None and not self._waiting_sent:
            await self._contact.event(Event.WAITING)
            self._waiting_sent = True

    async def _wipe(self, item: Wipe) -> None:
        """Wipe all disks, once in a run; a repetition of the order only repeats a report that did not get through."""
        if self._installation is not None:
            # What an earlier wipe proved is no longer true, and this run must not say it again.
            await self._leave(Event.PLANNED_REBOOT, "taken back: the machine begins anew")
        facts, generation = self._inspected(), self._registered().generation
        if self._wiped is None:
            self._wiped = await self._wipe_disks(item, facts, generation)
            self._rests()
        if not self._wipe_reported:
            await self._contact.retry("report wipe", lambda: self._plane.report_wipe(generation, self._wiped or []))
            self._wipe_reported = True
        # A machine with a disk that was not wiped stays here, in quarantine: it offers nothing and touches nothing, and
        # the control plane shows it as an issue.
        self._enter(Step.WAIT)

    async def _wipe_disks(self, item: Wipe, facts: Facts, generation: int) -> list[WipeResult]:
        self._enter(Step.WIPE)
        shared = ambiguous(disk.serial for disk in facts.disks)
        disks = [disk for disk in facts.disks if disk.serial and disk.serial not in shared]
        try:
            if disks:
                require(
                    item.grant,
                    machine_id=self._machine_id,
                    generation=generation,
                    allocation_id="",
                    serials=[disk.serial for disk in disks],
                    now=time.monotonic(),
                )
        except GrantRefused as refused:
            raise StepFailed(Step.WIPE, Code.GRANT_REFUSED, str(refused)) from refused
        results = await erase_all(self._hardware, disks)
        # A grant cannot name a disk without a serial of its own: it stays unwiped, which is a failure and no omission.
        results += [_unnamed(disk) for disk in facts.disks if disk not in disks]
        for result in results:
            report = log.error if result.error else log.info
            report("disk.wiped", serial=result.serial, method=result.method, error=result.error)
        return results

    async def _install(self, item: Install) -> None:
        """Install one allocation; a repeated order goes on where the first one was interrupted."""
        spec = item.spec
        known = self._installation
        if known is not None and known.spec.allocation_id != spec.allocation_id:
            await self._leave(Event.PLANNED_REBOOT, "the machine was given to another allocation")
        if known is None:
            facts, generation = self._inspected(), self._registered().generation
            known = self._installation = Installation(self._hardware, facts, spec, generation=generation)
            known.command_line, known.cabled = self._command_line, self._cabled
            await self._contact.event(Event.INSTALLING)
        if self._installed_reported:
            return
        try:
            await known.run(item.grant, self._progress)
        except StepFailed as failure:
            await self._report_failure(known, failure)
            raise
        except Exception as error:
            unexpected = StepFailed(self.step, Code.UNEXPECTED, type(error).__name__)
            await self._report_failure(known, unexpected)
            raise
        self._enter(Step.REPORT)
        await self._contact.retry(
            "report result",
            lambda: self._plane.report_installed(spec.allocation_id, known.boot_info, known.touched),
        )
        self._installed_reported = True
        log.info("machine.installed", machine=self._machine_id, allocation=spec.allocation_id)

    async def _report_failure(self, installation: Installation, failure: StepFailed) -> None:
        allocation = installation.spec.allocation_id
        with suppress(PlaneError):
            await self._contact.retry(
                "report failure", lambda: self._plane.report_failed(allocation, failure, installation.touched)
            )

    async def _progress(self, step: Step, percent: int, message: str) -> None:
        self.step = step
        allocation = self._installation.spec.allocation_id if self._installation else ""
        if message:
            # Destructive steps wait for the acknowledgement: see Installation.
            await self._contact.retry("mark", lambda: self._plane.report_progress(allocation, step, percent, message))
            return
        with suppress(PlaneError):
            await self._plane.report_progress(allocation, step, percent, message)

    async def _start(self, item: Start) -> None:
        """Start the installed kernel, or leave to the local disk when this run has not installed it."""
        known = self._installation
        if known is None or not known.finished or known.spec.allocation_id != item.allocation_id:
            await self._leave(Event.PLANNED_REBOOT, "installed by an earlier run: the machine boots its local disk")
            return
        self._enter(Step.KEXEC)
        await self._contact.event(Event.BOOTING_NEW_KERNEL)
        try:
            await known.start()
        except StepFailed as failure:
            await self._report_failure(known, failure)
            raise
        except OSError as error:
            not_started = StepFailed(Step.KEXEC, Code.KEXEC_FAILED, error.strerror or type(error).__name__)
            await self._report_failure(known, not_started)
            raise not_started from error

    async def _leave(self, event: Event, why: str) -> None:
        await self._contact.event(event, why)
        log.info("installer.leaves", machine=self._machine_id, reason=why)
        await self._hardware.reboot()

    async def _crash(self, failure: StepFailed) -> None:
        """Say why, then reset, later each time in a row."""
        log.error("installer.failed", machine=self._machine_id, step=failure.step, code=failure.code)
        await self._contact.event(Event.CRASHED, f"{failure.step}: {failure.code}: {failure.detail}")
        await asyncio.sleep(self._rules.reboot_delay(self._crashes))
        await self._hardware.reboot()

    def _enter(self, step: Step) -> None:
        self.step = step
        self._hardware.checkpoint(step)

    def _inspected(self) -> Facts:
        if self._facts is None:
            raise RuntimeError("not inspected")
        return self._facts

    def _registered(self) -> Registration:
        if self._registration is None:
            raise RuntimeError("not registered")
        return self._registration
