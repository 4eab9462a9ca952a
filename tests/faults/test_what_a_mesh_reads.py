"""A mesh as the stack starts it reads what its user allowed on this machine, and nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
import yaml
from tidemill.ingest.v1 import ingest_service_pb2 as pb
from tidemill.ingest.v1 import ingest_service_pb2_grpc as stubs
from tidemill.ingest.v1.source_import_pb2 import Import, JsonLinesSource, SourceSpec
from tidemill.pipeline.v1.cycle_pb2 import PipelineSpec

from gateway.cli.allowed_sources import allow, wanted_roots
from gateway.cli.pipeline_file import PipelineFile
from infra.stack.state import StackState
from infra.stack.testing import running_parts
from tests.conftest import ROOT
from tests.faults.strangers import open_folder

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StackState]:
    with running_parts({"kafka", "ingest"}, tmp_path_factory.mktemp("mesh")) as state:
        yield state


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that others may read: a mesh that root starts reads it as another user."""
    with open_folder() as made:
        yield made


def run(stack: StackState, path: str) -> int:
    """Final state of an import of this file."""
    with grpc.insecure_channel(stack.address("ingest")) as channel:
        stub = stubs.IngestServiceStub(channel)
        spec = SourceSpec(source="s", json_lines=JsonLinesSource(uri=path))
        made = stub.CreateImport(pb.CreateImportRequest(spec=spec), timeout=60).source_import
        watched = stub.WatchImport(pb.WatchImportRequest(name=made.name), timeout=60)
        return [answer.source_import.state for answer in watched][-1]


def refusal(stack: StackState, path: str) -> grpc.StatusCode:
    with pytest.raises(grpc.RpcError) as caught:
        run(stack, path)
    code: grpc.StatusCode = caught.value.code()
    return code


def test_a_folder_is_read_once_its_pipeline_was_run_here(
    stack: StackState, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loops, other = folder / "loops", folder / "other"
    for each in (loops, other):
        each.mkdir()
        (each / "a.jsonl").write_text('{"text": "x"}\n')
    for path in (loops / "a.jsonl", other / "a.jsonl", "/etc/passwd", stack.state / "stack.json"):
        assert refusal(stack, str(path)) == grpc.StatusCode.PERMISSION_DENIED
    monkeypatch.setenv("TIDEMILL_STATE", str(stack.state))
    monkeypatch.delenv("TIDEMILL_DATA", raising=False)
    file = PipelineFile(loops / "loop.yaml", PipelineSpec(), {})
    allow(wanted_roots(file), file)
    assert run(stack, str(loops / "a.jsonl")) == Import.STATE_SUCCEEDED
    assert refusal(stack, str(other / "a.jsonl")) == grpc.StatusCode.PERMISSION_DENIED
    assert refusal(stack, "http://169.254.169.254/latest/meta-data") == grpc.StatusCode.PERMISSION_DENIED


def test_a_folder_that_the_meshs_user_cannot_read_is_named_at_once(stack: StackState, folder: Path) -> None:
    """The command itself reports it: root, who runs it, could read the folder, but the import would find nothing."""
    closed = folder / "closed"
    closed.mkdir()
    (closed / "a.jsonl").write_text('{"text": "x"}\n')
    pipeline = yaml.safe_load((ROOT / "pipelines" / "reviews.yaml").read_text(encoding="utf-8"))
    pipeline["sources"][0]["json_lines"]["uri"] = str(closed / "a.jsonl")
    (folder / "loop.yaml").write_text(yaml.safe_dump(pipeline, allow_unicode=True), encoding="utf-8")
    closed.chmod(0o000)
    done = subprocess.run(
        [sys.executable, "-m", "gateway.cli.main", "run", str(folder / "loop.yaml"), "--allow", str(closed)],
        env={**os.environ, "TIDEMILL_STATE": str(stack.state), "COLUMNS": "500"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert f"cannot read {closed}" in done.stderr
