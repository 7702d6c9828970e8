"""Both backends have the shape that the installer asks for, and the installer stays free of what a ramdisk has not."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import metal_hammer
import metal_sim
import pytest
from metal_hammer.hardware import base, facts
from metal_hammer.hardware.base import Hardware
from metal_hammer.hardware.linux import LinuxHardware
from metal_sim.machine import MachineFacts, SimulatedHardware
from metal_sim.machine import facts as simulated_facts


def check_shapes(linux: LinuxHardware, simulated: SimulatedHardware) -> tuple[Hardware, Hardware]:
    """Accepted by mypy only while both have the protocol's types, down to the last member."""
    return linux, simulated


def test_both_backends_have_the_methods_of_the_protocol(tmp_path: Path) -> None:
    simulated = SimulatedHardware(MachineFacts("uuid", (), ()), tmp_path)
    for backend in check_shapes(LinuxHardware(), simulated):
        assert isinstance(backend, Hardware)


METHODS = [name for name, value in vars(Hardware).items() if inspect.isfunction(value) and not name.startswith("_")]


@pytest.mark.parametrize("name", METHODS)
def test_both_backends_take_the_same_arguments(name: str) -> None:
    wanted = list(inspect.signature(getattr(Hardware, name)).parameters)
    for backend in (LinuxHardware, SimulatedHardware):
        assert list(inspect.signature(getattr(backend, name)).parameters) == wanted, backend


@pytest.mark.parametrize("name", ["Cpu", "Gpu", "Nic", "Disk", "Neighbour", "Firmware", "Bmc", "Board", "Completed"])
def test_the_values_of_both_backends_have_the_members_of_the_protocol(name: str) -> None:
    members = {member for member in vars(getattr(base, name)) if not member.startswith("_")}
    for module in (facts, simulated_facts):
        assert members <= set(getattr(module, name).__dataclass_fields__), module


FORBIDDEN = ("asyncpg", "nats", "metal_boot", "metal_sim", "metal_lab")


def test_the_installer_loads_neither_a_database_nor_a_bus() -> None:
    program = (
        "import sys, metal_hammer.__main__, metal_hammer.run;"
        f"print([name for name in {FORBIDDEN!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("package", [metal_hammer, metal_sim])
def test_no_module_imports_across_the_wall(package: object) -> None:
    walls = {"metal_hammer": FORBIDDEN, "metal_sim": ("metal_hammer", "metal_boot", "metal_lab")}
    directory = Path(package.__file__ or "").parent  # type: ignore[attr-defined]
    forbidden = walls[package.__name__]  # type: ignore[attr-defined]
    modules = list(directory.rglob("*.py"))
    assert modules
    for module in modules:
        for node in ast.walk(ast.parse(module.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not [name for name in names if name.split(".")[0] in forbidden], module
