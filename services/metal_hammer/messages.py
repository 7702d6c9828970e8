"""Contract messages from and to the installer's plain values. Pure: no calls, no rules.

Text that comes from hardware is cut and cleaned here: firmware strings hold anything, and one bad character must not
keep a machine from being registered.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from google.protobuf.duration_pb2 import Duration
from google.protobuf.json_format import MessageToDict
from metalplane.allocation.v1 import allocation_pb2, installation_pb2
from metalplane.boot.v1 import boot_pb2
from metalplane.inventory.v1 import hardware_pb2, layout_pb2

from metal_hammer import work
from metal_hammer.disk import layout as disk_layout
from metal_hammer.grant import Grant
from metal_hammer.hardware import base
from metal_hammer.image.fetch import Source
from metal_hammer.wipe.erase import WipeResult

MAX_GRANT_SECONDS = 3600.0
"""A grant is never believed to last longer, whatever the clocks say."""

_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")
_MAX_NEIGHBOURS = 16

_VERDICTS = {
    boot_pb2.VERDICT_CLEAN: work.Verdict.CLEAN,
    boot_pb2.VERDICT_INSTALL: work.Verdict.INSTALL,
    boot_pb2.VERDICT_BOOT_EXISTING: work.Verdict.BOOT_EXISTING,
    boot_pb2.VERDICT_HOLD: work.Verdict.HOLD,
}
_FORMATS = {
    layout_pb2.FILESYSTEM_FORMAT_NONE: disk_layout.Format.NONE,
    layout_pb2.FILESYSTEM_FORMAT_VFAT: disk_layout.Format.VFAT,
    layout_pb2.FILESYSTEM_FORMAT_EXT3: disk_layout.Format.EXT3,
    layout_pb2.FILESYSTEM_FORMAT_EXT4: disk_layout.Format.EXT4,
    layout_pb2.FILESYSTEM_FORMAT_SWAP: disk_layout.Format.SWAP,
    layout_pb2.FILESYSTEM_FORMAT_TMPFS: disk_layout.Format.TMPFS,
    layout_pb2.FILESYSTEM_FORMAT_XFS: disk_layout.Format.XFS,
}
_VOLUMES = {
    layout_pb2.VOLUME_TYPE_UNSPECIFIED: "linear",
    layout_pb2.VOLUME_TYPE_LINEAR: "linear",
    layout_pb2.VOLUME_TYPE_STRIPED: "striped",
    layout_pb2.VOLUME_TYPE_RAID1: "raid1",
}


def clean(text: str, limit: int) -> str:
    """Printable text without blanks at its ends, at most `limit` characters."""
    return "".join(char for char in text if char.isprintable()).strip()[:limit]


def hardware(facts: base.Facts, neighbours: Mapping[str, Sequence[base.Neighbour]]) -> hardware_pb2.Hardware:
    """Hardware as it is registered. NICs without an Ethernet MAC and disks without a serial are left out; lists are cut
    to what the contract takes, where nothing but knowledge is lost by it.

    Of parts that cannot be told apart (two paths to one disk, a serial that the maker gave to all) the first stands for
    all: a registration that names them twice is refused, and the machine would reboot for ever instead of being seen in
    quarantine, where the results of its wipe bring it.
    """
    nics: dict[str, base.Nic] = {}
    for nic in facts.nics:
        if _MAC.fullmatch(nic.mac) and clean(nic.name, 64):
            nics.setdefault(nic.mac, nic)
    disks: dict[str, base.Disk] = {}
    for each in facts.disks:
        if each.serial:
            disks.setdefault(each.serial, each)
    return hardware_pb2.Hardware(
        memory_bytes=facts.memory_bytes,
        cpus=[
            hardware_pb2.Cpu(
                vendor=clean(cpu.vendor, 128),
                model=clean(cpu.model, 256),
                cores=_bounded(cpu.cores, 4096),
                threads=_bounded(cpu.threads, 16384),
            )
            for cpu in facts.cpus[:64]
        ],
        gpus=[hardware_pb2.Gpu(vendor=clean(gpu.vendor, 128), model=clean(gpu.model, 256)) for gpu in facts.gpus[:64]],
        nics=[_nic(nic, neighbours.get(nic.name, ())) for nic in list(nics.values())[:256]],
        disks=[disk(each) for each in disks.values()],
    )


def _nic(nic: base.Nic, neighbours: Sequence[base.Neighbour]) -> hardware_pb2.Nic:
    return hardware_pb2.Nic(
        name=clean(nic.name, 64),
        mac=nic.mac,
        pci_address=clean(nic.pci_address, 64),
        speed_mbps=_bounded(nic.speed_mbps, 2**32 - 1),
        neighbours=[
            hardware_pb2.LldpNeighbour(
                system_name=clean(each.system_name, 255),
                chassis_id=clean(each.chassis_id, 255),
                port_id=clean(each.port_id, 255),
                port_description=clean(each.port_description, 255),
            )
            for each in list(neighbours)[:_MAX_NEIGHBOURS]
        ],
    )


def _bounded(number: int, most: int) -> int:
    return min(max(number, 0), most)


def disk(found: base.Disk) -> hardware_pb2.BlockDevice:
    """A disk as it is registered and reported."""
    return hardware_pb2.BlockDevice(
        name=found.device,
        serial=found.serial,
        model=clean(found.model, 256),
        size_bytes=found.size_bytes,
        rotational=found.kind == "hdd",
    )


def bios(facts: base.Facts) -> hardware_pb2.Bios:
    """Mainboard firmware."""
    firmware = facts.firmware
    return hardware_pb2.Bios(
        vendor=clean(firmware.vendor, 128), version=clean(firmware.version, 128), date=clean(firmware.date, 64)
    )


def bmc(facts: base.Facts) -> hardware_pb2.BmcInfo:
    """The BMC as seen from inside, and the serial numbers of the DMI tables."""
    board = facts.board
    fru = hardware_pb2.Fru(
        board_manufacturer=clean(board.board_manufacturer, 128),
        board_part_number=clean(board.board_name, 128),
        board_serial=clean(board.board_serial, 128),
        chassis_serial=clean(board.chassis_serial, 128),
        product_manufacturer=clean(board.product_manufacturer, 128),
        product_part_number=clean(board.product_name, 128),
        product_serial=clean(board.product_serial, 128),
    )
    if facts.bmc is None:
        return hardware_pb2.BmcInfo(fru=fru)
    mac = facts.bmc.mac if _MAC.fullmatch(facts.bmc.mac) else ""
    return hardware_pb2.BmcInfo(
        address=clean(facts.bmc.address, 261), mac=mac, version=clean(facts.bmc.version, 128), fru=fru
    )


def wipe_result(result: WipeResult) -> hardware_pb2.WipeResult:
    """What happened to one disk."""
    duration = Duration()
    duration.FromMilliseconds(int(result.duration * 1000))
    return hardware_pb2.WipeResult(
        serial=result.serial,
        name=clean(result.device, 256),
        method=result.method,
        verified=result.verified,
        duration=duration,
        error=clean(result.error, 1024),
    )


def boot_info(info: work.BootInfo) -> installation_pb2.BootInfo:
    """How an installed system is started."""
    return installation_pb2.BootInfo(
        kernel=info.kernel, initrd=info.initrd, cmdline=info.command_line, bootloader_id=info.bootloader_id
    )


def registration(answer: boot_pb2.RegisterResponse) -> work.Registration:
    """The answer to a registration; a verdict that this installer does not know means: touch nothing."""
    verdict = _VERDICTS.get(answer.verdict, work.Verdict.HOLD)
    return work.Registration(answer.generation, verdict, answer.size, answer.partition, answer.rack)


def item(answer: boot_pb2.WorkResponse, *, monotonic: float, wall: float) -> work.Item | None:
    """A work item; None for one of a kind that this installer does not know."""
    match answer.WhichOneof("item"):
        case "wait":
            return work.Wait(answer.wait.reason)
        case "wipe":
            return work.Wipe(grant(answer.wipe.grant, monotonic=monotonic, wall=wall))
        case "install":
            allowed = grant(answer.install.grant, monotonic=monotonic, wall=wall)
            return work.Install(allowed, spec(answer.install.spec))
        case "start":
            info = answer.start.boot_info
            boot = work.BootInfo(info.kernel, info.initrd, info.cmdline, info.bootloader_id)
            return work.Start(answer.start.allocation, boot)
        case "boot_existing":
            return work.BootExisting(answer.boot_existing.reason)
        case "reboot":
            return work.Reboot(answer.reboot.reason)
    return None


def grant(message: boot_pb2.DiskGrant, *, monotonic: float, wall: float) -> Grant:
    """A grant with its end on the monotonic clock; `wall` is the time by boot's clock. One without an end has ended."""
    left = message.expire_time.ToNanoseconds() / 1e9 - wall if message.HasField("expire_time") else 0.0
    return Grant(
        machine_id=message.machine,
        generation=message.generation,
        allocation_id=message.allocation,
        serials=frozenset(message.disk_serials),
        deadline=monotonic + min(left, MAX_GRANT_SECONDS),
    )


