"""Generates the stubs under protos/gen from the protos: `python protos/generate.py`, with `--check` for drift.

grpc_tools' protoc with mypy-protobuf's plugins; buf only lints, so that nothing is needed but PyPI.
"""

from __future__ import annotations

import argparse
import filecmp
import os
import shutil
import sys
import tempfile
from importlib.resources import files
from pathlib import Path

from grpc_tools import protoc

PROTOS = Path(__file__).resolve().parent


def generate(target: Path) -> None:
    """Writes all stubs below `target`.

    Raises:
        SystemExit: protoc refused a file; it has said why.
    """
    # The plugins are console scripts beside the interpreter, which need not be on the PATH.
    os.environ["PATH"] = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))
    well_known = str(files("grpc_tools") / "_proto")
    own = sorted(str(p.relative_to(PROTOS)) for p in (PROTOS / "tidemill").rglob("*.proto"))
    vendored = sorted(str(p.relative_to(PROTOS / "vendor")) for p in (PROTOS / "vendor").rglob("*.proto"))
    services = [name for name in own if "\nservice " in (PROTOS / name).read_text()]
    include = [f"-I{PROTOS}", f"-I{PROTOS / 'vendor'}", f"-I{well_known}"]
    runs = [
        [f"--python_out={target}", f"--mypy_out={target}", *own, *vendored],
        [f"--grpc_python_out={target}", f"--mypy_grpc_out={target}", *services],
    ]
    for run in runs:
        if protoc.main(["protoc", *include, *run]) != 0:
            sys.exit("protoc failed; see above")
    for folder in {p.parent for p in target.rglob("*_pb2.py")}:
        for parent in [folder, *folder.parents]:
            if parent == target:
                break
            (parent / "__init__.py").touch()
    for package in (p for p in target.iterdir() if p.is_dir()):
        (package / "py.typed").touch()


def differences(left: Path, right: Path) -> list[str]:
    """Names of files that differ or that only one side has."""
    ignore = shutil.ignore_patterns("__pycache__")
    names = {
        str(p.relative_to(side))
        for side in (left, right)
        for p in side.rglob("*")
        if p.is_file() and not ignore(str(p.parent), [p.parent.name])
    }
    return sorted(
        n
        for n in names
        if not (left / n).is_file() or not (right / n).is_file() or not filecmp.cmp(left / n, right / n, shallow=False)
    )


def main() -> None:
    """Generates, or checks for drift."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="fail where the committed stubs differ")
    check = parser.parse_args().check
    with tempfile.TemporaryDirectory() as folder:
        # Not the temporary folder itself, whose mode only lets its owner in: the copy would have it, too.
        fresh = Path(folder) / "gen"
        fresh.mkdir()
        generate(fresh)
        if check:
            drift = differences(fresh, PROTOS / "gen")
            if drift:
                sys.exit("Stubs drift from the protos, run `make stubs`:\n  " + "\n  ".join(drift))
            return
        shutil.rmtree(PROTOS / "gen", ignore_errors=True)
        shutil.copytree(fresh, PROTOS / "gen")


if __name__ == "__main__":
    main()
