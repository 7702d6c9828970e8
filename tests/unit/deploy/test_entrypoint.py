"""The image's entry point: secrets of the folder become settings, and what the container was given wins."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest
from metal_init.files import environment

AWKWARD = 'it\'s $HOME `id` "x" \\n * #'


def run(root: Path, environ: Mapping[str, str], *command: str) -> subprocess.CompletedProcess[str]:
    script = root / "deploy" / "entrypoint.sh"
    given = {"PATH": "/usr/bin:/bin", **environ}
    return subprocess.run(["sh", str(script), *command], env=given, capture_output=True, text=True, check=False)


@pytest.fixture
def env_file(tmp_path: Path) -> Path:
    path = tmp_path / "env"
    path.write_bytes(environment({"METALPLANE_A": AWKWARD, "METALPLANE_B": "from the file"}))
    return path


def test_settings_of_the_file_reach_the_command_unchanged(root: Path, env_file: Path) -> None:
    done = run(root, {"METALPLANE_ENV_FILE": str(env_file)}, "printenv", "METALPLANE_A")
    assert done.stdout == AWKWARD + "\n"


def test_a_setting_of_the_container_wins_over_the_file(root: Path, env_file: Path) -> None:
    given = {"METALPLANE_ENV_FILE": str(env_file), "METALPLANE_B": "it's given"}
    assert run(root, given, "printenv", "METALPLANE_B").stdout == "it's given\n"


def test_without_a_file_the_command_runs_as_it_is(root: Path, tmp_path: Path) -> None:
    done = run(root, {"METALPLANE_ENV_FILE": str(tmp_path / "none")}, "printf", "%s|", "a b", "c")
    assert (done.returncode, done.stdout) == (0, "a b|c|")


def test_the_command_takes_the_place_of_the_shell_and_its_exit_code_counts(root: Path, env_file: Path) -> None:
    done = run(root, {"METALPLANE_ENV_FILE": str(env_file)}, "sh", "-c", "exit 78")
    assert done.returncode == 78


def test_the_variables_of_the_script_itself_do_not_reach_the_command(root: Path, env_file: Path) -> None:
    seen = run(root, {"METALPLANE_ENV_FILE": str(env_file)}, "env").stdout
    names = {line.partition("=")[0] for line in seen.splitlines()}
    assert {"METALPLANE_A", "METALPLANE_B"} <= names
    assert not names & {"METALPLANE_ENV_FILE", "given", "file"}


def test_a_text_with_a_line_break_is_refused_rather_than_split() -> None:
    with pytest.raises(ValueError, match="METALPLANE_A"):
        environment({"METALPLANE_A": "a\nMETALPLANE_B=b"})
