"""Who a BMC says that it and its machine are, and what it can do by what it shows."""

from __future__ import annotations

from dataclasses import dataclass

from metal_bmc.redfish import system
from metal_bmc.redfish.document import Document
from metal_bmc.redfish.failures import NotThere
from metal_bmc.redfish.visit import Visit

_MOST_CASES = 4


@dataclass(frozen=True, slots=True)
class Identity:
    """What was read. `machine` is the SMBIOS UUID or empty, `firmware` the BMC's version, `fru` has the names that the
    FRU of IPMI has, `mac` is the BMC's own or empty; `manager` may be missing, `chassis` are the cases of the machine.
    """

    machine: str
    firmware: str
    bios: str
    fru: dict[str, str]
    mac: str
    manager: Document | None
    chassis: tuple[Document, ...]


async def identify(visit: Visit, machine: Document) -> Identity:
    """Read what is known of a machine and its BMC. Raises RedfishFailure; what a BMC does not have is left empty."""
    manager, chassis = await manager_of(visit, machine), await cases(visit, machine)
    case = chassis[0] if chassis else None
    fru = {
        "Manufacturer": machine.optional_text("Manufacturer"),
        "Model": machine.optional_text("PartNumber") or machine.optional_text("Model"),
        "Product name": machine.optional_text("Model"),
        "Serial Number": machine.optional_text("SerialNumber"),
        "Chassis part number": case.optional_text("PartNumber") if case is not None else "",
        "Chassis serial number": case.optional_text("SerialNumber") if case is not None else "",
    }
    return Identity(
        machine=system.machine_uuid(machine),
        firmware=manager.optional_text("FirmwareVersion") if manager is not None else "",
        bios=machine.optional_text("BiosVersion"),
        fru={name: value.strip() for name, value in fru.items() if value.strip()},
        mac=await _mac(visit, manager),
        manager=manager,
        chassis=chassis,
    )


async def cases(visit: Visit, machine: Document) -> tuple[Document, ...]:
    """The cases that the machine is in, the nearest first. Raises RedfishFailure."""
    links = machine.optional_inner("Links")
    paths = links.links("Chassis") if links is not None else []
    found = []
    for path in paths[:_MOST_CASES]:
        try:
            found.append(await visit.get(path))
        except NotThere:
            continue
    return tuple(found)


async def manager_of(visit: Visit, machine: Document) -> Document | None:
    """The BMC's own document, None when it shows none. Raises RedfishFailure."""
    links = machine.optional_inner("Links")
    paths = links.links("ManagedBy") if links is not None else []
    if not paths:
        collection = (await visit.root()).optional_link("Managers")
        paths = await visit.members(collection) if collection else []
    for path in paths[:_MOST_CASES]:
        try:
            return await visit.get(path)
        except NotThere:
            continue
    return None


async def _mac(visit: Visit, manager: Document | None) -> str:
    """The address of the BMC's first network interface that names one."""
    path = manager.optional_link("EthernetInterfaces") if manager is not None else ""
    if not path:
        return ""
    try:
        for member in (await visit.members(path))[:_MOST_CASES]:
            mac = (await visit.get(member)).optional_text("MACAddress").lower()
            if len(mac) == 17:
                return mac
    except NotThere:
        pass
    return ""
