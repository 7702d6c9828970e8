"""One installation: from the granted disks to a system that only has to be started.

The steps are listed once, in order; each is done at most once per installation. When an installation is entered again
in the same run of the installer (the work stream broke, the order was repeated) it goes on behind the last step that
was done. After a crash or loss of power everything starts from the first step: the grant covers that, and half an
unpacked image is worth nothing.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

from metal_hammer import configure, target
from metal_hammer.disk import apply
from metal_hammer.disk.layout import LayoutError
from metal_hammer.disk.plan import Plan, fstab, plan
from metal_hammer.failure import Code, Step, StepFailed
from metal_hammer.grant import Grant, GrantRefused, ambiguous, require
from metal_hammer.hardware.base import Disk, Facts, Hardware
from metal_hammer.image import archive
from metal_hammer.image.fetch import Limits, fetch
from metal_hammer.work import BootInfo, InstallSpec

SPOOL = ".metal-image"
"""Where the archive lies while it is fetched: on the target's own disk, so that memory need not hold it."""

OS_INSTALLERS = ("/install-go", "/install.sh")
"""Programs that an image may bring to set itself up; the first that is there runs in a chroot and is deleted."""

OS_INSTALLER_DEADLINE = 1800.0
"""Seconds for the image's own installer."""

Progress = Callable[[Step, int, str], Awaitable[None]]
"""Told about each step before it begins: step, percent of the whole, details. Raises to stop the installation."""


