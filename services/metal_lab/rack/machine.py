"""A simulated machine: a BMC that speaks RMCP+, firmware that boots what it is told, and what then runs.

Power-on starts the firmware. It honours the BMC's boot override, asks boot over HTTP for a script as iPXE does, and
runs what the script says: the real installer on simulated hardware, or the system that is found on the disks.
Power-off, reset and cycle end whatever runs, in the middle of a step.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
from metal_hammer.agent import Agent
from metal_hammer.client import BootClient
from metal_hammer.contact import Rules
from metal_hammer.enrol import enrol, parse_command_line
from metal_hammer.failure import StepFailed
from metal_kit.logs import get_logger
from metal_sim.bmc import BootDevice, ChassisControl, FruInfo, PowerAction, SimulatedBmc
from metal_sim.leaf import SimLeaf
from metal_sim.machine import (
    InstalledSystem,
    KernelStarted,
    Neighbour,
    PowerLost,
    Rebooted,
    SimulatedHardware,
    run_until_stopped,
)

from metal_lab.rack.ipxe import BootAgain, BootKernel, BootLocal, ScriptError
from metal_lab.rack.ipxe import run as run_script
from metal_lab.rack.wiring import PlacedMachine

log = get_logger(__name__)
# Simulated time is short: firmware that needs minutes in a rack needs a moment here.
SELF_TEST = 0.2
RETRY = 1.0
HTTP_TIMEOUT = 10.0
LLDP_EVERY = 2.0
LONGEST_PAUSE = 3.0
RULES = Rules(neighbours_within=10.0, alive_every=30.0, retry_first=0.1, retry_most=2.0, crash_pause=1.0)
BMC_USER = "metal"


@dataclass
class LabMachine:
    """One machine of the rack. `activity` says in a few words what it is doing."""

    placed: PlacedMachine
    leaves: Mapping[str, SimLeaf]
    chassis_ids: Mapping[str, str]
    directory: Path
    boot_url: str
    password: str = field(repr=False)
    no_lldp: bool = False
    activity: str = "off"
    crashes: int = 0

    def __post_init__(self) -> None:
        board = self.placed.facts.board
        self.bmc = SimulatedBmc(
            self.placed.uuid,
            user=BMC_USER,
            password=self.password,
            fru_info=FruInfo(
                board_manufacturer=board.board_manufacturer,
                board_name=board.board_name,
                board_serial=board.board_serial,
                chassis_serial=board.chassis_serial,
            ),
            on_power=self._power_changed,
        )
        self.hardware = SimulatedHardware(
            self.placed.facts, self.directory, powered=lambda: self.bmc.chassis.powered, wiring=self._neighbours
        )
        # Its serial console tells what it does, and echoes what is typed.
        self.bmc.serial.on_input = self.bmc.serial.write
        self._running: asyncio.Task[None] | None = None
        self._wanted = asyncio.Event()
        self._supervisor: asyncio.Task[None] | None = None
        self._boots = 0
        self._broken: asyncio.Event = asyncio.Event()

    async def start(self, port: int) -> str:
        """Put the machine into the rack: its BMC has power, the machine is off. Answers the BMC's `address:port`."""
        host, port = await self.bmc.start(port=port)
        self._supervisor = asyncio.create_task(self._supervise(), name=f"machine {self.placed.name}")
        return f"{host}:{port}"

    async def stop(self) -> None:
        """Take the machine out of the rack; its disks stay as they are."""
        for task in (self._supervisor, self._running):
            if task is not None:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
        self.bmc.stop()

    def power_button(self) -> None:
        """Switch the machine on, as somebody who stands in front of it would."""
        self.bmc.chassis.control(ChassisControl.ON)

    def _power_changed(self, action: PowerAction) -> None:
        """The BMC's hook: end what runs, and have the supervisor start anew where there is power."""
        self.hardware.reset()
        if self._running is not None:
            self._running.cancel()
        self._boots += 1
        self._wanted.set()
        log.info("machine.power", machine=self.placed.name, action=action.value)

    async def failed(self) -> str:
        """Wait until the simulation itself fails: not a fault that was switched on, a defect or a lost leaf."""
        await self._broken.wait()
        return "is no longer simulated; the log says why"

    async def link_returns(self, leaf: str) -> None:
        """The leaf at the other end of a cable has power again."""
        if self.bmc.chassis.powered:
            for cable in self.placed.cables:
                if cable.leaf == leaf:
                    await self.leaves[leaf].link_up(cable.port)

    def _show(self, activity: str) -> None:
        self.activity = activity
        self.bmc.serial.write(f"[{self.placed.name}] {activity}\r\n".encode())

    def _break(self) -> None:
        log.exception("machine.simulation_failed", machine=self.placed.name)
        self._show("simulation failed")
        self._broken.set()

    async def _supervise(self) -> None:
        try:
            await self._follow_power()
        except Exception:
            self._break()

    async def _follow_power(self) -> None:
        """Run the firmware whenever the power comes on or the machine is reset."""
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            if self._running is not None:
                self._running.cancel()
                await asyncio.wait([self._running])
                self._running = None
            await self._links(up=self.bmc.chassis.powered)
            if self.bmc.chassis.powered:
                self._running = asyncio.create_task(self._powered_on(), name=f"firmware {self.placed.name}")
            else:
                self._show("off")

    async def _powered_on(self) -> None:
        try:
            while self.bmc.chassis.powered:
                self._show("self test")
                await asyncio.sleep(SELF_TEST)
                self.hardware.reset()
                await self._boot_once()
        except Exception:
            self._break()

    async def _boot_once(self) -> None:
        override = self.bmc.chassis.take_boot_override()
        device = override.device if override is not None else BootDevice.PXE
        if device == BootDevice.PXE:
            await self._boot_network()
        else:
            await self._boot_disk(fallback=True)

    async def _boot_network(self) -> None:
        self._show("PXE")
        mac = self.placed.facts.nics[0].mac
        url = f"{self.boot_url}/v1/boot/{self.placed.uuid}?mac={mac}"
        try:
            action = run_script(await self._fetch(url))
        except (aiohttp.ClientError, TimeoutError, ScriptError) as error:
            log.warning("machine.pxe_failed", machine=self.placed.name, error=str(error) or type(error).__name__)
            await asyncio.sleep(RETRY)
            await self._boot_disk(fallback=False)
            return
        match action:
            case BootLocal():
                await self._boot_disk(fallback=False)
            case BootKernel(command_line=command_line):
                await self._run_installer(command_line)
            case BootAgain(pause=pause):
                self._show("told to boot again")
                await asyncio.sleep(min(pause, LONGEST_PAUSE))

    async def _fetch(self, url: str) -> str:
        timeout = aiohttp.ClientTimeout(total=HTTP_TIMEOUT)
        async with aiohttp.ClientSession(timeout=timeout) as session, session.get(url) as response:
            response.raise_for_status()
            return await response.text()

    async def _run_installer(self, command_line: str) -> None:
        self._show("installer")
        stopped = await run_until_stopped(self._installer(command_line))
        match stopped:
            case KernelStarted():
                self.crashes = 0
                system = self.hardware.installed_system()
                if system is not None:
                    await self._run_system(system)
            case Rebooted() | PowerLost():
                self._show("rebooting")

    async def _installer(self, command_line: str) -> None:
        parameters = parse_command_line(command_line)
        try:
            enrolment = await enrol(parameters, self.directory / "enrolment")
        except StepFailed as failure:
            log.warning("machine.enrol_failed", machine=self.placed.name, error=str(failure))
            await asyncio.sleep(RETRY)
            await self.hardware.reboot()
            return
        client = BootClient(enrolment, parameters.machine_id, parameters.session)
        try:
            await Agent(
                self.hardware,
                client,
                machine_id=parameters.machine_id,
                command_line=command_line,
                rules=RULES,
                crashes=self.crashes,
            ).run()
        finally:
            await client.close()

    async def _boot_disk(self, *, fallback: bool) -> None:
        system = self.hardware.installed_system()
        if system is not None:
            await self._run_system(system)
        elif fallback:
            await self._boot_network()
        else:
            self._show("no bootable disk")
            await asyncio.sleep(RETRY)

    async def _run_system(self, system: InstalledSystem) -> None:
        """The installed system: it does nothing but announce itself on its cables until somebody stops it."""
        self._show(f"running {system.hostname}")
        description = f"metalplane: provisioned since boot {self._boots}, {system.hostname}"
        while True:
            if not self.no_lldp:
                for cable in self.placed.cables:
                    await self.leaves[cable.leaf].lldp(
                        cable.port, chassis=cable.mac, system_name=self.placed.uuid, description=description
                    )
            await asyncio.sleep(LLDP_EVERY)

    async def _links(self, *, up: bool) -> None:
        for cable in self.placed.cables:
            leaf = self.leaves[cable.leaf]
            await (leaf.link_up(cable.port) if up else leaf.link_down(cable.port))

    def _neighbours(self, mac: str) -> Sequence[Neighbour]:
        """What the installer hears on a NIC: the leaf's own LLDP frames, while the leaf lives."""
        for cable in self.placed.cables:
            leaf = self.leaves[cable.leaf]
            if cable.mac == mac and not leaf.faults.dead and not leaf.faults.lldp_silent and not self.no_lldp:
                return [
                    Neighbour(
                        chassis_id=self.chassis_ids[cable.leaf],
                        port_id=cable.port,
                        port_description=cable.port,
                        system_name=leaf.spec.name,
                        system_description="SONiC Software Version: SONiC.simulated",
                    )
                ]
        return []
