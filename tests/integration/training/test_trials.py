"""Trials: measured on training records that they do not learn, found in MLflow, and never a version of the model."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from mlflow.tracking import MlflowClient
from rich.console import Console
from tidemill.cleaning.v1.cleaning_service_pb2 import ListDatasetVersionsResponse
from tidemill.cleaning.v1.dataset_pb2 import DatasetVersion
from tidemill.training.v1 import run_pb2
from tidemill.training.v1 import training_service_pb2 as pb
from typer.testing import CliRunner

from gateway.cli.connection import Connection, Target
from gateway.cli.main import create_cli
from gateway.cli.pipeline_file import load_pipeline
from gateway.cli.search_space import search_space
from gateway.cli.search_trials import Budget, Trial, best_of, search
from gateway.cli.trial_runs import TrialRuns
from services.kit.errors import InvalidArgumentError
from services.training.domain import trials
from services.training.domain.tasks import TextClassificationTask
from services.training.domain.training_spec import Optimization
from services.training.engine.methods.lora import Lora
from services.training.engine.record_shares import validation_split
from tests.integration.training.bases import make_encoder, make_writer, write_reviews
from tests.integration.training.conftest import RunInputs, TrainingProcess, ended
from tests.integration.training.jobs import labeller_spec, work, writer_spec

_TRIAL = trials.Trial("reviews", 0.25)


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A snapshot with a hold-out of one record whose label no model can give."""
    snapshot = write_reviews(tmp_path_factory.mktemp("sealed") / "snapshot")
    row = pq.read_table(snapshot / "holdout.parquet").slice(0, 1).to_pylist()[0] | {"label": "sealed"}
    pq.write_table(pa.Table.from_pylist([row]), snapshot / "holdout.parquet")
    return snapshot


def test_a_trial_is_measured_on_records_that_it_does_not_learn_and_not_on_the_hold_out(
    sealed: Path, tmp_path: Path
) -> None:
    encoder = make_encoder(tmp_path / "bert")
    how = Optimization(max_steps=60, batch_size=16, learning_rate=0.005)
    spec = labeller_spec(encoder, sealed, TextClassificationTask("label", 32), optimization=how, trial=_TRIAL)
    report = work(tmp_path / "trial", spec)
    learnt, measured = validation_split(pq.read_table(sealed / "train.parquet").to_pylist(), 0.25)
    assert len(learnt) + len(measured) == 72
    assert report.tuned.sample_size == len(measured)
    assert report.figures["train_examples"] == len(learnt)
    assert report.tuned.value > 0.8
    assert (report.variants, report.base, report.champion, report.examples) == ((), None, None, ())
    assert not (tmp_path / "trial" / "variants").exists()


def test_a_trial_of_a_writer_has_a_loss_with_its_interval(sealed: Path, tmp_path: Path) -> None:
    spec = writer_spec(make_writer(tmp_path / "llama"), sealed, Lora(r=4), trial=_TRIAL)
    report = work(tmp_path / "trial", spec)
    assert report.tuned_loss is not None
    assert report.tuned_loss.ci_low < report.tuned_loss.value < report.tuned_loss.ci_high
    assert report.base is None


_FILE = """\
name: {study}
sources: [{{source: reviews, text_folder: {{uri: reviews}}}}]
dataset: {{name: datasets/reviews}}
training:
  base_model: {encoder}
  model_name: {study}
  text_classification: {{label_field: label, max_input_tokens: 32}}
  lora: {{r: 4, alpha: 8}}
  optimization: {{max_steps: {steps}, batch_size: 8, learning_rate: 0.01, checkpoint_every: 10}}
  compression: {{variants: [fp32, int8]}}
gate: {{max_quality_loss: 0.05}}
rollout: {{model: models/reviews}}
search:
  ranges: {ranges}
  validation_share: 0.25
"""


class Searching:
    """Searches with a real training service, without a gateway between."""

    def __init__(self, training: TrainingProcess, inputs: RunInputs, folder: Path, **values: object) -> None:
        self.path = folder / "reviews.yaml"
        given = {"study": "reviews-search", "steps": 4, "ranges": "{lora.r: [1, 2, 4]}"} | values
        self.path.write_text(_FILE.format(encoder=inputs.encoder, **given), encoding="utf-8")
        self.version = DatasetVersion(
            name="datasets/reviews/versions/1",
            uri=inputs.reviews.as_uri(),
            digest="0" * 64,
            state=DatasetVersion.STATE_READY,
        )
        self._address, self._folder = f"127.0.0.1:{training.port}", folder

    def trials(self, count: int, seconds: float | None = None) -> list[Trial]:
        """All trials of a search."""
        file = load_pipeline(self.path)
        space = search_space(file)
        connection = Connection(Target(self._address, "", None, self._folder / "key"))
        try:
            runs = TrialRuns(connection, file, space, self.version, Console(quiet=True))
            return list(search(space, Budget(count, seconds), 7, runs.make))
        finally:
            connection.close()


