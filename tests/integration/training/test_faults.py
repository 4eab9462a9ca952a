"""Worker and service are killed in the middle of a run; it continues and ends with one result."""

from __future__ import annotations

import os
import signal
import sqlite3

import pytest
from mlflow.tracking import MlflowClient
from tidemill.training.v1 import run_pb2
from tidemill.training.v1 import training_events_pb2 as events

from tests.integration.training.conftest import RunInputs, TrainingProcess, ended, events_about, log_messages, stepped


@pytest.mark.slow
def test_a_run_outlives_kills_of_its_worker_and_of_the_service(training: TrainingProcess, inputs: RunInputs) -> None:
    run = training.create(inputs.spec("text_classification", steps=900))
    training.wait(run.name, lambda seen: stepped(seen, 20))
    first = training.worker_pid(run.name)
    os.kill(first, signal.SIGKILL)
    # The second worker resumes from the checkpoint; the service dies beside it and finds it again.
    training.wait(run.name, lambda seen: training.worker_pid(run.name) != first and stepped(seen, 40))
    second = training.worker_pid(run.name)
    training.kill()
    training.start()
    assert training.worker_pid(run.name) == second
    # Asked to stop, the service stops its worker, which keeps a checkpoint; that is not a failed attempt.
    assert training.stop() == 0
    training.start()
    done = training.wait(run.name, ended)
    assert done.state == run_pb2.Run.STATE_SUCCEEDED, done.failure
    # What so tiny a model learns in these steps differs from run to run, killed or not: sums of two threads do.
    assert done.report.figures["steps"] == 900
    resumed = [line for line in log_messages(training.run_folder(run.name) / "worker.log") if "resumes from" in line]
    assert resumed, "no worker went on from a checkpoint"
    assert {event_id for event_id, _ in events_about(training.bootstrap, events.RunSucceeded, run.name)} != set()
    assert len({event_id for event_id, _ in events_about(training.bootstrap, events.RunSucceeded, run.name)}) == 1
    registry = MlflowClient(tracking_uri=training.mlflow_uri, registry_uri=training.mlflow_uri)
    versions = registry.search_model_versions("name = 'reviews'")
    assert [str(v.version) for v in versions if v.tags["tidemill.run"] == run.name] == [
        done.model_version.split("/")[1]
    ]
    with sqlite3.connect(training.folder / "training.sqlite") as database:
        attempts = database.execute("select attempts from runs where name = ?", (run.name,)).fetchone()[0]
    assert attempts == 2
