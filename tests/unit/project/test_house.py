"""The house keeps its own rules: sizes and names of files, pinned packages, nothing of one machine in it."""

from __future__ import annotations

import importlib
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[3]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
SERVICES = ("tenancy", "inventory", "ipam", "allocation", "fabric", "bmc", "boot")
MOST_LINES = 500


@pytest.fixture(scope="module")
def files() -> list[Path]:
    """Everything that belongs to the project."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
        timeout=30,
    )
    found = [ROOT / name for name in listed.stdout.decode().split("\0") if name]
    assert len(found) > 500
    return [path for path in found if path.is_file()]


def ours(files: list[Path]) -> list[Path]:
    """Python that people write."""
    generated = (ROOT / "libs" / "metalplane", ROOT / "libs" / "buf")
    return [path for path in files if path.suffix == ".py" and not any(path.is_relative_to(each) for each in generated)]


def test_no_file_is_too_long_for_one_purpose(files: list[Path]) -> None:
    lengths = {path: path.read_text(encoding="utf-8").count("\n") for path in ours(files)}
    assert not {str(path.relative_to(ROOT)): lines for path, lines in lengths.items() if lines > MOST_LINES}


def test_no_module_is_named_after_nothing(files: list[Path]) -> None:
    nothing = {"util", "utils", "helper", "helpers", "misc", "common"}
    assert not [path for path in ours(files) if nothing & {path.stem, path.parent.name}]


def test_every_module_says_its_purpose(files: list[Path]) -> None:
    silent = []
    for path in ours(files):
        text = path.read_text(encoding="utf-8")
        if not path.is_relative_to(ROOT / "tests") and text.strip() and not re.match(r'(#!.*\n)?"""\S', text):
            silent.append(str(path.relative_to(ROOT)))
    assert not silent


def test_nothing_names_a_place_of_one_machine(files: list[Path]) -> None:
    place = re.compile(r"(?<![\w.~/-])/(?:work|farm|root|home/\w+)/")
    found = []
    for path in files:
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        found += [f"{path.relative_to(ROOT)}: {line}" for line in text.splitlines() if place.search(line)]
    assert not found


def test_every_package_that_we_ask_for_is_pinned() -> None:
    pins: dict[str, str] = {}
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        assert "://" not in line, line
        name, _, version = line.partition("==")
        assert re.fullmatch(r"[0-9][\w.+!-]*", version), line
        pins[canonicalize_name(name)] = version
    wanted = [Requirement(text) for text in PROJECT["dependencies"]]
    for extra in PROJECT["optional-dependencies"].values():
        wanted += [Requirement(text) for text in extra]
    for requirement in wanted:
        if requirement.name == PROJECT["name"]:
            continue
        name = canonicalize_name(requirement.name)
        assert name in pins, f"{name} is not in constraints.txt"
        assert requirement.specifier.contains(pins[name]), f"{name} {pins[name]} is not {requirement.specifier}"


@pytest.mark.parametrize(("command", "entry"), sorted(PROJECT["scripts"].items()))
def test_every_command_leads_somewhere(command: str, entry: str) -> None:
    module, _, function = entry.partition(":")
    assert callable(getattr(importlib.import_module(module), function)), command


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_has_the_same_rooms_as_the_others(service: str) -> None:
    package = ROOT / "services" / f"metal_{service}"
    for room in ("__init__.py", "__main__.py", "service.py"):
        assert (package / room).is_file(), room
    assert (package / "api").is_dir() or (package / "api.py").is_file()
    if service != "boot":
        assert (package / "store").is_dir() or (package / "store.py").is_file()
        assert (package / "migrations").is_dir()
    assert f"metal-{service}" in PROJECT["scripts"]
    assert f"\n| {service} | " in (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")


def test_migrations_are_numbered_without_a_gap() -> None:
    rooms = [*ROOT.glob("services/*/migrations"), ROOT / "libs" / "metal_kit" / "migrations"]
    assert len(rooms) > len(SERVICES) - 1
    for room in rooms:
        numbers = sorted(int(path.name.partition("_")[0]) for path in room.glob("*.sql"))
        assert numbers == list(range(1, len(numbers) + 1)), room
        assert numbers, room
