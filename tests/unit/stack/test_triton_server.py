"""Which Triton a mesh runs: the package's, or one that the environment names."""

from __future__ import annotations

from pathlib import Path

import pytest

from infra.stack import preflight, triton
from infra.stack.doctor import mesh
from infra.stack.errors import StackError
from infra.stack.layout import Layout
from infra.stack.libpython import library_name


def installed(folder: Path, *, version: str = "2.73.0", library: str | None = None) -> Path:
    """A folder laid out as the official image's /opt/tritonserver."""
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "tritonserver").write_bytes(b"")
    (folder / "backends" / "python").mkdir(parents=True)
    stub = folder / "backends" / "python" / "triton_python_backend_stub"
    stub.write_bytes(b"\0" + (library or library_name()).encode() + b"\0")
    (folder / "TRITON_VERSION").write_text(f"{version}\n")
    return folder


def test_a_named_server_is_used_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layout = Layout.of(tmp_path / "home", tmp_path / "state")
    server = installed(tmp_path / "server")
    monkeypatch.setenv(triton.SERVER, str(server))
    assert triton.server_folder() == server
    assert triton.server_version() == "2.73.0"
    assert triton.place_backends(layout.home) == server / "backends"
    assert (
        "pytriton"
        not in triton.environment(Path("/lib/libpython.so"), Path("/programs"), Path("/state/tmp"))["LD_LIBRARY_PATH"]
    )
    assert not layout.home.triton.exists()


def test_without_one_it_is_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(triton.SERVER, raising=False)
    assert (triton.server_folder() / "bin" / "tritonserver").is_file()
    assert triton.server_version() == "2.51.0"


def test_a_folder_without_a_server_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(triton.SERVER, str(tmp_path))
    with pytest.raises(StackError, match=f"_SERVER names {tmp_path}, where there is no bin/tritonserver"):
        triton.server_folder()


def test_a_backend_for_another_python_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(triton.SERVER, str(installed(tmp_path / "server", library="libpython3.9.so.1.0")))
    with pytest.raises(StackError, match=r"triton_python_backend_stub is not for Python 3\."):
        triton.place_backends(Layout.of(tmp_path, tmp_path).home)


def test_doctor_has_nothing_to_say_about_a_server_without_known_holes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = Layout.of(tmp_path / "home", tmp_path / "state")
    (look,) = [each.look for each in mesh.checks(layout) if each.name == "triton"]
    for version, holes in (("2.58.0", 1), ("2.59.0", 0), ("2.73.0", 0)):
        monkeypatch.setenv(triton.SERVER, str(installed(tmp_path / version, version=version)))
        found = list(look())
        assert len(found) == holes
        assert all(f"Triton {version} has known vulnerabilities" in each.message for each in found)
        assert all("The image of infra/compose has Triton 2.73.0" in each.remedy for each in found)


def test_the_package_is_needed_only_where_its_server_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "pytriton" else name)
    layout = Layout.of(tmp_path / "home", tmp_path / "state")
    monkeypatch.delenv(triton.SERVER, raising=False)
    assert preflight.gather(layout).missing_modules == ("pytriton",)
    monkeypatch.setenv(triton.SERVER, str(installed(tmp_path / "server")))
    assert preflight.gather(layout).missing_modules == ()
