"""Small real runs of both tasks through the service: contract, report, registry, events."""

from __future__ import annotations

import json
import re
import shutil
from itertools import groupby
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from mlflow.tracking import MlflowClient
from tidemill.training.v1 import run_pb2
from tidemill.training.v1 import training_events_pb2 as events
from tidemill.training.v1 import training_service_pb2 as pb

from services.kit.engine import TOKENIZERS, open_encoder, weights_of
from services.kit.probes import TEXTS, Probes
from services.kit.storage.artifacts import digest_folder
from services.kit.storage.signing import MANIFEST, SIGNATURE
from tests.faults.strangers import open_folder
from tests.integration.training.bases import write_snapshot
from tests.integration.training.conftest import RunInputs, TrainingProcess, ended, events_about, stepped, warnings_of

STATE = run_pb2.Run
RUNS = [STATE.STATE_RUNNING, STATE.STATE_SUCCEEDED]


@pytest.fixture(scope="module")
def writer(training: TrainingProcess, inputs: RunInputs) -> run_pb2.Run:
    """A generation run, watched to its end."""
    name = training.create(inputs.spec("generation"), request_id="writer").name
    watched = list(training.stub.WatchRun(pb.WatchRunRequest(name=name), timeout=300))
    phases = [phase for phase, _ in groupby(item.run.progress.phase for item in watched if item.run.progress.phase)]
    # A watcher may miss a short phase, and never sees one out of its turn; the worker's log has them all.
    assert phases
    order = iter(("prepare", "evaluate", "train", "evaluate", "compress"))
    assert all(phase in order for phase in phases), phases
    states = [state for state, _ in groupby(item.run.state for item in watched)]
    assert states in ([STATE.STATE_QUEUED, *RUNS], RUNS)
    # The loss is there while it trains, and in the report afterwards.
    assert any(len(item.run.loss_curve) for item in watched)
    last: run_pb2.Run = watched[-1].run
    assert last.state == STATE.STATE_SUCCEEDED, last.failure
    return last


@pytest.fixture(scope="module")
def classifier(training: TrainingProcess, inputs: RunInputs) -> run_pb2.Run:
    """A classification run, long enough that its model is sure: int8 may turn an answer that hangs by a thread.

    And slow enough that it learns alike on every processor: at a higher rate rounding decides where it ends.
    """
    spec = inputs.spec("text_classification", steps=120)
    spec.optimization.learning_rate = 0.003
    run = training.create(spec)
    return training.wait(run.name, ended)


def test_a_run_has_all_phases_in_order(writer: run_pb2.Run, training: TrainingProcess) -> None:
    log = (training.run_folder(writer.name) / "worker.log").read_text("utf-8")
    ended_phases = re.findall(rf"{writer.name}: (\w+) took", log)
    assert ended_phases == ["prepare", "evaluate", "train", "evaluate", "compress"]


def test_a_writer_is_measured_before_after_and_in_each_build(writer: run_pb2.Run, training: TrainingProcess) -> None:
    report = writer.report
    assert (report.base.name, report.base.sample_size, report.tuned.sample_size) == ("rouge_l", 12, 12)
    assert len(report.examples) == 5
    assert [variant.precision for variant in report.variants] == ["fp32", "int8", "int4"]
    assert report.tuned_loss.value > 0
    steps = writer.spec.optimization.max_steps
    assert [point.step for point in report.loss_curve] == list(range(1, steps + 1))
    assert report.loss_curve[0].loss == report.figures["first_loss"]
    fp32, int8, int4 = report.variants
    # The same weights in another runtime say the same, to rounding.
    assert fp32.loss.value == pytest.approx(report.tuned_loss.value, abs=1e-3)
    assert fp32.loss_increase.value == pytest.approx(0, abs=1e-3)
    assert abs(int8.loss_increase.value) < 0.05
    assert int8.size_bytes < fp32.size_bytes
    assert int4.loss_increase.ci_low <= int4.loss_increase.value <= int4.loss_increase.ci_high
    for variant in report.variants:
        folder = Path(variant.uri.removeprefix("file://"))
        assert {"openvino_model.xml", "openvino_model.bin", "config.json", "tokenizer.json", "tidemill.json"} <= {
            p.name for p in folder.iterdir()
        }
        assert digest_folder(folder, without=[MANIFEST, SIGNATURE]) == variant.digest
        training.trusted.verify_build(folder, variant.digest)
        probes = Probes.read(json.loads((folder / MANIFEST).read_text()))
        assert probes is not None
        assert probes.texts == TEXTS


