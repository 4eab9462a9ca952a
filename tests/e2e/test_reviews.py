"""`pipelines/reviews.yaml` as a new user runs it: from raw reviews to a served classifier and feedback."""

from __future__ import annotations

from typing import Any

import pytest
from tidemill.pipeline.v1 import pipeline_service_pb2 as pipeline_pb
from tidemill.pipeline.v1.pipeline_service_pb2_grpc import PipelineServiceStub

from tests.e2e.conftest import ROOT, Mesh
from tests.waiting import wait_until

PIPELINE = str(ROOT / "pipelines" / "reviews.yaml")
# 35,123 lines, half of them repeats.
DISTINCT = 17_457


@pytest.fixture(scope="module")
def cycle(mesh: Mesh) -> dict[str, Any]:
    """The first cycle, ended."""
    found: dict[str, Any] = mesh.json("run", PIPELINE)
    return found


def test_the_cycle_publishes_a_better_model(cycle: dict[str, Any]) -> None:
    assert cycle["state"] == "STATE_SUCCEEDED"
    assert [stage["state"] for stage in cycle["stages"]] == ["STATE_SUCCEEDED"] * 5
    version = cycle["dataset_version"]
    assert int(version["records_in"]) == DISTINCT
    kept = int(version["train_count"]) + int(version["holdout_count"])
    assert kept + sum(int(count) for count in version["rejected_by_reason"].values()) == DISTINCT
    tuned = cycle["report"]["tuned"]
    assert tuned["name"] == "accuracy"
    # Far above chance: the two labels are about equally frequent.
    assert tuned["ci_low"] > 0.6
    assert sum(verdict.get("chosen", False) for verdict in cycle["verdicts"]) == 1
    assert cycle["model_version"].startswith("models/reviews/versions/")


def test_the_model_answers_and_feedback_finds_its_version(mesh: Mesh, cycle: dict[str, Any]) -> None:
    answer = mesh.json("predict", "reviews", "房间很干净，服务也好，下次还会来", "太差了，又脏又吵，再也不来")
    assert [prediction["label"] for prediction in answer["predictions"]] == ["positive", "negative"]
    name = answer["predictions"][1]["answer"]
    mesh.tidemill("feedback", name, "good")
    with mesh.channel() as channel:
        stub = PipelineServiceStub(channel)

        def judged() -> pipeline_pb.Feedback | None:
            request = pipeline_pb.ListFeedbackRequest(model="models/reviews")
            found = stub.ListFeedback(request, metadata=mesh.metadata, timeout=10).feedback
            return next((item for item in found if item.answer == name), None)

        assert wait_until(judged).model_version == cycle["model_version"]


def test_check_asks_the_mesh_for_the_operators(mesh: Mesh) -> None:
    assert mesh.tidemill("run", PIPELINE, "--check").stdout == ""

    def change(value: dict[str, Any]) -> None:
        value["dataset"]["operators"][1] = {"length_filter": {"min_chars": "many"}}

    path = mesh.pipeline("reviews.yaml", change)
    result = mesh.tidemill("run", str(path), "--check", check=False)
    assert result.returncode != 0
    assert f"{path}:" in result.stderr
    assert "dataset.operators[1]" in result.stderr


def test_a_second_run_reuses_what_is_unchanged(mesh: Mesh, cycle: dict[str, Any]) -> None:
    again = mesh.json("run", PIPELINE)
    assert again["name"] != cycle["name"]
    assert {stage["name"]: stage.get("reused", False) for stage in again["stages"]} == {
        "collect": True,
        "clean": True,
        "train": True,
        "gate": False,
        "publish": True,
    }
    assert again["model_version"] == cycle["model_version"]


def test_one_trace_reports_on_the_whole_cycle(mesh: Mesh, cycle: dict[str, Any]) -> None:
    wanted = {"gateway", "pipeline", "ingest", "cleaning", "training", "inference"}

    def services() -> set[str] | None:
        found = {span["service"] for span in mesh.json("trace", cycle["trace_id"])["spans"]}
        return found if wanted <= found else None

    wait_until(services)
