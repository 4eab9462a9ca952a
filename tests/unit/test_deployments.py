"""Compose files hold the schema; what a container runs is a command that exists, with a Triton without known holes."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from gateway.cli.main import create_cli
from infra.stack import triton
from infra.stack.doctor.mesh import IMAGE_VERSION

ROOT = Path(__file__).parents[2]
COMPOSE = sorted(ROOT.glob("infra/**/compose*.yaml"))
DOCKERFILES = sorted(ROOT.glob("infra/**/Dockerfile*"))


def test_there_are_some() -> None:
    assert COMPOSE
    assert DOCKERFILES


@pytest.mark.parametrize("path", COMPOSE, ids=str)
def test_a_compose_file_holds_the_schema_and_names_files_that_exist(path: Path) -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(path)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    for service in yaml.safe_load(path.read_text())["services"].values():
        context = path.parent / service["build"]["context"]
        assert (context / service["build"]["dockerfile"]).is_file()


@pytest.mark.parametrize("path", DOCKERFILES, ids=str)
def test_a_dockerfile_passes_the_linter(path: Path) -> None:
    linter = shutil.which("hadolint", path=str(Path(sys.executable).parent))
    assert linter is not None
    result = subprocess.run(
        [linter, "--failure-threshold", "info", str(path)], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("path", DOCKERFILES, ids=str)
def test_what_a_container_runs_exists(path: Path) -> None:
    found = re.findall(r"^(?:CMD|HEALTHCHECK .*CMD) (\[.*\])$", path.read_text(), re.MULTILINE)
    assert found
    for text in found:
        program, *arguments = json.loads(text)
        assert program == "tidemill"
        known = CliRunner().invoke(create_cli(), [*arguments, "--help"])
        assert known.exit_code == 0, known.output


_TRITON = "nvcr.io/nvidia/tritonserver"
_FROM = re.compile(r"^FROM\s+(?:--\S+\s+)*(?P<image>\S+)(?:\s+AS\s+(?P<stage>\S+))?\s*$", re.MULTILINE | re.IGNORECASE)


def triton_of(image: str) -> tuple[int, int]:
    """Triton's version in an official image: 25.07 has 2.59, and each month's release one more.

    Raises:
        ValueError: the tag is not one release (`latest`, a variable, none), or the image is another one.
    """
    found = re.fullmatch(re.escape(_TRITON) + r":(\d\d)\.(0[1-9]|1[0-2])-py3(?:@sha256:[0-9a-f]{64})?", image)
    if found is None:
        raise ValueError(f"{image} is not one release of {_TRITON}")
    year, month = int(found[1]), int(found[2])
    return 2, 59 + (year - 25) * 12 + month - 7


def bases(dockerfile: str) -> list[str]:
    """The image that each stage is made from, stages by name resolved."""
    named: dict[str, str] = {}
    found = []
    for match in _FROM.finditer(dockerfile):
        image = named.get(match["image"], match["image"])
        found.append(image)
        if match["stage"]:
            named[match["stage"]] = image
    return found


@pytest.mark.parametrize(
    ("tag", "version"), [("25.06-py3", (2, 58)), ("25.07-py3", (2, 59)), ("26.01-py3", (2, 65)), ("26.09-py3", (2, 73))]
)
def test_the_release_of_an_official_image_says_which_triton_it_has(tag: str, version: tuple[int, int]) -> None:
    assert triton_of(f"{_TRITON}:{tag}") == version


@pytest.mark.parametrize("tag", ["", ":latest", ":${TAG}", ":26.13-py3", ":26.09-py3-sdk"])
def test_an_image_without_one_release_is_found(tag: str) -> None:
    with pytest.raises(ValueError, match="is not one release"):
        triton_of(_TRITON + tag)


@pytest.mark.parametrize("path", DOCKERFILES, ids=str)
def test_a_mesh_in_a_container_has_an_official_triton_without_known_holes(path: Path) -> None:
    text = path.read_text()
    images = bases(text)
    assert images
    for image in images:
        version = triton_of(image)
        assert version >= (2, 59), f"{image} has Triton {version}: CVE-2025-23310 and others are open before 2.59"
        assert version == tuple(int(part) for part in IMAGE_VERSION.split(".")[:2]), "doctor names another version"
    assert re.search(r"^RUN .*make setup[^#]*pip uninstall [^#]*nvidia-pytriton$", text, re.MULTILINE | re.DOTALL)
    assert f"{triton.SERVER}=/opt/tritonserver" in text


@pytest.mark.parametrize("path", COMPOSE, ids=str)
def test_compose_names_no_other_triton(path: Path) -> None:
    for service in yaml.safe_load(path.read_text())["services"].values():
        if (image := service.get("image")) and "triton" in image:
            assert triton_of(image) >= (2, 59)


def test_the_versions_of_machine_and_container_are_in_the_security_document(monkeypatch: pytest.MonkeyPatch) -> None:
    text = (ROOT / "docs" / "security.md").read_text()
    (image,) = {image for path in DOCKERFILES for image in bases(path.read_text())}
    assert f"{IMAGE_VERSION} | `{image}`" in text
    monkeypatch.delenv(triton.SERVER, raising=False)
    assert f"{triton.server_version()} | `nvidia-pytriton`" in text
