"""What the installer tells the installed system: files below /etc/metal, host name, SSH keys, fstab.

/etc/metal/install.yaml has the keys that existing images of the field read; the image's own installer makes the
system's network and services from it. Files that may hold secrets (install.yaml, user data, keys) are readable by root
only.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from metal_hammer import target
from metal_hammer.failure import Code, Step, StepFailed
from metal_hammer.hardware.base import Facts
from metal_hammer.work import BootInfo, InstallSpec

INSTALL_YAML = "/etc/metal/install.yaml"
USERDATA = "/etc/metal/userdata"
BOOT_INFO = "/etc/metal/boot-info.yaml"

_STEP = Step.CONFIGURE
_HOSTNAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*")
_CONSOLE = re.compile(r"\bconsole=(\S+)")


def install_document(
    spec: InstallSpec, facts: Facts, *, root_uuid: str, console: str, cabled: Sequence[str], now: datetime
) -> dict[str, Any]:
    """The content of install.yaml. `cabled` are the MACs of the NICs whose other end is known. Pure."""
    nics = [{"mac": nic.mac, "name": nic.name} for nic in facts.nics if nic.mac in cabled]
    return {
        "version": 1,
        "hostname": spec.hostname,
        "machineuuid": facts.uuid,
        "allocation": spec.allocation_id,
        "image": spec.image_id,
        "role": spec.role,
        "networks": [dict(network) for network in spec.networks],
        "asn": spec.asn,
        "nics": nics,
        "sshpublickey": "\n".join(spec.ssh_keys),
        "console": console,
        "timestamp": now.isoformat(),
        "raidenabled": bool(spec.layout.raids),
        "root_uuid": root_uuid,
        "dns_servers": [{"ip": address} for address in spec.dns_servers],
        "ntp_servers": [{"address": address} for address in spec.ntp_servers],
        "firewall_rules": dict(spec.firewall_rules),
    }


def console_of(command_line: str) -> str:
    """The last `console=` of a kernel command line (the kernel's /dev/console), ttyS0 when there is none."""
    found = _CONSOLE.findall(command_line)
    return str(found[-1]) if found else "ttyS0"


def write_all(root: Path, spec: InstallSpec, document: dict[str, Any], fstab: str) -> None:
    """Write the configuration into the target. Raises StepFailed; what was written by then stays."""
    if not _HOSTNAME.fullmatch(spec.hostname) or len(spec.hostname) > 253:
        raise StepFailed(_STEP, Code.TARGET_IO, "the host name is not a DNS name")
    text = yaml.safe_dump(document, sort_keys=False, allow_unicode=True)
    target.write(root, INSTALL_YAML, text.encode(), mode=0o600, step=_STEP)
    target.write(root, USERDATA, spec.userdata, mode=0o600, step=_STEP)
    target.write(root, "/etc/hostname", f"{spec.hostname}\n".encode(), mode=0o644, step=_STEP)
    target.write(root, "/etc/fstab", fstab.encode(), mode=0o644, step=_STEP)
    keys = "".join(f"{key.strip()}\n" for key in spec.ssh_keys)
    target.write(root, "/etc/metal/authorized_keys", keys.encode(), mode=0o600, step=_STEP)


def read_boot_info(root: Path) -> BootInfo:
    """What the image says of how it is started. Raises StepFailed when it says nothing usable.

    A kernel that is named but not there would only be noticed by a machine that does not come up.
    """
    content = target.read(root, BOOT_INFO, limit=64 * 1024, step=Step.BOOTLOADER)
    if content is None:
        raise StepFailed(Step.BOOTLOADER, Code.NO_KERNEL, f"the image left no {BOOT_INFO}")
    try:
        document = yaml.safe_load(content)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError):
        document = None
    if not isinstance(document, dict):
        raise StepFailed(Step.BOOTLOADER, Code.NO_KERNEL, f"{BOOT_INFO} is not a YAML mapping")
    values = {key: str(document.get(key) or "") for key in ("kernel", "initrd", "cmdline", "bootloader_id")}
    for key in ("kernel", "initrd"):
        if values[key] and not target.resolve(root, values[key], step=Step.BOOTLOADER).is_file():
            raise StepFailed(Step.BOOTLOADER, Code.NO_KERNEL, f"{key} {values[key]!r} is not in the image")
    if not values["kernel"]:
        raise StepFailed(Step.BOOTLOADER, Code.NO_KERNEL, f"{BOOT_INFO} names no kernel")
    return BootInfo(values["kernel"], values["initrd"], values["cmdline"], values["bootloader_id"])
