"""The command `metal-init`: what it says, how it fails, what it hands out."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from metal_kit.tls import read_certificate

Done = subprocess.CompletedProcess[bytes]


def run(root: Path, *arguments: str, **settings: str) -> Done:
    environment = {"METALPLANE_INIT_ROOT": str(root)} | {f"METALPLANE_INIT_{k.upper()}": v for k, v in settings.items()}
    # The code under test is the one that the tests see.
    environment |= {key: os.environ[key] for key in ("PYTHONPATH",) if key in os.environ}
    return subprocess.run(
        [sys.executable, "-m", "metal_init", *arguments], env=environment, capture_output=True, check=False
    )


def test_two_at_once_make_one_authority(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "metal_init", "plane"]
    environment = {"METALPLANE_INIT_ROOT": str(tmp_path / "s")}
    running = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) for _ in range(3)]
    said = sorted((process.communicate(timeout=60)[0] or b"") for process in running)
    assert [process.returncode for process in running] == [0, 0, 0]
    assert said[0].startswith(b"certificates issued: none")
    assert said[1] == said[0]
    assert b"tenancy" in said[2]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [(("leaf", "rack-a", "leaf01"), "leaf:leaf01"), (("client", "anna"), "client:anna")],
)
def test_a_handed_out_certificate_is_whole_and_leaves_no_key_behind(
    tmp_path: Path, arguments: tuple[str, ...], expected: str
) -> None:
    done = run(tmp_path / "s", *arguments)
    assert done.returncode == 0, done.stderr
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        modes = {member.name: member.mode for member in archive}
        content = {name: archive.extractfile(name).read() for name in modes}  # type: ignore[union-attr]
    assert modes == {"ca.crt": 0o644, "tls.crt": 0o644, "tls.key": 0o600}
    caller = read_certificate(content["tls.crt"]).caller
    assert caller.label == expected
    left = [path.read_bytes() for path in (tmp_path / "s").rglob("*") if path.is_file()]
    assert content["tls.key"] not in left


@pytest.mark.parametrize(
    ("arguments", "settings", "complaint"),
    [
        (("client", "edge"), {}, "'edge' is a part of the plane"),
        (("authority", "switch"), {}, "there is no new authority: metal-init authority next"),
        (("plane",), {"partition": "Rack A"}, "METALPLANE_INIT_PARTITION: Value error, 'Rack A' cannot be the name"),
        (("plane",), {"edge_names": "ok.example,bad name"}, "METALPLANE_INIT_EDGE_NAMES: Value error, 'bad name'"),
        (("plane",), {"days": "0"}, "METALPLANE_INIT_DAYS: Input should be greater than 0"),
        (("leaf", "rack-a", "../x"), {}, "'../x' cannot be the name of a leaf"),
        (("client", "a/b"), {}, "'a/b' cannot be the name of a client"),
        (("partition", "rack_b"), {}, "'rack_b' cannot be the name of a partition"),
        (("database",), {}, "METALPLANE_INIT_DATABASE_URL and METALPLANE_INIT_DATABASE_ROLES have to be set"),
    ],
)
def test_wrong_input_is_named_in_one_line(
    tmp_path: Path, arguments: tuple[str, ...], settings: dict[str, str], complaint: str
) -> None:
    done = run(tmp_path / "s", *arguments, **settings)
    assert done.returncode == os.EX_CONFIG
    lines = done.stderr.decode().splitlines()
    assert len(lines) == 1
    assert complaint in lines[0]


def test_a_root_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "s").write_text("a file, not a folder")
    done = run(tmp_path / "s", "plane")
    assert done.returncode == os.EX_UNAVAILABLE
    assert str(tmp_path / "s") in done.stderr.decode()


def test_a_database_that_is_not_there_is_named_without_its_password(tmp_path: Path) -> None:
    url = "postgresql://postgres:hunter2@127.0.0.1:1/x"
    done = run(tmp_path / "s", "database", database_url=url, database_roles='{"ipam": "swordfish"}')
    assert done.returncode == os.EX_UNAVAILABLE
    said = done.stderr.decode()
    assert said.startswith("metal-init: cannot connect to Postgres")
    assert "hunter2" not in said
    assert "swordfish" not in said