def test_a_classifier_learns_and_its_builds_agree(classifier: run_pb2.Run) -> None:
    assert classifier.state == STATE.STATE_SUCCEEDED, classifier.failure
    report = classifier.report
    assert report.figures["final_loss"] < 0.5 * report.figures["first_loss"]
    assert report.tuned.name == "accuracy"
    assert report.tuned.value > report.figures["majority_accuracy"]
    fp32, int8 = report.variants
    assert fp32.quality.value == report.tuned.value
    assert int8.size_bytes < fp32.size_bytes
    assert not fp32.HasField("loss")
    assert report.figures["same_answer_as_merged_fp32"] == 1.0
    assert 0.5 < report.figures["same_answer_as_merged_int8"] <= 1.0
    ids = np.array([[2, 5, 7, 0], [2, 6, 0, 0]], dtype=np.int64)
    vectors = []
    for variant in report.variants:
        folder = Path(variant.uri.removeprefix("file://"))
        probes = Probes.read(json.loads((folder / MANIFEST).read_text()))
        assert probes is not None
        assert (probes.texts, {*probes.answers} <= {"negative", "positive"}) == (TEXTS, True)
        found = open_encoder(folder)([ids, (ids > 0).astype(np.int64)])["embedding"]
        assert json.loads((folder / MANIFEST).read_text())["embedding_size"] == found.shape[1]
        vectors.append(found)
        # A text's embedding does not depend on the padding beside it.
        alone = open_encoder(folder)([ids[1:, :2], np.ones((1, 2), dtype=np.int64)])["embedding"]
        assert found[1] @ alone[0] == pytest.approx(1, abs=1e-3)
    assert np.linalg.norm(vectors[0], axis=1) == pytest.approx([1, 1], abs=1e-5)
    assert (vectors[0] * vectors[1]).sum(1).min() > 0.9


@pytest.mark.parametrize("task", ["generation", "text_classification"])
def test_every_weight_is_trained_where_asked_and_what_was_done_otherwise_is_reported(
    training: TrainingProcess, inputs: RunInputs, task: str
) -> None:
    spec = inputs.spec(task, full=run_pb2.FullMethod(), model_name="full")
    spec.optimization.precision = run_pb2.PRECISION_FP16
    spec.compression.CopyFrom(run_pb2.Compression(variants=["fp32"]))
    run = training.wait(training.create(spec).name, ended)
    assert run.state == STATE.STATE_SUCCEEDED, run.failure
    figures = run.report.figures
    assert figures["trainable_parameters"] == figures["parameters"]
    # No processor trains in it.
    (warning,) = warnings_of(run)
    assert "optimization.precision" in warning
    left = {path.name for path in training.run_folder(run.name).iterdir()}
    assert {"merged", "variants", "report.json"} <= left
    assert not left & {"adapter", "checkpoints", "build-cache"}
    pickled = {".bin", ".pt", ".pth", ".pkl"}
    found = [path.name for path in training.run_folder(run.name).rglob("*") if path.suffix in pickled]
    # Numbers alone, which OpenVINO reads.
    graphs = ["openvino_model.bin", *map(weights_of, TOKENIZERS)] if task == "generation" else ["openvino_model.bin"]
    assert sorted(found) == sorted(graphs)


def test_an_end_is_reported_once(training: TrainingProcess, writer: run_pb2.Run) -> None:
    found = events_about(training.bootstrap, events.RunSucceeded, writer.name)
    assert [message.model_version for _, message in found] == [writer.model_version]


def test_runs_are_listed_newest_first_in_pages(
    training: TrainingProcess, writer: run_pb2.Run, classifier: run_pb2.Run
) -> None:
    names, token = [], ""
    while True:
        page = training.stub.ListRuns(pb.ListRunsRequest(page_size=1, page_token=token), timeout=10)
        names += [run.name for run in page.runs]
        token = page.next_page_token
        if not token:
            break
    assert names == sorted(names, reverse=True)
    assert {writer.name, classifier.name} <= set(names)


