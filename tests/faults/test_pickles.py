"""A pickle that runs code when it is read never runs, wherever it lies among the files of a base model."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from services.kit.errors import InvalidArgumentError
from services.kit.storage.signing import SigningKey
from services.training.adapters.base_models import BaseModels
from services.training.adapters.job import REPORT_FILE, Job
from services.training.domain.tasks import TextClassificationTask
from services.training.domain.training_spec import Optimization, TrainingSpec
from services.training.engine.methods.full import Full
from tests.integration.training.bases import make_encoder, write_reviews


class _Canary:
    """Creates a file when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self._trace = trace

    def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
        return Path.touch, (self._trace,)


@pytest.mark.slow
def test_no_pickle_of_a_base_model_runs(tmp_path: Path) -> None:
    base, trace = make_encoder(tmp_path / "bert"), tmp_path / "it-ran"
    poison = pickle.dumps(_Canary(trace))
    pickle.loads(poison)
    assert trace.exists()
    trace.unlink()
    for name in (
        "pytorch_model.bin",
        "model.pt",
        "training_args.bin",
        "optimizer.pt",
        "tokenizer.pkl",
        "adapter_model.bin",
    ):
        (base / name).write_bytes(poison)
    key = SigningKey(tmp_path / "keys" / "signing.pem", tmp_path / "keys" / "trusted")
    key.ensure()
    snapshot = write_reviews(tmp_path / "snapshot")
    spec = TrainingSpec(
        "reviews",
        str(base),
        "datasets/reviews/versions/1",
        snapshot.as_uri(),
        "0" * 64,
        TextClassificationTask("label", max_input_tokens=16),
        Full(),
        Optimization(max_steps=1, batch_size=4),
        variants=("fp32",),
        max_eval_examples=4,
    )
    folder = tmp_path / "run"
    folder.mkdir()
    job = Job(
        "runs/1", folder, folder.as_uri(), snapshot, tmp_path, tmp_path, spec, 1, key.private, key.trusted
    ).write()
    done = subprocess.run(
        [sys.executable, "-m", "services.training.worker", "--job", str(job)],
        env={**os.environ, "TIDEMILL_STATE": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert json.loads((folder / REPORT_FILE).read_text())["variants"]
    assert not trace.exists()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pkl"])
def test_a_base_model_of_pickles_alone_is_refused_with_a_sentence(tmp_path: Path, name: str) -> None:

    trace = tmp_path / "it-ran"
    (tmp_path / "config.json").write_text('{"architectures": ["BertModel"]}')
    (tmp_path / name).write_bytes(pickle.dumps(_Canary(trace)))
    with pytest.raises(InvalidArgumentError, match="can run code and are not loaded"):
        BaseModels(tmp_path, tmp_path).find(str(tmp_path))
    assert not trace.exists()