def spec(message: installation_pb2.InstallSpec) -> work.InstallSpec:
    """What to install."""
    role = allocation_pb2.AllocationRole.Name(message.role).removeprefix("ALLOCATION_ROLE_").lower()
    rules = {
        "egress": [_plain(rule) for rule in message.egress_rules],
        "ingress": [_plain(rule) for rule in message.ingress_rules],
    }
    return work.InstallSpec(
        allocation_id=message.allocation,
        role=role,
        hostname=message.hostname,
        image_id=message.image,
        source=Source(message.image_url, message.image_sha256, message.image_size_bytes),
        layout=layout(message.filesystem_layout),
        disk_serials=frozenset(message.disk_serials),
        networks=tuple(_plain(network) for network in message.networks),
        asn=message.asn,
        ssh_keys=tuple(message.ssh_keys),
        userdata=message.userdata,
        dns_servers=tuple(message.dns_servers),
        ntp_servers=tuple(message.ntp_servers),
        firewall_rules={name: found for name, found in rules.items() if found},
    )


def _plain(message: allocation_pb2.MachineNetwork | allocation_pb2.FirewallRule) -> dict[str, object]:
    """Field names as in the contract; numbers of 64 bits as numbers, not as JSON's strings."""
    found: dict[str, object] = MessageToDict(message, preserving_proto_field_name=True)
    return {name: int(value) if isinstance(value, str) and value.isdigit() else value for name, value in found.items()}