def test_a_repeat_is_the_same_run_and_the_same_work_is_reused(
    training: TrainingProcess, inputs: RunInputs, writer: run_pb2.Run
) -> None:
    repeat = training.create(inputs.spec("generation"), request_id="writer")
    assert (repeat.name, repeat.reused) == (writer.name, False)
    with pytest.raises(grpc.RpcError) as refused:
        training.create(inputs.spec("generation", steps=5), request_id="writer")
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    same = training.create(inputs.spec("generation"), request_id="another")
    assert (same.name, same.reused) == (writer.name, True)


def test_the_newest_model_is_challenger_and_a_promoted_one_champion(
    training: TrainingProcess, writer: run_pb2.Run
) -> None:
    name, _, number = writer.model_version.partition("/")
    registry: Any = MlflowClient(tracking_uri=training.mlflow_uri, registry_uri=training.mlflow_uri)
    # A number or its text, by how MLflow was asked.
    assert str(registry.get_model_version_by_alias(name, "challenger").version) == number
    training.stub.PromoteRun(pb.PromoteRunRequest(name=writer.name), timeout=60)
    made = registry.get_model_version_by_alias(name, "champion")
    assert str(made.version) == number
    # The champion is not a challenger any more.
    assert "challenger" not in registry.get_registered_model(name).aliases
    measured = registry.get_run(made.run_id).data.metrics
    assert measured["tuned_rouge_l"] == writer.report.tuned.value
    assert measured["int8_loss_increase"] == writer.report.variants[1].loss_increase.value


def test_a_cancelled_run_ends_and_is_reported(training: TrainingProcess, inputs: RunInputs) -> None:
    run = training.create(inputs.spec("text_classification", steps=100_000))
    training.wait(run.name, lambda seen: stepped(seen, 1))
    training.stub.CancelRun(pb.CancelRunRequest(name=run.name), timeout=10)
    assert training.wait(run.name, ended).state == STATE.STATE_CANCELLED
    assert len(events_about(training.bootstrap, events.RunCancelled, run.name)) == 1
    with pytest.raises(grpc.RpcError) as refused:
        training.stub.PromoteRun(pb.PromoteRunRequest(name=run.name), timeout=10)
    assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION


def test_one_label_only_is_a_failure_that_names_the_field_and_is_reported(
    training: TrainingProcess, inputs: RunInputs, tmp_path: Path
) -> None:
    rows = [{"record_id": "r", "source": "s", "text": "the room was good", "label": "good"}]
    folder = write_snapshot(tmp_path / "snapshot", rows, rows)
    dataset = run_pb2.DatasetReference(name="datasets/odd/versions/1", uri=folder.as_uri(), digest="1" * 64)
    run = training.create(inputs.spec("text_classification", dataset=dataset))
    failed = training.wait(run.name, ended)
    assert (failed.state, failed.failure.reason) == (STATE.STATE_FAILED, "LABELS_MISSING")
    assert "spec.text_classification.label_field" in failed.failure.message
    assert events_about(training.bootstrap, events.RunFailed, run.name)[0][1].failure.reason == "LABELS_MISSING"


def _refused(training: TrainingProcess, spec: run_pb2.TrainingSpec) -> tuple[grpc.StatusCode, str, list[str]]:
    """Code, message and named fields of a refused creation."""
    with pytest.raises(grpc.RpcError) as refused:
        training.create(spec)
    call: Any = refused.value
    status: Any = rpc_status.from_call(call)
    fields, bad = [], error_details_pb2.BadRequest()
    for detail in status.details:
        if detail.Unpack(bad):
            fields = [violation.field for violation in bad.field_violations]
    return call.code(), status.message, fields


def test_a_data_set_without_the_column_is_refused(training: TrainingProcess, inputs: RunInputs, tmp_path: Path) -> None:
    row = {"record_id": "r", "source": "s", "text": "the room was good", "stars": "5"}
    folder = write_snapshot(tmp_path / "snapshot", [row], [row])
    dataset = run_pb2.DatasetReference(name="datasets/odd/versions/1", uri=folder.as_uri(), digest="1" * 64)
    code, said, fields = _refused(training, inputs.spec("text_classification", dataset=dataset))
    assert (code, fields) == (grpc.StatusCode.INVALID_ARGUMENT, ["spec.text_classification.label_field"])
    assert "stars" in said


