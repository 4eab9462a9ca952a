"""The results of a training run are where its report says, in place or in an artefact store."""

from __future__ import annotations

import contextlib
import socket
import socketserver
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import s3fs

from services.kit.storage.artifacts import ArtifactStore, digest_folder
from services.training.adapters.job import Job
from services.training.domain.report import Metric, Report, Variant
from services.training.domain.tasks import TextClassificationTask
from services.training.domain.training_spec import Optimization, TrainingSpec
from services.training.engine.methods.lora import Lora
from services.training.worker.phases import drop_stored, store
from tests.service_process import free_port
from tests.waiting import wait_until

_METRIC = Metric("accuracy", 0.8, 0.7, 0.9, 50)
_SPEC = TrainingSpec(
    "reviews", "base", "d", "", "0" * 64, TextClassificationTask("label"), Lora(), Optimization(max_steps=2)
)


def _finished(folder: Path, uri: str) -> tuple[Job, Report]:
    for name in ("merged", "variants/fp32", "variants/int8"):
        (folder / name).mkdir(parents=True)
        (folder / name / "model.bin").write_text(name)
    variants = [
        Variant(name, (folder / "variants" / name).as_uri(), digest_folder(folder / "variants" / name), 1, _METRIC)
        for name in ("fp32", "int8")
    ]
    job = Job("runs/1", folder, uri, folder, folder, folder, _SPEC, 1, folder, folder)
    return job, Report(_METRIC, variants=tuple(variants))


def test_results_are_where_the_report_says(artifacts: ArtifactStore, tmp_path: Path) -> None:
    remote = artifacts.root.startswith("s3://")
    uri = artifacts.uri("runs", "1")
    job, report = _finished(tmp_path / ("work" if remote else "artifacts/runs/1"), uri)
    stored = store(job, report, threading.Event())
    assert store(job, report, threading.Event()) == stored
    drop_stored(job)
    assert [variant.uri for variant in stored.variants] == [f"{uri}/variants/fp32", f"{uri}/variants/int8"]
    for variant in stored.variants:
        assert digest_folder(artifacts.fetch_folder(variant.uri, tmp_path / "cache")) == variant.digest
    assert artifacts.exists(f"{uri}/merged/model.bin")
    assert (job.folder / "variants").exists() is not remote


class _Relay(socketserver.BaseRequestHandler):
    """Passes a connection on to the server behind."""

    behind: int

    def handle(self) -> None:
        with socket.create_connection(("127.0.0.1", self.behind)) as server:
            up = threading.Thread(target=_pump, args=(self.request, server))
            up.start()
            _pump(server, self.request)
            up.join()


def _pump(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while content := source.recv(1 << 16):
            target.sendall(content)
        target.shutdown(socket.SHUT_WR)


def test_a_store_that_is_unavailable_when_a_run_ends_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, s3: str
) -> None:
    # The store runs all the time and has its bucket; only the connection to it is missing at first.
    bucket, port = f"late-{uuid.uuid4().hex}", free_port()
    environment = {"ENDPOINT_URL": f"http://127.0.0.1:{port}", "MAX_ATTEMPTS": "1", "DEFAULT_REGION": "us-east-1"}
    for name, value in {**environment, "ACCESS_KEY_ID": "test", "SECRET_ACCESS_KEY": "test"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    s3fs.S3FileSystem.clear_instance_cache()
    s3fs.S3FileSystem(endpoint_url=s3, skip_instance_cache=True).mkdir(bucket)
    job, report = _finished(tmp_path, f"s3://{bucket}/runs/1")
    with ThreadPoolExecutor(1) as pool:
        storing = pool.submit(store, job, report, threading.Event())
        wait_until(lambda: "ARTIFACTS" in caplog.text or "did not answer" in caplog.text, "the first try in vain")
        behind = type("Relay", (_Relay,), {"behind": int(s3.rpartition(":")[2])})
        with socketserver.ThreadingTCPServer(("127.0.0.1", port), behind) as way:
            way.daemon_threads = True
            threading.Thread(target=way.serve_forever, daemon=True).start()
            stored = storing.result(120)
            way.shutdown()
    expected = [replace(each, uri=f"s3://{bucket}/runs/1/variants/{each.precision}") for each in report.variants]
    assert list(stored.variants) == expected
