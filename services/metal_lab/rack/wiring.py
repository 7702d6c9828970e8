"""Concrete machines and cables of a rack file: names, UUIDs, MAC addresses, serials, ports. Pure.

Machine number n of a rack hangs with its first NIC on port Ethernet4n of the rack's first leaf, and with its second NIC
on the port of the same name of the second leaf; the last ports of a leaf lead to the spines. Four lanes make a port, so
SONiC numbers them in steps of four.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Sequence
from dataclasses import dataclass

from metal_sim.machine import Bmc, Board, Cpu, Disk, MachineFacts, Nic

from metal_lab.rack.model import HardwareModel, Leaf, RackFile

GIB = 1024**3
LANES = 4
MACHINE_PORTS = 48
_NAMESPACE = uuid.UUID("6f8b1c52-3c0a-5c6e-9a53-5e1d0c7b0a4e")


@dataclass(frozen=True, slots=True)
class Cable:
    """A NIC of a machine and the leaf's port at the other end."""

    mac: str
    leaf: str
    port: str


@dataclass(frozen=True, slots=True)
class PlacedMachine:
    """A machine where it stands."""

    name: str
    rack: str
    hardware: str
    facts: MachineFacts
    cables: tuple[Cable, ...]

    @property
    def uuid(self) -> str:
        """SMBIOS UUID."""
        return self.facts.uuid


@dataclass(frozen=True, slots=True)
class PlacedLeaf:
    """A leaf where it stands, with its ports."""

    rack: str
    leaf: Leaf
    machine_ports: tuple[str, ...]
    uplinks: tuple[str, ...]
    mac: str


def machines(file: RackFile) -> list[PlacedMachine]:
    """All machines, rack by rack."""
    placed = []
    for rack in file.racks:
        slot = 0
        for group in rack.machines:
            for _ in range(group.count):
                name = f"{rack.name}-m{slot + 1}"
                placed.append(_machine(file, rack.name, name, slot, group.hardware, rack.leaves))
                slot += 1
    return placed


def leaves(file: RackFile) -> list[PlacedLeaf]:
    """All leaves, rack by rack."""
    uplinks = tuple(port_name(MACHINE_PORTS + number) for number in range(max(len(file.spines), 1)))
    placed = []
    for rack in file.racks:
        count = sum(group.count for group in rack.machines)
        # Some free ports, as on a real leaf, so that a new machine finds one.
        ports = tuple(port_name(slot) for slot in range(min(count + 2, MACHINE_PORTS)))
        placed += [
            PlacedLeaf(rack.name, leaf, ports, uplinks, _mac(file.name, leaf.name, "leaf")) for leaf in rack.leaves
        ]
    return placed


def port_name(slot: int) -> str:
    """SONiC's name of a port, by its place from 0."""
    return f"Ethernet{slot * LANES}"


def _machine(file: RackFile, rack: str, name: str, slot: int, hardware: str, on: Sequence[Leaf]) -> PlacedMachine:
    model = file.hardware[hardware]
    cables = tuple(
        Cable(_mac(file.name, name, f"eth{number}"), leaf.name, port_name(slot)) for number, leaf in enumerate(on)
    )
    facts = MachineFacts(
        uuid=str(uuid.uuid5(_NAMESPACE, f"{file.name}/{name}")),
        nics=tuple(
            Nic(name=f"eth{number}", mac=cable.mac, pci_address=f"0000:b7:00.{number}")
            for number, cable in enumerate(cables)
        ),
        disks=tuple(
            Disk(
                device=disk.device,
                serial=_serial(file.name, name, disk.device),
                kind=disk.kind,
                size_bytes=int(disk.size_gib * GIB),
            )
            for disk in model.disks
        ),
        memory_bytes=model.memory_gib * GIB,
        cpus=(Cpu(model=model.cpu, cores=model.cores, threads=2 * model.cores),),
        bmc=Bmc(address="", mac=_mac(file.name, name, "bmc")),
        board=Board(board_serial=_serial(file.name, name, "board"), chassis_serial=_serial(file.name, name, "chassis")),
    )
    return PlacedMachine(name, rack, hardware, facts, cables)


def size_constraints(model: HardwareModel) -> list[tuple[str, int, str]]:
    """What a size needs to match exactly this hardware: (type, value, identifier)."""
    storage = sum(int(disk.size_gib * GIB) for disk in model.disks)
    return [("CORES", model.cores, ""), ("MEMORY", model.memory_gib * GIB, ""), ("STORAGE", storage, "")]


def _mac(*names: str) -> str:
    """A locally administered unicast address (IEEE 802: second bit of the first octet set, first bit clear)."""
    digest = hashlib.sha256("/".join(names).encode()).digest()
    return ":".join(f"{octet:02x}" for octet in (0x02, *digest[:5]))


def _serial(*names: str) -> str:
    return hashlib.sha256("/".join(names).encode()).hexdigest()[:12].upper()