def test_a_search_trains_each_value_once_and_its_trials_are_in_mlflow_but_no_versions(
    training: TrainingProcess, inputs: RunInputs, tmp_path: Path
) -> None:
    searching = Searching(training, inputs, tmp_path)
    found = searching.trials(3)
    assert sorted(int(each.values["lora.r"]) for each in found) == [1, 2, 4]
    best = best_of(found)
    assert best is not None
    assert best.measured is not None
    assert best.measured.name == "accuracy"
    assert best.measured.ci_low <= best.measured.value <= best.measured.ci_high
    # As after an interruption: the service has trained all of them.
    assert searching.trials(3) == found

    client = MlflowClient(training.mlflow_uri, training.mlflow_uri)
    experiment = client.get_experiment_by_name("reviews-search")
    assert experiment is not None
    logged = client.search_runs([experiment.experiment_id], "tags.`tidemill.study` = 'reviews-search'")
    assert {run.data.tags["tidemill.run"] for run in logged} == {each.run for each in found}
    assert {run.data.params["lora.r"] for run in logged} == {"1", "2", "4"}
    values = {run.data.tags["tidemill.run"]: run.data.metrics["validation_accuracy"] for run in logged}
    assert values == {each.run: each.measured.value for each in found if each.measured}
    assert not client.search_registered_models("name = 'reviews-search'")
    run = training.get(best.run)
    assert run.trial.study == "reviews-search"
    assert run.model_version == ""
    assert not (training.run_folder(best.run) / "merged").exists()
    with pytest.raises(grpc.RpcError) as refused:
        training.stub.PromoteRun(pb.PromoteRunRequest(name=best.run), timeout=30)
    assert refused.value.code() == grpc.StatusCode.FAILED_PRECONDITION


class Door(grpc.GenericRpcHandler):
    """Passes training's calls on, as a gateway does, and knows one version of a data set."""

    def __init__(self, training: grpc.Channel, version: DatasetVersion) -> None:
        self._training, self._version = training, version

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[bytes, bytes]:
        """See grpc."""
        method = details.method

        def answer(request: bytes, context: grpc.ServicerContext) -> bytes:
            if method.endswith("/ListDatasetVersions"):
                return ListDatasetVersionsResponse(dataset_versions=[self._version]).SerializeToString()
            send: Any = self._training.unary_unary(method)
            found: bytes = send(request, timeout=60)
            return found

        return grpc.unary_unary_rpc_method_handler(answer)


def test_the_command_prints_the_trials_and_writes_the_best_training(
    training: TrainingProcess, inputs: RunInputs, tmp_path: Path
) -> None:
    searching = Searching(training, inputs, tmp_path)
    server = grpc.server(ThreadPoolExecutor(2))
    with grpc.insecure_channel(f"127.0.0.1:{training.port}") as channel:
        server.add_generic_rpc_handlers((Door(channel, searching.version),))
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()

        def tune(*options: str) -> str:
            command = ["tune", str(searching.path), "--address", f"127.0.0.1:{port}", *options]
            return CliRunner().invoke(create_cli("tune"), command, catch_exceptions=False).stdout

        text = tune("--out", str(tmp_path / "best.yaml"))
        found = json.loads(tune("--json"))
        server.stop(None).wait()
    best = found["best"]["values"]["lora.r"]
    assert f"Best: lora.r={best}, by accuracy on" in text
    assert len(found["trials"]) == 3
    assert all(trial["run"] in text for trial in found["trials"])
    written = yaml.safe_load((tmp_path / "best.yaml").read_text())
    assert written == {"training": found["training"]}
    assert written["training"]["lora"] == {"r": best, "alpha": 8}


def test_a_search_ends_when_its_time_is_over_and_its_run_with_it(
    training: TrainingProcess, inputs: RunInputs, tmp_path: Path
) -> None:
    searching = Searching(training, inputs, tmp_path, study="reviews-long", steps=100000)
    (only,) = searching.trials(3, seconds=2)
    assert only.cut
    assert only.measured is None
    assert training.wait(only.run, ended).state == run_pb2.Run.STATE_CANCELLED


def test_what_the_service_refuses_is_located_in_the_file_unless_it_is_a_value(
    training: TrainingProcess, inputs: RunInputs, tmp_path: Path
) -> None:
    searching = Searching(training, inputs, tmp_path, ranges="{text_classification.max_input_tokens: [32, 4000]}")
    found = searching.trials(2)
    assert [each.measured is None for each in found] == [False, True]
    assert "4000 tokens exceed" in found[1].why
    searching.path.write_text(searching.path.read_text().replace("label_field: label", "label_field: stars"))
    with pytest.raises(InvalidArgumentError, match=r"reviews\.yaml:7:\d+: training\.text_classification\.label_field"):
        searching.trials(2)
