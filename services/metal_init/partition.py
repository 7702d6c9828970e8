"""One more partition: folders for its bmc and boot services, which share databases and bus with the first one's.

The bmc services of all partitions use one schema and one key ring, so the environment of the first one is copied; a
boot service has its own authority for machines and its own key for ramdisk tokens.
"""

from __future__ import annotations

from pathlib import Path

from metal_init import files
from metal_init.certificates import Certificates
from metal_init.plane import (
    ENVIRONMENT,
    OF_PARTITION,
    Passwords,
    bearer_of,
    common_values,
    own_values,
    put_machine_authority,
)
from metal_init.settings import Settings

KEY_RING = "credential_keys.secret"


class NoPlane(Exception):
    """The plane's own folders are not there yet, or not mounted."""


def set_up(settings: Settings, certificates: Certificates, into: Path) -> list[str]:
    """Make `bmc` and `boot` below `into` for the partition of the settings; names of the certificates issued.

    Raises NoPlane when the first bmc's key ring is not below the root: another ring could not open a password that
    this one sealed.
    """
    ring = settings.root / "bmc" / KEY_RING
    if not ring.exists():
        raise NoPlane(f"{ring} is not there: run `metal-init plane` first, and mount the folder of its bmc")
    files.write_if_changed(into / "bmc" / KEY_RING, ring.read_bytes())
    passwords = Passwords(settings.root / "authority")
    issued = []
    for name in OF_PARTITION:
        folder = into / name
        if certificates.put(folder, bearer_of(name, settings.partition)):
            issued.append(name)
        values = common_values(settings, passwords, name) | own_values(folder, name)
        files.write_if_changed(folder / ENVIRONMENT, files.environment(values))
    if put_machine_authority(certificates, into / "boot", settings.partition):
        issued.append("machine authority")
    return issued
