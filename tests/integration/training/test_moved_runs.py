"""A run whose machine is lost continues on another one, which shares the artefact store with it and no folder."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import s3fs

from services.training.adapters.launching import ForkServer
from tests.integration.training.test_strategies import Here, reviews_spec
from tests.s3 import new_bucket, serving_s3
from tests.waiting import wait_until


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A bucket, which processes of this test reach."""
    with serving_s3() as server:
        yield new_bucket(server, monkeypatch)


def test_a_run_continues_where_another_machine_has_stored_its_checkpoint(tmp_path: Path, bucket: str) -> None:
    spec = replace(reviews_spec(tmp_path, "ddp", steps=120), strategy="single", processes=1)
    # It has the address of the bucket from its environment.
    launcher = ForkServer()
    try:
        here = Here(tmp_path, spec, launcher)
        here.run = replace(here.run, uri=f"{bucket}/runs/r")
        here.folder = tmp_path / "runs" / "r"
        here.start()
        [worker] = here.stepped(30)
        copies = f"{bucket}/runs/r/checkpoints"

        def copied() -> bool:
            return any(
                path.endswith("manifest.json") for path in s3fs.S3FileSystem(use_listings_cache=False).find(copies)
            )

        wait_until(copied, "a copy of a checkpoint")
        worker.send_signal(signal.SIGKILL)
        here.ended()
        # The other machine.
        shutil.rmtree(here.folder)
        here.start()
        view = here.ended()
        assert view.report is not None, view
        assert view.report.figures["steps"] == 120
        assert "continues from a checkpoint of another machine" in here.log
        assert "resumes from step" in here.log
        assert view.report.tuned.value > 0.9
        assert all(variant.uri.startswith(bucket) for variant in view.report.variants)
        assert s3fs.S3FileSystem(use_listings_cache=False).find(copies) == []
    finally:
        launcher.close()
