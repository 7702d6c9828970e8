"""An allocation as it is stored, and what phases do to it. No I/O."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from metalplane.allocation.v1.allocation_pb2 import AllocationSpec, MachineNetwork
from metalplane.allocation.v1.installation_pb2 import BootInfo
from metalplane.common.v1.condition_pb2 import Condition
from metalplane.inventory.v1.image_pb2 import Image
from metalplane.inventory.v1.layout_pb2 import FilesystemLayout

from metal_allocation.phase import DEADLINES, InstallationState, Phase, installation_state

READY = "Ready"
OVERDUE = "PhaseOverdue"
INSTALLED = "Installed"
# What others report ends up here and, with each change, in an event: its length must not be theirs to choose.
MAX_TEXT = 500


@dataclass(frozen=True, slots=True)
class TimelineLine:
    """One line of an allocation's history."""

    time: datetime
    phase: Phase
    reason: str
    message: str


@dataclass(slots=True)
class Record:
    """One allocation. `version` is its etag; `new_lines` are the timeline entries that the next save adds."""

    id: str
    project: str
    creator: str
    name: str
    role: str
    spec: AllocationSpec
    userdata: bytes
    description: str
    labels: Mapping[str, str]
    placement_labels: Mapping[str, str]
    phase: Phase
    phase_time: datetime
    phase_deadline: datetime | None
    machine: str
    partition: str
    rack: str
    size: str
    image: Image
    layout: FilesystemLayout
    dns_servers: Sequence[str]
    ntp_servers: Sequence[str]
    disk_serials: Sequence[str] = ()
    asn: int = 0
    networks: list[MachineNetwork] = field(default_factory=list)
    conditions: list[Condition] = field(default_factory=list)
    installed: bool = False
    install_failures: int = 0
    install_error: str = ""
    install_reboots: int = 0
    installer_step: str = ""
    installer_percent: int = 0
    installer_time: datetime | None = None
    boot_info: BootInfo = field(default_factory=BootInfo)
    command: str | None = None
    command_attempts: int = 0
    command_after: datetime | None = None
    command_error: str = ""
    running_time: datetime | None = None
    free_time: datetime | None = None
    version: int = 1
    create_time: datetime | None = None
    update_time: datetime | None = None
    new_lines: list[tuple[Phase, str, str]] = field(default_factory=list)

    @property
    def firewall(self) -> bool:
        """Whether the machine serves as a firewall."""
        return self.role == "firewall"

    @property
    def installation(self) -> InstallationState:
        """What is wanted of the machine's installer."""
        return installation_state(self.phase, installed=self.installed)

    def enter(self, phase: Phase, now: datetime, reason: str = "", message: str = "") -> None:
        """Enter a phase: its clock starts, the command of the last phase is forgotten, the timeline says so."""
        self.phase = phase
        self.phase_time = now
        limit = DEADLINES.get(phase)
        self.phase_deadline = now + limit if limit else None
        self.command = None
        self.command_attempts = 0
        self.command_after = None
        self.command_error = ""
        self.note(reason or f"ENTERED_{phase.name}", message or PHASE_TEXT[phase])
        self.set_condition(OVERDUE, False, "IN_TIME", "", now)
        ready = phase is Phase.RUNNING
        self.set_condition(READY, ready, reason or phase.name, message or PHASE_TEXT[phase], now)
        if ready and self.running_time is None:
            self.running_time = now

    def note(self, reason: str, message: str) -> None:
        """Add a line to the timeline, for the present phase."""
        self.new_lines.append((self.phase, reason, message[:MAX_TEXT]))

    def set_condition(self, kind: str, status: bool, reason: str, message: str, now: datetime) -> bool:
        """Set a condition; answers whether its status or reason changed. Its time moves only with its status."""
        message = message[:MAX_TEXT]
        for condition in self.conditions:
            if condition.type != kind:
                continue
            changed = (condition.status, condition.reason) != (status, reason)
            if condition.status != status:
                condition.transition_time.FromDatetime(now)
            condition.status, condition.reason, condition.message = status, reason, message
            return changed
        condition = Condition(type=kind, status=status, reason=reason, message=message)
        condition.transition_time.FromDatetime(now)
        self.conditions.append(condition)
        return True


PHASE_TEXT: Mapping[Phase, str] = {
    Phase.BINDING: "a machine is claimed; inventory is asked to bind it",
    Phase.ADDRESSING: "addresses and the ASN are being acquired",
    Phase.INSTALLING: "the installer works",
    Phase.ATTACHING: "the machine's ports move into the tenant's VRF",
    Phase.BOOT_ORDER: "the boot order is set to disk",
    Phase.STARTING: "the installed system is being started",
    Phase.RUNNING: "the installed system has announced itself",
    Phase.FENCING: "the machine's ports leave the tenant's VRF",
    Phase.RECLAIMING: "the machine is sent back to the installer",
    Phase.RELEASING: "addresses and numbers are being released",
    Phase.UNBINDING: "the binding in inventory is being ended",
    Phase.RELEASED: "the machine has been given back",
}
