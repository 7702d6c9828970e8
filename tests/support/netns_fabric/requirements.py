"""What a fabric in namespaces needs of the machine that it runs on."""

from __future__ import annotations

import os
import shutil
import subprocess

from netns_fabric.frr import DAEMONS

_PROGRAMS = {
    "iproute2": ("ip", "bridge"),
    "util-linux": ("nsenter", "unshare", "setpriv"),
    "procps": ("sysctl",),
    "frr": ("vtysh", f"{DAEMONS}/zebra", f"{DAEMONS}/bgpd"),
    "redis-server": ("redis-server",),
}
_TRY = (
    "ip link add bridge0 type bridge; ip link add end0 type veth peer name end1; "
    "ip link add vni1 type vxlan id 1 dstport 4789 local 10.0.0.1"
)


def missing() -> str:
    """Why no fabric can be built here; empty when it can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    for package, programs in _PROGRAMS.items():
        for program in programs:
            if shutil.which(program) is None:
                return f"{program} is not installed (`make peers` installs {package})"
    # Root in a container is often not allowed to, or its kernel lacks a type of device.
    command = ["unshare", "--pid", "--fork", "--net", "--mount", "--propagation", "private", "sh", "-ec", _TRY]
    tried = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    return f"this kernel or container does not allow it: {tried.stderr.strip()}" if tried.returncode else ""
