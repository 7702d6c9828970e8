"""The agents get by with the packages that their extras name: a leaf and a ramdisk have room for little more."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import metadata

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

# Imports a whole package in a process of its own, where every distribution that was not allowed seems not installed.
IMPORT = """
import importlib, json, pkgutil, sys

package, refused = sys.argv[1], set(json.loads(sys.argv[2]))

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in refused:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
root = importlib.import_module(package)
count = 0
for module in pkgutil.walk_packages(root.__path__, f"{package}."):
    importlib.import_module(module.name)
    count += 1
print(count)
"""


def needs(extra: str) -> set[str]:
    """Distributions that an installation with the extra brings, with what they need themselves."""
    found: set[str] = {"metalplane"}
    waiting = [Requirement(f"metalplane[{extra}]")]
    while waiting:
        requirement = waiting.pop()
        extras = requirement.extras or {""}
        for text in metadata.requires(requirement.name) or []:
            needed = Requirement(text)
            if needed.marker is None or any(needed.marker.evaluate({"extra": each}) for each in extras):
                name = canonicalize_name(needed.name)
                if name not in found:
                    found.add(name)
                    waiting.append(needed)
    return found


def refused(extra: str) -> list[str]:
    """Top-level modules that are installed here and would not be with the extra alone."""
    allowed = needs(extra)
    return sorted(
        module
        for module, owners in metadata.packages_distributions().items()
        if not {canonicalize_name(owner) for owner in owners} & allowed
    )


@pytest.mark.parametrize(
    ("package", "extra"),
    [("metal_core", "leaf"), ("metal_hammer", "hammer"), ("metalctl", "cli"), ("metal_ipam", "server")],
)
def test_every_module_of_a_package_can_be_imported_with_its_extra_alone(package: str, extra: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", IMPORT, package, json.dumps(refused(extra))],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 5


def test_a_leaf_has_no_database_driver_bus_or_web_server() -> None:
    assert {"asyncpg", "nats", "aiohttp", "uvloop", "pyghmi", "zstandard", "rich"} <= set(refused("leaf"))