def layout(message: layout_pb2.FilesystemLayout) -> disk_layout.Layout:
    """A layout. Its rules are checked by the planner."""
    return disk_layout.Layout(
        filesystems=tuple(
            disk_layout.Filesystem(
                device=each.device,
                format=_FORMATS.get(each.format, disk_layout.Format.NONE),
                path=each.path,
                label=each.label,
                mount_options=tuple(each.mount_options),
                create_options=tuple(each.create_options),
            )
            for each in message.filesystems
        ),
        disks=tuple(_layout_disk(each) for each in message.disks),
        raids=tuple(
            disk_layout.Raid(
                name=each.name,
                devices=tuple(each.devices),
                level=0 if each.level == layout_pb2.RAID_LEVEL_STRIPED else 1,
                create_options=tuple(each.create_options),
                spares=each.spares,
            )
            for each in message.raids
        ),
        volume_groups=tuple(
            disk_layout.VolumeGroup(each.name, tuple(each.devices), tuple(each.tags)) for each in message.volume_groups
        ),
        logical_volumes=tuple(
            disk_layout.LogicalVolume(each.name, each.volume_group, each.size_mib, _VOLUMES.get(each.type, ""))
            for each in message.logical_volumes
        ),
    )


def _layout_disk(message: layout_pb2.Disk) -> disk_layout.LayoutDisk:
    parts = (disk_layout.Partition(p.number, p.size_mib, p.label, p.gpt_type) for p in message.partitions)
    return disk_layout.LayoutDisk(message.device, tuple(parts), message.wipe_on_reinstall)
