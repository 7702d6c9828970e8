"""Generate the contract library from the protos: `python protos/generate.py [--check]`.

Writes `libs/metalplane` (ours) and `libs/buf` (the validation rules that our contracts import). Every generated
directory gets an `__init__.py`: without one it is a namespace package, and loses to any regular package of its name.
`--check` regenerates into a temporary directory and fails when the checked-in files differ.
"""

from __future__ import annotations

import filecmp
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROTOS = ROOT / "protos"
TOP_PACKAGES = ("metalplane", "buf")


def sources() -> list[Path]:
    ours = sorted((PROTOS / "metalplane").rglob("*.proto"))
    return [*ours, PROTOS / "third_party" / "buf" / "validate" / "validate.proto"]


def generate(out: Path) -> None:
    """Run protoc with the Python, gRPC and type-stub plugins into `out`."""
    bin_dir = Path(sys.executable).parent
    files = [str(path.relative_to(PROTOS)).removeprefix("third_party/") for path in sources()]
    subprocess.run(
        [
            sys.executable, "-m", "grpc_tools.protoc",
            f"-I{PROTOS}", f"-I{PROTOS / 'third_party'}",
            f"--plugin=protoc-gen-mypy={bin_dir / 'protoc-gen-mypy'}",
            f"--plugin=protoc-gen-mypy_grpc={bin_dir / 'protoc-gen-mypy_grpc'}",
            f"--python_out={out}", f"--grpc_python_out={out}",
            f"--mypy_out=quiet:{out}", f"--mypy_grpc_out=quiet:{out}",
            *files,
        ],
        check=True,
        cwd=PROTOS,
    )  # fmt: skip
    drop_empty_grpc_modules(out)
    for package in TOP_PACKAGES:
        for directory in [out / package, *(path for path in (out / package).rglob("*") if path.is_dir())]:
            (directory / "__init__.py").write_text('"""Generated from the protos; do not edit."""\n')
        (out / package / "py.typed").touch()


def drop_empty_grpc_modules(out: Path) -> None:
    """protoc writes a gRPC module for files without a service too; those only confuse readers."""
    for module in out.rglob("*_pb2_grpc.py"):
        if "class " not in module.read_text():
            module.unlink()
            module.with_suffix(".pyi").unlink(missing_ok=True)


def differences(generated: Path, checked_in: Path) -> list[str]:
    left = {path.relative_to(generated) for path in generated.rglob("*") if path.is_file()}
    right = {
        path.relative_to(checked_in)
        for path in checked_in.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    changed = {path for path in left & right if not filecmp.cmp(generated / path, checked_in / path, shallow=False)}
    return sorted(str(path) for path in (left ^ right) | changed)


def main() -> int:
    check = "--check" in sys.argv[1:]
    with tempfile.TemporaryDirectory() as temporary:
        out = Path(temporary)
        generate(out)
        stale = [
            f"libs/{package}/{name}"
            for package in TOP_PACKAGES
            for name in differences(out / package, ROOT / "libs" / package)
        ]
        if check:
            for name in stale:
                print(f"out of date: {name} (run `make proto`)")
            return 1 if stale else 0
        for package in TOP_PACKAGES:
            shutil.rmtree(ROOT / "libs" / package, ignore_errors=True)
            shutil.copytree(out / package, ROOT / "libs" / package)
    return 0


if __name__ == "__main__":
    sys.exit(main())