def test_a_data_set_that_is_gone_is_refused(training: TrainingProcess, inputs: RunInputs, tmp_path: Path) -> None:
    gone = run_pb2.DatasetReference(name="d", uri=(tmp_path / "gone").as_uri(), digest="2" * 64)
    code, _, fields = _refused(training, inputs.spec("text_classification", dataset=gone))
    assert (code, fields) == (grpc.StatusCode.NOT_FOUND, ["spec.dataset.uri"])


def test_a_model_of_the_other_kind_is_refused(training: TrainingProcess, inputs: RunInputs) -> None:
    spec = inputs.spec("text_classification", base_model=str(inputs.language_model))
    code, _, fields = _refused(training, spec)
    assert (code, fields) == (grpc.StatusCode.INVALID_ARGUMENT, ["spec.base_model"])


def test_a_spec_that_breaks_a_rule_is_refused_with_its_field(training: TrainingProcess, inputs: RunInputs) -> None:
    spec = inputs.spec("generation")
    spec.optimization.learning_rate = -1
    assert _refused(training, spec)[::2] == (grpc.StatusCode.INVALID_ARGUMENT, ["spec.optimization.learning_rate"])
    spec = inputs.spec("generation")
    spec.generation.target_field = ""
    assert _refused(training, spec)[::2] == (grpc.StatusCode.INVALID_ARGUMENT, ["spec.generation.target_field"])


@pytest.mark.parametrize(
    ("base_model", "code", "said"),
    [
        ("no-such-model", grpc.StatusCode.NOT_FOUND, "smollm2-135m-instruct"),
        ("bge-small-zh-v1.5", grpc.StatusCode.FAILED_PRECONDITION, "tidemill run FILE"),
    ],
)
def test_a_missing_base_model_is_an_error_that_says_what_to_do(
    training: TrainingProcess, inputs: RunInputs, base_model: str, code: grpc.StatusCode, said: str
) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        training.create(inputs.spec("text_classification", base_model=base_model))
    assert refused.value.code() is code
    assert said in (refused.value.details() or "")


def test_folders_outside_the_store_and_the_model_roots_are_refused(
    training: TrainingProcess, inputs: RunInputs
) -> None:
    with open_folder() as outside:
        shutil.copytree(inputs.encoder, outside / "bert")
        shutil.copytree(inputs.reviews, outside / "d")
        spec = inputs.spec("text_classification", base_model=str(outside / "bert"))
        for call, request in (
            (training.stub.CreateRun, pb.CreateRunRequest(spec=spec)),
            (training.stub.PlanTraining, pb.PlanTrainingRequest(spec=spec)),
        ):
            with pytest.raises(grpc.RpcError) as refused:
                call(request, timeout=60)
            assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
            assert "spec.base_model" in (refused.value.details() or "")
        dataset = run_pb2.DatasetReference(name="d", uri=(outside / "d").as_uri(), digest="0" * 64)
        code, _, fields = _refused(training, inputs.spec("text_classification", dataset=dataset))
        assert (code, fields) == (grpc.StatusCode.PERMISSION_DENIED, ["spec.dataset.uri"])


def test_an_unknown_run_is_not_found(training: TrainingProcess) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        training.get("runs/none")
    assert refused.value.code() is grpc.StatusCode.NOT_FOUND


def test_a_plan_needs_the_configuration_of_a_model_only(
    training: TrainingProcess, inputs: RunInputs, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_bytes((inputs.language_model / "config.json").read_bytes())
    spec = inputs.spec("generation", base_model=str(tmp_path))
    spec.ClearField("dataset")
    plan = training.stub.PlanTraining(pb.PlanTrainingRequest(spec=spec), timeout=60)
    assert [each.strategy for each in plan.strategies] == ["single", "ddp", "fsdp", "tp"]
    assert plan.strategies[0].fits
    assert 0 < plan.trainable_parameters < plan.parameters
    elsewhere = training.stub.PlanTraining(
        pb.PlanTrainingRequest(spec=spec, devices=8, device_bytes=80 * 10**9), timeout=60
    )
    assert (elsewhere.device, elsewhere.strategies[2].devices) == ("cuda", 8)
    assert {each.name: each.devices for each in elsewhere.sizes}["7B"] == 1