class Installation:
    """The installation of one allocation on this machine, in this run of the installer."""

    def __init__(self, hardware: Hardware, facts: Facts, spec: InstallSpec, *, generation: int) -> None:
        self._hardware = hardware
        self._facts = facts
        self._generation = generation
        self._done: set[Step] = set()
        self._plan: Plan | None = None
        self._boot_info: BootInfo | None = None
        self.spec = spec
        self.touched: list[Disk] = []
        """Disks that a destructive command may have reached, marked before the first such command runs."""
        self.command_line = ""
        self.cabled: tuple[str, ...] = ()
        self.limits = Limits()

    @property
    def finished(self) -> bool:
        """Whether only the start of the new kernel is missing."""
        return Step.BOOTLOADER in self._done

    @property
    def boot_info(self) -> BootInfo:
        """How the installed system is started; only after `run` has come to its end."""
        if self._boot_info is None:
            raise RuntimeError("not installed")
        return self._boot_info

    async def run(self, grant: Grant | None, progress: Progress) -> BootInfo:
        """Install, or go on with it. Raises StepFailed; before the first destructive step nothing was touched."""
        steps: tuple[tuple[Step, int, Callable[[], Awaitable[None]]], ...] = (
            (Step.PLAN, 0, self._make_plan),
            (Step.PARTITION, 5, lambda: self._partition(grant, progress)),
            (Step.FETCH, 20, self._fetch),
            (Step.UNPACK, 50, self._unpack),
            (Step.CONFIGURE, 80, self._configure),
            (Step.BOOTLOADER, 90, self._bootloader),
        )
        for step, percent, action in steps:
            if step in self._done:
                continue
            await progress(step, percent, "")
            self._hardware.checkpoint(step)
            await action()
            self._done.add(step)
        return self.boot_info

    async def _make_plan(self) -> None:
        try:
            self._plan = plan(self.spec.layout, self._facts.disks, reinstall=self.spec.reinstall)
        except LayoutError as error:
            raise StepFailed(Step.PLAN, Code.LAYOUT_DOES_NOT_FIT, str(error)) from error

    async def _partition(self, grant: Grant | None, progress: Progress) -> None:
        made = self._made_plan()
        self._require(grant, made)
        doomed = [disk for disk in self._facts.disks if disk.serial in made.serials]
        self.touched = doomed
        # Acknowledged by the control plane before the first destructive command: afterwards nobody may believe that the
        # old system is still there.
        await progress(Step.PARTITION, 5, "disk_touched: " + ", ".join(sorted(made.serials)))
        await apply.lay(self._hardware, made)
        await apply.mount(self._hardware, made.mounts)

    def _require(self, grant: Grant | None, made: Plan) -> None:
        """Raise StepFailed unless the grant, and the spec as well, name every disk that the plan writes to."""
        try:
            require(
                grant,
                machine_id=self._facts.uuid,
                generation=self._generation,
                allocation_id=self.spec.allocation_id,
                serials=made.serials,
                now=time.monotonic(),
            )
        except GrantRefused as refused:
            raise StepFailed(Step.PARTITION, Code.GRANT_REFUSED, str(refused)) from refused
        if shared := ambiguous(disk.serial for disk in self._facts.disks) & made.serials:
            detail = f"more than one disk has the serial {', '.join(sorted(shared))}"
            raise StepFailed(Step.PARTITION, Code.GRANT_REFUSED, detail)
        if strange := sorted(made.serials - self.spec.disk_serials):
            detail = f"the install spec does not name all of the disks: {', '.join(strange)}"
            raise StepFailed(Step.PARTITION, Code.GRANT_REFUSED, detail)

    async def _fetch(self) -> None:
        spool = self._hardware.target / SPOOL
        await fetch(self.spec.source, spool, checkpoint=self._hardware.checkpoint, limits=self.limits)

    async def _unpack(self) -> None:
        spool = self._hardware.target / SPOOL
        await archive.unpack(spool, self._hardware.target, checkpoint=self._hardware.checkpoint)
        await asyncio.to_thread(spool.unlink, missing_ok=True)

    async def _configure(self) -> None:
        uuids = await apply.uuids(self._hardware, self.spec.layout)
        root = next(entry for entry in self.spec.layout.filesystems if entry.path == "/")
        document = configure.install_document(
            self.spec,
            self._facts,
            root_uuid=uuids.get(root.device, ""),
            console=configure.console_of(self.command_line),
            cabled=self.cabled,
            now=datetime.now(UTC),
        )
        table = fstab(self.spec.layout, uuids)
        await asyncio.to_thread(configure.write_all, self._hardware.target, self.spec, document, table)

    async def _bootloader(self) -> None:
        root = self._hardware.target
        for program in OS_INSTALLERS:
            place = target.resolve(root, program, step=Step.BOOTLOADER)
            if await asyncio.to_thread(place.is_file):
                await self._run_os_installer(program)
                await asyncio.to_thread(place.unlink)
                break
        self._boot_info = await asyncio.to_thread(configure.read_boot_info, root)

    async def _run_os_installer(self, program: str) -> None:
        argv = ("chroot", str(self._hardware.target), program)
        try:
            done = await self._hardware.run(argv, deadline=OS_INSTALLER_DEADLINE)
        except TimeoutError:
            detail = f"{program} took longer than {OS_INSTALLER_DEADLINE:.0f} s"
            raise StepFailed(Step.BOOTLOADER, Code.COMMAND_TIMEOUT, detail) from None
        if done.returncode != 0:
            last = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
            detail = f"{program} ended with {done.returncode}{': ' + last[0] if last else ''}"
            raise StepFailed(Step.BOOTLOADER, Code.COMMAND_FAILED, detail)

    async def start(self) -> None:
        """Start the installed kernel. Does not return on a real machine. Raises StepFailed."""
        made, info = self._made_plan(), self.boot_info
        root = self._hardware.target
        kernel = target.resolve(root, info.kernel, step=Step.KEXEC)
        initrd = target.resolve(root, info.initrd, step=Step.KEXEC) if info.initrd else None
        await self._hardware.kexec_load(kernel, initrd, info.command_line)
        await apply.unmount(self._hardware, made.mounts)
        await self._hardware.kexec()

    def _made_plan(self) -> Plan:
        if self._plan is None:
            raise RuntimeError("not planned")
        return self._plan
