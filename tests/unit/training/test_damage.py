"""Damaged snapshots and full disks: each is named in the error, and nothing half-written stays."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.torch
import torch
from safetensors import SafetensorError

from services.kit.errors import DataLossError, explained
from services.kit.storage.artifacts import ArtifactStore
from services.kit.storage.signing import TrustedKeys
from services.training.adapters.checkpoints import CheckpointFolder
from services.training.adapters.job import EXIT_DISK_FULL, EXIT_FAILED, FAILURE_FILE, Job
from services.training.adapters.snapshots import StoredFolders, by_weight, check_files, read_corrections, read_rows
from services.training.domain.tasks import TextClassificationTask
from services.training.domain.training_spec import Optimization, TrainingSpec
from services.training.engine.loop import Checkpoint
from services.training.engine.methods.full import Full
from services.training.worker import __main__ as worker
from services.training.worker import sequence
from services.training.worker.phases import kept_folder
from services.training.worker.ranks import Ranks
from services.training.worker.sequence import run_rank

_TASK = TextClassificationTask("label")


def _spec(folder: Path) -> TrainingSpec:
    return TrainingSpec(
        "m", "base", "datasets/d/versions/1", folder.as_uri(), "0" * 64, _TASK, Full(), Optimization(max_steps=1)
    )


@pytest.fixture
def snapshot(tmp_path: Path) -> Path:
    """As cleaning writes it."""
    folder = tmp_path / "snapshot"
    folder.mkdir()
    files = {}
    for part in ("train", "holdout"):
        rows = [{"record_id": f"{part}{n}", "text": f"text {n}", "label": str(n % 2)} for n in range(200)]
        file = folder / f"{part}.parquet"
        pq.write_table(pa.Table.from_pylist(rows), file)
        files[file.name] = {
            "rows": len(rows),
            "bytes": file.stat().st_size,
            "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        }
    (folder / "manifest.json").write_text(json.dumps({"digest": "0" * 64, "files": files}))
    return folder


def _truncate(folder: Path) -> str:
    file = folder / "holdout.parquet"
    file.write_bytes(file.read_bytes()[:-20])
    return "holdout.parquet"


def _flip(folder: Path) -> str:
    file = folder / "train.parquet"
    content = bytearray(file.read_bytes())
    content[100] ^= 0xFF
    file.write_bytes(content)
    return "train.parquet"


def _remove(folder: Path) -> str:
    (folder / "train.parquet").unlink()
    return "train.parquet"


def _break_manifest(folder: Path) -> str:
    (folder / "manifest.json").write_text("{")
    return "manifest.json"


@pytest.mark.parametrize("harm", [_truncate, _flip, _remove, _break_manifest])
def test_a_damaged_snapshot_is_refused_when_a_run_is_created_and_when_it_is_read(
    snapshot: Path, tmp_path: Path, harm: Callable[[Path], str]
) -> None:
    folders = StoredFolders(ArtifactStore(tmp_path.as_uri()), TrustedKeys(tmp_path), tmp_path / "cache")
    folders.check_dataset(_spec(snapshot))
    check_files(snapshot, snapshot.as_uri())
    part = harm(snapshot)
    checks: list[Callable[[], None]] = [
        lambda: folders.check_dataset(_spec(snapshot)),
        lambda: check_files(snapshot, snapshot.as_uri()),
    ]
    for check in checks:
        with pytest.raises(DataLossError, match=part) as caught:
            check()
        assert caught.value.reason == "SNAPSHOT_DAMAGED"
        assert caught.value.metadata["part"] == part
        assert caught.value.metadata["cause"]
        assert "Restore the file from a backup" in caught.value.message


def test_damage_to_held_back_feedback_is_found_by_its_digest(snapshot: Path) -> None:
    assert read_corrections(snapshot, _TASK.learnt) == []
    file = snapshot / "corrections.parquet"
    rows = [{"record_id": "c", "text": "text", "label": "1"}]
    pq.write_table(pa.Table.from_pylist(rows), file)
    manifest = json.loads((snapshot / "manifest.json").read_text())
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    manifest["files"][file.name] = {"rows": 1, "bytes": file.stat().st_size, "sha256": digest}
    (snapshot / "manifest.json").write_text(json.dumps(manifest))
    check_files(snapshot, snapshot.as_uri())
    assert read_corrections(snapshot, _TASK.learnt) == rows
    file.unlink()
    with pytest.raises(DataLossError, match=r"corrections\.parquet"):
        check_files(snapshot, snapshot.as_uri())


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1" + b"\x00" * 200 + b"PAR1", b"no parquet at all"])
def test_a_file_that_is_not_parquet_is_named_where_no_manifest_reports_it(
    snapshot: Path, tmp_path: Path, content: bytes
) -> None:
    (snapshot / "manifest.json").unlink()
    (snapshot / "train.parquet").write_bytes(content)
    with pytest.raises(DataLossError) as caught:
        read_rows(snapshot, "train", [_TASK.learnt])
    assert caught.value.reason == "SNAPSHOT_DAMAGED"
    with pytest.raises(DataLossError) as caught:
        StoredFolders(ArtifactStore(tmp_path.as_uri()), TrustedKeys(tmp_path), tmp_path).check_dataset(_spec(snapshot))
    assert caught.value.reason == "SNAPSHOT_DAMAGED"


def _checkpoint(step: int) -> Checkpoint:
    weights = {"w": torch.ones(8)}
    return Checkpoint(step, weights, {"o": torch.ones(8)}, torch.zeros(16, dtype=torch.uint8), [1.0])


def test_the_last_good_checkpoint_stays_when_the_disk_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = CheckpointFolder(tmp_path / "checkpoints")
    checkpoints.save(_checkpoint(1))
    real = safetensors.torch.save_file

    def save_file(tensors: Any, path: Any) -> None:
        # The second file of the checkpoint meets the full disk: half of it is written.
        if "optimizer" in str(path):
            Path(path).write_bytes(b"half")
            raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
        real(tensors, path)

    monkeypatch.setattr(safetensors.torch, "save_file", save_file)
    with pytest.raises(SafetensorError) as caught:
        checkpoints.save(_checkpoint(2))
    known = explained(caught.value)
    assert known is not None
    assert known.reason == "DISK_FULL"
    monkeypatch.undo()
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000001"]
    newest = checkpoints.newest()
    assert newest is not None
    assert newest.step == 1


def test_nothing_half_built_stays_when_the_disk_is_full(tmp_path: Path) -> None:
    def make(path: Path) -> None:
        (path / "model.onnx").write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(OSError, match="No space"):
        kept_folder(tmp_path / "variants" / "int8", make)
    assert list((tmp_path / "variants").iterdir()) == []


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "DISK_FULL"),
        (SafetensorError("I/O error: No space left on device (os error 28)"), "DISK_FULL"),
        (DataLossError("train.parquet is damaged", reason="SNAPSHOT_DAMAGED"), "SNAPSHOT_DAMAGED"),
        (RuntimeError("no one foresaw it"), "TRAINING_FAILED"),
    ],
)
def test_a_worker_leaves_the_reason_of_its_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, reason: str
) -> None:
    def run(*_: object) -> None:
        raise error

    monkeypatch.setattr(sequence, "run_job", run)
    folder = tmp_path / "run"
    folder.mkdir()
    job = Job("runs/1", folder, folder.as_uri(), tmp_path, tmp_path, tmp_path, _spec(tmp_path), 1, tmp_path, tmp_path)
    assert worker._run(job, threading.Event(), Ranks(job, run_rank)) == EXIT_FAILED
    assert json.loads((folder / FAILURE_FILE).read_text())["reason"] == reason
    if reason != "DISK_FULL":
        return

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    # Not even the reason can be written: the exit code reports it.
    monkeypatch.setattr(worker, "write_json", full)
    assert worker._run(job, threading.Event(), Ranks(job, run_rank)) == EXIT_DISK_FULL


def test_feedback_is_learnt_as_often_as_it_weighs() -> None:
    rows = [{"record_id": "1"}, {"record_id": "2", "feedback_weight": "3"}, {"record_id": "3", "feedback_weight": ""}]
    assert [row["record_id"] for row in by_weight(rows)] == ["1", "2", "2", "2", "3"]


@pytest.mark.parametrize("weight", ["0", "101", "-1", "many", "1.5"])
def test_a_weight_that_cannot_be_is_damage(weight: str) -> None:
    with pytest.raises(DataLossError, match="feedback_weight"):
        by_weight([{"record_id": "1", "feedback_weight": weight}])
